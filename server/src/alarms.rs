//! Alarms: what is wrong with the cluster, replicated and kept over restarts.
//!
//! An alarm names a member and a type. While one of a type is raised, the apply thread refuses the
//! commands that the type forbids, on every member alike. Only a client lowers an alarm.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::alarm_request::AlarmAction;
use metastore_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType};
use metastore_proto::internal::command::Request;
use metastore_store::engine::{EngineError, Table};
use metastore_store::{Applier, Reader};
use prost::Message;

use crate::quota;

/// Bits of [`Alarms::raised`].
const NO_SPACE: u8 = 1;
const CORRUPT: u8 = 2;

/// Type and member of a raised alarm; types that this version does not know are kept.
type Alarm = (i32, u64);

/// The raised alarms: one writer (the apply thread), many readers.
#[derive(Debug, Default)]
pub struct Alarms {
    current: ArcSwap<BTreeSet<Alarm>>,
    /// The types among `current`, so that a command costs one load while nothing is wrong.
    raised: AtomicU8,
}

/// The row of an alarm is its message, as in etcd's bucket, so that a backup may copy it.
fn row_key((alarm, member): Alarm) -> Bytes {
    to_message(&(alarm, member)).encode_to_vec().into()
}

fn to_message(&(alarm, member_id): &Alarm) -> AlarmMember {
    AlarmMember { member_id, alarm }
}

fn types(alarms: &BTreeSet<Alarm>) -> u8 {
    alarms.iter().fold(0, |raised, (alarm, _)| {
        raised
            | match AlarmType::try_from(*alarm) {
                Ok(AlarmType::Nospace) => NO_SPACE,
                Ok(AlarmType::Corrupt) => CORRUPT,
                Ok(AlarmType::None) | Err(_) => 0,
            }
    })
}

impl Alarms {
    /// The stored alarms.
    ///
    /// # Errors
    /// The engine's; a damaged row.
    pub fn load(reader: &Reader) -> Result<Self, EngineError> {
        let alarms = Self::default();
        alarms.reload(reader)?;
        Ok(alarms)
    }

    /// Takes over what another state holds, after a snapshot was installed.
    ///
    /// # Errors
    /// As [`Alarms::load`].
    pub fn reload(&self, reader: &Reader) -> Result<(), EngineError> {
        let mut alarms = BTreeSet::new();
        for (key, _) in reader.scan_rows(Table::Alarms, b"")? {
            let alarm = AlarmMember::decode(key).map_err(|error| {
                EngineError::Storage(format!(
                    "a stored alarm is damaged ({error}): restore this member from a snapshot or \
                     re-add it"
                ))
            })?;
            alarms.insert((alarm.alarm, alarm.member_id));
        }
        self.replace(alarms);
        Ok(())
    }

    fn replace(&self, alarms: BTreeSet<Alarm>) {
        self.raised.store(types(&alarms), Ordering::Relaxed);
        self.current.store(Arc::new(alarms));
    }

    /// The raised alarms of a type, all of them for `NONE`; by type and member.
    pub fn list(&self, alarm: i32) -> Vec<AlarmMember> {
        self.current
            .load()
            .iter()
            .filter(|(raised, _)| alarm == AlarmType::None as i32 || *raised == alarm)
            .map(to_message)
            .collect()
    }

    /// Whether this alarm is raised for this member.
    pub fn is_raised(&self, alarm: AlarmType, member: u64) -> bool {
        self.current.load().contains(&(alarm as i32, member))
    }

    /// Whether any member raised `CORRUPT`; cheap.
    pub fn is_corrupt(&self) -> bool {
        self.raised.load(Ordering::Relaxed) & CORRUPT != 0
    }

    /// Whether any member raised `NOSPACE`; cheap.
    pub fn is_full(&self) -> bool {
        self.raised.load(Ordering::Relaxed) & NO_SPACE != 0
    }

    /// What a command gets because of the alarms, if they forbid it.
    pub fn refusal(&self, request: &Request) -> Option<EtcdError> {
        let raised = self.raised.load(Ordering::Relaxed);
        if raised == 0 {
            return None;
        }
        let changes = matches!(
            request,
            Request::Put(_)
                | Request::DeleteRange(_)
                | Request::Txn(_)
                | Request::Compaction(_)
                | Request::LeaseGrant(_)
                | Request::LeaseRevoke(_)
        );
        if raised & CORRUPT != 0 && changes {
            return Some(EtcdError::Corrupt);
        }
        let grows = match request {
            Request::Put(_) | Request::LeaseGrant(_) => true,
            Request::Txn(txn) => quota::txn_cost(txn) > 0,
            _ => false,
        };
        (raised & NO_SPACE != 0 && grows).then_some(EtcdError::NoSpace)
    }

