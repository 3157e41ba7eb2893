//! What clients saw, and whether a correct store could have shown it.
//!
//! A history is complete when it has the operations of all clients, and the events of the store's
//! whole life, read afterwards. Values are unique, so the events tell of each write whose answer
//! was lost whether it happened. Checked are:
//!
//! * [`History::check_operations`]: nothing acknowledged is lost, nothing is invented or done
//!   twice, revisions follow real time, each key is linearizable (porcupine).
//! * [`History::check_watches`]: the nine guarantees of watches.
//!
//! Knows no network and no clock, so that simulations use it too.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation};

/// A search for an order that takes longer is given up: the history was not found to be wrong.
const SEARCH_LIMIT: Duration = Duration::from_secs(60);

/// A value: unique among all writes of a history.
pub type Value = u64;

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What clients did, in any order.
    pub operations: Vec<Recorded>,
    /// All changes of the store, in the order of their revisions.
    pub events: Vec<Change>,
    /// What watchers saw.
    pub watches: Vec<WatchRecord>,
}

/// One operation of one client. Times are nanoseconds since the beginning of the history.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Who did it.
    pub client: u32,
    /// When it was sent.
    pub call: i64,
    /// When the answer was here.
    pub end: i64,
    /// Its key.
    pub key: String,
    /// What was done, and the answer.
    pub action: Action,
}

/// An operation and its answer. Writes have no answer when it was lost: they may have happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Put; the revision is the answer.
    Put {
        /// What was written.
        value: Value,
        /// The answer's revision.
        revision: Option<i64>,
    },
    /// Txn that puts if the key's mod revision is the expected one.
    Swap {
        /// The expected mod revision; 0: the key does not exist.
        expected: i64,
        /// What was to be written.
        value: Value,
        /// The answer: succeeded, and the revision.
        answer: Option<(bool, i64)>,
    },
    /// DeleteRange; the answer is whether there was a key, and the revision.
    Delete {
        /// The answer.
        answer: Option<(bool, i64)>,
    },
    /// Linearizable Range.
    Get {
        /// Value and mod revision of the key.
        seen: Option<(Value, i64)>,
        /// The store's revision.
        revision: i64,
    },
}

/// One change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its revision.
    pub revision: i64,
    /// Its key.
    pub key: String,
    /// The new value; `None` for a delete.
    pub value: Option<Value>,
    /// Says that the key did not exist before.
    pub created: bool,
    /// The value before, as a watch with `prev_kv` told it.
    pub previous: Option<Value>,
}

/// One watcher, from its creation to its end. A client that resumes makes a new one.
#[derive(Clone, Debug, Default)]
pub struct WatchRecord {
    /// Who served it, for messages.
    pub name: String,
    /// Watches all keys that begin with it.
    pub prefix: String,
    /// The revision from which it was to tell.
    pub start_revision: i64,
    /// Were previous values asked for?
    pub with_previous: bool,
    /// What came, in order. Progress notifications have no changes.
    pub responses: Vec<WatchSeen>,
}

/// One response of a watcher.
#[derive(Clone, Debug, Default)]
pub struct WatchSeen {
    /// The header's revision.
    pub revision: i64,
    /// The events.
    pub changes: Vec<Change>,
}

impl History {
    /// Checks the clients' operations.
    ///
    /// # Errors
    ///
    /// What no correct store could have done.
    pub fn check_operations(&self) -> Result<(), String> {
        self.check_real_time()?;
        self.check_operations_of_caches()
    }

    /// Checks the operations of clients of several caches: a read may name an older revision than others have
    /// seen, but its key must not have changed since.
    ///
    /// # Errors
    ///
    /// What no correct store could have done.
    pub fn check_operations_of_caches(&self) -> Result<(), String> {
        let happened = self.index_of_writes()?;
        self.check_acknowledged(&happened)?;
        self.check_reads()?;
        self.check_linearizable(&happened)
    }

    /// Value → revision of every write that happened.
    fn index_of_writes(&self) -> Result<HashMap<Value, &Change>, String> {
        let mut written = HashMap::new();
        for operation in &self.operations {
            if let Action::Put { value, .. } | Action::Swap { value, .. } = operation.action {
                written.insert(value, &operation.key);
            }
        }
        let mut happened = HashMap::new();
        let mut last = 0;
        for change in &self.events {
            if change.revision < last {
                return Err(format!(
                    "revision {} follows {last} in the events",
                    change.revision
                ));
            }
            last = change.revision;
            let Some(value) = change.value else { continue };
            if written.get(&value) != Some(&&change.key) {
                return Err(format!("nobody wrote {change:?}"));
            }
            if let Some(other) = happened.insert(value, change) {
                return Err(format!(
                    "one write happened twice: {other:?} and {change:?}"
                ));
            }
        }
        Ok(happened)
    }

