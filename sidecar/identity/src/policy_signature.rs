//! Signatures of policy records: what the owner of a key says of one record, whoever hands it on.
//!
//! Ed25519 (RFC 8032) over the message that `RecordSignature` in `policy.proto` describes. Whoever checks one decides by the
//! keys that it was told to accept, never by what the signature says of itself.

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use prost::Message as _;
use tenon_proto::policy::v1::{RecordSignature, ServicePolicy};

/// What every signed message begins with: a signature of anything else is none of a record.
const DOMAIN: &[u8] = b"tenon policy record v1";
/// SubjectPublicKeyInfo of an Ed25519 key up to its 32 bytes (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PEM_LABEL: &str = "PUBLIC KEY";

/// A key whose signatures may be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    id: [u8; 32],
    key: [u8; 32],
}

/// Why a key cannot be used, or a signature does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("not a public Ed25519 key, expected PEM with the label PUBLIC KEY")]
    PublicKey,
    #[error("not a private Ed25519 key, expected PKCS #8")]
    PrivateKey,
    #[error("there is none")]
    Absent,
    #[error("malformed, expected a key id of 32 bytes and a signature of 64")]
    Malformed,
    #[error("made with a key that is not accepted here")]
    UnknownKey,
    #[error("does not fit: the record was changed after it was signed, or it was compiled otherwise")]
    Mismatch,
}

impl PublicKey {
    /// Reads every key of a PEM file.
    ///
    /// # Errors
    /// [`SignatureError::PublicKey`] when one is of another kind, or there is none.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, SignatureError> {
        let blocks = pem::parse_many(pem).map_err(|_| SignatureError::PublicKey)?;
        if blocks.is_empty() || blocks.iter().any(|block| block.tag() != PEM_LABEL) {
            return Err(SignatureError::PublicKey);
        }
        blocks.iter().map(|block| Self::from_der(block.contents())).collect()
    }

    /// Reads a SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`SignatureError::PublicKey`] when it is of another kind.
    pub fn from_der(der: &[u8]) -> Result<Self, SignatureError> {
        let key = der.strip_prefix(&SPKI).and_then(|key| key.try_into().ok()).ok_or(SignatureError::PublicKey)?;
        Ok(Self { id: sha256(der), key })
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    #[must_use]
    pub const fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// As a PEM file.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem::encode(&pem::Pem::new(PEM_LABEL, [&SPKI[..], &self.key].concat()))
    }
}

/// The public key of a private one in PKCS #8.
///
/// # Errors
/// [`SignatureError::PrivateKey`]
pub fn public_key(key_pkcs8: &[u8]) -> Result<PublicKey, SignatureError> {
    let pair = Ed25519KeyPair::from_pkcs8(key_pkcs8).map_err(|_| SignatureError::PrivateKey)?;
    PublicKey::from_der(&[&SPKI[..], pair.public_key().as_ref()].concat())
}

/// Signs a record as it is encoded, with a private key in PKCS #8.
///
/// # Errors
/// [`SignatureError::PrivateKey`]
pub fn sign(
    key_pkcs8: &[u8],
    kind: &str,
    key: &str,
    serial: u64,
    record: &[u8],
) -> Result<RecordSignature, SignatureError> {
    let pair = Ed25519KeyPair::from_pkcs8(key_pkcs8).map_err(|_| SignatureError::PrivateKey)?;
    let signature = pair.sign(&message(kind, key, serial, record)).as_ref().to_vec();
    Ok(RecordSignature { key_id: public_key(key_pkcs8)?.id.to_vec().into(), serial, signature: signature.into() })
}

/// Whether one of `accepted` made this signature of the record as it is encoded.
///
/// # Errors
/// [`SignatureError`], why it did not.
pub fn verify(
    accepted: &[PublicKey],
    kind: &str,
    key: &str,
    record: &[u8],
    signature: &RecordSignature,
) -> Result<(), SignatureError> {
    well_formed(signature)?;
    let known = accepted.iter().find(|known| known.id[..] == signature.key_id[..]);
    let known = known.ok_or(SignatureError::UnknownKey)?;
    UnparsedPublicKey::new(&ED25519, &known.key)
        .verify(&message(kind, key, signature.serial, record), &signature.signature)
        .map_err(|_| SignatureError::Mismatch)
}

