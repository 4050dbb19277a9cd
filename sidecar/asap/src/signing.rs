//! The private half: keys that mint (A10, A17).

use std::fmt;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{KeyError, Kid};

/// Life of the tokens that Tenon's own processes mint, in seconds.
pub const DEFAULT_LIFETIME_SECONDS: u64 = 300;

/// What RFC 3986 calls unreserved needs no escape in a data URI's parameter.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// An ES256 key with its id. Its bytes are wiped when it is dropped and never printed.
pub struct SigningKey {
    kid: Kid,
    issuer: Box<str>,
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
    /// `BASE64URL(header) "."`: the same for every token of this key.
    header: Box<str>,
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
        let kid = format!("{issuer}/{:032x}", u128::from_be_bytes(id)).parse()?;
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .expect("the operating system gives randomness");
        Self::from_pkcs8(kid, document.as_ref())
    }

    /// A P-256 key in PKCS#8 DER. The issuer is what stands before the last slash of `kid`; see [`Self::with_issuer`].
    ///
    /// # Errors
    /// It is not such a key, or `kid` has one segment only.
    pub fn from_pkcs8(kid: Kid, der: &[u8]) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map_err(|_| KeyError::Private)?;
        let issuer = kid.issuer().ok_or(KeyError::Issuer)?.into();
        let header = Header { alg: "ES256", kid: kid.as_str(), typ: "JWT" };
        let header = format!("{}.", encode(&header)).into();
        Ok(Self { kid, issuer, pkcs8: Zeroizing::new(der.to_vec()), pair, header })
    }

    /// `data:application/pkcs8;kid=<percent-encoded kid>;base64,<PKCS#8 DER>` (A17).
    ///
    /// # Errors
    /// It has another form, or the key in it is of no use here.
    pub fn from_data_uri(uri: &str) -> Result<Self, KeyError> {
        let rest = uri.strip_prefix("data:application/pkcs8;kid=").ok_or(KeyError::DataUri)?;
        let (kid, der) = rest.split_once(";base64,").ok_or(KeyError::DataUri)?;
        let kid: Kid = percent_decode_str(kid).decode_utf8().map_err(|_| KeyError::DataUri)?.parse()?;
        let der = Zeroizing::new(STANDARD.decode(der).map_err(|_| KeyError::DataUri)?);
        Self::from_pkcs8(kid, &der)
    }

    /// The inverse of [`Self::from_data_uri`].
    pub fn to_data_uri(&self) -> Zeroizing<String> {
        let der = Zeroizing::new(STANDARD.encode(self.pkcs8.as_slice()));
        let kid = utf8_percent_encode(self.kid.as_str(), ESCAPED);
        Zeroizing::new(format!("data:application/pkcs8;kid={kid};base64,{}", der.as_str()))
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
        self.pair.public_key().as_der().expect("the public half of a loaded key encodes").as_ref().to_vec()
    }

    /// A token for `audience` with a new random `jti` of 128 bits, valid from `now` for `lifetime_seconds`, of which
    /// A8 allows at most 3600.
    pub fn mint(&self, audience: &str, now: u64, lifetime_seconds: u64) -> String {
        let mut id = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut id).expect("the operating system gives randomness");
        let jti = URL_SAFE_NO_PAD.encode(id);
        let exp = now.saturating_add(lifetime_seconds);
        let claims = Claims { iss: &self.issuer, aud: audience, iat: now, exp, jti: &jti };
        let mut token = String::with_capacity(self.header.len() + 320);
        token.push_str(&self.header);
        token.push_str(&encode(&claims));
        let signature =
            self.pair.sign(&SystemRandom::new(), token.as_bytes()).expect("a loaded P-256 key signs any message");
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        token
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SigningKey").field("kid", &self.kid).field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

fn encode(part: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).expect("strings and numbers serialize"))
}
