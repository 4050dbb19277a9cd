//! The identity service as a process: stores, CA, its own certificate, and the server.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use journal::audit::{AUDIT_AUTHORIZATION, Audit as Record, AuditService, Service};
use journal::metrics::{Publishers, Stores};
use journal::{
    Embedded, Everything, OpenError, Publisher, REPLICATION_AUTHORIZATION, ReadError, ReplicationService, Views,
};
use mesh_config::names::TrustDomain;
use mesh_identity::grpc;
use mesh_identity::grpc::{Rpc, Server};
use mesh_identity::metrics::OwnSvid;
use mesh_identity::tls::Clients;
use mesh_identity::{Identity, clock};
use mesh_telemetry::Telemetry;
use tenon_proto::identity::v1::identity_server::IdentityServer;
use tenon_proto::kind;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::audit::{self, Audit, AuditError};
use crate::authority::{Authority, AuthorityError};
use crate::keys;
use crate::metrics::Authorities;
use crate::policy_follower::PolicyFollower;
use crate::repository::{self, RepositoryError};
use crate::revocations::RevocationStoreError;
use crate::rotation::{self, OwnError, PublishError};
use crate::service::{IDENTITY_AUTHORIZATION, IdentityService};
use crate::store::{self, StoreError, WholeKeySet};
use crate::transaction::{self, KeyFileError};
use crate::{Ca, CaError, Passphrase};

/// Everything that the process's server serves, and to whom.
pub static AUTHORIZATION: LazyLock<Vec<Rpc>> = LazyLock::new(|| {
    [IDENTITY_AUTHORIZATION, REPLICATION_AUTHORIZATION, AUDIT_AUTHORIZATION, transaction::AUTHORIZATION].concat()
});

/// The store, within the data folder.
const STORE_FILE: &str = "store.redb";
/// Folder of the keys that sign transaction tokens, within the data folder.
const TRANSACTION_KEYS: &str = "transaction-keys";
/// Folder of what is known of the mesh policy, within the data folder.
const POLICY_STATE: &str = "policy";
/// Between two looks at what is to be done from time to time.
const MAINTENANCE: Duration = Duration::from_secs(30);

/// What the identity service is started with.
#[derive(Debug)]
pub struct Config {
    /// Where it serves gRPC.
    pub listener: TcpListener,
    /// Folder of the CA; one is made there when there is none.
    pub ca_dir: PathBuf,
    /// Opens the CA's key, or encrypts the one that is made.
    pub passphrase: Option<Passphrase>,
    /// Folder of the embedded store: join tokens and public keys.
    pub data_dir: PathBuf,
    /// The mesh's own trust domain; a CA of another one is refused.
    pub trust_domain: TrustDomain,
    /// Where it serves the key repository and the trust bundle over HTTPS; none: nowhere.
    pub key_repository: Option<TcpListener>,
    /// DNS names and IP addresses in the certificate of the key repository.
    pub key_repository_names: Vec<String>,
    /// The processes of the policy service, one or two, whose attestors and token requesters count; empty: there are none.
    pub policy: Vec<SocketAddr>,
}

