//! The public half: keys that verify (A2).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{self as aws, ParsedPublicKey, VerificationAlgorithm};
use x509_parser::der_parser::asn1_rs::{Any, Oid, Tag, oid};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::KidError;

/// The nine algorithms of A2. There is no variant for anything else, so nothing else can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// ECDSA over P-384 with SHA-384.
    Es384,
    /// ECDSA over P-521 with SHA-512.
    Es512,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
    ];

    /// As it stands in `alg`; case matters (RFC 7515 §4.1.1).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// As it stands in `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rs256 => &aws::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &aws::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &aws::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &aws::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &aws::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &aws::RSA_PSS_2048_8192_SHA512,
            Self::Es256 => &aws::ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &aws::ECDSA_P384_SHA384_FIXED,
            Self::Es512 => &aws::ECDSA_P521_SHA512_FIXED,
        }
    }
}

/// A public key with the algorithms that fit its type and curve, fixed when it is loaded (A2).
pub struct PublicKey {
    /// One for a curve, six for RSA: parsed for each, since aws-lc ties the two together.
    ways: Vec<(Algorithm, ParsedPublicKey)>,
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a SubjectPublicKeyInfo, or something stands behind it.
    #[error("the public key is not a DER SubjectPublicKeyInfo")]
    Spki,
    /// Not one PEM block `PUBLIC KEY`.
    #[error("the public key is not one PEM block PUBLIC KEY")]
    Pem,
    /// Neither RSA nor a curve of A2.
    #[error("the key is neither RSA nor on P-256, P-384 or P-521")]
    Type,
    /// RSA with fewer than 2048 bits, or more than 8192.
    #[error("the RSA key has {0} bits; 2048 to 8192 are accepted")]
    RsaBits(usize),
    /// A point that is not on its curve, an even modulus and the like.
    #[error("the public key is not valid")]
    Invalid,
    /// Neither RSA nor on a curve of A2, or not PKCS#8.
    #[error("the private key is not RSA, P-256, P-384 or P-521 in PKCS#8")]
    Private,
    /// RSA with fewer than 2048 bits, or more than 8192.
    #[error("the private key is RSA, and not of 2048 to 8192 bits")]
    PrivateRsaBits,
    /// Not one PEM block `PRIVATE KEY`.
    #[error("the private key is not one PEM block PRIVATE KEY; `openssl pkcs8 -topk8 -nocrypt` makes one of others")]
    PrivatePem,
    /// Another type or curve is needed for that.
    #[error("the key cannot sign with {}", .0.name())]
    Algorithm(Algorithm),
    /// The key id does not start with the issuer.
    #[error("the key id does not start with the issuer and a slash")]
    Issuer,
    /// The key id breaks its grammar.
    #[error(transparent)]
    Kid(#[from] KidError),
    /// Not `data:application/pkcs8;kid=...;base64,...`.
    #[error("the private key is not of the form data:application/pkcs8;kid=<kid>;base64,<PKCS#8>")]
    DataUri,
}

const RSA_ENCRYPTION: Oid<'static> = oid!(1.2.840.113549.1.1.1);
const EC_PUBLIC_KEY: Oid<'static> = oid!(1.2.840.10045.2.1);
const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
const P384: Oid<'static> = oid!(1.3.132.0.34);
const P521: Oid<'static> = oid!(1.3.132.0.35);

impl PublicKey {
    /// From DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// Anything but RSA with 2048 to 8192 bits or a point on P-256, P-384 or P-521.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyError::Spki)?;
        if !rest.is_empty() {
            return Err(KeyError::Spki);
        }
        let fitting: &[Algorithm] = if info.algorithm.algorithm == RSA_ENCRYPTION {
            rsa_algorithms(&info)?
        } else if info.algorithm.algorithm == EC_PUBLIC_KEY {
            curve_algorithms(info.algorithm.parameters.as_ref())?
        } else {
            return Err(KeyError::Type);
        };
        let parse = |algorithm: &Algorithm| {
            let key = ParsedPublicKey::new(algorithm.verification(), der).map_err(|_| KeyError::Invalid)?;
            Ok((*algorithm, key))
        };
        Ok(Self { ways: fitting.iter().map(parse).collect::<Result<_, KeyError>>()? })
    }

    /// From one PEM block `PUBLIC KEY`, as a key repository serves it (A15).
    ///
    /// # Errors
    /// Something else, or a key that [`Self::from_spki`] refuses.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let blocks = pem::parse_many(text).map_err(|_| KeyError::Pem)?;
        match blocks.as_slice() {
            [block] if block.tag() == "PUBLIC KEY" => Self::from_spki(block.contents()),
            _ => Err(KeyError::Pem),
        }
    }

    /// The algorithms that fit.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> {
        self.ways.iter().map(|(algorithm, _)| *algorithm)
    }

    /// None when `algorithm` does not fit this key; else whether `signature` is one of `message`.
    pub(crate) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Option<bool> {
        let (_, key) = self.ways.iter().find(|(fitting, _)| *fitting == algorithm)?;
        Some(key.verify_sig(message, signature).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(self.algorithms()).finish()
    }
}

/// Where public keys come from. An implementation answers at once, from what it has.
pub trait Keys {
    /// The key with this id, which has passed A4 and belongs to the token's issuer (A5).
    fn get(&self, kid: &str) -> Lookup;
}

impl<F: Fn(&str) -> Lookup> Keys for F {
    fn get(&self, kid: &str) -> Lookup {
        self(kid)
    }
}

/// What a look-up found.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The key.
    Found(Arc<PublicKey>),
    /// Every repository says that there is none.
    Unknown,
    /// Nobody can say now; never allow.
    Unavailable,
}

fn rsa_algorithms(info: &SubjectPublicKeyInfo<'_>) -> Result<&'static [Algorithm], KeyError> {
    let Ok(Parsed::RSA(rsa)) = info.parsed() else { return Err(KeyError::Spki) };
    let first = rsa.modulus.iter().position(|byte| *byte != 0).ok_or(KeyError::Invalid)?;
    let modulus = &rsa.modulus[first..];
    let bits = modulus.len() * 8 - modulus[0].leading_zeros() as usize;
    if !(2048..=8192).contains(&bits) {
        return Err(KeyError::RsaBits(bits));
    }
    Ok(&[Algorithm::Rs256, Algorithm::Rs384, Algorithm::Rs512, Algorithm::Ps256, Algorithm::Ps384, Algorithm::Ps512])
}

fn curve_algorithms(parameters: Option<&Any<'_>>) -> Result<&'static [Algorithm], KeyError> {
    let curve =
        parameters.filter(|any| any.tag() == Tag::Oid).and_then(|any| any.as_oid().ok()).ok_or(KeyError::Type)?;
    match curve {
        curve if curve == P256 => Ok(&[Algorithm::Es256]),
        curve if curve == P384 => Ok(&[Algorithm::Es384]),
        curve if curve == P521 => Ok(&[Algorithm::Es512]),
        _ => Err(KeyError::Type),
    }
}
