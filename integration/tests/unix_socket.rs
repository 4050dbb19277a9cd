//! The app's side on Unix sockets, and a sidecar wholly on IPv6: `--outbound unix:`, `--app-uid`, `--app unix:`, `[::1]`.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use integration::{
    by_hand::{Instance, POLICY},
    calls::{channel, for_tenant, http_get, outcome},
    mesh::{Mesh, Plan, SOON, binary},
};
use rustix::process::Signal;
use serde_json::json;
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{Instant, sleep},
};
use tonic::transport::{Channel, Endpoint, Uri};

fn mesh() -> Mesh {
    start(Plan::new().expect("a plan").file("policy.yaml", POLICY).caller("wiki", "us-east"))
}

fn start(plan: Plan) -> Mesh {
    let mesh = plan.start().expect("the mesh starts");
    mesh.import(&[json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east",
        "products": {"media": {"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}}}
    })])
    .expect("imported");
    mesh
}

async fn list(channel: Channel) -> String {
    outcome(&MediaClient::new(channel).list(for_tenant("acme", ListRequest {})).await)
}

/// Calls of an app on a Unix socket.
async fn over(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket: Arc<Path> = socket.into();
    let connect = move |_: Uri| {
        let socket = Arc::clone(&socket);
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    };
    let connector = tower::service_fn(connect);
    Endpoint::from_static("http://media").connect_with_connector(connector).await
}

/// Until a call passes: callers hear of new instances a moment later.
async fn passes<T: Future<Output = String>>(call: impl Fn() -> T) {
    let end = Instant::now() + SOON;
    loop {
        let answer = call().await;
        if answer == "ALLOWED" {
            return;
        }
        assert!(Instant::now() < end, "{answer}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// `media` itself listens on TCP alone: what comes at the socket goes there.
async fn stand_before(app: SocketAddr, socket: &Path) {
    let listener = UnixListener::bind(socket).expect("bound");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let Ok(mut app) = TcpStream::connect(app).await else { continue };
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut app).await });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_on_unix_sockets_calls_and_is_called_and_other_users_are_refused() {
    let mesh = mesh();
    let (outbound, app) = (mesh.scratch().join("outbound.sock"), mesh.scratch().join("app.sock"));
    let own = rustix::process::geteuid().as_raw();
    let instance = Instance::plan(&mesh, "media", "media-0").expect("a plan");
    let instance = instance.with("--outbound", &format!("unix:{}", outbound.display()));
    let instance = instance.with("--app", &format!("unix:{}", app.display()));
    let mut instance = instance.option("--app-uid", &format!("{own},65534"));
    stand_before(instance.app(), &app).await;
    instance.start_app().expect("an app");
    instance.start_sidecar().expect("a sidecar");
    instance.registered().await.expect("registered");
    // Both ways: of the app, and to it.
    passes(|| async { list(over(&outbound).await.expect("connected")).await }).await;
    let mode = std::fs::metadata(&outbound).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    assert!(instance.end_sidecar(Signal::TERM).await.expect("ended").success(), "{}", instance.log());
    assert!(!outbound.exists(), "its file is gone");

    // Now it is another user's.
    let mut instance = instance.with("--app-uid", "65534");
    instance.start_sidecar().expect("a sidecar");
    instance.registered().await.expect("registered");
    let answer = match over(&outbound).await {
        Ok(channel) => list(channel).await,
        Err(_refused) => "refused".to_owned(),
    };
    assert_ne!(answer, "ALLOWED");
    let metrics = http_get(instance.admin(), "/metrics").await.expect("metrics");
    let counted = |line: &&str| line.starts_with("tenon_connections_closed_total") && line.contains("why=\"user\"");
    let refused: Vec<&str> = metrics.lines().filter(counted).filter(|line| !line.ends_with(" 0")).collect();
    assert!(refused.len() == 1 && refused[0].contains("outbound"), "{refused:?}");
    assert!(instance.log().contains("--app-uid does not name its user"), "{}", instance.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_and_its_app_on_ipv6_alone_are_called_and_call() {
    if let Err(error) = TcpListener::bind("[::1]:0").await {
        println!("NOT TESTED: this machine has no IPv6 ({error})");
        return;
    }
    let mesh = mesh();
    let instance = Instance::plan(&mesh, "media", "media-0").expect("a plan");
    let six = |address: SocketAddr| SocketAddr::new("::1".parse().expect("an address"), address.port());
    let (outbound, inbound, app) = (six(instance.outbound()), six(instance.inbound()), six(instance.app()));
    let instance = instance.with("--outbound", &outbound.to_string()).with("--inbound", &inbound.to_string());
    let mut instance = instance.with("--app", &app.to_string());
    instance.start_app_at(app).expect("an app");
    instance.start_sidecar().expect("a sidecar");
    instance.registered().await.expect("registered");
    passes(|| async { list(channel(outbound, "media").await.expect("connected")).await }).await;
    let wiki = mesh.outbound("wiki", "us-east");
    passes(|| async { list(channel(wiki, "media").await.expect("connected")).await }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_works_wholly_on_ipv6() {
    if let Err(error) = TcpListener::bind("[::1]:0").await {
        println!("NOT TESTED: this machine has no IPv6 ({error})");
        return;
    }
    let media = binary("media").expect("built");
    let data = tempfile::tempdir().expect("a folder");
    let command = |port: u16| {
        let words =
            [&*media.to_string_lossy(), "--listen", &format!("[::1]:{port}"), "--data", &data.path().to_string_lossy()];
        words.map(str::to_owned).to_vec()
    };
    let plan = Plan::new().expect("a plan").ipv6().file("policy.yaml", POLICY);
    let mesh = start(plan.caller("wiki", "us-east").app("media", "us-east", command));
    let outbound = mesh.outbound("wiki", "us-east");
    assert!(outbound.is_ipv6());
    passes(|| async { list(channel(outbound, "media").await.expect("connected")).await }).await;
}
