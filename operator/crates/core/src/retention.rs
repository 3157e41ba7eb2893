//! Which backups are kept.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use metastore_operator_api::RetentionSpec;

/// A backup, as far as retention cares.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeptBackup {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// It can be restored.
    pub is_complete: bool,
}

/// Names of the backups that no rule keeps. The newest complete one is kept by all rules, and those that are
/// not complete count for none: they go when a newer complete one is there.
pub fn expired(backups: &[KeptBackup], rules: &RetentionSpec, time_zone: &TimeZone) -> Vec<String> {
    let mut complete: Vec<_> = backups.iter().filter(|backup| backup.is_complete).collect();
    complete.sort_by_key(|backup| std::cmp::Reverse(backup.made_at));
    let Some(newest) = complete.first() else {
        return Vec::new();
    };
    let mut kept = BTreeSet::from([newest.name.as_str()]);
    kept.extend(
        complete
            .iter()
            .take(rules.keep_last as usize)
            .map(|backup| backup.name.as_str()),
    );
    for (count, format) in [
        (rules.hourly, "%Y-%m-%d %H"),
        (rules.daily, "%Y-%m-%d"),
        (rules.weekly, "%G-W%V"),
        (rules.monthly, "%Y-%m"),
    ] {
        let mut periods = BTreeSet::new();
        for backup in &complete {
            let local = backup.made_at.to_zoned(time_zone.clone());
            let period = local.strftime(format).to_string();
            if periods.len() < count as usize && periods.insert(period) {
                kept.insert(&backup.name);
            }
        }
    }
    backups
        .iter()
        .filter(|backup| {
            if backup.is_complete {
                !kept.contains(backup.name.as_str())
            } else {
                backup.made_at < newest.made_at
            }
        })
        .map(|backup| backup.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backups(times: &[&str]) -> Vec<KeptBackup> {
        times
            .iter()
            .map(|time| KeptBackup {
                name: (*time).to_owned(),
                made_at: time.parse().unwrap(),
                is_complete: true,
            })
            .collect()
    }

    fn rules(keep_last: u32, hourly: u32, daily: u32, weekly: u32, monthly: u32) -> RetentionSpec {
        RetentionSpec {
            keep_last,
            hourly,
            daily,
            weekly,
            monthly,
        }
    }

    #[test]
    fn the_newest_of_each_period_is_kept() {
        let all = backups(&[
            "2026-01-31T23:00:00Z",
            "2026-02-01T01:00:00Z",
            "2026-02-01T02:00:00Z",
            "2026-02-02T01:00:00Z",
        ]);
        let gone = |rules| expired(&all, &rules, &TimeZone::UTC);
        assert_eq!(gone(rules(4, 0, 0, 0, 0)), Vec::<String>::new());
        assert_eq!(
            gone(rules(0, 0, 2, 0, 0)),
            ["2026-01-31T23:00:00Z", "2026-02-01T01:00:00Z"]
        );
        assert_eq!(
            gone(rules(0, 0, 0, 0, 2)),
            ["2026-02-01T01:00:00Z", "2026-02-01T02:00:00Z"]
        );
        assert_eq!(gone(rules(0, 0, 0, 0, 0)).len(), 3);
    }

    #[test]
    fn the_last_complete_backup_always_stays() {
        let mut all = backups(&[
            "2026-01-01T00:00:00Z",
            "2026-01-02T00:00:00Z",
            "2026-01-03T00:00:00Z",
        ]);
        all[0].is_complete = false;
        all[2].is_complete = false;
        // An older failure goes, a newer one stays to be looked at.
        assert_eq!(
            expired(&all, &rules(0, 0, 0, 0, 0), &TimeZone::UTC),
            ["2026-01-01T00:00:00Z"]
        );
    }
}
