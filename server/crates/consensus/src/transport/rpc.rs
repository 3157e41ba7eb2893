//! Calls on one connection: many at a time, answered in any order.
//!
//! Frames that are ready together leave in one write, so under load a call costs a fraction of a
//! system call on each side.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use metastore_proto::peer;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::dialer::{Connection, Dialer};
use super::frame::{FrameReader, FrameWriter};
use crate::error::PeerError;

/// Bytes that are collected into one write.
const WRITE_BYTES: usize = 256 * 1024;
/// How long one write may take before the connection is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls of one connection that the called member works on at a time; behind them it stops reading.
const CALLS_IN_PROGRESS_MAX: usize = 4096;
/// Method that the called side answers by itself, to show that it is there.
const PING: u32 = u32::MAX;
/// Id of pings, whose answers nobody waits for.
const PING_ID: u64 = 0;
/// Calls without an answer above which those whose caller gave up are looked for.
const FORGOTTEN_CALLS: usize = 1024;

struct Call {
    method: u32,
    body: Bytes,
    answer: oneshot::Sender<Result<Bytes, PeerError>>,
}

/// The calling side of one channel to one member. Connects at the first call.
pub(crate) struct RpcClient {
    calls: mpsc::UnboundedSender<Call>,
    reset: Arc<Notify>,
}

impl RpcClient {
    /// Must be called on the runtime that shall do the work.
    pub(crate) fn start(dialer: Arc<Dialer>, member: u64, channel: peer::Channel) -> Self {
        let (calls, receiver) = mpsc::unbounded_channel();
        let reset = Arc::new(Notify::new());
        let client = Client {
            dialer,
            member,
            channel,
            reset: reset.clone(),
        };
        tokio::spawn(client.run(receiver));
        Self { calls, reset }
    }

    /// Calls and waits at most `timeout`. Can be used from any runtime.
    pub(crate) async fn call(
        &self,
        method: u32,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let (answer, receiver) = oneshot::channel();
        let call = Call {
            method,
            body,
            answer,
        };
        self.calls.send(call).map_err(|_| PeerError::Stopped)?;
        match tokio::time::timeout(timeout, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(PeerError::ConnectionLost),
            Err(_) => Err(PeerError::TimedOut),
        }
    }

    /// Gives the connection up, for callers who know that it is dead before the kernel does.
    pub(crate) fn reset(&self) {
        self.reset.notify_waiters();
    }
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Bytes, PeerError>>>>>;

struct Client {
    dialer: Arc<Dialer>,
    member: u64,
    channel: peer::Channel,
    reset: Arc<Notify>,
}

impl Client {
    async fn run(self, mut calls: mpsc::UnboundedReceiver<Call>) {
        while let Some(first) = calls.recv().await {
            if first.answer.is_closed() {
                continue;
            }
            match self.dialer.dial(self.member, self.channel).await {
                Ok(connection) => self.use_connection(connection, first, &mut calls).await,
                Err(error) => {
                    let mut failed = Some(first);
                    while let Some(call) = failed {
                        let _ = call.answer.send(Err(error.to_peer_error(self.member)));
                        failed = calls.try_recv().ok();
                    }
                }
            }
        }
    }

