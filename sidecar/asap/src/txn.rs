//! Transaction tokens (draft-ietf-oauth-transaction-tokens): for whom, for which tenant and to what purpose one external
//! request is made, unchanged through the whole chain of calls.
//!
//! The identity service mints them ([`SigningKey::mint_transaction`]) and the sidecars verify them. Their keys are apart
//! from those of ASAP tokens: a [`Keys`] given to [`verify`] holds transaction keys alone, and the type in the header
//! keeps either kind of token from passing as the other.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::claims::object;
use crate::kid::belongs_to;
use crate::signing::new_id;
use crate::token::{Kind, Parsed};
use crate::{Algorithm, Keys, Lookup, MAX_LEEWAY_SECONDS, SigningKey, VerifyError};

mod memory;

pub use memory::Memory;

/// `typ` of the header.
pub const TYPE: &str = "txntoken+jwt";

/// Who owns the keys: their ids begin with this and a slash.
pub const ISSUER: &str = "tenon-identity";

/// Life of a token, in seconds; one that claims a longer one is refused.
pub const LIFETIME_SECONDS: u64 = 300;

/// Longest `txn`, in bytes.
const MAX_ID_BYTES: usize = 128;

/// What a new token shall say.
#[derive(Clone, Copy, Debug)]
pub struct NewToken<'a> {
    /// `aud`: the trust domain within which it counts.
    pub trust_domain: &'a str,
    /// `txn`: of a token that replaces another one of the same transaction. None: a new one of 128 random bits.
    pub txn: Option<&'a str>,
    /// `sub`: the principal of the transaction; not empty.
    pub subject: &'a str,
    /// `scope`: the purpose, words with spaces between; not empty.
    pub scope: &'a str,
    /// `tctx.tenant`.
    pub tenant: Option<&'a str>,
    /// The rest of `tctx`. A member `tenant` in it counts for nothing.
    pub transaction_context: &'a Map<String, Value>,
    /// `rctx`.
    pub requester_context: &'a Map<String, Value>,
    /// `req_wl`: the workload that asked for the token; not empty.
    pub requester: &'a str,
    /// At most [`LIFETIME_SECONDS`], or nobody accepts it.
    pub lifetime_seconds: u64,
}

/// The claims of a token, for whoever needs all of them: its service, and people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Issued at, Unix seconds.
    pub iat: u64,
    /// Last second in which it is valid, Unix seconds.
    pub exp: u64,
    /// The trust domain.
    pub aud: String,
    /// Unique for the transaction.
    pub txn: String,
    /// The principal.
    pub sub: String,
    /// The purpose.
    pub scope: String,
    /// What stays the same through the chain of calls: the tenant among it.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub tctx: Map<String, Value>,
    /// Where the request came from.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub rctx: Map<String, Value>,
    /// The workload that asked for the token.
    pub req_wl: String,
}

impl Claims {
    /// `tctx.tenant`.
    pub fn tenant(&self) -> Option<&str> {
        self.tctx.get("tenant").and_then(Value::as_str)
    }
}

impl SigningKey {
    /// A transaction token, valid from `now`. The key must be one of [`ISSUER`] that signs ES256, as
    /// [`SigningKey::generate`] makes it, or nobody accepts the token; nor does anybody when the contexts make it longer
    /// than [`crate::MAX_TOKEN_BYTES`].
    pub fn mint_transaction(&self, token: &NewToken<'_>, now: u64) -> String {
        let mut tctx = token.transaction_context.clone();
        tctx.remove("tenant");
        if let Some(tenant) = token.tenant {
            tctx.insert("tenant".to_owned(), tenant.into());
        }
        self.sign_transaction(&Claims {
            iat: now,
            exp: now.saturating_add(token.lifetime_seconds),
            aud: token.trust_domain.to_owned(),
            txn: token.txn.map_or_else(new_id, str::to_owned),
            sub: token.subject.to_owned(),
            scope: token.scope.to_owned(),
            tctx,
            rctx: token.requester_context.clone(),
            req_wl: token.requester.to_owned(),
        })
    }
}

/// What a token must be for.
#[derive(Clone, Copy, Debug)]
pub struct Expect<'a> {
    /// Must be `aud`.
    pub trust_domain: &'a str,
    /// How far clocks may be apart, in seconds: 5, at most [`MAX_LEEWAY_SECONDS`].
    pub leeway_seconds: u64,
}

/// What a sidecar needs to know of a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// `tctx.tenant`.
    pub tenant: Option<Box<str>>,
    /// `sub`.
    pub subject: Box<str>,
    /// `scope`.
    pub scope: Box<str>,
    /// Last second in which it is valid, Unix time, without leeway.
    pub expires_at: u64,
    /// Which key signed it.
    pub kid: Box<str>,
    /// `txn`.
    pub txn: Box<str>,
    /// `aud`, which was expected.
    pub trust_domain: Box<str>,
}

/// Why a transaction token is refused. Says nothing of what stands in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a transaction token; the text says what about it.
    #[error("{0}")]
    Malformed(&'static str),
    /// Not ES256, or the key is of another curve.
    #[error("the algorithm is not ES256")]
    Algorithm,
    /// The key is not the identity service's, not known, or not known yet.
    #[error("the key is not a known transaction key")]
    Key,
    /// The signature is not one of this key over this token.
    #[error("the signature is wrong")]
    Signature,
    /// `iat` or `nbf` lies in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `exp` − `iat` is not a life of 1 to [`LIFETIME_SECONDS`].
    #[error("the token's times do not make a life of at most five minutes")]
    Lifetime,
    /// `aud` is another trust domain.
    #[error("the token is for another trust domain")]
    TrustDomain,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
}

