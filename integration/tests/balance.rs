//! An instance that fails gets no calls, and gets them again when it is well: three apps, one of which answers UNAVAILABLE.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use integration::{
    calls::http_get,
    mesh::{Mesh, Plan, SOON},
};
use tokio::net::{TcpListener, TcpStream};

const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: shop}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: shop}
spec:
  service: shop
  rules: [{name: all, callers: [wiki], paths: [/shop.v1.Shop/*], tenant: none}]
---
apiVersion: tenon.dev/v1
kind: Route
metadata: {name: shop}
spec:
  service: shop
  slowStart: 1s
  outliers: {consecutiveFailures: 5, ejection: 1s}
";

/// An app that does as it is told, and counts.
#[derive(Default)]
struct App {
    fails: AtomicBool,
    calls: AtomicU32,
}

async fn serve(app: Arc<App>, address: SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("the port is ours");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let app = Arc::clone(&app);
            tokio::spawn(async move {
                // Some connections only ask whether somebody listens.
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    app.calls.fetch_add(1, Relaxed);
                    let head = Response::builder().header("content-type", "application/grpc");
                    if app.fails.load(Relaxed) {
                        let head = head.header("grpc-status", "14").body(()).expect("a head");
                        respond.send_response(head, true).expect("sent");
                    } else {
                        let mut body = respond.send_response(head.body(()).expect("a head"), false).expect("sent");
                        let trailers = HeaderMap::from_iter([(
                            "grpc-status".parse().expect("a name"),
                            "0".parse().expect("a value"),
                        )]);
                        body.send_trailers(trailers).expect("sent");
                    }
                }
            });
        }
    });
}

/// One call of the app `wiki`; what `grpc-status` says.
async fn call(sender: &mut SendRequest<Bytes>) -> String {
    let request = Request::post("http://shop/shop.v1.Shop/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (answer, _) = sender.send_request(request.body(()).expect("a request"), true).expect("sent");
    let (head, mut body) = answer.await.expect("an answer").into_parts();
    while body.data().await.is_some() {}
    let trailers = body.trailers().await.expect("an end").unwrap_or_default();
    let status = head.headers.get("grpc-status").or(trailers.get("grpc-status")).expect("a status");
    status.to_str().expect("text").to_owned()
}

struct World {
    mesh: Mesh,
    apps: Vec<Arc<App>>,
    sender: SendRequest<Bytes>,
}

impl World {
    async fn start() -> Self {
        let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY);
        let plan = (0..3).fold(plan, |plan, _| plan.app_elsewhere("shop", "us-east")).caller("wiki", "us-east");
        let mesh = plan.start().expect("the mesh starts");
        let mut apps = Vec::new();
        for address in mesh.apps("shop") {
            let app = Arc::new(App::default());
            serve(Arc::clone(&app), address).await;
            apps.push(app);
        }
        let stream = TcpStream::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens");
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self { mesh, apps, sender: sender.ready().await.expect("ready") }
    }

    /// So many calls, eight at a time, so that latencies of the moment do not decide alone. How many failed, and how many
    /// each app got.
    async fn calls(&mut self, count: u32) -> (u32, Vec<u32>) {
        let before: Vec<u32> = self.apps.iter().map(|app| app.calls.load(Relaxed)).collect();
        let mut failed = 0;
        for _ in 0..count / 8 {
            let eight = (0..8).map(|_| {
                let mut sender = self.sender.clone();
                async move { call(&mut sender).await }
            });
            failed += futures_util::future::join_all(eight).await.iter().filter(|status| *status != "0").count() as u32;
        }
        let got = self.apps.iter().zip(before).map(|(app, before)| app.calls.load(Relaxed) - before).collect();
        (failed, got)
    }

    async fn metric(&self, line: &str) -> bool {
        let admin = self.mesh.admin("wiki", "us-east");
        http_get(admin, "/metrics").await.expect("metrics").lines().any(|said| said == line)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_answers_unavailable_gets_next_to_no_calls_until_it_is_well() {
    let mut world = World::start().await;
    let (failed, got) = world.calls(400).await;
    assert_eq!(failed, 0);
    assert!(got.iter().all(|calls| *calls > 20), "each gets calls: {got:?}");

    world.apps[1].fails.store(true, Relaxed);
    let began = Instant::now();
    while !world.metric("tenon_endpoints{service=\"shop\",state=\"ejected\"} 1").await {
        world.calls(40).await;
        assert!(began.elapsed() < SOON, "it is not ejected");
    }
    let (failed, got) = world.calls(800).await;
    // One call at a time finds out whether it is well again.
    assert!(failed <= 8 && got[1] <= 8, "{failed} failed, {got:?}");
    assert!(got[0] > 100 && got[2] > 100, "the others share the rest: {got:?}");

    world.apps[1].fails.store(false, Relaxed);
    let began = Instant::now();
    loop {
        let (failed, got) = world.calls(400).await;
        assert_eq!(failed, 0, "it is well");
        if got[1] > 40 {
            break;
        }
        assert!(began.elapsed() < SOON + Duration::from_secs(10), "it does not get its share again: {got:?}");
    }
    assert!(world.metric("tenon_endpoints{service=\"shop\",state=\"ejected\"} 0").await);
    assert!(world.metric("tenon_endpoint_ejections_total{service=\"shop\",cause=\"consecutive_failures\"} 1").await);
    let config = http_get(world.mesh.admin("wiki", "us-east"), "/config").await.expect("the configuration");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["destinations"][0]["service"], "shop");
    assert_eq!(config["destinations"][0]["instances"].as_array().map(Vec::len), Some(3));
}
