//! Connections of one worker to apps and other sidecars, opened by the first call that needs them: one a target, more only
//! when the other side takes no more streams on those there are.
//!
//! On the `h2` crate itself and not on hyper's client: a stream must be resettable while its request waits for the other
//! side to read (`docs/adr/0002-hyper-for-the-data-path.md`).

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::{Ping, PingPong, client::SendRequest};
use mesh_identity::{Identity, tls};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::{
    cork::Cork,
    worker::{CONNECTION_WINDOW, STREAM_WINDOW},
};

/// A dead host must not hold calls: connecting, TLS included, takes at most this long.
const CONNECT: Duration = Duration::from_secs(2);
/// Whoever waited for an attempt that failed shares its failure for this long, instead of each trying in turn.
const FAILURE_SHARED: Duration = Duration::from_millis(50);
/// Connections without a call for this long are closed.
const IDLE: Duration = Duration::from_secs(300);
/// Connections to one target at most; beyond them calls wait for a stream.
const CONNECTIONS: usize = 8;
/// Small frames that may wait on a connection before h2 takes the other side for an attacker: far above what the windows
/// of the streams let through.
const FRAME_BUDGET: usize = 1 << 30;
/// A connection with open calls is asked for a sign of life this often,
const PING: Duration = Duration::from_secs(10);
/// and is given this long for it.
const PONG: Duration = Duration::from_secs(5);

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
    connections: Mutex<Vec<Connection>>,
    /// Held while connecting, so that a crowd opens one connection.
    connecting: tokio::sync::Mutex<()>,
    failed: Mutex<Option<(Instant, ConnectError)>>,
    used: Mutex<Instant>,
}

struct Connection {
    sender: SendRequest<Bytes>,
    /// Calls that have a lease.
    calls: Arc<AtomicUsize>,
    /// Set when the connection has ended.
    ended: Arc<AtomicBool>,
}

/// One call's place on a connection, until it is dropped.
#[derive(Debug)]
pub struct Lease(Arc<AtomicUsize>);

/// A connection for one call.
pub type Leased = (SendRequest<Bytes>, Lease);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Connection {
    fn lease(&self) -> Leased {
        self.calls.fetch_add(1, Relaxed);
        (self.sender.clone(), Lease(Arc::clone(&self.calls)))
    }

    fn has_room(&self) -> bool {
        self.calls.load(Relaxed) < self.sender.current_max_send_streams()
    }
}

impl Pool {
    /// An empty pool whose TLS connections prove `identity`.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity, upstreams: Mutex::default() }
    }

    /// A connection that is open at this moment and takes one more stream, if there is one.
    pub fn open(&self, target: &Target) -> Option<Leased> {
        self.upstream(target).open()
    }

    /// Opens a connection, unless another call has done so meanwhile.
    ///
    /// Boxed: connecting is rare and its state large, and every call's future would otherwise have room for it.
    ///
    /// # Errors
    /// When none can be opened within two seconds.
    pub fn connect(&self, target: &Target) -> BoxFuture<'static, Result<Leased, ConnectError>> {
        let (upstream, identity) = (self.upstream(target), Arc::clone(&self.identity));
        Box::pin(async move { upstream.connect(&identity).await })
    }

    /// Takes a connection out that has turned out to be of no use: the other side takes no new streams on it.
    pub fn discard(&self, target: &Target, lease: &Lease) {
        let upstream = self.upstream(target);
        lock(&upstream.connections).retain(|connection| !Arc::ptr_eq(&connection.calls, &lease.0));
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
            connections: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            failed: Mutex::default(),
            used: Mutex::new(Instant::now()),
        });
        upstreams.insert(target.clone(), Arc::clone(&upstream));
        upstream
    }
}

impl Upstream {
    fn open(&self) -> Option<Leased> {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| !connection.ended.load(Relaxed));
        let found = connections.iter().find(|connection| connection.has_room());
        // Beyond the limit calls wait for a stream, on the connection with the fewest.
        let full =
            || (connections.len() >= CONNECTIONS).then(|| connections.iter().min_by_key(|c| c.calls.load(Relaxed)));
        let leased = found.or_else(|| full().flatten())?.lease();
        drop(connections);
        *lock(&self.used) = Instant::now();
        Some(leased)
    }

    async fn connect(&self, identity: &Arc<Identity>) -> Result<Leased, ConnectError> {
        let _alone = self.connecting.lock().await;
        if let Some(leased) = self.open() {
            return Ok(leased);
        }
        if let Some((at, error)) = &*lock(&self.failed)
            && at.elapsed() < FAILURE_SHARED
        {
            return Err(error.clone());
        }
        let address = self.target.address();
        let attempt = timeout(CONNECT, self.handshake(identity)).await;
        match attempt.unwrap_or(Err(ConnectError::TimedOut(address))) {
            Ok(connection) => {
                let leased = connection.lease();
                *lock(&self.failed) = None;
                *lock(&self.used) = Instant::now();
                lock(&self.connections).push(connection);
                Ok(leased)
            }
            Err(error) => {
                *lock(&self.failed) = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn handshake(&self, identity: &Arc<Identity>) -> Result<Connection, ConnectError> {
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
///
/// `pinged`: a host may vanish without a word, so sidecars are asked for signs of life. Apps on this host are not: one that
/// is stopped in a debugger is not gone.
async fn http2_client<T>(io: T, pinged: bool) -> Result<Connection, Arc<str>>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(1_000)
        .data_frame_budget(FRAME_BUDGET)
        .max_concurrent_reset_streams(4_096)
        .max_pending_accept_reset_streams(4_096)
        .max_header_list_size(1 << 20)
        .handshake::<_, Bytes>(Cork::new(io))
        .await
        .map_err(|error| Arc::from(error.to_string()))?;
    let (calls, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let pings = connection.ping_pong().filter(|_| pinged);
    let (at_the_end, busy) = (Arc::clone(&ended), Arc::clone(&calls));
    tokio::spawn(async move {
        let why = tokio::select! {
            ended = connection => ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string()),
            () = silence(pings, &busy) => "no sign of life".to_owned(),
        };
        at_the_end.store(true, Relaxed);
        tracing::debug!(why, "a connection to an app or sidecar ended");
    });
    Ok(Connection { sender, calls, ended })
}

/// Ends when a connection with open calls has not answered a ping in time.
async fn silence(pings: Option<PingPong>, calls: &AtomicUsize) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING).await;
        if calls.load(Relaxed) == 0 {
            continue;
        }
        match timeout(PONG, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection has ended, and says so itself.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
