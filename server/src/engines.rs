//! Where the engine and its snapshots stand on disk.
//!
//! ```text
//! <data-dir>/member/store/CURRENT      name of the live generation
//! <data-dir>/member/store/<n>/         the engine's files (RocksDB); absent for the memory engine
//! <data-dir>/member/snapshot/<index>/  durable copies; the newest is the memory engine's state
//! <data-dir>/member/snapshot/unfinished/  the copy that is being written, or the rest of a crash
//! <data-dir>/member/incoming/          a snapshot that is being received
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metastore_consensus::state_machine::{AppliedState, SnapshotFiles};
use metastore_store::MemoryEngine;
use metastore_store::engine::{EngineError, SharedEngine};
use metastore_store_rocksdb::{RocksDbEngine, RocksDbOptions, remove_directory_slowly};

use crate::applied_position;
use crate::config::Engine;

/// A finished snapshot directory has this file; one without it is the rest of a crash.
const COMPLETE_MARKER: &str = "COMPLETE";

/// Name of the directory of a snapshot that is being written.
const UNFINISHED: &str = "unfinished";

/// The engine's part of a data directory.
pub struct EngineDirectory {
    kind: Engine,
    root: PathBuf,
}

fn io_error(context: String) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::Io { context, source }
}

fn sync_directory(path: &Path) -> Result<(), EngineError> {
    fs::File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error(format!("sync directory {}", path.display())))
}

fn rename(from: &Path, to: &Path) -> Result<(), EngineError> {
    let context = format!("move {} to {}", from.display(), to.display());
    fs::rename(from, to).map_err(io_error(context))
}

fn remove_directory(path: &Path) -> Result<(), EngineError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(EngineError::Io {
            context: format!("remove {}", path.display()),
            source: error,
        }),
        _ => Ok(()),
    }
}

impl EngineDirectory {
    /// The engine's part of the directory `root` (`<data-dir>/member`), created when missing.
    pub fn new(kind: Engine, root: &Path) -> Result<Self, EngineError> {
        for name in ["store", "snapshot"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(io_error(format!("create {}", path.display())))?;
        }
        sync_directory(root)?;
        Ok(Self {
            kind,
            root: root.to_owned(),
        })
    }

    fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    fn generation(&self) -> Result<u64, EngineError> {
        let pointer = self.store().join("CURRENT");
        match fs::read_to_string(&pointer) {
            Ok(text) => text.trim().parse().map_err(|_| {
                EngineError::Storage(format!(
                    "{} names no generation ({text:?}): restore this member from a snapshot or \
                     re-add it",
                    pointer.display()
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(EngineError::Io {
                context: format!("read {}", pointer.display()),
                source,
            }),
        }
    }

    fn set_generation(&self, generation: u64) -> Result<(), EngineError> {
        let pointer = self.store().join("CURRENT");
        let temporary = self.store().join("CURRENT.tmp");
        let context = || format!("write {}", pointer.display());
        fs::write(&temporary, format!("{generation}\n")).map_err(io_error(context()))?;
        fs::File::open(&temporary)
            .and_then(|file| file.sync_all())
            .map_err(io_error(context()))?;
        fs::rename(&temporary, &pointer).map_err(io_error(context()))?;
        sync_directory(&self.store())
    }

    fn open_rocksdb(&self, generation: u64) -> Result<SharedEngine, EngineError> {
        let path = self.store().join(generation.to_string());
        Ok(Arc::new(RocksDbEngine::open(
            &path,
            &RocksDbOptions::default(),
        )?))
    }

    /// Opens the engine with the newest durable state: RocksDB's own files, or the memory engine
    /// from the newest snapshot.
    pub fn open(&self) -> Result<SharedEngine, EngineError> {
        match self.kind {
            Engine::RocksDb => {
                let generation = self.generation()?;
                for entry in fs::read_dir(self.store())
                    .map_err(io_error(format!("list {}", self.store().display())))?
                    .flatten()
                {
                    let name = entry.file_name();
                    let stale = name
                        .to_str()
                        .and_then(|name| name.parse::<u64>().ok())
                        .is_some_and(|other| other != generation);
                    if stale {
                        remove_directory(&entry.path())?;
                    }
                }
                self.open_rocksdb(generation)
            }
            Engine::Memory => match self.complete_snapshots()?.pop() {
                Some((_, path)) => Ok(Arc::new(MemoryEngine::open_checkpoint(&path)?)),
                None => Ok(Arc::new(MemoryEngine::new())),
            },
        }
    }

    /// Finished snapshots, oldest first; removes unfinished ones.
    fn complete_snapshots(&self) -> Result<Vec<(u64, PathBuf)>, EngineError> {
        let root = self.root.join("snapshot");
        let mut found = Vec::new();
        for entry in fs::read_dir(&root)
            .map_err(io_error(format!("list {}", root.display())))?
            .flatten()
        {
            let index = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u64>().ok());
            match index {
                Some(index) if entry.path().join(COMPLETE_MARKER).exists() => {
                    found.push((index, entry.path()));
                }
                _ => remove_directory(&entry.path())?,
            }
        }
        found.sort();
        Ok(found)
    }

    /// The newest finished snapshot, older ones removed.
    ///
    /// # Errors
    /// When the disk fails or the snapshot's marker is damaged.
    pub fn newest_snapshot(&self) -> Result<Option<SnapshotFiles>, EngineError> {
        let mut snapshots = self.complete_snapshots()?;
        let Some((_, directory)) = snapshots.pop() else {
            return Ok(None);
        };
        for (_, stale) in snapshots {
            remove_directory(&stale)?;
        }
        let marker = directory.join(COMPLETE_MARKER);
        let stored = fs::read(&marker).map_err(io_error(format!("read {}", marker.display())))?;
        let applied = applied_position::decode(stored.into()).map_err(|error| {
            EngineError::Storage(format!(
                "{} is damaged ({error}): delete the directory it is in and start again",
                marker.display()
            ))
        })?;
        Ok(Some(SnapshotFiles { applied, directory }))
    }

    /// A path for a new snapshot; the directory itself does not exist yet.
    pub fn new_snapshot_directory(&self) -> Result<PathBuf, EngineError> {
        let path = self.root.join("snapshot").join(UNFINISHED);
        remove_directory(&path)?;
        Ok(path)
    }

    /// Makes the copy in `directory`, which holds `applied`, the newest snapshot; returns where it is now.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn complete_snapshot(
        &self,
        directory: &Path,
        applied: &AppliedState,
    ) -> Result<PathBuf, EngineError> {
        let marker = directory.join(COMPLETE_MARKER);
        fs::write(&marker, applied_position::encode(applied))
            .and_then(|()| fs::File::open(&marker)?.sync_all())
            .map_err(io_error(format!("write {}", marker.display())))?;
        sync_directory(directory)?;
        let index = applied.position.map_or(0, |position| position.index);
        let snapshots = self.root.join("snapshot");
        let target = snapshots.join(index.to_string());
        remove_directory(&target)?;
        rename(directory, &target)?;
        sync_directory(&snapshots)?;
        Ok(target)
    }

    /// Removes a snapshot that a newer one replaced. A failure only costs disk space until the next
    /// start, so it is logged.
    pub fn retire_snapshot(&self, directory: &Path) {
        if let Err(error) = remove_directory_slowly(directory) {
            tracing::warn!(%error, "failed to remove an old snapshot");
        }
    }

    /// An empty directory for a snapshot that arrives.
    pub fn incoming_directory(&self) -> Result<PathBuf, EngineError> {
        let path = self.root.join("incoming");
        remove_directory(&path)?;
        fs::create_dir_all(&path).map_err(io_error(format!("create {}", path.display())))?;
        Ok(path)
    }

    /// Makes a received snapshot the live state. A crash leaves either the old or the new one.
    pub fn install(
        &self,
        incoming: &Path,
        applied: &AppliedState,
    ) -> Result<SharedEngine, EngineError> {
        match self.kind {
            Engine::RocksDb => {
                let generation = self.generation()? + 1;
                let target = self.store().join(generation.to_string());
                remove_directory(&target)?;
                rename(incoming, &target)?;
                sync_directory(&self.store())?;
                let engine = self.open_rocksdb(generation)?;
                self.set_generation(generation)?;
                Ok(engine)
            }
            Engine::Memory => {
                let engine = MemoryEngine::open_checkpoint(incoming)?;
                // The received files are the durable form of the new state: keep them as the
                // newest snapshot.
                self.complete_snapshot(incoming, applied)?;
                Ok(Arc::new(engine))
            }
        }
    }
}
