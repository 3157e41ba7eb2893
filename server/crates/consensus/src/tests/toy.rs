//! A state machine that remembers its commands, in memory and in snapshots.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::state_machine::{
    AppliedState, CommittedEntry, EntryPayload, LogPosition, Reply, SnapshotFiles, StateMachine,
    StateMachineError,
};

/// What the toy answers to a command: where it stands and how many commands came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ToyReply {
    pub(super) position: LogPosition,
    pub(super) earlier: usize,
}

impl ToyReply {
    pub(super) fn of(reply: Reply) -> Self {
        *reply.downcast::<Self>().expect("the toy answers so")
    }
}

#[derive(Clone, Default)]
struct State {
    applied: AppliedState,
    commands: Vec<Bytes>,
    removed: BTreeSet<u64>,
}

/// Keeps everything in memory; a restart begins with the last snapshot.
pub(super) struct Toy {
    directory: PathBuf,
    state: Mutex<State>,
    snapshot: Mutex<Option<SnapshotFiles>>,
    next_directory: AtomicU64,
    pub(super) installed: AtomicU64,
    /// Whether an entry may follow another than its predecessor.
    pub(super) gaps_allowed: AtomicBool,
    /// Largest chunk that was applied.
    pub(super) largest_chunk: AtomicU64,
}

const CURRENT: &str = "current";

fn failed(error: impl ToString) -> StateMachineError {
    StateMachineError(error.to_string())
}

impl Toy {
    pub(super) fn open(directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("a directory for the toy");
        let toy = Self {
            directory: directory.to_owned(),
            state: Mutex::default(),
            snapshot: Mutex::default(),
            next_directory: AtomicU64::new(rand::random::<u32>().into()),
            installed: AtomicU64::new(0),
            gaps_allowed: AtomicBool::new(false),
            largest_chunk: AtomicU64::new(0),
        };
        if let Ok(name) = fs::read_to_string(directory.join(CURRENT)) {
            let current = directory.join(name);
            let state = read_state(&current).expect("the toy's own snapshot can be read");
            *toy.snapshot.lock() = Some(SnapshotFiles {
                applied: state.applied.clone(),
                directory: current,
            });
            *toy.state.lock() = state;
        }
        toy
    }

    pub(super) fn commands(&self) -> Vec<Bytes> {
        self.state.lock().commands.clone()
    }

    pub(super) fn is_removed(&self, member: u64) -> bool {
        self.state.lock().removed.contains(&member)
    }

    fn fresh_directory(&self) -> Result<PathBuf, StateMachineError> {
        let number = self.next_directory.fetch_add(1, Ordering::Relaxed);
        let directory = self.directory.join(format!("snapshot-{number}"));
        fs::create_dir(&directory).map_err(failed)?;
        Ok(directory)
    }

    fn make_current(
        &self,
        directory: &Path,
        applied: AppliedState,
    ) -> Result<(), StateMachineError> {
        let name = directory
            .file_name()
            .expect("made here")
            .to_str()
            .expect("made here");
        fs::write(self.directory.join(CURRENT), name).map_err(failed)?;
        *self.snapshot.lock() = Some(SnapshotFiles {
            applied,
            directory: directory.to_owned(),
        });
        Ok(())
    }
}

/// One line for the position (empty: none), one for the membership, one for the removed, one for each command.
fn write_state(directory: &Path, state: &State) -> Result<(), StateMachineError> {
    let mut text = String::new();
    if let Some(position) = state.applied.position {
        text += &format!("{} {}", position.term, position.index);
    }
    text += "\n";
    text += &format!("{}\n", hex(&state.applied.membership));
    let removed: Vec<String> = state.removed.iter().map(u64::to_string).collect();
    text += &format!("{}\n", removed.join(" "));
    for command in &state.commands {
        text += &format!("{}\n", hex(command));
    }
    fs::write(directory.join("state"), text).map_err(failed)?;
    // Something that takes several chunks, and an empty file.
    fs::write(directory.join("ballast"), vec![7_u8; 1_200_000]).map_err(failed)?;
    fs::write(directory.join("empty"), b"").map_err(failed)
}

