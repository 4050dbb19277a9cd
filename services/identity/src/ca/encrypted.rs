//! A private key at rest under a passphrase: PKCS#8 `EncryptedPrivateKeyInfo` with PBES2 (RFC 8018 §6.2), which
//! `openssl pkey` reads and writes too.
//!
//! The key is derived with PBKDF2-HMAC-SHA256 from a random salt and encrypted with AES-256-CBC. CBC proves nothing, so
//! a wrong passphrase may give a text that looks padded: whoever decrypts checks that the key fits its certificate.

use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;

use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{pbkdf2, rand};
use x509_parser::asn1_rs::{Any, Class, FromDer as _, Tag};
use zeroize::Zeroizing;

use super::CaError;

/// The PEM tag of an encrypted key.
pub(crate) const TAG: &str = "ENCRYPTED PRIVATE KEY";

/// What we write (OWASP's figure for PBKDF2-HMAC-SHA256).
const ITERATIONS: u32 = 600_000;
/// A file that wants more is not worked on for minutes.
const MOST_ITERATIONS: u32 = 10_000_000;
const SALT_BYTES: usize = 16;
const IV_BYTES: usize = 16;

// Object identifiers, DER content.
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09];
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];

/// What the key of a CA is encrypted under. Never empty, never printed, wiped when dropped.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// None when `text` is empty, which means "no passphrase".
    pub fn new(text: String) -> Option<Self> {
        let text = Zeroizing::new(text);
        (!text.is_empty()).then_some(Self(text))
    }

    /// A whole PEM block.
    pub(crate) fn encrypt(&self, pkcs8: &[u8]) -> Result<String, CaError> {
        let mut salt = [0; SALT_BYTES];
        rand::fill(&mut salt).map_err(|_| CaError::Crypto)?;
        let key = PaddedBlockEncryptingKey::cbc_pkcs7(self.derive(&salt, ITERATIONS)?).map_err(|_| CaError::Crypto)?;
        // Encrypted in place, so the plain text is gone from it afterwards; with room for the padding from the start,
        // so that no copy is left behind by a reallocation.
        let mut text = Zeroizing::new(Vec::with_capacity(pkcs8.len() + IV_BYTES));
        text.extend_from_slice(pkcs8);
        let context = key.encrypt(&mut *text).map_err(|_| CaError::Crypto)?;
        let iv: &[u8] = (&context).try_into().map_err(|_| CaError::Crypto)?;
        Ok(pem::encode(&pem::Pem::new(TAG, write(&salt, iv, &text))))
    }

    /// The PKCS#8 key within, unless the passphrase is another.
    pub(crate) fn decrypt(&self, der: &[u8]) -> Result<Zeroizing<Vec<u8>>, DecryptError> {
        let Parameters { salt, iterations, iv, encrypted } = read(der).ok_or(DecryptError::Scheme)?;
        let derived = self.derive(salt, iterations).map_err(|_| DecryptError::Passphrase)?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(derived).map_err(|_| DecryptError::Passphrase)?;
        let mut text = Zeroizing::new(encrypted.to_vec());
        let length = key
            .decrypt(&mut text, DecryptionContext::Iv128(FixedLength::from(&iv)))
            .map_err(|_| DecryptError::Passphrase)?
            .len();
        text.truncate(length);
        Ok(text)
    }

    fn derive(&self, salt: &[u8], iterations: u32) -> Result<UnboundCipherKey, CaError> {
        let iterations = NonZeroU32::new(iterations).ok_or(CaError::Crypto)?;
        let mut key = Zeroizing::new([0; 32]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, self.0.as_bytes(), &mut *key);
        UnboundCipherKey::new(&AES_256, &*key).map_err(|_| CaError::Crypto)
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Passphrase")
    }
}

/// Why an encrypted key does not open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DecryptError {
    /// It is damaged, or encrypted in another way than ours.
    Scheme,
    Passphrase,
}

