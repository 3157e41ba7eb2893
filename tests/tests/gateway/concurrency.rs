//! The Lock and Election services.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use futures::StreamExt;
use metastore_proto::etcdserverpb as pb;
use metastore_proto::v3electionpb::election_client::ElectionClient;
use metastore_proto::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use metastore_proto::v3lockpb::lock_client::LockClient;
use metastore_proto::v3lockpb::{LockRequest, UnlockRequest};
use metastore_tests::programs::tool;
use metastore_tests::{Client, eventually};
use tonic::Status;
use tonic::transport::Channel;

use super::*;

/// Longest wait for what takes milliseconds.
const SOON: Duration = Duration::from_secs(20);

/// One store, and what it said.
#[derive(Clone)]
struct Session {
    client: Client,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn said(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn revision(header: Option<pb::ResponseHeader>) -> i64 {
    let header = header.expect("a header");
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
    header.revision
}

impl Session {
    fn new(member: &Member) -> Self {
        let client = member.client();
        Self {
            lock: LockClient::new(client.channel.clone()),
            election: ElectionClient::new(client.channel.clone()),
            client,
        }
    }

    async fn grant(&self, id: i64) -> i64 {
        let request = pb::LeaseGrantRequest { ttl: 60, id };
        let granted = self
            .client
            .lease
            .clone()
            .lease_grant(request)
            .await
            .unwrap();
        granted.into_inner().id
    }

    async fn revoke(&self, id: i64) {
        let request = pb::LeaseRevokeRequest { id };
        self.client
            .lease
            .clone()
            .lease_revoke(request)
            .await
            .unwrap();
    }

    async fn lock(&self, name: &[u8], lease: i64) -> Result<(String, i64), Status> {
        let request = LockRequest {
            name: name.to_vec().into(),
            lease,
        };
        let locked = self.lock.clone().lock(request).await?.into_inner();
        Ok((text(&locked.key), revision(locked.header)))
    }

    async fn unlock(&self, key: &[u8]) -> Result<i64, Status> {
        let request = UnlockRequest {
            key: key.to_vec().into(),
        };
        let unlocked = self.lock.clone().unlock(request).await?.into_inner();
        Ok(revision(unlocked.header))
    }

    /// Waits until the queue below `name` has this many waiters, the owner included.
    async fn waiters(&self, name: &str, wanted: i64) {
        eventually("the waiters are queued", SOON, || async {
            let request = pb::RangeRequest {
                key: format!("{name}/").into(),
                range_end: format!("{name}0").into(),
                count_only: true,
                ..Default::default()
            };
            let found = self.client.kv.clone().range(request).await;
            let count = found
                .map_err(|status| status.to_string())?
                .into_inner()
                .count;
            if count == wanted {
                Ok(())
            } else {
                Err(format!("{count} waiters"))
            }
        })
        .await;
    }

    fn lock_in_background(
        &self,
        name: &'static [u8],
        lease: i64,
    ) -> tokio::task::JoinHandle<Result<(String, i64), Status>> {
        let session = self.clone();
        tokio::spawn(async move { session.lock(name, lease).await })
    }

    async fn campaign(
        &self,
        name: &str,
        lease: i64,
        value: &str,
    ) -> Result<(LeaderKey, i64), Status> {
        let request = CampaignRequest {
            name: name.to_owned().into(),
            lease,
            value: value.to_owned().into(),
        };
        let won = self.election.clone().campaign(request).await?.into_inner();
        Ok((won.leader.expect("a leader key"), revision(won.header)))
    }

    async fn leader(&self, name: &str) -> String {
        let request = LeaderRequest {
            name: name.to_owned().into(),
        };
        match self.election.clone().leader(request).await {
            Ok(found) => {
                let found = found.into_inner();
                let pair = found.kv.expect("a leader").decode().unwrap();
                format!("{pair:?} at {}", revision(found.header))
            }
            Err(status) => said(&status),
        }
    }

    async fn proclaim(&self, leader: Option<LeaderKey>, value: &str) -> String {
        let request = ProclaimRequest {
            leader,
            value: value.to_owned().into(),
        };
        match self.election.clone().proclaim(request).await {
            Ok(done) => format!("at {}", revision(done.into_inner().header)),
            Err(status) => said(&status),
        }
    }

    async fn resign(&self, leader: Option<LeaderKey>) -> String {
        match self.election.clone().resign(ResignRequest { leader }).await {
            Ok(done) => format!("at {}", revision(done.into_inner().header)),
            Err(status) => said(&status),
        }
    }
}

fn outcome(result: Result<(String, i64), Status>) -> String {
    match result {
        Ok((key, revision)) => format!("{key} at {revision}"),
        Err(status) => said(&status),
    }
}

/// Every step of a lock, with leases whose ids are known.
async fn lock_transcript(member: &Member) -> Vec<String> {
    let session = Session::new(member);
    let mut lines = Vec::new();
    for id in 1..=4 {
        session.grant(0x1000 + id).await;
    }
    for name in [&b"name"[..], b"", b"\xff\xff", b"a/b"] {
        lines.push(outcome(session.lock(name, 0x1001).await));
    }
    lines.push(outcome(session.lock(b"name", 0x1001).await));
    lines.push(outcome(session.lock(b"name", 0x7777).await));
    lines.push(outcome(session.lock(b"name", -5).await));

    // Two wait; they get the lock in the order of their coming.
    let second = session.lock_in_background(b"name", 0x1002);
    session.waiters("name", 2).await;
    let third = session.lock_in_background(b"name", 0x1003);
    session.waiters("name", 3).await;
    lines.push(format!("{:?}", session.unlock(b"name/1001").await.unwrap()));
    lines.push(outcome(second.await.unwrap()));
    session.revoke(0x1002).await;
    lines.push(outcome(third.await.unwrap()));

    // A waiter whose lease ends hears of it when its turn would come.
    let fourth = session.lock_in_background(b"name", 0x1004);
    session.waiters("name", 2).await;
    session.revoke(0x1004).await;
    session.waiters("name", 1).await;
    lines.push(format!("{:?}", session.unlock(b"name/1003").await.unwrap()));
    lines.push(outcome(fourth.await.unwrap()));

    lines.push(format!("{:?}", session.unlock(b"nothing").await.unwrap()));
    lines.push(said(&session.unlock(b"").await.unwrap_err()));
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_answer_as_etcd() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        assert_equal_transcripts(&lock_transcript(&etcd).await, &lock_transcript(&ours).await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_without_lease_gets_one_that_ends() {
    within(async {
        for member in both(&[]).await {
            let session = Session::new(&member);
            let (key, _) = session.lock(b"name", 0).await.unwrap();
            let lease = key.strip_prefix("name/").expect("the name is the prefix");
            let id = i64::from_str_radix(lease, 16).expect("the lease in hexadecimal");
            let request = pb::LeaseTimeToLiveRequest { id, keys: true };
            let mut leases = session.client.lease.clone();
            let lease = leases.lease_time_to_live(request).await.unwrap();
            let lease = lease.into_inner();
            assert_eq!(lease.granted_ttl, 60);
            assert_eq!(lease.keys, [key.into_bytes()]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_goes_away_leaves_the_queue() {
    within(async {
        for member in both(&[]).await {
            let session = Session::new(&member);
            session.lock(b"name", 0).await.unwrap();
            let waiter = session.lock_in_background(b"name", 0);
            session.waiters("name", 2).await;
            waiter.abort();
            session.waiters("name", 1).await;

            let candidate = session.clone();
            session.campaign("seat", 0, "first").await.unwrap();
            let candidate =
                tokio::spawn(async move { candidate.campaign("seat", 0, "second").await });
            session.waiters("seat", 2).await;
            candidate.abort();
            session.waiters("seat", 1).await;
        }
    })
    .await;
}

async fn election_transcript(member: &Member) -> Vec<String> {
    let session = Session::new(member);
    let mut lines = vec![session.leader("seat").await];
    for id in 1..=3 {
        session.grant(0x2000 + id).await;
    }
    let request = LeaderRequest {
        name: "seat".into(),
    };
    // Its headers come with the first leader.
    let observer = session.clone();
    let observed = tokio::spawn(async move { observer.election.clone().observe(request).await });
    let (first, at) = session.campaign("seat", 0x2001, "a").await.unwrap();
    lines.push(format!("{first:?} at {at}"));
    let mut observed = observed.await.unwrap().unwrap().into_inner();
    let mut next = async || {
        let seen = tokio::time::timeout(SOON, observed.next()).await;
        let seen = seen.expect("an observation in time").unwrap().unwrap();
        let pair = seen.kv.expect("a leader").decode().unwrap();
        format!("observed {pair:?} at {}", revision(seen.header))
    };
    lines.push(next().await);
    lines.push(session.leader("seat").await);
    lines.push(session.proclaim(Some(first.clone()), "b").await);
    lines.push(next().await);
    // The same lease again: with the same value nothing happens, with another it is proclaimed.
    for value in ["b", "c"] {
        let (again, at) = session.campaign("seat", 0x2001, value).await.unwrap();
        lines.push(format!("{again:?} at {at}"));
    }
    lines.push(next().await);

    let candidate = session.clone();
    let second = tokio::spawn(async move { candidate.campaign("seat", 0x2002, "d").await });
    session.waiters("seat", 2).await;
    lines.push(session.resign(Some(first.clone())).await);
    let (second, at) = second.await.unwrap().unwrap();
    lines.push(format!("{second:?} at {at}"));
    lines.push(next().await);

    // Who has resigned cannot speak for the seat, and resigning again changes nothing.
    lines.push(session.proclaim(Some(first.clone()), "x").await);
    lines.push(session.resign(Some(first)).await);
    lines.push(session.proclaim(None, "x").await);
    lines.push(session.resign(None).await);
    let nobody = LeaderKey {
        lease: 0x2002,
        ..Default::default()
    };
    lines.push(session.proclaim(Some(nobody.clone()), "x").await);
    lines.push(session.resign(Some(nobody)).await);

    session.revoke(0x2002).await;
    lines.push(session.leader("seat").await);
    // Nobody stands: the observer waits for the next one.
    let (third, at) = session.campaign("seat", 0x2003, "").await.unwrap();
    lines.push(format!("{third:?} at {at}"));
    lines.push(next().await);
    let unknown = session.campaign("seat", 0x7777, "x").await.unwrap_err();
    lines.push(said(&unknown));
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elections_answer_as_etcd() {
    within(async {
        let [etcd, ours] = both(&[]).await;
        assert_equal_transcripts(
            &election_transcript(&etcd).await,
            &election_transcript(&ours).await,
        );
    })
    .await;
}

/// `etcdctl lock` and `elect` are made of the Go package that the services imitate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_go_package_and_the_services_contend_for_the_same_names() {
    within(async {
        let member = Member::start(subject()).await;
        let session = Session::new(&member);
        let (key, _) = session.lock(b"name", 0).await.unwrap();
        let mut etcdctl = Command::new(tool("etcdctl"))
            .args(["--endpoints", &member.endpoint(), "lock", "name"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        session.waiters("name", 2).await;
        session.unlock(key.as_bytes()).await.unwrap();
        let mut owned = String::new();
        BufReader::new(etcdctl.stdout.take().unwrap())
            .read_line(&mut owned)
            .unwrap();
        assert!(owned.starts_with("name/"), "{owned}");
        let ours = session.lock_in_background(b"name", 0);
        session.waiters("name", 2).await;
        assert!(!ours.is_finished(), "etcdctl has the lock");
        session.unlock(owned.trim().as_bytes()).await.unwrap();
        ours.await.unwrap().unwrap();
        etcdctl.kill().unwrap();
        etcdctl.wait().unwrap();
    })
    .await;
}
