//! Calls whose messages are compressed with gzip, the only encoding that etcd knows.
//!
//! Services below never see one: messages are unpacked on their way in and packed on their way out.
//! As in grpc-go, the client's encoding is the one that it gets back.

use std::io::Read;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use super::unary::{self, ResponseBody};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GZIP: HeaderValue = HeaderValue::from_static("gzip");
/// Flag and length in front of each message.
const PREFIX_BYTES: usize = 5;
const PLAIN: u8 = 0;
const COMPRESSED: u8 = 1;

/// Whether the messages of a call may be compressed.
pub fn is_announced(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(ENCODING)
        .is_some_and(|encoding| encoding != "identity" && !encoding.is_empty())
}

/// Answers a call whose messages may be compressed, as `answer` answers it without compression.
pub async fn call<F>(
    mut request: Request<Incoming>,
    bytes_max: usize,
    answer: impl FnOnce(Request<Body>) -> F,
) -> Response<ResponseBody>
where
    F: Future<Output = Response<ResponseBody>>,
{
    let encoding = request.headers_mut().remove(ENCODING);
    if encoding.as_ref() != Some(&GZIP) {
        let name = encoding.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        return unary::failure(Status::unimplemented(format!(
            "grpc: Decompressor is not installed for grpc-encoding {:?}",
            String::from_utf8_lossy(name)
        )));
    }
    let request = request.map(|body| Body::new(Unpacking::new(body, bytes_max)));
    let mut response = answer(request).await;
    // A call that failed at once has headers only, and nothing that could be packed.
    if response.headers().contains_key(STATUS) {
        return response;
    }
    response.headers_mut().insert(ENCODING, GZIP);
    response.map(|body| ResponseBody::Pieces(Packing::new(body).boxed_unsync()))
}

/// The messages at the beginning of what was received.
#[derive(Default)]
struct Messages {
    received: BytesMut,
}

impl Messages {
    /// Flag and length of the first message.
    fn prefix(&self) -> Option<(u8, usize)> {
        let mut prefix = self.received.get(..PREFIX_BYTES)?;
        Some((prefix.get_u8(), prefix.get_u32() as usize))
    }

    /// Takes the first message, when it is there as a whole.
    fn take(&mut self) -> Option<(u8, Bytes)> {
        let (flag, length) = self.prefix()?;
        if self.received.len() - PREFIX_BYTES < length {
            return None;
        }
        self.received.advance(PREFIX_BYTES);
        Some((flag, self.received.split_to(length).freeze()))
    }
}

/// A message with its prefix.
fn framed(flag: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    bytes.put_u8(flag);
    // Longer ones cannot be framed; services do not make them either.
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// The body of a request with its messages unpacked.
struct Unpacking<B> {
    body: B,
    messages: Messages,
    /// The largest message, packed or not.
    bytes_max: usize,
}

impl<B> Unpacking<B> {
    fn new(body: B, bytes_max: usize) -> Self {
        Self {
            body,
            messages: Messages::default(),
            bytes_max,
        }
    }

    /// The next message in the shape of one that was never packed.
    fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let (_, length) = self.messages.prefix()?;
        if length > self.bytes_max {
            return Some(Err(unary::too_large(length, self.bytes_max)));
        }
        let (flag, message) = self.messages.take()?;
        Some(match flag {
            COMPRESSED => unpack(&message, self.bytes_max).map(|bytes| framed(PLAIN, &bytes)),
            // Plain, or no message at all, which the services say.
            other => Ok(framed(other, &message)),
        })
    }
}

impl<B> HttpBody for Unpacking<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(message) = this.next() {
                return Poll::Ready(Some(message.map(Frame::data).map_err(Into::into)));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.messages.received.extend_from_slice(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// # Errors
/// With the texts of grpc-go.
fn unpack(message: &[u8], bytes_max: usize) -> Result<Vec<u8>, Status> {
    let decoder = GzDecoder::new(message);
    if decoder.header().is_none() {
        return Err(Status::internal(
            "grpc: failed to decompress the message: gzip: invalid header",
        ));
    }
    let mut bytes = Vec::new();
    // One byte more tells too much from just enough; a small message can stand for a huge one.
    decoder
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            Status::internal(format!("grpc: failed to read decompressed data: {error}"))
        })?;
    if bytes.len() > bytes_max {
        return Err(Status::resource_exhausted(format!(
            "grpc: received message after decompression larger than max {bytes_max}"
        )));
    }
    Ok(bytes)
}

/// The body of an answer with its messages packed.
struct Packing {
    body: ResponseBody,
    messages: Messages,
}

impl Packing {
    fn new(body: ResponseBody) -> Self {
        Self {
            body,
            messages: Messages::default(),
        }
    }

    /// All whole messages that wait, packed.
    fn take_packed(&mut self) -> Result<Bytes, Status> {
        let mut packed = BytesMut::new();
        while let Some((_, message)) = self.messages.take() {
            if message.is_empty() {
                packed.extend_from_slice(&framed(PLAIN, &message));
            } else {
                packed.extend_from_slice(&framed(COMPRESSED, &pack(&message)?));
            }
        }
        Ok(packed.freeze())
    }
}

fn pack(message: &[u8]) -> Result<Vec<u8>, Status> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(message)
        .and_then(|()| encoder.finish())
        .map_err(|error| Status::internal(format!("grpc: error while compressing: {error}")))
}

impl HttpBody for Packing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.messages.received.extend_from_slice(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
            let packed = this.take_packed();
            if !matches!(&packed, Ok(packed) if packed.is_empty()) {
                return Poll::Ready(Some(packed.map(Frame::data)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    const BYTES_MAX: usize = 1000;

    async fn unpacked(body: Vec<u8>) -> Result<Bytes, String> {
        let body = Unpacking::new(Full::new(Bytes::from(body)), BYTES_MAX);
        let collected = body.collect().await.map_err(|error| error.to_string())?;
        Ok(collected.to_bytes())
    }

    #[tokio::test]
    async fn packed_and_plain_messages_come_out_plain() {
        let packed = pack(b"hello").expect("memory does not fail");
        let body = [
            framed(COMPRESSED, &packed),
            framed(PLAIN, b"world"),
            framed(PLAIN, b""),
        ]
        .concat();
        let wanted = [
            framed(PLAIN, b"hello"),
            framed(PLAIN, b"world"),
            framed(PLAIN, b""),
        ]
        .concat();
        assert_eq!(unpacked(body).await.as_deref(), Ok(&wanted[..]));
    }

    #[tokio::test]
    async fn a_message_that_stands_for_too_much_is_refused() {
        let bomb = pack(&[0; BYTES_MAX + 1]).expect("memory does not fail");
        assert!(bomb.len() < BYTES_MAX);
        let error = unpacked(framed(COMPRESSED, &bomb).to_vec()).await;
        assert!(error.is_err_and(|text| text.contains("larger than max 1000")));
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        let error = unpacked(framed(COMPRESSED, b"nonsense").to_vec()).await;
        assert!(error.is_err_and(|text| text.contains("invalid header")));
    }
}
