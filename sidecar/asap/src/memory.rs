//! Verified tokens, remembered: the same token comes with every call for minutes.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
};

use ahash::{AHasher, RandomState};

use crate::{Expect, Keys, Verified, VerifyError, verify};

/// The verified tokens of one worker. Bounded, without a lock: each worker has its own.
///
/// A token is found by all of its bytes, so nothing that differs in a single one passes. Two generations bound it: when
/// the young one is full it becomes the old one, and what was old and not asked for since is forgotten.
#[derive(Debug, Default)]
pub struct Memory(Remembered<Verified>);

impl Memory {
    /// Remembers at least the last `capacity` tokens and at most twice as many.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Remembered::with_capacity(capacity))
    }

    /// What [`verify`] answers, from memory where it can. A remembered token is still held to its time, to the audience
    /// and to the peer of this very call. Leeway does not stretch a memory: past `exp` the token is verified anew.
    ///
    /// # Errors
    /// As [`verify`]; refusals are not remembered.
    pub fn verify(
        &mut self,
        token: &(impl AsRef<[u8]> + ?Sized),
        expect: &Expect<'_>,
        keys: &impl Keys,
        now: u64,
    ) -> Result<&Verified, VerifyError> {
        let token = token.as_ref();
        let verify = || match std::str::from_utf8(token) {
            Ok(token) => verify(token, expect, keys, now),
            Err(_) => Err(VerifyError::Malformed("not text")),
        };
        self.0.recall_or(token, |verified| serves(verified, expect, now), verify)
    }

    /// The same, where only the outcome is wanted: a remembered token is looked for once.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn check(&mut self, token: &[u8], expect: &Expect<'_>, keys: &impl Keys, now: u64) -> Result<(), VerifyError> {
        if self.0.young.get(token).is_some_and(|verified| serves(verified, expect, now)) {
            return Ok(());
        }
        self.verify(token, expect, keys, now).map(drop)
    }

    /// What is remembered of this token, if that serves this call. Allocates nothing.
    pub fn get(&self, token: &(impl AsRef<[u8]> + ?Sized), expect: &Expect<'_>, now: u64) -> Option<&Verified> {
        self.0.get(token.as_ref()).filter(|verified| serves(verified, expect, now))
    }

    /// Remembers a token that [`verify`] has just verified.
    pub fn insert(&mut self, token: &(impl AsRef<[u8]> + ?Sized), verified: Verified) {
        self.0.insert(token.as_ref(), verified);
    }

    /// Forgets everything: keys were replaced as a whole.
    pub fn forget_all(&mut self) {
        self.0.forget_all();
    }

    /// Forgets what `keep` does not want: a key has gone, an issuer was revoked.
    pub fn retain(&mut self, keep: impl FnMut(&Verified) -> bool) {
        self.0.retain(keep);
    }

    /// How many tokens are remembered.
    pub fn len(&self) -> usize {
        self.0.len()
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

/// What was made of each of the last tokens.
#[derive(Debug)]
pub(crate) struct Remembered<V> {
    young: Generation<V>,
    old: Generation<V>,
    capacity: usize,
}

type Generation<V> = HashMap<Box<[u8]>, V, ByEnd>;

/// Hashes a token by its end, which is of the signature: two verified tokens that share so much of it are not to be had. They
/// are compared as a whole all the same.
#[derive(Clone, Debug, Default)]
struct ByEnd(RandomState);

/// See [`ByEnd`].
struct EndHasher(AHasher);

/// Bytes of a token's end that are hashed.
const END: usize = 32;

impl BuildHasher for ByEnd {
    type Hasher = EndHasher;

    fn build_hasher(&self) -> EndHasher {
        EndHasher(self.0.build_hasher())
    }
}

impl Hasher for EndHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(&bytes[bytes.len().saturating_sub(END)..]);
    }

    fn write_usize(&mut self, length: usize) {
        self.0.write_usize(length);
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

impl<V> Default for Remembered<V> {
    /// Room for 4,096 tokens twice over.
    fn default() -> Self {
        Self::with_capacity(4096)
    }
}

impl<V> Remembered<V> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { young: Generation::default(), old: Generation::default(), capacity: capacity.max(1) }
    }

    /// What is remembered and `serves`, else what `make` makes, remembered from then on.
    pub(crate) fn recall_or<E>(
        &mut self,
        token: &[u8],
        serves: impl Fn(&V) -> bool,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<&V, E> {
        if !self.young.get(token).is_some_and(&serves) {
            let value = match self.old.remove_entry(token) {
                Some((_, value)) if serves(&value) => value,
                _ => make()?,
            };
            self.insert(token, value);
        }
        Ok(&self.young[token])
    }

    pub(crate) fn get(&self, token: &[u8]) -> Option<&V> {
        self.young.get(token).or_else(|| self.old.get(token))
    }

    pub(crate) fn insert(&mut self, token: &[u8], value: V) {
        if self.young.len() >= self.capacity && !self.young.contains_key(token) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(token.into(), value);
    }

    pub(crate) fn forget_all(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.young.retain(|_, value| keep(value));
        self.old.retain(|_, value| keep(value));
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests;
