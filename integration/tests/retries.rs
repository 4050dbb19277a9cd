//! What fails is sent again where that is safe, and nothing else ever is: apps that fail on purpose behind two sidecars.

#[path = "retries/app.rs"]
mod app;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use integration::{
    calls::http_get,
    mesh::{Mesh, Plan, SOON, binary},
};
use sidecar_core::deadline::parse_grpc_timeout;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use self::app::{Act, Apps};

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
  rules: [{name: all, callers: ['*'], paths: [/shop.v1.Shop/*], tenant: none}]
---
apiVersion: tenon.dev/v1
kind: Route
metadata: {name: shop}
spec:
  service: shop
  methods:
    - paths: [/shop.v1.Shop/Named]
      retry: {codes: [UNAVAILABLE], attempts: 3, backoff: 5ms}
    - paths: [/shop.v1.Shop/Patient]
      retry: {codes: [UNAVAILABLE], attempts: 3, backoff: 10s}
    - paths: [/shop.v1.Shop/Short]
      timeout: {default: 300ms, max: 1s}
    - paths: [/shop.v1.Shop/Hedged]
      idempotent: true
      hedge: {after: 500ms, attempts: 2}
";

/// Two instances of the shop, each with an app of its own, and a caller near the first.
async fn mesh() -> (Mesh, Arc<Apps>, SendRequest<Bytes>) {
    mesh_with(POLICY).await
}

async fn mesh_with(policy: &str) -> (Mesh, Arc<Apps>, SendRequest<Bytes>) {
    let plan = Plan::new().expect("a plan").file("policy.yaml", policy);
    let plan = plan.app_elsewhere("shop", "us-east").app_elsewhere("shop", "eu-west").caller("wiki", "us-east");
    let mesh = plan.start().expect("the mesh starts");
    let apps = Arc::new(Apps::default());
    apps.serve("far", mesh.app("shop", "eu-west")).await;
    let stream = TcpStream::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    (mesh, apps, sender.ready().await.expect("ready"))
}

/// What a caller gets.
#[derive(Debug)]
struct Answer {
    /// `grpc-status`, or the HTTP/2 error that the call ended with.
    status: String,
    headers: HeaderMap,
    trailers: HeaderMap,
    took: Duration,
}

async fn call(sender: &SendRequest<Bytes>, method: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
    let path = format!("http://shop/shop.v1.Shop/{method}");
    let request = Request::post(path).header("content-type", "application/grpc");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let began = Instant::now();
    let mut sender = sender.clone().ready().await.expect("ready");
    let (answer, mut stream) = sender.send_request(request.body(()).expect("a request"), false).expect("sent");
    // Who refuses a call does not read it first: the stream may be over by now, and the answer says how.
    let _over = stream.send_data(body, true);
    let read = async {
        let (head, mut body) = answer.await?.into_parts();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        Ok::<_, h2::Error>((head.headers, body.trailers().await?.unwrap_or_default()))
    };
    let read = tokio::time::timeout(SOON, read).await.expect("the call ends");
    let took = began.elapsed();
    let (headers, trailers) = match read {
        Ok(answer) => answer,
        Err(error) => {
            let status = error.to_string();
            return Answer { status, headers: HeaderMap::new(), trailers: HeaderMap::new(), took };
        }
    };
    let status = headers.get("grpc-status").or_else(|| trailers.get("grpc-status"));
    let status = status.and_then(|status| status.to_str().ok()).unwrap_or("none").to_owned();
    Answer { status, headers, trailers, took }
}

fn small() -> Bytes {
    Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])
}

fn unavailable() -> Act {
    Act::Status(14, None)
}

fn names(answer: &Answer) -> Vec<String> {
    let all = answer.headers.keys().chain(answer.trailers.keys());
    all.map(|name| name.as_str().to_owned()).filter(|name| name.starts_with("x-mesh-")).collect()
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn metric(admin: SocketAddr, line: &str) -> u64 {
    let text = http_get(admin, "/metrics").await.expect("metrics");
    let value = text.lines().find_map(|found| found.strip_prefix(line)).expect("the metric is there");
    value.trim().parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_failures_are_tried_again_and_others_are_not() {
    let (mesh, apps, sender) = mesh().await;
    apps.serve("near", mesh.app("shop", "us-east")).await;

    // The near one fails, so another one is asked.
    apps.script("near", "Named", [unavailable()]);
    let answer = call(&sender, "Named", &[], small()).await;
    assert_eq!(answer.status, "0", "{answer:?}");
    assert_eq!(names(&answer), Vec::<String>::new());
    let attempts = apps.seen("Named", |seen| {
        (seen.at, seen.body, header(&seen.headers, "grpc-previous-rpc-attempts").map(str::to_owned))
    });
    assert_eq!(attempts, [("near", 7, None), ("far", 7, Some("1".into()))]);
    assert_eq!(metric(mesh.admin("wiki", "us-east"), "tenon_retries_total{cause=\"status\"}").await, 1);

    // Not oftener than it says, nor where nobody says so, nor for what the app says of itself, nor what was handed on.
    let fails = |method, act: Act| {
        apps.script("near", method, [act; 9]);
        apps.script("far", method, [act; 9]);
    };
    fails("Named", unavailable());
    assert_eq!(call(&sender, "Named", &[], small()).await.status, "14");
    assert_eq!(apps.places("Named").len(), 2 + 3);
    fails("Plain", unavailable());
    assert_eq!(call(&sender, "Plain", &[], small()).await.status, "14");
    fails("Plain", Act::Status(14, Some(("x-mesh-unsent", "1"))));
    let answer = call(&sender, "Plain", &[], small()).await;
    assert_eq!((answer.status.as_str(), names(&answer)), ("14", vec![]));
    assert_eq!(apps.places("Plain").len(), 2);
    fails("Named", Act::Break);
    let answer = call(&sender, "Named", &[], small()).await;
    assert!(answer.status.contains("stream error received"), "{answer:?}");
    assert_eq!(apps.places("Named").len(), 5 + 1);
    fails("Named", Act::Status(13, None));
    assert_eq!(call(&sender, "Named", &[], small()).await.status, "13");
    assert_eq!(apps.places("Named").len(), 6 + 1);

    // What is longer than may be kept is sent once.
    fails("Named", unavailable());
    assert_eq!(call(&sender, "Named", &[], Bytes::from(vec![0; 100_000])).await.status, "14");
    assert_eq!(apps.places("Named").len(), 7 + 1);

    // Pushback: not at all, or after so long.
    fails("Named", Act::Status(14, Some(("grpc-retry-pushback-ms", "-1"))));
    assert_eq!(call(&sender, "Named", &[], small()).await.status, "14");
    assert_eq!(apps.places("Named").len(), 8 + 1);
    fails("Named", Act::Answer);
    apps.script("near", "Named", [Act::Status(14, Some(("grpc-retry-pushback-ms", "200")))]);
    apps.script("far", "Named", [Act::Answer; 9]);
    let answer = call(&sender, "Named", &[], small()).await;
    assert_eq!(answer.status, "0");
    assert!(apps.places("Named").len() == 9 + 1 || answer.took >= Duration::from_millis(200), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_surely_not_begun_goes_elsewhere_without_a_word_of_the_route() {
    let (mesh, apps, sender) = mesh().await;
    // No app is there: the sidecar beside it says so, and that nothing was sent.
    assert_eq!(call(&sender, "Plain", &[], small()).await.status, "0");
    assert_eq!(apps.places("Plain"), ["far"]);

    // The app refuses its first stream, and the caller's sidecar asks again.
    apps.script("near", "Once", [Act::Refuse]);
    apps.script("near", "Always", [Act::Refuse; 9]);
    apps.script("far", "Everywhere", [Act::Refuse; 20]);
    apps.script("near", "Everywhere", [Act::Refuse; 20]);
    apps.serve("near", mesh.app("shop", "us-east")).await;
    // The near one has failed a call, so it may be given some time: where it is not asked nothing is shown.
    for method in ["Once", "Always"] {
        let answer = call(&sender, method, &[], small()).await;
        assert_eq!((answer.status.as_str(), names(&answer)), ("0", vec![]), "{method}");
        let places = apps.places(method);
        assert!(places.iter().rev().skip(1).all(|place| *place == "near"), "{places:?}");
    }
    // It ends, and says what happened.
    let answer = call(&sender, "Everywhere", &[], small()).await;
    assert_eq!((answer.status.as_str(), names(&answer)), ("14", vec![]));
    let previous = apps.seen("Everywhere", |seen| seen.headers.contains_key("grpc-previous-rpc-attempts"));
    // Bug: the callee's sidecar asked the app a second time for each of them, outside of any budget.
    assert!((4..=5).contains(&previous.len()) && previous.iter().all(|named| !named), "{previous:?}");
}

/// An HTTP/2 app that says GOAWAY to its first connection before it looks at any stream.
async fn goes_away_first(listener: TcpListener, apps: Arc<Apps>) {
    let address = listener.local_addr().expect("it listens");
    let (mut first, _) = listener.accept().await.expect("the sidecar connects");
    drop(listener);
    apps.serve("near", address).await;
    let mut read = Vec::new();
    // The preface, then frames: until one of them is HEADERS.
    let mut buffer = [0; 4096];
    while !has_headers(read.get(24..).unwrap_or_default()) {
        let length = first.read(&mut buffer).await.expect("more comes");
        assert!(length > 0, "the sidecar closed");
        read.extend_from_slice(&buffer[..length]);
    }
    let (settings, go_away) = ([0, 0, 0, 4, 0, 0, 0, 0, 0], [0, 0, 8, 7, 0, 0, 0, 0, 0]);
    let frames = [&settings[..], &go_away, &[0; 8]].concat();
    first.write_all(&frames).await.expect("written");
    // Kept open: what ends the call is the GOAWAY.
    while first.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}

fn has_headers(mut frames: &[u8]) -> bool {
    while let [a, b, c, kind, ..] = *frames {
        if kind == 1 {
            return true;
        }
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        frames = frames.get(9 + length..).unwrap_or_default();
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_above_the_last_one_of_a_goaway_is_sent_on_another_connection() {
    let (mesh, apps, sender) = mesh().await;
    let listener = TcpListener::bind(mesh.app("shop", "us-east")).await.expect("the port is ours");
    let app = tokio::spawn(goes_away_first(listener, Arc::clone(&apps)));
    let answer = call(&sender, "Plain", &[], small()).await;
    assert_eq!(answer.status, "0", "{answer:?}");
    assert_eq!(apps.places("Plain").len(), 1);
    app.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_is_of_the_whole_call_and_passed_on_minus_what_was_spent() {
    let (mesh, apps, sender) = mesh().await;
    apps.serve("near", mesh.app("shop", "us-east")).await;

    // Both attempts and the pause are of one time, and the second is told what is left.
    apps.script("near", "Named", [Act::Late(Duration::from_millis(300), 14)]);
    let answer = call(&sender, "Named", &[("grpc-timeout", "5S")], small()).await;
    assert_eq!(answer.status, "0", "{answer:?}");
    let left = apps.seen("Named", |seen| header(&seen.headers, "grpc-timeout").and_then(parse_grpc_timeout));
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].is_some_and(|left| left <= Duration::from_secs(5)), "{left:?}");
    assert!(left[1].is_some_and(|left| left <= Duration::from_millis(4_700)), "{left:?}");

    // A pause that ends after the deadline is not waited for: the failure is known, and nothing is left to try.
    apps.script("near", "Patient", [unavailable()]);
    let answer = call(&sender, "Patient", &[("grpc-timeout", "2S")], small()).await;
    assert_eq!(answer.status, "14", "{answer:?}");
    assert!(answer.took < Duration::from_secs(1), "{answer:?}");
    assert_eq!(apps.places("Patient"), ["near"]);
    assert_eq!(metric(mesh.admin("wiki", "us-east"), "tenon_retries_withheld_total{why=\"deadline\"}").await, 1);

    // Who names no time gets the Route's, and nobody gets more than it allows.
    for (header, least, most) in [(&[][..], 250, 2_000), (&[("grpc-timeout", "1H")][..], 900, 4_000)] {
        apps.script("near", "Short", [Act::Hang]);
        let answer = call(&sender, "Short", header, small()).await;
        assert_eq!(answer.status, "4", "{answer:?}");
        let took = answer.took.as_millis();
        assert!((least..most).contains(&took), "{answer:?}");
    }
    let told = apps.seen("Short", |seen| header(&seen.headers, "grpc-timeout").and_then(parse_grpc_timeout));
    assert!(told[0].is_some_and(|told| told <= Duration::from_millis(300)), "{told:?}");
    assert!(told[1].is_some_and(|told| told <= Duration::from_secs(1)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_attempt_gets_another_beside_it_and_the_slower_one_is_reset() {
    let (mesh, apps, sender) = mesh().await;
    apps.serve("near", mesh.app("shop", "us-east")).await;
    // Connections are open before anything is timed.
    assert_eq!(call(&sender, "Plain", &[], small()).await.status, "0");
    apps.script("near", "Hedged", [Act::Hang]);
    let answer = call(&sender, "Hedged", &[], small()).await;
    assert_eq!(answer.status, "0", "{answer:?}");
    assert_eq!(apps.places("Hedged"), ["near", "far"]);
    let until = Instant::now() + SOON;
    while !apps.was_reset("near") {
        assert!(Instant::now() < until, "the slower one is never reset");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let admin = mesh.admin("wiki", "us-east");
    assert_eq!(metric(admin, "tenon_hedges_total{outcome=\"sent\"}").await, 1);
    assert_eq!(metric(admin, "tenon_hedges_total{outcome=\"won\"}").await, 1);

    // An attempt that says no more are wanted is the last, and its end the call's.
    apps.script("near", "Hedged", [Act::Status(14, Some(("grpc-retry-pushback-ms", "-1")))]);
    assert_eq!(call(&sender, "Hedged", &[], small()).await.status, "14");
    assert_eq!(metric(admin, "tenon_hedges_total{outcome=\"sent\"}").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_is_down_gets_no_more_attempts_than_its_budget() {
    let tight = POLICY.replace("  methods:", "  retryBudget: {percent: 0, minPerSecond: 1}\n  methods:");
    let (mesh, apps, sender) = mesh_with(&tight).await;
    apps.serve("near", mesh.app("shop", "us-east")).await;
    apps.script("near", "Named", [unavailable(); 100]);
    apps.script("far", "Named", [unavailable(); 100]);
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(call(&sender, "Named", &[], small()).await.status, "14");
    }
    // Ten for the last ten seconds, whichever calls they were of; a slow machine may see a second more.
    let further = apps.places("Named").len() - 20;
    let most = 10 + usize::try_from(began.elapsed().as_secs()).expect("not long");
    assert!((10..=most).contains(&further), "{further}");
    assert!(metric(mesh.admin("wiki", "us-east"), "tenon_retries_withheld_total{why=\"budget\"}").await >= 9);
}

/// The near app in a process of its own, as long as this lives.
struct Process(Child);

impl Process {
    fn start(address: SocketAddr, count: &Path) -> Self {
        let child = Command::new(binary("silent-app").expect("built"))
            .arg(address.to_string())
            .arg(count)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("started"))
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("reaped");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_may_have_been_begun_is_never_sent_twice_unless_the_route_names_it() {
    let (mesh, apps, sender) = mesh().await;
    let (address, count) = (mesh.app("shop", "us-east"), mesh.scratch().join("count"));
    for (method, status, far) in [("Plain", "14", 0), ("Named", "0", 1)] {
        let _first_of_all = fs::remove_file(&count);
        let mut app = Process::start(address, &count);
        let until = Instant::now() + SOON;
        while TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < until, "the app never listens");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let counted = || fs::read_to_string(&count).unwrap_or_default().len();
        let killed = async {
            while counted() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            app.kill();
            // It is back at once, and could be sent the call again.
            Process::start(address, &count)
        };
        let (answer, _back) = tokio::join!(call(&sender, method, &[], small()), killed);
        assert_eq!(answer.status, status, "{method}: {answer:?}");
        assert_eq!((counted(), apps.places(method).len()), (1, far), "{method}");
    }
}
