//! Frames: how messages stand on a connection between members.
//!
//! ```text
//! connection = magic line, frames          (the caller sends the magic line, nobody answers it)
//! frame      = length u32 LE, crc32c u32 LE of the message, message (protobuf)
//! ```
//!
//! The first frame of the caller is a `Hello`, the first of the called a `Welcome`; what follows
//! depends on the channel that the hello names (`proto/internal/peer.proto`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use prost::Message;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_util::codec::{Decoder, FramedRead};

use super::BoxedStream;
use crate::counters::PeerCounters;

/// First bytes of every peer connection. No other protocol on this port begins so: HTTP with a
/// method in capitals and a space, TLS with 0x16.
pub(crate) const MAGIC: &[u8] = b"metastore-peer\n";

/// Version of the messages.
pub(crate) const PROTOCOL: u32 = 1;

/// Longest message. A longer length is a broken or a foreign sender: a batch of entries is at most
/// 1 MiB or one entry, and an entry is bounded by the request size limit.
const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

const HEADER_BYTES: usize = 8;

/// Finds the frames in a stream of bytes.
pub(crate) struct FrameDecoder {
    counters: Arc<PeerCounters>,
}

impl Decoder for FrameDecoder {
    type Item = Bytes;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
        if buffer.len() < HEADER_BYTES {
            return Ok(None);
        }
        let mut header = &buffer[..HEADER_BYTES];
        let length = header.get_u32_le() as usize;
        let checksum = header.get_u32_le();
        if length > MESSAGE_BYTES_MAX {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        if buffer.len() < HEADER_BYTES + length {
            buffer.reserve(HEADER_BYTES + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEADER_BYTES);
        let message = buffer.split_to(length).freeze();
        if crc32c::crc32c(&message) != checksum {
            return Err(invalid("a frame with a wrong checksum".into()));
        }
        self.counters
            .bytes_received
            .fetch_add((HEADER_BYTES + length) as u64, Ordering::Relaxed);
        Ok(Some(message))
    }
}

pub(crate) fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// The reading half of a connection.
pub(crate) struct FrameReader {
    frames: FramedRead<ReadHalf<BoxedStream>, FrameDecoder>,
}

impl FrameReader {
    /// The next message; `None` at the end. Can be cancelled without losing anything.
    pub(crate) async fn next<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        let Some(message) = self.frames.next().await.transpose()? else {
            return Ok(None);
        };
        M::decode(message)
            .map(Some)
            .map_err(|error| invalid(error.to_string()))
    }

    /// Counts what follows for this member.
    pub(crate) fn count_for(&mut self, counters: Arc<PeerCounters>) {
        self.frames.decoder_mut().counters = counters;
    }

    /// As [`Self::next`], but an end is an error, and so is a wait of more than `timeout`.
    pub(crate) async fn expect<M: Message + Default>(
        &mut self,
        timeout: Duration,
    ) -> io::Result<M> {
        match tokio::time::timeout(timeout, self.next()).await {
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// The writing half of a connection.
pub(crate) struct FrameWriter {
    stream: WriteHalf<BoxedStream>,
    buffer: BytesMut,
    counters: Arc<PeerCounters>,
}

/// Buffers that grew beyond this are given back after they were sent.
const BUFFER_KEPT_BYTES: usize = 256 * 1024;

impl FrameWriter {
    /// Counts what follows for this member.
    pub(crate) fn count_for(&mut self, counters: Arc<PeerCounters>) {
        self.counters = counters;
    }

    pub(crate) fn put<M: Message>(&mut self, message: &M) {
        put_frame(&mut self.buffer, message);
    }

    pub(crate) fn put_raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Sends everything that was put. After an error or when cancelled the connection is broken.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        let sent = self.buffer.len();
        self.stream.write_all(&self.buffer).await?;
        self.stream.flush().await?;
        self.counters
            .bytes_sent
            .fetch_add(sent as u64, Ordering::Relaxed);
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = BytesMut::new();
        } else {
            self.buffer.clear();
        }
        Ok(())
    }

    /// As [`Self::flush`], but an error after `timeout`.
    pub(crate) async fn flush_within(&mut self, timeout: Duration) -> io::Result<()> {
        match tokio::time::timeout(timeout, self.flush()).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    pub(crate) async fn close(mut self) {
        // The other side may have closed before.
        let _ = self.stream.shutdown().await;
    }
}

pub(crate) fn put_frame<M: Message>(buffer: &mut BytesMut, message: &M) {
    let start = buffer.len();
    buffer.put_bytes(0, HEADER_BYTES);
    message.encode(buffer).expect("a BytesMut grows as needed");
    let length = buffer.len() - start - HEADER_BYTES;
    assert!(
        length <= MESSAGE_BYTES_MAX,
        "a message of {length} bytes: the limit on requests is above what a frame can carry"
    );
    let checksum = crc32c::crc32c(&buffer[start + HEADER_BYTES..]);
    let mut header = &mut buffer[start..start + HEADER_BYTES];
    header.put_u32_le(length as u32);
    header.put_u32_le(checksum);
}

/// Splits a connection whose magic line was sent or read.
pub(crate) fn split(
    stream: BoxedStream,
    counters: Arc<PeerCounters>,
) -> (FrameReader, FrameWriter) {
    let (reader, writer) = tokio::io::split(stream);
    (
        FrameReader {
            frames: FramedRead::new(
                reader,
                FrameDecoder {
                    counters: counters.clone(),
                },
            ),
        },
        FrameWriter {
            stream: writer,
            buffer: BytesMut::new(),
            counters,
        },
    )
}

#[cfg(test)]
mod tests {
    use metastore_proto::peer;

    use super::*;

    fn decoder() -> FrameDecoder {
        FrameDecoder {
            counters: Arc::default(),
        }
    }

    fn hello() -> peer::Hello {
        peer::Hello {
            protocol: PROTOCOL,
            cluster_id: 7,
            sender: 1,
            target: 2,
            channel: peer::Channel::Append.into(),
        }
    }

    #[test]
    fn a_frame_is_read_whole_however_it_arrives() {
        let mut sent = BytesMut::new();
        put_frame(&mut sent, &hello());
        let mut arrived = BytesMut::new();
        let mut decoder = decoder();
        for (position, byte) in sent.iter().enumerate() {
            arrived.extend_from_slice(&[*byte]);
            let frame = decoder.decode(&mut arrived).unwrap();
            assert_eq!(frame.is_some(), position + 1 == sent.len());
            if let Some(frame) = frame {
                assert_eq!(peer::Hello::decode(frame).unwrap(), hello());
            }
        }
    }

    #[test]
    fn a_damaged_frame_is_an_error() {
        let mut sent = BytesMut::new();
        put_frame(&mut sent, &hello());
        let last = sent.len() - 1;
        sent[last] ^= 1;
        assert!(decoder().decode(&mut sent).is_err());
    }

    #[test]
    fn a_length_beyond_the_limit_is_an_error() {
        let mut sent = BytesMut::from(&[0xff_u8; HEADER_BYTES][..]);
        assert!(decoder().decode(&mut sent).is_err());
    }
}
