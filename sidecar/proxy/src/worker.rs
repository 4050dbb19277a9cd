//! One forwarding thread: a runtime of its own, connections of its own, nothing shared but snapshots of state.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_identity::{clock, tls};
use rustls::ServerConfig;
use sidecar_core::{
    Lookup, Named, Proven, Refusal, Token, Wanted,
    inbound::{self, Head, Stop, Waited},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    body::{CallBody, deadline_refusal},
    caller::{Caller, check_key},
    cork::Cork,
    credentials::TokenMemory,
    decisions::{Grounds, Ledger},
    live::Live,
    lookups,
    metrics::Direction,
    open::{OpenCall, OpenCalls, Question},
    outbound,
    pool::Pool,
    tenants::{Answered, TenantRef},
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

/// Open calls are looked at this often.
const AGAIN: Duration = Duration::from_millis(250);
/// What the open calls on the connection of a revoked peer are given to be told so.
const FAREWELL: Duration = Duration::from_millis(250);
/// How often idle connections are looked for.
const PRUNE: Duration = Duration::from_secs(30);

/// A sidecar ends in two steps: calls that are being served may still call others.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// No new inbound calls.
    pub inbound: CancellationToken,
    /// No new outbound calls either.
    pub outbound: CancellationToken,
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
    /// What this thread decided.
    pub ledger: Arc<Ledger>,
    /// What the app finds at `tcs.mesh`.
    pub lookups: tonic::service::Routes,
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

/// Starts a forwarding thread. It ends when `shutdown` is cancelled and its calls have ended, or after `drain`.
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
    let (sender, receiver) = mpsc::unbounded_channel();
    let service: Arc<str> = live.config.service.as_str().into();
    let authority = http::uri::Authority::from_maybe_shared(service.to_string()).map_err(io::Error::other)?;
    let worker = Arc::new(Worker {
        service,
        authority,
        pool: Pool::new(Arc::clone(&live.identity)),
        open: Arc::default(),
        ledger: Arc::clone(live.decisions.of(number)),
        lookups: lookups::routes(live),
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
        loop {
            tokio::select! {
                () = shutdown.outbound.cancelled() => break,
                connection = accepted.recv() => match connection {
                    Some(connection) => {
                        let worker = Arc::clone(&self);
                        let shutdown = shutdown.clone();
                        connections.spawn(async move { worker.accept(connection, shutdown).await });
                    }
                    None => break,
                },
            }
        }
        connections.close();
        if timeout(drain, connections.wait()).await.is_err() {
            warn!(connections = connections.len(), "calls were still open at the end of the drain time and are cut");
        }
        background.abort();
    }

    async fn accept(self: Arc<Self>, connection: Accepted, shutdown: Shutdown) {
        let served = match connection {
            Accepted::Outbound(stream) => self.clone().outbound_tcp(stream, shutdown.outbound).await,
            Accepted::OutboundUnix(stream) => match tokio::net::UnixStream::from_std(stream) {
                Ok(stream) => self.clone().outbound(stream, shutdown.outbound).await,
                Err(error) => Err(error.into()),
            },
            Accepted::Inbound(stream) => self.clone().inbound(stream, shutdown.inbound).await,
        };
        if let Err(error) = served {
            debug!(%error, "a connection ended");
        }
    }

    async fn outbound_tcp(self: Arc<Self>, stream: std::net::TcpStream, shutdown: CancellationToken) -> Served {
        stream.set_nodelay(true)?;
        self.outbound(tokio::net::TcpStream::from_std(stream)?, shutdown).await
    }

    async fn outbound<T>(self: Arc<Self>, stream: T, shutdown: CancellationToken) -> Served
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let _connected = self.live.metrics.calls(Direction::Outbound).connected();
        serve_http2(stream, shutdown, || false, move |request| outbound::serve(Arc::clone(&self), request)).await
    }

    async fn inbound(self: Arc<Self>, stream: std::net::TcpStream, shutdown: CancellationToken) -> Served {
        stream.set_nodelay(true)?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let (live, closing) = (Arc::clone(&self.live), shutdown.child_token());
        let (stream, client) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = tls::accept_client(&self.tls, &live.identity, &live.outside.tls, stream) => accepted?,
        };
        let _connected = live.metrics.calls(Direction::Inbound).connected();
        let caller = self.enter(client, closing.clone());
        let calling = Arc::clone(&caller);
        let serve = move |request| crate::inbound::serve(Arc::clone(&self), Arc::clone(&calling), request);
        serve_http2(stream, closing, || caller.is_expelled(), serve).await
    }

    /// Remembers the caller of a connection for as long as that is open.
    fn enter(&self, client: tls::Client, connection: CancellationToken) -> Arc<Caller> {
        let caller = Arc::new(Caller::new(client, connection));
        let mut callers = self.callers();
        if callers.len() == callers.capacity() {
            callers.retain(|caller| caller.strong_count() > 0);
        }
        callers.push(Arc::downgrade(&caller));
        drop(callers);
        // What changed since the handshake was over nobody else looks at.
        caller.look_again(&self.live.identity, &self.live.outside.tls);
        caller
    }

    /// Ends calls whose deadline has passed unnoticed, decides open calls again when something changed, and closes
    /// connections nobody uses, or whose peer is revoked.
    async fn look_after(self: Arc<Self>) {
        let mut changes = self.live.changes();
        let mut trust = self.live.identity.changes();
        // Those who came before this was read have been looked at since.
        let mut outsiders = self.live.outside.tls.version();
        let mut prune = tokio::time::interval(PRUNE);
        let mut look = tokio::time::interval(AGAIN);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One at a time; and whether there are calls that could not be decided yet.
        let mut asking: Option<JoinHandle<bool>> = None;
        let mut undecided = false;
        loop {
            tokio::select! {
                // At once, and not with the next look: a revocation is for now.
                Ok(()) = trust.changed() => self.trust_again(),
                _ = prune.tick() => self.pool.prune(),
                _ = look.tick() => {
                    for line in self.open.overdue(tokio::time::Instant::now() - AGAIN) {
                        line.hang_up(deadline_refusal());
                    }
                    if let Some(asked) = asking.take_if(|asked| asked.is_finished()) {
                        undecided |= !asked.await.unwrap_or(false);
                    }
                    // A burst of changes costs one round.
                    let changed = changes.has_changed().is_ok_and(|changed| changed);
                    if changed {
                        changes.mark_unchanged();
                        let now = self.live.outside.tls.version();
                        if now != outsiders {
                            outsiders = now;
                            self.credentials().forget_clients();
                            self.look_at_callers();
                        }
                    }
                    if changed || undecided {
                        let unknown = self.decide_again();
                        undecided = !unknown.is_empty() && asking.is_some();
                        if !unknown.is_empty() && asking.is_none() {
                            asking = Some(tokio::spawn(Arc::clone(&self).ask_again(unknown)));
                        }
                    }
                }
            }
        }
    }

    /// Ends what was begun on the strength of an identity or a key that is revoked by now, in both directions.
    fn trust_again(&self) {
        let revoked = self.live.identity.revoked();
        self.look_at_callers();
        self.pool.close_revoked();
        for call in self.open.snapshot() {
            if let Question::Inbound { caller, token, .. } = &call.question
                && let Err(refusal) = caller.check().and_then(|()| check_key(token.as_ref(), &revoked))
            {
                call.line.hang_up(refusal);
            }
        }
    }

    /// Closes the connections of those who may not be here any more.
    fn look_at_callers(&self) {
        let callers: Vec<_> = self.callers().iter().filter_map(Weak::upgrade).collect();
        for caller in callers {
            caller.look_again(&self.live.identity, &self.live.outside.tls);
        }
    }

    /// Ends what is not allowed any more. Returns the calls of tenants that are not held.
    fn decide_again(&self) -> Vec<(OpenCall, Wanted)> {
        let mut unknown = Vec::new();
        for call in self.open.snapshot() {
            match self.still(&call, None) {
                Still::Allowed => {}
                Still::Refused(refusal, grounds) => call.line.hang_up_on(refusal, grounds),
                Still::Unknown(wanted) => unknown.push((call, wanted)),
            }
        }
        unknown
    }

    /// Calls of tenants that are not held any more are decided by what the TCS says of them. While that cannot be asked
    /// they go on, since nothing is known against them; the answer says whether all were decided.
    async fn ask_again(self: Arc<Self>, unknown: Vec<(OpenCall, Wanted)>) -> bool {
        let (calls, wanted): (Vec<_>, Vec<_>) = unknown.into_iter().unzip();
        let answers = self.live.tenants.resolve_all(&wanted).await;
        let mut decided = true;
        for (call, answer) in calls.iter().zip(&answers) {
            match self.still(call, Some(answer)) {
                Still::Refused(refusal, grounds) => call.line.hang_up_on(refusal, grounds),
                Still::Allowed => {}
                Still::Unknown(_) => decided = false,
            }
            decided &= !matches!(answer, Lookup::NotHeld);
        }
        decided
    }

    /// Whether this open call would be allowed now. Its credentials were proven when it began.
    fn still(&self, call: &OpenCall, answer: Option<&Lookup<TenantRef>>) -> Still {
        match &call.question {
            Question::Inbound { caller, uri, tenant, transaction, token: _ } => {
                if let Err(refusal) = caller.check() {
                    return Still::Refused(refusal, None);
                }
                let tenant = tenant.as_ref().map_or(Named::None, |id| Named::One(id.to_str().unwrap_or_default()));
                let (path, token, txn_token) = (uri.path(), Token::One(""), Named::One(""));
                let head = Head { path, token, tenant, tenant_revision: None, txn_token };
                let mut proven = Proven { transaction: *transaction };
                let (state, now) = (self.live.inbound(), clock::unix_seconds());
                let tenants = Answered { tenants: &self.live.tenants, answer };
                let waited = Waited { for_revision: true, for_tenant: false };
                match inbound::decide(&state, &tenants, &mut proven, caller.peer(), &head, now, waited) {
                    Ok(_) | Err(Stop::WaitFor(_)) => Still::Allowed,
                    Err(Stop::Refused(refusal)) => {
                        let grounds = Grounds::of(&state, &refusal, false);
                        Still::Refused(refusal, Some(grounds))
                    }
                    Err(Stop::Resolve(wanted)) => Still::Unknown(wanted),
                }
            }
            Question::Outbound { service } => {
                let checked = self.live.outbound().quarantined.check(&self.service, service);
                checked.map_or_else(|refusal| Still::Refused(refusal, None), |()| Still::Allowed)
            }
        }
    }

    fn callers(&self) -> MutexGuard<'_, Vec<Weak<Caller>>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an open call has come to.
