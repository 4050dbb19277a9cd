//! Revocations through the front door: who is revoked is cut off within a second, whoever is not notices nothing.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use integration::{
    calls::{channel, for_tenant, http_get, outcome, reason},
    mesh::{Mesh, Plan, SOON, binary},
    traffic::Traffic,
};
use mesh_identity::{testing, tls};
use serde_json::{Value, json};
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Status, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

/// What is promised from the return of the command on.
const PROMISE: Duration = Duration::from_secs(1);
/// Times that each revocation is measured: the median is held against the promise, for a machine may be busy for a moment.
const ROUNDS: usize = 3;
/// Calls of the services that nobody revokes, a second.
const STEADY: u32 = 250;

struct World {
    mesh: Mesh,
    steady: Traffic,
}

impl World {
    async fn new() -> Self {
        let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
        mesh.import(&[json!({
            "tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {
                "media": {"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}}
            }
        })])
        .expect("imported");
        let issues = mesh.outbound("issues", "us-east");
        let mut client = MediaClient::new(channel(issues, "media").await.expect("the sidecar answers"));
        passes(&mut client).await;
        let steady = Traffic::start(issues, "acme", STEADY).await.expect("the sidecar answers");
        Self { mesh, steady }
    }

    async fn outbound(&self, service: &str, authority: &str) -> Channel {
        channel(self.mesh.outbound(service, "us-east"), authority).await.expect("the sidecar answers")
    }

    /// Of the certificate that a sidecar has now. To be revoked once: whoever learns that its certificate is revoked gets
    /// itself another as soon as it can.
    async fn serial(&self, service: &str, region: &str) -> String {
        let config = http_get(self.mesh.admin(service, region), "/config").await.expect("the admin listener answers");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        config["svid"]["serial"].as_str().expect("a serial").to_owned()
    }

    /// Runs `tenon identity revoke` with these flags; when it returned.
    async fn revoke(&self, flags: &[&str]) -> Instant {
        let mut command = Command::new(binary("tenon").expect("it is built"));
        command.args(["identity", "revoke"]).args(flags).arg("--data").arg(self.mesh.data_dir());
        let work = move || (command.output().expect("it runs"), Instant::now());
        let (output, returned) = tokio::task::spawn_blocking(work).await.expect("no panic");
        assert!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
        returned
    }

    /// Nobody but who was revoked has noticed anything.
    async fn ends_well(self) {
        // What a busy machine has held up is made up for, in the end.
        holds("there was traffic worth the name", async || {
            self.steady.calls() >= 1_000 && self.steady.calls_per_second() >= 205.0
        })
        .await;
        let report = self.steady.stop().await;
        assert!(
            report.failed.is_empty(),
            "{} of {} calls failed: {:?}",
            report.failed.len(),
            report.calls,
            report.failed
        );
        assert!(report.calls_per_second >= 200.0, "{report:?}");
    }
}

async fn list(client: &mut MediaClient<Channel>) -> String {
    outcome(&client.list(for_tenant("acme", ListRequest {})).await)
}

/// Waits until calls pass.
async fn passes(client: &mut MediaClient<Channel>) {
    holds("calls pass", async || list(client).await == "ALLOWED").await;
}

