//! One running member: what every service shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metastore_auth::Identity;
use metastore_consensus::state_machine::LogPosition;
use metastore_consensus::{Consensus, ConsensusStatus, ProposeError, ReadIndexError};
use metastore_proto::error_text::EtcdError;
use metastore_proto::etcdserverpb::ResponseHeader;
use metastore_proto::internal::{Command, command::Request};
use metastore_store::{CommandResponse, Reader};
use prost::Message;
use tokio::sync::{Semaphore, watch};

use crate::application::{Application, Applied, Response};
use crate::auth::Credentials;
use crate::client_limits::{ClientLimits, ListBudget};
use crate::config::Config;
use crate::error::RequestError;
use crate::observe::metrics::{self, METRICS};
use crate::observe::traces;
use crate::peer_activity::PeerActivity;
use crate::peer_service::{self, Method};
use crate::request_size;
use crate::unconfirmed_reads::UnconfirmedReads;

/// Entries that may be committed and not yet applied before new requests are refused.
const APPLY_BACKLOG_ENTRIES_MAX: u64 = 5000;
/// The same for revokes of leases when the gate [`PRIORITY_GATE`] is on.
const PRIORITY_BACKLOG_ENTRIES_MAX: u64 = 2 * APPLY_BACKLOG_ENTRIES_MAX;
const PRIORITY_GATE: &str = "PriorityRequest";
/// What gRPC adds to a message of the largest request; etcd's `grpcOverheadBytes`.
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;
/// etcd's `ReqTimeout` without the elections: queueing, computation and disk.
const REQUEST_TIMEOUT_BASE: Duration = Duration::from_secs(5);
/// Pause before a read asks again for a leader that it could not reach.
const LEADER_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// One running member.
pub struct Node {
    /// The effective configuration.
    pub config: Config,
    /// This member's id.
    pub member_id: u64,
    /// The cluster's id.
    pub cluster_id: u64,
    /// The state machine.
    pub application: Arc<Application>,
    /// Consensus among the members.
    pub consensus: Consensus,
    /// Set when the server stops.
    pub stopping: watch::Receiver<bool>,
    /// Since when each other member answers.
    pub peers: PeerActivity,
    /// Held while this member defragments its store.
    pub defragmenting: tokio::sync::Mutex<()>,
    /// What one client may use; nothing: as much as it likes.
    pub client_limits: Option<Arc<ClientLimits>>,
    /// What large lists may use; nothing: as much as they need.
    pub list_budget: Option<ListBudget>,
    /// Calls that the JSON gateway may make at a time: to etcd's gRPC server its gateway is one client on
    /// one connection, whose limit of streams all its requests share.
    pub gateway_streams: Arc<Semaphore>,
    /// Linearizable reads that wait for a leader.
    pub unconfirmed_reads: Arc<UnconfirmedReads>,
    status: watch::Receiver<ConsensusStatus>,
    elections: Elections,
}

/// A proposal that has no result yet, for the metrics.
struct Pending {
    succeeded: bool,
}

impl Pending {
    fn start() -> Self {
        METRICS.proposals_pending.inc();
        Self { succeeded: false }
    }

    fn end<T, E>(mut self, result: Result<T, E>) -> Result<T, E> {
        self.succeeded = result.is_ok();
        result
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        METRICS.proposals_pending.dec();
        if !self.succeeded {
            METRICS.proposals_failed.inc();
        }
    }
}

/// When leadership last changed, to choose between etcd's time-out texts.
#[derive(Default)]
struct Elections {
    last_elected: parking_lot::Mutex<Option<Instant>>,
}

