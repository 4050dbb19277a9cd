//! What is beside the listeners when a new process takes over from a sidecar: the tenants that the app is serving, and the
//! Workload API that the app has.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use integration::{
    by_hand::Instance,
    mesh::{Mesh, Plan, SOON, signal, wait},
    open_loop::OpenLoop,
    shop::{self, Shop},
};
use rustix::process::Signal;
use serde_json::json;
use spiffe::WorkloadApiClient;
use tokio::{task::JoinHandle, time::sleep};

const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: front}
spec: {product: shop, originates: false}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: shop}
spec: {product: shop}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: front}
spec:
  service: front
  rules: [{name: all, callers: [wiki], paths: [/shop.v1.Shop/*]}]
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: shop}
spec:
  service: shop
  rules: [{name: all, callers: [front], paths: [/shop.v1.Shop/*]}]
";
/// Of the app's requests after a take-over.
const QUIET: Duration = Duration::from_millis(300);
/// In the folder of the test.
const API: &str = "front-api.sock";
const ACME: &[(&str, &str)] = &[("x-tenant-id", "acme")];

struct World {
    mesh: Mesh,
    instance: Instance,
    /// The app of the instance.
    front: Arc<Shop>,
    /// The connection of the app `wiki`.
    wiki: SendRequest<Bytes>,
}

impl World {
    /// An instance of `front`, whose app has a Workload API, and a shop that it may call.
    async fn start() -> Self {
        let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY).caller("wiki", "us-east");
        let mesh = plan.app_elsewhere("shop", "us-east").start().expect("the mesh starts");
        let products = json!({"shop": {"state": "ACTIVE"}});
        let tenant = json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": products});
        mesh.import(&[tenant]).expect("imported");
        Shop::serve(mesh.app("shop", "us-east")).await.expect("an app");
        let instance = Instance::plan(&mesh, "front", "front-0").expect("a plan");
        let api = mesh.scratch().join(API).display().to_string();
        let mut instance = instance.option("--tenants", "full").option("--serve-workload-api", &api);
        let front = Shop::serve(instance.app()).await.expect("an app");
        instance.start_sidecar().expect("a sidecar");
        instance.registered().await.expect("registered");
        let wiki = shop::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens");
        let begun = Instant::now();
        while let Err(error) = shop::call(wiki.clone(), "front", "Get", ACME).await {
            assert!(begun.elapsed() < SOON, "no call passes: {error}");
            sleep(Duration::from_millis(20)).await;
        }
        Self { mesh, instance, front, wiki }
    }

    /// A call of `wiki` that the app has, and does not answer yet.
    async fn held(&self) -> JoinHandle<Result<(), String>> {
        let before = self.front.waiting();
        let wiki = self.wiki.clone();
        let call = tokio::spawn(async move { shop::call(wiki, "front", "Get", ACME).await });
        let begun = Instant::now();
        while self.front.waiting() == before {
            assert!(begun.elapsed() < SOON && !call.is_finished(), "the call does not arrive");
            sleep(Duration::from_millis(10)).await;
        }
        call
    }

    /// A call that the app makes for the tenant, on a new connection.
    async fn onward(&self) -> Result<(), String> {
        let sender = shop::connect(self.instance.outbound()).await.expect("the sidecar listens");
        shop::call(sender, "shop", "Get", ACME).await
    }

    /// Another process takes over. Comes back with the first one when the other accepts.
    async fn taken_over(&mut self) -> std::process::Child {
        let former = self.instance.take_over(&[]).expect("started");
        let begun = Instant::now();
        while !self.instance.log().contains("took over") {
            assert!(begun.elapsed() < SOON, "it does not take over:\n{}", self.instance.log());
            sleep(Duration::from_millis(10)).await;
        }
        former
    }
}

async fn ended(mut former: std::process::Child) {
    let status = tokio::task::spawn_blocking(move || wait(&mut former, SOON)).await.expect("waited").expect("it ends");
    assert!(status.success(), "{status}");
}

fn not_in_flight(call: &Result<(), String>) {
    assert!(call.as_ref().is_err_and(|error| error.contains("TENANT_NOT_IN_FLIGHT")), "{call:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_process_knows_the_tenants_that_the_app_serves_through_it() {
    let mut world = World::start().await;
    not_in_flight(&world.onward().await);
    world.front.answers(false);
    let first = world.held().await;
    world.onward().await.expect("the app serves the tenant");

    let former = world.taken_over().await;
    // The app serves the tenant through the process that ends; docs/life-cycle.md says what that means here.
    not_in_flight(&world.onward().await);
    let second = world.held().await;
    world.onward().await.expect("the app serves the tenant through the new process");
    assert!(!first.is_finished(), "the first call is not cut");
    world.front.answers(true);
    first.await.expect("no panic").expect("a call of the process that ends is answered");
    second.await.expect("no panic").expect("and one of the new process");
    ended(former).await;
    not_in_flight(&world.onward().await);
}

/// What the app does that wants its identity.
async fn fetched(path: String) -> Result<(), String> {
    let client = WorkloadApiClient::connect_to(&path).await.map_err(|error| format!("connecting: {error}"))?;
    let svid = client.fetch_x509_svid().await.map_err(|error| format!("fetching: {error}"))?;
    let id = svid.spiffe_id().to_string();
    if id == "spiffe://test.example/svc/front" { Ok(()) } else { Err(id) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_finds_its_workload_api_before_a_take_over_during_it_and_after() {
    let mut world = World::start().await;
    let path = format!("unix://{}", world.mesh.scratch().join(API).display());
    let fetch = OpenLoop::start(20, move || fetched(path.clone()));
    for _ in 0..2 {
        let former = world.instance.take_over(&[]).expect("started");
        ended(former).await;
        sleep(QUIET).await;
    }
    let record = fetch.stop().await;
    assert!(record.failures().is_empty(), "of {}: {:?}", record.calls.len(), record.failures());
    shop::call(world.wiki.clone(), "front", "Get", ACME).await.expect("calls pass");
}

/// Bug: the process that ended removed the file of the socket that both had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workload_api_outlives_a_process_that_is_told_to_end_before_the_other_is_ready() {
    let mut world = World::start().await;
    let path = format!("unix://{}", world.mesh.scratch().join(API).display());
    // Not ready, since it hears of no tenants.
    let former = world.instance.take_over(&[("--tcs", "127.0.0.1:1"), ("--tenants", "on-demand")]).expect("started");
    let begun = Instant::now();
    while !world.instance.log().contains("another process is taking over") {
        assert!(begun.elapsed() < SOON, "nothing is handed over:\n{}", world.instance.log());
        sleep(Duration::from_millis(10)).await;
    }
    assert!(!world.instance.log().contains("took over"), "it was ready:\n{}", world.instance.log());
    signal(former.id(), Signal::TERM).expect("told");
    ended(former).await;
    let begun = Instant::now();
    while let Err(error) = fetched(path.clone()).await {
        assert!(begun.elapsed() < SOON, "{error}:\n{}", world.instance.log());
        sleep(Duration::from_millis(20)).await;
    }
}
