//! The network between simulated members: byte streams that can be delayed, held and broken.
//!
//! As TCP does it, a cut holds bytes back and loses none: they arrive after the repair, or the
//! connection breaks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use metastore_consensus::{BoxedStream, Connector, Listener, Negotiation, PEER_MAGIC, PeerAddress};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// Bytes on their way in one direction, after which the sender waits.
const PIPE_BYTES_MAX: usize = 256 * 1024;
/// Longest way of a byte without faults, in ticks.
const LATENCY_TICKS_MAX: u64 = 2;
/// How soon a connection attempt that got no answer is repeated.
const CONNECT_INTERVAL: Duration = Duration::from_millis(10);

/// The network of one simulation. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Network {
    state: Arc<Mutex<State>>,
}

struct State {
    random: StdRng,
    now: u64,
    /// Pairs (from, to) between which nothing arrives.
    cut: BTreeSet<(u64, u64)>,
    /// Members whose machine has no power: it does not say goodbye.
    silent: BTreeSet<u64>,
    listeners: BTreeMap<u64, mpsc::UnboundedSender<Stream>>,
    pipes: BTreeMap<u64, Pipe>,
    next_connection: u64,
}

/// One direction of a connection.
struct Pipe {
    from: u64,
    to: u64,
    chunks: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// The writer has closed it: the reader gets the rest, then the end.
    ended: bool,
    /// Nobody reads any more.
    abandoned: bool,
    broken: bool,
    /// How many of the two ends exist.
    ends: u8,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn new(from: u64, to: u64) -> Self {
        Self {
            from,
            to,
            chunks: VecDeque::new(),
            bytes: 0,
            ended: false,
            abandoned: false,
            broken: false,
            ends: 2,
            reader: None,
            writer: None,
        }
    }

    fn break_it(&mut self) {
        self.broken = true;
        self.wake();
    }

    fn wake(&mut self) {
        for waker in self.reader.take().into_iter().chain(self.writer.take()) {
            waker.wake();
        }
    }
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                random: StdRng::seed_from_u64(seed),
                now: 0,
                cut: BTreeSet::new(),
                silent: BTreeSet::new(),
                listeners: BTreeMap::new(),
                pipes: BTreeMap::new(),
                next_connection: 0,
            })),
        }
    }

    /// Makes what has arrived by now readable.
    pub(crate) fn tick(&self, now: u64) {
        let mut state = self.state.lock();
        let State {
            now: clock,
            cut,
            pipes,
            ..
        } = &mut *state;
        *clock = now;
        for pipe in pipes.values_mut() {
            let arrived = pipe.chunks.front().is_some_and(|(at, _)| *at <= now);
            if (arrived || pipe.ended)
                && !cut.contains(&(pipe.from, pipe.to))
                && let Some(waker) = pipe.reader.take()
            {
                waker.wake();
            }
        }
    }

    /// Nothing that `from` sends reaches `to`.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.state.lock().cut.insert((from, to));
    }

    /// Ends a cut. `reset`: connections between the two break; else they go on.
    pub(crate) fn repair(&self, from: u64, to: u64, reset: bool) {
        let mut state = self.state.lock();
        state.cut.remove(&(from, to));
        for pipe in state.pipes.values_mut() {
            let between = [(from, to), (to, from)].contains(&(pipe.from, pipe.to));
            if between && reset {
                pipe.break_it();
            } else {
                pipe.wake();
            }
        }
    }

    pub(crate) fn repair_all(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        for pipe in state.pipes.values_mut() {
            pipe.wake();
        }
    }

    /// The machine loses its power: its peers hear nothing, not even an end.
    pub(crate) fn silence(&self, member: u64) {
        let mut state = self.state.lock();
        state.silent.insert(member);
        state.listeners.remove(&member);
    }

    /// The process is gone, so nobody listens.
    pub(crate) fn stop_listening(&self, member: u64) {
        self.state.lock().listeners.remove(&member);
    }

    /// The member listens (again). Connections from before are unknown to it.
    pub(crate) fn listen(&self, member: u64) -> Box<dyn Listener> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        state.silent.remove(&member);
        state.listeners.insert(member, sender);
        for pipe in state.pipes.values_mut() {
            if pipe.from == member || pipe.to == member {
                pipe.break_it();
            }
        }
        Box::new(Acceptor(receiver))
    }

    pub(crate) fn connector(&self, member: u64) -> Arc<dyn Connector> {
        Arc::new(Dialer {
            network: self.clone(),
            member,
        })
    }

    /// `None`: no answer. An error: refused.
    fn try_connect(&self, from: u64, to: u64) -> Option<io::Result<Stream>> {
        let mut state = self.state.lock();
        let unreachable = state.cut.contains(&(from, to)) || state.cut.contains(&(to, from));
        if unreachable || state.silent.contains(&to) {
            return None;
        }
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let Some(listener) = state.listeners.get(&to).cloned() else {
            return Some(Err(refused()));
        };
        let there = state.next_connection;
        let back = there + 1;
        state.next_connection += 2;
        state.pipes.insert(there, Pipe::new(from, to));
        state.pipes.insert(back, Pipe::new(to, from));
        drop(state);
        let near = Stream {
            network: self.clone(),
            reads: back,
            writes: there,
        };
        let far = Stream {
            network: self.clone(),
            reads: there,
            writes: back,
        };
        Some(listener.send(far).map(|()| near).map_err(|_| refused()))
    }
}

