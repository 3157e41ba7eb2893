//! A watch stream, from the side of its connection.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use metastore_proto::etcdserverpb::WatchCreateRequest;

use crate::core::StreamId;
use crate::hub::Shared;
use crate::output::WatchOutput;
use crate::stream_queue::{Queued, StreamQueue};

/// One client stream with its watchers: requests go in, responses come out in the order in which
/// they have to be sent. Dropping it ends its watchers.
pub struct Stream {
    control: StreamControl,
    /// What was taken from the queue and not handed out.
    taken: VecDeque<Queued>,
}

/// The side of a [`Stream`] that takes requests, for a task of its own. Does nothing once the
/// stream is dropped.
#[derive(Clone)]
pub struct StreamControl {
    shared: Arc<Shared>,
    id: StreamId,
    queue: Arc<StreamQueue>,
}

impl StreamControl {
    /// A create request that the client is permitted to make. Answered by `created`, in any case.
    pub fn create(&self, request: &WatchCreateRequest) {
        self.shared.with_core(|core| core.create(self.id, request));
    }

    /// A create request that the server refuses, for instance for lack of permission. Answered by
    /// `created` and `canceled` with watch id −1 and the reason, which is the complete gRPC string.
    pub fn reject(&self, request: &WatchCreateRequest, reason: impl Into<Cow<'static, str>>) {
        let reason = reason.into();
        self.shared
            .with_core(|core| core.reject(self.id, request, reason));
    }

    /// A cancel request. Answered by `canceled`, after which nothing comes for the watcher; ignored
    /// when there is no such watcher.
    pub fn cancel(&self, watch_id: i64) {
        self.shared.with_core(|core| core.cancel(self.id, watch_id));
    }

    /// A progress request. Answered with watch id −1 if all watchers of the stream have got
    /// everything, else not at all.
    pub fn request_progress(&self) {
        self.shared.with_core(|core| core.request_progress(self.id));
    }

    /// Whether another request should be read: false while the client leaves too many answers
    /// unread. To be asked again after each response that was taken.
    pub fn takes_requests(&self) -> bool {
        self.queue.takes_requests()
    }
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>, id: StreamId, queue: Arc<StreamQueue>) -> Self {
        Self {
            control: StreamControl { shared, id, queue },
            taken: VecDeque::new(),
        }
    }

    /// The side that takes requests.
    pub fn control(&self) -> StreamControl {
        self.control.clone()
    }

    /// See [`StreamControl::create`].
    pub fn create(&self, request: &WatchCreateRequest) {
        self.control.create(request);
    }

    /// See [`StreamControl::reject`].
    pub fn reject(&self, request: &WatchCreateRequest, reason: impl Into<Cow<'static, str>>) {
        self.control.reject(request, reason);
    }

    /// See [`StreamControl::cancel`].
    pub fn cancel(&self, watch_id: i64) {
        self.control.cancel(watch_id);
    }

    /// See [`StreamControl::request_progress`].
    pub fn request_progress(&self) {
        self.control.request_progress();
    }

    /// See [`StreamControl::takes_requests`].
    pub fn takes_requests(&self) -> bool {
        self.control.takes_requests()
    }

    /// The next response; `None` when the hub was closed. Only ask when it can be sent: what is not
    /// asked for is what bounds the memory of a slow client.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<WatchOutput>> {
        match self.control.queue.take_next(&mut self.taken, context) {
            Poll::Ready(Some((output, drained))) => {
                if drained {
                    self.control.shared.drained(self.control.id);
                }
                Poll::Ready(Some(output))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let id = self.control.id;
        self.control.shared.with_core(|core| core.remove_stream(id));
    }
}
