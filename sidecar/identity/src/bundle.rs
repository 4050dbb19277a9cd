//! The root certificates of one trust domain.

use aws_lc_rs::digest;
use mesh_config::names::TrustDomain;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The roots that a mesh trusts, for one trust domain. Never empty, and every root is a certificate.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    /// The same roots as webpki wants them, parsed once.
    anchors: Vec<TrustAnchor<'static>>,
    rotation: Rotation,
}

/// What a bundle says beside its roots: how far rotations are. The pin is over the roots alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Moves by one with each change of the bundle: `spiffe_sequence`.
    pub sequence: u64,
    /// SHA-256 of the certificate of the issuing CA that signs now. Who holds an SVID of another one renews soon. None:
    /// unknown, as for a bundle from a file.
    pub issuing_authority: Option<[u8; 32]>,
    /// Unix seconds: services replace ASAP keys that were created before this.
    pub rekey_created_before: u64,
}

/// Why something is not a trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is no root in it.
    #[error("the trust bundle holds no root certificate")]
    Empty,
    /// One of the roots is not an X.509 v3 certificate.
    #[error("root {index} of the trust bundle is not an X.509 certificate")]
    Root {
        /// Position within the bundle, from 0.
        index: usize,
        /// What the parser said.
        source: webpki::Error,
    },
    /// It is not PEM, or holds something that is not a certificate.
    #[error("the trust bundle is not a list of PEM certificates")]
    Pem,
    /// The trust domain breaks the grammar of names.
    #[error("the trust domain of the bundle is not a valid name")]
    TrustDomain,
}

impl TrustBundle {
    /// Roots in their order, which counts: the pin is over their concatenation.
    pub fn new(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        let mut anchors = Vec::with_capacity(roots.len());
        for (index, root) in roots.iter().enumerate() {
            let anchor =
                webpki::anchor_from_trusted_cert(root).map_err(|source| BundleError::Root { index, source })?;
            anchors.push(anchor.to_owned());
        }
        Ok(Self { trust_domain, roots, anchors, rotation: Rotation::default() })
    }

    /// One or more `CERTIFICATE` blocks.
    pub fn from_pem(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        let blocks = pem::parse_many(text).map_err(|_| BundleError::Pem)?;
        if blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
            return Err(BundleError::Pem);
        }
        Self::new(trust_domain, blocks.into_iter().map(|block| block.into_contents().into()).collect())
    }

    /// As `CERTIFICATE` blocks, in order.
    pub fn to_pem(&self) -> String {
        crate::svid::certificates_to_pem(&self.roots)
    }

    /// From the wire.
    pub fn from_proto(bundle: &tenon_proto::identity::v1::TrustBundle) -> Result<Self, BundleError> {
        let trust_domain = TrustDomain::try_from(bundle.trust_domain.as_str()).map_err(|_| BundleError::TrustDomain)?;
        let roots = bundle.roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect();
        let rotation = Rotation {
            sequence: bundle.sequence,
            issuing_authority: bundle.issuing_authority.as_ref().try_into().ok(),
            rekey_created_before: bundle.rekey_created_before,
        };
        Ok(Self { rotation, ..Self::new(trust_domain, roots)? })
    }

    /// The same roots with these facts.
    #[must_use]
    pub fn with_rotation(self, rotation: Rotation) -> Self {
        Self { rotation, ..self }
    }

    /// How far rotations are.
    pub fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// For the wire.
    pub fn to_proto(&self) -> tenon_proto::identity::v1::TrustBundle {
        tenon_proto::identity::v1::TrustBundle {
            trust_domain: self.trust_domain.as_str().to_owned(),
            roots: self.roots.iter().map(|root| root.to_vec().into()).collect(),
            sequence: self.rotation.sequence,
            issuing_authority: self.rotation.issuing_authority.map(|hash| hash.to_vec().into()).unwrap_or_default(),
            rekey_created_before: self.rotation.rekey_created_before,
        }
    }

    /// The trust domain that these roots speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots, DER, in order.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The last second in which each root is valid, Unix time, in the same order; 0 of one that cannot be read.
    pub fn ends(&self) -> impl Iterator<Item = u64> {
        let end = |root: &CertificateDer<'_>| {
            let (_, root) = X509Certificate::from_der(root).ok()?;
            u64::try_from(root.validity().not_after.timestamp()).ok()
        };
        self.roots.iter().map(move |root| end(root).unwrap_or(0))
    }

    /// SHA-256 over the roots' DER, one after the other.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = digest::Context::new(&digest::SHA256);
        for root in &self.roots {
            hash.update(root);
        }
        hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// [`Self::sha256`] in lower hexadecimal: what a process that joins is told beforehand.
    pub fn pin(&self) -> String {
        crate::svid::hex(&self.sha256())
    }

    /// What of these roots a pin stands for: all of them when it is [`Self::pin`], or the one root whose SHA-256 it is. A
    /// bundle from an unverified source is worth no more than this.
    pub(crate) fn pinned_by(&self, pin: &str) -> Option<Self> {
        if self.pin() == pin {
            return Some(self.clone());
        }
        let mut alone =
            self.roots.iter().filter_map(|root| Self::new(self.trust_domain.clone(), vec![root.clone()]).ok());
        alone.find(|root| root.pin() == pin)
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.roots == other.roots && self.rotation == other.rotation
    }
}

impl Eq for TrustBundle {}
