use super::{Error, Expect, Verified, verify};
use crate::Keys;
use crate::memory::Remembered;

/// The verified transaction tokens of one worker, found by all of their bytes; bounded as [`crate::Memory`] is.
#[derive(Debug, Default)]
pub struct Memory(Remembered<Verified>);

impl Memory {
    /// Remembers at least the last `capacity` tokens and at most twice as many.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Remembered::with_capacity(capacity))
    }

    /// What [`verify`] answers, from memory where it can. Leeway does not stretch a memory: past `exp` the token is
    /// verified anew.
    ///
    /// # Errors
    /// As [`verify`]; refusals are not remembered.
    pub fn verify(&mut self, token: &str, expect: &Expect<'_>, keys: &impl Keys, now: u64) -> Result<&Verified, Error> {
        let serves = |verified: &Verified| now <= verified.expires_at && *verified.trust_domain == *expect.trust_domain;
        self.0.recall_or(token.as_bytes(), serves, || verify(token, expect, keys, now))
    }

    /// Forgets everything: keys were replaced as a whole.
    pub fn forget_all(&mut self) {
        self.0.forget_all();
    }

    /// Forgets what `keep` does not want: a key has gone.
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
