//! Memory stays flat under traffic of every kind: good calls, refused ones, calls that are given up, connections that come and
//! go, changes of tenants. Seconds long here; `make test-long` sets TENON_SOAK_SECONDS to half an hour.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use integration::{
    calls::{channel, for_tenant, outcome},
    mesh::{Mesh, Plan},
    open_loop::OpenLoop,
};
use serde_json::json;
use tenon_proto::media::v1::{GetRequest, ListRequest, media_client::MediaClient};
use tokio::time::{sleep, timeout};

const PER_SECOND: u32 = 200;
/// The shortest soak that says something.
const SHORT: u64 = 12;
/// Memory is looked at so often.
const LOOKS: u32 = 60;

fn length() -> Duration {
    let seconds =
        std::env::var("TENON_SOAK_SECONDS").ok().map(|text| text.parse().expect("TENON_SOAK_SECONDS: seconds"));
    Duration::from_secs(seconds.unwrap_or(SHORT).max(SHORT))
}

/// Resident memory of each sidecar, in KiB.
fn memory(mesh: &Mesh) -> BTreeMap<u32, u64> {
    let sidecars = mesh.processes("tenon-sidecar");
    let resident = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    sidecars.into_iter().map(|(pid, _)| (pid, resident(pid))).collect()
}

/// One call of each kind in turn.
async fn call(outbound: SocketAddr, client: MediaClient<tonic::transport::Channel>, number: u32) -> Result<(), String> {
    let mut client = client;
    let expect =
        |wanted: &str, came: String| if came == wanted { Ok(()) } else { Err(format!("{came}, not {wanted}")) };
    match number % 8 {
        // Given up at once: the other side hears of it, or never of the call.
        0 => {
            let _given_up = timeout(Duration::from_micros(200), client.list(for_tenant("acme", ListRequest {}))).await;
            Ok(())
        }
        1 => expect("TENANT_UNKNOWN", outcome(&client.list(for_tenant("nobody", ListRequest {})).await)),
        2 => {
            let channel = channel(outbound, "media").await.map_err(|error| error.to_string())?;
            expect("ALLOWED", outcome(&MediaClient::new(channel).list(for_tenant("acme", ListRequest {})).await))
        }
        3 => {
            let request = for_tenant("acme", GetRequest { id: format!("none-{number}") });
            let answer = client.get(request).await.map(|_| ());
            match answer {
                Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
                other => Err(outcome(&other)),
            }
        }
        _ => expect("ALLOWED", outcome(&client.list(for_tenant("acme", ListRequest {})).await)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_flat_under_traffic_of_every_kind() {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let tenant = |revision: u32| {
        json!({
            "tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"media": {"state": "ACTIVE", "shard": {"cluster": "a", "database": "media", "schema": "acme"}}},
            "settings": {"turn": revision.to_string()}
        })
    };
    mesh.import(&[tenant(0)]).expect("imported");
    let outbound = mesh.outbound("wiki", "us-east");
    let client = MediaClient::new(channel(outbound, "media").await.expect("connected"));
    let numbers = std::sync::atomic::AtomicU32::new(0);
    let calls = OpenLoop::start(PER_SECOND, move || {
        call(outbound, client.clone(), numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    });
    let (length, begun, mut looks) = (length(), Instant::now(), Vec::new());
    while begun.elapsed() < length {
        sleep(length / LOOKS).await;
        mesh.import(&[tenant(u32::try_from(looks.len()).expect("few"))]).expect("imported");
        looks.push(memory(&mesh));
    }
    let record = calls.stop().await;
    assert!(record.failures().is_empty(), "of {} calls: {:?}", record.calls.len(), record.failures());
    // The first half warms up: pools, arenas of the allocator, pages of the program.
    let (before, after) = looks[looks.len() / 2..].split_at(looks.len() / 4);
    let mean = |looks: &[BTreeMap<u32, u64>], pid: &u32| {
        looks.iter().map(|look| look.get(pid).expect("no sidecar ended")).sum::<u64>() / looks.len().max(1) as u64
    };
    for pid in looks[0].keys() {
        let (before, after) = (mean(before, pid), mean(after, pid));
        println!("sidecar {pid}: {before} KiB, then {after} KiB, after {} calls", record.calls.len());
        assert!(after <= before + before / 10, "sidecar {pid} grew from {before} to {after} KiB");
    }
}
