//! What was allowed once and is not any more: open streams end, and a service that may not originate calls is held to it.

use std::{
    fs,
    time::{Duration, Instant},
};

use integration::{
    calls::{channel, for_tenant, outcome, reason},
    mesh::{Mesh, Plan, SOON, repository},
};
use serde_json::{Value, json};
use tenon_proto::{
    issues::v1::{AttachHeader, AttachRequest, CreateRequest, attach_request::Part, issues_client::IssuesClient},
    media::v1::{ListRequest, media_client::MediaClient},
};
use tokio::{sync::mpsc, task::block_in_place};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

/// What is promised from the moment on that the change was written (DESIGN §3).
const PROMISE: Duration = Duration::from_secs(2);
/// Times that each ending is measured: the median is held against the promise, for a machine may be busy for a moment.
const ROUNDS: usize = 3;

/// Whom streams of wiki and of issues are allowed by; each has a rule of its own.
const ALLOWLIST: &str = "apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: media}
spec:
  service: media
  rules:
    - {name: wiki-watches, callers: [wiki], paths: [/grpc.health.v1.Health/Watch]}
    - {name: issues-watches, callers: [issues], paths: [/grpc.health.v1.Health/Watch]}
";

const QUARANTINE: &str = "apiVersion: tenon.dev/v1
kind: Quarantine
metadata: {name: incident}
spec: {services: [wiki], reason: leaked key}
";

fn tenant(id: &str) -> Value {
    let shard = |product: &str| json!({"cluster": "c1", "database": format!("{product}-1"), "schema": "main"});
    let product = |name: &str| json!({"state": "ACTIVE", "shard": shard(name)});
    let products = json!({"issues": product("issues"), "media": product("media")});
    json!({"tenantId": id, "status": "ACTIVE", "region": "us-east", "products": products})
}

async fn outbound(mesh: &Mesh, caller: &str, callee: &str) -> Channel {
    channel(mesh.outbound(caller, "us-east"), callee).await.expect("the sidecar answers")
}

/// A mesh with a stream of issues for globex, which goes on whatever happens to wiki and to acme.
struct Streams {
    mesh: Mesh,
    wiki: Channel,
    bystander: Streaming<HealthCheckResponse>,
}

impl Streams {
    async fn start() -> Self {
        let mesh = Plan::demo().expect("a plan").file("allowlists.yaml", ALLOWLIST).start().expect("the mesh starts");
        mesh.import(&[tenant("acme"), tenant("globex")]).expect("imported");
        let (wiki, issues) = (outbound(&mesh, "wiki", "media").await, outbound(&mesh, "issues", "media").await);
        let bystander = open(&issues, "globex").await;
        Streams { mesh, wiki, bystander }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.mesh.policy_dir().join(file), text).expect("written");
    }

    fn tenon(&self, args: &[&str]) {
        block_in_place(|| self.mesh.tenon_ok(args)).expect("it succeeds");
    }

    /// Opens a stream of wiki for acme, and cuts it off, several times. Each time it ends with the reason in its trailers.
    async fn end_with(mut self, expected: &str, cut: impl Fn(&Self), restore: impl Fn(&Self)) {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let mut stream = open(&self.wiki, "acme").await;
            cut(&self);
            let written = Instant::now();
            let status = tokio::time::timeout(SOON, end_of(&mut stream)).await.expect("the stream ends");
            rounds.push(written.elapsed());
            assert_eq!(reason(&status).as_deref(), Some(expected), "round {round}: {status}");
            restore(&self);
        }
        rounds.sort_unstable();
        assert!(rounds[ROUNDS / 2] < PROMISE, "the median of {rounds:?} is over {PROMISE:?}");
        let more = tokio::time::timeout(Duration::ZERO, self.bystander.message()).await;
        assert!(more.is_err(), "the stream of another caller for another tenant came to {more:?}");
    }
}

