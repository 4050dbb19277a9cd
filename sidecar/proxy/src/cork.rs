//! A writer that lets the frames of one moment leave in one write.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Above this a write is passed on at once: one TLS record is at most 16 KiB, and two fit one system call well.
const LIMIT: usize = 32 * 1024;

/// Collects writes; on flush it yields once to the runtime before it writes, so that HEADERS and DATA of calls that are
/// ready at the same moment leave in one TLS record and one system call (`docs/adr/0002-hyper-for-the-data-path.md`).
#[derive(Debug)]
pub struct Cork<T> {
    io: T,
    held: Vec<u8>,
    /// How much of `held` is written already, when the peer took only a part.
    written: usize,
    yielded: bool,
}

impl<T> Cork<T> {
    /// Wraps a connection.
    pub fn new(io: T) -> Self {
        Self { io, held: Vec::new(), written: 0, yielded: false }
    }
}

impl<T: AsyncWrite + Unpin> Cork<T> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.held[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.held.clear();
        self.written = 0;
        self.yielded = false;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cork<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.held.len() + data.len() > LIMIT {
            ready!(this.poll_drain(cx))?;
        }
        if data.len() > LIMIT {
            return Pin::new(&mut this.io).poll_write(cx, data);
        }
        this.held.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.held.is_empty() {
            if !this.yielded {
                this.yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cork<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts writes that reach it and takes at most `most` bytes in each.
    struct Counting {
        most: usize,
        writes: usize,
        bytes: Vec<u8>,
    }

    impl AsyncWrite for Counting {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            let n = data.len().min(self.most);
            self.writes += 1;
            self.bytes.extend_from_slice(&data[..n]);
            Poll::Ready(Ok(n))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_writes_before_a_flush_leave_in_one() {
        let mut cork = Cork::new(Counting { most: usize::MAX, writes: 0, bytes: Vec::new() });
        cork.write_all(b"headers").await.expect("held");
        cork.write_all(b"data").await.expect("held");
        cork.flush().await.expect("written");
        assert_eq!(cork.io.writes, 1);
        assert_eq!(cork.io.bytes, b"headersdata");
    }

    #[tokio::test]
    async fn shutdown_writes_what_is_held() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut cork = Cork::new(near);
        cork.write_all(b"goaway").await.expect("held");
        cork.shutdown().await.expect("written");
        drop(cork);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.expect("read");
        assert_eq!(got, b"goaway");
    }

    proptest! {
        #[test]
        fn every_byte_arrives_in_order_whatever_the_sizes(
            chunks in proptest::collection::vec((0usize..70_000, any::<bool>()), 0..12),
            most in 1usize..40_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            runtime.block_on(async {
                let mut cork = Cork::new(Counting { most, writes: 0, bytes: Vec::new() });
                let mut sent = Vec::new();
                for (index, (length, flush)) in chunks.iter().enumerate() {
                    let chunk = vec![u8::try_from(index).expect("few"); *length];
                    cork.write_all(&chunk).await.expect("takes");
                    sent.extend_from_slice(&chunk);
                    if *flush {
                        cork.flush().await.expect("flushes");
                        assert_eq!(cork.io.bytes, sent);
                    }
                }
                cork.flush().await.expect("flushes");
                assert_eq!(cork.io.bytes, sent);
            });
        }
    }
}
