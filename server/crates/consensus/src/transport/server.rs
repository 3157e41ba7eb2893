//! Accepts the connections of other members.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use metastore_proto::peer;
use tokio::sync::Semaphore;

use super::append::serve_appends;
use super::control::ControlService;
use super::dialer::{Connection, Dialer};
use super::frame::{PROTOCOL, split};
use super::rpc::{CallHandler, serve_calls};
use super::snapshot::SnapshotService;
use super::{BoxedStream, Listener};
use crate::leadership::Contact;
use crate::node::RaftNode;

/// How long a connection may take to say what it is.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that have not yet said what they are.
const NEGOTIATIONS_MAX: usize = 1024;
/// Pause after a failed accept (most likely: no file descriptor is left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What serves other members.
pub(crate) struct PeerServer {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) raft: RaftNode,
    pub(crate) contact: Arc<Contact>,
    pub(crate) control: Arc<ControlService>,
    pub(crate) snapshots: SnapshotService,
}

impl PeerServer {
    /// Accepts for as long as the runtime lives.
    pub(crate) async fn accept(self: Arc<Self>, mut listener: Box<dyn Listener>) {
        let negotiations = Arc::new(Semaphore::new(NEGOTIATIONS_MAX));
        loop {
            let permit = negotiations
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let negotiation = match listener.accept().await {
                Ok(negotiation) => negotiation,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let server = self.clone();
            tokio::spawn(async move {
                let negotiated = tokio::time::timeout(NEGOTIATION_TIMEOUT, negotiation).await;
                if let Ok(Ok(Some(stream))) = negotiated
                    && let Some(introduced) = server.introduce(stream).await
                {
                    drop(permit);
                    server.serve(introduced).await;
                }
            });
        }
    }

    /// The handshake.
    async fn introduce(&self, stream: BoxedStream) -> Option<Introduced> {
        // Counted for the sender once it is known; the hello itself is not.
        let (mut reader, mut writer) = split(stream, Arc::default());
        let hello: peer::Hello = reader.expect(NEGOTIATION_TIMEOUT).await.ok()?;
        let (refusal, reason) = self.judge(&hello);
        if refusal != peer::Refusal::Accepted {
            self.dialer
                .counters
                .connections_refused
                .fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                sender = format_args!("{:x}", hello.sender),
                their_cluster = format_args!("{:x}", hello.cluster_id),
                our_cluster = format_args!("{:x}", self.dialer.identity.cluster_id),
                reason,
                "refused the connection of a peer"
            );
        }
        writer.put(&peer::Welcome {
            refusal: refusal.into(),
            reason,
            protocol: PROTOCOL,
            cluster_id: self.dialer.identity.cluster_id,
            member: self.dialer.identity.member_id,
        });
        writer.flush_within(NEGOTIATION_TIMEOUT).await.ok()?;
        if refusal != peer::Refusal::Accepted {
            writer.close().await;
            return None;
        }
        let counters = self.dialer.counters.peer(hello.sender);
        reader.count_for(counters.clone());
        writer.count_for(counters);
        Some(Introduced {
            connection: Connection { reader, writer },
            sender: hello.sender,
            channel: hello.channel(),
        })
    }

    /// Whether the sender is served. A sender that this member's directory does not know is: this
    /// member may be the one that lags, and the sender has it in its own directory.
    fn judge(&self, hello: &peer::Hello) -> (peer::Refusal, String) {
        let identity = self.dialer.identity;
        if hello.protocol != PROTOCOL {
            let reason = format!("this member speaks protocol {PROTOCOL}");
            (peer::Refusal::Protocol, reason)
        } else if hello.cluster_id != identity.cluster_id {
            let reason = format!("this is cluster {:x}", identity.cluster_id);
            (peer::Refusal::Cluster, reason)
        } else if self.dialer.directory.is_removed(hello.sender) {
            let reason = format!("member {:x} was removed", hello.sender);
            (peer::Refusal::Removed, reason)
        } else if hello.target != identity.member_id {
            let reason = format!("this is member {:x}", identity.member_id);
            (peer::Refusal::Target, reason)
        } else if hello.channel() == peer::Channel::Unspecified {
            (peer::Refusal::Protocol, "unknown channel".into())
        } else {
            (peer::Refusal::Accepted, String::new())
        }
    }

    async fn serve(self: Arc<Self>, introduced: Introduced) {
        let Introduced {
            connection,
            sender,
            channel,
        } = introduced;
        match channel {
            peer::Channel::Append => {
                serve_appends(connection, self.raft.clone(), self.contact.clone()).await;
            }
            peer::Channel::Snapshot => self.snapshots.serve(sender, connection).await,
            peer::Channel::Control => serve_calls(connection, self.control_handler(sender)).await,
            peer::Channel::Application => {
                serve_calls(connection, self.application_handler(sender)).await;
            }
            peer::Channel::Unspecified => {}
        }
    }

    fn control_handler(self: &Arc<Self>, sender: u64) -> CallHandler {
        let server = self.clone();
        Arc::new(move |method, body| {
            let server = server.clone();
            async move {
                // The connection may be older than the removal.
                if server.dialer.directory.is_removed(sender) {
                    return peer::call_answer::Result::Removed(true);
                }
                to_answer(server.control.call(method, body).await)
            }
            .boxed()
        })
    }

    fn application_handler(self: &Arc<Self>, sender: u64) -> CallHandler {
        let handler = self.dialer.handler.clone();
        let directory = self.dialer.directory.clone();
        Arc::new(move |method, body| {
            if directory.is_removed(sender) {
                return futures::future::ready(peer::call_answer::Result::Removed(true)).boxed();
            }
            handler.call(sender, method, body).map(to_answer).boxed()
        })
    }
}

fn to_answer(result: Result<bytes::Bytes, String>) -> peer::call_answer::Result {
    match result {
        Ok(body) => peer::call_answer::Result::Body(body),
        Err(text) => peer::call_answer::Result::Error(text),
    }
}

/// A connection of a member that said who it is.
struct Introduced {
    connection: Connection,
    sender: u64,
    channel: peer::Channel,
}
