//! The policy service as a process: stores, folder, publishers and the server.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use journal::{
    Journal, OpenError, Options, Publisher, REPLICATION_AUTHORIZATION, ReadError, ReplicationService, Store,
};
use journal::{
    audit::{self, AUDIT_AUTHORIZATION, Audit, AuditService},
    metrics::{Publishers, Stores},
};
use mesh_config::names::{TrustDomain, control_plane};
use mesh_identity::{
    Identity,
    grpc::{self, Rpc, Server},
    metrics::OwnSvid,
    policy_signature::PublicKey,
    tls::Clients,
};
use mesh_telemetry::Telemetry;
use tenon_proto::kind;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    dashboard::{Dashboard, Shown},
    engine::{Engine, Journals},
    fleet::{FLEET_AUTHORIZATION, Fleet, FleetError, FleetService},
    leases::{Keeping, Leases, Places},
    metrics::Folder,
    rollout::{self, Rollouts},
    service::{POLICY_AUTHORIZATION, PolicyService},
    views::{Allowlists, ForCallers, ForIdentity},
    watch::Watcher,
};

/// Everything that the process's server serves, and to whom.
pub static AUTHORIZATION: LazyLock<Vec<Rpc>> = LazyLock::new(|| {
    [POLICY_AUTHORIZATION, FLEET_AUTHORIZATION, REPLICATION_AUTHORIZATION, AUDIT_AUTHORIZATION].concat()
});

/// Past changes that are kept for followers that were away. Whoever is further behind takes a snapshot.
const RETAINED: Options = Options { retained_changes: 20_000, ..Options::DEFAULT };
/// Files are written whole each time, and nobody follows them. The history is records of its own, none of these changes.
const RETAINED_SOURCES: Options = Options { retained_changes: 8, retained_bytes: 256 << 20, ..Options::DEFAULT };

/// What the policy service is started with.
#[derive(Debug)]
pub struct Config {
    /// Where it serves gRPC.
    pub listener: TcpListener,
    /// Where policy is kept. The files in force are kept beside an embedded store, in a file of the same name with
    /// `.sources` behind, and the flow record in one with `.flows`.
    pub store: Store,
    /// Folder for what is held of a store that is elsewhere.
    pub state_dir: PathBuf,
    /// The watched folder; `None`: policy comes by `Apply` alone.
    pub folder: Option<PathBuf>,
    /// When there are any: only what one of these keys signed becomes the policy, wherever it comes from.
    pub accept: Vec<PublicKey>,
    /// Its own identity, kept renewed by the caller. Its trust domain must be that of the policy.
    pub identity: Arc<Identity>,
    /// Where it serves the dashboard, over HTTP: an address of this machine alone. `None`: nowhere.
    pub dashboard: Option<SocketAddr>,
    /// The TCS that the dashboard asks for tenants: the first of these that answers.
    pub tcs: Vec<SocketAddr>,
}

