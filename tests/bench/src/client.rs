//! gRPC calls over raw h2: no service stubs, no decoding, no allocation that can be avoided.

use std::future::poll_fn;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use http::{Method, Request, Uri, Version};
use prost::Message;
use tokio::net::TcpStream;

/// Receive window of one stream and of one connection.
///
/// Larger than any answer the benchmark asks for, so that a list is never slowed by the client.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Length of the prefix of a gRPC message: one flag byte and the length.
const FRAME_PREFIX_BYTES: usize = 5;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server answered with a status other than OK.
    #[error("status {code}: {message}")]
    Status {
        /// The numeric gRPC status.
        code: String,
        /// The text of the server, percent-encoded as it arrived.
        message: String,
    },
    /// The connection or the stream broke.
    #[error("transport: {0}")]
    Transport(#[from] h2::Error),
    /// No connection could be made.
    #[error("connect: {0}")]
    Connect(#[from] std::io::Error),
    /// The answer is not what the request must bring (too short, not decodable, missing).
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

/// A gRPC method of one endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    authority: String,
}

impl Endpoint {
    /// Takes `host:port`.
    pub fn new(authority: impl Into<String>) -> Self {
        Self {
            authority: authority.into(),
        }
    }

    /// `host:port` of the endpoint.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The URI of a method such as `etcdserverpb.KV/Put`.
    pub fn method(&self, method: &str) -> Uri {
        format!("http://{}/{method}", self.authority)
            .parse()
            .expect("host:port and a constant method name form a URI")
    }

    /// Opens one HTTP/2 connection. Its driver runs on the current runtime until the last
    /// [`Connection`] of it is dropped.
    ///
    /// # Errors
    /// When nobody listens or the HTTP/2 handshake fails: the server may not be ready yet, so the
    /// caller decides whether to try again.
    pub async fn connect(&self) -> Result<Connection, CallError> {
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(stream)
            .await?;
        tokio::spawn(async move {
            // A broken connection shows as the error of each call on it.
            let _ = connection.await;
        });
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        Ok(Connection {
            endpoint: self.clone(),
            send,
            headers,
        })
    }
}

/// A handle on one HTTP/2 connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    endpoint: Endpoint,
    send: SendRequest<Bytes>,
    headers: HeaderMap,
}

impl Connection {
    /// The endpoint this connection leads to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// One unary call with a framed body (see [`frame`]). Returns the message without its prefix.
    ///
    /// # Errors
    /// A status other than OK, or a broken connection.
    pub async fn call(&mut self, method: &Uri, body: Bytes) -> Result<Bytes, CallError> {
        let (response, mut request_stream) = self.open(method).await?;
        request_stream.send_data(body, true)?;
        let (head, mut answer) = response.await?.into_parts();
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(chunk) = answer.data().await {
            let chunk = chunk?;
            // Never fails: the capacity was just received.
            let _ = answer.flow_control().release_capacity(chunk.len());
            if first.is_empty() {
                first = chunk;
            } else {
                if all.is_empty() {
                    all.reserve(message_length(&first) + FRAME_PREFIX_BYTES);
                    all.put_slice(&first);
                }
                all.put_slice(&chunk);
            }
        }
        match answer.trailers().await? {
            Some(trailers) => check_status(&trailers)?,
            None => check_status(&head.headers)?,
        }
        let mut whole = if all.is_empty() { first } else { all.freeze() };
        if whole.len() < FRAME_PREFIX_BYTES {
            return Err(CallError::Unexpected(format!(
                "{} bytes instead of a message",
                whole.len()
            )));
        }
        Ok(whole.split_off(FRAME_PREFIX_BYTES))
    }

    /// One unary call, encoded and decoded. For set-up, not for load.
    ///
    /// # Errors
    /// As [`Connection::call`], and when the answer does not decode.
    pub async fn unary<Answer: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<Answer, CallError> {
        let method = self.endpoint.method(method);
        let answer = self.call(&method, frame(request)).await?;
        Answer::decode(answer).map_err(|error| CallError::Unexpected(error.to_string()))
    }

