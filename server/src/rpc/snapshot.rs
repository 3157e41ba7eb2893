//! Maintenance.Snapshot: the whole store as a database of etcd, while everything else goes on.

use std::io;
use std::time::Instant;

use bytes::Bytes;
use futures::Stream;
use metastore_proto::etcdserverpb::SnapshotResponse;
use metastore_store::engine::SharedEngine;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::backup::export::{FileReceiver, export};
use crate::backup::human_bytes::human_bytes;
use crate::observe::metrics::METRICS;

/// Bytes of the database in each message, as in etcd.
const CHUNK_BYTES: usize = 32 * 1024;
/// Messages that may wait for a client. When they do, the export waits: it never needs more memory.
const MESSAGES_WAITING_MAX: usize = 8;

/// The messages of one snapshot of `engine`, as it is now, which announce this storage version. The
/// export ends when the stream is dropped.
pub fn snapshot(
    engine: SharedEngine,
    storage_version: String,
) -> impl Stream<Item = Result<SnapshotResponse, Status>> {
    let (messages, stream) = mpsc::channel(MESSAGES_WAITING_MAX);
    // An export takes as long as its client needs: it must not hold a thread that serves others.
    tokio::task::spawn_blocking(move || {
        let mut sender = Sender::new(messages, storage_version);
        match export(&engine, &mut sender) {
            Ok(()) => sender.end(),
            Err(error) if error.is_abandoned() => {
                tracing::info!("the client left before it had the whole database snapshot");
            }
            Err(error) => sender.fail(&error.to_string()),
        }
    });
    ReceiverStream::new(stream)
}

/// Cuts the file into messages.
struct Sender {
    messages: mpsc::Sender<Result<SnapshotResponse, Status>>,
    chunk: Vec<u8>,
    hash: Sha256,
    total_bytes: u64,
    sent_bytes: u64,
    started: Instant,
    storage_version: String,
}

impl Sender {
    fn new(
        messages: mpsc::Sender<Result<SnapshotResponse, Status>>,
        storage_version: String,
    ) -> Self {
        Self {
            messages,
            chunk: Vec::new(),
            hash: Sha256::new(),
            total_bytes: 0,
            sent_bytes: 0,
            started: Instant::now(),
            storage_version,
        }
    }

    fn send(&self, blob: Bytes) -> io::Result<()> {
        let message = SnapshotResponse {
            header: None,
            remaining_bytes: self.total_bytes - self.sent_bytes,
            blob,
            version: self.storage_version.clone(),
        };
        self.messages
            .blocking_send(Ok(message))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn send_chunk(&mut self) -> io::Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        self.hash.update(&chunk);
        self.sent_bytes += chunk.len() as u64;
        self.send(chunk.into())
    }

    /// The last message: the digest of all before.
    fn end(mut self) {
        if !self.chunk.is_empty() && self.send_chunk().is_err() {
            return;
        }
        let digest = Bytes::copy_from_slice(&self.hash.clone().finalize());
        tracing::info!(
            "total-bytes" = self.total_bytes,
            "checksum-size" = digest.len(),
            "sending database sha256 checksum to client"
        );
        if self.send(digest).is_ok() {
            let took = self.started.elapsed();
            METRICS.engine_snapshot.observe(took.as_secs_f64());
            tracing::info!(
                "total-bytes" = self.total_bytes,
                size = human_bytes(self.total_bytes),
                ?took,
                "storage-version" = self.storage_version,
                "successfully sent database snapshot to client"
            );
        }
    }

    fn fail(self, reason: &str) {
        tracing::warn!(error = reason, "failed to export the database");
        // A client that is gone needs no reason.
        let _ = self
            .messages
            .blocking_send(Err(Status::unknown(reason.to_owned())));
    }
}

impl FileReceiver for Sender {
    fn begin(&mut self, file_bytes: u64) -> io::Result<()> {
        self.total_bytes = file_bytes;
        tracing::info!(
            "total-bytes" = file_bytes,
            size = human_bytes(file_bytes),
            "storage-version" = self.storage_version,
            "sending database snapshot to client"
        );
        Ok(())
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.chunk.capacity() == 0 {
                self.chunk.reserve_exact(CHUNK_BYTES);
            }
            let part = bytes.len().min(CHUNK_BYTES - self.chunk.len());
            self.chunk.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            if self.chunk.len() == CHUNK_BYTES {
                self.send_chunk()?;
            }
        }
        Ok(())
    }
}
