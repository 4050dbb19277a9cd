//! Connections of one worker to apps and other sidecars, opened by the first call that needs them: one a target, more only
//! when the other side soon takes no more streams on those there are, and closed again when they are not needed. Two cost 15 %
//! more than one, and no window or buffer fills before the streams are used up.
//!
//! On the `h2` crate itself and not on hyper's client: a stream must be resettable while its request waits for the other
//! side to read (`docs/adr/0002-hyper-for-the-data-path.md`).

mod opened;
mod silence;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use ahash::RandomState;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::client::SendRequest;
use mesh_identity::{Identity, Peer, tls};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::AbortHandle,
    time::timeout,
};

pub use self::opened::Pools;
use self::silence::{Heard, Signs, silence};
use crate::{
    ahead::Ahead,
    config::LocalAddress,
    cork::Cork,
    worker::{CONNECTION_WINDOW, STREAM_WINDOW},
};

/// A dead host must not hold calls: connecting, TLS included, takes at most this long.
const CONNECT: Duration = Duration::from_secs(2);
/// Whoever waited for an attempt that failed shares its failure for this long, instead of each trying in turn.
const FAILURE_SHARED: Duration = Duration::from_millis(50);
/// Connections without a call for this long are closed.
const IDLE: Duration = Duration::from_secs(300);
/// Between two requests all of whose headers are put into the table: a token lives for about as long.
const INDEX_ALL: Duration = Duration::from_secs(300);
/// Connections to one target at most; beyond them calls wait for a stream.
const CONNECTIONS: usize = 8;
/// Small frames that may wait on a connection before h2 takes the other side for an attacker: far above what the windows
/// of the streams let through.
const FRAME_BUDGET: usize = 1 << 30;

/// What a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The app of this sidecar, plaintext.
    App(LocalAddress),
    /// The inbound listener of another sidecar, which must prove to be this service.
    Sidecar(SocketAddr, mesh_config::names::ServiceName),
}

/// Why no connection could be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("cannot connect to {0}: {1}")]
    Tcp(Arc<str>, Arc<str>),
    /// Somebody answers who is not who it should be, or who does not accept us.
    #[error("the TLS handshake with {0} failed: {1}")]
    Tls(Arc<str>, Arc<str>),
    /// Took longer than two seconds.
    #[error("connecting to {0} took longer than {sec} s", sec = CONNECT.as_secs())]
    TimedOut(Arc<str>),
}

/// All connections of one worker. The locks are the worker's own; but for that of `alive` nobody else takes them.
pub struct Pool {
    identity: Arc<Identity>,
    upstreams: Mutex<HashMap<Target, Arc<Upstream>, RandomState>>,
    /// Every connection to another sidecar, also those that take no new calls.
    alive: Arc<Alive>,
}

/// Connections to other sidecars that are open, with what drives them and where they lead.
#[derive(Default)]
struct Alive(Mutex<Vec<(Weak<State>, AbortHandle, SocketAddr)>>);

/// What a connection and the calls on it share.
#[derive(Debug, Default)]
struct State {
    /// Calls that have a lease, and what was heard.
    signs: Arc<Signs>,
    /// It had no call when it was looked at last.
    idle: AtomicBool,
    /// The connection has ended.
    ended: AtomicBool,
    /// Whom it leads to; none for an app.
    peer: Option<Peer>,
    /// It was closed because its peer is revoked.
    revoked: AtomicBool,
    /// When all headers of a request were put into HPACK's table last.
    indexed: Mutex<Option<Instant>>,
}

struct Upstream {
    target: Target,
    connections: Mutex<Vec<Connection>>,
    /// Held while connecting, so that a crowd opens one connection.
    connecting: Arc<tokio::sync::Mutex<()>>,
    failed: Mutex<Option<(Instant, ConnectError)>>,
    used: Mutex<Instant>,
    /// A further connection is on its way.
    growing: AtomicBool,
}

struct Connection {
    sender: SendRequest<Bytes>,
    state: Arc<State>,
}

/// One call's place on a connection, until it is dropped.
#[derive(Debug)]
pub struct Lease(Arc<State>);

/// A connection for one call.
pub type Leased = (SendRequest<Bytes>, Lease);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.signs.calls.fetch_sub(1, Relaxed);
    }
}

impl Lease {
    /// Whether all headers of this request should be put into HPACK's table, also those whose values are for no other. What
    /// is put there is their names: of a header that is never indexed h2 writes the name out whenever no value of that name
    /// is in the table. Once, and again before new tokens push them out.
    pub fn indexes_all(&self, now: Instant) -> bool {
        let mut indexed = lock(&self.0.indexed);
        let due = indexed.is_none_or(|at| now.duration_since(at) >= INDEX_ALL);
        if due {
            *indexed = Some(now);
        }
        due
    }

    /// The connection broke because its peer was revoked.
    pub fn is_revoked(&self) -> bool {
        self.0.revoked.load(Relaxed)
    }
}

