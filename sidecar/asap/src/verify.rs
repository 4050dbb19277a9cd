//! Verifying a token, in the order of work that the rules give: cheapest first, the key look-up only for a token that
//! has passed everything that needs none.

use crate::claims::Claims;
use crate::kid::belongs_to;
use crate::token::{Kind, Parsed};
use crate::{Keys, Kid, Lookup};

/// Longest life of a token, in seconds: `exp` − `iat` (A8).
pub const MAX_LIFETIME_SECONDS: u64 = 3600;

/// A larger leeway counts as this one, in seconds (A9).
pub const MAX_LEEWAY_SECONDS: u64 = 30;

/// What a token must be for, and who may have sent it.
#[derive(Clone, Copy, Debug)]
pub struct Expect<'a> {
    /// Our own name, which must stand in `aud` (A7).
    pub audience: &'a str,
    /// The service that mTLS proved to be at the other end, which must be `iss`: a stolen token is of no use to anyone
    /// else. None only for a peer outside of the mesh that a configuration names.
    pub issuer: Option<&'a str>,
    /// How far clocks may be apart, in seconds: 5, at most [`MAX_LEEWAY_SECONDS`] (A9).
    pub leeway_seconds: u64,
    /// Who may speak for another subject (A12). Usually none.
    pub grants: &'a [Grant],
}

impl<'a> Expect<'a> {
    /// A token for `audience` from `issuer`, 5 s leeway, nobody speaks for others.
    pub fn new(audience: &'a str, issuer: Option<&'a str>) -> Self {
        Self { audience, issuer, leeway_seconds: 5, grants: &[] }
    }
}

/// Lets one issuer make tokens with one other subject (A12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// `iss` of such tokens.
    pub issuer: String,
    /// The `sub` that it may set.
    pub subject: String,
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// `iss`.
    pub issuer: Box<str>,
    /// `sub`, or `iss` where that is missing (A12).
    pub subject: Box<str>,
    /// The one of its audiences that was expected.
    pub audience: Box<str>,
    /// Which key signed it.
    pub kid: Box<str>,
    /// Last second in which it is valid, Unix time, without leeway.
    pub expires_at: u64,
}

