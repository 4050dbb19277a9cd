//! One sidecar from its listeners to its end.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use mesh_identity::{Identity, join::Joined, workload};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::Admin,
    config::{Config, LocalAddress},
    credentials::{self, Minting},
    handover::{self, Heritage, Listeners, Offered, Predecessor},
    health, joining,
    listen::{self, Accepting, AppSocket, Outbound},
    live::Live,
    metrics::{Direction, Metrics},
    worker::{self, Shutdown},
};

/// How often it is looked whether something has come to its end, or its beginning.
const LOOK: Duration = Duration::from_millis(10);
/// How long the policy service may take to confirm that this instance is off the list.
const LEAVE: Duration = Duration::from_secs(1);
/// How long a peer without an open call may take to go away.
const SILENT: Duration = Duration::from_secs(1);
/// What a client of the Workload API that has connected has at least to ask when another process takes over.
const LAST_FETCH: Duration = Duration::from_millis(200);
/// What outbound calls have at least when inbound ones took all of the drain time.
const LAST_OUTBOUND: Duration = Duration::from_secs(1);

/// A sidecar whose listeners are bound. It serves once it has joined the mesh.
pub struct Sidecar {
    outbound: LocalAddress,
    inbound: SocketAddr,
    admin: SocketAddr,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Sidecar {
    /// Binds all listeners, or takes them over, then joins and serves in the background, on threads of its own for the data
    /// path.
    ///
    /// # Errors
    /// A listener cannot be bound: the message names it and the option.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let offered = if config.take_over { handover::take_over(&config).await? } else { Offered::default() };
        let outbound = match offered.outbound {
            Some(outbound) => outbound,
            None => Outbound::bind(&config.outbound)
                .await
                .map_err(|error| cannot_listen("--outbound", &config.outbound, error))?,
        };
        let inbound = bound("--inbound", config.inbound, offered.inbound).await?;
        let admin_listener = bound("--admin", config.admin, offered.admin).await?;
        let workload_api = match (&config.serve_workload_api, offered.workload_api) {
            (None, _) => None,
            (Some(_), Some(offered)) => Some(offered),
            (Some(path), None) => {
                // The process that runs may be served at the path until this one takes its place.
                let over = offered.by.is_some();
                let bound = if over { AppSocket::beside(path) } else { AppSocket::bind(path).await };
                Some(bound.map_err(|error| cannot_listen("--serve-workload-api", path.display(), error))?)
            }
        };
        config.outbound = outbound.address()?;
        config.inbound = inbound.local_addr()?;
        config.admin = admin_listener.local_addr()?;
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::default());
        let shutdown = CancellationToken::new();
        let admin = Admin::new(Arc::clone(&config), Arc::clone(&metrics), shutdown.clone());
        info!(
            service = %config.service, outbound = %config.outbound, inbound = %config.inbound, admin = %config.admin,
            "listening"
        );
        let run = Run { config: Arc::clone(&config), metrics: Arc::clone(&metrics), admin, shutdown: shutdown.clone() };
        let listeners = Listeners { outbound, inbound, workload_api, former: offered.by };
        Ok(Self {
            outbound: config.outbound.clone(),
            inbound: config.inbound,
            admin: config.admin,
            metrics,
            shutdown,
            task: tokio::spawn(run.run(listeners, admin_listener)),
        })
    }

    /// Where the app's calls go.
    #[must_use]
    pub fn outbound(&self) -> &LocalAddress {
        &self.outbound
    }

    /// Where other sidecars call.
    #[must_use]
    pub fn inbound(&self) -> SocketAddr {
        self.inbound
    }

    /// Where operators look.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Calls that have started and not ended, of both directions.
    #[must_use]
    pub fn in_flight(&self) -> i64 {
        Direction::ALL.into_iter().map(|direction| self.metrics.calls(direction).in_flight()).sum()
    }

    /// Asks it to end: no new calls, open ones may end within the drain time.
    #[must_use]
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Whatever ended it before it was asked to.
    pub async fn ended(self) -> anyhow::Result<()> {
        self.task.await.map_err(|error| anyhow!("the sidecar's main task died: {error}"))?
    }
}

/// What to do depends on who has the address, or why nobody can.
fn cannot_listen(option: &str, address: impl std::fmt::Display, error: io::Error) -> anyhow::Error {
    let what_to_do = if error.kind() == io::ErrorKind::AddrInUse {
        format!("stop the process that has it, take over from it with --take-over, or choose another one with {option}")
    } else if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) {
        format!("{option} needs an address, or a folder, that is there and that this user may use")
    } else {
        format!("choose another one with {option}")
    };
    anyhow!(error).context(format!("cannot listen on {address}: {what_to_do}"))
}