    fn check_acknowledged(&self, happened: &HashMap<Value, &Change>) -> Result<(), String> {
        let deletes: HashMap<(i64, &str), ()> = self
            .events
            .iter()
            .filter(|change| change.value.is_none())
            .map(|change| ((change.revision, change.key.as_str()), ()))
            .collect();
        for operation in &self.operations {
            let lost = match operation.action {
                Action::Put {
                    value,
                    revision: Some(revision),
                }
                | Action::Swap {
                    value,
                    answer: Some((true, revision)),
                    ..
                } => happened
                    .get(&value)
                    .is_none_or(|change| change.revision != revision),
                Action::Swap {
                    value,
                    answer: Some((false, _)),
                    ..
                } => happened.contains_key(&value),
                Action::Delete {
                    answer: Some((true, revision)),
                } => !deletes.contains_key(&(revision, operation.key.as_str())),
                _ => false,
            };
            if lost {
                return Err(format!("an answer is not what happened: {operation:?}"));
            }
        }
        Ok(())
    }

    /// An operation that began after another had ended has a greater revision if it wrote, and no
    /// smaller one if it read.
    fn check_real_time(&self) -> Result<(), String> {
        let mut by_call: Vec<_> = self.operations.iter().filter_map(with_revision).collect();
        let mut by_end = by_call.clone();
        by_call.sort_by_key(|(operation, ..)| operation.call);
        by_end.sort_by_key(|(operation, ..)| operation.end);
        let mut ended = by_end.into_iter().peekable();
        let mut highest: Option<(&Recorded, i64, bool)> = None;
        for (operation, revision, wrote) in by_call {
            while let Some(done) = ended.next_if(|(done, ..)| done.end < operation.call) {
                if highest.is_none_or(|(_, highest, _)| done.1 > highest) {
                    highest = Some(done);
                }
            }
            if let Some((before, highest, _)) = highest
                && (revision < highest || (wrote && revision == highest))
            {
                return Err(format!("{operation:?} began after {before:?} had ended"));
            }
        }
        Ok(())
    }

    /// A read shows the key as it was at the revision that it names.
    fn check_reads(&self) -> Result<(), String> {
        let mut keys: HashMap<&str, Vec<&Change>> = HashMap::new();
        for change in &self.events {
            keys.entry(&change.key).or_default().push(change);
        }
        for operation in &self.operations {
            let Action::Get { seen, revision } = operation.action else {
                continue;
            };
            let changes = keys
                .get(operation.key.as_str())
                .map_or(&[][..], Vec::as_slice);
            let place = changes.partition_point(|change| change.revision <= revision);
            let state = place.checked_sub(1).map(|place| changes[place]);
            let wanted = state.and_then(|change| change.value.map(|v| (v, change.revision)));
            if seen != wanted {
                return Err(format!("{operation:?} should have seen {wanted:?}"));
            }
        }
        Ok(())
    }

    fn check_linearizable(&self, happened: &HashMap<Value, &Change>) -> Result<(), String> {
        let mut keys: BTreeMap<&str, Vec<Operation<KeyModel>>> = BTreeMap::new();
        for operation in &self.operations {
            let mut action = operation.action.clone();
            let mut end = operation.end;
            // A write without an answer took effect at some time after its call, if at all.
            match &mut action {
                Action::Put { value, revision } if revision.is_none() => {
                    let Some(change) = happened.get(value) else {
                        continue;
                    };
                    *revision = Some(change.revision);
                    end = i64::MAX;
                }
                Action::Swap { value, answer, .. } if answer.is_none() => {
                    let Some(change) = happened.get(value) else {
                        continue;
                    };
                    *answer = Some((true, change.revision));
                    end = i64::MAX;
                }
                Action::Delete { answer: None } => end = i64::MAX,
                _ => {}
            }
            keys.entry(&operation.key).or_default().push(Operation {
                client_id: Some(operation.client),
                call_time: operation.call,
                return_time: end,
                op: action,
                metadata: None,
            });
        }
        for (key, operations) in keys {
            let result =
                porcupine_rs::check_operations_timeout::<KeyModel>(&operations, SEARCH_LIMIT);
            match result {
                CheckResult::Ok => {}
                CheckResult::Illegal => {
                    return Err(format!("key {key} is not linearizable: {operations:#?}"));
                }
                _ => eprintln!("WARNING: no order of key {key} found in {SEARCH_LIMIT:?}"),
            }
        }
        Ok(())
    }

