//! Cron expressions with a time zone: when a window is open, and when a backup is due.

use std::str::FromStr;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use metastore_operator_api::MaintenanceWindow;

/// A cron expression with its time zone.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    time_zone: TimeZone,
}

impl Schedule {
    /// Reads an expression with five fields, or a name such as `@daily`.
    ///
    /// # Errors
    ///
    /// In words, for the person who wrote the expression or the time zone.
    pub fn parse(expression: &str, time_zone: &str) -> Result<Self, String> {
        let cron = Cron::from_str(expression)
            .map_err(|error| format!("the schedule {expression:?} is not valid: {error}"))?;
        let time_zone =
            TimeZone::get(time_zone).map_err(|_| format!("there is no time zone {time_zone:?}"))?;
        Ok(Self { cron, time_zone })
    }

    /// The first time after `after`. `None` when there is none, as for the thirtieth of February.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let local = after.to_zoned(self.time_zone.clone());
        let next = self.cron.find_next_occurrence(&local, false).ok()?;
        Some(next.timestamp())
    }

    /// The last time at or before `at`.
    pub fn last_until(&self, at: Timestamp) -> Option<Timestamp> {
        let local = at.to_zoned(self.time_zone.clone());
        let last = self.cron.find_previous_occurrence(&local, true).ok()?;
        Some(last.timestamp())
    }
}

/// May disturbing work be done now? Without a window always; with one that cannot be read never, because a
/// person asked for a limit.
pub fn window_is_open(window: &Option<MaintenanceWindow>, now: Timestamp) -> bool {
    let Some(window) = window else {
        return true;
    };
    let (Ok(schedule), Some(duration)) = (
        Schedule::parse(&window.schedule, &window.time_zone),
        window.duration.parse(),
    ) else {
        return false;
    };
    schedule
        .last_until(now)
        .is_some_and(|opened| now.duration_since(opened).unsigned_abs() < duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_time_zone_counts_also_when_clocks_change() {
        let schedule = Schedule::parse("30 2 * * *", "Europe/Berlin").unwrap();
        // Summer: 02:30 there is 00:30 UTC; winter: 01:30 UTC.
        assert_eq!(
            schedule.next_after(time("2026-07-01T12:00:00Z")),
            Some(time("2026-07-02T00:30:00Z"))
        );
        assert_eq!(
            schedule.next_after(time("2026-12-01T12:00:00Z")),
            Some(time("2026-12-02T01:30:00Z"))
        );
    }

    #[test]
    fn a_window_is_open_from_its_schedule_for_its_duration() {
        let window = Some(MaintenanceWindow {
            schedule: "0 2 * * *".into(),
            duration: "2h".into(),
            time_zone: "UTC".into(),
        });
        assert!(!window_is_open(&window, time("2026-07-01T01:59:59Z")));
        assert!(window_is_open(&window, time("2026-07-01T02:00:00Z")));
        assert!(window_is_open(&window, time("2026-07-01T03:59:59Z")));
        assert!(!window_is_open(&window, time("2026-07-01T04:00:00Z")));
        assert!(window_is_open(&None, time("2026-07-01T04:00:00Z")));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(
            Schedule::parse("61 * * * *", "UTC")
                .unwrap_err()
                .contains("61 * * * *")
        );
        assert!(
            Schedule::parse("* * * * *", "Mars/Base")
                .unwrap_err()
                .contains("Mars/Base")
        );
    }
}
