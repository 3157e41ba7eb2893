//! A network that can be cut: TCP whose connections turn into black holes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::peers::PeerAddress;
use crate::transport::{BoxedStream, Connector, TcpConnector};

/// Who cannot speak to whom, and where members listen.
#[derive(Default)]
pub(super) struct Network {
    addresses: Mutex<BTreeMap<u64, PeerAddress>>,
    isolated: Mutex<BTreeSet<u64>>,
}

impl Network {
    pub(super) fn set_address(&self, member: u64, address: PeerAddress) {
        self.addresses.lock().insert(member, address);
    }

    pub(super) fn address(&self, member: u64) -> Option<PeerAddress> {
        self.addresses.lock().get(&member).cloned()
    }

    /// Nothing reaches or leaves the member any more.
    pub(super) fn isolate(&self, member: u64) {
        self.isolated.lock().insert(member);
    }

    pub(super) fn heal(&self) {
        self.isolated.lock().clear();
    }

    fn is_cut(&self, left: u64, right: u64) -> bool {
        let isolated = self.isolated.lock();
        isolated.contains(&left) || isolated.contains(&right)
    }

    fn member_at(&self, address: &PeerAddress) -> u64 {
        let addresses = self.addresses.lock();
        addresses
            .iter()
            .find(|(_, candidate)| *candidate == address)
            .map_or(0, |(member, _)| *member)
    }
}

/// Connects for one member.
pub(super) struct CuttableConnector {
    pub(super) network: Arc<Network>,
    pub(super) member: u64,
}

impl Connector for CuttableConnector {
    fn connect(&self, address: PeerAddress) -> BoxFuture<'static, io::Result<BoxedStream>> {
        let network = self.network.clone();
        let from = self.member;
        Box::pin(async move {
            let to = network.member_at(&address);
            if network.is_cut(from, to) {
                // As a lost SYN: no answer.
                return std::future::pending().await;
            }
            let stream = TcpConnector.connect(address).await?;
            Ok(Box::new(Cuttable {
                stream,
                network,
                from,
                to,
                dead: false,
            }) as BoxedStream)
        })
    }
}

/// A connection that was cut stays dead: its bytes are lost.
struct Cuttable {
    stream: BoxedStream,
    network: Arc<Network>,
    from: u64,
    to: u64,
    dead: bool,
}

impl Cuttable {
    fn is_dead(&mut self) -> bool {
        self.dead |= self.network.is_cut(self.from, self.to);
        self.dead
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if result.is_ready() && self.is_dead() {
            buffer.set_filled(filled);
            return Poll::Pending;
        }
        result
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_dead() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
