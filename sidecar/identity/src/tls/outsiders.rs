//! Clients outside of the mesh: whose certificates pass although no root of the mesh stands behind them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{CertificateError, Error};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::EndEntityCert;

use super::verify::{CLIENT_AUTH, certificate_error, must_name_usages, refused};
use crate::peer::{Names, OutsidePeer};
use crate::{Revoked, clock};

/// A client outside of the mesh as the policy describes it: whoever shows a certificate of its CA, with one of its names.
#[derive(Clone)]
pub struct Outsider {
    name: Arc<str>,
    ca: Vec<CertificateDer<'static>>,
    /// The same as webpki wants them, parsed once.
    anchors: Vec<TrustAnchor<'static>>,
    names: Vec<CertificateName>,
}

/// A name that a certificate may carry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CertificateName {
    /// Lower case; compared without case and without wildcards.
    Dns(String),
    /// Compared byte for byte.
    Uri(String),
}

/// Why a record does not describe a client outside of the mesh.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutsiderError {
    /// No CA is named: nobody could come in.
    #[error("outside client {0} names no CA")]
    NoCa(Arc<str>),
    /// One of the CA certificates is not an X.509 v3 certificate.
    #[error("CA certificate {index} of outside client {client} is not an X.509 certificate: {source}")]
    Ca {
        /// Whose.
        client: Arc<str>,
        /// Position within the record, from 0.
        index: usize,
        /// What the parser said.
        source: webpki::Error,
    },
    /// No name is named: everybody of that CA could come in.
    #[error("outside client {0} names no certificate name")]
    NoNames(Arc<str>),
    /// A name is neither `dns:NAME` nor `uri:URI`.
    #[error("outside client {client}: {name:?} is neither dns:NAME nor uri:URI")]
    Name {
        /// Whose.
        client: Arc<str>,
        /// As it stands in the record.
        name: String,
    },
}

impl Outsider {
    /// `name` is what rules call it, `ca` are its CA's certificates (DER), `names` are `dns:NAME` or `uri:URI`, of which
    /// a certificate must carry at least one.
    ///
    /// # Errors
    /// Names what of the record cannot be used.
    pub fn new(name: &str, ca: Vec<CertificateDer<'static>>, names: &[String]) -> Result<Self, OutsiderError> {
        let name: Arc<str> = name.into();
        if ca.is_empty() {
            return Err(OutsiderError::NoCa(name));
        }
        if names.is_empty() {
            return Err(OutsiderError::NoNames(name));
        }
        let mut anchors = Vec::with_capacity(ca.len());
        for (index, certificate) in ca.iter().enumerate() {
            let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|source| OutsiderError::Ca {
                client: Arc::clone(&name),
                index,
                source,
            })?;
            anchors.push(anchor.to_owned());
        }
        let names = names
            .iter()
            .map(|text| match text.split_once(':') {
                Some(("dns", dns)) if !dns.is_empty() => Ok(CertificateName::Dns(dns.to_ascii_lowercase())),
                Some(("uri", uri)) if !uri.is_empty() => Ok(CertificateName::Uri(uri.to_owned())),
                _ => Err(OutsiderError::Name { client: Arc::clone(&name), name: text.clone() }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { name, ca, anchors, names })
    }

    /// What rules call it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn is_named(&self, certificate: &Names) -> bool {
        self.names.iter().any(|name| match name {
            CertificateName::Dns(dns) => certificate.dns.iter().any(|shown| shown.eq_ignore_ascii_case(dns)),
            CertificateName::Uri(uri) => certificate.uris.contains(uri),
        })
    }
}

impl PartialEq for Outsider {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.ca == other.ca && self.names == other.names
    }
}

impl fmt::Debug for Outsider {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Outsider").field("name", &self.name).field("names", &self.names).finish_non_exhaustive()
    }
}

/// The clients outside of the mesh that may connect, as they are right now. Replaced as a whole while handshakes read it.
#[derive(Debug, Default)]
pub struct Outsiders {
    clients: ArcSwap<Vec<Outsider>>,
    /// Counts the replacements, each after it can be seen.
    version: AtomicU64,
}

impl Outsiders {
    /// From the next handshake on, these and nobody else. Open connections are for their owner to close: see
    /// [`Outsiders::still_knows`].
    pub fn set(&self, clients: Vec<Outsider>) {
        self.clients.store(Arc::new(clients));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Moves with each [`Outsiders::set`]. Until it does, nobody's standing changes.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.clients.load().is_empty()
    }

    /// Whether a certificate that was good for this client when it connected would still be its now. Its time is not
    /// looked at again: a connection may outlive the certificate it began with, as those of the mesh do.
    pub fn still_knows(&self, peer: &OutsidePeer) -> bool {
        let [leaf, intermediates @ ..] = peer.chain.as_slice() else { return false };
        let algorithms = super::provider().signature_verification_algorithms;
        self.identify(&algorithms, leaf, intermediates, peer.proven_at).is_ok_and(|(client, _)| client == peer.name)
    }

    /// Who shows this chain.
    ///
    /// # Errors
    /// Nobody known does; or two do, which is one too many to tell whose token to expect.
    pub(super) fn identify(
        &self,
        algorithms: &WebPkiSupportedAlgorithms,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Arc<str>, Names), Error> {
        let certificate = EndEntityCert::try_from(der).map_err(certificate_error)?;
        let names = Names::parse(der).map_err(refused)?;
        must_name_usages(der)?;
        let clients = self.clients.load();
        let mut found: Option<&Outsider> = None;
        let mut last = None;
        for client in clients.iter().filter(|client| client.is_named(&names)) {
            let usage = CLIENT_AUTH;
            match certificate.verify_for_usage(algorithms.all, &client.anchors, intermediates, now, usage, None, None) {
                Ok(_) => {
                    if let Some(other) = found.replace(client) {
                        return Err(refused(TwoClients(Arc::clone(&other.name), Arc::clone(&client.name))));
                    }
                }
                Err(error) => last = Some(certificate_error(error)),
            }
        }
        match (found, last) {
            (Some(client), _) => Ok((Arc::clone(&client.name), names)),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }

    /// The same for a whole chain, with revocations, as it is kept for the life of a connection.
    pub(super) fn peer(&self, chain: &[CertificateDer<'_>], revoked: &Revoked) -> Result<OutsidePeer, Error> {
        let [leaf, intermediates @ ..] = chain else { return Err(Error::NoCertificatesPresented) };
        let now = UnixTime::since_unix_epoch(clock::since_epoch());
        let algorithms = super::provider().signature_verification_algorithms;
        let (name, names) = self.identify(&algorithms, leaf, intermediates, now)?;
        let peer = OutsidePeer {
            name,
            serial: names.serial,
            not_after: names.not_after,
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            proven_at: now,
        };
        if revoked.names_outside(&peer.name, &peer.serial) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(peer)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate is that of two outside clients, {0} and {1}")]
struct TwoClients(Arc<str>, Arc<str>);

#[cfg(test)]
mod tests;
