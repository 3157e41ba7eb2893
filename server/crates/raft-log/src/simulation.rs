//! A disk in memory that loses power, fills up, and rots.
//!
//! It keeps, for each 512-byte sector that was written since the last successful sync, every version
//! that the sector had. When power comes back, each such sector has one of them, as the caller's
//! chooser says: a write can be lost, torn, or overtaken by a later one. Names come back as they were
//! after some of the changes since the last [`Disk::sync_directory`], in order. A sync that failed
//! leaves its sectors unsynced *for good*, even when a later sync succeeds, as Linux does; only
//! writing them again helps.
//!
//! Nothing in here is random: everything is decided by the caller, so that a run can be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, DiskLock};

/// What a disk writes at once, or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A simulated disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, FileState>,
    next_file: u64,
    /// Names as processes see them.
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes that no directory sync has covered yet, in order.
    name_changes: Vec<NameChange>,
    locks: BTreeMap<PathBuf, u64>,
    /// Grows when processes end: handles from before are dead.
    generation: u64,
    operations: u64,
    power_fails_at: Option<u64>,
    without_power: bool,
    sync_error: bool,
    read_only: bool,
    capacity_bytes: Option<u64>,
}

#[derive(Default)]
struct FileState {
    /// Cloned by each handle: a file without a name lives as long as one.
    handles: Arc<()>,
    content: Vec<u8>,
    durable_length: usize,
    unsynced: BTreeMap<usize, UnsyncedSector>,
}

/// The versions of a sector before the current one, the durable one first.
struct UnsyncedSector {
    versions: Vec<[u8; SECTOR_BYTES]>,
    /// Whether the next sync covers it. False after a sync that failed.
    dirty: bool,
}

enum NameChange {
    Create { path: PathBuf, file: u64 },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

impl NameChange {
    fn is_in(&self, directory: &Path) -> bool {
        let path = match self {
            Self::Create { path, .. } | Self::Remove { path } => path,
            Self::Rename { to, .. } => to,
        };
        path.parent() == Some(directory)
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Create { path, file } => {
                names.insert(path.clone(), *file);
            }
            Self::Rename { from, to } => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove { path } => {
                names.remove(path);
            }
        }
    }
}

impl SimulatedDisk {
    /// An empty disk without limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations so far that change something: writes, syncs, changes of names.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Power fails during the n-th operation from now (1: the next one). That operation reports an
    /// error, and what it changed counts as unsynced; everything after it fails.
    pub fn lose_power_at_operation(&self, operations_from_now: u64) {
        let mut state = self.state.lock();
        state.power_fails_at = Some(state.operations + operations_from_now);
    }

    /// Power fails now.
    pub fn lose_power(&self) {
        let mut state = self.state.lock();
        state.without_power = true;
        state.power_fails_at = None;
    }

    /// Whether the disk works.
    pub fn has_power(&self) -> bool {
        !self.state.lock().without_power
    }

    /// Ends all processes and starts the machine again, after a power failure or as one.
    ///
    /// `choose(n)` picks a number below n: how many of the unsynced changes of names survived, and
    /// for each unsynced sector which of its versions, the durable one being 0 and the last one
    /// n - 1.
    pub fn restart_machine(&self, choose: &mut dyn FnMut(usize) -> usize) {
        let mut state = self.state.lock();
        state.without_power = false;
        state.power_fails_at = None;
        state.end_processes();
        let surviving = choose(state.name_changes.len() + 1);
        let changes = std::mem::take(&mut state.name_changes);
        for change in changes.iter().take(surviving) {
            change.apply(&mut state.durable_names);
        }
        state.names = state.durable_names.clone();
        for file in state.files.values_mut() {
            file.lose_unsynced(choose);
        }
        state.free_files();
    }

    /// Ends all processes, as `kill -9` does: locks end, open files are closed, nothing is lost.
    pub fn kill_processes(&self) {
        self.state.lock().end_processes();
    }

    /// Every sync of a file reports an input/output error from now on, or works again.
    pub fn set_sync_error(&self, fails: bool) {
        self.state.lock().sync_error = fails;
    }

