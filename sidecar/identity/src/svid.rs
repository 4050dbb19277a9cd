//! A certificate chain with its private key.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::peer::{Leaf, LeafError};
use crate::{OperatorRole, SpiffeId};

/// The identity document of one process: a chain, leaf first, and the leaf's private key. Never printed.
pub struct Svid {
    leaf: Leaf,
    key_pkcs8: Zeroizing<Vec<u8>>,
    certified: Arc<CertifiedKey>,
}

/// Why something is not an SVID.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// There is no certificate in the chain.
    #[error("the certificate chain is empty")]
    Empty,
    /// The chain or the key is not PEM, or has blocks that do not belong there.
    #[error("the {0} is not PEM, or holds something else")]
    Pem(&'static str),
    /// The leaf is not an SVID of this mesh; the text says what is wrong.
    #[error("{0}")]
    Leaf(String),
    /// The private key is of no known kind.
    #[error("the private key is not a PKCS#8 key that TLS can use")]
    Key(#[source] rustls::Error),
    /// The private key is not the one of the leaf.
    #[error("the private key is not the one of the certificate")]
    KeyOfAnother,
}

impl From<LeafError> for SvidError {
    fn from(error: LeafError) -> Self {
        Self::Leaf(error.to_string())
    }
}

impl Svid {
    /// A chain, leaf first, and a PKCS#8 key; all DER.
    pub fn from_der(chain: Vec<CertificateDer<'static>>, key_pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, SvidError> {
        let leaf = Leaf::parse(chain.first().ok_or(SvidError::Empty)?)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.as_slice()));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(SvidError::Key)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| SvidError::KeyOfAnother)?;
        Ok(Self { leaf, key_pkcs8, certified: Arc::new(certified) })
    }

    /// `CERTIFICATE` blocks, leaf first, and one `PRIVATE KEY` block.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, SvidError> {
        let blocks = pem::parse_many(chain).map_err(|_| SvidError::Pem("certificate chain"))?;
        if blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
            return Err(SvidError::Pem("certificate chain"));
        }
        let key = pem::parse(key).map_err(|_| SvidError::Pem("private key"))?;
        if key.tag() != "PRIVATE KEY" {
            return Err(SvidError::Pem("private key"));
        }
        let chain = blocks.into_iter().map(|block| block.into_contents().into()).collect();
        Self::from_der(chain, Zeroizing::new(key.into_contents()))
    }

    /// The chain as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        certificates_to_pem(self.chain())
    }

    /// The private key as PKCS#8 PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode(&pem::Pem::new("PRIVATE KEY", self.key_pkcs8.as_slice())))
    }

    /// The chain, DER, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// SHA-256 of the certificate of the issuing CA, the second of the chain. None when a root issued it, as an
    /// operator's debugging CA or the root of a mesh without issuing CAs does.
    pub fn issuing_authority(&self) -> Option<[u8; 32]> {
        let issuer = self.chain().get(1)?;
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, issuer);
        Some(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// What it lets an operator do; `None` for services.
    pub fn role(&self) -> Option<OperatorRole> {
        self.leaf.role
    }

    /// Serial: lower hexadecimal without leading zero bytes.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// First second in which it is valid, Unix time.
    pub fn not_before(&self) -> u64 {
        self.leaf.not_before
    }

    /// Last second in which it is valid, Unix time.
    pub fn not_after(&self) -> u64 {
        self.leaf.not_after
    }

    /// Whether `now`, in Unix seconds, lies within its life.
    pub fn is_valid_at(&self, now: u64) -> bool {
        (self.leaf.not_before..=self.leaf.not_after).contains(&now)
    }

    pub(crate) fn key_pkcs8(&self) -> &[u8] {
        &self.key_pkcs8
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Svid")
            .field("id", &self.leaf.id)
            .field("serial", &self.leaf.serial)
            .field("not_before", &self.leaf.not_before)
            .field("not_after", &self.leaf.not_after)
            .finish_non_exhaustive()
    }
}

pub(crate) fn certificates_to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()))).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The inverse of [`hex`], for exactly `N` bytes.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}
