//! TLS between the processes of a mesh: 1.3 only, both sides with SVIDs, `h2` by ALPN, X25519MLKEM768 preferred.
//!
//! The configurations read the live [`Identity`] at each handshake. Sessions are never resumed: a resumed handshake
//! looks at no certificate, so it would outlive expiry and revocation.

mod outsiders;
mod verify;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_config::names::ServiceName;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::clock::Steady;
use crate::peer::{Leaf, OutsidePeer};
use crate::{Identity, Peer, Workload};

pub use outsiders::{Outsider, OutsiderError, Outsiders};

/// What a handshake may take before the connection is closed.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// What connecting and its handshake may take together.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

const H2: &[u8] = b"h2";

/// Whether a server takes clients that show no certificate. One that is shown is always checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// No certificate, no connection.
    Required,
    /// For the identity service, whose first callers have none yet.
    Optional,
}

/// Who a client of a sidecar's inbound listener has proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// A process of the mesh, by its SVID.
    Mesh(Peer),
    /// A client outside of the mesh that the policy names, by a certificate of its own CA.
    Outside(OutsidePeer),
}

impl Client {
    /// What rules call it; of an operator the name in its SPIFFE id.
    pub fn name(&self) -> &str {
        match self {
            Self::Mesh(peer) => match peer.id.workload() {
                Workload::Service(name) => name.as_str(),
                Workload::Operator(name) => name,
            },
            Self::Outside(peer) => &peer.name,
        }
    }

    /// Whether its service, its name or its certificate is revoked now.
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        match self {
            Self::Mesh(peer) => identity.is_revoked(peer),
            Self::Outside(peer) => identity.revoked().names_outside(&peer.name, &peer.serial),
        }
    }

    /// As [`Peer::until_revoked`].
    pub async fn until_revoked(&self, identity: &Identity) {
        identity.until(|| self.is_revoked(identity)).await;
    }
}

/// Why a connection did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The other side did not answer, or not in time.
    #[error("no connection: {0}")]
    Io(#[source] io::Error),
    /// One side refused the other in the handshake; the text of rustls says why.
    #[error("handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// The handshake did not end in time.
    #[error("the handshake took longer than {0:?}")]
    Deadline(Duration),
    /// The other side did not agree to HTTP/2 by ALPN.
    #[error("the other side did not offer h2 by ALPN")]
    NoH2,
}

/// For servers. The client's SVID must chain to the bundle with EKU clientAuth, have exactly one URI name, a SPIFFE id
/// of the own trust domain, be within its time and not revoked. A client that does not offer `h2` is refused before a
/// certificate is shown to it.
pub fn server_config(identity: &Arc<Identity>, clients: Clients) -> Arc<ServerConfig> {
    finish_server(identity, verify::ClientSvids::new(Arc::clone(identity), clients))
}

/// For the inbound listener of a sidecar: as [`server_config`], and clients outside of the mesh are taken too. A
/// certificate that claims a SPIFFE id of the own trust domain must be an SVID; any other is that of the one outside
/// client whose CA it chains to, with EKU clientAuth, and one of whose names it carries. Go on with [`accept_client`].
pub fn inbound_config(identity: &Arc<Identity>, outsiders: Arc<Outsiders>) -> Arc<ServerConfig> {
    let verifier = verify::ClientSvids::new(Arc::clone(identity), Clients::Required);
    finish_server(identity, verifier.with_outsiders(outsiders))
}

