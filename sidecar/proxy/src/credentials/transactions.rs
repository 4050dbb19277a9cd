//! The verification of transaction tokens, where a rule wants one.

use mesh_asap::{
    Keys, Lookup,
    txn::{Error, Expect, Memory},
};
use mesh_config::names::TrustDomain;
use replica::Position;
use sidecar_core::{Named, Reason, Refusal, Transaction};

/// How far clocks may be apart, in seconds: as for ASAP tokens (A9).
const LEEWAY_SECONDS: u64 = 5;

/// The verified transaction tokens of one worker.
pub(super) struct Transactions {
    memory: Memory,
    /// The key set that `memory` was last compared with.
    compared: Option<Position>,
    /// `aud` of every token.
    trust_domain: TrustDomain,
}

impl Transactions {
    /// Remembers nothing yet.
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self { memory: Memory::default(), compared: None, trust_domain }
    }

    /// Forgets the tokens of the keys that `keep` does not want.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.memory.retain(|verified| keep(&verified.kid));
    }

    /// Verifies a token with `keys`, the transaction keys at `position`, and compares its tenant with the call's. Allocates
    /// nothing for a token that is remembered.
    ///
    /// # Errors
    /// `TXN_INVALID` or `TXN_EXPIRED`.
    pub(super) fn verify(
        &mut self,
        keys: &impl Keys,
        position: Option<Position>,
        token: &str,
        tenant: Named<'_>,
        now: u64,
    ) -> Result<Transaction, Refusal> {
        // A token is remembered no longer than its key.
        if position != self.compared {
            self.memory.retain(|verified| matches!(keys.get(&verified.kid), Lookup::Found(_)));
            self.compared = position;
        }
        let expect = Expect { trust_domain: self.trust_domain.as_str(), leeway_seconds: LEEWAY_SECONDS };
        match self.memory.verify(token, &expect, keys, now) {
            Ok(verified) => Ok(Transaction::compare(verified.tenant.as_deref(), tenant)),
            Err(error) => Err(Refusal::new(reason(&error), error.to_string())),
        }
    }
}

fn reason(error: &Error) -> Reason {
    match error {
        Error::Expired => Reason::TxnExpired,
        Error::Malformed(_)
        | Error::Algorithm
        | Error::Key
        | Error::Signature
        | Error::NotYetValid
        | Error::Lifetime
        | Error::TrustDomain => Reason::TxnInvalid,
    }
}

#[cfg(test)]
mod tests;