enum Still {
    Allowed,
    Refused(Refusal, Option<Box<Grounds>>),
    /// Its tenant is not held.
    Unknown(Wanted),
}

type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Serves one connection until it ends; after `shutdown` it takes no new call and ends with its last open one. Where
/// `expelled` says so by then, that is given [`FAREWELL`] and no more.
///
/// Windows and limits: `docs/adr/0002-hyper-for-the-data-path.md`. Limits on resets end the whole connection, which on
/// a connection between sidecars is everybody's: hence the large ones.
async fn serve_http2<T, S, F>(io: T, shutdown: CancellationToken, expelled: impl Fn() -> bool, serve: S) -> Served
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<CallBody>> + Send + 'static,
{
    // Boxed: hyper and tokio move this future several times before they poll it, and it is some kilobytes.
    let service = service_fn(|request| {
        let answer = serve(request);
        let answer: BoxFuture<'static, _> = Box::pin(async move { Ok::<_, Infallible>(answer.await) });
        answer
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(4_096)
        .max_header_list_size(64 << 10)
        .max_pending_accept_reset_streams(4_096)
        .max_local_error_reset_streams(None)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(Cork::new(io)), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    if expelled() {
        // Time for the reason to reach those who read; whoever does not goes without.
        return Ok(timeout(FAREWELL, connection).await.unwrap_or(Ok(()))?);
    }
    Ok(connection.await?)
}
