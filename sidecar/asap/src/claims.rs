//! JSON as A6 wants it, and the claims of a token.

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::VerifyError;

/// Longest `jti` that is accepted, in bytes (A10).
const MAX_ID_BYTES: usize = 128;

/// Up to here every whole number of seconds has a float of its own.
const MAX_SECONDS: f64 = 9_007_199_254_740_992.0;

/// Reads exactly one JSON object in which, at no depth, a member stands twice (A6).
pub(crate) fn object(json: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    match serde_json::from_slice(json)? {
        Unique(Value::Object(members)) => Ok(members),
        Unique(_) => Err(de::Error::custom("not an object")),
    }
}

/// The claims that the rules speak of, with the types that A6 gives them. Times are seconds and may have fractions
/// (RFC 7519 §2, `NumericDate`).
#[derive(Debug)]
pub(crate) struct Claims {
    pub issuer: String,
    /// What it says, which A12 fills in.
    pub subject: Option<String>,
    pub audiences: Vec<String>,
    pub issued_at: f64,
    pub expires_at: f64,
    /// `nbf`, or `iat` where that is missing (A8).
    pub not_before: f64,
}

impl Claims {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, VerifyError> {
        let mut members = object(json).map_err(|_| VerifyError::Malformed("the claims are not one JSON object"))?;
        let issuer = name(members.remove("iss"))?.ok_or(VerifyError::Malformed("iss is missing"))?;
        let id = name(members.remove("jti"))?.ok_or(VerifyError::Malformed("jti is missing"))?;
        if id.len() > MAX_ID_BYTES {
            return Err(VerifyError::Malformed("jti is longer than 128 bytes"));
        }
        let issued_at = time(members.remove("iat"))?.ok_or(VerifyError::Malformed("iat is missing"))?;
        let expires_at = time(members.remove("exp"))?.ok_or(VerifyError::Malformed("exp is missing"))?;
        Ok(Self {
            issuer,
            subject: name(members.remove("sub"))?,
            audiences: audiences(members.remove("aud"))?,
            issued_at,
            expires_at,
            not_before: time(members.remove("nbf"))?.unwrap_or(issued_at),
        })
    }
}

fn name(value: Option<Value>) -> Result<Option<String>, VerifyError> {
    match value {
        None => Ok(None),
        Some(Value::String(name)) if !name.is_empty() => Ok(Some(name)),
        Some(_) => Err(VerifyError::Malformed("a claim that names something is not a string, or empty")),
    }
}

fn audiences(value: Option<Value>) -> Result<Vec<String>, VerifyError> {
    match value {
        Some(Value::Array(items)) => {
            items.into_iter().map(|item| name(Some(item))?.ok_or(VerifyError::Malformed("aud is missing"))).collect()
        }
        one => Ok(vec![name(one)?.ok_or(VerifyError::Malformed("aud is missing"))?]),
    }
}

fn time(value: Option<Value>) -> Result<Option<f64>, VerifyError> {
    match value {
        None => Ok(None),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(seconds) if (0.0..=MAX_SECONDS).contains(&seconds) => Ok(Some(seconds)),
            _ => Err(VerifyError::Malformed("a time is out of range")),
        },
        Some(_) => Err(VerifyError::Malformed("a time is not a number")),
    }
}

/// A JSON value that has refused members which stand twice; `serde_json::Value` itself keeps the last one.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("JSON without duplicate members")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Unique(value))) = members.next_entry::<String, Unique>()? {
            if object.insert(name, value).is_some() {
                return Err(de::Error::custom("a member stands twice"));
            }
        }
        Ok(Value::Object(object))
    }
}