/// Whether a service's record carries a signature of one of `accepted`. Its canary, if any, is another record with a
/// signature of its own.
///
/// # Errors
/// [`SignatureError`], why it does not.
pub fn verify_policy(accepted: &[PublicKey], policy: &ServicePolicy) -> Result<(), SignatureError> {
    let signature = policy.signature.as_ref().ok_or(SignatureError::Absent)?;
    verify(accepted, tenon_proto::kind::ALLOWLIST, &policy.service, &signed_part(policy), signature)
}

/// Whether it could be a signature.
///
/// # Errors
/// [`SignatureError::Malformed`]
pub fn well_formed(signature: &RecordSignature) -> Result<(), SignatureError> {
    let sized = signature.key_id.len() == 32 && signature.signature.len() == 64;
    if sized { Ok(()) } else { Err(SignatureError::Malformed) }
}

/// What is signed of a service's record: all but its canary and its signature, as it is encoded.
#[must_use]
pub fn signed_part(policy: &ServicePolicy) -> Vec<u8> {
    ServicePolicy { canary: None, signature: None, ..policy.clone() }.encode_to_vec()
}

fn message(kind: &str, key: &str, serial: u64, record: &[u8]) -> Vec<u8> {
    [DOMAIN, &[0], kind.as_bytes(), &[0], key.as_bytes(), &[0], &serial.to_be_bytes(), &sha256(record)].concat()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (Vec<u8>, PublicKey) {
        let private = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref().to_vec();
        let public = public_key(&private).unwrap();
        (private, public)
    }

    fn record() -> ServicePolicy {
        ServicePolicy { service: "media".to_owned(), originates: true, ..ServicePolicy::default() }
    }

    fn signed(private: &[u8]) -> ServicePolicy {
        let signature = sign(private, "allowlist", "media", 7, &signed_part(&record())).unwrap();
        ServicePolicy { signature: Some(signature), ..record() }
    }

    #[test]
    fn a_signature_fits_its_own_record_alone() {
        let (private, public) = keys();
        let policy = signed(&private);
        let signature = policy.signature.clone().unwrap();
        let accepted = [keys().1, public];
        assert_eq!(verify_policy(&accepted, &policy), Ok(()));
        let part = signed_part(&policy);
        for (kind, key, bytes) in
            [("route", "media", &part[..]), ("allowlist", "wiki", &part), ("allowlist", "media", &part[1..])]
        {
            assert_eq!(verify(&accepted, kind, key, bytes, &signature), Err(SignatureError::Mismatch));
        }
        let later = RecordSignature { serial: 8, ..signature };
        assert_eq!(verify(&accepted, "allowlist", "media", &part, &later), Err(SignatureError::Mismatch));
    }

    #[test]
    fn what_is_beside_the_record_is_not_signed() {
        let (private, public) = keys();
        let canary = tenon_proto::policy::v1::Canary::default();
        let policy = ServicePolicy { canary: Some(Box::new(canary)), ..signed(&private) };
        assert_eq!(verify_policy(&[public], &policy), Ok(()));
    }

    #[test]
    fn no_signature_a_strange_one_and_half_a_one_are_refused() {
        let ((private, public), (_, other)) = (keys(), keys());
        let policy = signed(&private);
        let accepted = std::slice::from_ref(&public);
        assert_eq!(verify_policy(accepted, &record()), Err(SignatureError::Absent));
        assert_eq!(verify_policy(&[other], &policy), Err(SignatureError::UnknownKey));
        let mut half = policy;
        if let Some(signature) = &mut half.signature {
            signature.signature = signature.signature[..32].to_vec().into();
        }
        assert_eq!(verify_policy(accepted, &half), Err(SignatureError::Malformed));
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_others_are_refused() {
        let ((private, first), (_, second)) = (keys(), keys());
        let file = first.to_pem() + &second.to_pem();
        assert_eq!(PublicKey::all_from_pem(file.as_bytes()), Ok(vec![first.clone(), second]));
        for wrong in ["", "text", &first.to_pem().replace("PUBLIC", "PRIVATE")] {
            assert_eq!(PublicKey::all_from_pem(wrong.as_bytes()), Err(SignatureError::PublicKey), "{wrong}");
        }
        assert_eq!(public_key(&private[1..]), Err(SignatureError::PrivateKey));
    }

    /// A fixed message, so that another implementation can compare.
    #[test]
    fn the_message_is_as_the_protocol_says() {
        let message = message("allowlist", "media", 0x0102, b"record");
        let mut expected = b"tenon policy record v1\0allowlist\0media\0\0\0\0\0\0\0\x01\x02".to_vec();
        expected.extend(sha256(b"record"));
        assert_eq!(message, expected);
    }
}