    /// Sends calls until the connection breaks.
    async fn use_connection(
        &self,
        connection: Connection,
        first: Call,
        calls: &mut mpsc::UnboundedReceiver<Call>,
    ) {
        let Connection { reader, mut writer } = connection;
        let pending: Pending = Arc::default();
        let received = Arc::new(AtomicU64::new(0));
        let mut answers = tokio::spawn(read_answers(reader, pending.clone(), received.clone()));
        let mut liveness = Liveness::default();
        let period = self.dialer.timeouts.answer;
        let mut interval = tokio::time::interval_at(Instant::now() + period, period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_id = PING_ID;
        let mut next = Next::Call(first);
        loop {
            match next {
                Next::Call(call) => enqueue(&mut writer, &pending, &mut next_id, call),
                Next::Tick => {
                    let waiting = !pending.lock().is_empty();
                    match liveness.tick(waiting, received.load(Ordering::Relaxed)) {
                        Verdict::Alive => {}
                        Verdict::Ask => writer.put(&peer::CallRequest {
                            id: PING_ID,
                            method: PING,
                            body: Bytes::new(),
                        }),
                        Verdict::Dead => break,
                    }
                }
            }
            while writer.buffered() < WRITE_BYTES
                && let Ok(call) = calls.try_recv()
            {
                enqueue(&mut writer, &pending, &mut next_id, call);
            }
            let written = tokio::select! {
                written = writer.flush_within(WRITE_TIMEOUT) => written.is_ok(),
                _ = &mut answers => false,
            };
            if !written {
                break;
            }
            next = tokio::select! {
                call = calls.recv() => match call {
                    Some(call) => Next::Call(call),
                    None => break,
                },
                _ = interval.tick() => Next::Tick,
                _ = &mut answers => break,
                () = self.reset.notified() => break,
            };
        }
        answers.abort();
        for (_, answer) in pending.lock().drain() {
            let _ = answer.send(Err(PeerError::ConnectionLost));
        }
    }
}

/// What a client does next.
enum Next {
    Call(Call),
    Tick,
}

/// Tells a slow handler from a dead connection: whoever waits for an answer and receives nothing
/// asks, and gives up when there is nothing by the next time.
#[derive(Default)]
struct Liveness {
    received: u64,
    asked: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Alive,
    Ask,
    Dead,
}

impl Liveness {
    /// Called once per interval with the number of frames received so far.
    fn tick(&mut self, waiting: bool, received: u64) -> Verdict {
        let silent = received == self.received;
        self.received = received;
        if !waiting || !silent {
            self.asked = false;
            Verdict::Alive
        } else if self.asked {
            Verdict::Dead
        } else {
            self.asked = true;
            Verdict::Ask
        }
    }
}

fn enqueue(writer: &mut FrameWriter, pending: &Pending, next_id: &mut u64, call: Call) {
    if call.answer.is_closed() {
        return;
    }
    *next_id += 1;
    writer.put(&peer::CallRequest {
        id: *next_id,
        method: call.method,
        body: call.body,
    });
    let mut pending = pending.lock();
    if pending.len() >= FORGOTTEN_CALLS && pending.len().is_power_of_two() {
        pending.retain(|_, answer| !answer.is_closed());
    }
    pending.insert(*next_id, call.answer);
}

async fn read_answers(mut reader: FrameReader, pending: Pending, received: Arc<AtomicU64>) {
    while let Ok(Some(answer)) = reader.next::<peer::CallAnswer>().await {
        received.fetch_add(1, Ordering::Relaxed);
        let Some(waiting) = pending.lock().remove(&answer.id) else {
            continue;
        };
        use peer::call_answer::Result as Outcome;
        let result = match answer.result {
            Some(Outcome::Body(body)) => Ok(body),
            None => Ok(Bytes::new()),
            Some(Outcome::Error(text)) => Err(PeerError::Remote(text)),
            Some(Outcome::Removed(_)) => Err(PeerError::Removed),
        };
        // The caller may have given up.
        let _ = waiting.send(result);
    }
}

/// Answers the calls of one connection.
pub(crate) type CallHandler =
    Arc<dyn Fn(u32, Bytes) -> BoxFuture<'static, peer::call_answer::Result> + Send + Sync>;

/// The called side: works on calls until the connection ends.
pub(crate) async fn serve_calls(connection: Connection, handler: CallHandler) {
    let Connection { mut reader, writer } = connection;
    let (answers, receiver) = mpsc::unbounded_channel();
    let mut writing = tokio::spawn(write_answers(writer, receiver));
    let permits = Arc::new(Semaphore::new(CALLS_IN_PROGRESS_MAX));
    loop {
        let request = tokio::select! {
            request = reader.next::<peer::CallRequest>() => request,
            _ = &mut writing => return,
        };
        let request = match request {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a peer's connection broke");
                return;
            }
        };
        let permit = permits
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let answers = answers.clone();
        let work = if request.method == PING {
            futures::future::ready(peer::call_answer::Result::Body(Bytes::new())).boxed()
        } else {
            handler(request.method, request.body)
        };
        tokio::spawn(async move {
            let result = work.await;
            // The permit travels with the answer, so that answers that nobody reads hold it.
            let _ = answers.send((
                peer::CallAnswer {
                    id: request.id,
                    result: Some(result),
                },
                permit,
            ));
        });
    }
}

async fn write_answers(
    mut writer: FrameWriter,
    mut answers: mpsc::UnboundedReceiver<(peer::CallAnswer, tokio::sync::OwnedSemaphorePermit)>,
) {
    let mut permits = Vec::new();
    while let Some((answer, permit)) = answers.recv().await {
        writer.put(&answer);
        permits.push(permit);
        while writer.buffered() < WRITE_BYTES
            && let Ok((answer, permit)) = answers.try_recv()
        {
            writer.put(&answer);
            permits.push(permit);
        }
        if writer.flush_within(WRITE_TIMEOUT).await.is_err() {
            return;
        }
        permits.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_given_up_only_when_a_ping_has_no_answer() {
        let mut liveness = Liveness::default();
        assert_eq!(liveness.tick(true, 1), Verdict::Alive);
        assert_eq!(liveness.tick(true, 1), Verdict::Ask);
        assert_eq!(liveness.tick(true, 2), Verdict::Alive);
        assert_eq!(liveness.tick(true, 2), Verdict::Ask);
        assert_eq!(liveness.tick(false, 2), Verdict::Alive);
        assert_eq!(liveness.tick(true, 2), Verdict::Ask);
        assert_eq!(liveness.tick(true, 2), Verdict::Dead);
    }
}
