//! Snapshots: the files of one directory, streamed in chunks.
//!
//! The transfer may take as long as it needs, but never stand still: while the receiver writes or
//! installs it says so at least once per second.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use metastore_proto::peer;
use openraft::errors::{StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use openraft::storage::{Snapshot, SnapshotMeta};
use openraft::type_config::alias::SnapshotOf;
use tokio::sync::Mutex;

use super::dialer::Connection;
use super::peers::Link;
use crate::counters::Counters;
use crate::node::RaftNode;
use crate::raft_types::{
    RaftVote, TypeConfig, encode_membership, log_id_from_message, log_id_to_message, position,
    stored_membership_from_message, stored_membership_to_message, vote_from_message,
    vote_to_message,
};
use crate::state_machine::{AppliedState, SnapshotFiles, StateMachine};

/// Bytes of a file in one frame.
const CHUNK_BYTES: usize = 512 * 1024;
/// How often a receiver that installs says that it is alive.
const WORKING_INTERVAL: Duration = Duration::from_secs(1);
/// Most files in a snapshot; a longer list is a broken sender.
const FILES_MAX: usize = 1_000_000;

type SendError = StreamingError<TypeConfig>;

fn unreachable(reason: impl ToString) -> SendError {
    StreamingError::Unreachable(Unreachable::from_string(reason))
}

/// Runs blocking file work off the Raft thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Sends a snapshot and waits until it is installed or refused.
pub(crate) async fn send(
    link: &Link,
    vote: RaftVote,
    snapshot: SnapshotOf<TypeConfig, SnapshotFiles>,
) -> Result<SnapshotResponse<TypeConfig>, SendError> {
    let sending = link.counters.snapshots_sent.start();
    let connection = link
        .dialer
        .dial(link.member, peer::Channel::Snapshot)
        .await
        .map_err(unreachable)?;
    let answer = transfer(link, connection, vote, snapshot)
        .await
        .inspect_err(|error| {
            tracing::warn!(
                peer = format_args!("{:x}", link.member),
                %error,
                "cannot send a snapshot"
            );
        })
        .map_err(unreachable)?;
    sending.succeed();
    link.dialer
        .counters
        .snapshots_sent
        .fetch_add(1, Ordering::Relaxed);
    Ok(SnapshotResponse::new(answer))
}

async fn transfer(
    link: &Link,
    connection: Connection,
    vote: RaftVote,
    snapshot: SnapshotOf<TypeConfig, SnapshotFiles>,
) -> io::Result<RaftVote> {
    let Connection {
        mut reader,
        mut writer,
    } = connection;
    let timeout = link.dialer.timeouts.snapshot_progress;
    let directory = snapshot.snapshot.directory.clone();
    let files = blocking(move || open_files(&directory)).await?;
    writer.put(&frame(peer::snapshot_frame::Frame::Start(
        peer::SnapshotStart {
            vote: Some(vote_to_message(&vote)),
            position: snapshot.meta.last_log_id.map(log_id_to_message),
            membership: Some(stored_membership_to_message(&snapshot.meta.last_membership)),
            files: files
                .iter()
                .map(|(name, size, _)| peer::SnapshotFile {
                    name: name.clone(),
                    size: *size,
                })
                .collect(),
        },
    )));
    writer.flush_within(timeout).await?;

    let mut checksums = Vec::with_capacity(files.len());
    for (name, size, mut file) in files {
        let mut left = size;
        let mut checksum = 0;
        while left > 0 {
            let length = left.min(CHUNK_BYTES as u64) as usize;
            let (returned, data) = blocking(move || {
                let mut data = vec![0; length];
                file.read_exact(&mut data)?;
                Ok((file, data))
            })
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
            file = returned;
            checksum = crc32c::crc32c_append(checksum, &data);
            left -= length as u64;
            writer.put(&frame(peer::snapshot_frame::Frame::Chunk(
                peer::SnapshotChunk { data: data.into() },
            )));
            writer.flush_within(timeout).await?;
        }
        checksums.push(checksum);
    }
    writer.put(&frame(peer::snapshot_frame::Frame::End(
        peer::SnapshotEnd { checksums },
    )));
    writer.flush_within(timeout).await?;

    loop {
        let answer: peer::SnapshotAnswer = reader.expect(timeout).await?;
        use peer::snapshot_answer::Result as Outcome;
        match answer.result {
            Some(Outcome::Working(_)) => {}
            Some(Outcome::Vote(vote)) => return Ok(vote_from_message(vote)),
            Some(Outcome::Failed(reason)) => return Err(io::Error::other(reason)),
            None => return Err(io::Error::other("an answer without a result")),
        }
    }
}

fn frame(frame: peer::snapshot_frame::Frame) -> peer::SnapshotFrame {
    peer::SnapshotFrame { frame: Some(frame) }
}

/// All files of a snapshot, opened at once: a newer snapshot may replace the directory meanwhile.
fn open_files(directory: &Path) -> io::Result<Vec<(String, u64, File)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|name| {
            io::Error::new(io::ErrorKind::InvalidData, format!("file name {name:?}"))
        })?;
        let file = File::open(entry.path())?;
        // Whoever removes the directory empties only files that nobody has locked.
        if let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
            return Err(io::Error::other(format!("{name} is being removed")));
        }
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other(format!("{name} is not a plain file")));
        }
        files.push((name, metadata.len(), file));
    }
    files.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(files)
}

/// What receives snapshots.
pub(crate) struct SnapshotService {
    pub(crate) raft: RaftNode,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) progress_timeout: Duration,
    /// Held while a snapshot is received: two at a time would only be two senders of the same.
    pub(crate) receiving: Mutex<()>,
}

