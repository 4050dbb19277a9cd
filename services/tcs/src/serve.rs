//! The TCS as a process: where its tenants come from, the routes that it follows, and the server.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use journal::audit::{self, AUDIT_AUTHORIZATION, Audit, AuditService};
use journal::metrics::{Publishers, ReplicaStatus, Replicas, Stores};
use journal::{OpenError, Options, Publisher, REPLICATION_AUTHORIZATION, RelaySource, ReplicationService};
use mesh_config::names::{ServiceName, TrustDomain, control_plane};
use mesh_identity::Identity;
use mesh_identity::grpc::{self, Rpc, Server};
use mesh_identity::metrics::OwnSvid;
use mesh_identity::tls::Clients;
use mesh_telemetry::Telemetry;
use replica::{Decoded, Event, Follow, Replica};
use tenon_proto::kind;
use tenon_proto::tcs::v1::lifecycle_server::LifecycleServer;
use tenon_proto::tcs::v1::operations_server::OperationsServer;
use tenon_proto::tcs::v1::tenants_server::TenantsServer;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::guard::Guards;
use crate::lifecycle::{self, LIFECYCLE_AUTHORIZATION, LifecycleService};
use crate::operations::{OPERATIONS_AUTHORIZATION, OperationsService};
use crate::published::Published;
use crate::reading::Reading;
use crate::relay::{Changes, Followed};
use crate::routes::ServiceRoute;
use crate::service::{TENANTS_AUTHORIZATION, TenantsService};
use crate::store::Store;
use crate::views::ProductViews;
use crate::writing::Writing;

/// Everything that the process's server serves, and to whom: the same in each role.
pub static AUTHORIZATION: LazyLock<Vec<Rpc>> = LazyLock::new(|| {
    [
        TENANTS_AUTHORIZATION,
        LIFECYCLE_AUTHORIZATION,
        OPERATIONS_AUTHORIZATION,
        REPLICATION_AUTHORIZATION,
        AUDIT_AUTHORIZATION,
    ]
    .concat()
});

/// Folder below the state folder for what is held of a store that is elsewhere.
const JOURNAL: &str = "journal";

/// What is kept of the past of tenants unless something else is said: 30 days, and no more than 16 GiB.
pub const PAST: Options = Options { retained_changes: u64::MAX, retained_bytes: 16 << 30, ..Options::DEFAULT };

/// What the TCS is started with.
#[derive(Debug)]
pub struct Config {
    /// Where it serves gRPC.
    pub listener: TcpListener,
    /// Where its tenants come from.
    pub role: Role,
    /// Folder for what it keeps of other services' state: the routes that say which product each service is, and, of a
    /// relay, the tenants.
    pub state_dir: PathBuf,
    /// Its own identity, kept renewed by the caller.
    pub identity: Arc<Identity>,
    /// Names this process as a follower, the same as for the identity service.
    pub instance: Arc<str>,
    /// The processes of the policy service whose routes it follows: one or two.
    pub policy: Vec<SocketAddr>,
}

/// Where a TCS has its tenants from.
#[derive(Clone, Debug)]
pub enum Role {
    /// It writes the truth.
    Leader {
        /// Where it is kept; of a store that is elsewhere, what is held of it lies below the state folder.
        store: journal::Store,
        /// How much of its past is kept: how far back a backup reaches.
        past: Options,
    },
    /// It follows others and serves what they say; it takes no writes.
    Relay {
        /// One or more: two are followed at once. Writes are refused with a word of them.
        parents: Vec<SocketAddr>,
    },
}

