//! The rate of a rule whose Allowlist is in audit mode is told of, and keeps nobody away.

use integration::{
    calls::http_get,
    mesh::{Plan, SOON, eventually},
    shop::{self, Shop},
};
use serde_json::json;

const POLICY: &str = "
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
metadata: {name: shop}
spec:
  service: shop
  mode: audit
  rules:
    - {name: rated, callers: [wiki], paths: [/shop.v1.Shop/Rated], rate: {perTenant: 1/h, burst: 3}}
    - {name: all, callers: [wiki], paths: [/shop.v1.Shop/*]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_a_rate_in_audit_mode_passes_and_is_logged_and_counted() {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY);
    let mesh = plan.app_elsewhere("shop", "us-east").caller("wiki", "us-east").start().expect("the mesh starts");
    let tenant = |id: &str| json!({"tenantId": id, "status": "ACTIVE", "region": "us-east", "products": {"shop": {"state": "ACTIVE"}}});
    mesh.import(&[tenant("acme"), tenant("globex")]).expect("imported");
    let shop = Shop::serve(mesh.app("shop", "us-east")).await.expect("an app");
    let sender = shop::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens");
    let call =
        async |method: &str, tenant| shop::call(sender.clone(), "shop", method, &[("x-tenant-id", tenant)]).await;
    let begun = std::time::Instant::now();
    while let Err(error) = call("Get", "globex").await {
        assert!(begun.elapsed() < SOON, "the tenants do not arrive: {error}");
    }

    let others = shop.calls();
    for _ in 0..10 {
        call("Rated", "acme").await.expect("it passes in audit mode");
    }
    // Each tenant has a rate of its own.
    call("Rated", "globex").await.expect("it passes");
    assert_eq!(shop.calls(), others + 11);

    let metrics = http_get(mesh.admin("shop", "us-east"), "/metrics").await.expect("metrics");
    let has = |line: &str| assert!(metrics.lines().any(|said| said == line), "no {line} in\n{metrics}");
    has("tenon_audited_calls_total{direction=\"inbound\"} 7");
    has("tenon_limited_calls_total{limit=\"rate\"} 0");
    let mut lines = Vec::new();
    eventually(SOON, "each of them is logged", || {
        let logs = mesh.logs();
        let told = logs.values().flat_map(|log| log.lines()).filter(|line| line.contains("passed in audit mode"));
        lines = told.map(str::to_owned).collect();
        Ok(lines.len() == 7)
    })
    .unwrap_or_else(|error| panic!("{error}: {lines:?}"));
    let told = |line: &String| line.contains("TENANT_RATE_LIMITED") && line.contains("/shop.v1.Shop/Rated");
    assert!(lines.iter().all(told), "{lines:?}");
}