impl Connection {
    fn lease(&self) -> Leased {
        self.state.signs.calls.fetch_add(1, Relaxed);
        self.state.signs.begun.fetch_add(1, Relaxed);
        (self.sender.clone(), Lease(Arc::clone(&self.state)))
    }

    fn calls(&self) -> usize {
        self.state.signs.calls.load(Relaxed)
    }

    fn has_room(&self) -> bool {
        self.calls() < self.sender.current_max_send_streams()
    }

    /// Three quarters of the streams that the other side takes are in use.
    fn is_nearly_full(&self) -> bool {
        self.calls().saturating_mul(4) >= self.sender.current_max_send_streams().saturating_mul(3)
    }

    /// It had no call the last time either.
    fn is_idle_again(&self) -> bool {
        let idle = self.calls() == 0;
        self.state.idle.swap(idle, Relaxed) && idle
    }
}

impl Pool {
    /// An empty pool whose TLS connections prove `identity`.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity, upstreams: Mutex::default(), alive: Arc::default() }
    }

    /// A connection that is open at this moment and takes one more stream, if there is one, for a call of `when`.
    pub fn open(&self, target: &Target, when: Instant) -> Option<Leased> {
        let upstream = self.upstream(target);
        let leased = upstream.open(when);
        if leased.is_some() && upstream.needs_more() {
            let (identity, alive) = (Arc::clone(&self.identity), Arc::clone(&self.alive));
            tokio::spawn(async move { upstream.grow(&identity, &alive).await });
        }
        leased
    }

    /// Opens a connection, unless another call has done so meanwhile.
    ///
    /// Boxed: connecting is rare and its state large, and every call's future would otherwise have room for it.
    ///
    /// # Errors
    /// When none can be opened within two seconds.
    pub fn connect(&self, target: &Target) -> BoxFuture<'static, Result<Leased, ConnectError>> {
        let (upstream, identity, alive) = (self.upstream(target), Arc::clone(&self.identity), Arc::clone(&self.alive));
        Box::pin(upstream.connect(identity, alive))
    }

    /// Takes a connection out that has turned out to be of no use: the other side takes no new streams on it.
    pub fn discard(&self, target: &Target, lease: &Lease) {
        let upstream = self.upstream(target);
        lock(&upstream.connections).retain(|connection| !Arc::ptr_eq(&connection.state, &lease.0));
    }

    /// Drops connections that no call has used for five minutes, and further ones to a target that had no call the last
    /// time either; calls on them are not cut.
    pub fn prune(&self) {
        lock(&self.upstreams).retain(|_, upstream| {
            let mut further = false;
            // The first one is used first: those behind it empty by themselves.
            lock(&upstream.connections)
                .retain(|connection| !(std::mem::replace(&mut further, true) && connection.is_idle_again()));
            lock(&upstream.used).elapsed() < IDLE
        });
    }

    /// Closes every connection whose peer is revoked; the calls on it break, and their leases say why.
    pub fn close_revoked(&self) {
        lock(&self.alive.0).retain(|(state, driver, _)| {
            let Some(state) = state.upgrade() else { return false };
            let revoked = state.peer.as_ref().is_some_and(|peer| self.identity.is_revoked(peer));
            if revoked {
                state.revoked.store(true, Relaxed);
                state.ended.store(true, Relaxed);
                driver.abort();
            }
            !revoked
        });
    }

    fn upstream(&self, target: &Target) -> Arc<Upstream> {
        let mut upstreams = lock(&self.upstreams);
        if let Some(upstream) = upstreams.get(target) {
            return Arc::clone(upstream);
        }
        let upstream = Arc::new(Upstream {
            target: target.clone(),
            connections: Mutex::default(),
            connecting: Arc::default(),
            failed: Mutex::default(),
            used: Mutex::new(Instant::now()),
            growing: AtomicBool::default(),
        });
        upstreams.insert(target.clone(), Arc::clone(&upstream));
        upstream
    }
}

