//! The verification of tokens that callers show.

use std::sync::Arc;

use bytes::Bytes;
use mesh_asap::{Expect, Keys, Lookup, Memory, PublicKey, VerifyError};
use prost::Message as _;
use replica::{Position, Replica};
use sidecar_core::{Credentials, Named, Peer, Reason, Refusal, Transaction};
use tenon_proto::identity::v1::{Key, KeyUse};

use super::transactions::Transactions;
use crate::live::Live;

/// What a record says of a key of ASAP tokens.
const ASAP: KeyUse = KeyUse::Unspecified;

/// A replicated public key, parsed once.
#[derive(Debug)]
pub struct KeyRecord {
    key: Arc<PublicKey>,
    /// `None`: one that this version does not know, so that the key verifies nothing.
    usage: Option<KeyUse>,
    raw: Bytes,
}

impl replica::Value for KeyRecord {
    fn decode(_key: &str, _revision: u64, raw: Bytes) -> Result<Self, String> {
        let record = Key::decode(raw.clone()).map_err(|error| error.to_string())?;
        let key = PublicKey::from_spki(&record.spki).map_err(|error| error.to_string())?;
        Ok(Self { key: Arc::new(key), usage: KeyUse::try_from(record.r#use).ok(), raw })
    }

    fn raw(&self) -> Bytes {
        self.raw.clone()
    }
}

/// Replicated keys of one use; a key that is not there does not exist, since the replica is complete.
struct Replicated<'r>(&'r Replica<KeyRecord>, KeyUse);

impl Keys for Replicated<'_> {
    fn get(&self, kid: &str) -> Lookup {
        match self.0.get(kid) {
            Some(record) if record.usage == Some(self.1) => Lookup::Found(Arc::clone(&record.key)),
            None if self.0.position().is_none() => Lookup::Unavailable,
            Some(_) | None => Lookup::Unknown,
        }
    }
}

/// The verified tokens of one worker.
pub struct TokenMemory {
    memory: Memory,
    keys: Replica<KeyRecord>,
    /// The key set that `memory` was last compared with.
    compared: Option<Position>,
    audience: Box<str>,
    transactions: Transactions,
}

impl TokenMemory {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(live: &Live) -> Self {
        Self {
            memory: Memory::default(),
            keys: live.keys().clone(),
            compared: None,
            audience: live.config.service.as_str().into(),
            transactions: Transactions::new(live.config.trust_domain.clone()),
        }
    }

    /// A token is remembered no longer than its key.
    fn forget_lost_keys(&mut self) {
        let position = self.keys.position();
        if position != self.compared {
            let keys = Replicated(&self.keys, ASAP);
            self.memory.retain(|verified| matches!(keys.get(&verified.kid), Lookup::Found(_)));
            self.compared = position;
        }
    }
}

impl Credentials for TokenMemory {
    fn verify(&mut self, peer: Peer<'_>, token: &str, now: u64) -> Result<(), Refusal> {
        self.forget_lost_keys();
        let expect = Expect::new(&self.audience, Some(peer.name()));
        match self.memory.verify(token, &expect, &Replicated(&self.keys, ASAP), now) {
            Ok(_) => Ok(()),
            Err(error) => Err(refusal(&error)),
        }
    }

    fn transaction(&mut self, token: &str, tenant: Named<'_>, now: u64) -> Result<Transaction, Refusal> {
        let keys = Replicated(&self.keys, KeyUse::Transaction);
        self.transactions.verify(&keys, self.keys.position(), token, tenant, now)
    }
}

fn refusal(error: &VerifyError) -> Refusal {
    Refusal::new(reason(error), error.to_string())
}

fn reason(error: &VerifyError) -> Reason {
    match error {
        VerifyError::Malformed(_) => Reason::AsapMalformed,
        VerifyError::Algorithm => Reason::AsapAlgorithm,
        VerifyError::KeyUnknown => Reason::AsapKeyUnknown,
        VerifyError::KeysUnavailable => Reason::AsapKeysUnavailable,
        VerifyError::Signature => Reason::AsapSignature,
        VerifyError::Expired => Reason::AsapExpired,
        VerifyError::NotYetValid => Reason::AsapNotYetValid,
        VerifyError::Lifetime => Reason::AsapLifetime,
        VerifyError::Audience => Reason::AsapAudience,
        VerifyError::Issuer => Reason::AsapIssuer,
        VerifyError::Subject => Reason::AsapSubject,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_mesh_asap_are_those_of_the_refusals() {
        use VerifyError::{
            Algorithm, Audience, Expired, Issuer, KeyUnknown, KeysUnavailable, Lifetime, Malformed, NotYetValid,
            Signature, Subject,
        };
        for error in [
            Malformed(""),
            Algorithm,
            KeyUnknown,
            KeysUnavailable,
            Signature,
            Expired,
            NotYetValid,
            Lifetime,
            Audience,
            Issuer,
            Subject,
        ] {
            assert_eq!(reason(&error).as_str(), error.reason());
        }
    }
}
