//! The compact form of a JWS (A1, A2, A3): size, split, header. Nothing here looks at a key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::claims::object;
use crate::{Algorithm, VerifyError, kid};

/// Longest token, in bytes, before anything of it is decoded (A13).
pub const MAX_TOKEN_BYTES: usize = 8192;

/// Header parameters that bring a key along, which a verifier must never take (A3).
const KEY_MATERIAL: [&str; 4] = ["jwk", "jku", "x5u", "x5c"];

/// A token whose header has passed.
pub(crate) struct Parsed<'t> {
    pub algorithm: Algorithm,
    /// Has passed the grammar of A4.
    pub kid: String,
    /// What is signed: header and claims as they came.
    pub message: &'t str,
    pub claims: Vec<u8>,
    pub signature: Vec<u8>,
}

/// The two kinds of token that there are, told apart by `typ` so that neither passes as the other (RFC 8725 §3.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `typ` is `JWT`, missing, or anything but that of the other kind.
    Asap,
    /// `typ` is `txntoken+jwt`.
    Transaction,
}

impl Kind {
    /// Media types are compared without case, and `application/` may be left out (RFC 7515 §4.1.9).
    fn of(typ: &str) -> Self {
        let prefix = "application/";
        let bare = match typ.get(..prefix.len()) {
            Some(start) if start.eq_ignore_ascii_case(prefix) => &typ[prefix.len()..],
            _ => typ,
        };
        if bare.eq_ignore_ascii_case(crate::txn::TYPE) { Self::Transaction } else { Self::Asap }
    }
}

struct Split<'t> {
    message: &'t str,
    header: &'t str,
    claims: &'t str,
    signature: &'t str,
}

impl<'t> Parsed<'t> {
    pub(crate) fn parse(token: &'t str, kind: Kind) -> Result<Self, VerifyError> {
        let split = Split::of(token)?;
        let header =
            object(&decode(split.header)?).map_err(|_| VerifyError::Malformed("the header is not one JSON object"))?;
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::from_name(name).ok_or(VerifyError::Algorithm)?,
            Some(_) => return Err(VerifyError::Malformed("alg is not a string")),
            None => return Err(VerifyError::Malformed("alg is missing")),
        };
        Ok(Self {
            algorithm,
            kid: checked_kid(header, kind)?,
            message: split.message,
            claims: decode(split.claims)?,
            signature: decode(split.signature)?,
        })
    }
}

impl<'t> Split<'t> {
    fn of(token: &'t str) -> Result<Self, VerifyError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(VerifyError::Malformed("the token is longer than 8192 bytes"));
        }
        let parts = VerifyError::Malformed("the token is not three parts with dots between");
        let (message, signature) = token.rsplit_once('.').ok_or(parts.clone())?;
        let (header, claims) = message.split_once('.').ok_or(parts.clone())?;
        if claims.contains('.') {
            return Err(parts);
        }
        Ok(Self { message, header, claims, signature })
    }
}

fn decode(part: &str) -> Result<Vec<u8>, VerifyError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| VerifyError::Malformed("a part of the token is not unpadded base64url"))
}

fn checked_kid(mut header: Map<String, Value>, kind: Kind) -> Result<String, VerifyError> {
    if KEY_MATERIAL.iter().any(|name| header.contains_key(*name)) {
        return Err(VerifyError::Malformed("the header brings a key along"));
    }
    // RFC 7515 §4.1.11: whoever does not understand a critical extension refuses the token; we know none.
    if header.contains_key("crit") {
        return Err(VerifyError::Malformed("the header has critical extensions"));
    }
    let found = match header.get("typ") {
        None => Kind::Asap,
        Some(Value::String(typ)) => Kind::of(typ),
        Some(_) => return Err(VerifyError::Malformed("typ is not a string")),
    };
    if found != kind {
        return Err(VerifyError::Malformed("the token is of another kind"));
    }
    match header.remove("kid") {
        Some(Value::String(kid)) if kid::check(&kid).is_ok() => Ok(kid),
        Some(Value::String(_)) => Err(VerifyError::Malformed("kid breaks the grammar of key ids")),
        Some(_) => Err(VerifyError::Malformed("kid is not a string")),
        None => Err(VerifyError::Malformed("kid is missing")),
    }
}

/// What stands in a token, for a person to look at. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspected {
    /// The JOSE header.
    pub header: Map<String, Value>,
    /// The claims.
    pub claims: Map<String, Value>,
}

/// The token cannot be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InspectError(&'static str);

/// Takes a token apart without verifying anything.
///
/// # Errors
/// It is not a JWS in compact form with two JSON objects.
pub fn inspect(token: &str) -> Result<Inspected, InspectError> {
    let part = |part: &str| -> Result<Map<String, Value>, InspectError> {
        let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| InspectError("a part is not unpadded base64url"))?;
        object(&json).map_err(|_| InspectError("a part is not one JSON object without duplicate members"))
    };
    let split =
        Split::of(token).map_err(|_| InspectError("not three parts with dots between, of at most 8192 bytes"))?;
    Ok(Inspected { header: part(split.header)?, claims: part(split.claims)? })
}
