//! The identity service as a process: stores, CA, its own certificate, and the server.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use journal::{
    AppendError, Embedded, Everything, Expected, Journal, OpenError, Publisher, REPLICATION_AUTHORIZATION, ReadError,
    ReplicationService, Write,
};
use mesh_config::names::{ServiceName, TrustDomain, control_plane};
use mesh_identity::grpc::{Rpc, Server};
use mesh_identity::tls::Clients;
use mesh_identity::{Identity, Svid, TrustBundle, clock};
use prost::Message as _;
use tenon_proto::identity::v1::identity_server::IdentityServer;
use tenon_proto::kind;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::audit::{self, Audit, AuditError};
use crate::authority::{Authority, AuthorityError};
use crate::ca::SVID_LIFETIME;
use crate::keys;
use crate::policy_follower::PolicyFollower;
use crate::repository::{self, RepositoryError};
use crate::revocations::RevocationStoreError;
use crate::service::{IDENTITY_AUTHORIZATION, IdentityService};
use crate::transaction::{self, KeyFileError};
use crate::{Ca, CaError, IssueError, Passphrase};

/// Everything that the process's server serves, and to whom.
pub static AUTHORIZATION: LazyLock<Vec<Rpc>> =
    LazyLock::new(|| [IDENTITY_AUTHORIZATION, REPLICATION_AUTHORIZATION, transaction::AUTHORIZATION].concat());

/// The store, within the data folder.
const STORE_FILE: &str = "store.redb";
/// Folder of the keys that sign transaction tokens, within the data folder.
const TRANSACTION_KEYS: &str = "transaction-keys";
/// Folder of what is known of the mesh policy, within the data folder.
const POLICY_STATE: &str = "policy";
/// Between two attempts to make the own certificate.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

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
    /// The policy service, whose attestors and token requesters count; none: there are none.
    pub policy: Option<SocketAddr>,
}

/// Why the identity service could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The CA cannot be made or opened.
    #[error("the CA cannot be used")]
    Ca(#[from] CaError),
    /// The CA does not sign the service's own certificate.
    #[error("the identity service has no certificate of its own")]
    Issue(#[from] IssueError),
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
    /// The trust bundle cannot be read from the store.
    #[error("the trust bundle cannot be published")]
    Read(#[from] ReadError),
    /// The trust bundle cannot be written to the store.
    #[error("the trust bundle cannot be published")]
    Write(#[from] AppendError),
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
        }
    }
}

/// Serves until `shutdown`. Makes the CA when there is none.
///
/// # Errors
/// When the CA or the store cannot be opened, or the server fails.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), ServeError> {
    let Config { listener, ca_dir, passphrase, data_dir, trust_domain, key_repository, key_repository_names, policy } = config;
    // Everything started here ends with this function, also when the server fails by itself.
    let shutdown = shutdown.child_token();
    let ending = shutdown.clone().drop_guard();
    // First the store, which one process alone may open: so no two of them make a CA.
    let store = open_store(&data_dir)?;
    let ca = Arc::new(open_ca(&ca_dir, &trust_domain, passphrase.as_ref())?);
    publish_bundle(&*store.kind(kind::TRUST_BUNDLE)?, &ca.bundle()).await?;

    let identity = Identity::new(own_svid(&ca)?, ca.bundle().clone());
    let renewing = tokio::spawn(keep_renewed(Arc::clone(&ca), Arc::clone(&identity), shutdown.clone()));

    let publish = |kind| -> Result<Publisher, OpenError> {
        Ok(Publisher::start(kind, store.kind(kind)?, Arc::new(Everything), shutdown.clone()))
    };
    let publishers = vec![publish(kind::KEY)?, publish(kind::TRUST_BUNDLE)?, publish(kind::REVOCATION)?];
    let audit = Audit::open(&data_dir.join(audit::FILE))?;
    let authority = Arc::new(Authority::open(ca, Arc::clone(&identity), audit, |kind| store.kind(kind)).await?);
    let following = policy.map(|policy| follow_policy(&authority, policy, &data_dir, &shutdown)).transpose()?;
    let key_files = data_dir.join(TRANSACTION_KEYS);
    let signing = transaction::start(&authority, key_files, passphrase, shutdown.clone()).await?;
    tokio::spawn(keys::keep_pruned(Arc::clone(&authority), shutdown.clone()));
    if let Some(listener) = key_repository {
        let (keys, bundles) = (store.kind(kind::KEY)?, store.kind(kind::TRUST_BUNDLE)?);
        let settings = repository::Settings { listener, names: key_repository_names, keys, bundles };
        repository::start(settings, &authority, &shutdown).await?;
    }
    let routes = Routes::new(IdentityServer::new(IdentityService::new(Arc::clone(&authority))))
        .add_service(ReplicationService::new(publishers).into_server());
    let routes = Routes::from(routes.into_axum_router().merge(transaction::route(authority)));
    let server = Server { listener, identity, clients: Clients::Optional, authorization: &AUTHORIZATION, routes };
    let outcome = server.run(shutdown).await;
    renewing.abort();
    signing.abort();
    // What it knows of the policy goes to disk.
    drop(ending);
    for task in following.into_iter().flatten() {
        if let Err(error) = task.await {
            tracing::error!(%error, "following the policy failed");
        }
    }
    outcome.map_err(ServeError::Server)
}

