//! Verified tokens, remembered: the same token comes with every call for minutes.

use std::collections::HashMap;

use crate::{Expect, Keys, Verified, VerifyError, verify};

/// The verified tokens of one worker. Bounded, without a lock: each worker has its own.
///
/// A token is found by all of its bytes, so nothing that differs in a single one passes. Two generations bound it: when
/// the young one is full it becomes the old one, and what was old and not asked for since is forgotten.
#[derive(Debug)]
pub struct Memory {
    young: Generation,
    old: Generation,
    capacity: usize,
}

type Generation = HashMap<Box<str>, Verified, ahash::RandomState>;

impl Default for Memory {
    /// Room for 4,096 tokens twice over.
    fn default() -> Self {
        Self::with_capacity(4096)
    }
}

impl Memory {
    /// Remembers at least the last `capacity` tokens and at most twice as many.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { young: Generation::default(), old: Generation::default(), capacity: capacity.max(1) }
    }

    /// What [`verify`] answers, from memory where it can. A remembered token is still held to its time, to the audience
    /// and to the peer of this very call. Leeway does not stretch a memory: past `exp` the token is verified anew.
    ///
    /// # Errors
    /// As [`verify`]; refusals are not remembered.
    pub fn verify(
        &mut self,
        token: &str,
        expect: &Expect<'_>,
        keys: &impl Keys,
        now: u64,
    ) -> Result<&Verified, VerifyError> {
        if !self.young.get(token).is_some_and(|verified| serves(verified, expect, now)) {
            let verified = match self.old.remove_entry(token) {
                Some((_, verified)) if serves(&verified, expect, now) => verified,
                _ => verify(token, expect, keys, now)?,
            };
            self.insert(token, verified);
        }
        Ok(&self.young[token])
    }

    /// What is remembered of this token, if that serves this call. Allocates nothing.
    pub fn get(&self, token: &str, expect: &Expect<'_>, now: u64) -> Option<&Verified> {
        self.young.get(token).or_else(|| self.old.get(token)).filter(|verified| serves(verified, expect, now))
    }

    /// Remembers a token that [`verify`] has just verified.
    pub fn insert(&mut self, token: &str, verified: Verified) {
        if self.young.len() >= self.capacity && !self.young.contains_key(token) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(token.into(), verified);
    }

    /// Forgets everything: keys were replaced as a whole.
    pub fn forget_all(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// Forgets what `keep` does not want: a key has gone, an issuer was revoked.
    pub fn retain(&mut self, mut keep: impl FnMut(&Verified) -> bool) {
        self.young.retain(|_, verified| keep(verified));
        self.old.retain(|_, verified| keep(verified));
    }

    /// How many tokens are remembered.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn serves(verified: &Verified, expect: &Expect<'_>, now: u64) -> bool {
    now <= verified.expires_at
        && *verified.audience == *expect.audience
        && expect.issuer.is_none_or(|issuer| *verified.issuer == *issuer)
}

#[cfg(test)]
mod tests;
