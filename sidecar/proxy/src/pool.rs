//! Connections of one worker to apps and other sidecars: one a target, opened by the first call that needs it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_identity::{Identity, tls};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::{
    body::RequestBody,
    cork::Cork,
    worker::{CONNECTION_WINDOW, STREAM_WINDOW},
};

/// A dead host must not hold calls: connecting, TLS included, takes at most this long.
const CONNECT: Duration = Duration::from_secs(2);
/// Whoever waited for an attempt that failed shares its failure for this long, instead of each trying in turn.
const FAILURE_SHARED: Duration = Duration::from_millis(50);
/// Connections without a call for this long are closed.
const IDLE: Duration = Duration::from_secs(300);

/// What a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The app of this sidecar, plaintext.
    App(SocketAddr),
    /// The inbound listener of another sidecar, which must prove to be this service.
    Sidecar(SocketAddr, mesh_config::names::ServiceName),
}

/// Why no connection could be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("cannot connect to {0}: {1}")]
    Tcp(SocketAddr, Arc<str>),
    /// Somebody answers who is not who it should be, or who does not accept us.
    #[error("the TLS handshake with {0} failed: {1}")]
    Tls(SocketAddr, Arc<str>),
    /// Took longer than two seconds.
    #[error("connecting to {0} took longer than {sec} s", sec = CONNECT.as_secs())]
    TimedOut(SocketAddr),
}

/// All connections of one worker. The locks are the worker's own: nobody else takes them.
pub struct Pool {
    identity: Arc<Identity>,
    upstreams: Mutex<HashMap<Target, Arc<Upstream>>>,
}

struct Upstream {
    target: Target,
    sender: Mutex<Option<SendRequest<RequestBody>>>,
    /// Held while connecting, so that a crowd opens one connection.
    connecting: tokio::sync::Mutex<()>,
    failed: Mutex<Option<(Instant, ConnectError)>>,
    used: Mutex<Instant>,
}

impl Pool {
    /// An empty pool whose TLS connections prove `identity`.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity, upstreams: Mutex::default() }
    }

    /// A connection that is open at this moment, if there is one.
    pub fn open(&self, target: &Target) -> Option<SendRequest<RequestBody>> {
        self.upstream(target).open()
    }

    /// Opens a connection, unless another call has done so meanwhile.
    ///
    /// Boxed: connecting is rare and its state large, and every call's future would otherwise have room for it.
    ///
    /// # Errors
    /// When none can be opened within two seconds.
    pub fn connect(&self, target: &Target) -> BoxFuture<'static, Result<SendRequest<RequestBody>, ConnectError>> {
        let (upstream, identity) = (self.upstream(target), Arc::clone(&self.identity));
        Box::pin(async move { upstream.connect(&identity).await })
    }

    /// Drops connections that no call has used for five minutes; calls on them are not cut.
    pub fn prune(&self) {
        lock(&self.upstreams).retain(|_, upstream| lock(&upstream.used).elapsed() < IDLE);
    }

    fn upstream(&self, target: &Target) -> Arc<Upstream> {
        let mut upstreams = lock(&self.upstreams);
        if let Some(upstream) = upstreams.get(target) {
            return Arc::clone(upstream);
        }
        let upstream = Arc::new(Upstream {
            target: target.clone(),
            sender: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            failed: Mutex::default(),
            used: Mutex::new(Instant::now()),
        });
        upstreams.insert(target.clone(), Arc::clone(&upstream));
        upstream
    }
}

impl Upstream {
    fn open(&self) -> Option<SendRequest<RequestBody>> {
        let mut slot = lock(&self.sender);
        if slot.as_ref().is_some_and(SendRequest::is_closed) {
            *slot = None;
        }
        let sender = slot.clone()?;
        drop(slot);
        *lock(&self.used) = Instant::now();
        Some(sender)
    }

    async fn connect(&self, identity: &Arc<Identity>) -> Result<SendRequest<RequestBody>, ConnectError> {
        let _alone = self.connecting.lock().await;
        if let Some(sender) = self.open() {
            return Ok(sender);
        }
        if let Some((at, error)) = &*lock(&self.failed)
            && at.elapsed() < FAILURE_SHARED
        {
            return Err(error.clone());
        }
        let address = self.target.address();
        let attempt = timeout(CONNECT, self.handshake(identity)).await;
        match attempt.unwrap_or(Err(ConnectError::TimedOut(address))) {
            Ok(sender) => {
                *lock(&self.failed) = None;
                *lock(&self.sender) = Some(sender.clone());
                *lock(&self.used) = Instant::now();
                Ok(sender)
            }
            Err(error) => {
                *lock(&self.failed) = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn handshake(&self, identity: &Arc<Identity>) -> Result<SendRequest<RequestBody>, ConnectError> {
        let address = self.target.address();
        let unreachable = |error: std::io::Error| ConnectError::Tcp(address, error.to_string().into());
        let tcp = TcpStream::connect(address).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        match &self.target {
            Target::App(_) => http2_client(tcp, false).await.map_err(|error| ConnectError::Tcp(address, error)),
            Target::Sidecar(_, service) => {
                let tls = tls::connect(&tls::client_config(identity, service), tcp)
                    .await
                    .map_err(|error| ConnectError::Tls(address, error.to_string().into()))?;
                http2_client(tls, true).await.map_err(|error| ConnectError::Tls(address, error))
            }
        }
    }
}

impl Target {
    fn address(&self) -> SocketAddr {
        match self {
            Self::App(address) | Self::Sidecar(address, _) => *address,
        }
    }
}

/// Figures: `docs/adr/0002-hyper-for-the-data-path.md`.
async fn http2_client<T>(io: T, keep_alive: bool) -> Result<SendRequest<RequestBody>, Arc<str>>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(1_000)
        .max_concurrent_reset_streams(4_096)
        .max_pending_accept_reset_streams(4_096)
        .max_local_error_reset_streams(None)
        .max_header_list_size(1 << 20);
    if keep_alive {
        builder.keep_alive_interval(Duration::from_secs(10)).keep_alive_timeout(Duration::from_secs(5));
    }
    let (sender, connection) =
        builder.handshake(TokioIo::new(Cork::new(io))).await.map_err(|error| Arc::from(error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to an app or sidecar ended");
        }
    });
    Ok(sender)
}

/// Sends on an open connection. An error carries the request back when it was certainly not sent.
///
/// # Errors
/// The stream or its connection failed; with the request when it is safe to send it again elsewhere.
pub async fn send(
    mut sender: SendRequest<RequestBody>,
    request: http::Request<RequestBody>,
) -> Result<http::Response<Incoming>, (hyper::Error, Option<http::Request<RequestBody>>)> {
    sender.try_send_request(request).await.map_err(|mut error| {
        let request = error.take_message();
        (error.into_error(), request)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
