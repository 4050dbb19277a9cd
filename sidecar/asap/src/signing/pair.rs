//! The key pairs of A2 that sign.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};

use crate::{Algorithm, KeyError};

/// A key pair and what it signs with. aws-lc wipes all memory that it frees.
pub(super) enum Pair {
    Curve(Algorithm, EcdsaKeyPair),
    Rsa(Algorithm, &'static dyn RsaEncoding, rsa::KeyPair),
}

const CURVES: [(Algorithm, &EcdsaSigningAlgorithm); 3] = [
    (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED_SIGNING),
    (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED_SIGNING),
    (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED_SIGNING),
];

impl Pair {
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        for (algorithm, curve) in CURVES {
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve, der) {
                return Ok(Self::Curve(algorithm, pair));
            }
        }
        rsa::KeyPair::from_pkcs8(der)
            .map(|pair| Self::Rsa(Algorithm::Rs256, &RSA_PKCS1_SHA256, pair))
            .map_err(|error| rejected(&error))
    }

    pub(super) fn with_algorithm(self, algorithm: Algorithm) -> Result<Self, KeyError> {
        match (self, encoding(algorithm)) {
            (Self::Rsa(_, _, pair), Some(encoding)) => Ok(Self::Rsa(algorithm, encoding, pair)),
            (Self::Curve(own, pair), None) if own == algorithm => Ok(Self::Curve(own, pair)),
            _ => Err(KeyError::Algorithm(algorithm)),
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Curve(algorithm, _) | Self::Rsa(algorithm, _, _) => *algorithm,
        }
    }

    pub(super) fn public_spki(&self) -> Vec<u8> {
        let der: Result<PublicKeyX509Der<'_>, _> = match self {
            Self::Curve(_, pair) => pair.public_key().as_der(),
            Self::Rsa(_, _, pair) => pair.public_key().as_der(),
        };
        der.expect("the public half of a loaded key encodes").as_ref().to_vec()
    }

    /// The length of a signature in base64url.
    pub(super) fn signature_digits(&self) -> usize {
        let bytes = match self {
            // Two numbers of the curve's size; the largest is P-521's.
            Self::Curve(..) => 132,
            Self::Rsa(_, _, pair) => pair.public_modulus_len(),
        };
        bytes.div_ceil(3) * 4
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Curve(_, pair) => {
                pair.sign(&random, message).expect("a loaded key signs any message").as_ref().to_vec()
            }
            Self::Rsa(_, encoding, pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).expect("a loaded key signs any message");
                signature
            }
        }
    }
}

/// None for those of a curve.
fn encoding(algorithm: Algorithm) -> Option<&'static dyn RsaEncoding> {
    match algorithm {
        Algorithm::Rs256 => Some(&RSA_PKCS1_SHA256),
        Algorithm::Rs384 => Some(&RSA_PKCS1_SHA384),
        Algorithm::Rs512 => Some(&RSA_PKCS1_SHA512),
        Algorithm::Ps256 => Some(&RSA_PSS_SHA256),
        Algorithm::Ps384 => Some(&RSA_PSS_SHA384),
        Algorithm::Ps512 => Some(&RSA_PSS_SHA512),
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => None,
    }
}

fn rejected(error: &KeyRejected) -> KeyError {
    match error.description_() {
        "TooSmall" | "TooLarge" => KeyError::PrivateRsaBits,
        _ => KeyError::Private,
    }
}