struct Dialer {
    network: Network,
    member: u64,
}

impl Connector for Dialer {
    fn connect(&self, address: PeerAddress) -> BoxFuture<'static, io::Result<BoxedStream>> {
        let PeerAddress::Tcp { port, .. } = address else {
            panic!("the simulation has no Unix sockets");
        };
        let (network, from, to) = (self.network.clone(), self.member, u64::from(port));
        Box::pin(async move {
            loop {
                if let Some(result) = network.try_connect(from, to) {
                    return result.map(|stream| Box::new(stream) as BoxedStream);
                }
                // The attempt is repeated, as TCP does with a SYN that is not answered.
                tokio::time::sleep(CONNECT_INTERVAL).await;
            }
        })
    }
}

struct Acceptor(mpsc::UnboundedReceiver<Stream>);

impl Listener for Acceptor {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Negotiation>> {
        Box::pin(async move {
            let Some(mut stream) = self.0.recv().await else {
                return std::future::pending().await;
            };
            Ok(Box::pin(async move {
                let mut magic = [0; PEER_MAGIC.len()];
                stream.read_exact(&mut magic).await?;
                assert_eq!(magic, PEER_MAGIC);
                Ok(Some(Box::new(stream) as BoxedStream))
            }) as Negotiation)
        })
    }
}

/// One end of a connection.
struct Stream {
    network: Network,
    reads: u64,
    writes: u64,
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.network.state.lock();
        let State {
            now, cut, pipes, ..
        } = &mut *state;
        let pipe = pipes
            .get_mut(&self.reads)
            .expect("it lives as long as its ends");
        if pipe.broken {
            return Poll::Ready(Err(reset()));
        }
        if !cut.contains(&(pipe.from, pipe.to)) {
            let mut any = false;
            while buffer.remaining() > 0 {
                let Some((at, chunk)) = pipe.chunks.front_mut() else {
                    break;
                };
                if *at > *now {
                    break;
                }
                let length = chunk.len().min(buffer.remaining());
                buffer.put_slice(&chunk[..length]);
                chunk.drain(..length);
                pipe.bytes -= length;
                any = true;
                if chunk.is_empty() {
                    pipe.chunks.pop_front();
                }
            }
            if any {
                if let Some(waker) = pipe.writer.take() {
                    waker.wake();
                }
                return Poll::Ready(Ok(()));
            }
            if pipe.ended && pipe.chunks.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        pipe.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.state.lock();
        let State {
            random, now, pipes, ..
        } = &mut *state;
        let pipe = pipes
            .get_mut(&self.writes)
            .expect("it lives as long as its ends");
        if pipe.broken || pipe.ended || pipe.abandoned {
            return Poll::Ready(Err(reset()));
        }
        let length = bytes.len().min(PIPE_BYTES_MAX - pipe.bytes);
        if length == 0 && !bytes.is_empty() {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let before = pipe.chunks.back().map_or(0, |(at, _)| *at);
        let at = before.max(*now + random.random_range(0..=LATENCY_TICKS_MAX));
        pipe.chunks.push_back((at, bytes[..length].to_vec()));
        pipe.bytes += length;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(pipe) = self.network.state.lock().pipes.get_mut(&self.writes) {
            pipe.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.network.state.lock();
        let State { silent, pipes, .. } = &mut *state;
        for id in [self.writes, self.reads] {
            let Some(pipe) = pipes.get_mut(&id) else {
                continue;
            };
            let (own, other) = if id == self.writes {
                pipe.writer = None;
                (pipe.from, &mut pipe.ended)
            } else {
                pipe.reader = None;
                (pipe.to, &mut pipe.abandoned)
            };
            // A machine without power does not say goodbye.
            *other |= !silent.contains(&own);
            pipe.ends -= 1;
            if pipe.ends == 0 {
                pipes.remove(&id);
            } else {
                pipe.wake();
            }
        }
    }
}
