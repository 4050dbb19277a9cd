//! The keys of a process that is about to attest itself, written down before a join token is shown.
//!
//! A join token works once. When the answer is lost, the identity service gives it again to whoever has the same key; and a
//! folder without room is found out before the token is spent.

use std::path::Path;

use mesh_config::names::ServiceName;
use rcgen::KeyPair;
use zeroize::Zeroizing;

use super::asap_key::AsapKey;
use super::{create, read, remove, write};
use crate::clock;
use crate::join::JoinError;

/// The ASAP key as in its own file, then the SVID's private key as PEM.
const ATTEMPT: &str = "attempt.key";
/// More than the certificates that are to follow.
const ROOM: usize = 16 * 1024;

/// What a process will have once it is attested.
pub(in crate::join) struct Attempt {
    /// To be the SVID's.
    pub key: KeyPair,
    pub asap_key: AsapKey,
}

impl Attempt {
    /// In memory alone.
    pub(in crate::join) fn fresh(service: &ServiceName) -> Result<Self, JoinError> {
        let key = KeyPair::generate().map_err(|error| JoinError::Answer(error.to_string()))?;
        Ok(Self { key, asap_key: AsapKey::generate(service, clock::unix_seconds())? })
    }
}

/// Those of the attempt before this one, else new ones; on disk.
pub(in crate::join) fn attempt(dir: &Path, service: &ServiceName) -> Result<Attempt, JoinError> {
    create(dir)?;
    if let Ok(text) = read(dir, ATTEMPT)
        && let Some(before) = parse(&text, service)
    {
        return Ok(before);
    }
    let Attempt { key, asap_key } = Attempt::fresh(service)?;
    let pem = Zeroizing::new(key.serialize_pem());
    let text = Zeroizing::new(format!("{}{}", asap_key.text().as_str(), pem.as_str()));
    // With the room that the certificates will need.
    write(dir, ATTEMPT, Zeroizing::new(format!("{}{}", text.as_str(), " ".repeat(ROOM))).as_bytes())?;
    write(dir, ATTEMPT, text.as_bytes())?;
    Ok(Attempt { key, asap_key })
}

/// It has worked.
pub(in crate::join) fn forget_attempt(dir: &Path) -> Result<(), JoinError> {
    remove(dir, ATTEMPT)
}

fn parse(text: &str, service: &ServiceName) -> Option<Attempt> {
    let (asap_key, pem) = text.split_at(text.find("-----BEGIN PRIVATE KEY-----")?);
    Some(Attempt { key: KeyPair::from_pem(pem.trim()).ok()?, asap_key: AsapKey::parse(asap_key, service)? })
}