async fn holds(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !ask().await {
        assert!(Instant::now() < end, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A stream that stays open for as long as it may.
async fn open_stream(channel: Channel) -> Streaming<HealthCheckResponse> {
    let mut stream =
        HealthClient::new(channel).watch(HealthCheckRequest::default()).await.expect("allowed").into_inner();
    stream.message().await.expect("a first message").expect("not its end");
    stream
}

/// How the stream ends, soon.
async fn end_of(stream: &mut Streaming<HealthCheckResponse>) -> Status {
    let ending = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended as if all were well"),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(SOON, ending).await.expect("the stream ends")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Revokes and lifts, this often. Each time the stream that `open` makes must end with `expected`, and the next call be
/// refused, all within the promise.
async fn is_kept(
    world: &World,
    (flags, rounds): (&[&str], usize),
    expected: &str,
    client: &mut MediaClient<Channel>,
    open: impl AsyncFn() -> Streaming<HealthCheckResponse>,
) {
    let mut took = Vec::new();
    for _ in 0..rounds {
        let mut stream = open().await;
        let returned = world.revoke(flags).await;
        let status = end_of(&mut stream).await;
        assert_eq!(reason(&status).as_deref(), Some(expected), "{flags:?}: {status:?}");
        let next = list(client).await;
        took.push(returned.elapsed());
        assert_ne!(next, "ALLOWED", "{flags:?}: the next call passed");
        world.revoke(&[&["--lift"], flags].concat()).await;
        passes(client).await;
    }
    println!("{flags:?}: cut off {took:?} after the command had returned");
    assert!(median(took.clone()) < PROMISE, "{flags:?}: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_caller_is_cut_off_within_a_second_and_the_others_notice_nothing() {
    let world = World::new().await;
    let to_media = world.outbound("wiki", "media").await;
    let mut client = MediaClient::new(to_media.clone());
    passes(&mut client).await;
    let open = async || open_stream(to_media.clone()).await;
    is_kept(&world, (&["--service", "wiki"], ROUNDS), "ASAP_ISSUER", &mut client, open).await;
    let serial = world.serial("wiki", "us-east").await;
    is_kept(&world, (&["--serial", &serial], 1), "ASAP_ISSUER", &mut client, open).await;
    world.ends_well().await;
}

/// Which replicas of this sidecar hear their source.
async fn connected(mesh: &Mesh, service: &str) -> Vec<String> {
    let config = http_get(mesh.admin(service, "us-east"), "/config").await.expect("the admin listener answers");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let replicas = config["replicas"].as_array().expect("a list").iter();
    let connected = replicas.filter(|replica| replica["connected"] == true);
    connected.map(|replica| replica["kind"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_of_the_mesh_lets_go_of_who_is_revoked_whether_it_reads_or_not() {
    let world = World::new().await;
    let out = world.mesh.scratch().join("wiki");
    world
        .mesh
        .tenon_ok(&["identity", "svid", "--service", "wiki", "--out", &out.display().to_string()])
        .expect("an SVID");
    let read = |name: &str| std::fs::read_to_string(out.join(name)).expect("a file");
    let chain = pem::parse_many(read("svid.pem")).expect("PEM").into_iter().map(|block| block.into_contents().into());
    let key = pem::parse(read("key.pem")).expect("PEM").into_contents();
    let config = testing::client_config(Some((chain.collect(), key.into())), &[b"h2"]);
    let tcp = TcpStream::connect(world.mesh.inbound("media", "us-east")).await.expect("the listener accepts");
    let mut silent = tls::connect(&config, tcp).await.expect("the handshake");
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("the preface");
    silent.read_exact(&mut [0; 9]).await.expect("SETTINGS: it is in");
    holds("everything is followed", async || connected(&world.mesh, "wiki").await.len() == 8).await;

    let returned = world.revoke(&["--service", "wiki"]).await;
    // Whatever it is told before, the connection ends.
    let mut rest = Vec::new();
    let _closed = tokio::time::timeout(SOON, silent.read_to_end(&mut rest)).await.expect("the connection ends");
    let took = returned.elapsed();
    println!("the connection was closed {took:?} after the command had returned");
    assert!(took < PROMISE, "{took:?}");
    // Identity, policy and tenant service alike.
    holds("nothing is followed", async || connected(&world.mesh, "wiki").await.is_empty()).await;
    world.revoke(&["--lift", "--service", "wiki"]).await;
    holds("everything is followed again", async || connected(&world.mesh, "wiki").await.len() == 8).await;
    world.ends_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_to_a_revoked_service_end_and_say_so() {
    let world = World::new().await;
    // Issues goes on calling media meanwhile: it is media's instance of the other region that is revoked.
    let there = world.outbound("wiki", "media.eu-west").await;
    let mut stream = open_stream(there.clone()).await;
    let serial = world.serial("media", "eu-west").await;
    let returned = world.revoke(&["--serial", &serial]).await;
    let status = end_of(&mut stream).await;
    assert_eq!(reason(&status).as_deref(), Some("UPSTREAM_CONNECT"), "{status:?}");
    assert!(status.message().contains("revoked"), "{status:?}");
    let mut client = HealthClient::new(there);
    let next = client.check(HealthCheckRequest::default()).await;
    let took = returned.elapsed();
    assert_eq!(outcome(&next), "UPSTREAM_CONNECT");
    println!("cut off {took:?} after the command had returned");
    assert!(took < PROMISE, "{took:?}");
    world.revoke(&["--lift", "--serial", &serial]).await;
    holds("calls pass", async || client.check(HealthCheckRequest::default()).await.is_ok()).await;
    world.ends_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_with_a_revoked_key_end_and_the_service_goes_on_with_a_new_one() {
    let world = World::new().await;
    let to_media = world.outbound("wiki", "media").await;
    let mut client = MediaClient::new(to_media.clone());
    passes(&mut client).await;
    let mut stream = open_stream(to_media.clone()).await;
    let [kid] = &kids(&world.mesh, "wiki")[..] else { panic!("wiki has one key") };
    let returned = world.revoke(&["--kid", kid]).await;
    let status = end_of(&mut stream).await;
    assert_eq!(reason(&status).as_deref(), Some("ASAP_KEY_UNKNOWN"), "{status:?}");
    println!("cut off {:?} after the command had returned", returned.elapsed());
    // By itself: nobody lifts anything.
    passes(&mut client).await;
    assert!(!kids(&world.mesh, "wiki").contains(kid));
    open_stream(to_media).await;
    world.ends_well().await;
}

fn kids(mesh: &Mesh, issuer: &str) -> Vec<String> {
    let keys: Value =
        serde_json::from_str(&mesh.tenon_ok(&["identity", "keys", "-o", "json"]).expect("keys")).expect("JSON");
    let keys = keys.as_array().expect("a list").iter().filter(|key| key["issuer"] == issuer);
    keys.map(|key| key["kid"].as_str().expect("text").to_owned()).collect()
}