impl DecryptError {
    pub(super) fn at(self, path: &Path) -> CaError {
        match self {
            Self::Scheme => CaError::Content {
                path: path.into(),
                what: "damaged, or not encrypted with PBES2, PBKDF2-HMAC-SHA256 and AES-256-CBC: \
                       convert it with `openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256`",
            },
            Self::Passphrase => CaError::Passphrase(path.into()),
        }
    }
}

struct Parameters<'a> {
    salt: &'a [u8],
    iterations: u32,
    iv: [u8; IV_BYTES],
    encrypted: &'a [u8],
}

fn write(salt: &[u8], iv: &[u8], encrypted: &[u8]) -> Vec<u8> {
    let sequence = |parts: &[&[u8]]| element(Tag::Sequence, &parts.concat());
    let oid = |content| element(Tag::Oid, content);
    let prf = sequence(&[&oid(HMAC_SHA256), &element(Tag::Null, &[])]);
    // A leading zero byte keeps the number positive whatever its first bit is; ours needs none: 0x0927c0.
    let iterations = element(Tag::Integer, &ITERATIONS.to_be_bytes()[1..]);
    let derivation = sequence(&[&element(Tag::OctetString, salt), &iterations, &prf]);
    let derivation = sequence(&[&oid(PBKDF2), &derivation]);
    let cipher = sequence(&[&oid(AES_256_CBC), &element(Tag::OctetString, iv)]);
    let algorithm = sequence(&[&oid(PBES2), &sequence(&[&derivation, &cipher])]);
    sequence(&[&algorithm, &element(Tag::OctetString, encrypted)])
}

/// One DER element. Only for what stands in such a file: lengths below 65,536.
fn element(tag: Tag, content: &[u8]) -> Vec<u8> {
    let constructed = if tag == Tag::Sequence { 0x20 } else { 0 };
    let identifier = u8::try_from(tag.0).expect("universal tags are below 31") | constructed;
    let length = u16::try_from(content.len()).expect("a private key is far shorter than 64 KiB").to_be_bytes();
    let mut out = match length {
        [0, short] if short < 0x80 => vec![identifier, short],
        [0, byte] => vec![identifier, 0x81, byte],
        [high, low] => vec![identifier, 0x82, high, low],
    };
    out.extend_from_slice(content);
    out
}

fn read(der: &[u8]) -> Option<Parameters<'_>> {
    let whole = all(der, Tag::Sequence)?;
    let (algorithm, whole) = next(whole, Tag::Sequence)?;
    let encrypted = all(whole, Tag::OctetString)?;
    let (scheme, algorithm) = next(algorithm, Tag::Oid)?;
    let parameters = all(algorithm, Tag::Sequence)?;
    let (derivation, parameters) = next(parameters, Tag::Sequence)?;
    let cipher = all(parameters, Tag::Sequence)?;
    let (cipher, iv) = next(cipher, Tag::Oid)?;
    let iv = all(iv, Tag::OctetString)?.try_into().ok()?;
    let (function, derivation) = next(derivation, Tag::Oid)?;
    let derivation = all(derivation, Tag::Sequence)?;
    let (salt, derivation) = next(derivation, Tag::OctetString)?;
    let (iterations, rest) = next(derivation, Tag::Integer)?;
    // Openssl may write the length of the key here; it is that of the cipher.
    let prf = next(rest, Tag::Integer).map_or(rest, |(_, rest)| rest);
    let (prf, _) = next(all(prf, Tag::Sequence)?, Tag::Oid)?;
    let iterations =
        iterations.iter().try_fold(0_u32, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))?;
    let ours = (scheme, function, prf, cipher) == (PBES2, PBKDF2, HMAC_SHA256, AES_256_CBC);
    (ours && (1..=MOST_ITERATIONS).contains(&iterations)).then_some(Parameters { salt, iterations, iv, encrypted })
}

/// The content of the first element, which must have this tag, and what follows it.
fn next(der: &[u8], tag: Tag) -> Option<(&[u8], &[u8])> {
    let (rest, element) = Any::from_der(der).ok()?;
    (element.class() == Class::Universal && element.tag() == tag).then_some((element.data, rest))
}

