//! `--experimental-enable-grpc-logging`: a line for each message of clients and each answer to them, as etcd's
//! proxy writes them. Values, passwords and tokens are left out, which etcd's does not.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::Response;
use http_body::{Body as HttpBody, Frame};
use prost_reflect::MessageDescriptor;
use serde_json::Value;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::http::gateway;
use crate::observe::log::{self, Level};
use crate::observe::metrics::grpc::CODE_NAMES;

/// Flag and length in front of each message.
const PREFIX_BYTES: usize = 5;

/// Who sent a message.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Cluster,
}

/// What the lines of one call have in common.
#[derive(Clone)]
pub struct CallLog {
    service: String,
    method: String,
    remote: Option<SocketAddr>,
    /// What is asked and what is answered; nothing of services that are not etcd's.
    messages: Option<(MessageDescriptor, MessageDescriptor)>,
}

impl CallLog {
    /// The log of a call to the method with this path.
    pub fn new(path: &str, remote: Option<SocketAddr>) -> Self {
        // A request like CONNECT has no path.
        let (service, method) = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .unwrap_or_default();
        Self {
            service: service.to_owned(),
            method: method.to_owned(),
            remote,
            messages: gateway::messages_of(path),
        }
    }

    /// The same request, whose messages are logged when they are read.
    pub fn request(&self, body: Body) -> Body {
        Body::new(Logged::new(self.clone(), Side::Client, body))
    }

    /// The same answer, whose messages are logged when they are sent.
    pub fn response(&self, response: Response<Body>) -> Response<Body> {
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.failed(&status);
        }
        response.map(|body| Body::new(Logged::new(self.clone(), Side::Cluster, body)))
    }

    fn failed(&self, status: &Status) {
        if status.code() == Code::Ok {
            return;
        }
        let code = CODE_NAMES[status.code() as usize];
        let error = format!("rpc error: code = {code} desc = {}", status.message());
        self.line(
            Side::Cluster,
            "",
            vec![("grpc.response.error", error.into())],
        );
    }

    fn message(&self, side: Side, message: Bytes) {
        let descriptor = self.messages.as_ref().map(|(input, output)| match side {
            Side::Client => input,
            Side::Cluster => output,
        });
        let shown = descriptor.map(|descriptor| gateway::decode_for_log(message, descriptor));
        match shown {
            Some(Ok(json)) => self.line(side, &json, Vec::new()),
            Some(Err(error)) => {
                let error = format!("error when converting payload to logging json: {error}");
                self.line(side, "", vec![("msg.proto.error", error.into())]);
            }
            None => self.line(side, "", Vec::new()),
        }
    }

    fn line(&self, side: Side, content: &str, mut fields: Vec<(&str, Value)>) {
        let (text, name) = match side {
            Side::Client => (
                "received payload logged as grpc.request.content field",
                "grpc.request.content",
            ),
            Side::Cluster => (
                "returned response payload logged as grpc.response.content field",
                "grpc.response.content",
            ),
        };
        fields.extend([
            (name, content.into()),
            ("grpc.service", self.service.as_str().into()),
            ("grpc.method", self.method.as_str().into()),
        ]);
        if let Some(remote) = self.remote {
            fields.push(("peer.address", remote.to_string().into()));
        }
        log::record(Level::Info, log::here!(), text, &fields);
    }
}

/// A body whose messages are logged.
struct Logged {
    log: CallLog,
    side: Side,
    body: Body,
    /// What has come of the next message.
    begun: BytesMut,
}

impl Logged {
    fn new(log: CallLog, side: Side, body: Body) -> Self {
        Self {
            log,
            side,
            body,
            begun: BytesMut::new(),
        }
    }

    fn feed(&mut self, data: &[u8]) {
        self.begun.extend_from_slice(data);
        while let Some([_, length @ ..]) = self.begun.first_chunk::<PREFIX_BYTES>() {
            let length = u32::from_be_bytes(*length) as usize;
            if self.begun.len() < PREFIX_BYTES + length {
                return;
            }
            self.begun.advance(PREFIX_BYTES);
            let message = self.begun.split_to(length).freeze();
            self.log.message(self.side, message);
        }
    }
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            if let Some(data) = frame.data_ref() {
                this.feed(data);
            } else if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                this.log.failed(&status);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
