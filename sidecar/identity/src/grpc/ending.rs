//! Connections that end when something happens elsewhere, whatever is open on them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Fuse};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::authorization::Connection;
use crate::Peer;

/// A stream that fails from the moment on at which `end` is over.
pub(super) struct Ending<S> {
    stream: S,
    peer: Option<Arc<Peer>>,
    end: Fuse<BoxFuture<'static, ()>>,
    ended: bool,
}

impl<S> Ending<S> {
    pub(super) fn new(stream: S, peer: Option<Arc<Peer>>, end: impl Future<Output = ()> + Send + 'static) -> Self {
        let end: BoxFuture<'static, ()> = Box::pin(end);
        Self { stream, peer, end: end.fuse(), ended: false }
    }

    /// Looked at from both directions: a peer that does not read must not stay because of that.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.ended |= self.end.poll_unpin(context).is_ready();
        if self.ended { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl<S> Connected for Ending<S> {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        Connection(self.peer.clone())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ending<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ending<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