/// A stream that stays open for as long as it may, and whose headers have come. Waits until it is allowed.
async fn open(channel: &Channel, tenant: &str) -> Streaming<HealthCheckResponse> {
    let (mut client, began) = (HealthClient::new(channel.clone()), Instant::now());
    loop {
        let answer = client.watch(for_tenant(tenant, HealthCheckRequest::default())).await;
        let came = outcome(&answer);
        if let Ok(answer) = answer {
            let mut stream = answer.into_inner();
            stream.message().await.expect("a first message").expect("not its end");
            return stream;
        }
        assert!(began.elapsed() < SOON, "the stream is never allowed: {came}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The trailers of a stream that must not end well.
async fn end_of(stream: &mut Streaming<HealthCheckResponse>) -> Status {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if all were well"),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_ends_when_its_caller_is_quarantined() {
    let streams = Streams::start().await;
    let lift = |streams: &Streams| fs::remove_file(streams.mesh.policy_dir().join("quarantine.yaml")).expect("removed");
    streams.end_with("QUARANTINED", |streams| streams.write("quarantine.yaml", QUARANTINE), lift).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_ends_when_its_tenant_is_suspended() {
    let streams = Streams::start().await;
    let run = |command: &'static str| move |streams: &Streams| streams.tenon(&["tenants", command, "acme"]);
    streams.end_with("TENANT_SUSPENDED", run("suspend"), run("unsuspend")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_ends_when_its_rule_is_taken_away() {
    let streams = Streams::start().await;
    let without: Vec<&str> = ALLOWLIST.lines().filter(|line| !line.contains("wiki-watches")).collect();
    let without = without.join("\n");
    let restore = |streams: &Streams| streams.write("allowlists.yaml", ALLOWLIST);
    streams.end_with("PATH_NOT_ALLOWED", |streams| streams.write("allowlists.yaml", &without), restore).await;
}

/// What a compromised issues asks of media on its own.
async fn list(media: &mut MediaClient<Channel>, tenant: &str) -> String {
    outcome(&media.list(for_tenant(tenant, ListRequest {})).await)
}

async fn becomes(media: &mut MediaClient<Channel>, tenant: &str, expected: &str) {
    let began = Instant::now();
    loop {
        let came = list(media, tenant).await;
        if came == expected {
            return;
        }
        assert!(began.elapsed() < SOON, "a call for {tenant} is {came}, never {expected}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_service_that_does_not_originate_calls_only_for_the_tenant_it_is_serving() {
    let services = fs::read_to_string(repository().join("mesh-config/demo/services.yaml")).expect("the file");
    let held = services.replace("  product: issues\n", "  product: issues\n  originates: false\n");
    assert_ne!(services, held);
    let mesh = Plan::demo().expect("a plan").file("services.yaml", &held).start().expect("the mesh starts");
    mesh.import(&[tenant("acme"), tenant("globex")]).expect("imported");
    // Whoever has taken the app over calls through its sidecar, as the app does.
    let mut media = MediaClient::new(outbound(&mesh, "issues", "media").await);
    for tenant in ["acme", "globex"] {
        becomes(&mut media, tenant, "TENANT_NOT_IN_FLIGHT").await;
    }

    // wiki attaches a file to an issue of acme, and takes its time.
    let mut issues = IssuesClient::new(outbound(&mesh, "wiki", "issues").await);
    let create = || CreateRequest { project: "OPS".into(), summary: "Disk full".into(), ..CreateRequest::default() };
    let began = Instant::now();
    let issue = loop {
        match issues.create(for_tenant("acme", create())).await {
            Ok(created) => break created.into_inner(),
            Err(status) => assert!(began.elapsed() < SOON, "no issue can be made: {status}"),
        }
    };
    let (parts, receiver) = mpsc::channel(1);
    let attaching =
        tokio::spawn(async move { outcome(&issues.attach(for_tenant("acme", ReceiverStream::new(receiver))).await) });
    let header = AttachHeader { key: issue.key, name: "df.txt".into(), content_type: "text/plain".into() };
    parts.send(AttachRequest { part: Some(Part::Header(header)) }).await.expect("sent");

    becomes(&mut media, "acme", "ALLOWED").await;
    for _ in 0..20 {
        assert_eq!(list(&mut media, "globex").await, "TENANT_NOT_IN_FLIGHT", "while it serves acme");
        assert_eq!(list(&mut media, "nobody").await, "TENANT_NOT_IN_FLIGHT", "while it serves acme");
        assert_eq!(list(&mut media, "acme").await, "ALLOWED");
    }
    parts.send(AttachRequest { part: Some(Part::Data("100 %".into())) }).await.expect("sent");
    drop(parts);
    assert_eq!(attaching.await.expect("the task ran"), "ALLOWED", "its own calls for acme passed");
    becomes(&mut media, "acme", "TENANT_NOT_IN_FLIGHT").await;
}