/// The content of the only element.
fn all(der: &[u8], tag: Tag) -> Option<&[u8]> {
    next(der, tag).filter(|(_, rest)| rest.is_empty()).map(|(content, _)| content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_under_the_same_passphrase_and_under_no_other() {
        let passphrase = Passphrase::new("correct horse".to_owned()).unwrap();
        let key: Vec<u8> = (0..138).collect();
        let block = pem::parse(passphrase.encrypt(&key).unwrap()).unwrap();
        assert_eq!(block.tag(), TAG);
        assert_eq!(*passphrase.decrypt(block.contents()).unwrap(), key);
        assert!(!block.contents().windows(16).any(|bytes| bytes == &key[16..32]), "it is not encrypted");

        let other = Passphrase::new("correct house".to_owned()).unwrap();
        assert_ne!(other.decrypt(block.contents()).map(|text| text.to_vec()), Ok(key));
    }

    #[test]
    fn two_encryptions_of_one_key_have_nothing_in_common() {
        let passphrase = Passphrase::new("correct horse".to_owned()).unwrap();
        assert_ne!(passphrase.encrypt(b"key").unwrap(), passphrase.encrypt(b"key").unwrap());
    }

    #[test]
    fn damage_and_other_schemes_are_told_apart_from_a_wrong_passphrase() {
        let passphrase = Passphrase::new("correct horse".to_owned()).unwrap();
        let block = pem::parse(passphrase.encrypt(b"key").unwrap()).unwrap();
        let der = block.contents();
        assert_eq!(passphrase.decrypt(&der[..der.len() - 1]), Err(DecryptError::Scheme));
        assert_eq!(passphrase.decrypt(&[der, &[0]].concat()), Err(DecryptError::Scheme));
        assert_eq!(passphrase.decrypt(&[]), Err(DecryptError::Scheme));
        let mut aes128 = der.to_vec();
        let at = aes128.windows(AES_256_CBC.len()).position(|bytes| bytes == AES_256_CBC).unwrap();
        aes128[at + AES_256_CBC.len() - 1] = 0x02;
        assert_eq!(passphrase.decrypt(&aes128), Err(DecryptError::Scheme));
    }

    /// Made with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`.
    const PLAIN: &str = "
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgGoSSbvUcC9shV5OS
dzhU1+62jL3oQivI8R56454mzUOhRANCAASyrh4d5uxqpWOVVW380gEJp/5y5usL
3SIAVJDvyxLCA8qZX6RFVgMGp8AkZTk+r1Ej+0QeaxMuYx6vSBXz3dW3
-----END PRIVATE KEY-----
";

    /// The same, by `openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -passout pass:other`.
    const OPENSSL: &str = "
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAjD6IPo++K9ygICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEHNUAOaVI/+fQq7fe3GbvdoEgZBF
LqK9tGZdCZQTgRJtXiGLotH70TkYP47mNpNkU2WOJgZ/+pfihxgXsIsjLXPObLRG
gbbrzzQzIoYgPqGgmbYld8z+Fkl8rsNPLDipghkYDcG0XTcH+qBf6oinZSQDsQ9t
gSBsO3xTStRQaANx6xnuFPKVKRX5ivS0U1/2mTB+Kz17LT/2blxK1PWG9Wo2t6g=
-----END ENCRYPTED PRIVATE KEY-----
";

    #[test]
    fn a_key_that_openssl_encrypted_opens() {
        let passphrase = Passphrase::new("other".to_owned()).unwrap();
        let opened = passphrase.decrypt(pem::parse(OPENSSL).unwrap().contents()).unwrap();
        assert_eq!(*opened, pem::parse(PLAIN).unwrap().contents());
    }

    #[test]
    fn an_empty_text_is_no_passphrase_and_none_is_printed() {
        assert!(Passphrase::new(String::new()).is_none());
        assert_eq!(format!("{:?}", Passphrase::new("secret".into())), "Some(Passphrase)");
    }
}
