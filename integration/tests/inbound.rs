//! The inbound listener of a real sidecar, approached by whoever should not get in, and by those who should.

use std::{fs, net::SocketAddr, sync::Arc};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration::mesh::{Mesh, Plan};
use mesh_asap::SigningKey;
use mesh_identity::{
    Identity, clock,
    join::{self, Joined},
    testing::{self, Ca, Certificate, Leaf, service},
    tls,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

const LIST: &str = "/media.v1.Media/List";

fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    mesh.import(&[json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east",
        "products": {"media": {"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}}}
    })])
    .expect("imported");
    mesh
}

/// The mesh's own root, as somebody has it who may make any certificate.
fn root(mesh: &Mesh) -> Ca {
    let read = |name: &str| fs::read_to_string(mesh.data_dir().join("ca").join(name)).expect("the CA's file");
    let domain = testing::trust_domain("test.example");
    let bundle = mesh_identity::TrustBundle::from_pem(domain, &read("root.pem")).expect("a bundle");
    Ca::from_parts("test.example", bundle.roots()[0].clone(), &read("root.key"))
}

/// A process of this service, joined to the mesh like any other.
async fn joined(mesh: &Mesh, name: &str) -> Joined {
    let token = mesh.tenon_ok(&["identity", "join-token", "--service", name]).expect("a join token");
    let file = mesh.mesh_file().expect("mesh.json");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    join::join(join::Config {
        identity_address: text(&file["controlPlane"]["identity"]).parse().expect("an address"),
        pin: text(&file["trustBundleSha256"]),
        attestation: join::Attestation::join_token(token.trim()),
        service: service(name),
        state_dir: mesh.scratch().join(format!("joined-{name}-{}", clock::since_epoch().as_nanos())),
    })
    .await
    .expect("joins")
}

