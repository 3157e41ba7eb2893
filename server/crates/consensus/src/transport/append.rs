//! Entries and heartbeats: pipelined requests, answers in order.
//!
//! One connection carries one session of openraft's `stream_append` after the other. A session that
//! was dropped half-way leaves answers behind; they are told from the next session's by its number.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use metastore_proto::peer;
use openraft::errors::{RPCError, Unreachable};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::dialer::{Connection, DialError};
use super::frame::FrameWriter;
use super::peers::Link;
use crate::leadership::Contact;
use crate::node::RaftNode;
use crate::raft_types::{
    Entry, Payload, TypeConfig, log_id, log_id_from_message, log_id_to_message, vote_from_message,
    vote_to_message,
};

/// Requests sent ahead of their answers. openraft's receiver takes 64; more would wait there.
const REQUESTS_IN_FLIGHT_MAX: usize = 64;

type Result<T> = std::result::Result<T, RPCError<TypeConfig>>;
type Request = AppendEntriesRequest<TypeConfig>;
type Answer = StreamAppendResult<TypeConfig>;

/// Connect failures and broken connections are `Unreachable`: openraft waits before it tries
/// again, while a `Network` error would be retried at once.
pub(crate) fn unreachable(reason: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

/// The sending side: one connection to one member, made when it is first needed.
pub(crate) struct AppendClient {
    link: Arc<Link>,
    /// Never locked, only there because openraft wants its networks to be `Sync`.
    connection: Mutex<Option<AppendConnection>>,
    /// Kept across calls, since openraft drops a heartbeat that takes too long.
    connecting: Option<JoinHandle<std::result::Result<Connection, DialError>>>,
}

struct AppendConnection {
    connection: Connection,
    session: u64,
    /// False while a frame is being written and after an error.
    clean: bool,
    /// Since when a request has been waiting without any answer. Outlives sessions: openraft drops
    /// a heartbeat's session long before the answer is overdue.
    waiting_since: Option<Instant>,
}

impl AppendConnection {
    /// Whether another session can use the connection.
    fn is_usable(&mut self, answer_timeout: Duration) -> bool {
        // Late answers to sessions that were dropped, and the end of the stream if it is there.
        while let Some(answer) = self
            .connection
            .reader
            .next::<peer::AppendAnswer>()
            .now_or_never()
        {
            self.waiting_since = None;
            self.clean &= matches!(answer, Ok(Some(_)));
            if !self.clean {
                break;
            }
        }
        let overdue = self
            .waiting_since
            .is_some_and(|since| since.elapsed() > answer_timeout);
        self.clean && !overdue
    }
}

enum Event {
    Answer(std::io::Result<Option<peer::AppendAnswer>>),
    Request(Option<Request>),
    Deadline,
}

impl AppendClient {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            connection: Mutex::new(None),
            connecting: None,
        }
    }

    /// Sends requests as they come and yields their answers in order. Ends after the last answer,
    /// or after the first that is not a match.
    pub(crate) async fn stream<'s, S>(
        &'s mut self,
        mut input: S,
    ) -> Result<BoxStream<'s, Result<Answer>>>
    where
        S: Stream<Item = Request> + Send + Unpin + 'static,
    {
        // First the request, then the connection: openraft waits out its back-off before it gives
        // the request, and connecting first would spin on a dead member.
        let Some(first) = input.next().await else {
            return Ok(futures::stream::empty().boxed());
        };
        let counters = self.link.counters.clone();
        counters.append_streams.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.connect().await {
            counters.append_failures.fetch_add(1, Ordering::Relaxed);
            return Err(unreachable(error));
        }
        Ok(self.session(first, input).boxed())
    }

    async fn connect(&mut self) -> std::result::Result<(), DialError> {
        let timeout = self.link.dialer.timeouts.answer;
        let present = self.connection.get_mut();
        if present
            .as_mut()
            .is_some_and(|connection| connection.is_usable(timeout))
        {
            return Ok(());
        }
        *present = None;
        let link = &self.link;
        let connecting = self.connecting.get_or_insert_with(|| {
            let link = link.clone();
            tokio::spawn(async move { link.dialer.dial(link.member, peer::Channel::Append).await })
        });
        let result = connecting.await;
        self.connecting = None;
        let connection =
            result.unwrap_or_else(|error| Err(DialError::Unreachable(error.to_string())))?;
        *self.connection.get_mut() = Some(AppendConnection {
            connection,
            session: 0,
            clean: true,
            waiting_since: None,
        });
        Ok(())
    }

    fn session<'s, S>(
        &'s mut self,
        first: Request,
        mut input: S,
    ) -> impl Stream<Item = Result<Answer>> + Send + 's
    where
        S: Stream<Item = Request> + Send + Unpin + 'static,
    {
        let link = self.link.clone();
        let timeout = link.dialer.timeouts.answer;
        let connection = self
            .connection
            .get_mut()
            .as_mut()
            .expect("the caller has just connected");
        connection.session += 1;
        let session = connection.session;
        let term = first.vote.leader_id.term;
        async_stream::stream! {
            let Connection { reader, writer } = &mut connection.connection;
            let mut sent: VecDeque<Instant> = VecDeque::new();
            let mut next = Some(first);
            let mut input_open = true;
            let failure = loop {
                if let Some(request) = next.take() {
                    link.counters
                        .entries_sent
                        .fetch_add(request.entries.len() as u64, Ordering::Relaxed);
                    let now = Instant::now();
                    sent.push_back(now);
                    connection.waiting_since.get_or_insert(now);
                    connection.clean = false;
                    writer.put(&request_to_message(request, session));
                    if let Err(error) = writer.flush_within(timeout).await {
                        break error.to_string();
                    }
                    connection.clean = true;
                }
                let Some(oldest) = sent.front().copied().or_else(|| input_open.then(Instant::now))
                else {
                    // Sent as many requests as answers were received, and no more will come.
                    return;
                };
                let waiting = !sent.is_empty();
                let event = tokio::select! {
                    biased;
                    answer = reader.next::<peer::AppendAnswer>(), if waiting => {
                        Event::Answer(answer)
                    }
                    request = input.next(), if input_open && sent.len() < REQUESTS_IN_FLIGHT_MAX => {
                        Event::Request(request)
                    }
                    () = tokio::time::sleep_until(oldest + timeout), if waiting => Event::Deadline,
                };
                if let Event::Answer(Ok(Some(_))) = event {
                    connection.waiting_since = None;
                }
                let answer = match event {
                    Event::Request(Some(request)) => {
                        next = Some(request);
                        continue;
                    }
                    Event::Request(None) => {
                        input_open = false;
                        continue;
                    }
                    Event::Answer(Ok(Some(answer))) if answer.session != session => continue,
                    Event::Answer(Ok(Some(answer))) => answer,
                    Event::Answer(Ok(None)) => break "the connection was closed".to_owned(),
                    Event::Answer(Err(error)) => break error.to_string(),
                    Event::Deadline => break format!("no answer within {timeout:?}"),
                };
                if let Some(at) = sent.pop_front() {
                    link.counters.observe_round_trip(at.elapsed());
                }
                match link.judge(term, answer) {
                    Ok(Ok(matched)) => yield Ok(Ok(matched)),
                    // The receiver drops what follows; the next session begins afresh.
                    Ok(Err(rejected)) => {
                        yield Ok(Err(rejected));
                        return;
                    }
                    Err(reason) => break reason,
                }
            };
            connection.clean = false;
            link.counters.append_failures.fetch_add(1, Ordering::Relaxed);
            yield Err(unreachable(failure));
        }
    }
}

