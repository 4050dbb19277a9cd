//! Instances that say of themselves that they cannot serve get no calls, where a `Route` asks for it, and get them again when
//! they can; those that do not say are left alone.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use integration::{
    calls::http_get,
    mesh::{Mesh, Plan, SOON},
    shop::{self, Health, Shop},
};

/// Nobody may ask the bank how it does.
const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: shop}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: bank}
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
  rules:
    - {name: all, callers: [wiki], paths: [/shop.v1.Shop/*], tenant: none}
    - {name: health, callers: ['*'], paths: [/grpc.health.v1.Health/Check], tenant: none}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: bank}
spec:
  service: bank
  rules: [{name: all, callers: [wiki], paths: [/shop.v1.Shop/*], tenant: none}]
---
apiVersion: tenon.dev/v1
kind: Route
metadata: {name: shop}
spec:
  service: shop
  slowStart: 100ms
  healthCheck: {service: shop.v1.Shop, interval: 1s, timeout: 1s, unhealthy: 2, healthy: 1}
---
apiVersion: tenon.dev/v1
kind: Route
metadata: {name: bank}
spec:
  service: bank
  healthCheck: {interval: 1s, timeout: 1s, unhealthy: 1}
";

struct World {
    mesh: Mesh,
    shops: Vec<Arc<Shop>>,
    banks: Vec<Arc<Shop>>,
    sender: SendRequest<Bytes>,
}

impl World {
    async fn start() -> Self {
        let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY).caller("wiki", "us-east");
        let plan = ["shop", "shop", "shop", "bank", "bank"]
            .iter()
            .fold(plan, |plan, service| plan.app_elsewhere(service, "us-east"));
        let mesh = plan.start().expect("the mesh starts");
        let (mut shops, mut banks) = (Vec::new(), Vec::new());
        for (service, apps) in [("shop", &mut shops), ("bank", &mut banks)] {
            for address in mesh.apps(service) {
                apps.push(Shop::serve(address).await.expect("an app"));
            }
        }
        let sender = shop::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens");
        Self { mesh, shops, banks, sender }
    }

    /// So many calls, eight at a time, none of which may fail. How many each app got.
    async fn calls(&self, service: &str, count: usize) -> Vec<u32> {
        let apps = if service == "shop" { &self.shops } else { &self.banks };
        let before: Vec<u32> = apps.iter().map(|app| app.calls()).collect();
        for _ in 0..count / 8 {
            let eight = (0..8).map(|_| shop::call(self.sender.clone(), service, "Get", &[]));
            for answer in futures_util::future::join_all(eight).await {
                answer.expect("each instance answers calls, whatever it says of itself");
            }
        }
        apps.iter().zip(before).map(|(app, before)| app.calls() - before).collect()
    }

    /// Calls until `enough` of how many each app got; [`World::left_out`] has more than one turn to change by then.
    async fn calls_until(&self, service: &str, what: &str, enough: impl Fn(&[u32]) -> bool) {
        let begun = Instant::now();
        loop {
            let got = self.calls(service, 80).await;
            if enough(&got) {
                return;
            }
            assert!(begun.elapsed() < SOON, "it did not come true that {what}: {got:?}");
        }
    }

    /// Calls until so many instances of the shop are seen to be not well.
    async fn until_left_out(&self, count: u32) {
        let line = format!("tenon_endpoints{{service=\"shop\",state=\"unhealthy\"}} {count}");
        let begun = Instant::now();
        loop {
            self.calls("shop", 8).await;
            let metrics = http_get(self.mesh.admin("wiki", "us-east"), "/metrics").await.expect("metrics");
            if metrics.lines().any(|said| said == line) {
                return;
            }
            assert!(begun.elapsed() < SOON, "no {line}");
        }
    }

    /// How often the caller's sidecar has logged that instances of this service do not say how they do.
    fn told(&self, service: &str) -> usize {
        let logs = self.mesh.logs();
        let lines = logs.values().flat_map(|log| log.lines()).filter(|line| line.contains("do not say how they do"));
        lines.filter(|line| line.contains(service)).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_says_it_does_not_serve_gets_no_calls_until_it_does() {
    let world = World::start().await;
    world.shops[0].says(Health::Serving);
    world.shops[1].says(Health::Serving);
    let each = |got: &[u32]| got.iter().all(|calls| *calls >= 8);
    world.calls_until("shop", "each gets calls", each).await;

    world.shops[1].says(Health::NotServing);
    world.until_left_out(1).await;
    let got = world.calls("shop", 400).await;
    assert_eq!(got[1], 0, "{got:?}");
    assert!(got[0] > 40 && got[2] > 40, "the others share its calls: {got:?}");

    world.shops[1].says(Health::Serving);
    world.until_left_out(0).await;
    world.calls_until("shop", "it gets its share again", each).await;

    // Who does not answer is not well either.
    world.shops[1].says(Health::Silent);
    world.until_left_out(1).await;
    assert_eq!(world.calls("shop", 80).await[1], 0);

    // Of three instances one may be left out, however many say so.
    let asked = world.shops[0].asked();
    world.shops[0].says(Health::NotServing);
    let begun = Instant::now();
    while world.shops[0].asked() < asked + 3 {
        assert!(begun.elapsed() < SOON, "its health is not asked for any more");
        world.calls("shop", 8).await;
    }
    let got = world.calls("shop", 400).await;
    assert!(got[0] > 40 && got[1] == 0 && got[2] > 40, "{got:?}");
    world.shops[1].says(Health::Serving);
    world.calls_until("shop", "the place of the one that is well is taken", |got| got[0] == 0 && got[1] >= 8).await;
    // It has no health service, and was never left out.
    assert!(world.shops[2].asked() > 0 && world.told("shop") == 1, "{} times", world.told("shop"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_no_rule_lets_be_asked_are_not_left_out() {
    let world = World::start().await;
    world.banks.iter().for_each(|bank| bank.says(Health::NotServing));
    let begun = Instant::now();
    while world.told("bank") == 0 {
        world.calls("bank", 8).await;
        assert!(begun.elapsed() < SOON, "nobody is told that they cannot be asked");
    }
    world.calls_until("bank", "each gets calls", |got| got.iter().all(|calls| *calls >= 8)).await;
    assert!(world.banks.iter().all(|bank| bank.asked() == 0), "a question passed");
    assert_eq!(world.told("bank"), 1);
}
