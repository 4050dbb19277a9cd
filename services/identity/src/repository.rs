//! The key repository and the trust bundle over HTTPS, for everybody: other ASAP libraries, other SPIFFE systems.
//!
//! What sidecars need they have by replication; nothing of the mesh asks here. All of it is public, so no client is
//! asked for a certificate. Requests are answered from memory that follows the journals; none reads the store.

mod answer;
mod certificate;
mod connections;
mod jwk;
mod published;

use std::sync::Arc;

use journal::{Journal, ReadError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::IssueError;
use crate::authority::Authority;
use certificate::Certificate;
use published::Published;

/// Why the repository cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// Its certificate is not made: a name is wrong, or the CA has come to its end.
    #[error("the key repository has no certificate")]
    Certificate(#[from] IssueError),
    /// The CA signed what TLS cannot use.
    #[error("the certificate of the key repository cannot be used")]
    Tls(#[from] rustls::Error),
    /// Its content cannot be read.
    #[error("the store of keys cannot be read")]
    Read(#[from] ReadError),
}

/// Where the repository is served, and as whom.
pub(crate) struct Settings {
    pub listener: TcpListener,
    /// DNS names and IP addresses of its certificate.
    pub names: Vec<String>,
    /// Of the kind "key".
    pub keys: Arc<dyn Journal>,
    /// Of the kind "trust_bundle".
    pub bundles: Arc<dyn Journal>,
}

/// Reads what is published, makes the certificate, and serves in tasks of its own until `shutdown`.
///
/// # Errors
/// [`RepositoryError`]; then nothing is served.
pub(crate) async fn start(
    settings: Settings,
    authority: &Arc<Authority>,
    shutdown: &CancellationToken,
) -> Result<(), RepositoryError> {
    let Settings { listener, names, keys, bundles } = settings;
    let certificate = Arc::new(Certificate::issue(authority, names)?);
    let ca = Arc::clone(&authority.ca);
    let published = Arc::new(Published::new(Arc::clone(&authority.revocations), move || ca.store_is_recovering()));
    let keys = published::follow(keys, Arc::clone(&published), Published::apply_keys, shutdown.clone()).await?;
    let bundles = published::follow(bundles, Arc::clone(&published), Published::apply_bundle, shutdown.clone()).await?;
    tokio::spawn(keys);
    tokio::spawn(bundles);
    tokio::spawn(certificate::keep_renewed(Arc::clone(&certificate), Arc::clone(authority), shutdown.clone()));
    tokio::spawn(connections::serve(listener, certificate::tls(certificate), published, shutdown.clone()));
    Ok(())
}
