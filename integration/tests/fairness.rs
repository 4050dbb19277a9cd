//! What a callee's sidecar takes on: a tenant at twenty times its share takes nobody's, and the rate of a rule holds for
//! each tenant over all workers; and what nobody reads is let go of before memory is used up.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response};
use integration::{
    calls::{http_get, reason},
    mesh::{Mesh, Plan, SOON},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tonic::Status;
use tonic_types::StatusExt as _;

const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: slow}
spec: {product: slow}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: slow}
spec:
  service: slow
  rules:
    - {name: rated, callers: [wiki], paths: [/slow.v1.Slow/Rated], rate: {perTenant: 100/s, burst: 40}}
    - {name: all, callers: [wiki], paths: [/slow.v1.Slow/*]}
";

/// Calls that the app works on at once, and for how long on each.
const SERVERS: usize = 8;
const WORK: Duration = Duration::from_millis(400);
/// Of two tenants, in calls a second.
const SHARE: u32 = 10;

fn mesh() -> Mesh {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY);
    let mesh = plan.app_elsewhere("slow", "us-east").caller("wiki", "us-east").start().expect("the mesh starts");
    let products = json!({"slow": {"state": "ACTIVE"}});
    let tenant = |id: &str| json!({"tenantId": id, "status": "ACTIVE", "region": "us-east", "products": products});
    mesh.import(&[tenant("acme"), tenant("globex")]).expect("imported");
    mesh
}

/// An app with few servers and one queue.
async fn app(address: SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("the port is ours");
    let servers = Arc::new(Semaphore::new(SERVERS));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let servers = Arc::clone(&servers);
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let servers = Arc::clone(&servers);
                    tokio::spawn(async move {
                        if request.uri().path().ends_with("/Work") {
                            let _server = servers.acquire().await.expect("never closed");
                            sleep(WORK).await;
                        }
                        let head = Response::builder().header("content-type", "application/grpc");
                        let head = head.body(()).expect("a head");
                        let Ok(mut stream) = respond.send_response(head, false) else { return };
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static("0"));
                        let _the_caller_is_gone = stream.send_trailers(trailers);
                    });
                }
            });
        }
    });
}

async fn connect(mesh: &Mesh) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

async fn call(sender: &SendRequest<Bytes>, method: &str, tenant: &str) -> Result<(), Status> {
    let request = Request::post(format!("http://slow/slow.v1.Slow/{method}"))
        .header("content-type", "application/grpc")
        .header("x-tenant-id", tenant)
        .body(())
        .expect("a request");
    let broken = |error: h2::Error| Status::unknown(error.to_string());
    let mut sender = sender.clone().ready().await.map_err(broken)?;
    let (answer, _) = sender.send_request(request, true).map_err(broken)?;
    let answer = answer.await.map_err(broken)?;
    match Status::from_header_map(answer.headers()) {
        Some(status) => Err(status),
        None => Ok(()),
    }
}

async fn until_allowed(sender: &SendRequest<Bytes>, tenant: &str) {
    let began = Instant::now();
    while let Err(status) = call(sender, "Get", tenant).await {
        assert!(began.elapsed() < SOON, "calls never pass: {status}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What became of calls that came at a fixed rate.
#[derive(Default)]
struct Tally {
    passed: Vec<Duration>,
    /// The reasons of those that did not.
    refused: Vec<String>,
}

impl Tally {
    fn success(&self) -> f64 {
        let (passed, refused) = (self.passed.len() as f64, self.refused.len() as f64);
        passed / (passed + refused)
    }

    fn p99(&self) -> Duration {
        let mut sorted = self.passed.clone();
        sorted.sort_unstable();
        sorted[sorted.len() * 99 / 100]
    }
}

/// Calls a second that do not wait for each other, for some time. Latency counts from when a call was due.
async fn traffic(sender: SendRequest<Bytes>, tenant: &'static str, per_second: u32, lasting: Duration) -> Tally {
    // Timers are no finer than a millisecond.
    let at_once = per_second.div_ceil(200);
    let mut due = interval(Duration::from_secs(1) * at_once / per_second);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut calls, began, mut tally) = (JoinSet::new(), Instant::now(), Tally::default());
    while began.elapsed() < lasting {
        let due = due.tick().await.into_std();
        for _ in 0..at_once {
            let sender = sender.clone();
            calls.spawn(async move { (call(&sender, "Work", tenant).await, due.elapsed()) });
        }
    }
    while let Some(ended) = calls.join_next().await {
        match ended.expect("a call ends") {
            (Ok(()), took) => tally.passed.push(took),
            (Err(status), _) => tally.refused.push(reason(&status).unwrap_or_else(|| status.to_string())),
        }
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_at_twenty_times_its_share_does_not_take_the_others() {
    let mesh = mesh();
    app(mesh.app("slow", "us-east")).await;
    let (light, heavy) = (connect(&mesh).await, connect(&mesh).await);
    until_allowed(&light, "acme").await;
    until_allowed(&heavy, "globex").await;
    let quiet = traffic(light.clone(), "acme", SHARE / 2, Duration::from_secs(6)).await;
    let flood = tokio::spawn(traffic(heavy, "globex", SHARE * 20, Duration::from_secs(12)));
    // From its first moment on, though no Route says what the app takes.
    let beside = traffic(light, "acme", SHARE / 2, Duration::from_secs(11)).await;
    let flood = flood.await.expect("it ends");

    let (success, p99, quiet) = (beside.success(), beside.p99(), quiet.p99());
    println!("{:.1} % pass, p99 {p99:?}, quiet {quiet:?}; flood {:.1} %", success * 100.0, flood.success() * 100.0);
    assert!(success >= 0.95, "{success}: {:?}", beside.refused);
    // On a machine that does nothing else quiet calls take what the app takes; a busy one adds something to each.
    assert!(p99 <= (quiet.max(WORK) + WORK / 10) * 2, "p99 {p99:?}, when quiet {quiet:?}");
    assert!(flood.refused.iter().all(|reason| reason == "OVERLOADED"), "{:?}", flood.refused.last());
    // What acme does not want is there for globex.
    let done = flood.passed.len() as f64 / (12.0 * f64::from(SHARE) * 2.0);
    assert!((0.4..1.0).contains(&done), "{done:.2} of what the app can do");
    let metrics = http_get(mesh.admin("slow", "us-east"), "/metrics").await.expect("metrics");
    let has = |line: &str| metrics.lines().any(|other| other == line);
    assert!(has("tenon_concurrency_limit_enforced 1") && has("tenon_concurrency_in_use 0"), "{metrics}");
    assert!(!has("tenon_limited_calls_total{limit=\"concurrency\"} 0"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_of_a_rule_holds_for_each_tenant_over_all_workers() {
    let mesh = mesh();
    app(mesh.app("slow", "us-east")).await;
    let senders = [connect(&mesh).await, connect(&mesh).await, connect(&mesh).await, connect(&mesh).await];
    until_allowed(&senders[0], "acme").await;
    until_allowed(&senders[0], "globex").await;

    let (began, mut calls) = (Instant::now(), JoinSet::new());
    for round in 0..400 {
        let sender = senders[round % senders.len()].clone();
        calls.spawn(async move { call(&sender, "Rated", "acme").await });
    }
    let ended = calls.join_all().await;
    let seconds = began.elapsed().as_secs_f64();
    let passed = ended.iter().filter(|ended| ended.is_ok()).count() as f64;
    // The burst, and what became free meanwhile; with a bucket for each worker it would be the double.
    assert!((40.0..=41.0 + 100.0 * seconds).contains(&passed), "{passed} of 400 passed in {seconds:.2} s");
    let refused = ended.iter().find_map(|ended| ended.as_ref().err()).expect("400 are more than 40");
    assert_eq!(reason(refused).as_deref(), Some("TENANT_RATE_LIMITED"), "{refused}");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let delay = refused.get_details_retry_info().and_then(|info| info.retry_delay).expect("when to come again");
    assert!(delay > Duration::ZERO && delay <= Duration::from_millis(10), "100/s is 10 ms each: {delay:?}");

    assert!(call(&senders[0], "Rated", "globex").await.is_ok(), "another tenant has a rate of its own");
    assert!(call(&senders[0], "Get", "acme").await.is_ok(), "another rule has none");
    let again = Instant::now();
    while call(&senders[1], "Rated", "acme").await.is_err() {
        assert!(again.elapsed() < SOON, "the rate never comes back");
        sleep(Duration::from_millis(5)).await;
    }
}