impl Node {
    /// A node over its running parts.
    pub fn new(
        config: Config,
        member_id: u64,
        cluster_id: u64,
        application: Arc<Application>,
        consensus: Consensus,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            client_limits: ClientLimits::new(&config),
            list_budget: ListBudget::new(&config),
            gateway_streams: Arc::new(Semaphore::new(config.max_concurrent_streams as usize)),
            config,
            member_id,
            cluster_id,
            status: consensus.watch_status(),
            application,
            consensus,
            stopping,
            elections: Elections::default(),
            unconfirmed_reads: Arc::default(),
            peers: PeerActivity::default(),
            defragmenting: tokio::sync::Mutex::default(),
        }
    }

    /// Where consensus stands.
    pub fn status(&self) -> ConsensusStatus {
        self.status.borrow().clone()
    }

    /// The current term; cheap.
    pub fn term(&self) -> u64 {
        self.consensus.term()
    }

    /// The leader that this member has been in contact with; cheap.
    pub fn leader(&self) -> Option<u64> {
        self.status.borrow().leader
    }

    /// Whether this member leads; cheap.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.member_id)
    }

    /// Ends when the server stops.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.clone();
        async move {
            // An error means that the sender is gone: stopped as well.
            let _ = stopping.wait_for(|stopping| *stopping).await.map(|_| ());
        }
    }

    /// Waits; false when the server stops meanwhile.
    pub async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.stopped() => false,
        }
    }

    /// Changes of [`Node::status`].
    pub fn watch_status(&self) -> watch::Receiver<ConsensusStatus> {
        self.status.clone()
    }

    /// Notes that a leader was elected now.
    pub fn note_election(&self) {
        *self.elections.last_elected.lock() = Some(Instant::now());
    }

    /// Reads of the published state.
    pub fn reader(&self) -> Arc<Reader> {
        self.application.reader()
    }

    /// Whether this member is a learner.
    pub fn is_learner(&self) -> bool {
        self.application.directory.is_learner(self.member_id)
    }

    /// The longest a proposal or a linearizable read may take: etcd's `ReqTimeout`.
    pub fn request_timeout(&self) -> Duration {
        REQUEST_TIMEOUT_BASE + 2 * self.config.election_timeout
    }

    /// The largest message that a client may send.
    pub fn receive_bytes_max(&self) -> usize {
        self.config.max_request_bytes + GRPC_OVERHEAD_BYTES
    }

    /// The last entry that this member knows to be committed, as of now.
    pub fn committed(&self) -> Option<LogPosition> {
        let term = self.term();
        let index = self.consensus.committed_index();
        Some(LogPosition { term, index })
    }

    /// A header with the current revision.
    pub fn header(&self) -> ResponseHeader {
        self.header_at(self.reader().revision())
    }

    /// A header with a given revision.
    pub fn header_at(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: self.term(),
        }
    }

    /// Fills the fields of a header that only the member knows.
    pub fn fill(&self, header: &mut Option<ResponseHeader>) {
        let header = header.get_or_insert_with(ResponseHeader::default);
        header.cluster_id = self.cluster_id;
        header.member_id = self.member_id;
        header.raft_term = self.term();
        if header.revision == 0 {
            header.revision = self.reader().revision();
        }
    }

    /// Waits until this member has applied everything that was committed when the call began.
    ///
    /// # Errors
    /// etcd's `leader changed` when leadership moved meanwhile, `request timed out` without a
    /// leader for the whole request time.
    pub async fn linearize(&self) -> Result<(), RequestError> {
        let started = Instant::now();
        let outcome = tokio::time::timeout(self.request_timeout(), self.confirm()).await;
        METRICS
            .linearizable_read_wait
            .observe(started.elapsed().as_secs_f64());
        match outcome {
            Ok(result) => Ok(result?),
            Err(_) => Err(EtcdError::Timeout.into()),
        }
    }

    /// [`Node::linearize`] for a question that etcd sends through its log although it changes nothing: it
    /// is refused, counted and given up as a proposal of that `kind` is.
    ///
    /// # Errors
    /// As [`Node::propose`].
    pub async fn linearize_as_proposal(&self, kind: usize) -> Result<(), RequestError> {
        self.admit_backlog(APPLY_BACKLOG_ENTRIES_MAX)?;
        let started = Instant::now();
        let pending = Pending::start();
        let attempt = async {
            loop {
                match self.confirm().await {
                    // A proposal goes to whoever leads.
                    Err(EtcdError::LeaderChanged) => self.leader_or_pause().await?,
                    result => return result,
                }
            }
        };
        let result = match tokio::time::timeout(self.request_timeout(), attempt).await {
            Ok(result) => result.map_err(RequestError::from),
            Err(_) if self.leader().is_none() => Err(RequestError::NotProposed),
            Err(_) => Err(self.timeout_error(started).into()),
        };
        let result = pending.end(result);
        METRICS
            .request_duration
            .observe(kind, result.is_ok(), started.elapsed().as_secs_f64());
        result
    }

    /// One confirmation of the leader, and the wait for what it says to be applied. Goes on until there is
    /// a leader.
    async fn confirm(&self) -> Result<(), EtcdError> {
        loop {
            match self.consensus.read_index().await {
                Ok(read_index) => {
                    self.unconfirmed_reads.end();
                    self.consensus.wait_applied(read_index.index).await;
                    return Ok(());
                }
                Err(ReadIndexError::LeaderChanged) => {
                    self.unconfirmed_reads.end();
                    return Err(EtcdError::LeaderChanged);
                }
                Err(ReadIndexError::Stopped) => return Err(EtcdError::Stopped),
                Err(ReadIndexError::NoLeader | ReadIndexError::TimedOut) => {
                    self.unconfirmed_reads.begin(self.request_timeout());
                    Box::pin(self.leader_or_pause()).await?;
                }
            }
        }
    }

    async fn leader_or_pause(&self) -> Result<(), EtcdError> {
        if *self.stopping.borrow() {
            return Err(EtcdError::Stopped);
        }
        let mut status = self.status.clone();
        status.mark_unchanged();
        // Either consensus says something new, or it is time to ask again anyway.
        let _ = tokio::time::timeout(LEADER_RETRY_INTERVAL, status.changed()).await;
        Ok(())
    }

    /// etcd's choice among its time-out texts (`parseProposeCtxErr`).
    fn timeout_error(&self, started: Instant) -> EtcdError {
        let election = self.config.election_timeout;
        if let Some(elected) = *self.elections.last_elected.lock() {
            let leader_lost = elected.checked_sub(2 * election);
            if leader_lost.is_some_and(|lost| started > lost) && started < elected {
                return EtcdError::TimeoutDueToLeaderFail;
            }
        }
        let status = self.status();
        match status.leader {
            Some(leader) if leader == self.member_id => {
                let quorum = status.voters.len() / 2 + 1;
                let connected = self.connected_since(started.elapsed(), &status.voters);
                if connected < quorum {
                    EtcdError::TimeoutDueToConnectionLost
                } else {
                    EtcdError::Timeout
                }
            }
            Some(leader)
                if self
                    .peers
                    .active_for(leader)
                    .is_none_or(|age| age < started.elapsed()) =>
            {
                EtcdError::TimeoutDueToConnectionLost
            }
            _ => EtcdError::Timeout,
        }
    }

    /// Refuses a request when too much is committed and not yet applied.
    fn admit(&self, request: &Request) -> Result<(), EtcdError> {
        // A revoke frees what weighs on an overloaded member.
        let has_priority = matches!(request, Request::LeaseRevoke(_))
            && self.config.feature_gates.is_enabled(PRIORITY_GATE);
        self.admit_backlog(match has_priority {
            true => PRIORITY_BACKLOG_ENTRIES_MAX,
            false => APPLY_BACKLOG_ENTRIES_MAX,
        })
    }

    fn admit_backlog(&self, entries_max: u64) -> Result<(), EtcdError> {
        let backlog = self
            .consensus
            .committed_index()
            .saturating_sub(self.consensus.applied_index());
        if backlog <= entries_max {
            return Ok(());
        }
        Err(EtcdError::RequestTooManyRequests)
    }

    /// [`Node::propose_as`] for a request of this member's own.
    ///
    /// # Errors
    /// As [`Node::propose_as`].
    pub async fn propose(&self, request: Request) -> Result<Response, RequestError> {
        self.propose_as(request, &Credentials::None).await
    }

    /// Replicates a client's request and answers with what applying it on this member gave. Whether
    /// the client may is decided when it is applied.
    ///
    /// # Errors
    /// etcd's error of the request itself, or `too many requests`, `invalid auth token`, `request is
    /// too large`, `request timed out…`; after a time-out the outcome is unknown.
    pub async fn propose_as(
        &self,
        request: Request,
        credentials: &Credentials,
    ) -> Result<Response, RequestError> {
        self.admit(&request)?;
        let kind = metrics::request_kind(&request);
        let started = Instant::now();
        let encoded = match self.identify(credentials).await {
            Ok(identity) => self.encode(request, identity),
            Err(error) => Err(error.into()),
        };
        let result = match encoded {
            Ok((request_id, bytes)) => self.replicate(request_id, bytes, started).await,
            Err(error) => Err(error),
        };
        METRICS
            .request_duration
            .observe(kind, result.is_ok(), started.elapsed().as_secs_f64());
        Ok(result??)
    }

    /// [`Node::propose`] without a time-out: who waits decides how long. For changes of members, which etcd
    /// does not count as proposals.
    ///
    /// # Errors
    /// As [`Node::propose_as`], without `request timed out`.
    pub async fn propose_patiently(&self, request: Request) -> Result<Response, RequestError> {
        self.admit(&request)?;
        let (request_id, bytes) = self.encode(request, None)?;
        let on_its_way = AtomicBool::new(false);
        let applied: Result<Applied, RequestError> = tokio::select! {
            applied = self.propose_encoded(bytes, request_id, &on_its_way) => applied,
            () = self.stopped() => Err(EtcdError::Stopped.into()),
        };
        Ok(applied??)
    }

    /// The command for a request, and its id.
    fn encode(
        &self,
        request: Request,
        identity: Option<Identity>,
    ) -> Result<(u64, Bytes), RequestError> {
        let request_id = self.application.waiters.next_id();
        let mut command = Command {
            origin_member: self.member_id,
            request_id,
            ..Command::default()
        };
        if let Some(identity) = identity {
            command.username = identity.username.as_ref().to_owned();
            command.auth_revision = identity.revision;
        }
        let header_bytes = command.encoded_len();
        let etcd_header_bytes = request_size::header(&command);
        command.request = Some(request);
        let bytes = Bytes::from(command.encode_to_vec());
        if bytes.len() - header_bytes + etcd_header_bytes > self.config.max_request_bytes {
            return Err(EtcdError::RequestTooLarge.into());
        }
        Ok((request_id, bytes))
    }

    /// What applying the command gave, or why nobody knows.
    async fn replicate(
        &self,
        request_id: u64,
        bytes: Bytes,
        started: Instant,
    ) -> Result<Applied, RequestError> {
        let pending = Pending::start();
        let on_its_way = AtomicBool::new(false);
        match tokio::time::timeout(
            self.request_timeout(),
            self.propose_encoded(bytes, request_id, &on_its_way),
        )
        .await
        {
            Ok(applied) => {
                traces::event("Receive raft result");
                pending.end(applied)
            }
            Err(_) if !on_its_way.load(Ordering::Relaxed) => Err(RequestError::NotProposed),
            Err(_) => Err(self.timeout_error(started).into()),
        }
    }

    async fn propose_encoded(
        &self,
        bytes: Bytes,
        request_id: u64,
        on_its_way: &AtomicBool,
    ) -> Result<Applied, RequestError> {
        loop {
            on_its_way.store(true, Ordering::Relaxed);
            traces::event("Send raft proposal");
            match self.consensus.propose(bytes.clone()).await {
                Ok(reply) => {
                    return Ok(*reply
                        .downcast::<Applied>()
                        .expect("the application answers every command with Applied"));
                }
                Err(ProposeError::NotLeader {
                    leader: Some(leader),
                }) if leader != self.member_id => {
                    let forwarded = Box::pin(self.forward(leader, &bytes, request_id)).await?;
                    if let Some(applied) = forwarded {
                        return Ok(applied);
                    }
                }
                Err(ProposeError::NotLeader { .. }) => {}
                Err(ProposeError::Stopped) => return Err(EtcdError::Stopped.into()),
                // The entry may or may not come to be committed: only time can tell, and the
                // request's own time-out ends the wait.
                Err(ProposeError::Unknown) => std::future::pending::<()>().await,
            }
            on_its_way.store(false, Ordering::Relaxed);
            // Without a leader nothing is sent: a time-out then tells that nothing was.
            while {
                Box::pin(self.leader_or_pause()).await?;
                self.leader().is_none()
            } {}
        }
    }

    /// Sends a proposal to the leader and waits for its apply here. `None`: the leader surely did
    /// not take it, so it may be sent again.
    async fn forward(
        &self,
        leader: u64,
        bytes: &Bytes,
        request_id: u64,
    ) -> Result<Option<Applied>, RequestError> {
        let mut waiter = self.application.waiters.register(request_id);
        let call = self.consensus.call_peer(
            leader,
            Method::Propose as u32,
            bytes.clone(),
            self.request_timeout(),
        );
        tokio::pin!(call);
        let answer = tokio::select! {
            biased;
            applied = waiter.wait() => {
                return applied.map(Some).ok_or_else(|| EtcdError::Stopped.into());
            }
            answer = &mut call => answer,
        };
        match peer_service::decode_propose_answer(answer) {
            peer_service::ProposeAnswer::Accepted => {}
            peer_service::ProposeAnswer::Refused => return Ok(None),
            // Lost connection or deadline: it may have been taken.
            peer_service::ProposeAnswer::Unknown => {}
        }
        waiter
            .wait()
            .await
            .map(Some)
            .ok_or_else(|| EtcdError::Stopped.into())
    }

    /// [`Node::propose_as`] for commands of the store.
    ///
    /// # Errors
    /// As [`Node::propose_as`].
    pub async fn propose_store(
        &self,
        request: Request,
        credentials: &Credentials,
    ) -> Result<CommandResponse, RequestError> {
        match self.propose_as(request, credentials).await? {
            Response::Store(response) => Ok(response),
            other => Err(RequestError::Unknown(format!(
                "a store command was answered by {other:?}"
            ))),
        }
    }
}
