//! The keys of one issuer, as they are known now.
//!
//! They are fetched when a token needs them and not before: by one fetch at a time, however many wait for it. A token
//! that names a key nobody knows causes a fetch at most every [`SHORTEST_PAUSE`], so a flood of such tokens costs the
//! issuer next to nothing. When the issuer is down, keys are used for [`STALE`] beyond their time, and no longer: one
//! that was withdrawn must not live on behind a line that somebody cut.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::fetch::{Fetch, FetchError};

/// How long keys are fresh whose issuer does not say.
const FRESH: Duration = Duration::from_secs(600);
/// Issuers that say less are not asked more often than this for keys that are known.
const LEAST_FRESH: Duration = Duration::from_secs(60);
/// Issuers that say more are asked nevertheless.
const MOST_FRESH: Duration = Duration::from_secs(3600);
/// How long keys are used beyond their time while the issuer cannot be reached.
pub(super) const STALE: Duration = Duration::from_secs(3600);
/// Between two fetches, whatever the reason.
const SHORTEST_PAUSE: Duration = Duration::from_secs(10);
/// More keys than this are no key set of an issuer.
const MAX_KEYS: usize = 200;

/// A key that verifies, with the algorithms that fit its type and curve: a token chooses among these alone.
#[derive(Clone, Debug)]
pub(super) struct VerifyingKey {
    kid: Option<String>,
    pub algorithms: Vec<Algorithm>,
    pub key: DecodingKey,
}

/// Why there are no keys to verify with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeysError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{0} is not an OpenID Connect discovery document")]
    Discovery(String),
    #[error("the discovery document at {url} is of the issuer {found:?}")]
    OtherIssuer { url: String, found: String },
    #[error("{0} is not a JSON Web Key Set with a key that can be used")]
    KeySet(String),
    #[error("the issuer's keys were asked for a moment ago, without success")]
    Paused,
}

/// Keys of one issuer. Cheap to read.
pub(super) struct KeySet {
    issuer: String,
    /// Empty: found by discovery.
    jwks_uri: String,
    held: ArcSwapOption<Held>,
    /// When the issuer was last asked. Held while it is asked, so that one asks for all.
    asked: Mutex<Option<Instant>>,
}

struct Held {
    keys: Vec<Arc<VerifyingKey>>,
    fresh_until: Instant,
}

impl KeySet {
    pub(super) fn new(issuer: String, jwks_uri: String) -> Self {
        Self { issuer, jwks_uri, held: ArcSwapOption::empty(), asked: Mutex::new(None) }
    }

    /// The keys that a token with this `kid` may be signed with: those that have it, or all of them where the token or
    /// the key set names none. Empty when the issuer has no such key.
    pub(super) async fn candidates(
        &self,
        kid: Option<&str>,
        fetch: &impl Fetch,
    ) -> Result<Vec<Arc<VerifyingKey>>, KeysError> {
        if let Some(found) = self.fresh(kid) {
            return Ok(found);
        }
        let mut asked = self.asked.lock().await;
        // Another one may have fetched while this one waited.
        if let Some(found) = self.fresh(kid) {
            return Ok(found);
        }
        let now = Instant::now();
        if asked.is_some_and(|asked| now < asked + SHORTEST_PAUSE) {
            return self.usable(now).map(|held| held.candidates(kid)).ok_or(KeysError::Paused);
        }
        // Before the fetch: one whose caller goes away counts as well.
        *asked = Some(now);
        let fetched = self.fetch(fetch).await;
        // Nor may those who waited for an issuer that is slow ask it again, one after the other.
        *asked = Some(Instant::now());
        match fetched {
            Ok(held) => {
                let found = held.candidates(kid);
                self.held.store(Some(Arc::new(held)));
                Ok(found)
            }
            Err(error) => {
                let usable = self.usable(Instant::now());
                tracing::warn!(issuer = self.issuer, %error, stale = usable.is_some(), "the keys of an issuer cannot be fetched");
                usable.map(|held| held.candidates(kid)).ok_or(error)
            }
        }
    }