    /// Opens a bidirectional stream. `first` is sent at once: some servers send no headers before
    /// they have a message.
    ///
    /// # Errors
    /// A broken connection.
    pub async fn stream(&mut self, method: &str, first: Bytes) -> Result<BidiStream, CallError> {
        let method = self.endpoint.method(method);
        let (response, mut sender) = self.open(&method).await?;
        sender.send_data(first, false)?;
        let (head, receiver) = response.await?.into_parts();
        // Trailers-only answers carry the status in the head.
        if head.headers.contains_key("grpc-status") {
            check_status(&head.headers)?;
        }
        let connection = self.clone();
        Ok(BidiStream {
            sender,
            receiver,
            buffer: BytesMut::new(),
            _connection: connection,
        })
    }

    async fn open(
        &mut self,
        method: &Uri,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), CallError> {
        poll_fn(|context| self.send.poll_ready(context)).await?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = method.clone();
        *request.headers_mut() = self.headers.clone();
        Ok(self.send.send_request(request, false)?)
    }
}

/// A bidirectional stream of framed messages.
pub struct BidiStream {
    sender: SendStream<Bytes>,
    receiver: RecvStream,
    buffer: BytesMut,
    /// The connection closes with its last handle, whatever streams it has.
    _connection: Connection,
}

impl BidiStream {
    /// Queues a framed message.
    ///
    /// # Errors
    /// A broken connection.
    pub fn send(&mut self, body: Bytes) -> Result<(), CallError> {
        Ok(self.sender.send_data(body, false)?)
    }

    /// Hands the next messages that arrive to `visit`, without their prefixes: all whole messages
    /// of one chunk at a time. Returns false at the end of the stream.
    ///
    /// # Errors
    /// A broken connection, or the status with which the server ended the stream.
    pub async fn receive(&mut self, mut visit: impl FnMut(&[u8])) -> Result<bool, CallError> {
        let Some(chunk) = self.receiver.data().await else {
            if let Some(trailers) = self.receiver.trailers().await? {
                check_status(&trailers)?;
            }
            return Ok(false);
        };
        let chunk = chunk?;
        // Never fails: the capacity was just received.
        let _ = self.receiver.flow_control().release_capacity(chunk.len());
        if self.buffer.is_empty() {
            let used = visit_messages(&chunk, &mut visit);
            self.buffer.extend_from_slice(&chunk[used..]);
        } else {
            self.buffer.extend_from_slice(&chunk);
            let used = visit_messages(&self.buffer, &mut visit);
            let _ = self.buffer.split_to(used);
        }
        Ok(true)
    }
}

/// Visits each whole message in `bytes` and returns how many bytes they took.
fn visit_messages(bytes: &[u8], visit: &mut impl FnMut(&[u8])) -> usize {
    let mut used = 0;
    while bytes.len() - used >= FRAME_PREFIX_BYTES {
        let rest = &bytes[used..];
        let end = FRAME_PREFIX_BYTES + message_length(rest);
        if rest.len() < end {
            break;
        }
        visit(&rest[FRAME_PREFIX_BYTES..end]);
        used += end;
    }
    used
}

/// The message with its gRPC prefix, ready to be sent.
pub fn frame(message: &impl Message) -> Bytes {
    let mut body = BytesMut::with_capacity(FRAME_PREFIX_BYTES + message.encoded_len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len()).expect("requests are small"));
    message.encode(&mut body).expect("the buffer grows");
    body.freeze()
}

/// The length in the prefix at the front of `bytes`; 0 when the prefix is not complete.
fn message_length(bytes: &[u8]) -> usize {
    match bytes.get(1..FRAME_PREFIX_BYTES) {
        Some(length) => u32::from_be_bytes(length.try_into().expect("four bytes")) as usize,
        None => 0,
    }
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    match headers.get("grpc-status") {
        Some(status) if status.as_bytes() == b"0" => Ok(()),
        Some(_) => Err(CallError::Status {
            code: text("grpc-status"),
            message: text("grpc-message"),
        }),
        None => Err(CallError::Unexpected(
            "an answer without a status".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_at_any_cut() {
        let mut bytes = Vec::new();
        for message in ["", "a", "some bytes"] {
            bytes.push(0);
            bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(message.as_bytes());
        }
        for cut in 0..=bytes.len() {
            let mut seen = Vec::new();
            let mut visit = |message: &[u8]| seen.push(message.to_vec());
            let used = visit_messages(&bytes[..cut], &mut visit);
            let rest = visit_messages(&bytes[used..], &mut visit);
            assert_eq!(used + rest, bytes.len());
            assert_eq!(seen, [b"".to_vec(), b"a".to_vec(), b"some bytes".to_vec()]);
        }
    }
}
