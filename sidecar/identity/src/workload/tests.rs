use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use spiffe::WorkloadApiClient;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::Identity;
use crate::testing::{Ca, service};

fn source(path: &Path, name: &str) -> Source {
    let socket = format!("unix://{}", path.display()).parse().unwrap();
    Source { socket, service: service(name), trust_domain: crate::testing::trust_domain("test.example") }
}

/// A Workload API that has `identity`.
struct Agent {
    shutdown: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Agent {
    async fn start(path: &Path, identity: &Arc<Identity>) -> Self {
        let _left_by_the_one_before = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Arc::clone(identity), shutdown.clone(), shutdown.clone()));
        Self { shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

async fn soon(what: &str, mut until: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !until() {
        assert!(tokio::time::Instant::now() < deadline, "not in 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn only_absolute_unix_paths_name_a_socket() {
    for (text, path) in [("unix:///run/a.sock", "/run/a.sock"), ("unix:/run/a.sock", "/run/a.sock")] {
        assert_eq!(text.parse::<Socket>().unwrap().path(), Path::new(path));
    }
    for text in [
        "",
        "/run/a.sock",
        "unix:",
        "unix:/",
        "unix:a.sock",
        "unix://host/a.sock",
        "unix:////a",
        "tcp://127.0.0.1:1",
        "unix:/a?b",
    ] {
        assert!(text.parse::<Socket>().is_err(), "{text}");
    }
}

#[tokio::test]
async fn the_spiffe_crate_gets_svid_and_bundle_and_every_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let (ca, next) = (Ca::new("test.example"), Ca::new("test.example"));
    let identity = ca.identity("media");
    let agent = Agent::start(&path, &identity).await;

    let client = WorkloadApiClient::connect_to(format!("unix://{}", path.display())).await.unwrap();
    let svid = client.fetch_x509_svid().await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://test.example/svc/media");
    assert_eq!(svid.cert_chain()[0].as_bytes(), identity.svid().chain()[0].as_ref());
    let bundles = client.fetch_x509_bundles().await.unwrap();
    let bundle = bundles.get(&spiffe::TrustDomain::new("test.example").unwrap()).unwrap();
    assert_eq!(bundle.authorities()[0].as_bytes(), ca.root().as_ref());

    let mut updates = client.stream_x509_contexts().await.unwrap();
    updates.next().await.unwrap().unwrap();
    let both = crate::TrustBundle::new(
        crate::testing::trust_domain("test.example"),
        vec![ca.root().clone(), next.root().clone()],
    );
    identity.set_bundle(both.unwrap()).unwrap();
    identity.set_svid(next.svid("media")).unwrap();
    loop {
        let context = updates.next().await.unwrap().unwrap();
        let svid = context.default_svid().unwrap();
        let bundle = context.bundle_set().get(&spiffe::TrustDomain::new("test.example").unwrap()).unwrap().clone();
        if svid.cert_chain()[0].as_bytes() == identity.svid().chain()[0].as_ref() {
            assert_eq!(bundle.authorities().len(), 2);
            break;
        }
    }
    agent.stop().await;
}

#[tokio::test]
async fn an_identity_is_taken_and_follows_what_the_api_says_through_outages() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let ca = Ca::new("test.example");
    let there = ca.identity("media");
    let agent = Agent::start(&path, &there).await;

    let here = take(&source(&path, "media")).await.unwrap();
    assert_eq!((here.id(), here.svid().serial()), (there.id(), there.svid().serial()));
    let shutdown = CancellationToken::new();
    let following = follow(source(&path, "media"), Arc::clone(&here), shutdown.clone());

    let renewed = ca.svid("media");
    let serial = renewed.serial().to_owned();
    there.set_svid(renewed).unwrap();
    soon("the renewed SVID is in use", || here.svid().serial() == serial).await;

    agent.stop().await;
    let again = ca.identity("media");
    let agent = Agent::start(&path, &again).await;
    soon("the new agent is followed", || here.svid().serial() == again.svid().serial()).await;

    shutdown.cancel();
    following.await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn what_the_api_has_is_held_to_name_chain_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    assert!(matches!(take(&source(&path, "media")).await, Err(TakeError::Unreachable { .. })));

    let (ca, stranger) = (Ca::new("test.example"), Ca::new("test.example"));
    let agent = Agent::start(&path, &ca.identity("issues")).await;
    let error = take(&source(&path, "media")).await.unwrap_err();
    assert!(matches!(error, TakeError::Other { .. }), "{error}");
    assert!(error.to_string().contains("svc/media") && error.to_string().contains("svc/issues"), "{error}");
    agent.stop().await;

    let agent = Agent::start(&path, &Identity::new(stranger.svid("media"), ca.bundle())).await;
    let error = take(&source(&path, "media")).await.unwrap_err();
    assert!(matches!(error, TakeError::Unusable { .. }), "{error}");
    agent.stop().await;

    let now = crate::clock::unix_seconds();
    let uri = ca.id("media").to_string();
    let ended = crate::testing::Leaf { not_before: now - 60, not_after: now - 30, ..crate::testing::Leaf::uri(&uri) };
    let agent = Agent::start(&path, &Identity::new(ca.svid_of(&ended), ca.bundle())).await;
    let error = take(&source(&path, "media")).await.unwrap_err();
    assert!(matches!(error, TakeError::Denied { .. }), "{error}");
    agent.stop().await;
}

#[tokio::test]
async fn a_request_without_the_security_header_gets_nothing() {
    use tenon_proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let agent = Agent::start(&path, &Ca::new("test.example").identity("media")).await;
    let to = path.clone();
    let connector = tower::service_fn(move |_| {
        let to = to.clone();
        async move { tokio::net::UnixStream::connect(to).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://api.invalid");
    let mut client = SpiffeWorkloadApiClient::new(endpoint.connect_with_connector(connector).await.unwrap());
    let status = client.fetch_x509svid(tenon_proto::spiffe::X509svidRequest {}).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let status = client.fetch_x509_bundles(tenon_proto::spiffe::X509BundlesRequest {}).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    drop(client);
    agent.stop().await;
}
