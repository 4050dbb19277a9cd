//! How a process gets into the mesh, and stays in it.
//!
//! First start: fetch the trust bundle from whoever answers, compare it with the pin that the process was given,
//! connect again and verified, show what attests the process, get an SVID. Later starts: the SVID on disk, without the
//! network, while it is valid. From then on [`Membership`] renews, confirms and replaces keys.

mod attest;
mod confirm;
mod error;
mod instance;
mod membership;
mod proof;
mod rekey;
mod remember;
mod renew;
mod state;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_asap::SigningKey;
use mesh_config::names::ServiceName;

pub use error::JoinError;
pub use membership::{Attempts, Membership, Standing};
pub use proof::Attestation;

use crate::{Identity, clock};

/// What a process needs to join.
#[derive(Clone)]
pub struct Config {
    /// Where the identity service listens for gRPC.
    pub identity_address: SocketAddr,
    /// SHA-256 of the trust bundle, or of one root in it, hexadecimal: what makes the first, unverified answer
    /// trustworthy.
    pub pin: String,
    /// What attests the service. Not needed while there is a valid SVID in `state_dir`.
    pub attestation: Attestation,
    /// Who this process is.
    pub service: ServiceName,
    /// Where SVID, keys and bundle are kept, 0600, below 0700.
    pub state_dir: PathBuf,
}

/// A process that is in the mesh.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Live: renewed by [`Membership`].
    pub identity: Arc<Identity>,
    /// Its public half is with the identity service under `<service>/<random>`. [`Membership`] replaces it.
    pub asap_key: Arc<SigningKey>,
    /// When `asap_key` was made, Unix seconds; 0 when nobody knows any more.
    pub asap_key_created: u64,
    /// Names this process among those of its service for as long as its state folder lives: `<service>-<16 hex digits>`.
    /// The same string is its name as a follower.
    pub instance: Arc<str>,
    /// Where in the kind `key` the public half stands: a follower at this position can verify our tokens. None when
    /// everything came from disk.
    pub key_position: Option<(u64, u64)>,
}

/// Joins the mesh: from disk while the stored SVID is valid (no network), else by attesting.
///
/// Until a process is in the mesh nothing was judged by its clock, so each attempt looks at the system's clock anew: who
/// was started on a wrong one gets in once it is right.
///
/// # Errors
/// See [`JoinError`]. A state folder of another mesh, of another service, or damaged counts as empty.
pub async fn join(config: Config) -> Result<Joined, JoinError> {
    clock::look_again();
    let pin = checked_pin(&config.pin)?;
    let why = match state::load(&config.state_dir, &config.service, &pin, clock::unix_seconds()) {
        Ok(stored) => {
            state::remember_pin(&config.state_dir, &pin);
            return Ok(Joined {
                identity: Identity::new(stored.svid, stored.bundle),
                asap_key: stored.asap_key.key,
                asap_key_created: stored.asap_key.created,
                instance: instance::of(&config.state_dir, &config.service)?,
                key_position: None,
            });
        }
        Err(why) => why,
    };
    let proofs = config.attestation.proofs()?;
    if proofs.is_empty() {
        return Err(why.without_proof(config));
    }
    tracing::info!(service = %config.service, reason = %why, "joining the mesh");
    attest::join(&config, &pin, &proofs).await
}

/// For a process that gets SVID and bundle from elsewhere, as from a SPIFFE Workload API: the ASAP key and the instance's
/// name of its state folder, made when there are none.
///
/// # Errors
/// The state folder cannot be written, or `identity` is an operator's.
pub fn with_identity(identity: Arc<Identity>, state_dir: &Path) -> Result<Joined, JoinError> {
    let service = identity.service().ok_or_else(|| JoinError::Answer(format!("{} is no service", identity.id())))?;
    let instance = instance::of(state_dir, service)?;
    let asap_key = match state::load_key(state_dir, service) {
        Ok(stored) => stored,
        Err(_) => {
            let fresh = state::AsapKey::generate(service, clock::unix_seconds())?;
            state::store_key(state_dir, &fresh)?;
            fresh
        }
    };
    let (key, created) = (asap_key.key, asap_key.created);
    Ok(Joined { identity, asap_key: key, asap_key_created: created, instance, key_position: None })
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
            .field("attestation", &self.attestation)
            .field("service", &self.service)
            .field("state_dir", &self.state_dir)
            .finish()
    }
}

#[cfg(test)]
mod tests;
