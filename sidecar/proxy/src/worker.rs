//! One forwarding thread: a runtime of its own, connections of its own, nothing shared but snapshots of state.

mod connections;
mod look_after;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    thread,
    time::Duration,
};

use mesh_identity::tls;
use rustls::ServerConfig;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::{
    caller::Caller, credentials::TokenMemory, decisions::Ledger, guard::Guarding, limits::Seats, live::Live, lookups,
    open::OpenCalls, pool::Pool, ready::Ready,
};

/// A connection on its way to a worker. Accepted elsewhere, so that load spreads evenly.
#[derive(Debug)]
pub enum Accepted {
    /// From the app, over loopback.
    Outbound(std::net::TcpStream),
    /// From the app, over a Unix socket.
    OutboundUnix(std::os::unix::net::UnixStream),
    /// From another sidecar.
    Inbound(std::net::TcpStream),
}

/// What one stream may have on its way: with the smallest gRPC messages, a frame each, this is 52,000 frames of 700 bytes
/// in memory, below the 64 MB that a stream may take (DESIGN §8).
pub const STREAM_WINDOW: u32 = 256 << 10;
/// Never the bottleneck: streams that nobody reads must not stop the others on their connection. h2 ends a connection on
/// which many small frames wait; how many is half of this by 255.
pub const CONNECTION_WINDOW: u32 = 1 << 30;

/// A sidecar ends in two steps: calls that are being served may still call others.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// No new inbound calls.
    pub inbound: CancellationToken,
    /// No new outbound calls either.
    pub outbound: CancellationToken,
    /// When those calls are cut that are still open; set before the first of the two.
    pub deadline: Arc<OnceLock<Instant>>,
}

/// What the calls of one thread share.
pub struct Worker {
    /// State that all workers read.
    pub live: Arc<Live>,
    /// This service's name.
    pub service: Arc<str>,
    /// The same as `:authority` for the app.
    pub authority: http::uri::Authority,
    /// Connections to the app and to other sidecars.
    pub pool: Pool,
    /// Calls that can be decided again.
    pub open: Arc<OpenCalls>,
    /// Its calls at the app.
    pub seats: Arc<Seats>,
    /// What this thread decided.
    pub ledger: Arc<Ledger>,
    /// What the app finds at `tcs.mesh`.
    pub lookups: tonic::service::Routes,
    /// What peers may do to this thread's connections.
    pub guarding: Arc<Guarding>,
    /// Header values of tenants that come often.
    pub ready: Ready,
    memory: Mutex<TokenMemory>,
    /// Of open inbound connections.
    callers: Mutex<Vec<Weak<Caller>>>,
    tls: Arc<ServerConfig>,
}

/// Hands connections to a worker's thread.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::UnboundedSender<Accepted>);

impl Handle {
    /// Gives the connection to the worker; dropped, and so closed, when the worker has stopped.
    pub fn give(&self, connection: Accepted) {
        let _stopped = self.0.send(connection);
    }
}

/// Starts a forwarding thread. It ends when all handles are gone and its calls have ended, at
/// the deadline of `shutdown` at the latest, or `drain` after the handles where there is none.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start(
    live: &Arc<Live>,
    number: usize,
    shutdown: Shutdown,
    drain: Duration,
) -> io::Result<(Handle, thread::JoinHandle<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    live.runs_on(runtime.handle());
    let (sender, receiver) = mpsc::unbounded_channel();
    let service: Arc<str> = live.config.service.as_str().into();
    let authority = http::uri::Authority::from_maybe_shared(service.to_string()).map_err(io::Error::other)?;
    let worker = Arc::new(Worker {
        service,
        authority,
        pool: Pool::new(Arc::clone(&live.identity)),
        open: Arc::default(),
        seats: Arc::new(Seats::new(Arc::clone(&live.limits), number)),
        ledger: Arc::clone(live.decisions.of(number)),
        lookups: lookups::routes(live),
        guarding: Guarding::new(Arc::clone(live.metrics.closed())),
        ready: Ready::default(),
        memory: Mutex::new(TokenMemory::new(live)),
        tls: tls::inbound_config(&live.identity, Arc::clone(&live.outside.tls)),
        callers: Mutex::default(),
        live: Arc::clone(live),
    });
    let thread = thread::Builder::new()
        .name(format!("tenon-worker-{number}"))
        .spawn(move || runtime.block_on(worker.run(receiver, shutdown, drain)))?;
    Ok((Handle(sender), thread))
}

impl Worker {
    /// The verifier of this thread's calls, with its memory of verified tokens.
    pub fn credentials(&self) -> MutexGuard<'_, TokenMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(
        self: Arc<Self>,
        mut accepted: mpsc::UnboundedReceiver<Accepted>,
        shutdown: Shutdown,
        drain: Duration,
    ) {
        let connections = TaskTracker::new();
        let background = tokio::spawn(Arc::clone(&self).look_after());
        // Until those who accept have ended: what they have accepted is served, and told to go elsewhere.
        while let Some(connection) = accepted.recv().await {
            let (worker, shutdown) = (Arc::clone(&self), shutdown.clone());
            connections.spawn(async move { worker.accept(connection, shutdown).await });
        }
        connections.close();
        let end = shutdown.deadline.get().copied().unwrap_or_else(|| Instant::now() + drain);
        if timeout_at(end, connections.wait()).await.is_err() {
            warn!(connections = connections.len(), "calls were still open at the end of the drain time and are cut");
        }
        background.abort();
    }

    fn callers(&self) -> MutexGuard<'_, Vec<Weak<Caller>>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
