//! A small certificate authority for tests: makes good SVIDs and every kind of bad one. Not for production use: it
//! panics on bad input, and its keys live in memory only.

use std::sync::Arc;
use std::time::Duration;

use mesh_config::names::{ServiceName, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::{Identity, OperatorRole, SpiffeId, Svid, TrustBundle, clock};

/// A root with its key, for one trust domain.
pub struct Ca {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    /// What stands between a leaf and the root.
    below: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate shall look like. [`Leaf::uri`] is a good one; set the fields that shall be wrong.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// URI names, any number.
    pub uris: Vec<String>,
    /// DNS names, any number.
    pub dns: Vec<String>,
    /// Extended key usages; empty: no such extension.
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    /// Valid from, Unix seconds.
    pub not_before: u64,
    /// Valid until, Unix seconds.
    pub not_after: u64,
    /// The serial, big endian.
    pub serial: Vec<u8>,
    /// Whether it claims to be an authority.
    pub authority: bool,
    /// Organizational units: the role of an operator.
    pub units: Vec<String>,
}

/// `name` as a service name.
pub fn service(name: &str) -> ServiceName {
    ServiceName::try_from(name).expect("a service name")
}

/// `name` as a trust domain.
pub fn trust_domain(name: &str) -> TrustDomain {
    TrustDomain::try_from(name).expect("a trust domain")
}

impl Leaf {
    /// A good SVID with this URI, valid for an hour around now, for both sides of a handshake; an operator's is an admin's.
    pub fn uri(uri: &str) -> Self {
        let now = clock::unix_seconds();
        Self {
            uris: vec![uri.to_owned()],
            dns: Vec::new(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            not_before: now - 60,
            not_after: now + 3600,
            serial: (0..16).map(|index| if index == 0 { 1 } else { rand::random() }).collect(),
            authority: false,
            units: if uri.contains("/operator/") { vec![OperatorRole::Admin.to_string()] } else { Vec::new() },
        }
    }

    /// A good certificate of a client outside of the mesh, which has this DNS name and no other.
    pub fn outside(dns: &str) -> Self {
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Self { uris: Vec::new(), dns: vec![dns.to_owned()], usages, ..Self::uri("") }
    }
}

impl Ca {
    /// A new root for `domain`.
    pub fn new(domain: &str) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{domain} root"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
        let root = params.self_signed(&key).expect("a root");
        let (trust_domain, root) = (trust_domain(domain), root.der().clone());
        Self { trust_domain, root, below: Vec::new(), issuer: Issuer::new(params, key) }
    }

    /// A new issuing CA below this one's root, which issues chains of two.
    pub fn issuing(&self) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{} issuing", self.trust_domain));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.signed_by(&key, &self.issuer).expect("an issuing CA");
        let below = vec![certificate.der().clone()];
        let (trust_domain, root) = (self.trust_domain.clone(), self.root.clone());
        Self { trust_domain, root, below, issuer: Issuer::new(params, key) }
    }

    /// SHA-256 of the issuing CA's certificate; none when the root issues.
    pub fn authority(&self) -> Option<[u8; 32]> {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.below.first()?);
        Some(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// A root that exists already, such as a running mesh's: its certificate (DER) and its key (PKCS#8, PEM).
    pub fn from_parts(domain: &str, root: CertificateDer<'static>, key: &str) -> Self {
        let key = KeyPair::from_pem(key).expect("a PKCS#8 key");
        let issuer = Issuer::from_ca_cert_der(&root, key).expect("a root certificate");
        Self { trust_domain: trust_domain(domain), root, below: Vec::new(), issuer }
    }

    /// Its key as [`Ca::from_parts`] takes it.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root alone.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root as a bundle.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.trust_domain.clone(), vec![self.root.clone()]).expect("a bundle")
    }

    /// The id of `name` here.
    pub fn id(&self, name: &str) -> SpiffeId {
        SpiffeId::service(self.trust_domain.clone(), service(name))
    }

    /// A good SVID of the service `name`.
    pub fn svid(&self, name: &str) -> Svid {
        self.svid_of(&Leaf::uri(&self.id(name).to_string()))
    }

    /// A good SVID of the operator `name`.
    pub fn operator(&self, name: &str) -> Svid {
        self.svid_of(&Leaf::uri(&format!("spiffe://{}/operator/{name}", self.trust_domain)))
    }

    /// A good SVID of the service `name` that is valid for `life` from now.
    pub fn short_lived(&self, name: &str, life: Duration) -> Svid {
        let now = clock::unix_seconds();
        self.svid_of(&Leaf { not_after: now + life.as_secs(), ..Leaf::uri(&self.id(name).to_string()) })
    }

    /// The identity of the service `name`, trusting this root.
    pub fn identity(&self, name: &str) -> Arc<Identity> {
        Identity::new(self.svid(name), self.bundle())
    }

    /// The identity of the operator `name`, trusting this root.
    pub fn operator_identity(&self, name: &str) -> Arc<Identity> {
        Identity::new(self.operator(name), self.bundle())
    }

    /// As described, as long as [`Svid`] can hold it: exactly one URI that is a SPIFFE id, not an authority.
    pub fn svid_of(&self, leaf: &Leaf) -> Svid {
        let (chain, key) = self.certificate(leaf);
        Svid::from_der(chain, key).expect("an SVID")
    }

    /// As described, however wrong: a chain and its PKCS#8 key.
    pub fn certificate(&self, leaf: &Leaf) -> Certificate {
        let key = KeyPair::generate().expect("a P-256 key");
        let certificate = params(leaf).signed_by(&key, &self.issuer).expect("a certificate");
        (self.chain(certificate.der()), Zeroizing::new(key.serialize_der()))
    }

    /// A chain for a CSR (PKCS#10, DER): its public key with the names of `leaf`, as an identity service would issue.
    pub fn sign(&self, csr: &[u8], leaf: &Leaf) -> Vec<CertificateDer<'static>> {
        let mut request = rcgen::CertificateSigningRequestParams::from_der(&csr.into()).expect("a CSR");
        request.params = params(leaf);
        self.chain(request.signed_by(&self.issuer).expect("a certificate").der())
    }

    fn chain(&self, leaf: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        [leaf].into_iter().chain(&self.below).cloned().collect()
    }
}

