//! The policy service as a process: stores, folder, publishers and the server.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use journal::{Embedded, OpenError, Options, Publisher, REPLICATION_AUTHORIZATION, ReadError, ReplicationService};
use mesh_config::names::control_plane;
use mesh_identity::{
    Identity,
    grpc::{Rpc, Server},
    tls::Clients,
};
use tenon_proto::kind;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    engine::{Engine, Journals},
    service::{POLICY_AUTHORIZATION, PolicyService},
    views::{Allowlists, ForCallers, ForIdentity},
    watch::Watcher,
};

/// Everything that the process's server serves, and to whom.
pub static AUTHORIZATION: LazyLock<Vec<Rpc>> =
    LazyLock::new(|| [POLICY_AUTHORIZATION, REPLICATION_AUTHORIZATION].concat());

/// Past changes that are kept for followers that were away. Whoever is further behind takes a snapshot.
const RETAINED: Options = Options { retained_changes: 20_000, ..Options::DEFAULT };
/// The files in force are written whole each time, and nobody follows them.
const RETAINED_SOURCES: Options = Options { retained_changes: 8, ..Options::DEFAULT };

/// What the policy service is started with.
#[derive(Debug)]
pub struct Config {
    /// Where it serves gRPC.
    pub listener: TcpListener,
    /// File of the embedded store, made when there is none. The files in force are kept beside it, in a file of the same
    /// name with `.sources` behind.
    pub store: PathBuf,
    /// The watched folder; `None`: policy comes by `Apply` alone.
    pub folder: Option<PathBuf>,
    /// Its own identity, kept renewed by the caller. Its trust domain must be that of the policy.
    pub identity: Arc<Identity>,
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
    let Config { listener, store, folder, identity } = config;
    let mut sources = store.clone().into_os_string();
    sources.push(".sources");
    let store = Embedded::open_with(&store, RETAINED)?;
    let journals = Journals {
        allowlists: store.kind(kind::ALLOWLIST)?,
        routes: store.kind(kind::ROUTE)?,
        endpoints: store.kind(kind::ENDPOINT)?,
        quarantines: store.kind(kind::QUARANTINE)?,
        attestors: store.kind(kind::ATTESTATION)?,
        sources: Embedded::open_with(sources.as_ref(), RETAINED_SOURCES)?.kind("source")?,
    };
    let engine = Arc::new(Engine::open(identity.id().trust_domain().clone(), journals.clone()).await?);
    // Before anybody is served: who starts together with this service shall not meet an empty policy.
    let mut watcher = Watcher::new(Arc::clone(&engine), folder);
    watcher.first_look().await;
    let watching = tokio::spawn(watcher.run(shutdown.clone()));

    let publishers = publishers(journals, &shutdown);
    let routes = Routes::new(PolicyService::new(engine).into_server())
        .add_service(ReplicationService::new(publishers).into_server());
    let server = Server { listener, identity, clients: Clients::Required, authorization: &AUTHORIZATION, routes };
    let outcome = server.run(shutdown).await;
    // The store is free for the next process only when nothing of this one holds it.
    watching.abort();
    let _ = watching.await;
    outcome.map_err(ServeError::Server)
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
