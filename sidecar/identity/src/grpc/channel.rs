//! Channels to a service of the control plane.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_config::names::ServiceName;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::Identity;
use crate::tls::{self, TlsError};

/// A channel to `address` (`host:port`), where exactly the service `expected` must answer. Connects when first used and
/// again whenever the connection is gone; each attempt takes at most [`tls::CONNECT_DEADLINE`] twice over (TCP, then
/// TLS). A silent connection is given up after 15 s.
pub fn channel(address: impl Display, identity: &Arc<Identity>, expected: &ServiceName) -> Channel {
    channel_with(address, tls::client_config(identity, expected), expected)
}

pub(crate) fn channel_with(address: impl Display, config: Arc<ClientConfig>, expected: &ServiceName) -> Channel {
    let address: Arc<str> = address.to_string().into();
    // The authority is the service, not the address: the connector below decides where to go.
    let endpoint = Endpoint::from_shared(format!("https://{expected}"))
        .expect("a service name is a valid authority")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (address, config) = (Arc::clone(&address), Arc::clone(&config));
        async move { connect(&address, &config).await.map(TokioIo::new) }
    }))
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
