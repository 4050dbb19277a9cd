//! Who is at the other end of a connection.

use std::sync::Arc;

use mesh_config::names::TrustDomain;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Identity, OperatorRole, SpiffeId, SpiffeIdError, Workload};

/// What TLS proved of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its SPIFFE id.
    pub id: SpiffeId,
    /// Serial of its certificate: lower hexadecimal without leading zero bytes, as revocations name it.
    pub serial: String,
    /// Last second in which its certificate is valid, Unix time.
    pub not_after: u64,
    /// What it may do as an operator; `None` for services.
    pub role: Option<OperatorRole>,
}

impl Peer {
    /// Ends when its service or its certificate is revoked; at once when it is already. For whoever holds a connection
    /// with it. Never ends otherwise.
    pub async fn until_revoked(&self, identity: &Identity) {
        identity.until(|| identity.is_revoked(self)).await;
    }
}

/// What TLS proved of a client outside of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsidePeer {
    /// What the policy calls it.
    pub name: Arc<str>,
    /// Serial of its certificate, written as a [`Peer`]'s.
    pub serial: String,
    /// Last second in which its certificate is valid, Unix time.
    pub not_after: u64,
    /// What it showed, leaf first: looked at again when the policy changes.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// When that was found good.
    pub(crate) proven_at: UnixTime,
}

/// The names and times of a certificate of any CA. Nothing here says that anyone trusts it.
pub(crate) struct Names {
    pub uris: Vec<String>,
    pub dns: Vec<String>,
    pub serial: String,
    pub not_after: u64,
}

impl Names {
    /// Reads a leaf certificate that is not an authority's.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| LeafError::Encoding)?;
        if !rest.is_empty() {
            return Err(LeafError::Encoding);
        }
        if certificate.is_ca() {
            return Err(LeafError::Authority);
        }
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        let names = certificate.subject_alternative_name().map_err(|_| LeafError::Encoding)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::URI(uri) = name {
                uris.push((*uri).to_owned());
            } else if let GeneralName::DNSName(name) = name {
                dns.push((*name).to_owned());
            }
        }
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self { uris, dns, serial: serial(certificate.raw_serial()), not_after })
    }

    /// Whether one of its names is a SPIFFE id of this trust domain, well formed or not: the mesh alone speaks for those.
    pub(crate) fn claim(&self, trust_domain: &TrustDomain) -> bool {
        self.uris.iter().any(|uri| {
            let Some((scheme, rest)) = uri.split_once("://") else { return false };
            let domain = rest.split(['/', '?', '#', ':']).next().unwrap_or_default();
            scheme.eq_ignore_ascii_case("spiffe") && domain.eq_ignore_ascii_case(trust_domain.as_str())
        })
    }
}

/// What this mesh reads of a certificate's own fields. Nothing here says that anyone trusts it.
pub(crate) struct Leaf {
    pub id: SpiffeId,
    pub serial: String,
    pub not_before: u64,
    pub not_after: u64,
    pub role: Option<OperatorRole>,
}

/// Why a certificate is not an SVID of this mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LeafError {
    #[error("the certificate is not well-formed X.509")]
    Encoding,
    #[error("the certificate has {0} URI names where an SVID has exactly one")]
    UriNames(usize),
    #[error("the URI name of the certificate is not a SPIFFE id of this mesh")]
    SpiffeId(#[source] SpiffeIdError),
    #[error("the certificate is a CA's")]
    Authority,
}

impl Leaf {
    /// Reads a leaf certificate by the rules of X509-SVID §2, §4: exactly one URI name, not an authority.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| LeafError::Encoding)?;
        if !rest.is_empty() {
            return Err(LeafError::Encoding);
        }
        if certificate.is_ca() {
            return Err(LeafError::Authority);
        }
        let names = certificate.subject_alternative_name().map_err(|_| LeafError::Encoding)?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let uris: Vec<&str> =
            names.filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None }).collect();
        let [uri] = uris.as_slice() else { return Err(LeafError::UriNames(uris.len())) };
        let time = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0);
        let id: SpiffeId = uri.parse().map_err(LeafError::SpiffeId)?;
        let role = match id.workload() {
            Workload::Service(_) => None,
            Workload::Operator(_) => Some(OperatorRole::of(&certificate)),
        };
        Ok(Self {
            id,
            role,
            serial: serial(certificate.raw_serial()),
            not_before: time(certificate.validity().not_before),
            not_after: time(certificate.validity().not_after),
        })
    }

    pub(crate) fn into_peer(self) -> Peer {
        Peer { id: self.id, serial: self.serial, not_after: self.not_after, role: self.role }
    }
}

/// Whether a certificate names extended key usages. What is no certificate does not.
pub(crate) fn names_usages(der: &[u8]) -> bool {
    let parsed = X509Certificate::from_der(der);
    parsed.is_ok_and(|(_, certificate)| certificate.extended_key_usage().is_ok_and(|usages| usages.is_some()))
}

fn serial(raw: &[u8]) -> String {
    let first = raw.iter().position(|byte| *byte != 0).unwrap_or(raw.len());
    crate::svid::hex(&raw[first..])
}
