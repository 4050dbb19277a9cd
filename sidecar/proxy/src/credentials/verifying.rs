//! The verification of tokens that callers show.

use std::sync::Arc;

use bytes::Bytes;
use mesh_asap::{Expect, Keys, Lookup, Memory, PublicKey, VerifyError};
use mesh_identity::Identity;
use prost::Message as _;
use replica::{Decoded, Position, Replica};
use sidecar_core::{Credentials, Named, Peer, Reason, Refusal, Transaction};
use tenon_proto::identity::v1::{Key, KeyUse};
use tokio::sync::watch;

use super::{from_outside::FromOutside, transactions::Transactions};
use crate::{live::Live, outside::Clients};

/// What a record says of a key of ASAP tokens.
const ASAP: KeyUse = KeyUse::Unspecified;

/// A replicated public key, parsed once.
#[derive(Debug)]
pub struct KeyRecord {
    key: Arc<PublicKey>,
    /// `None`: one that this version does not know, so that the key verifies nothing.
    usage: Option<KeyUse>,
}

impl replica::Decode for KeyRecord {
    fn decode(_key: &str, _revision: u64, raw: Bytes) -> Result<Self, String> {
        let record = Key::decode(raw).map_err(|error| error.to_string())?;
        let key = PublicKey::from_spki(&record.spki).map_err(|error| error.to_string())?;
        Ok(Self { key: Arc::new(key), usage: KeyUse::try_from(record.r#use).ok() })
    }
}

/// Replicated keys of one use; a key that is not there does not exist, since the replica is complete. A revoked key is
/// none, also while its record is still there.
struct Replicated<'r> {
    records: &'r Replica<Decoded<KeyRecord>>,
    usage: KeyUse,
    identity: &'r Identity,
}

impl Keys for Replicated<'_> {
    fn get(&self, kid: &str) -> Lookup {
        match self.records.get(kid) {
            Some(record) if record.usage == Some(self.usage) && !self.identity.revoked().kids.contains(kid) => {
                Lookup::Found(Arc::clone(&record.key))
            }
            None if self.records.position().is_none() => Lookup::Unavailable,
            Some(_) | None => Lookup::Unknown,
        }
    }
}

/// The verified tokens of one worker.
pub struct TokenMemory {
    /// Of services of the mesh.
    memory: Memory,
    keys: Replica<Decoded<KeyRecord>>,
    /// The key set that `memory` was last compared with.
    compared: Option<Position>,
    /// Of clients outside of it, each with keys of its own.
    from_outside: FromOutside,
    clients: Arc<Clients>,
    identity: Arc<Identity>,
    /// Moves with the revocations.
    changes: watch::Receiver<u64>,
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
            from_outside: FromOutside::default(),
            clients: Arc::clone(&live.outside),
            identity: Arc::clone(&live.identity),
            changes: live.identity.changes(),
            audience: live.config.service.as_str().into(),
            transactions: Transactions::new(live.config.trust_domain.clone()),
        }
    }

    /// Whether this token of an outside client is verified and good now, so that no key is needed for it.
    pub fn remembers(&mut self, client: &str, token: &[u8], now: u64) -> bool {
        self.forget();
        let client = self.clients.get(client);
        client.is_some_and(|client| self.from_outside.remembers(&client, &self.audience, token, now))
    }

    /// Lets go of clients outside of the mesh that the policy has no more.
    pub fn forget_clients(&mut self) {
        self.from_outside.retain(&self.clients, |_, _| true);
    }

    /// A token is remembered no longer than its key, and not once its issuer or its key is revoked.
    fn forget(&mut self) {
        let position = self.keys.position();
        if position != self.compared {
            let keys = Replicated { records: &self.keys, usage: ASAP, identity: &self.identity };
            self.memory.retain(|verified| matches!(keys.get(&verified.kid), Lookup::Found(_)));
            self.compared = position;
        }
        if self.changes.has_changed().unwrap_or(false) {
            self.changes.mark_unchanged();
            let revoked = self.identity.revoked();
            let gone = |issuer: &str, kid: &str| revoked.services.contains(issuer) || revoked.kids.contains(kid);
            self.memory.retain(|verified| !gone(&verified.issuer, &verified.kid));
            self.from_outside.retain(&self.clients, |name, kid| !gone(name, kid));
            self.transactions.retain(|kid| !revoked.kids.contains(kid));
        }
    }
}

impl Credentials for TokenMemory {
    fn verify(&mut self, peer: Peer<'_>, token: &[u8], now: u64) -> Result<(), Refusal> {
        self.forget();
        let verified = match peer {
            Peer::Service(service) => {
                let expect = Expect::new(&self.audience, Some(service));
                let keys = Replicated { records: &self.keys, usage: ASAP, identity: &self.identity };
                self.memory.check(token, &expect, &keys, now)
            }
            Peer::Outside(name) => {
                let Some(client) = self.clients.get(name) else {
                    let message = format!("the policy has no client {name} outside of the mesh any more");
                    return Err(Refusal::new(Reason::AsapIssuer, message));
                };
                self.from_outside.verify(&client, &self.identity, &self.audience, token, now)
            }
        };
        verified.map_err(|error| refusal(&error))
    }

    fn transaction(&mut self, token: &str, tenant: Named<'_>, now: u64) -> Result<Transaction, Refusal> {
        let keys = Replicated { records: &self.keys, usage: KeyUse::Transaction, identity: &self.identity };
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