/// Why the TCS could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The folder of the store cannot be made.
    #[error("cannot create {}: check that its parent is a folder that this user may write to", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("the store of tenants cannot be used")]
    Open(#[from] OpenError),
    /// The store cannot be read, or a tenant in it does not decode.
    #[error("the store of tenants cannot be used")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server failed.
    #[error("the server of the tenant context service failed")]
    Server(#[source] io::Error),
}

/// What a role comes to: where tenants are read and written, and who publishes them.
struct Tenants {
    reading: Reading,
    writing: Writing,
    publisher: Publisher,
    /// Ends when the last state is on disk.
    following: Option<JoinHandle<()>>,
}

/// Serves until `shutdown`.
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
    let Config { listener, role, state_dir, identity, instance, policy } = config;
    // Everything started here ends with this function, also when the server fails by itself.
    let shutdown = shutdown.child_token();
    let ending = shutdown.clone().drop_guard();
    create(&state_dir)?;
    let changed = Arc::new(Notify::new());
    let parents: Vec<_> = policy.into_iter().map(|address| (address, control_plane::POLICY)).collect();
    let follow = follow(kind::ROUTE, &identity, &instance, &parents, state_dir.clone());
    let (routes, following_routes) = follow_routes(follow, Arc::clone(&changed), shutdown.clone());
    let views = Arc::new(ProductViews::new(routes.clone()));
    let stores = Stores::default();
    let mut replicas = Replicas(vec![held(kind::ROUTE, routes.clone())]);
    let record = match &role {
        Role::Leader { store, .. } => Audit::beside(store),
        Role::Relay { .. } => journal::Store::Embedded(state_dir.join("audit.redb")),
    };
    let local = state_dir.join("journal-audit");
    let tenants = match role {
        Role::Leader { store, past } => {
            lead(&store, past, identity.id().trust_domain(), &state_dir, views, &stores, &shutdown).await?
        }
        Role::Relay { parents } => {
            let addresses: Vec<_> = parents.iter().map(|parent| (*parent, control_plane::TCS)).collect();
            let follow = self::follow(kind::TENANT, &identity, &instance, &addresses, state_dir);
            relay(follow, parents.into(), views, &mut replicas, &shutdown)
        }
    };
    let Tenants { reading, writing, publisher, following } = tenants;
    let record = Audit::open(audit::Service::Tcs, &record, identity.id().trust_domain(), &local).await?;
    telemetry.add(OwnSvid(Arc::clone(&identity)));
    telemetry.add(Publishers(vec![publisher.clone()]));
    telemetry.add(stores);
    telemetry.add(replicas);
    let refreshing = tokio::spawn(refresh(publisher.clone(), changed));

    let services = Routes::new(TenantsServer::new(TenantsService::new(reading, writing.clone(), shutdown.clone())))
        .add_service(LifecycleServer::new(LifecycleService::new(writing.clone(), routes)))
        .add_service(OperationsServer::new(OperationsService::new(writing)))
        .add_service(AuditService::new(record.clone()).into_server())
        .add_service(ReplicationService::new(vec![publisher]).into_server());
    let server = Server {
        listener,
        identity,
        clients: Clients::Required,
        authorization: &AUTHORIZATION,
        routes: services,
        recorder: Some(Arc::new(record.clone())),
    };
    let rpcs = telemetry.serves(grpc::methods(&AUTHORIZATION));
    let outcome = server.run_measured(Some(rpcs), shutdown).await;
    record.end().await;
    telemetry.ends();
    refreshing.abort();
    drop(ending);
    // The followers' last state goes to disk.
    for following in std::iter::once(following_routes).chain(following) {
        if let Err(error) = following.await {
            tracing::error!(%error, "following failed");
        }
    }
    outcome.map_err(ServeError::Server)
}

