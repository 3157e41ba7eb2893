//! What the hub needs of the store.

use metastore_proto::EncodedKeyValue;
use metastore_revision_model::Revision;
use metastore_store::{EngineError, EventScan, ReadError, Reader};

/// Why the history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The first asked revision is below the compact revision: its events are gone.
    #[error("required revision has been compacted")]
    Compacted,
    /// The engine failed. The member has to stop.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The history of changes, as the store's reader gives it. A trait so that tests can put a simple
/// list in its place.
pub trait History: Send + Sync + 'static {
    /// The published revision.
    fn revision(&self) -> i64;

    /// The compact revision: events below it are gone, whether deleted yet or not.
    fn compact_revision(&self) -> i64;

    /// The events of revisions `from..=to` whose key is `wanted`, whole revisions, about
    /// `max_bytes` of them.
    ///
    /// # Errors
    /// [`HistoryError::Compacted`] when `from` is below the compact revision.
    fn events(
        &self,
        from: i64,
        to: i64,
        max_bytes: usize,
        wanted: &dyn Fn(&[u8]) -> bool,
        with_previous: bool,
    ) -> Result<EventScan, HistoryError>;

    /// The key-value pair that was written at `previous`; `None` when it was compacted away or is a
    /// deletion.
    ///
    /// # Errors
    /// When the engine failed.
    fn previous_key_value(
        &self,
        previous: Revision,
    ) -> Result<Option<EncodedKeyValue>, EngineError>;

    /// Whether coming events should carry their previous key-value pair, because somebody asks for
    /// it.
    fn want_previous(&self, wanted: bool);
}

impl History for Reader {
    fn revision(&self) -> i64 {
        self.revision()
    }

    fn compact_revision(&self) -> i64 {
        self.compact_revision()
    }

    fn events(
        &self,
        from: i64,
        to: i64,
        max_bytes: usize,
        wanted: &dyn Fn(&[u8]) -> bool,
        with_previous: bool,
    ) -> Result<EventScan, HistoryError> {
        self.events(from, to, max_bytes, wanted, with_previous)
            .map_err(|error| match error {
                // A scan of events is refused for no other reason.
                ReadError::Etcd(_) => HistoryError::Compacted,
                ReadError::Engine(error) => HistoryError::Engine(error),
            })
    }

    fn previous_key_value(
        &self,
        previous: Revision,
    ) -> Result<Option<EncodedKeyValue>, EngineError> {
        self.previous_key_value(previous)
    }

    fn want_previous(&self, wanted: bool) {
        self.want_previous(wanted);
    }
}