    /// Checks the watchers.
    ///
    /// # Errors
    ///
    /// The guarantee that was broken, by its name in etcd's documents.
    pub fn check_watches(&self) -> Result<(), String> {
        for watch in &self.watches {
            self.check_watch(watch).map_err(|broken| {
                format!(
                    "watch of {} from {} on {}: {broken}",
                    watch.prefix, watch.start_revision, watch.name
                )
            })?;
        }
        Ok(())
    }

    fn check_watch(&self, watch: &WatchRecord) -> Result<(), String> {
        // What the watcher should see, with the values before each change.
        let mut state: HashMap<&str, Value> = HashMap::new();
        let mut wanted = Vec::new();
        for change in &self.events {
            let before = match change.value {
                Some(value) => state.insert(&change.key, value),
                None => state.remove(change.key.as_str()),
            };
            if change.key.starts_with(&watch.prefix) && change.revision >= watch.start_revision {
                wanted.push((change, before));
            }
        }
        let mut wanted = wanted.into_iter().peekable();
        let mut last = 0;
        for response in &watch.responses {
            if response.changes.is_empty() {
                // Bookmarkable: a progress notification says that everything up to it was sent.
                if let Some((missing, _)) = wanted.peek()
                    && missing.revision <= response.revision
                {
                    return Err(format!(
                        "not bookmarkable: {missing:?} before progress at {}",
                        response.revision
                    ));
                }
                last = last.max(response.revision);
                continue;
            }
            for seen in &response.changes {
                if !seen.key.starts_with(&watch.prefix) {
                    return Err(format!("filter: {seen:?} was not asked for"));
                }
                if seen.revision < last {
                    return Err(format!("not ordered: {seen:?} after {last}"));
                }
                let Some((change, before)) = wanted.next() else {
                    return Err(format!("not unique: {seen:?} comes after everything"));
                };
                if (seen.revision, &seen.key, seen.value)
                    != (change.revision, &change.key, change.value)
                {
                    let name = match seen.revision.cmp(&change.revision) {
                        _ if last == 0 => "not resumable",
                        std::cmp::Ordering::Greater => "not reliable",
                        _ => "not unique",
                    };
                    return Err(format!("{name}: {seen:?} instead of {change:?}"));
                }
                if watch.with_previous && seen.previous != before {
                    return Err(format!("previous value: {seen:?}, but it was {before:?}"));
                }
                if seen.value.is_some() && seen.created != before.is_none() {
                    return Err(format!("is create: {seen:?}, but before it was {before:?}"));
                }
                last = seen.revision;
            }
            // Atomic: the next wanted change is of another revision.
            if let Some((rest, _)) = wanted.peek()
                && rest.revision == last
            {
                return Err(format!("not atomic: {rest:?} is missing from its response"));
            }
            if response.revision < last {
                return Err(format!(
                    "the header {} is below its event {last}",
                    response.revision
                ));
            }
        }
        Ok(())
    }
}

/// The revision that an answer names, and whether it was that of an own change.
fn with_revision(operation: &Recorded) -> Option<(&Recorded, i64, bool)> {
    match operation.action {
        Action::Put { revision, .. } => revision.map(|revision| (operation, revision, true)),
        Action::Swap { answer, .. } | Action::Delete { answer } => {
            answer.map(|(changed, revision)| (operation, revision, changed))
        }
        Action::Get { revision, .. } => Some((operation, revision, false)),
    }
}

/// One key, as a correct store keeps it. Revisions make every step decided.
#[derive(Clone, Debug)]
struct KeyModel;

impl Model for KeyModel {
    /// Value and mod revision.
    type State = Option<(Value, i64)>;
    type Op = Action;
    type Metadata = ();

    fn init() -> Self::State {
        None
    }

