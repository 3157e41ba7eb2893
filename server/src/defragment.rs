//! Defragmentation: gives the space of removed rows back to the system while the member serves.
//!
//! etcd's stops the member; ours is a compaction of the engine's files at a pace that leaves requests
//! their disk. It is rarely needed: the engine does the same by itself, and what counts for the quota is
//! the logical size.

use std::time::Instant;

use crate::config::Config;
use crate::error::RequestError;
use crate::node::Node;
use crate::observe::metrics::METRICS;

const MEBIBYTE: u64 = 1 << 20;

impl Node {
    /// Defragments this member's store; a second call waits for the first.
    ///
    /// # Errors
    /// The engine's.
    pub async fn defragment(&self) -> Result<(), RequestError> {
        let _one_at_a_time = self.defragmenting.lock().await;
        let started = Instant::now();
        let reader = self.reader();
        let before = reader.size()?;
        tracing::info!(
            "current-db-size-bytes" = before.physical_bytes,
            "current-db-size-in-use-bytes" = before.logical_bytes,
            "starting defragment"
        );
        let engine = reader.engine();
        let engine_has_files = engine.is_persistent();
        METRICS.defragmentation_in_progress.set(1);
        let work = tokio::task::spawn_blocking(move || engine.compact_files()).await;
        METRICS.defragmentation_in_progress.set(0);
        METRICS
            .engine_defragmentation
            .observe(started.elapsed().as_secs_f64());
        match work {
            Ok(result) => result?,
            Err(_) => return Err(metastore_proto::error_text::EtcdError::Stopped.into()),
        }
        // Files that were rewritten stay on the disk as long as a snapshot links to them.
        if engine_has_files {
            self.consensus.replace_snapshot().await;
        }
        let after = reader.size()?;
        tracing::info!(
            "current-db-size-bytes-diff" =
                after.physical_bytes.cast_signed() - before.physical_bytes.cast_signed(),
            "current-db-size-bytes" = after.physical_bytes,
            "current-db-size-in-use-bytes" = after.logical_bytes,
            took = ?started.elapsed(),
            "finished defragment"
        );
        Ok(())
    }

    /// Defragments at the start when that frees `--bootstrap-defrag-threshold-megabytes`.
    ///
    /// # Errors
    /// The engine's.
    pub async fn defragment_at_start(&self) -> Result<(), RequestError> {
        let Some(threshold_bytes) = threshold_bytes(&self.config) else {
            return Ok(());
        };
        let size = self.reader().size()?;
        if size.physical_bytes - size.logical_bytes < threshold_bytes {
            tracing::info!(
                "current-db-size-bytes" = size.physical_bytes,
                "current-db-size-in-use-bytes" = size.logical_bytes,
                "bootstrap-defrag-threshold-bytes" = threshold_bytes,
                "Skipping defragmentation"
            );
            return Ok(());
        }
        self.defragment().await
    }
}

fn threshold_bytes(config: &Config) -> Option<u64> {
    match config.bootstrap_defrag_threshold_megabytes {
        0 => None,
        megabytes => Some(megabytes.saturating_mul(MEBIBYTE)),
    }
}
