//! The verification of tokens that callers show.

use std::sync::Arc;

use bytes::Bytes;
use mesh_asap::{Expect, Keys, Lookup, Memory, PublicKey, VerifyError};
use prost::Message as _;
use replica::{Position, Replica};
use sidecar_core::{Credentials, Named, Peer, Reason, Refusal, Transaction};
use tenon_proto::identity::v1::Key;

use crate::live::Live;

/// A replicated public key, parsed once.
#[derive(Debug)]
pub struct KeyRecord {
    key: Arc<PublicKey>,
    raw: Bytes,
}

impl replica::Value for KeyRecord {
    fn decode(_key: &str, _revision: u64, raw: Bytes) -> Result<Self, String> {
        let record = Key::decode(raw.clone()).map_err(|error| error.to_string())?;
        let key = PublicKey::from_spki(&record.spki).map_err(|error| error.to_string())?;
        Ok(Self { key: Arc::new(key), raw })
    }

    fn raw(&self) -> Bytes {
        self.raw.clone()
    }
}

/// Replicated keys; a key that is not there does not exist, since the replica is complete.
struct Replicated<'r>(&'r Replica<KeyRecord>);

impl Keys for Replicated<'_> {
    fn get(&self, kid: &str) -> Lookup {
        match self.0.get(kid) {
            Some(record) => Lookup::Found(Arc::clone(&record.key)),
            None if self.0.position().is_some() => Lookup::Unknown,
            None => Lookup::Unavailable,
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
        }
    }

    /// A token is remembered no longer than its key.
    fn forget_lost_keys(&mut self) {
        let position = self.keys.position();
        if position != self.compared {
            let keys = &self.keys;
            self.memory.retain(|verified| keys.get(&verified.kid).is_some());
            self.compared = position;
        }
    }
}

impl Credentials for TokenMemory {
    fn verify(&mut self, peer: Peer<'_>, token: &str, now: u64) -> Result<(), Refusal> {
        self.forget_lost_keys();
        let expect = Expect::new(&self.audience, Some(peer.name()));
        match self.memory.verify(token, &expect, &Replicated(&self.keys), now) {
            Ok(_) => Ok(()),
            Err(error) => Err(refusal(&error)),
        }
    }

    fn transaction(&mut self, _token: &str, _tenant: Named<'_>, _now: u64) -> Result<Transaction, Refusal> {
        Err(Refusal::new(Reason::TxnInvalid, "this sidecar cannot verify transaction tokens"))
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