    /// Applies a request; returns the alarms that it was about.
    pub fn apply(&self, applier: &mut Applier, request: &AlarmRequest) -> Vec<AlarmMember> {
        let alarm = (request.alarm, request.member_id);
        match request.action() {
            AlarmAction::Get => return self.list(request.alarm),
            AlarmAction::Activate if request.alarm == AlarmType::None as i32 => return Vec::new(),
            AlarmAction::Activate => {
                let mut alarms = BTreeSet::clone(&self.current.load());
                if alarms.insert(alarm) {
                    applier.put_row(Table::Alarms, row_key(alarm), Bytes::new());
                    tracing::warn!(alarm = text(&to_message(&alarm)), "alarm raised");
                    self.replace(alarms);
                }
            }
            AlarmAction::Deactivate => {
                let mut alarms = BTreeSet::clone(&self.current.load());
                if !alarms.remove(&alarm) {
                    return Vec::new();
                }
                applier.delete_row(Table::Alarms, row_key(alarm));
                tracing::info!(alarm = text(&to_message(&alarm)), "alarm disarmed");
                self.replace(alarms);
            }
        }
        vec![to_message(&alarm)]
    }
}

/// An alarm as etcd writes it into `Status.errors` and logs.
pub fn text(alarm: &AlarmMember) -> String {
    let mut text = String::new();
    if alarm.member_id != 0 {
        text = format!("memberID:{}", alarm.member_id);
    }
    if alarm.alarm != 0 {
        if !text.is_empty() {
            text.push(' ');
        }
        match AlarmType::try_from(alarm.alarm) {
            Ok(known) => text.push_str(&format!("alarm:{}", known.as_str_name())),
            Err(_) => text.push_str(&format!("alarm:{}", alarm.alarm)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use metastore_proto::etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RequestOp,
        TxnRequest, request_op,
    };
    use metastore_store::{MemoryEngine, StoreOptions};

    use super::*;

    fn request(action: AlarmAction, alarm: AlarmType, member_id: u64) -> AlarmRequest {
        AlarmRequest {
            action: action as i32,
            member_id,
            alarm: alarm as i32,
        }
    }

    #[test]
    fn alarms_survive_a_restart_and_are_lowered_by_type_and_member() {
        let engine = Arc::new(MemoryEngine::new());
        let (mut applier, reader) =
            metastore_store::open(engine, StoreOptions::default()).expect("opens");
        let alarms = Alarms::default();
        let raise = |alarm, member| request(AlarmAction::Activate, alarm, member);
        assert_eq!(alarms.apply(&mut applier, &raise(AlarmType::None, 1)), []);
        alarms.apply(&mut applier, &raise(AlarmType::Nospace, 1));
        let again = alarms.apply(&mut applier, &raise(AlarmType::Nospace, 1));
        assert_eq!(again.len(), 1, "raising it again names it");
        alarms.apply(&mut applier, &raise(AlarmType::Corrupt, 2));
        applier.commit().expect("commits");

        let loaded = Alarms::load(&reader).expect("loads");
        assert_eq!(loaded.list(0), alarms.list(0));
        assert!(loaded.is_full() && loaded.is_corrupt());
        let lower = |alarm, member| request(AlarmAction::Deactivate, alarm, member);
        assert_eq!(
            loaded.apply(&mut applier, &lower(AlarmType::Nospace, 2)),
            []
        );
        assert_eq!(
            loaded
                .apply(&mut applier, &lower(AlarmType::Corrupt, 2))
                .len(),
            1
        );
        assert!(!loaded.is_corrupt() && loaded.is_full());
        applier.commit().expect("commits");
        assert_eq!(
            Alarms::load(&reader).expect("loads").list(0),
            loaded.list(0)
        );
    }

    #[test]
    fn a_full_store_refuses_what_grows_it_and_a_corrupt_one_every_change() {
        let put = || Request::Put(PutRequest::default());
        let delete = || Request::DeleteRange(DeleteRangeRequest::default());
        let compact = || Request::Compaction(CompactionRequest::default());
        let grant = || Request::LeaseGrant(LeaseGrantRequest::default());
        let empty_txn = || Request::Txn(TxnRequest::default());
        let put_txn = || {
            let op = request_op::Request::RequestPut(PutRequest::default());
            Request::Txn(TxnRequest {
                failure: vec![RequestOp { request: Some(op) }],
                ..TxnRequest::default()
            })
        };
        let alarms = Alarms::default();
        assert_eq!(alarms.refusal(&put()), None);
        alarms.replace(BTreeSet::from([(AlarmType::Nospace as i32, 1)]));
        for refused in [put(), grant(), put_txn()] {
            assert_eq!(alarms.refusal(&refused), Some(EtcdError::NoSpace));
        }
        for allowed in [delete(), compact(), empty_txn()] {
            assert_eq!(alarms.refusal(&allowed), None);
        }
        alarms.replace(BTreeSet::from([
            (AlarmType::Nospace as i32, 1),
            (AlarmType::Corrupt as i32, 2),
        ]));
        for refused in [put(), grant(), put_txn(), delete(), compact(), empty_txn()] {
            assert_eq!(alarms.refusal(&refused), Some(EtcdError::Corrupt));
        }
        assert_eq!(
            alarms.refusal(&Request::Alarm(AlarmRequest::default())),
            None
        );
    }

    #[test]
    fn the_text_is_etcds() {
        let alarm = AlarmMember {
            member_id: 7,
            alarm: AlarmType::Nospace as i32,
        };
        assert_eq!(text(&alarm), "memberID:7 alarm:NOSPACE");
        let whole_cluster = AlarmMember {
            member_id: 0,
            alarm: AlarmType::Corrupt as i32,
        };
        assert_eq!(text(&whole_cluster), "alarm:CORRUPT");
    }
}
