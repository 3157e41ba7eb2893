//! The other members as this one speaks to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metastore_proto::peer;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::control::{self, method};
use super::dialer::Dialer;
use super::rpc::RpcClient;
use crate::consensus::ReadIndex;
use crate::counters::PeerCounters;
use crate::error::{PeerError, ReadIndexError};
use crate::raft_types::LogId;

/// All that is shared between the connections to one member.
pub(crate) struct Link {
    pub(crate) member: u64,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) counters: Arc<PeerCounters>,
    control: RpcClient,
    application: RpcClient,
    matched: Mutex<Matched>,
}

/// Last entry that the member acknowledged to this leader of this term.
#[derive(Default)]
struct Matched {
    term: u64,
    index: Option<u64>,
}

impl Link {
    /// A control call. A time-out gives the connection up: a peer that answers no vote within it
    /// is better met again on a new connection.
    pub(crate) async fn control(
        &self,
        method: u32,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let result = self.control.call(method, body, timeout).await;
        match &result {
            Err(PeerError::TimedOut) => self.control.reset(),
            Err(PeerError::Removed) => self.dialer.handler.removed(),
            _ => {}
        }
        result
    }

    pub(crate) fn note_matched(&self, term: u64, matched: Option<LogId>) {
        let index = matched.map(|log_id| log_id.index);
        let mut before = self.matched.lock();
        if before.term != term {
            *before = Matched { term, index };
        } else {
            before.index = before.index.max(index);
        }
    }

    pub(crate) fn matched_index(&self, term: u64) -> Option<u64> {
        let matched = self.matched.lock();
        matched.index.filter(|_| matched.term == term)
    }
}

/// The links to all members that were spoken to.
pub(crate) struct Peers {
    dialer: Arc<Dialer>,
    runtime: Handle,
    links: Mutex<BTreeMap<u64, Arc<Link>>>,
}

impl Peers {
    /// `runtime` is where connections live.
    pub(crate) fn new(dialer: Arc<Dialer>, runtime: Handle) -> Self {
        Self {
            dialer,
            runtime,
            links: Mutex::new(BTreeMap::new()),
        }
    }

    pub(crate) fn link(&self, member: u64) -> Arc<Link> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(&member) {
            return link.clone();
        }
        let _on_the_raft_runtime = self.runtime.enter();
        let start = |channel| RpcClient::start(self.dialer.clone(), member, channel);
        let link = Arc::new(Link {
            member,
            dialer: self.dialer.clone(),
            counters: self.dialer.counters.peer(member),
            control: start(peer::Channel::Control),
            application: start(peer::Channel::Application),
            matched: Mutex::default(),
        });
        links.insert(member, link.clone());
        link
    }

    /// Drops the links to removed members.
    pub(crate) fn forget_removed(&self) {
        self.links
            .lock()
            .retain(|member, _| !self.dialer.directory.is_removed(*member));
    }

    pub(crate) async fn call(
        &self,
        member: u64,
        method: u32,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let link = self.link(member);
        link.application.call(method, body, timeout).await
    }

    /// Asks whether this member is still one; a refusal reaches the owner on its own.
    pub(crate) async fn ping(&self, member: u64) {
        let link = self.link(member);
        let timeout = self.dialer.timeouts.answer;
        if let Err(error) = link.control(method::PING, Bytes::new(), timeout).await {
            tracing::debug!(peer = format_args!("{member:x}"), %error, "no answer to a ping");
        }
    }

    pub(crate) async fn read_index(
        &self,
        leader: u64,
        timeout: Duration,
    ) -> Result<ReadIndex, ReadIndexError> {
        let link = self.link(leader);
        match link
            .control(method::READ_INDEX, Bytes::new(), timeout)
            .await
        {
            Ok(body) => control::decode(body)
                .map_err(|_| ReadIndexError::NoLeader)
                .and_then(control::read_index_from_message),
            Err(PeerError::Stopped) => Err(ReadIndexError::Stopped),
            Err(PeerError::Unreachable { .. } | PeerError::Removed) => {
                Err(ReadIndexError::NoLeader)
            }
            Err(_) => Err(ReadIndexError::TimedOut),
        }
    }
}
