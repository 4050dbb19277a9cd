//! A reader that takes from a socket all there is, within reason.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// One full TLS record and some more.
const SIZE: usize = 32 * 1024;

/// Reads ahead: rustls asks a socket for 4 KiB at a time, and h2 for what is left of its buffer, which may be a few bytes.
/// The memory is given back as soon as there is nothing to read.
#[derive(Debug)]
pub struct Ahead<T> {
    io: T,
    read: BytesMut,
}

impl<T> Ahead<T> {
    /// Wraps a socket.
    pub fn new(io: T) -> Self {
        Self { io, read: BytesMut::new() }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Ahead<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read.is_empty() {
            if buf.remaining() >= SIZE {
                return Pin::new(&mut this.io).poll_read(cx, buf);
            }
            this.read.reserve(SIZE);
            let polled = poll_read_buf(Pin::new(&mut this.io), cx, &mut this.read);
            if this.read.is_empty() {
                this.read = BytesMut::new();
            }
            ready!(polled)?;
        }
        let n = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..n]);
        this.read.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Ahead<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_reads_cost_one_of_the_socket_and_leave_no_memory() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut ahead = Ahead::new(near);
        far.write_all(b"headersdata").await.expect("written");
        let mut seven = [0; 7];
        ahead.read_exact(&mut seven).await.expect("read");
        assert_eq!((&seven, &ahead.read[..]), (b"headers", &b"data"[..]));
        let mut four = [0; 4];
        ahead.read_exact(&mut four).await.expect("read");
        assert!(futures_util::poll!(std::pin::pin!(ahead.read_u8())).is_pending());
        assert_eq!(ahead.read.capacity(), 0);
        drop(far);
        assert_eq!(ahead.read(&mut four).await.expect("the end"), 0);
    }

    proptest! {
        #[test]
        fn every_byte_arrives_in_order_whatever_the_sizes(
            sent in proptest::collection::vec(any::<u8>(), 0..3_000),
            (pipe, piece) in (1usize..1_000, 1usize..1_000),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            runtime.block_on(async {
                let (mut far, near) = tokio::io::duplex(pipe);
                let written = sent.clone();
                let writer = tokio::spawn(async move { far.write_all(&written).await });
                let (mut ahead, mut got, mut buffer) = (Ahead::new(near), Vec::new(), vec![0; piece]);
                loop {
                    match ahead.read(&mut buffer).await.expect("read") {
                        0 => break,
                        n => got.extend_from_slice(&buffer[..n]),
                    }
                }
                writer.await.expect("no panic").expect("written");
                assert_eq!(got, sent);
            });
        }
    }
}
