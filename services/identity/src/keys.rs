//! The public ASAP keys of the mesh: what every sidecar verifies with. Never reads the clock.

mod pruning;

use std::sync::Arc;

use bytes::Bytes;
use journal::{AppendError, Expected, Journal, Position, ReadError, Write};
use mesh_asap::{KeyError, Kid, KidError, PublicKey};
use mesh_config::names::ServiceName;
use prost::Message as _;
use tenon_proto::identity::v1::{AsapKey, Key, KeyUse};

use crate::limits::{Limited, Limits, Rate, Settings};
use crate::revocations::{Revocations, Selector};

pub(crate) use pruning::keep_pruned;

/// A record may change under an attempt this often before it is given up.
const ATTEMPTS: usize = 4;
/// A confirmation that is younger than this, in seconds, is not written again: every instance confirms every minute, and
/// each write goes to every sidecar.
const CONFIRMATION_KEPT: u64 = 600;
/// A key that nobody has confirmed for so long, in seconds, is nobody's any more: tokens live an hour at most, and who
/// replaces a key goes on confirming the old one no longer.
const UNCONFIRMED_LIFETIME: u64 = 7200;
/// New keys: each is held by every sidecar for two hours at least, and none of them may run out of memory because one
/// service was broken into. All instances of a mesh may come with theirs at once, as after a store was lost.
const NEW_KEYS: Settings =
    Settings { service: Rate { burst: 20_000, per_second: 2 }, all: Rate { burst: 100_000, per_second: 100 } };

/// A service's key that may stand in the repository: its id is the service's (A5) and its type is fit (A2).
#[derive(Debug, Clone)]
pub(crate) struct ServiceKey {
    kid: Kid,
    issuer: ServiceName,
    spki: Bytes,
}