impl Link {
    /// What an answer means, and whether it can be true.
    fn judge(&self, term: u64, answer: peer::AppendAnswer) -> std::result::Result<Answer, String> {
        use peer::append_answer::Result as Outcome;
        match answer.result {
            Some(Outcome::Matched(matched)) => {
                let matched = matched.position.map(log_id_from_message);
                self.note_matched(term, matched);
                Ok(Ok(matched))
            }
            Some(Outcome::Conflict(conflict)) => {
                let conflict = log_id_from_message(conflict);
                // openraft takes it that a member never loses an entry that it acknowledged.
                if self.matched_index(term) >= Some(conflict.index) {
                    tracing::error!(
                        peer = format_args!("{:x}", self.member),
                        %conflict,
                        "a member lost entries that it had acknowledged: its data directory was \
                         wiped or restored. Nothing is sent to it; remove the member and add it \
                         again under a new id"
                    );
                    return Err("the member lost entries that it had acknowledged".into());
                }
                Ok(Err(StreamAppendError::Conflict(conflict)))
            }
            Some(Outcome::HigherVote(vote)) => {
                Ok(Err(StreamAppendError::HigherVote(vote_from_message(vote))))
            }
            Some(Outcome::Failed(reason)) => Err(reason),
            None => Err("an answer without a result".into()),
        }
    }
}

