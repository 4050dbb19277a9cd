//! The TCS as a process: its store, the routes that it follows, and the server.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use journal::{OpenError, Options, Publisher, REPLICATION_AUTHORIZATION, ReplicationService};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::Identity;
use mesh_identity::grpc::{self, Rpc, Server};
use mesh_identity::tls::Clients;
use replica::{Decoded, Event, Follow, Replica};
use tenon_proto::kind;
use tenon_proto::tcs::v1::tenants_server::TenantsServer;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::routes::ServiceRoute;
use crate::service::{TENANTS_AUTHORIZATION, TenantsService};
use crate::store::Store;
use crate::views::ProductViews;

/// Everything that the process's server serves, and to whom.
pub static AUTHORIZATION: LazyLock<Vec<Rpc>> =
    LazyLock::new(|| [TENANTS_AUTHORIZATION, REPLICATION_AUTHORIZATION].concat());

/// Folder below the state folder for what is held of a store that is elsewhere.
const JOURNAL: &str = "journal";

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
    /// The policy service, whose routes it follows.
    pub policy: SocketAddr,
}

/// Where a TCS has its tenants from.
#[derive(Clone, Debug)]
pub enum Role {
    /// It writes the truth.
    Leader {
        /// Where it is kept; of a store that is elsewhere, what is held of it lies below the state folder.
        store: journal::Store,
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

/// Serves until `shutdown`.
///
/// # Errors
/// When the store cannot be opened, or the server fails.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), ServeError> {
    let Config { listener, role, state_dir, identity, instance, policy } = config;
    let Role::Leader { store } = role else {
        return Err(ServeError::Server(io::Error::from(io::ErrorKind::Unsupported)));
    };
    // Everything started here ends with this function, also when the server fails by itself.
    let shutdown = shutdown.child_token();
    let ending = shutdown.clone().drop_guard();
    if let journal::Store::Embedded(file) = &store
        && let Some(folder) = file.parent()
    {
        create(folder)?;
    }
    create(&state_dir)?;
    let journals = journal::open(&store, &state_dir.join(JOURNAL), Options::default()).await?;
    let journal = journals.kind(kind::TENANT).await?;
    let store = Store::open(Arc::clone(&journal)).await.map_err(|error| ServeError::Store(error.into()))?;

    let changed = Arc::new(Notify::new());
    let follow = follow(&identity, &instance, policy, state_dir);
    let (routes, following) = follow_routes(follow, Arc::clone(&changed), shutdown.clone());
    let views = Arc::new(ProductViews::new(routes));
    let publisher = Publisher::start(kind::TENANT, journal, views, shutdown.clone());
    let refreshing = tokio::spawn(refresh(publisher.clone(), changed));

    let routes = Routes::new(TenantsServer::new(TenantsService::new(store)))
        .add_service(ReplicationService::new(vec![publisher]).into_server());
    let server = Server { listener, identity, clients: Clients::Required, authorization: &AUTHORIZATION, routes };
    let outcome = server.run(shutdown).await;
    refreshing.abort();
    drop(ending);
    // The follower's last state goes to disk.
    if let Err(error) = following.await {
        tracing::error!(%error, "following the routes failed");
    }
    outcome.map_err(ServeError::Server)
}

fn follow(identity: &Arc<Identity>, instance: &str, policy: SocketAddr, state_dir: PathBuf) -> Follow {
    let expected = ServiceName::try_from(control_plane::POLICY).expect("a constant that is a service name");
    Follow {
        kind: kind::ROUTE,
        instance: instance.to_owned(),
        parents: vec![grpc::channel(policy, identity, &expected)],
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
            Event::Replaced(_) => true,
            // None for no route, Some(None) for a platform service.
            Event::Changed { old, new, .. } => old.map(product) != new.map(product),
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
