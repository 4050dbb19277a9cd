//! Tokens of clients outside of the mesh: verified with their own keys alone, and remembered apart.

use std::{collections::HashMap, sync::Arc};

use mesh_asap::{Expect, Memory, VerifyError, precheck};
use mesh_identity::Identity;

use crate::outside::{Client, Clients, KnownKeys};

/// Tokens of one client that are remembered: what a client sends may be 8 KiB each.
const TOKENS: usize = 512;

/// The verified tokens of all outside clients of one worker.
#[derive(Default)]
pub(super) struct FromOutside(HashMap<Arc<str>, Remembered>);

struct Remembered {
    client: Arc<Client>,
    /// Of its keys, when `memory` was last compared with them.
    generation: u64,
    memory: Memory,
}

impl FromOutside {
    /// Verifies a token as one of `client`, at `now` (Unix seconds), from memory where it can.
    ///
    /// # Errors
    /// As [`mesh_asap::verify`].
    pub(super) fn verify(
        &mut self,
        client: &Arc<Client>,
        identity: &Identity,
        audience: &str,
        token: &[u8],
        now: u64,
    ) -> Result<(), VerifyError> {
        let expect = Expect { grants: &client.grants, ..Expect::new(audience, Some(&client.issuer)) };
        let keys = KnownKeys { client, identity, now };
        match self.of(client).verify(token, &expect, &keys, now) {
            Ok(_) => Ok(()),
            // No key was asked for that is not the client's own: so what is wrong is the issuer, not the lack of a key.
            Err(VerifyError::KeyUnknown | VerifyError::KeysUnavailable)
                if std::str::from_utf8(token)
                    .ok()
                    .and_then(|token| precheck(token).ok())
                    .is_some_and(|token| token.issuer != client.issuer) =>
            {
                Err(VerifyError::Issuer)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the token would be taken without a look at any key.
    pub(super) fn remembers(&mut self, client: &Arc<Client>, audience: &str, token: &[u8], now: u64) -> bool {
        let expect = Expect::new(audience, Some(&client.issuer));
        self.of(client).get(token, &expect, now).is_some()
    }

    /// Forgets clients that are no more, and the tokens that `keep` does not want, by client name and key.
    pub(super) fn retain(&mut self, clients: &Clients, keep: impl Fn(&str, &str) -> bool) {
        self.0.retain(|name, _| clients.get(name).is_some());
        for (name, remembered) in &mut self.0 {
            remembered.memory.retain(|verified| keep(name, &verified.kid));
        }
    }

    /// What is remembered under the present description and the present keys of a client.
    fn of(&mut self, client: &Arc<Client>) -> &mut Memory {
        let generation = client.repositories.generation();
        let fresh = || Remembered { client: Arc::clone(client), generation, memory: Memory::with_capacity(TOKENS) };
        let remembered = self.0.entry(Arc::clone(&client.name)).or_insert_with(fresh);
        if !Arc::ptr_eq(&remembered.client, client) || remembered.generation != generation {
            *remembered = fresh();
        }
        &mut remembered.memory
    }
}

#[cfg(test)]
mod tests;
