//! Whether the members still hold the same data.
//!
//! Members compare HashKV, which is equal for an equal history. A member that differs is named in an
//! alarm CORRUPT, and while one is raised every member refuses changes. Three checks, as in etcd:
//!
//! * at the start, before clients are served (gate `InitialCorruptCheck`): a member that differs from
//!   another does not start;
//! * on the leader, from time to time (`--corrupt-check-time`);
//! * on the leader, after compactions (gate `CompactHashCheck`, `--compact-hash-check-time`): the
//!   member that differs from a majority is named; without a majority the whole cluster is (member 0).

use std::collections::BTreeMap;
use std::sync::Arc;

use metastore_consensus::PeerError;
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::{AlarmType, HashKvRequest};
use metastore_store::HashKv;
use prost::Message;

use crate::error::RequestError;
use crate::node::Node;
use crate::peer_service::{ChangeAnswer, Method};

/// The gate of the check at the start.
pub const INITIAL_CHECK_GATE: &str = "InitialCorruptCheck";
/// The gate of the check after compactions.
pub const COMPACT_CHECK_GATE: &str = "CompactHashCheck";

/// The answer to [`Method::HashKv`].
#[derive(Clone, PartialEq, Message)]
pub struct HashAnswer {
    /// Why there is no hash.
    #[prost(message, optional, tag = "1")]
    pub error: Option<ChangeAnswer>,
    /// The hash.
    #[prost(uint32, tag = "2")]
    pub hash: u32,
    /// The revision up to which was hashed.
    #[prost(int64, tag = "3")]
    pub hash_revision: i64,
    /// The compact revision that the hash belongs to.
    #[prost(int64, tag = "4")]
    pub compact_revision: i64,
    /// The current revision of the member.
    #[prost(int64, tag = "5")]
    pub revision: i64,
}

impl HashAnswer {
    /// The answer that a member gives.
    pub fn from_result(result: Result<HashKv, RequestError>) -> Self {
        match result {
            Ok(hash) => Self {
                error: None,
                hash: hash.hash,
                hash_revision: hash.hash_revision,
                compact_revision: hash.compact_revision,
                revision: hash.revision,
            },
            Err(error) => Self {
                error: Some(ChangeAnswer::from_error(&error)),
                ..Self::default()
            },
        }
    }

    fn into_result(self) -> Result<HashKv, RequestError> {
        if let Some(error) = self.error.as_ref().and_then(ChangeAnswer::to_error) {
            return Err(error);
        }
        Ok(HashKv {
            hash: self.hash,
            revision: self.revision,
            compact_revision: self.compact_revision,
            hash_revision: self.hash_revision,
        })
    }
}

/// Another member and its hash.
struct PeerHash {
    member: u64,
    hash: Result<HashKv, RequestError>,
}

impl Node {
    /// The hash of this member's keys at a revision (0: the current one).
    ///
    /// # Errors
    /// A revision that was compacted or is in the future; the engine's.
    pub async fn hash_kv(&self, revision: i64) -> Result<HashKv, RequestError> {
        let reader = self.reader();
        let work = tokio::task::spawn_blocking(move || reader.hash_kv(revision));
        match work.await {
            Ok(hash) => Ok(hash?),
            Err(_) => Err(EtcdError::Stopped.into()),
        }
    }

    /// The hashes of the other members at a revision.
    async fn peer_hashes(&self, revision: i64) -> Vec<PeerHash> {
        let directory = self.application.directory.current();
        let questions = directory
            .members
            .keys()
            .filter(|member| **member != self.member_id)
            .map(|member| async move {
                let hash = self.peer_hash(*member, revision).await;
                if let Err(error) = &hash {
                    tracing::warn!(
                        "local-member-id" = format!("{:x}", self.member_id),
                        "requested-revision" = revision,
                        "remote-peer-id" = format!("{member:x}"),
                        %error,
                        "failed hash kv request"
                    );
                }
                PeerHash {
                    member: *member,
                    hash,
                }
            });
        futures::future::join_all(questions).await
    }