fn read_state(directory: &Path) -> Result<State, StateMachineError> {
    let text = fs::read_to_string(directory.join("state")).map_err(failed)?;
    if fs::read(directory.join("ballast")).map_err(failed)? != vec![7_u8; 1_200_000] {
        return Err(failed("the ballast was damaged"));
    }
    let mut lines = text.lines();
    let mut next = || lines.next().ok_or_else(|| failed("too few lines"));
    let position = match next()?.split_once(' ') {
        None => None,
        Some((term, index)) => Some(LogPosition {
            term: term.parse().map_err(failed)?,
            index: index.parse().map_err(failed)?,
        }),
    };
    let membership = unhex(next()?);
    let removed = next()?
        .split_whitespace()
        .map(|id| id.parse().map_err(failed))
        .collect::<Result<_, _>>()?;
    Ok(State {
        applied: AppliedState {
            position,
            membership,
        },
        commands: lines.map(unhex).collect(),
        removed,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Bytes {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("written as hex"))
        .collect()
}

impl StateMachine for Toy {
    fn applied(&self) -> AppliedState {
        self.state.lock().applied.clone()
    }

    fn apply(
        &self,
        entries: Vec<CommittedEntry>,
        memberships: Vec<Bytes>,
    ) -> Result<(), StateMachineError> {
        self.largest_chunk
            .fetch_max(entries.len() as u64, Ordering::Relaxed);
        let mut memberships = memberships.into_iter();
        for entry in entries {
            let mut state = self.state.lock();
            if let Some(before) = state.applied.position {
                assert!(
                    before.index + 1 == entry.position.index
                        || self.gaps_allowed.load(Ordering::Relaxed),
                    "entry {:?} after {before:?}",
                    entry.position
                );
            }
            let earlier = state.commands.len();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Command(command) => {
                    if &command[..] == b"fail" {
                        return Err(failed("told to fail"));
                    }
                    state.commands.push(command);
                }
                EntryPayload::Membership(command) => {
                    state.applied.membership = memberships.next().expect("one for each");
                    if let Some(id) = command.strip_prefix(b"remove ") {
                        let id = std::str::from_utf8(id).expect("a number");
                        state.removed.insert(id.parse().expect("a number"));
                    }
                }
            }
            state.applied.position = Some(entry.position);
            drop(state);
            if let Some(responder) = entry.responder {
                responder(Box::new(ToyReply {
                    position: entry.position,
                    earlier,
                }));
            }
        }
        assert!(
            memberships.next().is_none(),
            "one membership for each entry"
        );
        Ok(())
    }

    fn build_snapshot(&self) -> Result<SnapshotFiles, StateMachineError> {
        let state = self.state.lock().clone();
        let directory = self.fresh_directory()?;
        write_state(&directory, &state)?;
        self.make_current(&directory, state.applied.clone())?;
        Ok(SnapshotFiles {
            applied: state.applied,
            directory,
        })
    }

    fn current_snapshot(&self) -> Option<SnapshotFiles> {
        self.snapshot.lock().clone()
    }

    fn incoming_directory(&self) -> Result<PathBuf, StateMachineError> {
        self.fresh_directory()
    }

    fn install_snapshot(
        &self,
        directory: &Path,
        applied: AppliedState,
    ) -> Result<(), StateMachineError> {
        let state = read_state(directory)?;
        assert_eq!(state.applied, applied, "the snapshot is what it says");
        // The transport cleans up what it received, so it is moved away.
        let kept = self.fresh_directory()?;
        fs::remove_dir(&kept).map_err(failed)?;
        fs::rename(directory, &kept).map_err(failed)?;
        self.make_current(&kept, applied)?;
        *self.state.lock() = state;
        self.installed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
