//! etcd's write-ahead log: a directory of `<sequence>-<first index>.wal` files.
//!
//! ```text
//! file   = record*  (then zeros)
//! record = length u64 little endian ‖ walpb.Record ‖ 0 to 7 bytes of padding
//! length = 56 bits of length; in the top byte 0x80 | padding when there is any
//! ```
//!
//! The checksum of a record covers the data of all records since the beginning of the log; a file
//! begins with a record that repeats the checksum so far.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use crate::error::FileError;

const METADATA: i64 = 1;
const ENTRY: i64 = 2;
const STATE: i64 = 3;
const CHECKSUM: i64 = 4;
const SNAPSHOT: i64 = 5;

/// Part of a disk that is written whole or not at all, as etcd assumes.
const SECTOR_BYTES: usize = 512;
/// Longest record that is read; etcd refuses requests long before.
const RECORD_BYTES_MAX: u64 = 1 << 30;
/// etcd reserves as much for each file.
const FILE_BYTES: u64 = 64 << 20;

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, optional, tag = "1")]
    kind: Option<i64>,
    #[prost(uint32, optional, tag = "2")]
    checksum: Option<u32>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    data: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(uint64, optional, tag = "1")]
    node_id: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    cluster_id: Option<u64>,
}

/// `raftpb.Entry`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdEntry {
    /// 0: a request, 1: a change of the members, 2: several of them.
    #[prost(int32, optional, tag = "1")]
    pub kind: Option<i32>,
    /// Term of the leader that made it.
    #[prost(uint64, optional, tag = "2")]
    pub term: Option<u64>,
    /// Its index, from 1.
    #[prost(uint64, optional, tag = "3")]
    pub index: Option<u64>,
    /// What it carries.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub data: Option<Bytes>,
}

/// `raftpb.HardState`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct EtcdHardState {
    /// The highest term that the member has seen.
    #[prost(uint64, optional, tag = "1")]
    pub term: Option<u64>,
    /// Whom it voted for in that term; 0: nobody.
    #[prost(uint64, optional, tag = "2")]
    pub vote: Option<u64>,
    /// The last index that it knew to be committed.
    #[prost(uint64, optional, tag = "3")]
    pub commit: Option<u64>,
}

/// `raftpb.ConfState`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdConfState {
    /// The members that vote.
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    pub voters: Vec<u64>,
    /// The members that do not.
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    pub learners: Vec<u64>,
    /// Part of changes in two steps, which etcd never makes.
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub voters_outgoing: Vec<u64>,
    /// As above.
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub learners_next: Vec<u64>,
    /// As above.
    #[prost(bool, optional, tag = "5")]
    pub auto_leave: Option<bool>,
}

/// `raftpb.ConfChange`.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdConfChange {
    /// Number of the request.
    #[prost(uint64, optional, tag = "1")]
    pub id: Option<u64>,
    /// 0: a voter is added, 1: a member is removed, 2: a member's URLs, 3: a learner is added.
    #[prost(int32, optional, tag = "2")]
    pub kind: Option<i32>,
    /// The member.
    #[prost(uint64, optional, tag = "3")]
    pub node_id: Option<u64>,
    /// The member as JSON.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub context: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct LogSnapshot {
    #[prost(uint64, optional, tag = "1")]
    index: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    term: Option<u64>,
    #[prost(message, optional, tag = "3")]
    members: Option<EtcdConfState>,
}