/// A certificate with its PKCS#8 key, as [`Ca::certificate`] makes it.
pub type Certificate = (Vec<CertificateDer<'static>>, Zeroizing<Vec<u8>>);

/// A CSR (PKCS#10, DER) for a new key, without names.
pub fn csr() -> Vec<u8> {
    let key = KeyPair::generate().expect("a P-256 key");
    CertificateParams::default().serialize_request(&key).expect("a CSR").der().to_vec()
}

/// A TLS client that trusts every server, shows whatever it is given and offers these protocols by ALPN.
pub fn client_config(shown: Option<Certificate>, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    let mut config = rustls::ClientConfig::clone(&crate::tls::unverified_client_config());
    if let Some((chain, key)) = shown {
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified(chain, &key)));
    }
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A TLS server that takes every client, shows whatever it is given and agrees to these protocols by ALPN.
pub fn server_config(shown: Certificate, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified(shown.0, &shown.1))));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> rustls::sign::CertifiedKey {
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.into());
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a key");
    rustls::sign::CertifiedKey::new(chain, key)
}

fn params(leaf: &Leaf) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for unit in &leaf.units {
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit.as_str());
    }
    params.subject_alt_names = leaf.uris.iter().map(|text| uri(text)).collect();
    params
        .subject_alt_names
        .extend(leaf.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().expect("ASCII"))));
    params.extended_key_usages.clone_from(&leaf.usages);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.is_ca = IsCa::ExplicitNoCa;
    let time = |seconds: u64| std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    params.not_before = time(leaf.not_before).into();
    params.not_after = time(leaf.not_after).into();
    params.serial_number = Some(SerialNumber::from_slice(&leaf.serial));
    if leaf.authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    }
    params.use_authority_key_identifier_extension = true;
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}
