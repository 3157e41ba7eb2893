//! `--feature-gates`: etcd's switches for features that are not settled.

use std::collections::BTreeMap;
use std::fmt;

/// One switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureGate {
    /// Its name on the command line.
    pub name: &'static str,
    /// True for ALPHA, false for BETA: decides which of `AllAlpha` and `AllBeta` covers it.
    pub is_alpha: bool,
    /// Its value when nobody sets it.
    pub default: bool,
    /// What setting it does here; begins with [`NO_EFFECT`] when that is nothing.
    pub meaning: &'static str,
}

/// How the meaning of a gate without effect begins.
const NO_EFFECT: &str = "no effect";

impl FeatureGate {
    /// Whether setting it changes anything.
    #[must_use]
    pub fn has_effect(&self) -> bool {
        !self.meaning.starts_with(NO_EFFECT)
    }
}

const fn gate(
    name: &'static str,
    is_alpha: bool,
    default: bool,
    meaning: &'static str,
) -> FeatureGate {
    FeatureGate {
        name,
        is_alpha,
        default,
        meaning,
    }
}

/// The gates of etcd 3.7, by name.
pub const FEATURE_GATES: &[FeatureGate] = &[
    gate(
        "CompactHashCheck",
        true,
        false,
        "the leader compares the members' data after compactions",
    ),
    gate(
        "FastLeaseKeepAlive",
        false,
        true,
        "off: a renewal waits until everything committed is applied",
    ),
    gate(
        "InitialCorruptCheck",
        true,
        false,
        "a member compares its data with the others' before it serves; kubeadm sets it",
    ),
    gate(
        "LeaseCheckpoint",
        true,
        false,
        "a new leader gives a lease the time that was left, not its whole time",
    ),
    gate(
        "LeaseCheckpointPersist",
        true,
        false,
        "no effect: checkpoints are always stored, as in etcd since 3.6",
    ),
    gate(
        "PriorityRequest",
        true,
        false,
        "revokes of leases are refused only at twice the backlog of other requests",
    ),
    gate(
        "SetMemberLocalAddr",
        true,
        false,
        "no effect: the system chooses the address of connections to other members",
    ),
    gate(
        "StopGRPCServiceOnDefrag",
        true,
        false,
        "no effect: defragmentation does not block requests",
    ),
    gate(
        "TxnModeWriteWithSharedBuffer",
        false,
        true,
        "no effect: there is no such buffer",
    ),
];

const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";

/// The gates that were set, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates {
    set: BTreeMap<String, bool>,
}

impl FeatureGates {
    /// Reads `Name=true,Other=false`. The empty text sets nothing.
    ///
    /// # Errors
    ///
    /// Etcd's text, for example `unrecognized feature gate: Nmae`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut gates = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let Some((name, value)) = part.split_once('=') else {
                return Err(format!("missing bool value for {}", part.trim()));
            };
            let (name, value) = (name.trim(), value.trim());
            let value = super::value::parse_boolean(value).map_err(|_| {
                format!(
                    "invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"
                )
            })?;
            gates.set(name, value)?;
        }
        Ok(gates)
    }

    /// Sets one gate, or with `AllAlpha` and `AllBeta` all that were not set by name.
    pub(super) fn set(&mut self, name: &str, value: bool) -> Result<(), String> {
        if name == ALL_ALPHA || name == ALL_BETA {
            for gate in FEATURE_GATES
                .iter()
                .filter(|gate| gate.is_alpha == (name == ALL_ALPHA))
            {
                self.set.entry(gate.name.to_owned()).or_insert(value);
            }
        } else if !FEATURE_GATES.iter().any(|gate| gate.name == name) {
            return Err(format!("unrecognized feature gate: {name}"));
        }
        self.set.insert(name.to_owned(), value);
        Ok(())
    }

    /// True if the gate was switched on, or is on by default.
    #[must_use]
    pub fn is_enabled(&self, name: &str) -> bool {
        self.set.get(name).copied().unwrap_or_else(|| {
            FEATURE_GATES
                .iter()
                .any(|gate| gate.name == name && gate.default)
        })
    }

    /// The gates that were set to something else than their default, in vain.
    pub(super) fn changed_without_effect(&self) -> impl Iterator<Item = &str> {
        self.set.iter().filter_map(|(name, value)| {
            FEATURE_GATES
                .iter()
                .any(|gate| gate.name == name && gate.default != *value && !gate.has_effect())
                .then_some(name.as_str())
        })
    }
}

impl fmt::Display for FeatureGates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self
            .set
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        formatter.write_str(&pairs.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read_as_etcd_reads_them() {
        let gates =
            FeatureGates::parse("InitialCorruptCheck=true, CompactHashCheck=false").expect("valid");
        assert!(gates.is_enabled("InitialCorruptCheck"));
        assert!(!gates.is_enabled("CompactHashCheck"));
        assert!(gates.is_enabled("FastLeaseKeepAlive"), "on by default");
        assert_eq!(
            gates.to_string(),
            "CompactHashCheck=false,InitialCorruptCheck=true"
        );
        assert!(
            FeatureGates::parse("AllAlpha=true")
                .expect("valid")
                .is_enabled("LeaseCheckpoint")
        );
        assert_eq!(
            FeatureGates::parse("Nmae=true"),
            Err("unrecognized feature gate: Nmae".to_owned())
        );
        assert_eq!(
            FeatureGates::parse("InitialCorruptCheck"),
            Err("missing bool value for InitialCorruptCheck".to_owned())
        );
        assert!(FeatureGates::parse("InitialCorruptCheck=perhaps").is_err());
    }
}