/// Has the policy's attestors and token requesters count, from the disk first.
fn follow_policy(
    authority: &Authority,
    policy: SocketAddr,
    data_dir: &Path,
    shutdown: &CancellationToken,
) -> Result<[JoinHandle<()>; 2], ServeError> {
    let dir = data_dir.join(POLICY_STATE);
    make_dir(&dir)?;
    let (follower, tasks) = PolicyFollower::start(policy, &authority.identity, dir, shutdown);
    authority.attestors.follow(follower.attestors);
    authority.transactions.follow(follower.routes);
    Ok(tasks)
}

fn open_store(dir: &Path) -> Result<Embedded, ServeError> {
    make_dir(dir)?;
    Ok(Embedded::open(&dir.join(STORE_FILE))?)
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

/// Makes the replicated record what the CA has. A revision is spent only when it differs.
async fn publish_bundle(journal: &dyn Journal, bundle: &TrustBundle) -> Result<(), ServeError> {
    let key = bundle.trust_domain().as_str();
    let value = bundle.to_proto().encode_to_vec();
    let present = journal.get(key).await?;
    if present.as_ref().is_some_and(|record| *record.value == *value) {
        return Ok(());
    }
    let expected = present.map_or(Expected::Absent, |record| Expected::Revision(record.revision));
    journal.append(vec![Write::put(key, value).expecting(expected)]).await?;
    Ok(())
}

fn own_svid(ca: &Ca) -> Result<Svid, IssueError> {
    let service = ServiceName::try_from(control_plane::IDENTITY).expect("a constant that is a service name");
    let svid = ca.issue_service(&service, SVID_LIFETIME, clock::unix_seconds())?;
    tracing::info!(method = "own", %service, serial = svid.serial(), not_after = svid.not_after(), "certificate issued");
    Ok(svid)
}

/// A new certificate for this process at half life of the present one.
async fn keep_renewed(ca: Arc<Ca>, identity: Arc<Identity>, shutdown: CancellationToken) {
    let mut wait = SVID_LIFETIME / 2;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let renewed = own_svid(&ca).map_err(|error| error.to_string());
        let renewed = renewed.and_then(|svid| identity.set_svid(svid).map_err(|error| error.to_string()));
        wait = match renewed {
            Ok(()) => SVID_LIFETIME / 2,
            Err(error) => {
                tracing::error!(error, "the identity service cannot renew its own certificate");
                RENEWAL_PAUSE
            }
        };
    }
}

#[cfg(test)]
mod tests;