/// The truth is here.
async fn lead(
    store: &journal::Store,
    past: Options,
    trust_domain: &TrustDomain,
    state_dir: &Path,
    views: Arc<ProductViews<Replica<Decoded<ServiceRoute>>>>,
    stores: &Stores,
    shutdown: &CancellationToken,
) -> Result<Tenants, ServeError> {
    if let journal::Store::Embedded(file) = store
        && let Some(folder) = file.parent()
    {
        create(folder)?;
    }
    if let journal::Store::Embedded(file) = store {
        stores.file("tcs", file);
    }
    let unusable = |error: Box<dyn std::error::Error + Send + Sync>| ServeError::Store(error);
    let journals = journal::open(store, trust_domain, &state_dir.join(JOURNAL), past).await?;
    let journal = stores.timed(kind::TENANT, journals.kind(kind::TENANT).await?);
    let guard = stores.timed(kind::TENANT_GUARD, journals.kind(kind::TENANT_GUARD).await?);
    let guards = Guards::open(Arc::clone(&guard), shutdown.clone()).await.map_err(|error| unusable(error.into()))?;
    let store = Store::open(Arc::clone(&journal), guards.clone(), shutdown.clone())
        .await
        .map_err(|error| unusable(error.into()))?;
    tokio::spawn(lifecycle::forget_old_events(store.clone(), shutdown.clone()));
    let published = Published { tenants: journal, guard };
    let publisher = Publisher::start_guarded(kind::TENANT, published, views, guards.rules(), shutdown.clone());
    Ok(Tenants {
        reading: Reading::Store(store.clone()),
        writing: Writing::Leader(store, guards),
        publisher,
        following: None,
    })
}

/// The truth is elsewhere, and is passed on as it comes.
fn relay(
    follow: Follow,
    parents: Arc<[SocketAddr]>,
    views: Arc<ProductViews<Replica<Decoded<ServiceRoute>>>>,
    replicas: &mut Replicas,
    shutdown: &CancellationToken,
) -> Tenants {
    let changes = Changes::default();
    let observer = {
        let changes = changes.clone();
        move |event: Event<'_, Followed>| changes.observe(&event)
    };
    let (source, following) = RelaySource::follow(follow, observer, shutdown.clone());
    replicas.0.push(held(kind::TENANT, source.replica().clone()));
    let reading = Reading::Relay(source.replica().clone(), changes);
    let rules = source.replica().guard_rules();
    let publisher = Publisher::start_guarded(kind::TENANT, source, views, rules.clone(), shutdown.clone());
    Tenants { reading, writing: Writing::Elsewhere(parents, rules), publisher, following: Some(following) }
}

/// How `replica` stands, asked at each scrape.
fn held<T: replica::Value>(kind: &'static str, replica: Replica<T>) -> (&'static str, ReplicaStatus) {
    (kind, Box::new(move || replica.status()))
}

/// From services of the control plane, each with its address.
fn follow(
    kind: &'static str,
    identity: &Arc<Identity>,
    instance: &str,
    parents: &[(SocketAddr, &str)],
    state_dir: PathBuf,
) -> Follow {
    let channel = |(address, name): &(SocketAddr, &str)| {
        let expected = ServiceName::try_from(*name).expect("a constant that is a service name");
        grpc::channel(*address, identity, &expected)
    };
    Follow {
        kind,
        instance: instance.to_owned(),
        parents: parents.iter().map(channel).collect(),
        state_dir: Some(state_dir),
    }
}

fn follow_routes(
    follow: Follow,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
) -> (Replica<Decoded<ServiceRoute>>, JoinHandle<()>) {
    let observer = move |event: Event<'_, Decoded<ServiceRoute>>| {
        let product = |route: &Decoded<ServiceRoute>| route.product.clone();
        let matters = match event {
            Event::Replaced(..) => true,
            // None for no route, Some(None) for a platform service.
            Event::Changed { old, new, .. } => old.map(product) != new.map(product),
            Event::Compared => false,
        };
        if matters {
            changed.notify_one();
        }
    };
    follow.start(observer, shutdown)
}

/// Has every follower's view decided anew after the routes have changed.
async fn refresh(publisher: Publisher, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        publisher.refresh_views();
    }
}

fn create(folder: &Path) -> Result<(), ServeError> {
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| ServeError::Folder { path: folder.into(), source })
}

#[cfg(test)]
mod tests;