#[derive(Clone, PartialEq, Message)]
struct RaftSnapshot {
    #[prost(bytes = "bytes", optional, tag = "1")]
    data: Option<Bytes>,
    #[prost(message, optional, tag = "2")]
    metadata: Option<RaftSnapshotMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct RaftSnapshotMetadata {
    #[prost(message, optional, tag = "1")]
    members: Option<EtcdConfState>,
    #[prost(uint64, optional, tag = "2")]
    index: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    term: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotFile {
    #[prost(uint32, optional, tag = "1")]
    checksum: Option<u32>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    data: Option<Bytes>,
}

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EtcdLog {
    /// Whose log it is.
    pub member_id: u64,
    /// The member's cluster.
    pub cluster_id: u64,
    /// Term, vote and committed index.
    pub state: EtcdHardState,
    /// The term of the entry at the asked index; `None`: it is not in the log any more.
    pub term_at: Option<u64>,
    /// The entries behind it.
    pub entries: Vec<EtcdEntry>,
    /// The newest snapshot that the log says the member had.
    pub snapshot_index: u64,
    /// Whether the last record was cut off: the program ended while it was written, and it was never
    /// acknowledged.
    pub ends_torn: bool,
}

impl EtcdLog {
    /// Reads the log of a directory; keeps the entries behind `after`.
    ///
    /// # Errors
    /// [`FileError`] for a directory that holds no log, and for damage before the last record.
    pub fn read(directory: &Path, after: u64) -> Result<Self, FileError> {
        let paths = log_files(directory)?;
        let mut log = Self::default();
        let mut checksum = 0;
        for (number, path) in paths.iter().enumerate() {
            let last = number + 1 == paths.len();
            let mut file = LogFile::open(path, checksum)?;
            while let Some(record) = file.next(last)? {
                log.add(record, after, &file)?;
            }
            checksum = file.checksum;
            log.ends_torn = file.torn;
        }
        if log.member_id == 0 {
            return Err(FileError::Foreign {
                path: directory.to_owned(),
                expected: "log of an etcd member",
                found: "its files do not say whose log it is".to_owned(),
            });
        }
        Ok(log)
    }

    fn add(&mut self, record: Record, after: u64, file: &LogFile) -> Result<(), FileError> {
        let data = record.data.unwrap_or_default();
        let undecodable = |_| file.damaged("a record with the right checksum has no valid content");
        match record.kind.unwrap_or_default() {
            METADATA => {
                let metadata = Metadata::decode(data).map_err(undecodable)?;
                self.member_id = metadata.node_id.unwrap_or_default();
                self.cluster_id = metadata.cluster_id.unwrap_or_default();
            }
            STATE => self.state = EtcdHardState::decode(data).map_err(undecodable)?,
            ENTRY => {
                let entry = EtcdEntry::decode(data).map_err(undecodable)?;
                self.add_entry(entry, after, file)?;
            }
            SNAPSHOT => {
                let snapshot = LogSnapshot::decode(data).map_err(undecodable)?;
                let index = snapshot.index.unwrap_or_default();
                self.snapshot_index = self.snapshot_index.max(index);
            }
            CHECKSUM => {}
            _ => return Err(file.damaged("a record of an unknown kind")),
        }
        Ok(())
    }

    /// An entry replaces the one at its index and removes what followed it.
    fn add_entry(&mut self, entry: EtcdEntry, after: u64, file: &LogFile) -> Result<(), FileError> {
        let index = entry.index.unwrap_or_default();
        if index <= after {
            self.entries.clear();
            if index == after {
                self.term_at = entry.term;
            }
            return Ok(());
        }
        let kept = (index - after - 1) as usize;
        if kept > self.entries.len() {
            return Err(file.damaged("entries are missing before an entry"));
        }
        self.entries.truncate(kept);
        self.entries.push(entry);
        Ok(())
    }
}

/// The files of a log in order, without a gap.
fn log_files(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let io = |source| FileError::Io {
        verb: "list",
        path: directory.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(sequence) = sequence_of(&name) {
            files.push((sequence, entry.path()));
        }
    }
    files.sort();
    let Some((first, _)) = files.first() else {
        return Err(FileError::Foreign {
            path: directory.to_owned(),
            expected: "log of an etcd member",
            found: "it has no .wal files".to_owned(),
        });
    };
    let first = *first;
    for (number, (sequence, path)) in files.iter().enumerate() {
        if *sequence != first + number as u64 {
            return Err(FileError::Damaged {
                path: path.clone(),
                offset: 0,
                what: "the file before it is missing".to_owned(),
            });
        }
    }
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn sequence_of(name: &str) -> Option<u64> {
    let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
    u64::from_str_radix(index, 16).ok()?;
    u64::from_str_radix(sequence, 16).ok()
}

/// One file that is being read.
struct LogFile {
    path: PathBuf,
    reader: BufReader<File>,
    bytes: u64,
    offset: u64,
    checksum: u32,
    torn: bool,
}

impl LogFile {
    fn open(path: &Path, checksum: u32) -> Result<Self, FileError> {
        let io = |source| FileError::Io {
            verb: "open",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            bytes,
            offset: 0,
            checksum,
            torn: false,
        })
    }

    fn damaged(&self, what: &str) -> FileError {
        FileError::Damaged {
            path: self.path.clone(),
            offset: self.offset,
            what: what.to_owned(),
        }
    }

    /// The end of the file, when `last` and the record may have been cut off by a crash.
    fn end_or(&mut self, cut: bool, last: bool, what: &str) -> Result<Option<Record>, FileError> {
        if cut && last {
            self.torn = true;
            return Ok(None);
        }
        Err(self.damaged(what))
    }

    fn read(&mut self, length: u64) -> Result<Option<Vec<u8>>, FileError> {
        if length > self.bytes - self.offset.min(self.bytes) {
            return Ok(None);
        }
        let mut bytes = vec![0; length as usize];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|source| FileError::Io {
                verb: "read",
                path: self.path.clone(),
                source,
            })?;
        Ok(Some(bytes))
    }

    /// The next record; `None` at the end of the file.
    fn next(&mut self, last: bool) -> Result<Option<Record>, FileError> {
        if self.offset == self.bytes {
            return Ok(None);
        }
        let Some(length) = self.read(8)? else {
            return self.end_or(true, last, "a record is cut off");
        };
        let field = u64::from_le_bytes(length.try_into().expect("eight bytes"));
        if field == 0 {
            return Ok(None);
        }
        let length = field & 0x00ff_ffff_ffff_ffff;
        let padding = match field >> 63 {
            1 => (field >> 56) & 0x7,
            _ => 0,
        };
        if length > RECORD_BYTES_MAX {
            return Err(self.damaged("a record says that it is longer than any record"));
        }
        self.offset += 8;
        let Some(bytes) = self.read(length + padding)? else {
            self.offset -= 8;
            return self.end_or(true, last, "a record is cut off");
        };
        let cut = has_empty_sector(&bytes, self.offset);
        let Ok(record) = Record::decode(&bytes[..length as usize]) else {
            return self.end_or(cut, last, "a record cannot be decoded");
        };
        let stored = record.checksum.unwrap_or_default();
        if record.kind == Some(CHECKSUM) {
            if self.checksum != 0 && stored != self.checksum {
                return Err(self.damaged("it does not continue the file before it"));
            }
            self.checksum = stored;
        } else {
            let data = record.data.as_deref().unwrap_or_default();
            self.checksum = crc32c::crc32c_append(self.checksum, data);
            if stored != self.checksum {
                return self.end_or(cut, last, "a checksum is wrong");
            }
        }
        self.offset += length + padding;
        Ok(Some(record))
    }
}

/// Whether a sector of a record holds only zeros: then it was not written before the crash.
fn has_empty_sector(bytes: &[u8], offset: u64) -> bool {
    let mut rest = bytes;
    let mut room = SECTOR_BYTES - (offset % SECTOR_BYTES as u64) as usize;
    while !rest.is_empty() {
        let (sector, after) = rest.split_at(room.min(rest.len()));
        if sector.iter().all(|byte| *byte == 0) {
            return true;
        }
        rest = after;
        room = SECTOR_BYTES;
    }
    false
}

/// A member that a restored etcd directory belongs to, and what its log begins with.
#[derive(Clone, Debug)]
pub struct NewEtcdLog {
    /// The member.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// All voters, each with its JSON form: one change of the members for each is in the log.
    pub members: Vec<(u64, Vec<u8>)>,
    /// What etcd's snapshot file holds beside: the members in the form of its version 2.
    pub version_2_store: Vec<u8>,
}

impl NewEtcdLog {
    /// The index of the last entry of the log, and its term.
    pub fn end(&self) -> (u64, u64) {
        (self.members.len() as u64, 1)
    }

