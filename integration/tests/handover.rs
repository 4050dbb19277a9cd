//! A new process takes over from a sidecar that runs: nobody is refused, whoever connects meanwhile.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use integration::{
    by_hand::{Instance, POLICY},
    calls::{channel, for_tenant, http_get, outcome},
    mesh::{Mesh, Plan, SOON, wait},
    open_loop::OpenLoop,
};
use mesh_identity::{
    Identity,
    join::{self, Joined},
    testing::service,
    tls,
};
use rustix::process::Signal;
use serde_json::json;
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};

/// Calls before, between and after what is done.
const QUIET: Duration = Duration::from_millis(700);

async fn until<T: Future<Output = bool>>(what: &str, ask: impl Fn() -> T) {
    let end = Instant::now() + SOON;
    while !ask().await {
        assert!(Instant::now() < end, "it did not come true that {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn list(outbound: SocketAddr) -> Result<(), String> {
    let channel = channel(outbound, "media").await.map_err(|error| format!("{error:#}"))?;
    match &*outcome(&MediaClient::new(channel).list(for_tenant("acme", ListRequest {})).await) {
        "ALLOWED" => Ok(()),
        other => Err(other.to_owned()),
    }
}

/// As far as the SETTINGS of the sidecar.
async fn handshake(inbound: SocketAddr, identity: &Arc<Identity>) -> Result<(), String> {
    let tcp = TcpStream::connect(inbound).await.map_err(|error| format!("connecting: {error}"))?;
    let connected = tls::connect(&tls::client_config(identity, &service("media")), tcp).await;
    let mut stream = connected.map_err(|error| format!("TLS: {error}"))?;
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(hello).await.map_err(|error| format!("the preface: {error}"))?;
    let mut first = [0; 9];
    stream.read_exact(&mut first).await.map_err(|error| format!("SETTINGS: {error}"))?;
    if first[3] == 4 { Ok(()) } else { Err(format!("{first:?} is no SETTINGS frame")) }
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
        state_dir: mesh.scratch().join(format!("joined-{name}")),
    })
    .await
    .expect("joins")
}

/// Three kinds of callers: of the app with a connection each, of other sidecars with a connection each, and of a sidecar
/// that keeps its connection.
struct Load(Vec<(&'static str, OpenLoop)>);

impl Load {
    async fn start(mesh: &Mesh, instance: &Instance) -> Self {
        let (outbound, inbound, identity) =
            (instance.outbound(), instance.inbound(), joined(mesh, "wiki").await.identity);
        let client = MediaClient::new(channel(mesh.outbound("wiki", "us-east"), "media").await.expect("connected"));
        Self(vec![
            ("new connections of the app", OpenLoop::start(40, move || list(outbound))),
            (
                "new connections of sidecars",
                OpenLoop::start(40, move || {
                    let identity = Arc::clone(&identity);
                    async move { handshake(inbound, &identity).await }
                }),
            ),
            (
                "calls of a sidecar that is connected",
                OpenLoop::start(100, move || {
                    let mut client = client.clone();
                    async move {
                        match &*outcome(&client.list(for_tenant("acme", ListRequest {})).await) {
                            "ALLOWED" => Ok(()),
                            other => Err(other.to_owned()),
                        }
                    }
                }),
            ),
        ])
    }

    /// None of them noticed anything.
    async fn judge(self) {
        for (what, calls) in self.0 {
            let record = calls.stop().await;
            assert!(record.failures().is_empty(), "{what}: {:?} of {}", record.failures(), record.calls.len());
            println!("{what}: {}", record.calls.len());
        }
    }
}

fn said(instance: &Instance, lines: &str) -> usize {
    instance.log().matches(lines).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_is_taken_over_from_twice_and_once_in_vain_and_nobody_is_refused() {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY).caller("wiki", "us-east");
    let mesh = plan.start().expect("the mesh starts");
    let tenant = json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"media": {"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}}}
    });
    mesh.import(&[tenant]).expect("imported");
    let instance = Instance::plan(&mesh, "media", "media-0").expect("a plan");
    let mut instance = instance.option("--tenants", "full");
    instance.start_app().expect("an app");
    instance.start_sidecar().expect("a sidecar");
    instance.registered().await.expect("registered");
    until("calls pass", async || list(instance.outbound()).await.inspect_err(|error| eprintln!("{error}")).is_ok())
        .await;
    let load = Load::start(&mesh, &instance).await;
    sleep(QUIET).await;

    // One that cannot become ready has the sockets, and dies.
    let tenants = [("--tcs", "127.0.0.1:1"), ("--tenants", "on-demand")];
    let running = instance.take_over(&tenants).expect("started");
    until("its sockets are handed over", async || said(&instance, "another process is taking over") == 1).await;
    sleep(QUIET).await;
    assert_eq!(said(&instance, "took over"), 0, "it was ready:\n{}", instance.log());
    let mut vain = instance.replace(running).expect("it ran");
    vain.kill().expect("killed");
    vain.wait().expect("ended");
    until("the first goes on", async || said(&instance, "this one goes on as before") == 1).await;
    sleep(QUIET).await;

    for round in 1..=2 {
        let mut former = instance.take_over(&[]).expect("started");
        let ended = tokio::task::spawn_blocking(move || wait(&mut former, SOON)).await.expect("waited");
        let ended = ended.unwrap_or_else(|error| panic!("round {round}: {error}\n{}", instance.log()));
        assert!(ended.success(), "round {round}: {ended}");
        assert_eq!(said(&instance, "took over"), round);
        http_get(instance.admin(), "/ready").await.expect("ready");
        instance.registered().await.expect("registered");
        sleep(QUIET).await;
    }
    load.judge().await;
    assert!(instance.end_sidecar(Signal::TERM).await.expect("ended").success(), "{}", instance.log());
}
