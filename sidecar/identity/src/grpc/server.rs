//! A gRPC server over mTLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mesh_telemetry::{Measured, Rpcs};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::authorization::{BUILT_IN, Guard};
use super::ending::Ending;
use super::{Recorder, Rpc};
use crate::tls::{self, Clients};
use crate::{Identity, Peer};

/// How long open calls may go on once the server was told to stop.
const DRAIN: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(3) };

/// Handshakes under way at once; further connections wait in the listener's queue.
const HANDSHAKES: usize = 4096;

/// Connections without a certificate at once. Further ones are closed, so that whoever has none cannot take the
/// descriptors that those who renew need.
const STRANGERS: usize = if cfg!(test) { 16 } else { 2048 };

/// How long a connection without a certificate lives: joining takes two calls of at most 10 s.
const STRANGER_LIFE: Duration = Duration::from_secs(30);

/// After this long without a byte a peer is asked whether it is there, and after as long again it is not: an instance whose
/// host has died without a word is to be known within seconds.
const SILENCE: Duration = Duration::from_secs(5);

/// Calls of one connection that may be given up before this process has come to them. Who asks two at once and takes the
/// first answer gives up a call for each; a process that was stopped finds all of them when it goes on, and must not take
/// that for an attack.
const GIVEN_UP: usize = 4096;

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
    /// Who is told what is called.
    pub recorder: Option<Arc<dyn Recorder>>,
}

impl Server {
    /// Serves until `shutdown`, then lets calls end for at most 3 s and closes every connection. That of a peer which is
    /// revoked meanwhile is closed at once, with all that is open on it.
    ///
    /// Each request that reaches a service carries its caller as an extension of type [`Peer`] (none for a caller
    /// without certificate).
    ///
    /// # Errors
    /// The listener's; handshakes that fail are logged and end nobody else's.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        self.run_measured(None, shutdown).await
    }

    /// As [`Server::run`], with all calls counted, also those that are refused. Their methods are those of
    /// [`super::methods`].
    ///
    /// # Errors
    /// As [`Server::run`].
    pub async fn run_measured(self, rpcs: Option<Arc<Rpcs>>, shutdown: CancellationToken) -> io::Result<()> {
        let closed = CancellationToken::new();
        let certified = matches!(self.clients, Clients::Required);
        let (ready, connections) = mpsc::channel(16);
        let acceptor = Acceptor {
            config: tls::server_config(&self.identity, self.clients),
            identity: Arc::clone(&self.identity),
            ready,
            closed: closed.clone(),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            failures: Failures::default(),
        };
        let accepting = tokio::spawn(accept(self.listener, Arc::new(acceptor), shutdown.clone()));

        let routes = with_built_in(self.routes, self.authorization)?;
        let guard = Measured::new(Guard::new(routes, self.identity, self.authorization, self.recorder), rpcs);
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(SILENCE))
            .http2_keepalive_timeout(Some(SILENCE))
            // Strangers get the library's own limit.
            .http2_max_pending_accept_reset_streams(certified.then_some(GIVEN_UP))
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
        // A path of one segment is plain HTTP beside gRPC.
        let service = |rpc: &'static Rpc| Some(rpc.path.get(1..)?.split_once('/')?.0);
        let mut names: Vec<&str> = table.iter().chain(BUILT_IN).filter_map(service).collect();
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

/// What each handshake needs.
struct Acceptor {
    config: Arc<ServerConfig>,
    identity: Arc<Identity>,
    ready: mpsc::Sender<io::Result<Io>>,
    closed: CancellationToken,
    /// Places for connections without a certificate.
    strangers: Arc<Semaphore>,
    failures: Failures,
}

/// A connection that ends when the server was closed or its peer is revoked.
type Io = Ending<TlsStream<TcpStream>>;

/// Accepts, and does each handshake in a task of its own, so that a slow client delays nobody.
async fn accept(listener: TcpListener, acceptor: Arc<Acceptor>, shutdown: CancellationToken) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
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
        let acceptor = Arc::clone(&acceptor);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tls::accept(&acceptor.config, stream).await {
                Ok((stream, peer)) => {
                    drop(permit);
                    if let Some(connection) = acceptor.connection(stream, peer) {
                        // Fails only when the server is gone.
                        let _ = acceptor.ready.send(Ok(connection)).await;
                    }
                }
                Err(error) => acceptor.failures.log(remote, &error),
            }
        });
    }
}

impl Acceptor {
    /// None when there is no place for another one without a certificate.
    fn connection(&self, stream: TlsStream<TcpStream>, peer: Option<Peer>) -> Option<Io> {
        let peer = peer.map(Arc::new);
        let place = match peer {
            Some(_) => None,
            None => Some(Arc::clone(&self.strangers).try_acquire_owned().ok()?),
        };
        let (identity, closed, shown) = (Arc::clone(&self.identity), self.closed.clone(), peer.clone());
        let end = async move {
            let _place = place;
            match shown {
                None => {
                    let _over = tokio::time::timeout(STRANGER_LIFE, closed.cancelled()).await;
                }
                Some(peer) => tokio::select! {
                    () = closed.cancelled() => {}
                    () = peer.until_revoked(&identity) => {
                        tracing::info!(peer = %peer.id, serial = peer.serial, "the connection of a revoked peer is closed");
                    }
                },
            }
        };
        Some(Ending::new(stream, peer, end))
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

#[cfg(test)]
mod tests;
