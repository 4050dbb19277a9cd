//! Channels to a service of the control plane.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_config::names::ServiceName;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use super::ending::Ending;
use crate::Identity;
use crate::tls::{self, TlsError};

/// A channel to `address` (`host:port`), where exactly the service `expected` must answer. Connects when first used and
/// again whenever the connection is gone; each attempt takes at most [`tls::CONNECT_DEADLINE`] twice over (TCP, then
/// TLS). A silent connection is given up after 15 s, that of a server which is revoked at once.
pub fn channel(address: impl Display, identity: &Arc<Identity>, expected: &ServiceName) -> Channel {
    connecting(address, tls::client_config(identity, expected), expected, Some(Arc::clone(identity)))
}

/// The same with a configuration that knows no revocations.
pub(crate) fn channel_with(address: impl Display, config: Arc<ClientConfig>, expected: &ServiceName) -> Channel {
    connecting(address, config, expected, None)
}

fn connecting(
    address: impl Display,
    config: Arc<ClientConfig>,
    expected: &ServiceName,
    identity: Option<Arc<Identity>>,
) -> Channel {
    let address: Arc<str> = address.to_string().into();
    // The authority is the service, not the address: the connector below decides where to go.
    let endpoint = Endpoint::from_shared(format!("https://{expected}"))
        .expect("a service name is a valid authority")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (address, config, identity) = (Arc::clone(&address), Arc::clone(&config), identity.clone());
        async move { Ok::<_, TlsError>(TokioIo::new(watched(connect(&address, &config).await?, identity))) }
    }))
}

/// The connection, until its server is revoked.
fn watched(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    identity: Option<Arc<Identity>>,
) -> Ending<tokio_rustls::client::TlsStream<TcpStream>> {
    let server = tls::peer(stream.get_ref().1);
    let end = async move {
        if let (Some(identity), Some(server)) = (identity, server) {
            server.until_revoked(&identity).await;
        } else {
            std::future::pending().await
        }
    };
    Ending::new(stream, None, end)
}

async fn connect(
    address: &str,
    config: &Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, TlsError> {
    let stream = tokio::time::timeout(tls::CONNECT_DEADLINE, TcpStream::connect(address))
        .await
        .map_err(|_| TlsError::Io(std::io::ErrorKind::TimedOut.into()))?
        .map_err(TlsError::Io)?;
    stream.set_nodelay(true).map_err(TlsError::Io)?;
    tls::connect(config, stream).await
}