    /// None when they must be fetched first.
    fn fresh(&self, kid: Option<&str>) -> Option<Vec<Arc<VerifyingKey>>> {
        let held = self.held.load_full().filter(|held| Instant::now() < held.fresh_until)?;
        Some(held.candidates(kid)).filter(|found| !found.is_empty())
    }

    /// What is held, if it is not too old even for an issuer that is down.
    fn usable(&self, now: Instant) -> Option<Arc<Held>> {
        self.held.load_full().filter(|held| now < held.fresh_until + STALE)
    }

    async fn fetch(&self, fetch: &impl Fetch) -> Result<Held, KeysError> {
        let discovered;
        let url = if self.jwks_uri.is_empty() {
            discovered = self.discover(fetch).await?;
            &discovered
        } else {
            &self.jwks_uri
        };
        let document = fetch.get(url).await?;
        let keys = parse(&document.body).ok_or_else(|| KeysError::KeySet(url.clone()))?;
        let fresh = document.max_age.unwrap_or(FRESH).clamp(LEAST_FRESH, MOST_FRESH);
        tracing::info!(
            issuer = self.issuer,
            keys = keys.len(),
            fresh_seconds = fresh.as_secs(),
            "an issuer's keys were fetched"
        );
        Ok(Held { keys, fresh_until: Instant::now() + fresh })
    }

    /// OpenID Connect Discovery 1.0 §4.
    async fn discover(&self, fetch: &impl Fetch) -> Result<String, KeysError> {
        #[derive(Deserialize)]
        struct Metadata {
            issuer: String,
            jwks_uri: String,
        }
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let document = fetch.get(&url).await?;
        let Metadata { issuer, jwks_uri } =
            serde_json::from_slice(&document.body).map_err(|_| KeysError::Discovery(url.clone()))?;
        if issuer != self.issuer {
            return Err(KeysError::OtherIssuer { url, found: issuer.chars().take(200).collect() });
        }
        Ok(jwks_uri)
    }
}

impl Held {
    fn candidates(&self, kid: Option<&str>) -> Vec<Arc<VerifyingKey>> {
        let fits = |key: &&Arc<VerifyingKey>| match (kid, &key.kid) {
            (Some(wanted), Some(kid)) => wanted == kid,
            (None, _) | (_, None) => true,
        };
        self.keys.iter().filter(fits).cloned().collect()
    }
}

/// Keys that cannot be used here are left out, as RFC 7517 §5 asks; none at all is an error.
fn parse(json: &[u8]) -> Option<Vec<Arc<VerifyingKey>>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(json).ok()?;
    let keys: Vec<_> = set.keys.into_iter().take(MAX_KEYS).filter_map(usable).map(Arc::new).collect();
    (!keys.is_empty()).then_some(keys)
}

fn usable(jwk: serde_json::Value) -> Option<VerifyingKey> {
    let named = jwk.get("alg").map(|name| name.as_str().and_then(|name| name.parse::<Algorithm>().ok()));
    let jwk: Jwk = serde_json::from_value(jwk).ok()?;
    let common = &jwk.common;
    if common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    if common.key_operations.as_ref().is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return None;
    }
    let mut algorithms = fitting(&jwk.algorithm);
    // A key for one algorithm verifies no other.
    if let Some(named) = named {
        algorithms.retain(|algorithm| Some(*algorithm) == named);
    }
    if algorithms.is_empty() {
        return None;
    }
    Some(VerifyingKey { algorithms, key: DecodingKey::from_jwk(&jwk).ok()?, kid: jwk.common.key_id })
}

/// By the key's type and curve. Never HMAC, whose key would be public here; never EdDSA, as for ASAP tokens.
fn fitting(parameters: &AlgorithmParameters) -> Vec<Algorithm> {
    match parameters {
        AlgorithmParameters::RSA(_) => vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            // The library has no ES512.
            EllipticCurve::P521 | EllipticCurve::Ed25519 | _ => vec![],
        },
        AlgorithmParameters::OctetKey(_) | AlgorithmParameters::OctetKeyPair(_) | AlgorithmParameters::Other(_) | _ => {
            vec![]
        }
    }
}

#[cfg(test)]
mod tests;
