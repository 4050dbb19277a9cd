//! Certificates one behind the other without any separator, as the Workload API carries chains and bundles.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// One certificate after the other; none when something else is among them.
pub(super) fn split(mut bytes: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut certificates = Vec::new();
    while !bytes.is_empty() {
        let (rest, _) = X509Certificate::from_der(bytes).ok()?;
        certificates.push(bytes[..bytes.len() - rest.len()].to_vec().into());
        bytes = rest;
    }
    Some(certificates)
}

/// The reverse of [`split`].
pub(super) fn join(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|certificate| certificate.as_ref()).copied().collect()
}
