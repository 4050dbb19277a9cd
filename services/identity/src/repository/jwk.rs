//! Public keys as JSON Web Keys (RFC 7517, RFC 7518 §6).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use tenon_proto::identity::v1::Key;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A root certificate as an entry of a SPIFFE bundle (SPIFFE Trust Domain and Bundle §4.2): its key, and itself as the
/// only certificate of `x5c`. None when its key is of no kind that has a JWK.
pub(super) fn of_root(der: &[u8]) -> Option<Value> {
    let (_, root) = X509Certificate::from_der(der).ok()?;
    let mut jwk = of_key(root.public_key())?;
    jwk.insert("use".to_owned(), "x509-svid".into());
    jwk.insert("x5c".to_owned(), json!([STANDARD.encode(der)]));
    Some(jwk.into())
}

/// A key that verifies transaction tokens, which are ES256.
pub(super) fn of_transaction_key(key: &Key) -> Option<Value> {
    let (_, spki) = SubjectPublicKeyInfo::from_der(&key.spki).ok()?;
    let mut jwk = of_key(&spki)?;
    jwk.insert("use".to_owned(), "sig".into());
    jwk.insert("alg".to_owned(), "ES256".into());
    jwk.insert("kid".to_owned(), key.kid.as_str().into());
    Some(jwk.into())
}

fn of_key(spki: &SubjectPublicKeyInfo<'_>) -> Option<Map<String, Value>> {
    let jwk = match spki.parsed().ok()? {
        PublicKey::EC(point) => {
            // Uncompressed: 04, then both coordinates (SEC 1 §2.3.3). The length tells the NIST curve.
            let [4, coordinates @ ..] = point.data() else { return None };
            let curve = match coordinates.len() {
                64 => "P-256",
                96 => "P-384",
                132 => "P-521",
                _ => return None,
            };
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            json!({"kty": "EC", "crv": curve, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
        }
        PublicKey::RSA(key) => {
            let unsigned = |bytes: &[u8]| {
                let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
                URL_SAFE_NO_PAD.encode(&bytes[first..])
            };
            json!({"kty": "RSA", "n": unsigned(key.modulus), "e": unsigned(key.exponent)})
        }
        PublicKey::DSA(_) | PublicKey::GostR3410(_) | PublicKey::GostR3410_2012(_) | PublicKey::Unknown(_) => {
            return None;
        }
    };
    let Value::Object(jwk) = jwk else { return None };
    Some(jwk)
}
