//! A gRPC server over mTLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::service::Routes;
use tonic::transport::server::Connected;

use super::Rpc;
use super::authorization::{BUILT_IN, Connection, Guard};
use crate::tls::{self, Clients};
use crate::{Identity, Peer};

/// How long open calls may go on once the server was told to stop.
const DRAIN: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(3) };

/// Handshakes under way at once; further connections wait in the listener's queue.
const HANDSHAKES: usize = 4096;

/// A server of the control plane, ready to run. `routes` are the services; health and reflection are added to them.
#[derive(Debug)]
pub struct Server {
    /// Bound already, so that a port that is taken is the caller's error, and port 0 can be asked what it became.
    pub listener: TcpListener,
    /// Shown to clients, and whose bundle and revocations they must pass.
    pub identity: Arc<Identity>,
    /// Whether clients need a certificate.
    pub clients: Clients,
    /// Who may call what, apart from health and reflection.
    pub authorization: &'static [Rpc],
    /// The services.
    pub routes: Routes,
}

impl Server {
    /// Serves until `shutdown`, then lets calls end for at most 3 s and closes every connection.
    ///
    /// Each request that reaches a service carries its caller as an extension of type [`Peer`] (none for a caller
    /// without certificate).
    ///
    /// # Errors
    /// The listener's; handshakes that fail are logged and end nobody else's.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let closed = CancellationToken::new();
        let config = tls::server_config(&self.identity, self.clients);
        let (ready, connections) = mpsc::channel(16);
        let accepting = tokio::spawn(accept(self.listener, config, ready, shutdown.clone(), closed.clone()));

        let routes = with_built_in(self.routes, self.authorization)?;
        let guard = Guard::new(routes, self.identity, self.authorization);
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .serve_with_incoming_shutdown(guard, ReceiverStream::new(connections), shutdown.clone().cancelled_owned());
        let force = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
            closed.cancel();
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = serving => outcome.map_err(io::Error::other),
            () = force => Ok(()),
        };
        closed.cancel();
        accepting.abort();
        outcome
    }
}

fn with_built_in(routes: Routes, table: &'static [Rpc]) -> io::Result<Routes> {
    let (_, health) = tonic_health::server::health_reporter();
    let reflection = || {
        let mut builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tenon_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let mut names: Vec<&str> =
            table.iter().chain(BUILT_IN).filter_map(|rpc| rpc.path.get(1..)?.split('/').next()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            builder = builder.with_service_name(name);
        }
        builder
    };
    let v1 = reflection().build_v1().map_err(io::Error::other)?;
    let v1alpha = reflection().build_v1alpha().map_err(io::Error::other)?;
    Ok(routes.add_service(health).add_service(v1).add_service(v1alpha).prepare())
}

/// Accepts, and does each handshake in a task of its own, so that a slow client delays nobody.
async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    ready: mpsc::Sender<io::Result<Io>>,
    shutdown: CancellationToken,
    closed: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let failures = Arc::new(Failures::default());
    loop {
        let permit = Arc::clone(&handshakes).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, remote) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer was gone already: neither is a reason to stop serving.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return,
        };
        let (config, ready, closed) = (Arc::clone(&config), ready.clone(), closed.clone());
        let failures = Arc::clone(&failures);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tls::accept(&config, stream).await {
                Ok((stream, peer)) => {
                    drop(permit);
                    // Fails only when the server is gone.
                    let _ = ready.send(Ok(Io::new(stream, peer, closed))).await;
                }
                Err(error) => failures.log(remote, &error),
            }
        });
    }
}

/// Warns of failed handshakes once a second at most; the others are logged at debug.
#[derive(Default)]
struct Failures(std::sync::atomic::AtomicU64);

impl Failures {
    fn log(&self, remote: std::net::SocketAddr, error: &tls::TlsError) {
        let now = crate::clock::unix_seconds();
        if self.0.swap(now, std::sync::atomic::Ordering::Relaxed) == now {
            tracing::debug!(%remote, %error, "handshake failed");
        } else {
            tracing::warn!(%remote, %error, "handshake failed");
        }
    }
}

/// A connection that ends when its server was closed, whatever is open on it.
struct Io {
    stream: TlsStream<TcpStream>,
    peer: Option<Arc<Peer>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Io {
    fn new(stream: TlsStream<TcpStream>, peer: Option<Peer>, closed: CancellationToken) -> Self {
        Self { stream, peer: peer.map(Arc::new), closed: Box::pin(closed.cancelled_owned()) }
    }
}

impl Connected for Io {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        Connection(self.peer.clone())
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
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

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