/// Why the identity service could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The CA cannot be made or opened.
    #[error("the CA cannot be used")]
    Ca(#[from] CaError),
    /// The CA does not sign the service's own certificate.
    #[error("the identity service has no certificate of its own")]
    Own(#[from] OwnError),
    /// The data folder cannot be made.
    #[error("cannot create {}: check that its parent is a folder that this user may write to", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("the store of the identity service cannot be used")]
    Open(#[from] OpenError),
    /// It cannot be told whether the store is the CA's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store cannot be read.
    #[error("the store of the identity service cannot be used")]
    Read(#[from] ReadError),
    /// The trust bundle cannot be written to the store.
    #[error("the trust bundle cannot be published")]
    Publish(#[from] PublishError),
    /// The revocations cannot be read: nobody revoked may come back for that.
    #[error("the revocations cannot be read")]
    Revocations(#[from] RevocationStoreError),
    /// Nothing is granted that cannot be recorded.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The keys of transaction tokens cannot be read.
    #[error("the keys of transaction tokens cannot be used")]
    TransactionKeys(#[from] KeyFileError),
    /// The key repository cannot be served.
    #[error("the key repository cannot be served")]
    Repository(#[from] RepositoryError),
    /// The server failed.
    #[error("the server of the identity service failed")]
    Server(#[source] io::Error),
}

impl From<AuthorityError> for ServeError {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Journal(error) => error.into(),
            AuthorityError::Revocations(error) => error.into(),
            AuthorityError::Registry(error) => error.into(),
        }
    }
}

/// Serves until `shutdown`. Makes the CA when there is none.
///
/// # Errors
/// When the CA or the store cannot be opened, or the server fails.
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
    let Config { listener, ca_dir, passphrase, data_dir, trust_domain, key_repository, key_repository_names, policy } =
        config;
    // Everything started here ends with this function, also when the server fails by itself.
    let shutdown = shutdown.child_token();
    let ending = shutdown.clone().drop_guard();
    // First the store, which one process alone may open: so no two of them make a CA.
    make_dir(&data_dir)?;
    let store = Embedded::open(&data_dir.join(STORE_FILE))?;
    let ca = Arc::new(open_ca(&ca_dir, &trust_domain, passphrase.as_ref())?);
    let store = store::of(&ca, store).await?;
    let audit = Audit::open(&data_dir.join(audit::FILE))?;
    let own = rotation::own_svid(&ca, &audit, clock::unix_seconds())?;
    let identity = Identity::new(own, ca.bundle());

    let publishers = publish(&store, &ca, &shutdown)?;
    let stores = Stores::default();
    stores.file("identity", data_dir.join(STORE_FILE));
    shows(&telemetry, &identity, &ca, &publishers, &stores);
    let journal = |kind| store.kind(kind).map(|journal| stores.timed(kind, journal));
    let of_ca = Arc::clone(&ca);
    let authority = Authority::open(of_ca, Arc::clone(&identity), audit, publishers.clone(), journal).await?;
    let authority = Arc::new(authority);
    rotation::settle(&authority, clock::unix_seconds()).await?;
    tokio::spawn(store::recover(Arc::clone(&ca), shutdown.clone()));
    tokio::spawn(maintain(Arc::clone(&authority), shutdown.clone()));
    let registering = tokio::spawn(register(Arc::clone(&authority), shutdown.clone()));
    let following = match &policy[..] {
        [] => None,
        policy => Some(follow_policy(&authority, policy, &data_dir, &shutdown)?),
    };
    let key_files = data_dir.join(TRANSACTION_KEYS);
    let signing = transaction::start(&authority, key_files, passphrase, shutdown.clone()).await?;
    tokio::spawn(keys::keep_pruned(Arc::clone(&authority), shutdown.clone()));
    if let Some(listener) = key_repository {
        let (keys, bundles) = (store.kind(kind::KEY)?, store.kind(kind::TRUST_BUNDLE)?);
        let settings = repository::Settings { listener, names: key_repository_names, keys, bundles };
        repository::start(settings, &authority, &shutdown).await?;
    }
    let record = record(&data_dir, &trust_domain).await?;
    let routes = Routes::new(IdentityServer::new(IdentityService::new(Arc::clone(&authority))))
        .add_service(AuditService::new(record.clone()).into_server())
        .add_service(ReplicationService::new(publishers).into_server());
    let routes = Routes::from(routes.into_axum_router().merge(transaction::route(authority)));
    let server = Server {
        listener,
        identity,
        clients: Clients::Optional,
        authorization: &AUTHORIZATION,
        routes,
        recorder: Some(Arc::new(record.clone())),
    };
    let rpcs = telemetry.serves(grpc::methods(&AUTHORIZATION));
    let outcome = server.run_measured(Some(rpcs), shutdown).await;
    record.end().await;
    telemetry.ends();
    signing.abort();
    // What it knows of the policy and of instances goes to disk.
    drop(ending);
    written(following.into_iter().flatten().chain([registering])).await;
    store::mark_at_end(&ca, &store).await;
    outcome.map_err(ServeError::Server)
}

/// Waits until what these tasks know is on the disk.
async fn written(tasks: impl Iterator<Item = JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await {
            tracing::error!(%error, "not everything that is known was written down");
        }
    }
}

/// What operators change and ask here.
async fn record(data_dir: &Path, trust_domain: &TrustDomain) -> Result<Record, OpenError> {
    let beside = Record::beside(&journal::Store::Embedded(data_dir.join(STORE_FILE)));
    Record::open(Service::Identity, &beside, trust_domain, &data_dir.join("journal-audit")).await
}

fn shows(telemetry: &Telemetry, identity: &Arc<Identity>, ca: &Arc<Ca>, publishers: &[Publisher], stores: &Stores) {
    telemetry.add(OwnSvid(Arc::clone(identity)));
    telemetry.add(Authorities(Arc::clone(ca)));
    telemetry.add(Publishers(publishers.to_vec()));
    telemetry.add(stores.clone());
}

/// The kinds of this service.
fn publish(store: &Embedded, ca: &Arc<Ca>, shutdown: &CancellationToken) -> Result<Vec<Publisher>, OpenError> {
    let publish = |kind, views: Arc<dyn Views>| -> Result<Publisher, OpenError> {
        Ok(Publisher::start(kind, store.kind(kind)?, views, shutdown.clone()))
    };
    Ok(vec![
        publish(kind::KEY, Arc::new(WholeKeySet(Arc::clone(ca))))?,
        publish(kind::TRUST_BUNDLE, Arc::new(Everything))?,
        publish(kind::REVOCATION, Arc::new(Everything))?,
    ])
}

/// Has the policy's attestors and token requesters count, from the disk first.
fn follow_policy(
    authority: &Authority,
    policy: &[SocketAddr],
    data_dir: &Path,
    shutdown: &CancellationToken,
) -> Result<[JoinHandle<()>; 2], ServeError> {
    let dir = data_dir.join(POLICY_STATE);
    make_dir(&dir)?;
    let (follower, tasks) = PolicyFollower::start(policy, &authority.identity, dir, shutdown);
    authority.attestors.follow(follower.attestors.clone());
    authority.transactions.follow(move |service| follower.may_ask(service));
    Ok(tasks)
}

fn make_dir(dir: &Path) -> Result<(), ServeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| ServeError::DataDir { path: dir.into(), source })
}

fn open_ca(dir: &Path, trust_domain: &TrustDomain, passphrase: Option<&Passphrase>) -> Result<Ca, CaError> {
    let now = clock::unix_seconds();
    if Ca::exists(dir) {
        return Ca::open(dir, trust_domain, passphrase, now);
    }
    let ca = Ca::create(dir, trust_domain, passphrase, now)?;
    tracing::info!(dir = %dir.display(), %trust_domain, encrypted = passphrase.is_some(), "CA created");
    Ok(ca)
}

/// Writes down who lives, until the shutdown.
async fn register(authority: Arc<Authority>, shutdown: CancellationToken) {
    authority.registry.keep_written(shutdown).await;
}

/// Does what is to be done from time to time, until the shutdown.
async fn maintain(authority: Arc<Authority>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(MAINTENANCE) => {}
        }
        rotation::maintain(&authority, clock::unix_seconds()).await;
    }
}

#[cfg(test)]
mod tests;
