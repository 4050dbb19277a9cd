//! Static stability: what the data plane does when the control plane is gone.

use std::time::{Duration, Instant};

use integration::{
    calls::{channel, for_tenant, outcome},
    mesh::{Mesh, Plan, SOON, signal},
};
use serde_json::json;
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};
use tonic::transport::Channel;

fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let media = json!({"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}});
    mesh.import(&[json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"media": media}})])
        .expect("imported");
    mesh
}

async fn until_allowed(client: &mut MediaClient<Channel>) {
    let end = Instant::now() + SOON;
    loop {
        let came = outcome(&client.list(for_tenant("acme", ListRequest {})).await);
        if came == "ALLOWED" {
            return;
        }
        assert!(Instant::now() < end, "calls do not pass: {came}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_for_a_minute_without_a_control_plane_and_a_sidecar_started_meanwhile_serves() {
    let mut mesh = mesh();
    let connect = channel(mesh.outbound("wiki", "us-east"), "media").await.expect("the sidecar answers");
    let mut client = MediaClient::new(connect);
    until_allowed(&mut client).await;
    mesh.kill_control_plane().expect("killed");
    let killed = Instant::now();
    let mut calls = 0;
    while killed.elapsed() < Duration::from_secs(60) {
        let came = outcome(&client.list(for_tenant("acme", ListRequest {})).await);
        assert_eq!(came, "ALLOWED", "call {calls}, {:?} after the control plane was killed", killed.elapsed());
        calls += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(calls > 1_000, "{calls} calls in a minute prove nothing");

    let (pid, command) = mesh
        .processes("tenon-sidecar --service media")
        .into_iter()
        .find(|(_, words)| words.contains(&"us-east".into()))
        .expect("the sidecar of media in us-east runs");
    signal(pid, rustix::process::Signal::KILL).expect("killed");
    mesh.start_by_hand(&command).expect("started with the same arguments");
    until_allowed(&mut client).await;
    for _ in 0..100 {
        assert_eq!(outcome(&client.list(for_tenant("acme", ListRequest {})).await), "ALLOWED");
    }
}