/// Why the policy service could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store cannot be opened.
    #[error("the store of the policy service cannot be used")]
    Open(#[from] OpenError),
    /// The store cannot be read.
    #[error("the policy in force cannot be read")]
    Read(#[from] ReadError),
    /// The flow record cannot be kept.
    #[error("the policy service cannot keep its flow record")]
    Fleet(#[from] FleetError),
    /// The server failed.
    #[error("the server of the policy service failed")]
    Server(#[source] io::Error),
}

/// Serves until `shutdown`.
///
/// A folder with problems is no reason to end: the last good policy stays in force, and `Describe` shows the problems.
///
/// # Errors
/// When the store cannot be opened, or the server fails.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), ServeError> {
    serve_observed(config, Arc::default(), shutdown).await
}

/// As [`serve`], and `telemetry` shows how it is.
///
/// # Errors
/// As [`serve`].
pub async fn serve_observed(
    config: Config,
    telemetry: Arc<Telemetry>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let Config { listener, store, state_dir, folder, accept, identity, dashboard, tcs } = config;
    let stores = Stores::default();
    let trust_domain = identity.id().trust_domain().clone();
    let (journals, holders) = open(&store, &trust_domain, &state_dir, &stores).await?;
    let (fleet, recording) = Fleet::open(&store, &trust_domain, &state_dir, &shutdown).await?;
    let engine = Arc::new(Engine::open(trust_domain, accept, journals.clone()).await?);
    // Before anybody is served: who starts together with this service shall not meet an empty policy.
    let mut watcher = Watcher::new(Arc::clone(&engine), folder);
    watcher.first_look().await;
    let watching = tokio::spawn(watcher.run(shutdown.clone()));

    let endpoints = Arc::clone(&journals.endpoints);
    let publishers = publishers(journals, &shutdown);
    telemetry.add(OwnSvid(Arc::clone(&identity)));
    telemetry.add(Publishers(publishers.clone()));
    telemetry.add(Folder(Arc::clone(&engine)));
    telemetry.add(stores);
    let publisher = publishers.iter().find(|publisher| publisher.kind() == kind::ENDPOINT).cloned();
    let holder = Fleet::name(&state_dir)?;
    let places = Arc::clone(&engine) as Arc<dyn Places>;
    let (leases, keeping) = Leases::keep(Keeping { endpoints, holders, holder, places, publisher }, shutdown.clone());
    // What another process cannot have open, no other process can drive.
    let alone = matches!(store, Store::Embedded(_));
    let rollouts = Rollouts::new(Arc::clone(&engine), Arc::clone(&fleet), publishers[0].clone(), alone);
    let rollouts = Arc::new(rollouts);
    let driving = tokio::spawn(rollout::run(Arc::clone(&rollouts), shutdown.clone()));
    let at = state_dir.join("journal-audit");
    let record = Audit::open(audit::Service::Policy, &Audit::beside(&store), identity.id().trust_domain(), &at).await?;
    let shown = Shown {
        engine: Arc::clone(&engine),
        fleet: Arc::clone(&fleet),
        rollouts: Arc::clone(&rollouts),
        publishers: publishers.clone(),
        identity: Arc::clone(&identity),
        audit: record.clone(),
    };
    let (dashboard, showing) = show(dashboard, shown, &tcs, &shutdown);
    let routes = Routes::new(PolicyService::new(engine, Arc::clone(&fleet), rollouts, dashboard).into_server())
        .add_service(FleetService::new(&fleet, Some(leases)).into_server())
        .add_service(AuditService::new(record.clone()).into_server())
        .add_service(ReplicationService::new(publishers).into_server());
    let server = Server {
        listener,
        identity,
        clients: Clients::Required,
        authorization: &AUTHORIZATION,
        routes,
        recorder: Some(Arc::new(record.clone())),
    };
    let rpcs = telemetry.serves(grpc::methods(&AUTHORIZATION));
    let outcome = server.run_measured(Some(rpcs), shutdown).await;
    telemetry.ends();
    // The store is free for the next process only when nothing of this one holds it.
    for task in [watching, driving, keeping].into_iter().chain(showing) {
        task.abort();
        let _ = task.await;
    }
    record.end().await;
    recording.end().await;
    outcome.map_err(ServeError::Server)
}

/// Serves the dashboard beside everything else, where somebody wants it.
fn show(
    address: Option<SocketAddr>,
    shown: Shown,
    tcs: &[SocketAddr],
    shutdown: &CancellationToken,
) -> (Option<Arc<Dashboard>>, Option<JoinHandle<()>>) {
    let Some(address) = address else { return (None, None) };
    let dashboard = Arc::new(Dashboard::new(shown, tcs));
    let showing = tokio::spawn(Arc::clone(&dashboard).serve(address, shutdown.clone()));
    (Some(dashboard), Some(showing))
}

/// The journals, and the one in which policy services say that they live, where there can be others.
async fn open(
    store: &Store,
    trust_domain: &TrustDomain,
    state_dir: &Path,
    stores: &Stores,
) -> Result<(Journals, Option<Arc<dyn Journal>>), OpenError> {
    let alone = matches!(store, Store::Embedded(_));
    // What is rewritten whole each time would push the past of the records out.
    let beside = match store {
        Store::Embedded(file) => {
            let mut sources = file.clone().into_os_string();
            sources.push(".sources");
            stores.file("policy", file);
            stores.file("policy-sources", &sources);
            Store::Embedded(sources.into())
        }
        Store::Nats(servers) => Store::Nats(servers.clone()),
    };
    let store = journal::open(store, trust_domain, &state_dir.join("journal"), RETAINED).await?;
    let sources = journal::open(&beside, trust_domain, &state_dir.join("journal-sources"), RETAINED_SOURCES).await?;
    let holders = if alone { None } else { Some(sources.kind("holder").await?) };
    let journals = Journals {
        allowlists: stores.timed(kind::ALLOWLIST, store.kind(kind::ALLOWLIST).await?),
        routes: stores.timed(kind::ROUTE, store.kind(kind::ROUTE).await?),
        endpoints: stores.timed(kind::ENDPOINT, store.kind(kind::ENDPOINT).await?),
        quarantines: stores.timed(kind::QUARANTINE, store.kind(kind::QUARANTINE).await?),
        attestors: stores.timed(kind::ATTESTATION, store.kind(kind::ATTESTATION).await?),
        sources: stores.timed("source", sources.kind("source").await?),
    };
    Ok((journals, holders))
}

/// Each kind with its views.
fn publishers(journals: Journals, shutdown: &CancellationToken) -> Vec<Publisher> {
    let callers = || Arc::new(ForCallers { control_plane: &[] });
    // Routes tell the TCS which product each service is, and the identity service who may ask for transaction tokens.
    let and_control_plane = ForCallers { control_plane: &[control_plane::TCS, control_plane::IDENTITY] };
    vec![
        Publisher::start(kind::ALLOWLIST, journals.allowlists, Arc::new(Allowlists), shutdown.clone()),
        Publisher::start(kind::ROUTE, journals.routes, Arc::new(and_control_plane), shutdown.clone()),
        Publisher::start(kind::ENDPOINT, journals.endpoints, callers(), shutdown.clone()),
        Publisher::start(kind::QUARANTINE, journals.quarantines, callers(), shutdown.clone()),
        Publisher::start(kind::ATTESTATION, journals.attestors, Arc::new(ForIdentity), shutdown.clone()),
    ]
}

#[cfg(test)]
mod tests;
