//! The public ASAP keys of the mesh: what every sidecar verifies with. Never reads the clock.

use std::sync::Arc;

use bytes::Bytes;
use journal::{AppendError, Expected, Journal, Position, ReadError, Write};
use mesh_asap::{KeyError, Kid, KidError, PublicKey};
use mesh_config::names::ServiceName;
use prost::Message as _;
use tenon_proto::identity::v1::{AsapKey, Key};

/// A record may change under an attempt this often before it is given up.
const ATTEMPTS: usize = 4;

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
}

impl Keys {
    pub(crate) fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal }
    }

    /// Refuses a key whose id is another's already, and changes nothing.
    pub(crate) async fn check(&self, key: &ServiceKey) -> Result<(), KeyStoreError> {
        self.present(key).await.map(|_| ())
    }

    /// Adds the key, or notes that its service still has it. It is durable, and on its way to every sidecar, when this
    /// returns the position of its record.
    pub(crate) async fn confirm(&self, key: &ServiceKey, now: u64) -> Result<Position, KeyStoreError> {
        let mut attempt = 1;
        loop {
            let present = self.present(key).await?;
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

    /// All keys, in the order of their ids.
    pub(crate) async fn list(&self) -> Result<Vec<Key>, KeyStoreError> {
        let records = self.journal.snapshot().await?.records;
        records.into_iter().map(|record| Ok(Key::decode(record.value)?)).collect()
    }

    /// What the repository has under this key's id, if it is this key.
    async fn present(&self, key: &ServiceKey) -> Result<Option<(u64, Key)>, KeyStoreError> {
        let Some(found) = self.journal.get(key.kid.as_str()).await? else { return Ok(None) };
        let present = Key::decode(found.value)?;
        if present.spki != key.spki || key.issuer != present.issuer.as_str() {
            return Err(KeyStoreError::Taken(key.kid.clone()));
        }
        Ok(Some((found.revision, present)))
    }
}

#[cfg(test)]
mod tests {
    use journal::Embedded;
    use mesh_asap::SigningKey;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(service: &str) -> AsapKey {
        let key = SigningKey::generate(service).unwrap();
        AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() }
    }

    fn media() -> ServiceName {
        "media".parse().unwrap()
    }

    #[test]
    fn a_key_id_must_be_of_its_service_and_well_formed() {
        let good = key("media");
        assert!(ServiceKey::parse(Some(good.clone()), &media()).is_ok());
        assert!(matches!(ServiceKey::parse(None, &media()), Err(UnfitKey::Missing)));
        for kid in ["issues/1", "media", "mediax/1", "Media/1"] {
            let key = AsapKey { kid: kid.to_owned(), ..good.clone() };
            assert!(matches!(ServiceKey::parse(Some(key), &media()), Err(UnfitKey::Issuer(_))), "{kid}");
        }
        for kid in ["", "media/", "media//1", "media/../issues/1", "media/./1", "media/1 ", "/media/1", "media/é"] {
            let key = AsapKey { kid: kid.to_owned(), ..good.clone() };
            assert!(matches!(ServiceKey::parse(Some(key), &media()), Err(UnfitKey::Kid(_))), "{kid}");
        }
    }

    #[test]
    fn a_key_of_no_fit_type_is_refused() {
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        for spki in [Bytes::new(), "nonsense".into(), rcgen::PublicKeyData::subject_public_key_info(&ed25519).into()] {
            let key = AsapKey { kid: "media/1".to_owned(), spki };
            assert!(matches!(ServiceKey::parse(Some(key), &media()), Err(UnfitKey::Key(_))));
        }
    }

    #[tokio::test]
    async fn a_key_is_added_once_then_confirmed_and_its_id_is_never_given_to_another() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Embedded::open(&dir.path().join("store.redb")).unwrap().kind("key").unwrap();
        let keys = Keys::new(journal);
        let sent = key("media");
        let own = ServiceKey::parse(Some(sent.clone()), &media()).unwrap();
        keys.check(&own).await.unwrap();
        let first = keys.confirm(&own, NOW).await.unwrap();
        let second = keys.confirm(&own, NOW + 1800).await.unwrap();
        assert!(second > first);
        let [listed] = &keys.list().await.unwrap()[..] else { panic!("one key") };
        assert_eq!((listed.created_unix_seconds, listed.confirmed_unix_seconds), (NOW, NOW + 1800));
        assert_eq!((listed.kid.as_str(), listed.issuer.as_str()), (sent.kid.as_str(), "media"));

        let other = AsapKey { kid: sent.kid, spki: key("media").spki };
        let other = ServiceKey::parse(Some(other), &media()).unwrap();
        assert!(matches!(keys.check(&other).await, Err(KeyStoreError::Taken(_))));
        assert!(matches!(keys.confirm(&other, NOW).await, Err(KeyStoreError::Taken(_))));
    }
}
