//! One token of a platform: read before anything of it is believed, then verified. Never reads the clock.

use jsonwebtoken::{Header, TokenData, Validation, dangerous, decode, decode_header};
use serde_json::{Map, Value};

use super::keys::VerifyingKey;

/// Longest token, in bytes, before anything of it is decoded. Those of large platforms name all groups of their subject.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// How far the clocks of the issuer and of this machine may be apart, in seconds.
const LEEWAY_SECONDS: f64 = 30.0;

/// Why a token attests nobody. Says nothing of what stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the platform's token is longer than {MAX_TOKEN_BYTES} bytes")]
    Size,
    #[error("the platform's token is not a signed JSON Web Token that can be read")]
    Malformed,
    #[error("the key that signed the platform's token is none of its issuer's")]
    Key,
    #[error("the algorithm of the platform's token is not accepted, or does not fit the key")]
    Algorithm,
    #[error("the signature of the platform's token is wrong")]
    Signature,
    #[error("the platform's token has expired: read it anew from where the platform puts it")]
    Expired,
    #[error("the platform's token is not valid yet: compare the clocks")]
    NotYetValid,
}

/// A token that nobody has verified.
pub(super) struct Unverified<'t> {
    token: &'t str,
    header: Header,
    claims: Map<String, Value>,
}

impl<'t> Unverified<'t> {
    pub(super) fn read(token: &'t str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Size);
        }
        // `none` and unknown algorithms have no variant in the library: such a header does not decode.
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            // RFC 7515 §4.1.11: whoever does not understand an extension that is critical refuses the token.
            return Err(TokenError::Malformed);
        }
        let claims = dangerous::insecure_decode::<Map<String, Value>>(token).map_err(|_| TokenError::Malformed)?.claims;
        Ok(Self { token, header, claims })
    }

    pub(super) fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// `iss`, which says whose keys to ask for.
    pub(super) fn issuer(&self) -> Result<&str, TokenError> {
        self.claims.get("iss").and_then(Value::as_str).ok_or(TokenError::Malformed)
    }

    /// `aud`, which is one text or several.
    pub(super) fn audiences(&self) -> Result<Vec<&str>, TokenError> {
        match self.claims.get("aud") {
            Some(Value::String(one)) => Ok(vec![one]),
            Some(Value::Array(several)) => {
                several.iter().map(|item| item.as_str().ok_or(TokenError::Malformed)).collect()
            }
            _ => Err(TokenError::Malformed),
        }
    }

    /// The claims, when one of `keys` signed them and they count at `now`, Unix seconds.
    pub(super) fn verify(&self, keys: &[impl AsRef<VerifyingKey>], now: u64) -> Result<Map<String, Value>, TokenError> {
        if keys.is_empty() {
            return Err(TokenError::Key);
        }
        let mut failed = TokenError::Algorithm;
        for key in keys.iter().map(AsRef::as_ref).filter(|key| key.algorithms.contains(&self.header.alg)) {
            match decode(self.token, &key.key, &signature_alone(key)) {
                Ok(TokenData { claims, .. }) => {
                    check_times(&claims, now)?;
                    return Ok(claims);
                }
                Err(_) => failed = TokenError::Signature,
            }
        }
        Err(failed)
    }
}

/// The library would read the clock by itself, and take an array for `iss`.
fn signature_alone(key: &VerifyingKey) -> Validation {
    let mut validation = Validation::default();
    validation.algorithms.clone_from(&key.algorithms);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

/// RFC 7519 §4.1.4 to §4.1.6. A token without an end is none.
fn check_times(claims: &Map<String, Value>, now: u64) -> Result<(), TokenError> {
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(TokenError::Malformed),
    };
    // Exact for any time to come.
    let now = now as f64;
    let (expires, begins, issued) = (time("exp")?.ok_or(TokenError::Malformed)?, time("nbf")?, time("iat")?);
    if now >= expires + LEEWAY_SECONDS {
        return Err(TokenError::Expired);
    }
    if [begins, issued].into_iter().flatten().any(|time| time > now + LEEWAY_SECONDS) {
        return Err(TokenError::NotYetValid);
    }
    Ok(())
}