    fn step(state: &Self::State, action: &Action) -> (bool, Self::State) {
        let current = state.map_or(0, |(_, revision)| revision);
        match *action {
            Action::Put {
                value,
                revision: Some(revision),
            } => (revision > current, Some((value, revision))),
            Action::Swap {
                expected,
                value,
                answer: Some((true, revision)),
            } => (
                expected == current && revision > current,
                Some((value, revision)),
            ),
            Action::Swap {
                expected,
                answer: Some((false, _)),
                ..
            } => (expected != current, *state),
            Action::Delete {
                answer: Some((deleted, _)),
            } => (deleted == state.is_some(), None),
            Action::Delete { answer: None } => (true, None),
            Action::Get { seen, .. } => (seen == *state, *state),
            // Left out of the history when they did not happen, given a revision when they did.
            Action::Put { revision: None, .. } | Action::Swap { answer: None, .. } => {
                (true, *state)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn put(call: i64, end: i64, value: Value, revision: Option<i64>) -> Recorded {
        let action = Action::Put { value, revision };
        Recorded {
            client: 0,
            call,
            end,
            key: "k".into(),
            action,
        }
    }

    fn get(call: i64, end: i64, seen: Option<(Value, i64)>, revision: i64) -> Recorded {
        let action = Action::Get { seen, revision };
        Recorded {
            client: 1,
            call,
            end,
            key: "k".into(),
            action,
        }
    }

    fn change(revision: i64, value: Value) -> Change {
        Change {
            revision,
            key: "k".into(),
            value: Some(value),
            created: revision == 2,
            previous: None,
        }
    }

    fn history(operations: Vec<Recorded>, events: Vec<Change>) -> History {
        History {
            operations,
            events,
            watches: Vec::new(),
        }
    }

    #[test]
    fn a_good_history_passes() {
        let operations = vec![
            put(0, 10, 1, Some(2)),
            put(5, 30, 2, None),
            get(11, 12, Some((1, 2)), 2),
            get(40, 41, Some((2, 3)), 3),
            put(50, 60, 3, None),
        ];
        history(operations, vec![change(2, 1), change(3, 2)])
            .check_operations()
            .expect("good");
    }

    #[test]
    fn a_lost_write_is_found() {
        let broken = history(
            vec![put(0, 1, 1, Some(2)), put(2, 3, 2, Some(3))],
            vec![change(2, 1)],
        );
        assert!(
            broken
                .check_operations()
                .unwrap_err()
                .contains("not what happened")
        );
    }

    #[test]
    fn a_stale_read_is_found() {
        let operations = vec![
            put(0, 1, 1, Some(2)),
            put(2, 3, 2, Some(3)),
            get(4, 5, Some((1, 2)), 2),
        ];
        let broken = history(operations, vec![change(2, 1), change(3, 2)]);
        assert!(broken.check_operations().unwrap_err().contains("had ended"));
    }

    #[test]
    fn a_write_that_happened_twice_is_found() {
        let broken = history(vec![put(0, 1, 1, None)], vec![change(2, 1), change(3, 1)]);
        assert!(broken.check_operations().unwrap_err().contains("twice"));
    }

    #[test]
    fn an_impossible_order_is_found_by_the_search() {
        // The swap cannot have seen revision 2 after the write of revision 3 had been read.
        let swap = Action::Swap {
            expected: 2,
            value: 3,
            answer: Some((true, 4)),
        };
        let operations = vec![
            put(0, 1, 1, Some(2)),
            put(2, 3, 2, Some(3)),
            Recorded {
                client: 2,
                call: 4,
                end: 5,
                key: "k".into(),
                action: swap,
            },
        ];
        let broken = history(operations, vec![change(2, 1), change(3, 2), change(4, 3)]);
        assert!(
            broken
                .check_operations()
                .unwrap_err()
                .contains("not linearizable")
        );
    }

    fn watched(responses: Vec<(i64, Vec<Change>)>) -> Result<(), String> {
        let with_previous = |mut change: Change, previous| {
            change.previous = previous;
            change
        };
        let events = vec![
            change(2, 1),
            with_previous(change(3, 2), Some(1)),
            with_previous(change(4, 3), Some(2)),
        ];
        let responses = responses
            .into_iter()
            .map(|(revision, changes)| {
                // Fills in what the table leaves away.
                let changes = changes
                    .into_iter()
                    .map(|mut seen: Change| {
                        let known = events.iter().find(|event| event.revision == seen.revision);
                        seen.previous = known.and_then(|event| event.previous);
                        seen
                    })
                    .collect();
                WatchSeen { revision, changes }
            })
            .collect();
        let watch = WatchRecord {
            prefix: "k".into(),
            start_revision: 2,
            with_previous: true,
            responses,
            ..WatchRecord::default()
        };
        History {
            events,
            watches: vec![watch],
            ..History::default()
        }
        .check_watches()
    }

    #[test]
    fn broken_watches_are_found() {
        watched(vec![
            (2, vec![change(2, 1)]),
            (4, vec![change(3, 2), change(4, 3)]),
            (9, vec![]),
        ])
        .expect("good");
        for (name, responses) in [
            ("not resumable", vec![(3, vec![change(3, 2)])]),
            (
                "not reliable",
                vec![(2, vec![change(2, 1)]), (4, vec![change(4, 3)])],
            ),
            (
                "not unique",
                vec![(2, vec![change(2, 1)]), (2, vec![change(2, 1)])],
            ),
            (
                "not bookmarkable",
                vec![(2, vec![change(2, 1)]), (3, vec![])],
            ),
            (
                "not ordered",
                vec![
                    (4, vec![change(2, 1), change(3, 2)]),
                    (3, vec![]),
                    (4, vec![change(2, 1)]),
                ],
            ),
        ] {
            let broken = watched(responses).expect_err(name);
            assert!(broken.contains(name), "{name}: {broken}");
        }
    }
}