    /// Writes the log into `log_directory` and the snapshot file that it begins with into
    /// `snapshot_directory`, both durably, as `etcdutl snapshot restore` does.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn write(&self, log_directory: &Path, snapshot_directory: &Path) -> Result<(), FileError> {
        let (index, term) = self.end();
        let members = EtcdConfState {
            voters: self.members.iter().map(|(id, _)| *id).collect(),
            ..EtcdConfState::default()
        };
        self.write_log(log_directory, &members)?;
        let snapshot = RaftSnapshot {
            data: Some(self.version_2_store.clone().into()),
            metadata: Some(RaftSnapshotMetadata {
                members: Some(members),
                index: Some(index),
                term: Some(term),
            }),
        };
        let data = snapshot.encode_to_vec();
        let file = SnapshotFile {
            checksum: Some(crc32c::crc32c(&data)),
            data: Some(data.into()),
        };
        let path = snapshot_directory.join(format!("{term:016x}-{index:016x}.snap"));
        write_durably(&path, &file.encode_to_vec())
    }

    fn write_log(&self, directory: &Path, members: &EtcdConfState) -> Result<(), FileError> {
        let (index, term) = self.end();
        let mut records = Vec::new();
        let mut checksum = 0;
        let mut add = |kind: i64, data: Vec<u8>| {
            checksum = match kind {
                CHECKSUM => checksum,
                _ => crc32c::crc32c_append(checksum, &data),
            };
            let record = Record {
                kind: Some(kind),
                checksum: Some(checksum),
                data: (kind != CHECKSUM).then(|| data.into()),
            };
            put_record(&mut records, &record);
        };
        let metadata = Metadata {
            node_id: Some(self.member_id),
            cluster_id: Some(self.cluster_id),
        };
        add(CHECKSUM, Vec::new());
        add(METADATA, metadata.encode_to_vec());
        let begin = LogSnapshot {
            index: Some(0),
            term: Some(0),
            members: None,
        };
        add(SNAPSHOT, begin.encode_to_vec());
        for (number, (id, json)) in self.members.iter().enumerate() {
            let change = EtcdConfChange {
                id: None,
                kind: Some(0),
                node_id: Some(*id),
                context: Some(json.clone().into()),
            };
            let entry = EtcdEntry {
                kind: Some(1),
                term: Some(term),
                index: Some(number as u64 + 1),
                data: Some(change.encode_to_vec().into()),
            };
            add(ENTRY, entry.encode_to_vec());
        }
        let state = EtcdHardState {
            term: Some(term),
            vote: self.members.first().map(|(id, _)| *id),
            commit: Some(index),
        };
        add(STATE, state.encode_to_vec());
        let snapshot = LogSnapshot {
            index: Some(index),
            term: Some(term),
            members: Some(members.clone()),
        };
        add(SNAPSHOT, snapshot.encode_to_vec());
        let path = directory.join(format!("{:016x}-{:016x}.wal", 0, 0));
        write_durably(&path, &records)?;
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| {
                file.set_len(FILE_BYTES)?;
                file.sync_all()
            })
            .map_err(|source| FileError::Io {
                verb: "reserve space for",
                path,
                source,
            })
    }
}

fn put_record(records: &mut Vec<u8>, record: &Record) {
    let bytes = record.encode_to_vec();
    let padding = (8 - bytes.len() % 8) % 8;
    let mut field = bytes.len() as u64;
    if padding != 0 {
        field |= (0x80 | padding as u64) << 56;
    }
    records.extend_from_slice(&field.to_le_bytes());
    records.extend_from_slice(&bytes);
    records.resize(records.len() + padding, 0);
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(bytes)?;
        file.into_inner()
            .map_err(std::io::IntoInnerError::into_error)?
            .sync_all()?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| FileError::Io {
        verb: "write",
        path: path.to_owned(),
        source,
    })
}