    /// Every change is refused from now on, or works again.
    pub fn set_read_only(&self, read_only: bool) {
        self.state.lock().read_only = read_only;
    }

    /// Room for the content of all files; None: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity_bytes = bytes;
    }

    /// Content of a file as a process sees it; None when there is no such file.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let file = state.names.get(path)?;
        Some(state.files[file].content.clone())
    }

    /// Puts a file on the disk, durably.
    pub fn put_content(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.state.lock();
        let file = state.next_file;
        state.next_file += 1;
        let durable_length = content.len();
        state.files.insert(
            file,
            FileState {
                content,
                durable_length,
                ..FileState::default()
            },
        );
        state.names.insert(path.to_owned(), file);
        state.durable_names.insert(path.to_owned(), file);
    }

    /// Changes one bit of a file, durably; a no-op when the file does not reach that far.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) {
        let mut state = self.state.lock();
        let Some(file) = state.names.get(path).copied() else {
            return;
        };
        let content = state.files.get_mut(&file).map(|file| &mut file.content);
        if let Some(byte) = content.and_then(|content| content.get_mut(offset as usize)) {
            *byte ^= 1 << (bit % 8);
        }
    }
}

impl State {
    fn end_processes(&mut self) {
        self.generation += 1;
        self.locks.clear();
    }

    /// Frees the files that nobody can reach any more.
    fn free_files(&mut self) {
        let created = self.name_changes.iter().filter_map(|change| match change {
            NameChange::Create { file, .. } => Some(*file),
            NameChange::Rename { .. } | NameChange::Remove { .. } => None,
        });
        let reachable: BTreeSet<u64> = self
            .names
            .values()
            .chain(self.durable_names.values())
            .copied()
            .chain(created)
            .collect();
        self.files.retain(|file, state| {
            reachable.contains(file) || Arc::strong_count(&state.handles) > 1
        });
    }

    fn handle(&self, disk: &Arc<Mutex<State>>, file: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimulatedFile {
            state: disk.clone(),
            file,
            generation: self.generation,
            _handle: self.files[&file].handles.clone(),
        })
    }

    fn check_readable(&self) -> io::Result<()> {
        if self.without_power {
            return Err(io::Error::other("simulated power failure"));
        }
        Ok(())
    }

    /// Counts an operation that changes something. True: power fails during it.
    fn begin_change(&mut self) -> io::Result<bool> {
        self.check_readable()?;
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.operations += 1;
        if self.power_fails_at == Some(self.operations) {
            self.without_power = true;
            self.power_fails_at = None;
        }
        Ok(self.without_power)
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        let power_fails = self.begin_change()?;
        change.apply(&mut self.names);
        self.name_changes.push(change);
        end_change(power_fails)
    }

    fn used_bytes(&self) -> u64 {
        self.files
            .values()
            .map(|file| file.content.len() as u64)
            .sum()
    }
}

fn end_change(power_fails: bool) -> io::Result<()> {
    if power_fails {
        return Err(io::Error::other("simulated power failure"));
    }
    Ok(())
}

impl FileState {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.content.len() {
            self.content.resize(end, 0);
        }
        for sector in offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            let before = self.sector(sector);
            let unsynced = self.unsynced.entry(sector).or_insert(UnsyncedSector {
                versions: Vec::new(),
                dirty: true,
            });
            unsynced.versions.push(before);
            unsynced.dirty = true;
        }
        self.content[offset..end].copy_from_slice(bytes);
    }

    fn sector(&self, sector: usize) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        let start = (sector * SECTOR_BYTES).min(self.content.len());
        let end = (start + SECTOR_BYTES).min(self.content.len());
        bytes[..end - start].copy_from_slice(&self.content[start..end]);
        bytes
    }

    fn sync(&mut self) {
        self.unsynced.retain(|_, sector| !sector.dirty);
        self.durable_length = self.content.len();
    }

    fn fail_sync(&mut self) {
        for sector in self.unsynced.values_mut() {
            sector.dirty = false;
        }
    }

    fn lose_unsynced(&mut self, choose: &mut dyn FnMut(usize) -> usize) {
        for (sector, unsynced) in std::mem::take(&mut self.unsynced) {
            let chosen = choose(unsynced.versions.len() + 1);
            // The last choice is the current version.
            if let Some(version) = unsynced.versions.get(chosen) {
                let start = sector * SECTOR_BYTES;
                let end = (start + SECTOR_BYTES).min(self.content.len());
                if start < end {
                    self.content[start..end].copy_from_slice(&version[..end - start]);
                }
            }
        }
        if self.durable_length != self.content.len() && choose(2) == 0 {
            self.content.resize(self.durable_length, 0);
        }
        self.durable_length = self.content.len();
    }
}

