//! Whoever floods a listener of a sidecar loses the connection, whatever the flood is made of, and nobody else notices.

#[path = "abuse/raw.rs"]
mod raw;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response};
use integration::{
    calls::http_get,
    mesh::{Mesh, Plan, SOON, eventually},
};
use mesh_identity::{
    TrustBundle,
    testing::{self, Ca, Leaf},
};
use raw::{CONTINUATION, DATA, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, To, WINDOW_UPDATE};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

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
  rules: [{name: all, callers: ['*'], paths: [/slow.v1.Slow/*]}]
";

fn mesh() -> Mesh {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY);
    let mesh = plan.app_elsewhere("slow", "us-east").caller("wiki", "us-east").start().expect("the mesh starts");
    let tenant = json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"slow": {"state": "ACTIVE"}}
    });
    mesh.import(&[tenant]).expect("imported");
    mesh
}

/// An app that answers at once, and at `/slow.v1.Slow/Hang` never.
async fn app(address: SocketAddr) {
    let listener = TcpListener::bind(address).await.expect("the port is ours");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                let mut hanging = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if request.uri().path().ends_with("/Hang") {
                        hanging.push((request, respond));
                        continue;
                    }
                    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
                    let Ok(mut stream) = respond.send_response(head, false) else { continue };
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    let _the_caller_is_gone = stream.send_trailers(trailers);
                }
            });
        }
    });
}

/// A well-behaved connection of the same app, whose calls go on all the time.
struct Good {
    calls: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), String>>,
}

async fn unary(sender: &mut SendRequest<Bytes>) -> Result<(), String> {
    let request = Request::post("http://slow/slow.v1.Slow/Unary")
        .header("content-type", "application/grpc")
        .header("x-tenant-id", "acme")
        .body(())
        .expect("a request");
    *sender = sender.clone().ready().await.map_err(|error| error.to_string())?;
    let (answer, _) = sender.send_request(request, true).map_err(|error| error.to_string())?;
    let answer = answer.await.map_err(|error| error.to_string())?;
    match answer.headers().get("grpc-message") {
        Some(message) => Err(format!("{message:?}")),
        None => Ok(()),
    }
}

impl Good {
    async fn start(outbound: SocketAddr) -> Self {
        let stream = TcpStream::connect(outbound).await.expect("the sidecar listens");
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(error) = unary(&mut sender).await {
            assert!(Instant::now() < end, "calls never pass: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (calls, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&calls), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !stopped.load(Relaxed) {
                unary(&mut sender).await?;
                counted.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        });
        Self { calls, stop, task }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    async fn stop(self) {
        self.stop.store(true, Relaxed);
        self.task.await.expect("no panic").expect("no call has failed");
    }
}

/// A flood: the name of the limit that it meets, what comes before it, and what it is made of.
type Flood = (&'static str, Vec<u8>, fn(u32) -> Vec<u8>);

const HANG: &str = "/slow.v1.Slow/Hang";

fn floods() -> Vec<Flood> {
    vec![
        ("resets", vec![], |n| {
            let stream = 2 * n + 1;
            [raw::call(stream, HANG, &[]), raw::frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
        }),
        ("settings", vec![], |_| raw::frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])),
        ("pings", vec![], |n| raw::frame(PING, 0, 0, &u64::from(n).to_be_bytes())),
        ("priorities", vec![], |n| raw::frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 7])),
        ("window_updates", vec![], |_| raw::frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        ("empty_data", raw::call(1, HANG, &[]), |_| raw::frame(DATA, 0, 1, &[])),
        ("unknown_frames", vec![], |_| raw::frame(0xbe, 0, 0, b"who knows this")),
        ("continuations", raw::frame(HEADERS, 0, 1, &raw::block(HANG, &[])), |_| raw::frame(CONTINUATION, 0, 1, &[])),
        ("faults", vec![], |n| raw::call(2 * n + 1, HANG, &[("connection", "close")])),
    ]
}

/// Process id of a service's sidecar.
fn sidecar(mesh: &Mesh, service: &str) -> u32 {
    let is = |words: &[String]| words.windows(2).any(|two| two[0] == "--service" && two[1] == service);
    let found = mesh.processes("--service").into_iter().find(|(_, words)| is(words));
    found.expect("its sidecar runs").0
}

/// Resident bytes, and milliseconds of processor time.
fn spent(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kilobytes: u64 = resident.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    // utime and stime, in hundredths of a second on every Linux.
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    (kilobytes << 10, ticks * 10)
}

/// How many connections were closed, by why.
async fn closed(admin: SocketAddr, listener: &str) -> BTreeMap<String, u64> {
    let text = http_get(admin, "/metrics").await.expect("metrics");
    let prefix = format!("tenon_connections_closed_total{{listener=\"{listener}\",why=\"");
    let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once("\"} "));
    lines.map(|(why, count)| (why.to_owned(), count.parse().expect("a number"))).collect()
}

/// Floods one listener with everything, while good calls go on.
async fn flood_all(mesh: &Mesh, service: &str, listener: &str, to: &To, good: &Good) {
    let (admin, pid) = (mesh.admin(service, "us-east"), sidecar(mesh, service));
    let (memory_before, _) = spent(pid);
    for (why, first, next) in floods() {
        let (before, calls, cpu) = (closed(admin, listener).await, good.calls(), spent(pid).1);
        let began = Instant::now();
        let ended = raw::flood(to, first, next).await;
        let (took, cpu) = (began.elapsed(), spent(pid).1 - cpu);
        println!("{listener} {why}: {ended:?} after {took:?}, {cpu} ms of the sidecar");
        assert_eq!(ended.told.as_deref(), Some(why), "{listener}");
        assert!(ended.sent < 8 << 20, "{listener} {why}: {ended:?}");
        assert!(cpu < 8_000, "{listener} {why}: {cpu} ms of processor time");
        let end = Instant::now() + Duration::from_secs(5);
        while closed(admin, listener).await[why] != before[why] + 1 {
            assert!(Instant::now() < end, "{listener} {why} is not counted");
        }
        while good.calls() == calls {
            assert!(Instant::now() < end && !good.task.is_finished(), "{listener} {why}: the good calls stop");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    // What the last flood took is given back within some ten seconds.
    let (first, _) = spent(pid);
    assert!(first < memory_before + (96 << 20), "{service}: from {memory_before} to {first} bytes");
    eventually(SOON, "memory is given back", || Ok(spent(pid).0 < memory_before + (48 << 20)))
        .unwrap_or_else(|error| panic!("{service}: from {memory_before} to {first} bytes, and {error}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flood_ends_its_own_connection_and_nobody_elses() {
    let mesh = mesh();
    app(mesh.app("slow", "us-east")).await;
    let (outbound, inbound) = (mesh.outbound("wiki", "us-east"), mesh.inbound("slow", "us-east"));
    // Time passes meanwhile.
    let silent = [outbound, inbound].map(|address| {
        tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.expect("the sidecar listens");
            raw::closes(stream, Duration::from_secs(25)).await
        })
    });
    let good = Good::start(outbound).await;
    flood_all(&mesh, "wiki", "outbound", &To::Outbound(outbound), &good).await;
    // A service that somebody has taken over: its certificate is good.
    let read = |name: &str| fs::read_to_string(mesh.data_dir().join("ca").join(name)).expect("the CA's file");
    let bundle = TrustBundle::from_pem(testing::trust_domain("test.example"), &read("root.pem")).expect("a bundle");
    let root = Ca::from_parts("test.example", bundle.roots()[0].clone(), &read("root.key"));
    let svid = move || root.certificate(&Leaf::uri("spiffe://test.example/svc/wiki"));
    let as_wiki = To::Inbound(inbound, Box::new(svid));
    flood_all(&mesh, "slow", "inbound", &as_wiki, &good).await;
    for silent in silent {
        assert!(silent.await.expect("no panic"), "whoever says nothing is closed");
    }
    assert!(closed(mesh.admin("wiki", "us-east"), "outbound").await["slow_preface"] >= 1);
    assert!(closed(mesh.admin("slow", "us-east"), "inbound").await["slow_handshake"] >= 1);
    crowd(&mesh, &as_wiki, inbound).await;
    assert!(good.calls() > 100);
    good.stop().await;
}

/// Hundreds that begin a handshake and say nothing keep nobody out, and push out nobody who is slow and elsewhere.
async fn crowd(mesh: &Mesh, good: &To, inbound: SocketAddr) {
    let elsewhere = TcpSocket::new_v4().expect("a socket");
    elsewhere.bind("127.0.0.2:0".parse().expect("an address")).expect("all of 127.0.0.0/8 is this machine");
    let slow = elsewhere.connect(inbound).await.expect("the sidecar listens");
    let mut silent = Vec::new();
    // 256 for each of the workers, which are as many as the processors up to four, and some for an uneven spread.
    for _ in 0..1_500 {
        match TcpStream::connect(inbound).await {
            Ok(stream) => silent.push(stream),
            Err(error) => panic!("{} connections, then {error}", silent.len()),
        }
    }
    let more = tokio::spawn(async move {
        loop {
            silent.push(TcpStream::connect(inbound).await.expect("the sidecar listens"));
            silent.drain(..silent.len().saturating_sub(1_500));
        }
    });
    drop(good.connect_over(slow).await);
    more.abort();
    assert!(more.await.is_err_and(|error| error.is_cancelled()), "the crowd came until the end");
    let began = Instant::now();
    drop(good.connect().await);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(closed(mesh.admin("slow", "us-east"), "inbound").await["crowded"] > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_large_is_refused_alone() {
    let mesh = mesh();
    app(mesh.app("slow", "us-east")).await;
    let outbound = mesh.outbound("wiki", "us-east");
    let good = Good::start(outbound).await;
    let many: Vec<(&str, &str)> = vec![("x-tiny", "1"); 300];
    let ended = |mut call: Vec<u8>| {
        call[4] |= END_STREAM;
        call
    };
    let path = "/slow.v1.Slow/Unary";
    let requests = [ended(raw::call(1, path, &many)), ended(raw::call(3, path, &[])), ended(raw::call(5, path, &many))];
    let mut statuses = raw::statuses(&To::Outbound(outbound), &requests).await;
    statuses.sort_unstable();
    // 200 is in HPACK's table at 8; 431 is not in it.
    assert_eq!(statuses.iter().filter(|first| **first == 0x88).count(), 1, "{statuses:x?}");
    good.stop().await;
}
