//! Rotations through the front door: every certificate and key of a mesh is replaced, and no call notices.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use integration::{
    calls::{channel, for_tenant, http_get, outcome},
    mesh::{Mesh, Plan, SOON, binary, signal},
    traffic::Traffic,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

/// Calls a second, meanwhile.
const STEADY: u32 = 250;
/// More than any step takes, on a busy machine.
const WAIT: [&str; 2] = ["--wait", "120s"];

/// The sidecars of the demo's mesh.
const SIDECARS: [(&str, &str); 4] =
    [("issues", "us-east"), ("media", "us-east"), ("media", "eu-west"), ("wiki", "us-east")];

fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    mesh.import(&[json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {
            "media": {"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}}
        }
    })])
    .expect("imported");
    mesh
}

/// `tenon identity rotate` on a data folder.
struct Rotate(PathBuf);

impl Rotate {
    async fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(binary("tenon").expect("it is built"));
        command.args(["identity", "rotate"]).args(words).args(["-o", "json", "--data"]).arg(&self.0);
        tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic")
    }

    /// It must be done, and everybody must have followed.
    async fn done(&self, words: &[&str]) -> Value {
        let words = [words, &WAIT].concat();
        let began = Instant::now();
        let output = self.run(&words).await;
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words:?}: {printed}{}", String::from_utf8_lossy(&output.stderr));
        println!("{words:?} took {:?}", began.elapsed());
        serde_json::from_str(&printed).expect("JSON")
    }

    /// It must be refused, with exit code 1.
    async fn refused(&self, words: &[&str]) -> Value {
        let output = self.run(words).await;
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

/// Streams that stay open through everything.
struct Streams {
    ask: mpsc::UnboundedSender<ServerReflectionRequest>,
    answers: Streaming<ServerReflectionResponse>,
    watch: Streaming<HealthCheckResponse>,
}

impl Streams {
    /// One both ways and one from the server, of the same channel.
    async fn open(channel: Channel) -> Self {
        let (ask, asked) = mpsc::unbounded_channel();
        let mut streams = {
            let mut client = ServerReflectionClient::new(channel.clone());
            let answers = client.server_reflection_info(UnboundedReceiverStream::new(asked)).await.expect("allowed");
            let watch = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.expect("allowed");
            Self { ask, answers: answers.into_inner(), watch: watch.into_inner() }
        };
        streams.watch.message().await.expect("a first message").expect("not its end");
        streams.live("at first").await;
        streams
    }

    /// A question and its answer go through; the other one has not ended.
    async fn live(&mut self, when: &str) {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let question = ServerReflectionRequest { host: String::new(), message_request };
        self.ask.send(question).expect("the stream is open");
        let answer = tokio::time::timeout(SOON, self.answers.message()).await.expect("an answer, soon");
        assert!(answer.unwrap_or_else(|status| panic!("{when}: {status}")).is_some(), "{when}: the stream has ended");
        let watched = tokio::time::timeout(Duration::ZERO, self.watch.message()).await;
        assert!(watched.is_err(), "{when}: the watch has ended: {watched:?}");
    }
}

async fn config(mesh: &Mesh, (service, region): (&str, &str)) -> Value {
    let text = http_get(mesh.admin(service, region), "/config").await.expect("the admin listener answers");
    serde_json::from_str(&text).expect("JSON")
}

/// Serials of the sidecars' certificates.
async fn serials(mesh: &Mesh) -> BTreeSet<String> {
    let mut serials = BTreeSet::new();
    for sidecar in SIDECARS {
        serials.insert(config(mesh, sidecar).await["svid"]["serial"].as_str().expect("a serial").to_owned());
    }
    assert_eq!(serials.len(), SIDECARS.len());
    serials
}

/// Those of transaction tokens are the identity service's, and another matter.
fn kids(mesh: &Mesh) -> BTreeSet<String> {
    let keys: Value =
        serde_json::from_str(&mesh.tenon_ok(&["identity", "keys", "-o", "json"]).expect("keys")).expect("JSON");
    let kids = keys.as_array().expect("a list").iter().map(|key| key["kid"].as_str().expect("text").to_owned());
    kids.filter(|kid| !kid.starts_with("tenon-identity/")).collect()
}

async fn passes(mesh: &Mesh) {
    let outbound = mesh.outbound("issues", "us-east");
    let mut client = MediaClient::new(channel(outbound, "media").await.expect("the sidecar answers"));
    let end = Instant::now() + SOON;
    loop {
        let outcome = outcome(&client.list(for_tenant("acme", ListRequest {})).await);
        if outcome == "ALLOWED" {
            return;
        }
        assert!(Instant::now() < end, "calls do not pass: {outcome}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_certificate_and_key_is_replaced_and_no_call_or_stream_notices() {
    let mut mesh = mesh();
    passes(&mesh).await;
    let rotate = Rotate(mesh.data_dir());
    let issues = mesh.outbound("issues", "us-east");
    let steady = Traffic::start(issues, "acme", STEADY).await.expect("the sidecar answers");
    let mut streams = Streams::open(channel(issues, "media").await.expect("the sidecar answers")).await;
    let pin = mesh.mesh_file().expect("mesh.json")["trustBundleSha256"].clone();

    // Each certificate, for the sake of a new issuing CA.
    let before = serials(&mesh).await;
    rotate.done(&["issuing"]).await;
    streams.live("after the issuing CA").await;
    let renewed = serials(&mesh).await;
    assert!(before.is_disjoint(&renewed), "{before:?} {renewed:?}");

    // The root.
    let early = rotate.refused(&["root", "--activate"]).await;
    assert!(early["message"].as_str().expect("text").contains("no new root is prepared"), "{early}");
    let prepared = rotate.done(&["root", "--prepare"]).await;
    assert_eq!((&prepared["rootRotation"], &prepared["roots"]), (&json!("prepared"), &json!(2)));
    streams.live("after prepare").await;
    let activated = rotate.done(&["root", "--activate"]).await;
    assert_eq!(activated["rootRotation"], "activated");
    streams.live("after activate").await;
    let below_the_new_root = serials(&mesh).await;
    assert!(renewed.is_disjoint(&below_the_new_root));
    let retired = rotate.done(&["root", "--retire"]).await;
    assert_eq!(
        (&retired["rootRotation"], &retired["roots"], &retired["waiting"]),
        (&json!("none"), &json!(1), &json!([]))
    );
    streams.live("after retire").await;
    assert_ne!(retired["trustBundleSha256"], pin);
    assert_eq!(mesh.mesh_file().expect("mesh.json")["trustBundleSha256"], retired["trustBundleSha256"]);

    // Every ASAP key.
    let old = kids(&mesh);
    rotate.done(&["keys"]).await;
    streams.live("after the keys").await;
    let new: BTreeSet<_> = kids(&mesh).difference(&old).cloned().collect();
    for service in ["issues/", "media/", "wiki/", "tenon-tcs/", "tenon-policy/"] {
        assert!(new.iter().any(|kid| kid.starts_with(service)), "{service} has a new key: {new:?}");
    }
    assert!(old.is_subset(&kids(&mesh)), "tokens of before are good until they end");

    let report = steady.stop().await;
    println!("{} calls, {:.0} a second, {} failed", report.calls, report.calls_per_second, report.failed.len());
    assert!(report.failed.is_empty(), "{} of {} failed: {:?}", report.failed.len(), report.calls, report.failed);
    assert!(report.calls_per_second >= 200.0, "{report:?}");

    // Whoever starts again finds the mesh as it now is: with the state that sidecars have stored, and the new pin.
    drop(streams);
    mesh.tenon_ok(&["check"]).expect("all is well");
    mesh.down().expect("it ends");
    mesh.up().expect("it starts again");
    passes(&mesh).await;
    assert_eq!(mesh.mesh_file().expect("mesh.json")["trustBundleSha256"], retired["trustBundleSha256"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_hangs_holds_up_the_rotation_and_is_named() {
    let mesh = mesh();
    let rotate = Rotate(mesh.data_dir());
    let [(wiki, _)] = &mesh.processes("--service wiki")[..] else { panic!("one sidecar of wiki") };
    signal(*wiki, Signal::STOP).expect("it stops");
    let output = rotate.run(&["root", "--prepare"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Until it alone is behind.
    let end = Instant::now() + SOON;
    let waiting = loop {
        let refused = rotate.refused(&["root", "--activate"]).await;
        let waiting = refused["waiting"].as_array().expect("a list").clone();
        if waiting.len() == 1 {
            break waiting;
        }
        assert!(Instant::now() < end, "{refused}");
    };
    assert_eq!((&waiting[0]["service"], &waiting[0]["lacks"][0]), (&json!("wiki"), &json!("trust-bundle")));
    assert!(waiting[0]["instance"].as_str().expect("text").starts_with("wiki-"), "{waiting:?}");
    let status = rotate.refused(&["status"]).await;
    assert_eq!(status["rootRotation"], "prepared");

    signal(*wiki, Signal::CONT).expect("it goes on");
    rotate.done(&["root", "--activate"]).await;
    rotate.done(&["root", "--retire"]).await;

    // A sidecar that has lost its state joins again, with the pin of now.
    let state = mesh.data_dir().join("sidecars/wiki-us-east");
    let before = config(&mesh, ("wiki", "us-east")).await["svid"]["serial"].clone();
    std::fs::remove_dir_all(state).expect("it is there");
    signal(*wiki, Signal::KILL).expect("it ends");
    let end = Instant::now() + SOON;
    loop {
        let text = http_get(mesh.admin("wiki", "us-east"), "/config").await.unwrap_or_default();
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        if config["svid"]["serial"].is_string() && config["svid"]["serial"] != before {
            break;
        }
        assert!(Instant::now() < end, "it does not join again: {config}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