impl Disk for SimulatedDisk {
    fn create_directory(&self, _path: &Path) -> io::Result<()> {
        // Directories exist by being named; what matters is the names in them.
        self.state.lock().check_readable()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        state.check_readable()?;
        Ok(state
            .names
            .keys()
            .filter(|name| name.parent() == Some(path))
            .filter_map(|name| Some(name.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state.lock();
        state.check_readable()?;
        if state.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let file = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.handle(&self.state, file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        let file = state.next_file;
        state.next_file += 1;
        state.files.insert(file, FileState::default());
        state.change_names(NameChange::Create {
            path: path.to_owned(),
            file,
        })?;
        Ok(state.handle(&self.state, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_readable()?;
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(NameChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_readable()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(NameChange::Remove {
            path: path.to_owned(),
        })
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let power_fails = state.begin_change()?;
        if !power_fails {
            let changes = std::mem::take(&mut state.name_changes);
            for change in changes {
                if change.is_in(path) {
                    change.apply(&mut state.durable_names);
                } else {
                    state.name_changes.push(change);
                }
            }
            state.free_files();
        }
        end_change(power_fails)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.state.lock();
        state.check_readable()?;
        if state.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let generation = state.generation;
        state.locks.insert(path.to_owned(), generation);
        Ok(Box::new(SimulatedLock {
            state: self.state.clone(),
            path: path.to_owned(),
            generation,
        }))
    }
}

struct SimulatedLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    generation: u64,
}

impl DiskLock for SimulatedLock {}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.locks.get(&self.path) == Some(&self.generation) {
            state.locks.remove(&self.path);
        }
    }
}

struct SimulatedFile {
    state: Arc<Mutex<State>>,
    file: u64,
    generation: u64,
    _handle: Arc<()>,
}

impl SimulatedFile {
    fn check_alive(&self, state: &State) -> io::Result<()> {
        state.check_readable()?;
        if state.generation != self.generation {
            return Err(io::Error::other("the process of this file has ended"));
        }
        Ok(())
    }
}

impl DiskFile for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        let state = self.state.lock();
        self.check_alive(&state)?;
        Ok(state.files[&self.file].content.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock();
        self.check_alive(&state)?;
        let offset = offset as usize;
        let content = &state.files[&self.file].content;
        let bytes = content
            .get(offset..offset + buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        self.check_alive(&state)?;
        let end = offset + buffer.len() as u64;
        let length = state.files[&self.file].content.len() as u64;
        let growth = end.saturating_sub(length);
        if let Some(capacity) = state.capacity_bytes
            && growth > 0
            && state.used_bytes() + growth > capacity
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let power_fails = state.begin_change()?;
        if let Some(file) = state.files.get_mut(&self.file) {
            file.write(buffer, offset as usize);
        }
        end_change(power_fails)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        self.check_alive(&state)?;
        let power_fails = state.begin_change()?;
        if power_fails {
            return end_change(power_fails);
        }
        let fails = state.sync_error;
        if let Some(file) = state.files.get_mut(&self.file) {
            if fails {
                file.fail_sync();
            } else {
                file.sync();
            }
        }
        if fails {
            return Err(io::Error::other("simulated input/output error"));
        }
        Ok(())
    }

    fn shrink(&self, _bytes: u64) -> io::Result<()> {
        // Memory is given back with the file.
        Ok(())
    }
}