    async fn peer_hash(&self, member: u64, revision: i64) -> Result<HashKv, RequestError> {
        let body = HashKvRequest { revision }.encode_to_vec().into();
        let answer = self
            .consensus
            .call_peer(member, Method::HashKv as u32, body, self.request_timeout())
            .await
            .map_err(|error: PeerError| RequestError::Unknown(error.to_string()))?;
        HashAnswer::decode(answer)
            .map_err(|error| RequestError::Unknown(error.to_string()))?
            .into_result()
    }

    async fn raise_corrupt(&self, member: u64) {
        if let Err(error) = self.raise_alarm(AlarmType::Corrupt, member).await {
            tracing::warn!(%error, "failed to raise the alarm CORRUPT");
        }
    }

    /// Compares this member's data, as it was when it started, with the other members'. Members that
    /// do not answer are left out, as are those that compacted to another revision.
    ///
    /// # Errors
    /// This member's data differs from another member's; the engine's.
    pub async fn check_at_start(&self, own: HashKv) -> Result<(), RequestError> {
        let local = format!("{:x}", self.member_id);
        tracing::info!(
            "local-member-id" = local,
            timeout = ?self.request_timeout(),
            "starting initial corruption check"
        );
        let mut differs = false;
        for PeerHash { member, hash } in self.peer_hashes(own.hash_revision).await {
            let Ok(hash) = hash else { continue };
            if hash.hash == own.hash {
                continue;
            }
            let same_compaction = hash.compact_revision == own.compact_revision;
            differs |= same_compaction;
            tracing::warn!(
                "local-member-id" = local,
                "local-member-revision" = own.hash_revision,
                "local-member-compact-revision" = own.compact_revision,
                "local-member-hash" = own.hash,
                "remote-peer-id" = format!("{member:x}"),
                "remote-peer-revision" = hash.revision,
                "remote-peer-compact-revision" = hash.compact_revision,
                "remote-peer-hash" = hash.hash,
                "{}",
                if same_compaction {
                    "found different hash values from remote peer"
                } else {
                    "found different compact revision values from remote peer"
                }
            );
        }
        if differs {
            return Err(RequestError::Unknown(format!(
                "{local} found data inconsistency with peers: its data differs from another member's; \
                 remove this member from the cluster, delete its data directory and add it again"
            )));
        }
        tracing::info!(
            "local-member-id" = local,
            "initial corruption checking passed; no corruption"
        );
        Ok(())
    }

    /// Compares the leader's data with the other members'.
    async fn check_now(&self) -> Result<(), RequestError> {
        let before = self.hash_kv(0).await?;
        let peers = self.peer_hashes(before.hash_revision).await;
        self.linearize().await?;
        let after = self.hash_kv(0).await?;
        let checked = peers.iter().filter(|peer| peer.hash.is_ok()).count();
        if let Some(member) = first_corrupt(self.member_id, &before, &after, &peers) {
            self.raise_corrupt(member).await;
        }
        tracing::info!(
            "number-of-peers-checked" = checked,
            "finished peer corruption check"
        );
        Ok(())
    }