impl Upstream {
    fn open(&self, when: Instant) -> Option<Leased> {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| !connection.state.ended.load(Relaxed));
        let found = connections.iter().find(|connection| connection.has_room());
        // Beyond the limit calls wait for a stream, on the connection with the fewest.
        let full = || (connections.len() >= CONNECTIONS).then(|| connections.iter().min_by_key(|c| c.calls()));
        let leased = found.or_else(|| full().flatten())?.lease();
        drop(connections);
        *lock(&self.used) = when;
        Some(leased)
    }

    /// Whether a further connection should be there before the streams of those there are run out. Says so once until it
    /// is there, or cannot be had.
    fn needs_more(&self) -> bool {
        let connections = lock(&self.connections);
        let full = connections.len() < CONNECTIONS && connections.iter().all(Connection::is_nearly_full);
        full && !self.growing.swap(true, Relaxed)
    }

    async fn grow(&self, identity: &Arc<Identity>, alive: &Alive) {
        let _alone = self.connecting.lock().await;
        if let Ok(Ok(connection)) = timeout(CONNECT, self.handshake(identity, alive)).await {
            lock(&self.connections).push(connection);
        }
        self.growing.store(false, Relaxed);
    }

    /// The handshake belongs to no call: one whose time is over leaves it to those that wait.
    async fn connect(self: Arc<Self>, identity: Arc<Identity>, alive: Arc<Alive>) -> Result<Leased, ConnectError> {
        let alone = Arc::clone(&self.connecting).lock_owned().await;
        if let Some(leased) = self.open(Instant::now()) {
            return Ok(leased);
        }
        if let Some((at, error)) = &*lock(&self.failed)
            && at.elapsed() < FAILURE_SHARED
        {
            return Err(error.clone());
        }
        let address = self.target.address();
        let connecting = tokio::spawn(async move {
            let _alone = alone;
            self.connect_now(&identity, &alive).await
        });
        connecting.await.unwrap_or_else(|error| Err(ConnectError::Tcp(address, error.to_string().into())))
    }

    async fn connect_now(&self, identity: &Arc<Identity>, alive: &Alive) -> Result<Leased, ConnectError> {
        let attempt = timeout(CONNECT, self.handshake(identity, alive)).await;
        match attempt.unwrap_or_else(|_late| Err(ConnectError::TimedOut(self.target.address()))) {
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

    async fn handshake(&self, identity: &Arc<Identity>, alive: &Alive) -> Result<Connection, ConnectError> {
        let unreachable = |error: std::io::Error| ConnectError::Tcp(self.target.address(), error.to_string().into());
        let refused = |error| ConnectError::Tcp(self.target.address(), error);
        match &self.target {
            Target::App(LocalAddress::Tcp(address)) => {
                let app = tcp(*address).await.map_err(unreachable)?;
                Ok(http2_client(Ahead::new(app), None).await.map_err(refused)?.0)
            }
            Target::App(LocalAddress::Unix(path)) => {
                let app = UnixStream::connect(path).await.map_err(unreachable)?;
                Ok(http2_client(Ahead::new(app), None).await.map_err(refused)?.0)
            }
            Target::Sidecar(target, service) => {
                let tcp = tcp(*target).await.map_err(unreachable)?;
                let address: Arc<str> = self.target.address();
                let tls = tls::connect(&tls::client_config(identity, service), Ahead::new(tcp))
                    .await
                    .map_err(|error| ConnectError::Tls(Arc::clone(&address), error.to_string().into()))?;
                let peer = tls::peer(tls.get_ref().1);
                let (connection, driver) =
                    http2_client(tls, peer).await.map_err(|error| ConnectError::Tls(Arc::clone(&address), error))?;
                alive.enter(&connection, driver, *target);
                // Revoked after the handshake had looked, and before this connection stood among the others.
                if connection.state.peer.as_ref().is_some_and(|peer| identity.is_revoked(peer)) {
                    return Err(ConnectError::Tls(address, "its certificate is revoked".into()));
                }
                Ok(connection)
            }
        }
    }
}

impl Alive {
    fn enter(&self, connection: &Connection, driver: AbortHandle, address: SocketAddr) {
        let mut alive = lock(&self.0);
        if alive.len() == alive.capacity() {
            alive.retain(|(state, driver, _)| state.strong_count() > 0 && !driver.is_finished());
        }
        alive.push((Arc::downgrade(&connection.state), driver, address));
    }
}

impl Target {
    fn address(&self) -> Arc<str> {
        match self {
            Self::App(address) => address.to_string().into(),
            Self::Sidecar(address, _) => address.to_string().into(),
        }
    }
}

async fn tcp(address: SocketAddr) -> std::io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Figures: `docs/adr/0002-hyper-for-the-data-path.md`.
///
/// A host may vanish without a word, so sidecars, which have a `peer`, are asked for signs of life. Apps on this host are
/// not: one that is stopped in a debugger is not gone.
async fn http2_client<T>(io: T, peer: Option<Peer>) -> Result<(Connection, AbortHandle), Arc<str>>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let signs = Arc::new(Signs::default());
    let (sender, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(1_000)
        .data_frame_budget(FRAME_BUDGET)
        .max_concurrent_reset_streams(4_096)
        .max_pending_accept_reset_streams(4_096)
        .max_header_list_size(1 << 20)
        .handshake::<_, Bytes>(Cork::new(Heard::new(io, &signs)))
        .await
        .map_err(|error| Arc::from(error.to_string()))?;
    let pings = connection.ping_pong().filter(|_| peer.is_some());
    let state = Arc::new(State { peer, signs, ..State::default() });
    let driven = Arc::clone(&state);
    let driver = tokio::spawn(async move {
        let why = tokio::select! {
            ended = connection => ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string()),
            () = silence(pings, &driven.signs) => "no sign of life".to_owned(),
        };
        driven.ended.store(true, Relaxed);
        tracing::debug!(why, "a connection to an app or sidecar ended");
    });
    Ok((Connection { sender, state }, driver.abort_handle()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
