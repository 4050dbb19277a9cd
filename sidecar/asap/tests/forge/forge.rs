//! Tokens and keys as no honest signer would make them, for the tests and benchmarks of this crate.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]
#![allow(dead_code, reason = "each of the test binaries uses a part")]

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_asap::{Algorithm, Expect, Keys, Lookup, PublicKey};
use serde_json::{Value, json};

pub const NOW: u64 = 1_700_000_000;
pub const KID: &str = "issues/k1";
pub const EXPECT: Expect<'static> =
    Expect { audience: "media", issuer: Some("issues"), leeway_seconds: 5, grants: &[] };

static P256: LazyLock<EcdsaKeyPair> = LazyLock::new(|| curve(&ECDSA_P256_SHA256_FIXED_SIGNING));
static P384: LazyLock<EcdsaKeyPair> = LazyLock::new(|| curve(&ECDSA_P384_SHA384_FIXED_SIGNING));
static P521: LazyLock<EcdsaKeyPair> = LazyLock::new(|| curve(&ECDSA_P521_SHA512_FIXED_SIGNING));
static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

fn curve(algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    EcdsaKeyPair::generate(algorithm).unwrap()
}

/// The public half of the one key of each type.
pub fn spki(algorithm: Algorithm) -> Vec<u8> {
    match algorithm {
        Algorithm::Es256 => P256.public_key().as_der(),
        Algorithm::Es384 => P384.public_key().as_der(),
        Algorithm::Es512 => P521.public_key().as_der(),
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => RSA.public_key().as_der(),
    }
    .unwrap()
    .as_ref()
    .to_vec()
}

/// The private half, PKCS#8.
pub fn pkcs8(algorithm: Algorithm) -> Vec<u8> {
    use aws_lc_rs::encoding::Pkcs8V1Der;
    match algorithm {
        Algorithm::Es256 => P256.to_pkcs8v1().unwrap().as_ref().to_vec(),
        Algorithm::Es384 => P384.to_pkcs8v1().unwrap().as_ref().to_vec(),
        Algorithm::Es512 => P521.to_pkcs8v1().unwrap().as_ref().to_vec(),
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => AsDer::<Pkcs8V1Der<'_>>::as_der(&*RSA).unwrap().as_ref().to_vec(),
    }
}

pub fn sign(algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let ec = |pair: &EcdsaKeyPair| pair.sign(&random, message).unwrap().as_ref().to_vec();
    let rsa = |encoding: &'static dyn RsaEncoding| {
        let mut signature = vec![0; RSA.public_modulus_len()];
        RSA.sign(encoding, &random, message, &mut signature).unwrap();
        signature
    };
    match algorithm {
        Algorithm::Es256 => ec(&P256),
        Algorithm::Es384 => ec(&P384),
        Algorithm::Es512 => ec(&P521),
        Algorithm::Rs256 => rsa(&RSA_PKCS1_SHA256),
        Algorithm::Rs384 => rsa(&RSA_PKCS1_SHA384),
        Algorithm::Rs512 => rsa(&RSA_PKCS1_SHA512),
        Algorithm::Ps256 => rsa(&RSA_PSS_SHA256),
        Algorithm::Ps384 => rsa(&RSA_PSS_SHA384),
        Algorithm::Ps512 => rsa(&RSA_PSS_SHA512),
    }
}

/// Counts how often it is asked.
#[derive(Default)]
pub struct Store {
    pub keys: HashMap<String, Arc<PublicKey>>,
    pub asked: Cell<u32>,
    pub down: bool,
}

impl Store {
    pub fn with(kid: &str, spki: &[u8]) -> Self {
        let key = Arc::new(PublicKey::from_spki(spki).unwrap());
        Self { keys: HashMap::from([(kid.to_owned(), key)]), ..Self::default() }
    }

    /// Has the P-256 key as `kid`.
    pub fn p256(kid: &str) -> Self {
        Self::with(kid, &spki(Algorithm::Es256))
    }
}

impl Keys for Store {
    fn get(&self, kid: &str) -> Lookup {
        self.asked.set(self.asked.get() + 1);
        match self.keys.get(kid) {
            _ if self.down => Lookup::Unavailable,
            Some(key) => Lookup::Found(Arc::clone(key)),
            None => Lookup::Unknown,
        }
    }
}

/// Header and claims as text, so that tests can write what no serializer would, signed by the P-256 key.
pub fn raw(header: &str, claims: &str) -> String {
    raw_signed(Algorithm::Es256, header, claims)
}

/// The same with a key and algorithm that the header may not say.
pub fn raw_signed(algorithm: Algorithm, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(algorithm, message.as_bytes()));
    format!("{message}.{signature}")
}

pub fn header() -> Value {
    json!({"alg": "ES256", "kid": KID})
}

pub fn claims() -> Value {
    json!({"iss": "issues", "aud": "media", "iat": NOW, "exp": NOW + 300, "jti": "0123456789abcdef"})
}

/// A good token but for these members; `null` takes one away.
pub fn token(header_changes: Value, claim_changes: Value) -> String {
    raw(&changed(header(), header_changes), &changed(claims(), claim_changes))
}

pub fn changed(mut object: Value, changes: Value) -> String {
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    for (name, value) in changes {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(&name);
        } else {
            object[name] = value;
        }
    }
    object.to_string()
}
