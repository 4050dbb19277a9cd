//! Tokens for destinations.

use std::sync::Arc;

use http::HeaderValue;
use mesh_asap::{DEFAULT_LIFETIME_SECONDS, Minted, SigningKey};

/// Tokens for destinations, minted ahead and kept as header values.
#[derive(Debug)]
pub struct Minting(Minted<HeaderValue>);

impl Minting {
    /// Mints with `key`, each token for five minutes.
    #[must_use]
    pub fn new(key: Arc<SigningKey>) -> Self {
        Self(Minted::new(key, DEFAULT_LIFETIME_SECONDS, |token| {
            let mut value = HeaderValue::from_str(&token).expect("a JWS is base64url and dots");
            // Not marked sensitive: HPACK must index it, or it costs 400 bytes a call (docs/adr/0003-x-asap-token.md).
            value.set_sensitive(false);
            value
        }))
    }

    /// The token for a service, to be looked at.
    pub fn look_at<R>(&self, audience: &str, now: u64, look: impl FnOnce(&HeaderValue) -> R) -> R {
        self.0.look_at(audience, now, look)
    }

    /// From the return of this on every token is one of `key`.
    pub fn set_key(&self, key: Arc<SigningKey>, now: u64) {
        self.0.set_key(key, now);
    }

    /// The key that signs now.
    pub fn key(&self) -> Arc<SigningKey> {
        self.0.key()
    }

    /// Mints what is due, so that no call has to.
    pub fn renew_due(&self, now: u64) {
        self.0.renew_due(now);
    }
}
