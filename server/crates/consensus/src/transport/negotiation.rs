//! Tells a peer from everybody else on a peer listener.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::BoxedStream;
use super::frame::MAGIC;
use crate::peers::PeerHandler;

/// Reads the first line of a connection: a peer's is returned, another one is handed to its owner.
///
/// # Errors
/// When the connection breaks before it has said what it is.
pub async fn negotiate(
    mut stream: BoxedStream,
    handler: &dyn PeerHandler,
) -> io::Result<Option<BoxedStream>> {
    let mut first = [0_u8; MAGIC.len()];
    let mut length = 0;
    while length < first.len() {
        let read = stream.read(&mut first[length..]).await?;
        length += read;
        if first[..length] != MAGIC[..length] {
            let first = Bytes::copy_from_slice(&first[..length]);
            handler.foreign_connection(Box::new(Rewound::new(first, stream)));
            return Ok(None);
        }
        if read == 0 {
            return Ok(None);
        }
    }
    Ok(Some(stream))
}

/// A stream whose first bytes were read to see what it is, and are read again.
#[derive(Debug)]
pub struct Rewound<S> {
    first: Bytes,
    stream: S,
}

impl<S> Rewound<S> {
    /// Puts `first` in front of what `stream` will give.
    pub const fn new(first: Bytes, stream: S) -> Self {
        Self { first, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.has_remaining() {
            let length = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..length]);
            self.first.advance(length);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_rewound_stream_begins_with_what_was_read() {
        let mut stream = Rewound::new(Bytes::from_static(b"GET "), &b"/version"[..]);
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "GET /version");
    }
}
