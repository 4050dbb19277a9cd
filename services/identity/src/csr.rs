//! What a process asks a certificate for: its public key, proved to be its own.

use mesh_identity::SpiffeId;
use rcgen::{CertificateSigningRequestParams, SanType, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Longer requests are refused before they are parsed.
const MAX_BYTES: usize = 16 * 1024;

/// A certificate signing request whose signature is its own key's. Nothing in it is believed but the public key.
#[derive(Debug, Clone)]
pub struct Csr {
    public_key: SubjectPublicKeyInfo,
    /// URI names that were asked for. They are never copied, only compared.
    uris: Vec<String>,
}

/// Why a certificate signing request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Too long, not PKCS#10, or with something in it that is not understood.
    #[error("the certificate signing request is not a PKCS#10 request that can be read")]
    Encoding,
    /// The signature is not that of the public key in the request.
    #[error("the certificate signing request is not signed with its own key")]
    Signature,
    /// The key is neither ECDSA P-256 nor P-384.
    #[error("the key of the certificate signing request must be ECDSA on P-256 or P-384")]
    Key,
    /// It names somebody else.
    #[error("the certificate signing request names {named:?}, but it was {attested} that was attested")]
    Name {
        /// The URI in the request, cut short.
        named: String,
        /// The identity that would be issued.
        attested: String,
    },
}

impl Csr {
    /// Reads a PKCS#10 request, DER, and checks its signature.
    ///
    /// # Errors
    /// When it is not one, or its key is of no kind that the mesh uses.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_BYTES {
            return Err(CsrError::Encoding);
        }
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der)).map_err(|error| {
                let forged = error == rcgen::Error::InvalidCertificationRequestSignature;
                if forged { CsrError::Signature } else { CsrError::Encoding }
            })?;
        // rcgen takes the algorithm from the signature; the curve stands in the key.
        let (rest, parsed) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Encoding)?;
        if !rest.is_empty() {
            return Err(CsrError::Encoding);
        }
        let public_key = SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)
            .map_err(|_| CsrError::Key)?;
        let algorithm = rcgen::PublicKeyData::algorithm(&public_key);
        if algorithm != &rcgen::PKCS_ECDSA_P256_SHA256 && algorithm != &rcgen::PKCS_ECDSA_P384_SHA384 {
            return Err(CsrError::Key);
        }
        let uris = request
            .params
            .subject_alt_names
            .iter()
            .filter_map(|name| {
                let SanType::URI(uri) = name else { return None };
                Some(uri.as_str().to_owned())
            })
            .collect();
        Ok(Self { public_key, uris })
    }

    /// Refuses a request that names anybody but `id`. One that names nobody is good.
    ///
    /// # Errors
    /// [`CsrError::Name`].
    pub fn must_not_contradict(&self, id: &SpiffeId) -> Result<(), CsrError> {
        let attested = id.to_string();
        match self.uris.iter().find(|uri| **uri != attested) {
            None => Ok(()),
            Some(other) => Err(CsrError::Name { named: other.chars().take(200).collect(), attested }),
        }
    }

    /// Who asked: the SHA-256 of the public key.
    pub(crate) fn holder(&self) -> [u8; 32] {
        let key = rcgen::PublicKeyData::subject_public_key_info(&self.public_key);
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key);
        hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.public_key
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn request(key: &KeyPair, uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn p256_and_p384_are_taken_and_other_keys_are_not() {
        for (algorithm, good) in
            [(&PKCS_ECDSA_P256_SHA256, true), (&PKCS_ECDSA_P384_SHA384, true), (&PKCS_ED25519, false)]
        {
            let parsed = Csr::parse(&request(&KeyPair::generate_for(algorithm).unwrap(), &[]));
            assert_eq!(parsed.map(|_| ()), if good { Ok(()) } else { Err(CsrError::Key) });
        }
    }

    #[test]
    fn a_request_that_is_damaged_or_signed_by_another_key_is_refused() {
        let der = request(&KeyPair::generate().unwrap(), &[]);
        assert_eq!(Csr::parse(&[]).unwrap_err(), CsrError::Encoding);
        assert_eq!(Csr::parse(&der[..der.len() - 1]).unwrap_err(), CsrError::Encoding);
        assert_eq!(Csr::parse(&[&der[..], &[0]].concat()).unwrap_err(), CsrError::Encoding);
        assert_eq!(Csr::parse(&vec![0x30; MAX_BYTES + 1]).unwrap_err(), CsrError::Encoding);

        // The same request with the key of another one in the place of its own.
        let own = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap();
        let der = request(&own, &[]);
        let at = der.windows(65).position(|bytes| bytes == own.public_key_raw()).unwrap();
        let mut forged = der;
        forged[at..at + 65].copy_from_slice(other.public_key_raw());
        assert_eq!(Csr::parse(&forged).unwrap_err(), CsrError::Signature);
    }

    #[test]
    fn names_in_a_request_may_repeat_what_was_attested_and_nothing_else() {
        let key = KeyPair::generate().unwrap();
        let id: SpiffeId = "spiffe://demo.example/svc/media".parse().unwrap();
        for (uris, good) in [
            (&[][..], true),
            (&["spiffe://demo.example/svc/media"], true),
            (&["spiffe://demo.example/svc/issues"], false),
            (&["spiffe://other.example/svc/media"], false),
            (&["spiffe://demo.example/svc/media", "https://x.example/"], false),
        ] {
            let csr = Csr::parse(&request(&key, uris)).unwrap();
            assert_eq!(csr.must_not_contradict(&id).is_ok(), good, "{uris:?}");
        }
    }
}