async fn bound(option: &str, address: SocketAddr, offered: Option<TcpListener>) -> anyhow::Result<TcpListener> {
    match offered {
        Some(listener) => Ok(listener),
        None => listen::tcp(address).await.map_err(|error| cannot_listen(option, address, error)),
    }
}

/// The admin listener, served or not yet.
struct AdminServer {
    admin: Admin,
    listener: Option<TcpListener>,
    task: Option<JoinHandle<io::Result<()>>>,
    end: CancellationToken,
}

impl AdminServer {
    fn start(&mut self) {
        if let Some(listener) = self.listener.take() {
            self.task = Some(tokio::spawn(self.admin.clone().serve(listener, self.end.clone())));
        }
    }

    async fn stop(self) {
        self.end.cancel();
        if let Some(task) = self.task {
            let _stopped = task.await;
        }
    }
}

struct Run {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    admin: Admin,
    shutdown: CancellationToken,
}

/// What runs once the sidecar has joined.
struct Serving {
    live: Arc<Live>,
    tasks: Vec<JoinHandle<()>>,
    threads: Vec<thread::JoinHandle<()>>,
    handles: Vec<worker::Handle>,
    stopping: Shutdown,
    /// Those who accept inbound and outbound connections.
    accepting: Option<[JoinHandle<()>; 2]>,
    /// Another process has the listeners.
    handed_over: CancellationToken,
    /// Everything but calls.
    end: CancellationToken,
}

impl Run {
    async fn run(self, listeners: Listeners, admin: TcpListener) -> anyhow::Result<()> {
        let heritage = Heritage::new(&self.config, &listeners, &admin)?;
        // Admin outlives the calls, so that the drain can be watched, unless another process answers there by then.
        let end = CancellationToken::new();
        let mut admin = AdminServer { admin: self.admin.clone(), listener: Some(admin), task: None, end };
        // A process that runs answers until this one takes its place.
        if listeners.former.is_none() {
            admin.start();
        }
        let served = self.serve(listeners, heritage, &mut admin).await;
        admin.stop().await;
        served
    }

