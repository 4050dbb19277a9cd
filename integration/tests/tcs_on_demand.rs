//! Sidecars that hold the tenants they were asked for, under `tenon up`: open streams, new tenants, and no TCS.

use std::time::{Duration, Instant};

use integration::{
    calls::{channel, for_tenant, outcome},
    changes::{self, LOOKUP},
    mesh::{Mesh, Plan, SOON, eventually, signal},
    under_traffic::OUTAGE,
};
use rustix::process::Signal;
use tenon_proto::{
    media::v1::{ListRequest, UploadHeader, UploadRequest, media_client::MediaClient, upload_request::Part},
    tcs::v1::{
        GetTenantContextRequest, SuspendRequest, TenantContext, TenantKey,
        tenant_contexts_client::TenantContextsClient, tenant_key::By,
    },
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

/// How soon a suspension ends what is open.
const SUSPENDED_WITHIN: Duration = Duration::from_secs(2);

/// The demo's mesh, where media in us-east and wiki hold what they were asked for.
async fn mesh(tenants: &[&str]) -> Mesh {
    let plan = Plan::demo().expect("a plan").on_demand("media", "us-east").on_demand("wiki", "us-east");
    let mesh = plan.start().expect("the mesh starts");
    write(&mesh, tenants.iter().map(|id| changes::tenant(id, 0)).collect()).await;
    mesh
}

async fn write(mesh: &Mesh, tenants: Vec<TenantContext>) {
    let (tcs, operator) = (mesh.tcs().expect("addresses"), mesh.operator().expect("credentials"));
    changes::write(&mut changes::operator(tcs[0], &operator), tenants).await.expect("imported");
}

/// Starts media's sidecar in us-east again with the smallest cache there is.
fn with_a_tiny_cache(mesh: &mut Mesh) {
    let all = mesh.processes("tenon-sidecar --service media");
    let us_east = |command: &[String]| command.iter().any(|word| word == "us-east");
    let (pid, mut command) = all.into_iter().find(|(_, command)| us_east(command)).expect("it runs");
    command.extend(["--tenant-cache-bytes".to_owned(), "1MiB".to_owned()]);
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    signal(pid, Signal::KILL).expect("killed");
    let outbound = mesh.outbound("media", "us-east");
    eventually(SOON, "it is gone", || Ok(std::net::TcpStream::connect(outbound).is_err())).expect("gone");
    mesh.start_by_hand(&command).expect("started");
    eventually(SOON, "it is back", || Ok(std::net::TcpStream::connect(outbound).is_ok())).expect("back");
}

async fn media_by(mesh: &Mesh, caller: &str) -> MediaClient<Channel> {
    MediaClient::new(channel(mesh.outbound(caller, "us-east"), "media").await.expect("the sidecar answers"))
}

async fn called(media: &mut MediaClient<Channel>, tenant: &str) -> String {
    outcome(&media.list(for_tenant(tenant, ListRequest {})).await)
}

/// Calls until it is answered so; how long that took.
async fn settles(media: &mut MediaClient<Channel>, tenant: &str, expected: &str) -> Duration {
    let began = Instant::now();
    loop {
        let outcome = called(media, tenant).await;
        if outcome == expected {
            return began.elapsed();
        }
        assert!(began.elapsed() < SOON, "{tenant}: {outcome} instead of {expected}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An upload that has begun and never ends by itself; its outcome, and when something ended it.
async fn endless_upload(mesh: &Mesh, tenant: &str) -> (JoinHandle<(String, Instant)>, mpsc::Sender<UploadRequest>) {
    let mut media = media_by(mesh, "issues").await;
    settles(&mut media, tenant, "ALLOWED").await;
    let (sender, receiver) = mpsc::channel(1);
    let tenant = tenant.to_owned();
    let call = tokio::spawn(async move {
        let answer = media.upload(for_tenant(&tenant, ReceiverStream::new(receiver))).await;
        (outcome(&answer), Instant::now())
    });
    let header = UploadHeader { name: "endless".into(), content_type: "text/plain".into() };
    for part in [Part::Header(header), Part::Data("begun".into())] {
        sender.send(UploadRequest { part: Some(part) }).await.expect("sent");
    }
    (call, sender)
}

async fn look_up(client: &mut TenantContextsClient<Channel>, id: &str) -> Result<(), Status> {
    let key = Some(TenantKey { by: Some(By::TenantId(id.to_owned())) });
    client.get(GetTenantContextRequest { key, at_least: None }).await.map(drop)
}

/// Has media's sidecar look at so many large tenants that it has no room for any other.
async fn evict(mesh: &Mesh, tenant: &str) {
    const FILLERS: usize = 120;
    let large = |number: usize| {
        let mut filler = changes::tenant(&format!("filler-{number:03}"), 0);
        filler.settings.insert("filler".into(), "x".repeat(30_000));
        filler
    };
    for first in (0..FILLERS).step_by(30) {
        write(mesh, (first..first + 30).map(large).collect()).await;
    }
    let media = channel(mesh.outbound("media", "us-east"), LOOKUP).await.expect("the sidecar answers");
    let mut media = TenantContextsClient::new(media);
    for number in 0..FILLERS {
        look_up(&mut media, &format!("filler-{number:03}")).await.expect("it is there");
    }
    // While nobody can be asked, only what is held is answered.
    let tcs = mesh.service("tcs").expect("it runs");
    signal(tcs, Signal::STOP).expect("stopped");
    let answer = look_up(&mut media, tenant).await;
    signal(tcs, Signal::CONT).expect("it goes on");
    assert_eq!(answer.expect_err("it is held still").code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_ends_when_its_tenant_is_suspended_held_or_not() {
    let mut mesh = mesh(&["acme", "globex"]).await;
    with_a_tiny_cache(&mut mesh);
    let (tcs, operator) = (mesh.tcs().expect("addresses"), mesh.operator().expect("credentials"));
    let mut tenants = changes::operator(tcs[0], &operator);
    for (tenant, evicted) in [("acme", false), ("globex", true)] {
        let (call, _open) = endless_upload(&mesh, tenant).await;
        if evicted {
            evict(&mesh, tenant).await;
        }
        assert!(!call.is_finished(), "nothing has ended it yet");
        tenants.suspend(SuspendRequest { tenant_id: tenant.into() }).await.expect("suspended");
        let acknowledged = Instant::now();
        let (outcome, at) = tokio::time::timeout(SOON, call).await.expect("it ends").expect("the task ran");
        assert_eq!(outcome, "TENANT_SUSPENDED", "{tenant}");
        let took = at.saturating_duration_since(acknowledged);
        assert!(took < SUSPENDED_WITHIN, "{tenant}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_tenant_is_served_at_once_and_known_ones_without_the_tcs() {
    let mesh = mesh(&["acme", "other"]).await;
    let mut media = media_by(&mesh, "wiki").await;
    settles(&mut media, "acme", "ALLOWED").await;
    // Twice: the second "no" is held.
    for _ in 0..2 {
        assert_eq!(called(&mut media, "late").await, "TENANT_UNKNOWN");
    }
    write(&mesh, vec![changes::tenant("late", 0)]).await;
    let took = settles(&mut media, "late", "ALLOWED").await;
    assert!(took < Duration::from_secs(2), "{took:?} after it was created");

    let tcs = mesh.service("tcs").expect("it runs");
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    signal(tcs, Signal::KILL).expect("killed");
    let killed = Instant::now();
    while killed.elapsed() < OUTAGE {
        for known in ["acme", "late"] {
            assert_eq!(called(&mut media, known).await, "ALLOWED", "{known} after {:?}", killed.elapsed());
        }
        assert_eq!(called(&mut media, "other").await, "TCS_UNAVAILABLE", "after {:?}", killed.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    signal(mesh.pid(), Signal::CONT).expect("it goes on");
    settles(&mut media, "other", "ALLOWED").await;
}
