//! The private half: keys that mint (A10, A17).

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{Algorithm, KeyError, Kid};
use pair::Pair;

mod pair;

/// Life of the tokens that Tenon's own processes mint, in seconds.
pub const DEFAULT_LIFETIME_SECONDS: u64 = 300;

/// What RFC 3986 calls unreserved needs no escape in a data URI's parameter.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A private key with its id and the one algorithm that it signs with. Its bytes are wiped when it is dropped and never
/// printed.
pub struct SigningKey {
    kid: Kid,
    issuer: Box<str>,
    pkcs8: Zeroizing<Vec<u8>>,
    pair: Pair,
    /// `BASE64URL(header) "."` of an ASAP token: the same for every one of this key.
    header: Box<str>,
    /// The same of a transaction token.
    transaction_header: Box<str>,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    kid: &'a str,
    typ: &'static str,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    jti: &'a str,
}

impl SigningKey {
    /// A new key of `issuer`, with the id `<issuer>/<32 hexadecimal digits>`.
    ///
    /// # Errors
    /// `issuer` cannot begin a key id.
    pub fn generate(issuer: &str) -> Result<Self, KeyError> {
        let mut id = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut id).expect("the operating system gives randomness");
        let kid: Kid = format!("{issuer}/{:032x}", u128::from_be_bytes(id)).parse()?;
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .expect("the operating system gives randomness");
        Self::from_pkcs8(kid, document.as_ref())
    }

    /// A key in PKCS#8 DER: P-256 (ES256), P-384 (ES384), P-521 (ES512) or RSA of 2048 to 8192 bits (RS256; see
    /// [`Self::with_algorithm`]). The issuer is what stands before the last slash of `kid`; see [`Self::with_issuer`].
    ///
    /// # Errors
    /// It is not such a key, or `kid` has one segment only.
    pub fn from_pkcs8(kid: Kid, der: &[u8]) -> Result<Self, KeyError> {
        let issuer = kid.issuer().ok_or(KeyError::Issuer)?.into();
        let pair = Pair::from_pkcs8(der)?;
        let [header, transaction_header] = headers(pair.algorithm(), &kid);
        Ok(Self { kid, issuer, pkcs8: Zeroizing::new(der.to_vec()), pair, header, transaction_header })
    }

    /// The same from one PEM block `PRIVATE KEY`.
    ///
    /// # Errors
    /// Something else, or a key that [`Self::from_pkcs8`] refuses.
    pub fn from_pkcs8_pem(kid: Kid, pem: &str) -> Result<Self, KeyError> {
        // Not the crate pem, which leaves copies of what it reads in memory.
        let body = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----").ok_or(KeyError::PrivatePem)?;
        let body = body.strip_suffix("-----END PRIVATE KEY-----").ok_or(KeyError::PrivatePem)?;
        let mut text = Zeroizing::new(String::with_capacity(body.len()));
        text.extend(body.split_ascii_whitespace());
        Self::from_pkcs8(kid, &decode(&text).ok_or(KeyError::PrivatePem)?)
    }

    /// `data:application/pkcs8;kid=<percent-encoded kid>;base64,<PKCS#8 DER>` (A17).
    ///
    /// # Errors
    /// It has another form, or the key in it is of no use here.
    pub fn from_data_uri(uri: &str) -> Result<Self, KeyError> {
        let rest = uri.strip_prefix("data:application/pkcs8;kid=").ok_or(KeyError::DataUri)?;
        let (kid, der) = rest.split_once(";base64,").ok_or(KeyError::DataUri)?;
        let kid: Kid = percent_decode_str(kid).decode_utf8().map_err(|_| KeyError::DataUri)?.parse()?;
        Self::from_pkcs8(kid, &decode(der).ok_or(KeyError::DataUri)?)
    }

    /// The inverse of [`Self::from_data_uri`].
    pub fn to_data_uri(&self) -> Zeroizing<String> {
        let kid = utf8_percent_encode(self.kid.as_str(), ESCAPED).to_string();
        // Large enough from the start: text that grows leaves copies behind.
        let mut uri = Zeroizing::new(String::with_capacity(64 + kid.len() + self.pkcs8.len().div_ceil(3) * 4));
        for part in ["data:application/pkcs8;kid=", &kid, ";base64,"] {
            uri.push_str(part);
        }
        STANDARD.encode_string(self.pkcs8.as_slice(), &mut uri);
        uri
    }

    /// The same key for an issuer that is a shorter prefix of its id.
    ///
    /// # Errors
    /// The id does not start with `issuer` and a slash (A5).
    pub fn with_issuer(mut self, issuer: &str) -> Result<Self, KeyError> {
        if !self.kid.belongs_to(issuer) {
            return Err(KeyError::Issuer);
        }
        self.issuer = issuer.into();
        Ok(self)
    }

    /// The same key signing with `algorithm`: of RSA any of RS and PS with 256, 384 and 512.
    ///
    /// # Errors
    /// The algorithm does not fit the key.
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Result<Self, KeyError> {
        self.pair = self.pair.with_algorithm(algorithm)?;
        [self.header, self.transaction_header] = headers(algorithm, &self.kid);
        Ok(self)
    }

    /// What it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.pair.algorithm()
    }

    /// Its id.
    pub fn kid(&self) -> &Kid {
        &self.kid
    }

    /// What stands as `iss` in its tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The private key, PKCS#8 DER.
    pub fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8.clone()
    }

    /// The public half, SubjectPublicKeyInfo, DER.
    pub fn public_spki(&self) -> Vec<u8> {
        self.pair.public_spki()
    }

    /// A token for `audience` with a new random `jti` of 128 bits, valid from `now` for `lifetime_seconds`, of which
    /// A8 allows at most 3600.
    pub fn mint(&self, audience: &str, now: u64, lifetime_seconds: u64) -> String {
        let exp = now.saturating_add(lifetime_seconds);
        let claims = Claims { iss: &self.issuer, aud: audience, iat: now, exp, jti: &new_id() };
        self.sign(&self.header, &claims)
    }

    /// A transaction token of `claims`, see [`crate::txn`].
    pub(crate) fn sign_transaction(&self, claims: &impl Serialize) -> String {
        self.sign(&self.transaction_header, claims)
    }

    fn sign(&self, header: &str, claims: &impl Serialize) -> String {
        let claims = encode(claims);
        let mut token = String::with_capacity(header.len() + claims.len() + 1 + self.pair.signature_digits());
        token.push_str(header);
        token.push_str(&claims);
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }
}

/// Base64 of a private key, into memory that is wiped also when the text turns out to be none.
fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut der = Zeroizing::new(Vec::with_capacity(text.len()));
    STANDARD.decode_vec(text, &mut der).ok().map(|()| der)
}

/// 128 random bits of the operating system's, as text (A10).
pub(crate) fn new_id() -> String {
    let mut id = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut id).expect("the operating system gives randomness");
    URL_SAFE_NO_PAD.encode(id)
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .field("issuer", &self.issuer)
            .field("algorithm", &self.algorithm())
            .finish_non_exhaustive()
    }
}

fn headers(algorithm: Algorithm, kid: &Kid) -> [Box<str>; 2] {
    ["JWT", crate::txn::TYPE].map(|typ| {
        let header = Header { alg: algorithm.name(), kid: kid.as_str(), typ };
        format!("{}.", encode(&header)).into()
    })
}

fn encode(part: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).expect("strings and numbers serialize"))
}