    /// Compares the data at the last compaction. Returns the revision that was checked on all members.
    async fn check_last_compaction(&self, checked: i64) -> Result<Option<i64>, RequestError> {
        let revision = self.reader().compact_revision();
        if revision <= checked || revision <= 0 {
            return Ok(None);
        }
        let own = match self.hash_kv(revision).await {
            Ok(own) if own.compact_revision == revision => own,
            // Another compaction came meanwhile: the next look takes that one.
            Ok(_) | Err(RequestError::Etcd(EtcdError::Compacted)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let peers = self.peer_hashes(revision).await;
        match judge(self.member_id, &own, &peers) {
            Verdict::Equal => {
                tracing::info!(
                    "number-of-peers-checked" = peers.len(),
                    revision,
                    compactRevision = own.compact_revision,
                    "successfully checked hash on whole cluster"
                );
                Ok(Some(revision))
            }
            Verdict::Unknown { checked } => {
                tracing::warn!(
                    "number-of-peers-checked" = checked,
                    "number-of-peers" = peers.len(),
                    revision,
                    compactRevision = own.compact_revision,
                    "skipped revision in compaction hash check; was not able to check all peers"
                );
                Ok(None)
            }
            Verdict::Corrupt(members) => {
                for member in members {
                    tracing::error!(
                        "leader-id" = format!("{:x}", self.member_id),
                        "leader-revision" = own.hash_revision,
                        "leader-compact-revision" = own.compact_revision,
                        "leader-hash" = own.hash,
                        "peer-ids" = format!("{member:x}"),
                        "Detected compaction hash mismatch"
                    );
                    self.raise_corrupt(member).await;
                }
                Ok(Some(revision))
            }
        }
    }
}

/// The first member that cannot have the leader's history: `before` was hashed before the peers were
/// asked, `after` when everything that was committed by then was applied.
fn first_corrupt(leader: u64, before: &HashKv, after: &HashKv, peers: &[PeerHash]) -> Option<u64> {
    let same_state = after.hash_revision == before.hash_revision
        && after.compact_revision == before.compact_revision;
    if same_state && after.hash != before.hash {
        tracing::warn!(
            revision = before.hash_revision,
            "hash-1" = before.hash,
            "hash-2" = after.hash,
            "found hash mismatch"
        );
        return Some(leader);
    }
    for PeerHash { member, hash } in peers {
        let Ok(hash) = hash else { continue };
        let problem = if hash.revision > after.revision {
            "revision from follower must be less than or equal to leader's"
        } else if hash.compact_revision > after.compact_revision {
            "compact revision from follower must be less than or equal to leader's"
        } else if hash.compact_revision == before.compact_revision && hash.hash != before.hash {
            "same compact revision then hashes must match"
        } else {
            continue;
        };
        tracing::warn!(
            "leader-revision" = after.revision,
            "follower-revision" = hash.revision,
            "leader-compact-revision" = after.compact_revision,
            "follower-compact-revision" = hash.compact_revision,
            "leader-hash" = before.hash,
            "follower-hash" = hash.hash,
            "follower-peer-id" = format!("{member:x}"),
            "{problem}"
        );
        return Some(*member);
    }
    None
}

/// What the hashes at one compaction say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All members have the same data.
    Equal,
    /// Nothing differs, but not every member could be asked.
    Unknown { checked: usize },
    /// These members differ from the majority; 0: there is no majority.
    Corrupt(Vec<u64>),
}

fn judge(leader: u64, own: &HashKv, peers: &[PeerHash]) -> Verdict {
    let mut members_of = BTreeMap::from([(own.hash, vec![leader])]);
    let mut checked = 0;
    for PeerHash { member, hash } in peers {
        let Ok(hash) = hash else { continue };
        if hash.compact_revision != own.compact_revision {
            continue;
        }
        checked += 1;
        members_of.entry(hash.hash).or_default().push(*member);
    }
    if members_of.len() == 1 {
        return match checked == peers.len() {
            true => Verdict::Equal,
            false => Verdict::Unknown { checked },
        };
    }
    let members = peers.len() + 1;
    let quorum = members / 2 + 1;
    let majority = members_of
        .iter()
        .find(|(_, members)| members.len() >= quorum)
        .map(|(hash, _)| *hash);
    match majority {
        Some(majority) => {
            members_of.remove(&majority);
            Verdict::Corrupt(members_of.into_values().flatten().collect())
        }
        None => {
            tracing::error!(
                "leader-id" = format!("{leader:x}"),
                "leader-revision" = own.hash_revision,
                "leader-compact-revision" = own.compact_revision,
                "leader-hash" = own.hash,
                "Detected compaction hash mismatch but cannot identify the corrupted members, so intentionally set the memberID as 0"
            );
            Verdict::Corrupt(vec![0])
        }
    }
}

/// The check of `--corrupt-check-time`.
pub async fn check_periodically(node: Arc<Node>) {
    let Some(interval) = node.config.corrupt_check_time else {
        return;
    };
    tracing::info!(
        "local-member-id" = format!("{:x}", node.member_id),
        interval = ?interval,
        "enabled corruption checking"
    );
    while node.pause(interval).await {
        if node.is_leader()
            && let Err(error) = node.check_now().await
        {
            tracing::warn!(%error, "failed to check hash KV");
        }
    }
}

/// The check of the gate `CompactHashCheck`.
pub async fn check_compactions(node: Arc<Node>) {
    if !node.config.feature_gates.is_enabled(COMPACT_CHECK_GATE) {
        return;
    }
    let mut checked = 0;
    while node.pause(node.config.compact_hash_check_time).await {
        if !node.is_leader() {
            continue;
        }
        match node.check_last_compaction(checked).await {
            Ok(Some(revision)) => checked = revision,
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "failed to check compaction hashes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(hash: u32, compact_revision: i64) -> HashKv {
        HashKv {
            hash,
            revision: 10,
            compact_revision,
            hash_revision: 10,
        }
    }

    fn peer(member: u64, hash: HashKv) -> PeerHash {
        PeerHash {
            member,
            hash: Ok(hash),
        }
    }

    fn silent(member: u64) -> PeerHash {
        PeerHash {
            member,
            hash: Err(EtcdError::Timeout.into()),
        }
    }

    #[test]
    fn the_minority_is_corrupt() {
        let own = hash(1, 5);
        let equal = [peer(2, own), peer(3, own)];
        assert_eq!(judge(1, &own, &equal), Verdict::Equal);
        let one_differs = [peer(2, own), peer(3, hash(9, 5))];
        assert_eq!(judge(1, &own, &one_differs), Verdict::Corrupt(vec![3]));
        let leader_differs = [peer(2, hash(9, 5)), peer(3, hash(9, 5))];
        assert_eq!(judge(1, &own, &leader_differs), Verdict::Corrupt(vec![1]));
        let all_differ = [peer(2, hash(8, 5)), peer(3, hash(9, 5))];
        assert_eq!(judge(1, &own, &all_differ), Verdict::Corrupt(vec![0]));
        let two_members = [peer(2, hash(9, 5))];
        assert_eq!(judge(1, &own, &two_members), Verdict::Corrupt(vec![0]));
    }

    #[test]
    fn a_member_that_does_not_answer_or_compacted_otherwise_proves_nothing() {
        let own = hash(1, 5);
        let verdict = judge(1, &own, &[silent(2), peer(3, own)]);
        assert_eq!(verdict, Verdict::Unknown { checked: 1 });
        let verdict = judge(1, &own, &[peer(2, hash(9, 4)), peer(3, own)]);
        assert_eq!(verdict, Verdict::Unknown { checked: 1 });
        assert_eq!(judge(1, &own, &[]), Verdict::Equal, "alone");
    }

    #[test]
    fn a_follower_cannot_be_ahead_of_its_leader() {
        let own = hash(1, 5);
        let corrupt = |peer| first_corrupt(1, &own, &own, &[peer]);
        assert_eq!(corrupt(peer(2, own)), None);
        assert_eq!(corrupt(silent(2)), None);
        assert_eq!(corrupt(peer(2, hash(9, 5))), Some(2));
        assert_eq!(corrupt(peer(2, hash(9, 4))), None, "it will compact too");
        assert_eq!(corrupt(peer(2, hash(1, 6))), Some(2));
        let ahead = HashKv {
            revision: 11,
            ..own
        };
        assert_eq!(corrupt(peer(2, ahead)), Some(2));
        let moved = first_corrupt(1, &own, &hash(2, 5), &[]);
        assert_eq!(moved, Some(1), "the leader's own data changed");
    }

    #[test]
    fn errors_of_peers_come_back() {
        let answer = HashAnswer::from_result(Err(EtcdError::FutureRev.into()));
        let error = answer.into_result().expect_err("an error");
        assert!(matches!(error, RequestError::Etcd(EtcdError::FutureRev)));
        assert_eq!(
            HashAnswer::from_result(Ok(hash(7, 3)))
                .into_result()
                .expect("a hash"),
            hash(7, 3)
        );
    }
}