/// Why a key may not stand in the repository.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnfitKey {
    #[error("no ASAP key is given")]
    Missing,
    #[error("the key id breaks its grammar")]
    Kid(#[from] KidError),
    #[error("the key id of {0} must begin with \"{0}/\"")]
    Issuer(ServiceName),
    #[error("the ASAP key cannot be used")]
    Key(#[from] KeyError),
}

/// Why a key was not recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyStoreError {
    #[error("the key id {0} is that of another key: a new key needs a new id")]
    Taken(Kid),
    #[error("{0} is revoked: an operator must lift that first (`tenon identity revoke --lift`)")]
    Revoked(Selector),
    #[error("too many new keys were made: try again in {} s", .0.retry_after.as_secs())]
    TooMany(#[source] Limited),
    #[error("the store of keys holds a record that does not decode")]
    Damaged(#[from] prost::DecodeError),
    #[error("the store of keys cannot be read")]
    Read(#[from] ReadError),
    #[error("the store of keys cannot be written")]
    Write(#[from] AppendError),
}

impl ServiceKey {
    /// Checks what `service` sent.
    pub(crate) fn parse(key: Option<AsapKey>, service: &ServiceName) -> Result<Self, UnfitKey> {
        let AsapKey { kid, spki } = key.ok_or(UnfitKey::Missing)?;
        let kid: Kid = kid.parse()?;
        if !kid.belongs_to(service.as_str()) {
            return Err(UnfitKey::Issuer(service.clone()));
        }
        PublicKey::from_spki(&spki)?;
        Ok(Self { kid, issuer: service.clone(), spki })
    }

    pub(crate) fn kid(&self) -> &Kid {
        &self.kid
    }
}

/// The repository.
#[derive(Clone)]
pub(crate) struct Keys {
    journal: Arc<dyn Journal>,
    revocations: Arc<Revocations>,
    /// Asked for each key that is not there yet.
    limits: Arc<Limits>,
}

impl Keys {
    pub(crate) fn new(journal: Arc<dyn Journal>, revocations: Arc<Revocations>) -> Self {
        Self { journal, revocations, limits: Arc::new(Limits::new(NEW_KEYS)) }
    }

    /// Refuses a key whose id is another's already, or that is revoked or its service, and changes nothing.
    pub(crate) async fn check(&self, key: &ServiceKey) -> Result<(), KeyStoreError> {
        self.must_not_be_revoked(key)?;
        self.present(key).await.map(|_| ())
    }

    /// Adds the key, or notes that its service still has it, to about ten minutes. It is durable, and on its way to every
    /// sidecar, when this returns the position of its record.
    pub(crate) async fn confirm(&self, key: &ServiceKey, now: u64) -> Result<Position, KeyStoreError> {
        let _held = self.revocations.hold().await;
        self.must_not_be_revoked(key)?;
        let mut attempt = 1;
        loop {
            let present = self.present(key).await?;
            if let Some((revision, record)) = &present
                && now < record.confirmed_unix_seconds + CONFIRMATION_KEPT
            {
                return Ok(Position { epoch: self.journal.head().await?.epoch, revision: *revision });
            }
            if present.is_none() && attempt == 1 {
                self.limits.take(key.issuer.as_str(), now).map_err(KeyStoreError::TooMany)?;
            }
            let record = Key {
                kid: key.kid.to_string(),
                issuer: key.issuer.to_string(),
                spki: key.spki.clone(),
                created_unix_seconds: present.as_ref().map_or(now, |(_, present)| present.created_unix_seconds),
                confirmed_unix_seconds: now,
                r#use: 0,
            };
            let expected = present.map_or(Expected::Absent, |(revision, _)| Expected::Revision(revision));
            let write = Write::put(key.kid.as_str(), record.encode_to_vec()).expecting(expected);
            match self.journal.append(vec![write]).await {
                Ok(position) => return Ok(position),
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Adds a key that signs transaction tokens, if it is not there yet. The position of its record, durable.
    pub(crate) async fn publish_transaction_key(
        &self,
        kid: &Kid,
        issuer: &str,
        spki: &[u8],
        created: u64,
    ) -> Result<Position, KeyStoreError> {
        let _held = self.revocations.hold().await;
        if self.revocations.names_kid(kid) {
            return Err(KeyStoreError::Revoked(Selector::Kid(kid.clone())));
        }
        if let Some(found) = self.journal.get(kid.as_str()).await? {
            let present = Key::decode(found.value)?;
            if present.spki != spki || present.r#use() != KeyUse::Transaction {
                return Err(KeyStoreError::Taken(kid.clone()));
            }
            return Ok(Position { epoch: self.journal.head().await?.epoch, revision: found.revision });
        }
        let record = Key {
            kid: kid.to_string(),
            issuer: issuer.to_owned(),
            spki: Bytes::copy_from_slice(spki),
            created_unix_seconds: created,
            confirmed_unix_seconds: created,
            r#use: KeyUse::Transaction.into(),
        };
        let write = Write::put(kid.as_str(), record.encode_to_vec()).expecting(Expected::Absent);
        Ok(self.journal.append(vec![write]).await?)
    }

    /// Deletes the keys that `which` picks, and returns them. No key is added or confirmed meanwhile.
    pub(crate) async fn delete(&self, which: impl Fn(&Key) -> bool) -> Result<Vec<Key>, KeyStoreError> {
        let _alone = self.revocations.alone().await;
        let mut keys = self.list().await?;
        keys.retain(|key| which(key));
        if keys.is_empty() {
            return Ok(keys);
        }
        self.journal.append(keys.iter().map(|key| Write::delete(key.kid.as_str())).collect()).await?;
        Ok(keys)
    }

    /// Deletes the ASAP keys that nobody has confirmed for two hours, and those that should have gone when they were
    /// revoked. `up_since`, Unix seconds: before the service itself has run for two hours nobody has had the time to.
    pub(crate) async fn prune(&self, up_since: u64, now: u64) -> Result<Vec<Key>, KeyStoreError> {
        let all_could = now >= up_since + UNCONFIRMED_LIFETIME;
        let revoked = |key: &Key| {
            key.kid.parse().is_ok_and(|kid| self.revocations.names_kid(&kid))
                || ServiceName::try_from(key.issuer.as_str())
                    .is_ok_and(|issuer| self.revocations.names_service(&issuer))
        };
        self.delete(|key| {
            let unconfirmed = now >= key.confirmed_unix_seconds + UNCONFIRMED_LIFETIME;
            // Keys of transaction tokens are nobody's to confirm.
            (key.r#use() == KeyUse::Unspecified && all_could && unconfirmed) || revoked(key)
        })
        .await
    }

    /// The key with this id.
    pub(crate) async fn find(&self, kid: &str) -> Result<Option<Key>, KeyStoreError> {
        Ok(self.journal.get(kid).await?.map(|record| Key::decode(record.value)).transpose()?)
    }

    /// All keys, in the order of their ids.
    pub(crate) async fn list(&self) -> Result<Vec<Key>, KeyStoreError> {
        let records = self.journal.snapshot().await?.records;
        records.into_iter().map(|record| Ok(Key::decode(record.value)?)).collect()
    }

    fn must_not_be_revoked(&self, key: &ServiceKey) -> Result<(), KeyStoreError> {
        if self.revocations.names_service(&key.issuer) {
            return Err(KeyStoreError::Revoked(Selector::Service(key.issuer.clone())));
        }
        if self.revocations.names_kid(&key.kid) {
            return Err(KeyStoreError::Revoked(Selector::Kid(key.kid.clone())));
        }
        Ok(())
    }

    /// What the repository has under this key's id, if it is this key.
    async fn present(&self, key: &ServiceKey) -> Result<Option<(u64, Key)>, KeyStoreError> {
        let Some(found) = self.journal.get(key.kid.as_str()).await? else { return Ok(None) };
        let present = Key::decode(found.value)?;
        let same = present.spki == key.spki && key.issuer == present.issuer.as_str();
        if !same || present.r#use() != KeyUse::Unspecified {
            return Err(KeyStoreError::Taken(key.kid.clone()));
        }
        Ok(Some((found.revision, present)))
    }
}

#[cfg(test)]
mod tests;