fn finish_server(identity: &Arc<Identity>, clients: verify::ClientSvids) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(Steady))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(Arc::new(verify::Own(Arc::clone(identity))));
    config.alpn_protocols = vec![H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// For clients. The server's SVID must chain to the bundle with EKU serverAuth and be exactly `expected` of the own
/// trust domain, within its time and not revoked. The own SVID is shown.
pub fn client_config(identity: &Arc<Identity>, expected: &ServiceName) -> Arc<ClientConfig> {
    let verifier = verify::ServerSvids::new(Arc::clone(identity), expected.clone());
    let config =
        client_builder(Arc::new(verifier)).with_client_cert_resolver(Arc::new(verify::Own(Arc::clone(identity))));
    Arc::new(finish_client(config))
}

/// For a process that has no SVID yet: trusts `bundle`, shows nothing.
pub(crate) fn anonymous_client_config(bundle: crate::TrustBundle, expected: &ServiceName) -> Arc<ClientConfig> {
    let verifier = verify::ServerSvids::anonymous(bundle, expected.clone());
    Arc::new(finish_client(client_builder(Arc::new(verifier)).with_no_client_auth()))
}

/// Trusts whoever answers. Only to fetch a trust bundle whose pin is compared before anything else is done with it.
pub(crate) fn unverified_client_config() -> Arc<ClientConfig> {
    Arc::new(finish_client(client_builder(Arc::new(verify::Anyone)).with_no_client_auth()))
}

/// What the other side of an established connection has proved. None when it showed no certificate.
pub fn peer(connection: &CommonState) -> Option<Peer> {
    let leaf = connection.peer_certificates()?.first()?;
    Leaf::parse(leaf).ok().map(Leaf::into_peer)
}

/// Does the server's side of a handshake, within [`HANDSHAKE_DEADLINE`].
///
/// # Errors
/// The other side was refused, refused us, was too slow, or did not agree to `h2`. The connection is closed then.
pub async fn accept<T>(
    config: &Arc<ServerConfig>,
    stream: T,
) -> Result<(tokio_rustls::server::TlsStream<T>, Option<Peer>), TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake)
        .await
        .map_err(|_| TlsError::Deadline(HANDSHAKE_DEADLINE))?
        .map_err(TlsError::Handshake)?;
    let connection = stream.get_ref().1;
    if connection.alpn_protocol() != Some(H2) {
        return Err(TlsError::NoH2);
    }
    let peer = peer(connection);
    Ok((stream, peer))
}

/// Does the server's side of a handshake of [`inbound_config`], with the same `identity` and `outsiders`.
///
/// # Errors
/// As [`accept`]; also when the client was taken back while it shook hands.
pub async fn accept_client<T>(
    config: &Arc<ServerConfig>,
    identity: &Identity,
    outsiders: &Outsiders,
    stream: T,
) -> Result<(tokio_rustls::server::TlsStream<T>, Client), TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (stream, peer) = accept(config, stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let client = match peer {
        Some(peer) if peer.id.trust_domain() == identity.id().trust_domain() => Client::Mesh(peer),
        // rustls has no way to hand on what its verifier found: it is found once more.
        Some(_) | None => match outsiders.peer(chain, &identity.revoked()) {
            Ok(peer) => Client::Outside(peer),
            Err(error) => return Err(TlsError::Handshake(io::Error::other(error))),
        },
    };
    Ok((stream, client))
}

/// Does the client's side of a handshake, within [`CONNECT_DEADLINE`].
///
/// # Errors
/// As [`accept`].
pub async fn connect<T>(config: &Arc<ClientConfig>, stream: T) -> Result<tokio_rustls::client::TlsStream<T>, TlsError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsConnector::from(Arc::clone(config)).connect(server_name(), stream);
    let stream = tokio::time::timeout(CONNECT_DEADLINE, handshake)
        .await
        .map_err(|_| TlsError::Deadline(CONNECT_DEADLINE))?
        .map_err(TlsError::Handshake)?;
    if stream.get_ref().1.alpn_protocol() != Some(H2) {
        return Err(TlsError::NoH2);
    }
    Ok(stream)
}

/// Whether `svid` would pass as a client's under `bundle` right now.
pub(crate) fn check_own(svid: &crate::Svid, bundle: &crate::TrustBundle) -> Result<(), rustls::Error> {
    verify::check_own(svid, bundle)
}

/// What to hand to rustls where it wants a name: it is neither sent nor compared, SPIFFE ids are.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("mesh.invalid").expect("a DNS name")
}

fn client_builder(
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_details(provider(), Arc::new(Steady))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

fn finish_client(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

/// aws-lc-rs, named, so that nothing depends on a process-wide default.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

#[cfg(test)]
mod tests;
