//! One sidecar from its listeners to its end.

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, anyhow};
use mesh_identity::workload;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::Admin,
    config::{Config, OutboundAddress},
    credentials::{self, Minting},
    joining,
    listen::{self, Outbound},
    live::Live,
    metrics::{Direction, Metrics},
    worker::{self, Shutdown},
};

/// How often it is looked whether the last inbound call has ended.
const QUIET_LOOK: Duration = Duration::from_millis(10);

/// A sidecar whose listeners are bound. It serves once it has joined the mesh.
pub struct Sidecar {
    outbound: OutboundAddress,
    inbound: SocketAddr,
    admin: SocketAddr,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Sidecar {
    /// Binds all listeners, then joins and serves in the background, on threads of its own for the data path.
    ///
    /// # Errors
    /// A listener cannot be bound: the message names it and the option.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let outbound = Outbound::bind(&config.outbound).await.with_context(|| taken("--outbound", &config.outbound))?;
        let inbound = listen::tcp(config.inbound).await.with_context(|| taken("--inbound", config.inbound))?;
        let admin_listener = listen::tcp(config.admin).await.with_context(|| taken("--admin", config.admin))?;
        let workload_api = match &config.serve_workload_api {
            Some(path) => Some(workload::bind(path).await.context("--serve-workload-api")?),
            None => None,
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
        Ok(Self {
            outbound: config.outbound.clone(),
            inbound: config.inbound,
            admin: config.admin,
            metrics,
            shutdown,
            task: tokio::spawn(run.run(Listeners { outbound, inbound, workload_api }, admin_listener)),
        })
    }

    /// Where the app's calls go.
    #[must_use]
    pub fn outbound(&self) -> &OutboundAddress {
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

fn taken(option: &str, address: impl std::fmt::Display) -> String {
    format!("cannot listen on {address}: choose another address with {option}, or stop the process that has it")
}

/// What is bound before the sidecar joins, but admin, which is served at once.
struct Listeners {
    outbound: Outbound,
    inbound: TcpListener,
    workload_api: Option<workload::Bound>,
}

struct Run {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    admin: Admin,
    shutdown: CancellationToken,
}

impl Run {
    async fn run(self, listeners: Listeners, admin: TcpListener) -> anyhow::Result<()> {
        // Admin outlives the calls, so that the drain can be watched.
        let end = CancellationToken::new();
        let admin_server = tokio::spawn(self.admin.clone().serve(admin, end.clone()));
        let served = self.serve(listeners, &end).await;
        end.cancel();
        let _stopped = admin_server.await;
        served
    }

    async fn serve(&self, listeners: Listeners, end: &CancellationToken) -> anyhow::Result<()> {
        let Listeners { outbound, inbound, workload_api } = listeners;
        let Some(joined) = joining::join(&self.config, &self.admin, &self.shutdown).await? else { return Ok(()) };
        let minting = Minting::new(Arc::clone(&joined.asap_key));
        let (live, mut tasks) =
            Live::start(&self.config, &joined.identity, &joined.instance, &self.metrics, minting, end);
        let (membership, staying) = joining::stay(&self.config, &joined, end);
        tasks.extend(staying);
        self.admin.joined(&live, &membership);
        tasks.push(tokio::spawn(credentials::keep_minting(Arc::clone(&live), membership, end.clone())));
        if let Some(bound) = workload_api {
            let served = workload::serve(bound, Arc::clone(&joined.identity), end.clone());
            tasks.push(tokio::spawn(async move {
                if let Err(error) = served.await {
                    warn!(%error, "the Workload API of the app has ended");
                }
            }));
        }
        let stopping = Shutdown::default();
        let mut handles = Vec::new();
        let mut threads = Vec::new();
        for number in 0..self.config.workers {
            let (handle, thread) = worker::start(&live, number, stopping.clone(), self.config.drain)
                .context("cannot start a forwarding thread")?;
            handles.push(handle);
            threads.push(thread);
        }
        let accepting = [
            tokio::spawn(listen::accept_outbound(outbound, handles.clone(), stopping.outbound.clone())),
            tokio::spawn(listen::accept_inbound(inbound, handles, stopping.inbound.clone())),
        ];
        self.shutdown.cancelled().await;
        info!("stopping: no new calls, open ones may end");
        stopping.inbound.cancel();
        self.inbound_calls_ended().await;
        stopping.outbound.cancel();
        for task in accepting {
            let _stopped = task.await;
        }
        tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| drop(thread::JoinHandle::join(thread)))
        })
        .await
        .context("waiting for the forwarding threads")?;
        end.cancel();
        for task in tasks {
            let _stopped = task.await;
        }
        Ok(())
    }

    /// Until the app serves nobody any more, or the drain time is over: what it serves may need outbound calls.
    async fn inbound_calls_ended(&self) {
        let calls = self.metrics.calls(Direction::Inbound);
        let quiet = async {
            while calls.in_flight() > 0 {
                tokio::time::sleep(QUIET_LOOK).await;
            }
        };
        if tokio::time::timeout(self.config.drain, quiet).await.is_err() {
            warn!(calls = calls.in_flight(), "inbound calls are still open at the end of the drain time");
        }
    }
}
