//! Many connections with many streams each: every call is answered, and answered well.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use integration::{
    bench::h2load::Load,
    by_hand::{Media, TENANT},
    calls::http_get,
    mesh::{Mesh, Plan, SOON},
    open_loop::OpenLoop,
    shop::{self, Shop},
};
use tokio::{task::JoinSet, time::sleep};

const CONNECTIONS: usize = 64;
/// On each of them at once.
const STREAMS: usize = 64;
/// How often h2load fills them.
const ROUNDS: usize = 2;
/// Of the open loop, and for how long.
const PER_SECOND: u32 = 300;
const LASTING: Duration = Duration::from_secs(4);

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
  rules: [{name: all, callers: [wiki], paths: [/shop.v1.Shop/*], tenant: none}]
";

/// Calls of the app beside this sidecar: started, and come to the end of their answer.
async fn calls(admin: SocketAddr) -> [usize; 2] {
    let metrics = http_get(admin, "/metrics").await.expect("metrics");
    let counter = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("it is counted");
        line.trim().parse().expect("a number")
    };
    [
        counter("tenon_calls_started_total{direction=\"outbound\"}"),
        counter("tenon_calls_ended_total{direction=\"outbound\",outcome=\"finished\"}"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_finds_no_error_at_64_streams_on_each_of_64_connections() {
    let world = Media::plan().expect("a mesh").start().await.expect("started");
    let body = world.mesh.scratch().join("empty-message");
    std::fs::write(&body, [0; 5]).expect("written");
    // What is refused, and what the app answers with another status than 0, has no message.
    let load = Load {
        proxy: world.outbound(),
        authority: "media".to_owned(),
        path: "/media.v1.Media/List".to_owned(),
        headers: vec![format!("x-tenant-id: {TENANT}")],
        body,
        answer: 5,
        connections: CONNECTIONS,
        streams: STREAMS,
    };
    let count = CONNECTIONS * STREAMS * ROUNDS;
    let ran = tokio::task::spawn_blocking(move || load.run(count)).await.expect("no panic").expect("every call passes");
    println!("{:.0} calls a second", ran.per_second());
    assert_eq!(calls(world.mesh.admin("wiki", "us-east")).await, [count; 2]);
}

/// A mesh with a shop, and connections of the app `wiki`.
async fn shop() -> (Mesh, std::sync::Arc<Shop>, Vec<SendRequest<Bytes>>) {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY);
    let mesh = plan.app_elsewhere("shop", "us-east").caller("wiki", "us-east").start().expect("the mesh starts");
    let shop = Shop::serve(mesh.app("shop", "us-east")).await.expect("an app");
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        senders.push(shop::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens"));
    }
    (mesh, shop, senders)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_on_64_streams_of_64_connections_are_at_the_app_at_once_and_then_come_at_a_rate() {
    let (mesh, shop, senders) = shop().await;
    shop.answers(false);
    let mut all = JoinSet::new();
    for sender in senders.iter().flat_map(|sender| std::iter::repeat_n(sender, STREAMS)) {
        let sender = sender.clone();
        all.spawn(async move { shop::call(sender, "shop", "Get", &[]).await });
    }
    let begun = Instant::now();
    while shop.waiting() < (CONNECTIONS * STREAMS) as u32 {
        if let Some(ended) = all.try_join_next() {
            panic!("a call has ended before it was answered: {ended:?}");
        }
        assert!(begun.elapsed() < SOON, "{} calls have reached the app", shop.waiting());
        sleep(Duration::from_millis(10)).await;
    }
    shop.answers(true);
    let failed: Vec<_> = all.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} calls failed: {:?}", failed.len(), failed[0]);

    let next = AtomicUsize::default();
    let calls_at_a_rate = OpenLoop::start(PER_SECOND, move || {
        let sender = senders[next.fetch_add(1, Relaxed) % senders.len()].clone();
        async move { shop::call(sender, "shop", "Get", &[]).await }
    });
    sleep(LASTING).await;
    let record = calls_at_a_rate.stop().await;
    assert!(record.failures().is_empty(), "of {} calls: {:?}", record.calls.len(), record.failures());
    let count = CONNECTIONS * STREAMS + record.calls.len();
    assert_eq!(calls(mesh.admin("wiki", "us-east")).await, [count; 2]);
    assert_eq!(shop.calls() as usize, count);
}