    async fn serve(&self, listeners: Listeners, heritage: Heritage, admin: &mut AdminServer) -> anyhow::Result<()> {
        let Some(joined) = joining::join(&self.config, &self.admin, &self.shutdown).await? else { return Ok(()) };
        let mut serving = self.begin(&joined)?;
        let mut successor = None;
        if self.may_accept(listeners.former.as_ref()).await {
            admin.start();
            self.accept(listeners, &joined, &mut serving, &heritage.shared()).await;
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                taken = heritage.pass_on(&self.config.state_dir) => successor = Some(taken),
            }
        }
        if successor.is_some() {
            info!("handed over: open calls may end here");
            admin.end.cancel();
            serving.handed_over.cancel();
        } else {
            info!("stopping: no new calls, open ones may end");
            self.leave(&serving.live).await;
        }
        self.finish(serving).await
    }

    /// All that needs no listener.
    fn begin(&self, joined: &Joined) -> anyhow::Result<Serving> {
        let (end, handed_over) = (CancellationToken::new(), CancellationToken::new());
        let minting = Minting::new(Arc::clone(&joined.asap_key));
        let (live, mut tasks) =
            Live::start(&self.config, &joined.identity, &joined.instance, &self.metrics, minting, &end);
        // Who takes over renews the identity, and it alone.
        let keeping = end.child_token();
        let (membership, staying) = joining::stay(&self.config, joined, &keeping);
        tasks.extend(staying);
        let over = handed_over.clone();
        tasks.push(tokio::spawn(async move {
            tokio::select! {
                () = over.cancelled() => keeping.cancel(),
                () = keeping.cancelled() => {}
            }
        }));
        self.admin.joined(&live, &membership);
        tasks.push(tokio::spawn(credentials::keep_minting(Arc::clone(&live), membership, end.clone())));
        tasks.push(tokio::spawn(health::look_after(Arc::clone(&live), end.clone())));
        let stopping = Shutdown::default();
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for number in 0..self.config.workers {
            let (handle, thread) = worker::start(&live, number, stopping.clone(), self.config.drain)
                .context("cannot start a forwarding thread")?;
            handles.push(handle);
            threads.push(thread);
        }
        Ok(Serving { live, tasks, threads, handles, stopping, accepting: None, handed_over, end })
    }

    /// Whoever has the listeners serves until this process can. `false`: this one is asked to end before.
    async fn may_accept(&self, former: Option<&Predecessor>) -> bool {
        let Some(former) = former else { return true };
        while !self.admin.is_ready() {
            tokio::select! {
                () = self.shutdown.cancelled() => return false,
                () = former.gone() => {
                    warn!("the process that was to be taken over from has ended before this one was ready");
                    return true;
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        true
    }

    async fn accept(&self, listeners: Listeners, joined: &Joined, serving: &mut Serving, shared: &Arc<AtomicBool>) {
        let Listeners { outbound, inbound, workload_api, former } = listeners;
        let (handles, stopping) = (std::mem::take(&mut serving.handles), &serving.stopping);
        let how = Accepting {
            users: self.config.app_uids.clone(),
            metrics: Arc::clone(&self.metrics),
            shutdown: stopping.outbound.clone(),
            shared: Arc::clone(shared),
        };
        serving.accepting = Some([
            tokio::spawn(listen::accept_inbound(inbound, handles.clone(), stopping.inbound.clone())),
            tokio::spawn(listen::accept_outbound(outbound, handles, how)),
        ]);
        if let Some(former) = former {
            former.let_go().await;
        }
        if let (Some(mut socket), Some(path)) = (workload_api, &self.config.serve_workload_api) {
            if let Err(error) = socket.file.place(path) {
                warn!(%error, "the app finds no Workload API at {}", path.display());
            }
            let (until, shared) = ((serving.handed_over.clone(), serving.end.clone()), Arc::clone(shared));
            serving.tasks.push(tokio::spawn(serve_workload_api(socket, Arc::clone(&joined.identity), until, shared)));
        }
    }

    /// Off the list of those that take calls; until callers have heard of it, calls are taken as before.
    async fn leave(&self, live: &Live) {
        if live.registration.leave(LEAVE).await {
            tokio::time::sleep(self.config.settle).await;
        }
    }

    /// No new calls on any connection, each told so in its own protocol; then what is open ends, or its time is over.
    async fn finish(&self, serving: Serving) -> anyhow::Result<()> {
        let Serving { live, tasks, threads, handles, stopping, accepting, handed_over, end } = serving;
        let _once = stopping.deadline.set(Instant::now() + self.config.drain + LAST_OUTBOUND);
        stopping.inbound.cancel();
        if handed_over.is_cancelled() {
            // The app's next calls go through the process that serves them.
            stopping.outbound.cancel();
        } else {
            self.inbound_ended().await;
            stopping.outbound.cancel();
        }
        for task in accepting.into_iter().flatten() {
            let _stopped = task.await;
        }
        drop(handles);
        tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| drop(thread::JoinHandle::join(thread)))
        })
        .await
        .context("waiting for the forwarding threads")?;
        drop(live);
        end.cancel();
        for task in tasks {
            let _stopped = task.await;
        }
        Ok(())
    }

    /// Until nobody is connected for whom the app might still do something, or the drain time is over: what it serves may
    /// need outbound calls. Who has no open call and does not go away is not waited for.
    async fn inbound_ended(&self) {
        let calls = self.metrics.calls(Direction::Inbound);
        let quiet = async {
            let mut last_call = Instant::now();
            while calls.connections() > 0 && last_call.elapsed() < SILENT {
                if calls.in_flight() > 0 {
                    last_call = Instant::now();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(self.config.drain, quiet).await.is_err() {
            warn!(calls = calls.in_flight(), "inbound calls are still open at the end of the drain time");
        }
    }
}

/// Until the `end`; once another process accepts, only for those who are connected.
async fn serve_workload_api(
    socket: AppSocket,
    identity: Arc<Identity>,
    (handed_over, end): (CancellationToken, CancellationToken),
    shared: Arc<AtomicBool>,
) {
    let AppSocket { listener, mut file } = socket;
    file.own();
    let last = CancellationToken::new();
    let ending = async {
        tokio::select! {
            // Somebody who has just connected has yet to ask.
            () = handed_over.cancelled() => tokio::time::sleep(LAST_FETCH).await,
            () = end.cancelled() => {}
        }
        end.cancelled().await;
        last.cancel();
        tokio::time::sleep(SILENT).await;
    };
    tokio::select! {
        served = workload::serve(listener, identity, handed_over.clone(), last.clone()) => {
            if let Err(error) = served {
                warn!(%error, "the Workload API of the app has ended");
            }
        }
        () = ending => {}
    }
    if shared.load(Ordering::Acquire) {
        file.keep();
    }
}
