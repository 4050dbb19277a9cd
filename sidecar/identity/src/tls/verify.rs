//! The checks of certificates, as rustls calls them at each handshake.

use std::fmt;
use std::sync::Arc;

use mesh_config::names::{ServiceName, TrustDomain};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::{Clients, H2, Outsiders, provider};
use crate::peer::{Leaf, Names, names_usages};
use crate::{Identity, Revoked, Svid, TrustBundle, clock};

/// id-kp-serverAuth and id-kp-clientAuth (RFC 5280 §4.2.1.12), for every certificate of the chain that names usages at
/// all: issuing CAs need not. That the leaf does is for [`must_name_usages`] to see.
const SERVER_AUTH: KeyUsage = KeyUsage::server_auth();
pub(super) const CLIENT_AUTH: KeyUsage = KeyUsage::client_auth();

/// Shows the own SVID, whichever it is now.
#[derive(Debug)]
pub(super) struct Own(pub Arc<Identity>);

impl ResolvesServerCert for Own {
    /// None ends the handshake. rustls refuses a client whose ALPN has no `h2` by itself, but takes one that sends no
    /// ALPN at all: that one ends here.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offers_h2 = hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == H2));
        offers_h2.then(|| Arc::clone(self.0.svid().certified()))
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.0.svid().certified()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Checks the SVIDs of clients.
#[derive(Debug)]
pub(super) struct ClientSvids {
    identity: Arc<Identity>,
    clients: Clients,
    /// Whose certificates pass too. None: nobody's.
    outsiders: Option<Arc<Outsiders>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientSvids {
    pub(super) fn new(identity: Arc<Identity>, clients: Clients) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { identity, clients, outsiders: None, algorithms }
    }

    pub(super) fn with_outsiders(self, outsiders: Arc<Outsiders>) -> Self {
        Self { outsiders: Some(outsiders), ..self }
    }

    /// The outside clients, if there are any and this certificate may be one's: not when it claims an id of the mesh.
    fn outsiders_for(&self, leaf: &CertificateDer<'_>) -> Option<&Outsiders> {
        let outsiders = self.outsiders.as_deref().filter(|outsiders| !outsiders.is_empty())?;
        let claims = Names::parse(leaf).is_ok_and(|names| names.claim(self.identity.id().trust_domain()));
        (!claims).then_some(outsiders)
    }
}

impl ClientCertVerifier for ClientSvids {
    fn client_auth_mandatory(&self) -> bool {
        self.clients == Clients::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // roots change while this lives, and a hint helps nobody who has one SVID
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(outsiders) = self.outsiders_for(leaf) {
            let (client, names) = outsiders.identify(&self.algorithms, leaf, intermediates, now)?;
            if self.identity.revoked().names_outside(&client, &names.serial) {
                return Err(Error::InvalidCertificate(CertificateError::Revoked));
            }
            return Ok(ClientCertVerified::assertion());
        }
        let check = Check { algorithms: &self.algorithms, bundle: &self.identity.bundle(), usage: CLIENT_AUTH };
        check.run(leaf, intermediates, now, &self.identity.revoked())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks the SVID of a server, which must be one certain service's.
#[derive(Debug)]
pub(super) struct ServerSvids {
    trust: Trust,
    expected: ServiceName,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Where the roots come from.
#[derive(Debug)]
enum Trust {
    Live(Arc<Identity>),
    /// Before there is an identity. Boxed for its size.
    Fixed(Box<TrustBundle>),
}

impl ServerSvids {
    pub(super) fn new(identity: Arc<Identity>, expected: ServiceName) -> Self {
        Self { trust: Trust::Live(identity), expected, algorithms: provider().signature_verification_algorithms }
    }

    pub(super) fn anonymous(bundle: TrustBundle, expected: ServiceName) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { trust: Trust::Fixed(Box::new(bundle)), expected, algorithms }
    }
}

impl ServerCertVerifier for ServerSvids {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let check = |bundle: &TrustBundle, revoked: &Revoked| {
            Check { algorithms: &self.algorithms, bundle, usage: SERVER_AUTH }.run(leaf, intermediates, now, revoked)
        };
        let leaf = match &self.trust {
            Trust::Live(identity) => check(&identity.bundle(), &identity.revoked())?,
            Trust::Fixed(bundle) => check(bundle, &Revoked::default())?,
        };
        if leaf.id.service_name() != Some(&self.expected) {
            return Err(refused(NotExpected { expected: self.expected.clone(), got: leaf.id.to_string() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Takes any server. See [`super::unverified_client_config`].
#[derive(Debug)]
pub(super) struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What every SVID must pass, whichever side shows it.
struct Check<'a> {
    algorithms: &'a WebPkiSupportedAlgorithms,
    bundle: &'a TrustBundle,
    usage: KeyUsage,
}

impl Check<'_> {
    fn run(
        self,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        revoked: &Revoked,
    ) -> Result<Leaf, Error> {
        let certificate = EndEntityCert::try_from(der).map_err(certificate_error)?;
        certificate
            .verify_for_usage(self.algorithms.all, self.bundle.anchors(), intermediates, now, self.usage, None, None)
            .map_err(certificate_error)?;
        must_name_usages(der)?;
        let leaf = Leaf::parse(der).map_err(refused)?;
        if leaf.id.trust_domain() != self.bundle.trust_domain() {
            return Err(refused(OtherTrustDomain(leaf.id.trust_domain().clone())));
        }
        if revoked.names(&leaf.id, &leaf.serial) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(leaf)
    }
}

/// Refuses a leaf without extended key usages, which webpki takes to be good for everything.
pub(super) fn must_name_usages(der: &CertificateDer<'_>) -> Result<(), Error> {
    if names_usages(der) { Ok(()) } else { Err(Error::InvalidCertificate(CertificateError::InvalidPurpose)) }
}

pub(super) fn check_own(svid: &Svid, bundle: &TrustBundle) -> Result<(), Error> {
    let [leaf, intermediates @ ..] = svid.chain() else { return Err(Error::NoCertificatesPresented) };
    let algorithms = provider().signature_verification_algorithms;
    let now = UnixTime::since_unix_epoch(clock::since_epoch());
    let check = Check { algorithms: &algorithms, bundle, usage: CLIENT_AUTH };
    check.run(leaf, intermediates, now, &Revoked::default()).map(|_| ())
}

#[derive(Debug, thiserror::Error)]
#[error("expected the server to be {expected}, it is {got}")]
struct NotExpected {
    expected: ServiceName,
    got: String,
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate is of trust domain {0}")]
struct OtherTrustDomain(TrustDomain);

pub(super) fn refused(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// Those that have an alert of their own get it; the rest is told as `certificate_unknown`.
pub(super) fn certificate_error(error: webpki::Error) -> Error {
    #[expect(clippy::wildcard_enum_match_arm, reason = "webpki's errors are many, open-ended, and all mean no")]
    Error::InvalidCertificate(match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(Webpki(other)))),
    })
}

struct Webpki(webpki::Error);

impl fmt::Debug for Webpki {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Display for Webpki {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the certificate does not pass: {}", self.0)
    }
}

impl std::error::Error for Webpki {}

/// Never reached: the configurations speak TLS 1.3 only.
fn tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}
