//! The certificates of the hierarchy: how each is made, and how files with them are read.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::{digest, rand};
use mesh_config::names::TrustDomain;
use mesh_identity::{OperatorRole, SpiffeId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{CaError, Passphrase, encrypted};

/// Certificates are valid from a little before they are made, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(300);
/// Ten years.
pub(super) const ROOT_LIFETIME: Duration = Duration::from_secs(3653 * 86_400);
/// 30 days. Renewed at half of it.
pub(super) const ISSUING_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// A root: self-signed, for ten years.
pub(super) fn root(trust_domain: &TrustDomain, now: u64) -> Result<CertificateParams, rcgen::Error> {
    authority(
        trust_domain,
        format!("Tenon root of {trust_domain}"),
        BasicConstraints::Unconstrained,
        now,
        now + ROOT_LIFETIME.as_secs(),
    )
}

/// An issuing CA: it signs leaves and no further CA.
pub(super) fn issuing(
    trust_domain: &TrustDomain,
    number: u64,
    now: u64,
    not_after: u64,
) -> Result<CertificateParams, rcgen::Error> {
    let name = format!("Tenon issuing CA {number} of {trust_domain}");
    let mut params = authority(trust_domain, name, BasicConstraints::Constrained(0), now, not_after)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A signing certificate of a trust domain: a SPIFFE ID without a path, and it signs certificates alone (X509-SVID §4).
fn authority(
    trust_domain: &TrustDomain,
    name: String,
    constraints: BasicConstraints,
    now: u64,
    not_after: u64,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base(&name, now, not_after);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// An SVID: client and server. That of a service has a DNS name too, `<service>.svc.<trust domain>`: clients outside of the
/// mesh know nothing of SPIFFE and hold a server to the name that they expect. Nothing in the mesh reads it.
pub(super) fn svid(
    id: &SpiffeId,
    role: Option<OperatorRole>,
    now: u64,
    not_after: u64,
) -> Result<CertificateParams, rcgen::Error> {
    // The SPIFFE id is the identity. The name only helps people who read a certificate; the unit says what an operator may do.
    let name = id.service_name().map_or_else(|| id.operator_name().unwrap_or_default(), |name| name.as_str());
    let mut params = base(name, now, not_after);
    if let Some(role) = role {
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.as_str());
    }
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    if let Some(service) = id.service_name() {
        params.subject_alt_names.push(SanType::DnsName(format!("{service}.svc.{}", id.trust_domain()).try_into()?));
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf(params)
}

/// A server that is known by DNS names and IP addresses.
pub(super) fn server(names: &[String], now: u64, not_after: u64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = base("Tenon key repository", now, not_after);
    params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf(params)
}

fn leaf(mut params: CertificateParams) -> Result<CertificateParams, rcgen::Error> {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A name, a random serial, and from a little before `now` to `not_after`; both Unix seconds.
fn base(name: &str, now: u64, not_after: u64) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACKDATE.as_secs()));
    params.not_after = epoch + Duration::from_secs(not_after);
    let mut serial = [0; 16];
    rand::fill(&mut serial).expect("the operating system gives randomness");
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// Lower hexadecimal without leading zero bytes, as revocations name it.
pub(super) fn serial(params: &CertificateParams) -> String {
    let bytes = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
    bytes.iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a certificate.
pub(crate) fn sha256(der: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, der).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The one certificate of a file.
pub(super) fn read_certificate(path: &Path, text: &str) -> Result<CertificateDer<'static>, CaError> {
    let what = "not one PEM certificate";
    let block = pem::parse(text).map_err(|_| CaError::Content { path: path.into(), what })?;
    if block.tag() != "CERTIFICATE" {
        return Err(CaError::Content { path: path.into(), what });
    }
    Ok(block.into_contents().into())
}

/// The private key of a file.
pub(super) fn read_key(path: &Path, text: &str, passphrase: Option<&Passphrase>) -> Result<KeyPair, CaError> {
    let wrong = |what| CaError::Content { path: path.into(), what };
    let block = pem::parse(text).map_err(|_| wrong("not one PEM private key"))?;
    match (block.tag(), passphrase) {
        ("PRIVATE KEY", _) => {
            if passphrase.is_some() {
                tracing::warn!(path = %path.display(), "a passphrase is set, but the key of the CA is not encrypted");
            }
            let der = Zeroizing::new(block.into_contents());
            KeyPair::try_from(der.as_slice()).map_err(|_| wrong("not a PKCS#8 private key that can sign"))
        }
        (encrypted::TAG, None) => Err(CaError::Encrypted(path.into())),
        (encrypted::TAG, Some(passphrase)) => {
            let der = passphrase.decrypt(block.contents()).map_err(|error| error.at(path))?;
            // What a wrong passphrase gives may by chance look padded; it does not look like a key.
            KeyPair::try_from(der.as_slice()).map_err(|_| CaError::Passphrase(path.into()))
        }
        _ => Err(wrong("not a PKCS#8 private key: a PEM block PRIVATE KEY or ENCRYPTED PRIVATE KEY was expected")),
    }
}

/// A private key as it is written: encrypted when there is a passphrase.
pub(super) fn key_pem(key: &KeyPair, passphrase: Option<&Passphrase>) -> Result<Zeroizing<String>, CaError> {
    let plain = Zeroizing::new(key.serialize_der());
    Ok(Zeroizing::new(match passphrase {
        None => pem::encode(&pem::Pem::new("PRIVATE KEY", plain.as_slice())),
        Some(passphrase) => passphrase.encrypt(&plain)?,
    }))
}

/// What is read of a CA's certificate.
pub(super) struct Facts {
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    pub not_before: u64,
    pub not_after: u64,
}

/// Refuses what is not the certificate of a CA of `trust_domain`.
pub(super) fn check_authority(path: &Path, der: &[u8], trust_domain: &TrustDomain) -> Result<Facts, CaError> {
    let wrong = |what| CaError::Content { path: path.into(), what };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| wrong("not an X.509 certificate"))?;
    let signs = certificate.key_usage().is_ok_and(|usage| usage.is_some_and(|usage| usage.value.key_cert_sign()));
    if !certificate.is_ca() || !signs {
        return Err(wrong("not the certificate of a CA"));
    }
    let names = certificate.subject_alternative_name().map_err(|_| wrong("its names cannot be read"))?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| {
        let GeneralName::URI(uri) = name else { return None };
        uri.strip_prefix("spiffe://")
    });
    let (Some(found), None) = (uris.next(), uris.next()) else {
        return Err(wrong("it does not say which trust domain it is for: exactly one SPIFFE URI was expected"));
    };
    if trust_domain != found {
        return Err(CaError::TrustDomain {
            path: path.into(),
            found: found.to_owned(),
            expected: trust_domain.clone(),
        });
    }
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = certificate.validity();
    Ok(Facts {
        spki: certificate.public_key().raw.to_vec(),
        not_before: seconds(validity.not_before),
        not_after: seconds(validity.not_after),
    })
}

impl Facts {
    /// Refuses a certificate that is not valid `now`.
    pub(super) fn must_be_valid(&self, path: &Path, now: u64) -> Result<(), CaError> {
        let (not_before, not_after) = (self.not_before, self.not_after);
        if now > not_after {
            return Err(CaError::Expired { path: path.into(), not_after, now });
        }
        if now < not_before {
            return Err(CaError::NotYetValid { path: path.into(), not_before, now });
        }
        Ok(())
    }
}