/// Whether somebody with this certificate gets as far as an HTTP/2 SETTINGS frame of the sidecar.
async fn gets_in(inbound: SocketAddr, shown: Option<Certificate>, alpn: &[&[u8]]) -> bool {
    let tcp = TcpStream::connect(inbound).await.expect("the listener accepts");
    let connector = TlsConnector::from(testing::client_config(shown, alpn));
    let Ok(mut tls) = connector.connect(tls::server_name(), tcp).await else { return false };
    // In TLS 1.3 the client learns only afterwards that its certificate was refused.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    if tls.write_all(hello).await.is_err() {
        return false;
    }
    let mut first = [0; 9];
    tls.read_exact(&mut first).await.is_ok() && first[3] == 4
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_certificate_of_the_mesh_gets_past_the_inbound_listener() {
    let mesh = mesh();
    let inbound = mesh.inbound("media", "us-east");
    let (ours, other) = (root(&mesh), Ca::new("test.example"));
    let good = || Leaf::uri("spiffe://test.example/svc/issues");
    let now = clock::unix_seconds();
    let twice = || vec![good().uris[0].clone(), "spiffe://test.example/svc/wiki".to_owned()];
    let cases: Vec<(&str, bool, Option<Certificate>)> = vec![
        ("a good one", true, Some(ours.certificate(&good()))),
        ("another CA", false, Some(other.certificate(&good()))),
        ("another trust domain", false, Some(ours.certificate(&Leaf::uri("spiffe://other.example/svc/issues")))),
        ("no URI name", false, Some(ours.certificate(&Leaf { uris: vec![], dns: vec!["issues".into()], ..good() }))),
        ("two URI names", false, Some(ours.certificate(&Leaf { uris: twice(), ..good() }))),
        ("expired", false, Some(ours.certificate(&Leaf { not_before: now - 7200, not_after: now - 3600, ..good() }))),
        (
            "not yet valid",
            false,
            Some(ours.certificate(&Leaf { not_before: now + 600, not_after: now + 3600, ..good() })),
        ),
        ("a URI that is no SPIFFE id", false, Some(ours.certificate(&Leaf::uri("https://test.example/svc/issues")))),
        ("an authority", false, Some(ours.certificate(&Leaf { authority: true, ..good() }))),
        ("none at all", false, None),
    ];
    for (what, expected, shown) in cases {
        assert_eq!(gets_in(inbound, shown, &[b"h2"]).await, expected, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_offer_h2_is_refused_before_its_first_frame() {
    let mesh = mesh();
    let inbound = mesh.inbound("media", "us-east");
    let ours = root(&mesh);
    let certificate = || Some(ours.certificate(&Leaf::uri("spiffe://test.example/svc/issues")));
    assert!(gets_in(inbound, certificate(), &[b"h2"]).await);
    assert!(!gets_in(inbound, certificate(), &[b"http/1.1"]).await);
    assert!(!gets_in(inbound, certificate(), &[]).await);
}

/// One call straight to the inbound listener; the HTTP status and the body, or the gRPC refusal's message.
async fn call(inbound: SocketAddr, identity: &Arc<Identity>, headers: &[(&str, &str)]) -> (u16, String) {
    let tcp = TcpStream::connect(inbound).await.expect("connects");
    let stream = tls::connect(&tls::client_config(identity, &service("media")), tcp).await.expect("the handshake");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut request = http::Request::post(format!("https://media{LIST}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).expect("a request")).await;
    let response = response.expect("an answer");
    let status = response.status().as_u16();
    let message = response.headers().get("grpc-message").map(|value| value.to_str().expect("text").to_owned());
    let authenticate = response.headers().get("www-authenticate").map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(authenticate.as_deref(), (status == 401).then_some("Bearer"));
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    drop(sender);
    connection.abort();
    (status, message.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()))
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const TENANT: (&str, &str) = ("x-tenant-id", "acme");

fn token(key: &SigningKey, audience: &str, age_seconds: u64, life_seconds: u64) -> String {
    key.mint(audience, clock::unix_seconds() - age_seconds, life_seconds)
}

/// The expected reason, who calls, and with which headers.
type Case<'c> = (&'c str, &'c Arc<Identity>, Vec<(&'c str, String)>);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_in_which_a_token_can_be_wrong_has_its_reason() {
    let mesh = mesh();
    let inbound = mesh.inbound("media", "us-east");
    let (issues, wiki) = (joined(&mesh, "issues").await, joined(&mesh, "wiki").await);
    let key = &issues.asap_key;
    let good = token(key, "media", 0, 300);
    // Until the key set of this sidecar has the new key its tokens are unknown.
    let mut reason = String::new();
    for _ in 0..500 {
        reason = call(inbound, &issues.identity, &[GRPC, TENANT, ("x-asap-token", &good)]).await.1;
        if !reason.starts_with("ASAP_KEY_UNKNOWN") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!reason.starts_with("ASAP"), "{reason}");

    let stranger = SigningKey::generate("issues").expect("a key");
    let mut forged = good.clone();
    let flipped = if forged.pop() == Some('A') { 'Q' } else { 'A' };
    forged.push(flipped);
    let cases: Vec<Case<'_>> = vec![
        ("ASAP_MISSING", &issues.identity, vec![]),
        ("ASAP_MALFORMED", &issues.identity, vec![("x-asap-token", "nonsense".into())]),
        ("ASAP_MALFORMED", &issues.identity, vec![("x-asap-token", good.clone()), ("x-asap-token", good.clone())]),
        ("ASAP_KEY_UNKNOWN", &issues.identity, vec![("x-asap-token", token(&stranger, "media", 0, 300))]),
        ("ASAP_SIGNATURE", &issues.identity, vec![("x-asap-token", forged)]),
        ("ASAP_EXPIRED", &issues.identity, vec![("x-asap-token", token(key, "media", 400, 300))]),
        ("ASAP_LIFETIME", &issues.identity, vec![("x-asap-token", token(key, "media", 0, 3601))]),
        ("ASAP_AUDIENCE", &issues.identity, vec![("x-asap-token", token(key, "wiki", 0, 300))]),
        // A token of service A sent by service B.
        ("ASAP_ISSUER", &wiki.identity, vec![("x-asap-token", good.clone())]),
        ("ASAP_ISSUER", &wiki.identity, vec![("authorization", format!("Bearer {good}"))]),
    ];
    for (expected, identity, headers) in cases {
        let mut all = vec![GRPC, TENANT];
        all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
        let (status, message) = call(inbound, identity, &all).await;
        assert_eq!(status, 200, "a gRPC refusal is Trailers-Only: {message}");
        assert!(message.starts_with(&format!("{expected}: ")), "expected {expected}, got {message}");
        assert!(!message.contains(&good[..20]), "a token stands in a refusal");
    }
    // What the caller saw of its tenant and this replica never reaches: refused after the wait, not served stale.
    let headers = [GRPC, TENANT, ("x-asap-token", &good), ("x-tenant-revision", "99999999999999.1")];
    let (_, message) = call(inbound, &issues.identity, &headers).await;
    assert!(message.starts_with("TENANT_STALE: "), "{message}");
    // Clients outside of the mesh send it as a bearer; the same token then passes.
    let bearer = format!("Bearer {good}");
    let (_, message) = call(inbound, &issues.identity, &[GRPC, TENANT, ("authorization", &bearer)]).await;
    assert!(!message.starts_with("ASAP"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_not_grpc_is_refused_over_http() {
    let mesh = mesh();
    let inbound = mesh.inbound("media", "us-east");
    let wiki = joined(&mesh, "wiki").await;
    let (status, body) = call(inbound, &wiki.identity, &[TENANT]).await;
    assert_eq!(status, 401);
    let problem: serde_json::Value = serde_json::from_str(&body).expect("application/problem+json");
    assert_eq!(problem["reason"], "ASAP_MISSING");
    assert_eq!(problem["metadata"]["caller"], "wiki");
    assert_eq!(problem["metadata"]["path"], LIST);
}
