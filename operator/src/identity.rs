//! The ConfigMap with what must never be forgotten about a cluster.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use metastore_operator_core::{Identity, IdentityChange};

/// Replacements that are remembered: more than any limit per hour is useful.
const REPLACEMENTS_MAX: usize = 100;

/// Reads the ConfigMap.
pub(crate) fn read(map: &ConfigMap) -> Identity {
    let empty = BTreeMap::new();
    let data = map.data.as_ref().unwrap_or(&empty);
    let text = |key: &str| data.get(key).filter(|text| !text.is_empty()).cloned();
    Identity {
        seed: text("seed").unwrap_or_default(),
        token: text("token").unwrap_or_default(),
        cluster_id: text("clusterID").and_then(|id| u64::from_str_radix(&id, 16).ok()),
        pending: text("pending"),
        replacing: text("replacing"),
        replacements: text("replacements")
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let (name, time) = line.split_once(' ')?;
                Some((name.to_owned(), time.parse().ok()?))
            })
            .collect(),
        recovering: text("recovering"),
        reclaim_started: text("reclaimStarted").and_then(|time| time.parse().ok()),
    }
}

/// The data of the ConfigMap.
pub(crate) fn data(identity: &Identity) -> BTreeMap<String, String> {
    let Identity {
        seed,
        token,
        cluster_id,
        pending,
        replacing,
        replacements,
        recovering,
        reclaim_started,
    } = identity;
    let mut data = BTreeMap::from([
        ("seed".to_owned(), seed.clone()),
        ("token".to_owned(), token.clone()),
    ]);
    let optional = [
        ("clusterID", cluster_id.map(|id| format!("{id:x}"))),
        ("pending", pending.clone()),
        ("replacing", replacing.clone()),
        ("recovering", recovering.clone()),
        (
            "reclaimStarted",
            reclaim_started.map(|time| time.to_string()),
        ),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            data.insert(key.to_owned(), value);
        }
    }
    if !replacements.is_empty() {
        let lines: Vec<_> = replacements
            .iter()
            .map(|(name, time)| format!("{name} {time}"))
            .collect();
        data.insert("replacements".to_owned(), lines.join("\n"));
    }
    data
}

/// The identity after a change.
pub(crate) fn change(mut identity: Identity, change: &IdentityChange, now: Timestamp) -> Identity {
    match change {
        IdentityChange::Latch(id) => identity.cluster_id = Some(*id),
        IdentityChange::Pending(name) => identity.pending = name.clone(),
        IdentityChange::Replacing(name) => identity.replacing = name.clone(),
        IdentityChange::ReplacementBegins(name) => {
            identity.replacements.push((name.clone(), now));
            let surplus = identity.replacements.len().saturating_sub(REPLACEMENTS_MAX);
            identity.replacements.drain(..surplus);
        }
        IdentityChange::Recovering(name) => {
            identity.recovering = name.clone();
            identity.pending = None;
            identity.replacing = None;
        }
        IdentityChange::ReclaimEnded => identity.reclaim_started = None,
    }
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_it_was_written() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let identity = Identity {
            seed: "a-xyz".into(),
            token: "t".into(),
            cluster_id: Some(0xcdf8_1819_4e3a_8c32),
            pending: Some("a-new".into()),
            replacing: Some("a-old".into()),
            replacements: vec![("a-b".into(), now), ("a-c".into(), now)],
            recovering: None,
            reclaim_started: Some(now),
        };
        let map = ConfigMap {
            data: Some(data(&identity)),
            ..ConfigMap::default()
        };
        assert_eq!(read(&map), identity);
        assert_eq!(read(&ConfigMap::default()), Identity::default());
    }
}
