//! The Tenant Context Service: the replicated store of tenant contexts (DESIGN §7).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_identity::Identity;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the TCS is started with.
#[derive(Debug)]
pub struct Config {
    /// Where it serves gRPC.
    pub listener: TcpListener,
    /// File of the embedded store.
    pub store: PathBuf,
    /// Folder for what it keeps of other services' state: the routes that say which product each service is.
    pub state_dir: PathBuf,
    /// Its own identity, kept renewed by the caller.
    pub identity: Arc<Identity>,
    /// The policy service, whose routes it follows.
    pub policy: SocketAddr,
}

/// Why the TCS could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener failed.
    #[error("the listener of the tenant context service failed")]
    Listener(#[source] std::io::Error),
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the store cannot be opened, or the listener fails.
pub async fn serve(_config: Config, shutdown: CancellationToken) -> Result<(), ServeError> {
    shutdown.cancelled().await;
    Ok(())
}
