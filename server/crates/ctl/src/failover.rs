//! Several endpoints behind one connection: when a member is lost, the next request goes to another one.
//!
//! * [`Rotation`] connects to whichever endpoint answers, beginning behind the one that was lost.
//! * [`Repeating`] sends calls that change nothing once more when the member that had them is lost, as
//!   clientv3 does. Nobody knows whether a write was done, so writes are never repeated.
//! * [`Watch`] goes on behind the last revision that it has seen.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use metastore_proto::etcdserverpb as pb;
use metastore_proto::repeat::{is_lost, is_repeatable};
use parking_lot::Mutex;
use pb::watch_request::RequestUnion;
use tokio_stream::StreamExt;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

use crate::client::{Client, Target, TargetStream, root_cause};

/// Tries of a call that changes nothing; clientv3's.
const TRIES: usize = 100;
/// Pause before another try; clientv3's.
const PAUSE: Duration = Duration::from_millis(25);
/// Pause before a lost watch is opened again.
const WATCH_PAUSE: Duration = Duration::from_millis(250);

/// The endpoints, in turn.
pub struct Rotation {
    targets: Vec<(String, Target)>,
    /// The one to try first.
    next: AtomicUsize,
    dial_timeout: Duration,
    /// The one that answered last.
    current: Mutex<String>,
}

impl Rotation {
    /// The endpoints, of which there is at least one.
    pub fn new(targets: Vec<(String, Target)>, dial_timeout: Duration) -> Self {
        let current = Mutex::new(targets[0].0.clone());
        Self {
            targets,
            next: AtomicUsize::new(0),
            dial_timeout,
            current,
        }
    }

    /// The endpoint that answered last.
    pub fn current(&self) -> String {
        self.current.lock().clone()
    }

    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// The last one's.
    pub async fn connect(&self) -> std::io::Result<TargetStream> {
        let first = self.next.load(Ordering::Relaxed);
        let mut last = std::io::Error::other("no endpoint is given");
        for step in 0..self.targets.len() {
            let position = (first + step) % self.targets.len();
            let (endpoint, target) = &self.targets[position];
            match tokio::time::timeout(self.dial_timeout, target.connect()).await {
                Ok(Ok(stream)) => {
                    // Whoever comes again has lost this one.
                    self.next.store(position + 1, Ordering::Relaxed);
                    self.current.lock().clone_from(endpoint);
                    return Ok(stream);
                }
                Ok(Err(error)) => {
                    let text = format!("cannot connect to {endpoint}: {}", root_cause(&error));
                    last = std::io::Error::other(text);
                }
                Err(_) => last = std::io::Error::other("context deadline exceeded"),
            }
        }
        Err(last)
    }
}

/// A connection that repeats what may be repeated.
#[derive(Clone)]
pub struct Repeating(pub Channel);

impl Service<Request<Body>> for Repeating {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // What was made ready is used, and a clone takes its place.
        let clone = self.0.clone();
        let mut channel = std::mem::replace(&mut self.0, clone);
        if !is_repeatable(request.uri().path()) {
            return Box::pin(channel.call(request));
        }
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let message = match body.collect().await {
                Ok(message) => message.to_bytes(),
                // The message of a unary call is encoded before it is sent: this cannot fail.
                Err(status) => return Ok(status.into_http()),
            };
            for number in 1.. {
                let body = Body::new(Full::new(message.clone()));
                let request = Request::from_parts(parts.clone(), body);
                let answer = channel.ready().await?.call(request).await;
                let is_lost = match &answer {
                    Ok(response) => Status::from_header_map(response.headers())
                        .is_some_and(|status| is_lost(&status)),
                    Err(_) => true,
                };
                if !is_lost || number == TRIES {
                    return answer;
                }
                tokio::time::sleep(PAUSE).await;
            }
            unreachable!("the last try has been returned")
        })
    }
}

/// One watch that goes on at another member when its own is lost.
pub struct Watch {
    client: Client,
    create: pb::WatchCreateRequest,
    answers: Option<tonic::Streaming<pb::WatchResponse>>,
    is_created: bool,
}

impl Watch {
    /// A watch that is opened when its first answer is asked for.
    pub fn new(client: &Client, create: pb::WatchCreateRequest) -> Self {
        Self {
            client: client.clone(),
            create,
            answers: None,
            is_created: false,
        }
    }

    /// The next answer; nothing after a cancellation.
    ///
    /// # Errors
    /// Those that another member would give as well.
    pub async fn next(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        loop {
            let answer = match self.advance().await {
                Ok(answer) => answer,
                // clientv3 ends here too: there is nobody to go on with.
                Err(status) if status.message() == "etcdserver: no leader" => return Err(status),
                Err(status) if is_lost(&status) => {
                    self.answers = None;
                    tokio::time::sleep(WATCH_PAUSE).await;
                    continue;
                }
                Err(status) => return Err(status),
            };
            let Some(answer) = answer else {
                return Ok(None);
            };
            if self.note(&answer) {
                return Ok(Some(answer));
            }
        }
    }

    async fn advance(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        let answers = match &mut self.answers {
            Some(answers) => answers,
            closed => {
                let create = pb::WatchRequest {
                    request_union: Some(RequestUnion::CreateRequest(self.create.clone())),
                };
                let requests = tokio_stream::once(create).chain(tokio_stream::pending());
                let opened = self.client.watch().watch(requests).await?.into_inner();
                closed.insert(opened)
            }
        };
        answers.next().await.transpose()
    }

    /// Remembers where to go on; whether the caller has not seen such an answer yet.
    fn note(&mut self, answer: &pb::WatchResponse) -> bool {
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        if answer.created && !answer.canceled {
            if self.create.start_revision == 0 {
                self.create.start_revision = revision + 1;
            }
            return !std::mem::replace(&mut self.is_created, true);
        }
        let last = answer.events.last().and_then(|event| event.kv.as_ref());
        if let Some(last) = last {
            let last = crate::output::decode_pair(last).mod_revision;
            // All events of a revision are in the pieces before the one without this mark.
            self.create.start_revision = match answer.fragment {
                true => last,
                false => last + 1,
            };
        }
        true
    }
}