/// A directory that is removed unless it was used.
struct Incoming(PathBuf);

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(directory = %self.0.display(), %error, "cannot remove what is left of a snapshot");
        }
    }
}

impl SnapshotService {
    /// Receives one snapshot and installs it.
    pub(crate) async fn serve(&self, sender: u64, mut connection: Connection) {
        let counters = self.counters.peer(sender);
        let receiving = counters.snapshots_received.start();
        let Ok(_receiving) = self.receiving.try_lock() else {
            let busy = peer::snapshot_answer::Result::Failed("receiving another snapshot".into());
            let _ = answer(&mut connection, busy).await;
            return;
        };
        let result = match self.receive(&mut connection).await {
            Ok(vote) => {
                receiving.succeed();
                peer::snapshot_answer::Result::Vote(vote_to_message(&vote))
            }
            Err(error) => {
                tracing::warn!(%error, "cannot receive a snapshot");
                peer::snapshot_answer::Result::Failed(error.to_string())
            }
        };
        // The sender may be gone; it will find out by itself.
        let _ = answer(&mut connection, result).await;
    }

    async fn receive(&self, connection: &mut Connection) -> io::Result<RaftVote> {
        let first: peer::SnapshotFrame = connection.reader.expect(self.progress_timeout).await?;
        let Some(peer::snapshot_frame::Frame::Start(start)) = first.frame else {
            return Err(io::Error::other("a snapshot without a start"));
        };
        if start.files.len() > FILES_MAX {
            return Err(io::Error::other("too many files"));
        }
        let vote = vote_from_message(
            start
                .vote
                .ok_or_else(|| io::Error::other("a snapshot without a vote"))?,
        );
        let meta = SnapshotMeta {
            last_log_id: start.position.map(log_id_from_message),
            last_membership: start
                .membership
                .map(stored_membership_from_message)
                .unwrap_or_default(),
        };
        let state_machine = self.state_machine.clone();
        let directory =
            blocking(move || state_machine.incoming_directory().map_err(io::Error::other)).await?;
        let incoming = Incoming(directory.clone());
        self.receive_files(connection, &directory, start.files)
            .await?;
        self.counters
            .snapshots_received
            .fetch_add(1, Ordering::Relaxed);
        let snapshot = Snapshot {
            snapshot: SnapshotFiles {
                applied: AppliedState {
                    position: meta.last_log_id.map(position),
                    membership: encode_membership(&meta.last_membership),
                },
                directory,
            },
            meta,
        };
        let mut installing = std::pin::pin!(self.raft.install_full_snapshot(vote, snapshot));
        let installed = loop {
            tokio::select! {
                installed = &mut installing => break installed,
                () = tokio::time::sleep(WORKING_INTERVAL) => {
                    // A sender that is gone does not stop the installation.
                    let _ = answer(connection, peer::snapshot_answer::Result::Working(true)).await;
                }
            }
        };
        drop(incoming);
        installed
            .map(|response| response.vote)
            .map_err(io::Error::other)
    }

    async fn receive_files(
        &self,
        connection: &mut Connection,
        directory: &Path,
        files: Vec<peer::SnapshotFile>,
    ) -> io::Result<()> {
        let mut checksums = Vec::with_capacity(files.len());
        for expected in files {
            let path = directory.join(plain_name(&expected.name)?);
            let mut file = blocking(move || File::create_new(path)).await?;
            let mut left = expected.size;
            let mut checksum = 0;
            while left > 0 {
                let data = self.next_chunk(connection).await?;
                if data.len() as u64 > left {
                    return Err(io::Error::other("a file is longer than announced"));
                }
                left -= data.len() as u64;
                checksum = crc32c::crc32c_append(checksum, &data);
                file = blocking(move || {
                    file.write_all(&data)?;
                    Ok(file)
                })
                .await?;
            }
            blocking(move || file.sync_all()).await?;
            checksums.push(checksum);
        }
        let last: peer::SnapshotFrame = connection.reader.expect(self.progress_timeout).await?;
        let Some(peer::snapshot_frame::Frame::End(end)) = last.frame else {
            return Err(io::Error::other("a snapshot without an end"));
        };
        if end.checksums != checksums {
            return Err(io::Error::other("a file arrived with another checksum"));
        }
        let directory = directory.to_owned();
        blocking(move || File::open(directory)?.sync_all()).await
    }

    async fn next_chunk(&self, connection: &mut Connection) -> io::Result<Bytes> {
        let next: peer::SnapshotFrame = connection.reader.expect(self.progress_timeout).await?;
        match next.frame {
            Some(peer::snapshot_frame::Frame::Chunk(chunk)) if !chunk.data.is_empty() => {
                Ok(chunk.data)
            }
            _ => Err(io::Error::other("a file ends too early")),
        }
    }
}

async fn answer(
    connection: &mut Connection,
    result: peer::snapshot_answer::Result,
) -> io::Result<()> {
    connection.writer.put(&peer::SnapshotAnswer {
        result: Some(result),
    });
    connection.writer.flush_within(WORKING_INTERVAL).await
}

/// The name, if it is one of a file and no path: it comes from the network.
fn plain_name(name: &str) -> io::Result<&Path> {
    let path = Path::new(name);
    let mut components = path.components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(only)), None) if only == path.as_os_str() => Ok(path),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not a file name: {name:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_that_leaves_the_directory_is_refused() {
        for name in ["../a", "/etc/passwd", "a/b", "..", ".", "", "a/"] {
            assert!(plain_name(name).is_err(), "{name:?}");
        }
        assert!(plain_name("000012.sst").is_ok());
    }
}
