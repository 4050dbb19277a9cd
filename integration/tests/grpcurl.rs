//! The real `grpcurl`, as engineers use it through a sidecar and against its admin listener.

use std::process::{Command, Output};

use integration::{
    mesh::{Mesh, Plan, SOON, eventually},
    python,
};
use serde_json::json;

fn grpcurl(args: &[&str]) -> Output {
    let mut command = Command::new(python::program("grpcurl").expect("grpcurl"));
    command.arg("-plaintext").args(["-max-time", "10"]).args(args);
    command.output().expect("grpcurl runs")
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let media = json!({"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}});
    mesh.import(&[
        json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"media": media}}),
        json!({"tenantId": "asleep", "status": "SUSPENDED", "region": "us-east", "products": {"media": media}}),
    ])
    .expect("imported");
    mesh
}

#[test]
fn grpcurl_lists_and_calls_a_service_through_a_sidecar_and_shows_why_a_call_was_refused() {
    let mesh = mesh();
    let outbound = mesh.outbound("wiki", "us-east").to_string();
    let through = |headers: &[&str], rest: &[&str]| {
        let mut args = vec!["-authority", "media"];
        headers.iter().for_each(|header| args.extend(["-H", header]));
        args.push(&outbound);
        args.extend(rest);
        grpcurl(&args)
    };
    let listed = through(&[], &["list"]);
    assert!(printed(&listed).contains("media.v1.Media"), "{}", printed(&listed));
    eventually(SOON, "the tenant has arrived", || {
        Ok(through(&["x-tenant-id: acme"], &["media.v1.Media/List"]).status.success())
    })
    .expect("calls pass");
    let refused = through(&["x-tenant-id: asleep"], &["media.v1.Media/List"]);
    assert!(!refused.status.success());
    let shown = printed(&refused);
    for expected in ["PermissionDenied", "TENANT_SUSPENDED", "google.rpc.ErrorInfo", "tenon.dev", "request_id"] {
        assert!(shown.contains(expected), "{expected} in {shown}");
    }
}

#[test]
fn grpcurl_asks_the_admin_listener_for_health_by_reflection() {
    let mesh = mesh();
    let admin = mesh.admin("media", "us-east").to_string();
    let listed = grpcurl(&[&admin, "list"]);
    assert!(printed(&listed).contains("grpc.health.v1.Health"), "{}", printed(&listed));
    eventually(SOON, "the sidecar is serving", || {
        Ok(printed(&grpcurl(&[&admin, "grpc.health.v1.Health/Check"])).contains("SERVING"))
    })
    .expect("healthy");
}