impl Error {
    /// The reason of a refusal, as the design names it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Expired => "TXN_EXPIRED",
            Self::Malformed(_)
            | Self::Algorithm
            | Self::Key
            | Self::Signature
            | Self::NotYetValid
            | Self::Lifetime
            | Self::TrustDomain => "TXN_INVALID",
        }
    }
}

impl From<VerifyError> for Error {
    /// Of what is the same in both kinds of token: size, split, header.
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Malformed(what) => Self::Malformed(what),
            VerifyError::Algorithm => Self::Algorithm,
            VerifyError::KeyUnknown | VerifyError::KeysUnavailable | VerifyError::Issuer | VerifyError::Subject => {
                Self::Key
            }
            VerifyError::Signature => Self::Signature,
            VerifyError::Expired => Self::Expired,
            VerifyError::NotYetValid => Self::NotYetValid,
            VerifyError::Lifetime => Self::Lifetime,
            VerifyError::Audience => Self::TrustDomain,
        }
    }
}

/// Verifies `token` at `now`, Unix seconds.
///
/// # Errors
/// The first thing that is wrong with it. `keys` is not asked for a token that is wrong in what needs no key.
pub fn verify(token: &str, expect: &Expect<'_>, keys: &impl Keys, now: u64) -> Result<Verified, Error> {
    let (kid, claims) = open(token, expect, keys, now)?;
    Ok(Verified {
        tenant: claims.tenant().map(Into::into),
        subject: claims.sub.into(),
        scope: claims.scope.into(),
        expires_at: claims.exp,
        kid: kid.into(),
        txn: claims.txn.into(),
        trust_domain: claims.aud.into(),
    })
}

/// Verifies as [`verify`] does, and gives all the claims: for the token's own service, which replaces one token by
/// another of the same transaction.
///
/// # Errors
/// As [`verify`].
pub fn claims(token: &str, expect: &Expect<'_>, keys: &impl Keys, now: u64) -> Result<Claims, Error> {
    open(token, expect, keys, now).map(|(_, claims)| claims)
}

fn open(token: &str, expect: &Expect<'_>, keys: &impl Keys, now: u64) -> Result<(String, Claims), Error> {
    let parsed = Parsed::parse(token, Kind::Transaction)?;
    if parsed.algorithm != Algorithm::Es256 {
        return Err(Error::Algorithm);
    }
    if !belongs_to(&parsed.kid, ISSUER) {
        return Err(Error::Key);
    }
    let (claims, not_before) = read(&parsed.claims)?;
    let Lookup::Found(key) = keys.get(&parsed.kid) else { return Err(Error::Key) };
    match key.verify(parsed.algorithm, parsed.message.as_bytes(), &parsed.signature) {
        Some(true) => {}
        Some(false) => return Err(Error::Signature),
        None => return Err(Error::Algorithm),
    }
    if !(1..=LIFETIME_SECONDS).contains(&claims.exp.saturating_sub(claims.iat)) {
        return Err(Error::Lifetime);
    }
    if claims.aud != expect.trust_domain {
        return Err(Error::TrustDomain);
    }
    let leeway = expect.leeway_seconds.min(MAX_LEEWAY_SECONDS);
    if now > claims.exp.saturating_add(leeway) {
        return Err(Error::Expired);
    }
    if now.saturating_add(leeway) < claims.iat.max(not_before) {
        return Err(Error::NotYetValid);
    }
    Ok((parsed.kid, claims))
}

/// The claims and `nbf`. Times are whole seconds: the one service that mints these tokens writes no others.
fn read(json: &[u8]) -> Result<(Claims, u64), Error> {
    const TYPES: Error = Error::Malformed("a claim is missing or has another type than the draft says");
    let members = object(json).map_err(|_| Error::Malformed("the claims are not one JSON object"))?;
    let not_before = match members.get("nbf") {
        None => 0,
        Some(value) => value.as_u64().ok_or(TYPES)?,
    };
    // A foreign issuer's token cannot have a key of ours; a token that contradicts its key is refused all the same.
    if members.get("iss").is_some_and(|issuer| issuer != ISSUER) {
        return Err(Error::Malformed("iss is not the owner of transaction keys"));
    }
    let claims: Claims = serde_json::from_value(Value::Object(members)).map_err(|_| TYPES)?;
    if [&claims.aud, &claims.txn, &claims.sub, &claims.scope, &claims.req_wl].iter().any(|name| name.is_empty()) {
        return Err(Error::Malformed("a claim that names something is empty"));
    }
    if claims.txn.len() > MAX_ID_BYTES {
        return Err(Error::Malformed("txn is longer than 128 bytes"));
    }
    match claims.tctx.get("tenant") {
        Some(Value::String(tenant)) if !tenant.is_empty() => {}
        Some(_) => return Err(Error::Malformed("tctx.tenant is not a string, or empty")),
        None => {}
    }
    Ok((claims, not_before))
}
