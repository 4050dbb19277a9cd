//! The ASAP key on disk, and the one that is to follow it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mesh_asap::SigningKey;
use mesh_config::names::ServiceName;
use zeroize::Zeroizing;

use super::{Unusable, read, remove, write};
use crate::join::JoinError;

/// A data URI (A17): the key with its id. Below it a line with the time of its making.
const CURRENT: &str = "asap.key";
/// The same for a key that is published and does not sign yet.
const NEXT: &str = "asap.next.key";

/// An ASAP key with its age.
#[derive(Debug)]
pub(in crate::join) struct AsapKey {
    pub key: Arc<SigningKey>,
    /// Unix seconds; 0 when the file does not say.
    pub created: u64,
}

impl AsapKey {
    pub(in crate::join) fn generate(service: &ServiceName, now: u64) -> Result<Self, JoinError> {
        let key = SigningKey::generate(service.as_str()).map_err(|error| JoinError::Answer(error.to_string()))?;
        Ok(Self { key: Arc::new(key), created: now })
    }

    pub(super) fn parse(text: &str, service: &ServiceName) -> Option<Self> {
        let mut lines = text.lines();
        let key = SigningKey::from_data_uri(lines.next()?.trim()).ok()?;
        let created = lines.find_map(|line| line.strip_prefix("created: ")?.trim().parse().ok()).unwrap_or_default();
        (key.issuer() == service.as_str()).then(|| Self { key: Arc::new(key), created })
    }

    pub(super) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\ncreated: {}\n", self.key.to_data_uri().as_str(), self.created))
    }
}

pub(in crate::join) fn load_key(dir: &Path, service: &ServiceName) -> Result<AsapKey, Unusable> {
    AsapKey::parse(&read(dir, CURRENT)?, service).ok_or(Unusable::Damaged("ASAP key"))
}

/// A key that a run before this one made and did not come to use.
pub(in crate::join) fn load_next(dir: &Path, service: &ServiceName) -> Option<AsapKey> {
    AsapKey::parse(&read(dir, NEXT).ok()?, service)
}

pub(in crate::join) fn store_key(dir: &Path, key: &AsapKey) -> Result<(), JoinError> {
    write(dir, CURRENT, key.text().as_bytes())
}

pub(in crate::join) fn store_next(dir: &Path, key: &AsapKey) -> Result<(), JoinError> {
    write(dir, NEXT, key.text().as_bytes())
}

/// The next key takes the place of the current one, which is gone then: one rename, so there is no moment without either,
/// and a full disk does not stop it.
pub(in crate::join) fn promote_next(dir: &Path) -> Result<(), JoinError> {
    let path = dir.join(CURRENT);
    let promoted = fs::rename(dir.join(NEXT), &path).and_then(|()| fs::File::open(dir)?.sync_all());
    promoted.map_err(|source| JoinError::State { path, source })
}

pub(in crate::join) fn discard_next(dir: &Path) -> Result<(), JoinError> {
    remove(dir, NEXT)
}
