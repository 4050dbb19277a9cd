//! Does the key repository answer, as any ASAP library would ask it?

use std::sync::Arc;

use http_body_util::Empty;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use mesh_identity::tls;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Finding, catalogue, certificates};
use crate::operator::Mesh;

/// What people call it.
const SUBJECT: &str = "key repository";

/// Asks it for the trust bundle, over TLS that trusts the mesh's roots alone and holds it to its name.
pub async fn check(mesh: &Mesh) -> Finding {
    let address = certificates::reachable(mesh.file().control_plane.key_repository);
    match timeout(tls::HANDSHAKE_DEADLINE, ask(mesh, address)).await {
        Ok(Ok(())) => Finding::ok(catalogue::KEY_REPOSITORY, SUBJECT, format!("serves https://{address}/")),
        answer => {
            let problem =
                answer.map_or_else(|_| "no answer in time".to_owned(), |answer| answer.err().unwrap_or_default());
            Finding::bad(
                catalogue::KEY_REPOSITORY,
                SUBJECT,
                format!("https://{address}/: {problem}"),
                format!(
                    "it is part of the identity service: read {}. The mesh itself does not need it, ASAP libraries outside do",
                    mesh.data().log("identity").display()
                ),
            )
        }
    }
}

async fn ask(mesh: &Mesh, address: std::net::SocketAddr) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let mut roots = RootCertStore::empty();
    for root in mesh.identity().bundle().roots() {
        roots.add(root.clone()).map_err(|error| text(&error))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| text(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    let name = ServerName::from(address.ip());
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| text(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    // Ends with its sender.
    drop(tokio::spawn(connection));
    let request = Request::get("/trust-bundle.pem").header("host", address.to_string());
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| text(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| text(&error))?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answers {}", answer.status())) }
}
