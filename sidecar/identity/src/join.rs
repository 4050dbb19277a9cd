//! How a process gets into the mesh, and stays in it.
//!
//! First start: fetch the trust bundle from whoever answers, compare it with the pin that the process was given,
//! connect again and verified, show the join token, get an SVID. Later starts: the SVID on disk, without the network,
//! while it is valid. Meanwhile [`keep_renewed`] gets the next one at half life.

mod attest;
mod renew;
mod state;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_config::names::ServiceName;

pub use renew::keep_renewed;

use crate::{BundleError, Identity, SvidError, clock};

/// What a process needs to join.
#[derive(Clone)]
pub struct Config {
    /// Where the identity service listens for gRPC.
    pub identity_address: SocketAddr,
    /// SHA-256 of the trust bundle, hexadecimal: what makes the first, unverified answer trustworthy.
    pub pin: String,
    /// Attests the service once. Not needed while there is a valid SVID in `state_dir`.
    pub join_token: Option<String>,
    /// Who this process is.
    pub service: ServiceName,
    /// Where SVID, keys and bundle are kept, 0600, below 0700.
    pub state_dir: PathBuf,
}

/// A process that is in the mesh.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Live: renewed by [`keep_renewed`].
    pub identity: Arc<Identity>,
    /// Its public half is with the identity service under `<service>/<random>`.
    pub asap_key: Arc<mesh_asap::SigningKey>,
    /// Where in the kind `key` the public half stands: a follower at this position can verify our tokens. None when
    /// everything came from disk.
    pub key_position: Option<(u64, u64)>,
}

/// Why a process cannot join. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The pin is not the SHA-256 of anything.
    #[error(
        "the trust bundle's SHA-256 is given as {0:?}, which is not 64 hexadecimal digits; copy it from `tenon up` or compute it from the mesh's trust bundle"
    )]
    Pin(String),
    /// There is neither a valid SVID on disk nor a join token.
    #[error("{why} in {}, and no join token was given; make one with `tenon identity join-token --service {service}` and start again with it", dir.display())]
    NoToken {
        /// What is wrong with the state.
        why: String,
        /// The state folder.
        dir: PathBuf,
        /// Who wants to join.
        service: ServiceName,
    },
    /// Somebody else answers, or the mesh has another CA than the one that was pinned.
    #[error(
        "the trust bundle of the identity service at {address} is not the pinned one; if the mesh's CA was replaced, give its new SHA-256, else something else answers at that address: do not go on"
    )]
    PinMismatch {
        /// Who answered.
        address: SocketAddr,
    },
    /// The identity service cannot be reached, or refuses.
    #[error("the identity service at {address} did not answer {call}: {}; check that it runs and that the address is right", root_cause(.status))]
    Call {
        /// Who was asked.
        address: SocketAddr,
        /// Which RPC.
        call: &'static str,
        /// What came back.
        #[source]
        status: Box<tonic::Status>,
    },
    /// The join token is not valid.
    #[error(
        "the identity service refused the join token: {0}; tokens work once and for a short time: make a new one with `tenon identity join-token --service {1}`"
    )]
    Refused(String, ServiceName),
    /// What the identity service answered cannot be used.
    #[error("the identity service issued something of no use: {0}")]
    Answer(String),
    /// State cannot be written.
    #[error("cannot write {}: {source}; check that the folder is writable and that the disk is not full", path.display())]
    State {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Joins the mesh: from disk while the stored SVID is valid (no network), else by attesting with the join token.
///
/// # Errors
/// See [`JoinError`]. A state folder of another mesh, of another service, or damaged counts as empty.
pub async fn join(config: Config) -> Result<Joined, JoinError> {
    let pin = checked_pin(&config.pin)?;
    let why = match state::load(&config.state_dir, &config.service, &pin, clock::unix_seconds()) {
        Ok(joined) => return Ok(joined),
        Err(why) => why,
    };
    let Some(token) = config.join_token.clone() else {
        return Err(JoinError::NoToken { why: why.to_string(), dir: config.state_dir, service: config.service });
    };
    tracing::info!(service = %config.service, reason = %why, "joining the mesh with a join token");
    attest::attest(&config, &pin, token).await
}

/// What lies at the bottom of a failed call: tonic's own text stops at "transport error".
fn root_cause(status: &tonic::Status) -> String {
    let mut cause: &dyn std::error::Error = match std::error::Error::source(status) {
        Some(source) => source,
        None => return status.message().to_owned(),
    };
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Lower hexadecimal, whichever way it was written.
fn checked_pin(pin: &str) -> Result<String, JoinError> {
    if pin.len() == 64 && pin.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(pin.to_ascii_lowercase())
    } else {
        Err(JoinError::Pin(pin.to_owned()))
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Config")
            .field("identity_address", &self.identity_address)
            .field("pin", &self.pin)
            .field("service", &self.service)
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}

impl From<SvidError> for JoinError {
    fn from(error: SvidError) -> Self {
        Self::Answer(error.to_string())
    }
}

impl From<BundleError> for JoinError {
    fn from(error: BundleError) -> Self {
        Self::Answer(error.to_string())
    }
}

#[cfg(test)]
mod tests;
