//! Calls on one connection: many at a time, answered in any order.
//!
//! Frames that are ready together leave in one write, so under load a call costs a fraction of a
//! system call on each side.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use metastore_proto::peer;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use super::dialer::{Connection, Dialer};
use super::frame::{FrameReader, FrameWriter};
use crate::error::PeerError;

/// Bytes that are collected into one write.
const WRITE_BYTES: usize = 256 * 1024;
/// How long one write may take before the connection is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls of one connection that the called member works on at a time; behind them it stops reading.
const CALLS_IN_PROGRESS_MAX: usize = 4096;
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
        let mut answers = tokio::spawn(read_answers(reader, pending.clone()));
        let mut next_id = 0;
        let mut next = Some(first);
        while let Some(call) = next {
            enqueue(&mut writer, &pending, &mut next_id, call);
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
                call = calls.recv() => call,
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

async fn read_answers(mut reader: FrameReader, pending: Pending) {
    while let Ok(Some(answer)) = reader.next::<peer::CallAnswer>().await {
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
        let work = handler(request.method, request.body);
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
