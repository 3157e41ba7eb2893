//! Reading a whole store at one moment, for copies in another format.

use std::ops::ControlFlow;

use metastore_revision_model::RecordError;

use crate::engine::{EngineError, ReadView, Table};
use crate::lease_rows::LeaseRecord;
use crate::shared::{COLLECTED_ROW, CollectedState, STATE_ROW, StoreState};

/// The numbers of a store at the moment of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreNumbers {
    /// Main revision of the last write.
    pub revision: i64,
    /// The revision below which nothing can be read; -1: never compacted.
    pub compact_revision: i64,
    /// The compact revision up to which everything dead is deleted; -1: none.
    pub finished_compact_revision: i64,
}

impl StoreNumbers {
    /// Reads them.
    ///
    /// # Errors
    /// [`EngineError`] when the engine fails or a row is damaged.
    pub fn of(view: &dyn ReadView) -> Result<Self, EngineError> {
        let mut state = StoreState::new();
        let mut collected = CollectedState::new();
        scan_decoded(view, Table::Meta, &mut |key, value| {
            if key == STATE_ROW {
                state = StoreState::decode(value)?;
            } else if key == COLLECTED_ROW {
                collected = CollectedState::decode(value)?;
            }
            Ok(())
        })?;
        Ok(Self {
            revision: state.revision,
            compact_revision: state.compact_revision,
            finished_compact_revision: collected.finished,
        })
    }
}

/// Visits the leases in the order of their ids.
///
/// # Errors
/// [`EngineError`] when the engine fails or a row is damaged.
pub fn scan_leases(
    view: &dyn ReadView,
    visit: &mut dyn FnMut(LeaseRecord),
) -> Result<(), EngineError> {
    scan_decoded(view, Table::Lease, &mut |key, value| {
        visit(LeaseRecord::decode(key, value)?);
        Ok(())
    })
}

/// Reads one row.
type Decoder<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), RecordError> + 'a;

fn scan_decoded(
    view: &dyn ReadView,
    table: Table,
    visit: &mut Decoder<'_>,
) -> Result<(), EngineError> {
    let mut failure = None;
    view.scan_rows(table, b"", &mut |key, value| match visit(key, value) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}
