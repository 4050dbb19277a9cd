//! Memory of a sidecar as a whole is bounded: streams that nobody reads are ended before it is used up.

use std::{future::poll_fn, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{SendStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Request, Response};
use integration::{
    by_hand::Instance,
    calls::http_get,
    mesh::{Mesh, Plan, SOON},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

/// With an own `Route`, so that not the limit on calls at the app refuses them.
const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: pour}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: pour}
spec:
  service: pour
  rules:
    - {name: all, callers: [wiki], paths: [/pour.v1.Pour/*], tenant: none}
---
apiVersion: tenon.dev/v1
kind: Route
metadata: {name: pour}
spec: {service: pour, limits: {minConcurrent: 4000, maxConcurrent: 4000}}
";

/// Streams that the reader never reads. Each makes the callee's sidecar hold 256 KiB: four times its budget together.
const UNREAD: usize = 1_000;
const BUDGET: u64 = 64 << 20;

/// `Endless` sends for as long as there is room; anything else is answered at once.
async fn app(address: SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("the port is ours");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let head = Response::builder().header("content-type", "application/grpc");
                        let Ok(mut stream) = respond.send_response(head.body(()).expect("a head"), false) else {
                            return;
                        };
                        if request.uri().path().ends_with("/Endless") {
                            return pour(stream).await;
                        }
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static("0"));
                        let _the_caller_is_gone = stream.send_trailers(trailers);
                    });
                }
            });
        }
    });
}

async fn pour(mut stream: SendStream<Bytes>) {
    let data = Bytes::from(vec![0; 16 << 10]);
    loop {
        stream.reserve_capacity(data.len());
        while stream.capacity() < data.len() {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
        if stream.send_data(data.clone(), false).is_err() {
            return;
        }
    }
}

async fn connect(mesh: &Mesh) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn request(method: &str) -> Request<()> {
    let request = Request::post(format!("http://pour/pour.v1.Pour/{method}"));
    request.header("content-type", "application/grpc").body(()).expect("a request")
}

/// Whether a call passes.
async fn passes(sender: &SendRequest<Bytes>) -> bool {
    let Ok(mut sender) = sender.clone().ready().await else { return false };
    let Ok((answer, _)) = sender.send_request(request("Once"), true) else { return false };
    // A refusal has its status in the head.
    answer.await.is_ok_and(|answer| answer.headers().get("grpc-status").is_none())
}

async fn gauge(admin: SocketAddr, name: &str) -> u64 {
    let metrics = http_get(admin, "/metrics").await.expect("metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_nobody_reads_are_ended_before_memory_is_used_up() {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY);
    let mesh = plan.caller("wiki", "us-east").start().expect("the mesh starts");
    let pouring = Instance::plan(&mesh, "pour", "pour").expect("a plan");
    let mut pouring = pouring.option("--memory-limit", "64MiB");
    app(pouring.app()).await;
    pouring.start_sidecar().expect("a sidecar");
    pouring.registered().await.expect("registered");
    let (good, bad) = (connect(&mesh).await, connect(&mesh).await);
    let began = Instant::now();
    while !passes(&good).await {
        assert!(began.elapsed() < SOON, "no call ever passes");
        sleep(Duration::from_millis(20)).await;
    }
    let mut unread = Vec::new();
    for number in 0..UNREAD {
        // Memory is looked at ten times a second: what is opened in between is not refused yet.
        if number % 50 == 0 {
            sleep(Duration::from_millis(100)).await;
        }
        let mut bad = bad.clone().ready().await.expect("room for streams");
        unread.push(bad.send_request(request("Endless"), true).expect("sent"));
    }
    let (began, mut most, mut shed) = (Instant::now(), 0, 0);
    while shed == 0 || !passes(&good).await {
        assert!(began.elapsed() < SOON * 2, "{shed} streams were ended, {most} bytes were in use");
        most = most.max(gauge(pouring.admin(), "tenon_memory_used_bytes").await);
        shed = gauge(pouring.admin(), "tenon_memory_shed_calls_total").await;
        sleep(Duration::from_millis(50)).await;
    }
    println!("{shed} streams were ended; {most} bytes were in use at the most, after {:?}", began.elapsed());
    assert!(most < BUDGET * 3, "new streams are refused above the budget: {most}");
    drop(unread);
}
