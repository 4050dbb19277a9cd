//! Channels to a service of the control plane.

use std::fmt::Display;
use std::net::SocketAddr;
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
    let config = tls::client_config(identity, expected);
    connecting(vec![address.to_string()], config, expected, Some(Arc::clone(identity)))
}

/// The same to the first of `addresses` that a connection can be made to, in their order, each time that one is made.
/// None at all: it never connects.
pub fn channel_to_any(addresses: &[SocketAddr], identity: &Arc<Identity>, expected: &ServiceName) -> Channel {
    let addresses = addresses.iter().map(ToString::to_string).collect();
    connecting(addresses, tls::client_config(identity, expected), expected, Some(Arc::clone(identity)))
}

/// The same with a configuration that knows no revocations.
pub(crate) fn channel_with(address: impl Display, config: Arc<ClientConfig>, expected: &ServiceName) -> Channel {
    connecting(vec![address.to_string()], config, expected, None)
}

fn connecting(
    addresses: Vec<String>,
    config: Arc<ClientConfig>,
    expected: &ServiceName,
    identity: Option<Arc<Identity>>,
) -> Channel {
    let addresses: Arc<[String]> = addresses.into();
    // The authority is the service, not the address: the connector below decides where to go.
    let endpoint = Endpoint::from_shared(format!("https://{expected}"))
        .expect("a service name is a valid authority")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (addresses, config, identity) = (Arc::clone(&addresses), Arc::clone(&config), identity.clone());
        async move { Ok::<_, TlsError>(TokioIo::new(watched(connect_any(&addresses, &config).await?, identity))) }
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

/// The error is that of the first one.
async fn connect_any(
    addresses: &[String],
    config: &Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, TlsError> {
    let mut failed = None;
    for address in addresses {
        match connect(address, config).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or_else(|| TlsError::Io(std::io::ErrorKind::AddrNotAvailable.into())))
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::testing::{Ca, service};

    #[tokio::test]
    async fn who_does_not_answer_is_passed_over_and_the_first_error_is_told_when_nobody_does() {
        let ca = Ca::new("demo.example");
        let server = tls::server_config(&ca.identity("tenon-tcs"), tls::Clients::Required);
        let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Connections to it are made by the kernel, and nobody ever speaks.
        let (silent, good, gone) = (bind().await, bind().await, bind().await);
        let [silent_at, good_at, gone_at] = [&silent, &good, &gone].map(|one| one.local_addr().unwrap().to_string());
        drop(gone);
        tokio::spawn(async move {
            while let Ok((stream, _)) = good.accept().await {
                let _accepted = tls::accept(&server, stream).await;
            }
        });
        let config = tls::client_config(&ca.identity("wiki"), &service("tenon-tcs"));
        let stream = connect_any(&[gone_at.clone(), silent_at, good_at.clone()], &config).await.unwrap();
        assert_eq!(stream.get_ref().0.peer_addr().unwrap().to_string(), good_at);
        let error = connect_any(&[gone_at.clone(), gone_at], &config).await.unwrap_err();
        assert!(matches!(error, TlsError::Io(_)), "{error}");
        assert!(connect_any(&[], &config).await.is_err());
    }
}