/// Why a token is refused. Says nothing of what stands in the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not a token by A1, A3, A4 or A6; the text says what about it.
    #[error("{0}")]
    Malformed(&'static str),
    /// `alg` is none of A2, or does not fit the key.
    #[error("the algorithm is not accepted, or does not fit the key")]
    Algorithm,
    /// No repository knows the key.
    #[error("the key is not known")]
    KeyUnknown,
    /// Nobody can say now whether there is such a key.
    #[error("the key repositories cannot be reached")]
    KeysUnavailable,
    /// The signature is not one of this key over this token.
    #[error("the signature is wrong")]
    Signature,
    /// `exp` has passed (A9).
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` lies in the future (A9).
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `exp`, `iat` and `nbf` do not make a life that A8 allows.
    #[error("the token's times do not make a life of at most an hour")]
    Lifetime,
    /// `aud` does not name us (A7).
    #[error("the token is for another audience")]
    Audience,
    /// The key is not the issuer's (A5), or the issuer is not the peer.
    #[error("the issuer is not the owner of the key, or not the peer")]
    Issuer,
    /// The issuer may not speak for this subject (A12).
    #[error("the issuer may not speak for this subject")]
    Subject,
}

impl VerifyError {
    /// The reason of a refusal, as the design names it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "ASAP_MALFORMED",
            Self::Algorithm => "ASAP_ALGORITHM",
            Self::KeyUnknown => "ASAP_KEY_UNKNOWN",
            Self::KeysUnavailable => "ASAP_KEYS_UNAVAILABLE",
            Self::Signature => "ASAP_SIGNATURE",
            Self::Expired => "ASAP_EXPIRED",
            Self::NotYetValid => "ASAP_NOT_YET_VALID",
            Self::Lifetime => "ASAP_LIFETIME",
            Self::Audience => "ASAP_AUDIENCE",
            Self::Issuer => "ASAP_ISSUER",
            Self::Subject => "ASAP_SUBJECT",
        }
    }
}

/// What a token says of its key and issuer. Nothing is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precheck {
    /// The key to ask for.
    pub kid: Kid,
    /// `iss`, to which `kid` belongs (A5).
    pub issuer: Box<str>,
}

/// Everything in [`verify`] that needs neither key nor clock: size, split, header, algorithm, key id, the types of the
/// claims, and that the key is the issuer's. For whoever has to fetch an outside key first (A15), and must not for a
/// token that cannot pass.
///
/// # Errors
/// The first rule that it breaks.
pub fn precheck(token: &str) -> Result<Precheck, VerifyError> {
    let (parsed, claims) = keyless(token)?;
    Ok(Precheck { kid: Kid::checked(&parsed.kid), issuer: claims.issuer.into() })
}

fn keyless(token: &str) -> Result<(Parsed<'_>, Claims), VerifyError> {
    let parsed = Parsed::parse(token, Kind::Asap)?;
    let claims = Claims::parse(&parsed.claims)?;
    if belongs_to(&parsed.kid, &claims.issuer) { Ok((parsed, claims)) } else { Err(VerifyError::Issuer) }
}

/// Verifies `token` at `now`, Unix seconds.
///
/// # Errors
/// The first rule that it breaks. `keys` is not asked for a token that breaks a rule which needs no key.
pub fn verify(token: &str, expect: &Expect<'_>, keys: &impl Keys, now: u64) -> Result<Verified, VerifyError> {
    let (parsed, claims) = keyless(token)?;
    let key = match keys.get(&parsed.kid) {
        Lookup::Found(key) => key,
        Lookup::Unknown => return Err(VerifyError::KeyUnknown),
        Lookup::Unavailable => return Err(VerifyError::KeysUnavailable),
    };
    match key.verify(parsed.algorithm, parsed.message.as_bytes(), &parsed.signature) {
        Some(true) => {}
        Some(false) => return Err(VerifyError::Signature),
        None => return Err(VerifyError::Algorithm),
    }
    check_times(&claims, expect, now)?;
    if !claims.audiences.iter().any(|audience| audience == expect.audience) {
        return Err(VerifyError::Audience);
    }
    check_subject(&claims, expect)?;
    if expect.issuer.is_some_and(|issuer| issuer != claims.issuer) {
        return Err(VerifyError::Issuer);
    }
    Ok(Verified {
        expires_at: whole_seconds(claims.expires_at),
        subject: claims.subject.unwrap_or_else(|| claims.issuer.clone()).into(),
        issuer: claims.issuer.into(),
        audience: expect.audience.into(),
        kid: parsed.kid.into(),
    })
}

/// A8, then A9.
fn check_times(claims: &Claims, expect: &Expect<'_>, now: u64) -> Result<(), VerifyError> {
    let life = claims.expires_at - claims.issued_at;
    if life <= 0.0 || life > seconds(MAX_LIFETIME_SECONDS) || claims.not_before > claims.expires_at {
        return Err(VerifyError::Lifetime);
    }
    let leeway = seconds(expect.leeway_seconds.min(MAX_LEEWAY_SECONDS));
    let now = seconds(now);
    if now > claims.expires_at + leeway {
        return Err(VerifyError::Expired);
    }
    if now < claims.not_before - leeway || now < claims.issued_at - leeway {
        return Err(VerifyError::NotYetValid);
    }
    Ok(())
}

/// A12.
fn check_subject(claims: &Claims, expect: &Expect<'_>) -> Result<(), VerifyError> {
    match &claims.subject {
        Some(subject) if *subject != claims.issuer => {
            let granted = |grant: &Grant| grant.issuer == claims.issuer && grant.subject == *subject;
            if expect.grants.iter().any(granted) { Ok(()) } else { Err(VerifyError::Subject) }
        }
        _ => Ok(()),
    }
}

/// Exact for every time that the claims accept.
fn seconds(whole: u64) -> f64 {
    whole as f64
}

/// Rounds down; the claims have checked the range.
fn whole_seconds(seconds: f64) -> u64 {
    seconds as u64
}