fn request_to_message(request: Request, session: u64) -> peer::AppendRequest {
    peer::AppendRequest {
        session,
        vote: Some(vote_to_message(&request.vote)),
        previous: request.prev_log_id.map(log_id_to_message),
        committed: request.leader_commit.map(log_id_to_message),
        entries: request
            .entries
            .into_iter()
            .map(|entry| peer::Entry {
                term: entry.log_id.leader_id.term,
                index: entry.log_id.index,
                payload: entry.payload.encoded().clone(),
            })
            .collect(),
    }
}

fn request_from_message(message: peer::AppendRequest) -> std::result::Result<Request, String> {
    let entries = message
        .entries
        .into_iter()
        .map(|entry| {
            Ok(Entry {
                log_id: log_id(entry.term, entry.index),
                payload: Payload::decode(entry.payload)
                    .map_err(|error| format!("entry {}: {error}", entry.index))?,
            })
        })
        .collect::<std::result::Result<_, String>>()?;
    Ok(Request {
        vote: vote_from_message(message.vote.ok_or("an append without a vote")?),
        prev_log_id: message.previous.map(log_id_from_message),
        leader_commit: message.committed.map(log_id_from_message),
        entries,
    })
}

fn answer_to_message(session: u64, answer: Answer) -> peer::AppendAnswer {
    use peer::append_answer::Result as Outcome;
    let result = match answer {
        Ok(matched) => Outcome::Matched(peer::Matched {
            position: matched.map(log_id_to_message),
        }),
        Err(StreamAppendError::Conflict(conflict)) => {
            Outcome::Conflict(log_id_to_message(conflict))
        }
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherVote(vote_to_message(&vote)),
    };
    peer::AppendAnswer {
        session,
        result: Some(result),
    }
}

/// The receiving side: hands requests to the core until the connection ends.
pub(crate) async fn serve_appends(connection: Connection, raft: RaftNode, contact: Arc<Contact>) {
    let Connection { mut reader, writer } = connection;
    let (answers, receiver) = mpsc::unbounded_channel();
    let mut writing = tokio::spawn(write_answers(writer, receiver));
    let mut session: Option<(u64, mpsc::Sender<Request>)> = None;
    loop {
        let message = tokio::select! {
            message = reader.next::<peer::AppendRequest>() => message,
            _ = &mut writing => return,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a leader's connection broke");
                return;
            }
        };
        let number = message.session;
        let request = match request_from_message(message) {
            Ok(request) => request,
            Err(reason) => {
                tracing::error!(reason, "a leader sent an append that cannot be understood");
                return;
            }
        };
        let requests = match &session {
            Some((current, requests)) if *current == number => requests.clone(),
            _ => {
                let (requests, receiver) = mpsc::channel(REQUESTS_IN_FLIGHT_MAX);
                tokio::spawn(answer_session(
                    number,
                    receiver,
                    raft.clone(),
                    contact.clone(),
                    answers.clone(),
                ));
                session = Some((number, requests.clone()));
                requests
            }
        };
        // Fails when the session ended with a rejection; what was sent behind it is void.
        let _ = requests.send(request).await;
    }
}

/// Answers the requests of one session.
async fn answer_session(
    session: u64,
    mut requests: mpsc::Receiver<Request>,
    raft: RaftNode,
    contact: Arc<Contact>,
    answers: mpsc::UnboundedSender<peer::AppendAnswer>,
) {
    // All requests of a session carry the same vote.
    let Some(first) = requests.recv().await else {
        return;
    };
    let leader = first.vote.leader_id;
    let input = futures::stream::once(async { first }).chain(ReceiverStream::new(requests));
    let mut results = std::pin::pin!(raft.stream_append(input));
    while let Some(result) = results.next().await {
        let answer = match result {
            Ok(answer) => {
                if answer.is_ok() {
                    contact.heard_from(leader.voted_for, leader.term);
                }
                answer_to_message(session, answer)
            }
            Err(fatal) => peer::AppendAnswer {
                session,
                result: Some(peer::append_answer::Result::Failed(fatal.to_string())),
            },
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

async fn write_answers(
    mut writer: FrameWriter,
    mut answers: mpsc::UnboundedReceiver<peer::AppendAnswer>,
) {
    while let Some(answer) = answers.recv().await {
        writer.put(&answer);
        while let Ok(answer) = answers.try_recv() {
            writer.put(&answer);
        }
        if writer.flush().await.is_err() {
            return;
        }
    }
    writer.close().await;
}
