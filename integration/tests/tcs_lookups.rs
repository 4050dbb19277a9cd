//! What an app finds at `tcs.mesh`, the name under which its own sidecar answers for tenants: whether that holds all of them
//! or asks for them on demand.

use std::process::Command;

use integration::{
    calls,
    mesh::{Mesh, Plan, SOON, eventually},
    python,
};
use serde_json::{Value, json};
use tenon_proto::tcs::v1::{
    BatchGetTenantContextsRequest, GetTenantContextRequest, Revision, TenantContext, TenantKey,
    tenant_contexts_client::TenantContextsClient, tenant_key::By,
};
use tonic::Code;

/// Wiki in us-east holds all tenants, in eu-west those that are asked for.
fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").caller_on_demand("wiki", "eu-west").start().expect("the mesh starts");
    let wiki = json!({"state": "ACTIVE", "features": ["search"]});
    let media = json!({"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}});
    let products = json!({"wiki": wiki, "media": media});
    mesh.import(&[
        json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "hosts": ["acme.example"], "products": products}),
        json!({"tenantId": "globex", "status": "SUSPENDED", "region": "eu-west", "products": products}),
    ])
    .expect("imported");
    mesh
}

fn id(id: &str) -> TenantKey {
    TenantKey { by: Some(By::TenantId(id.to_owned())) }
}

fn host(host: &str) -> TenantKey {
    TenantKey { by: Some(By::Host(host.to_owned())) }
}

fn get(key: TenantKey) -> GetTenantContextRequest {
    GetTenantContextRequest { key: Some(key), at_least: None }
}

fn products(tenant: &TenantContext) -> Vec<&str> {
    tenant.products.keys().map(String::as_str).collect()
}

fn revision(mesh: &Mesh, args: &[&str]) -> Revision {
    let written: Value = serde_json::from_str(&mesh.tenon_ok(args).expect("written")).expect("JSON");
    let number = |field: &str| {
        let value = &written[field];
        value.as_u64().or_else(|| value.as_str()?.parse().ok()).expect("a number")
    };
    Revision { epoch: number("epoch"), revision: number("revision") }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_looks_tenants_up_at_its_own_sidecar() {
    let mesh = tokio::task::spawn_blocking(mesh).await.expect("a mesh");
    for region in ["us-east", "eu-west"] {
        let channel = calls::channel(mesh.outbound("wiki", region), "tcs.mesh").await.expect("connected");
        let mut tenants = TenantContextsClient::new(channel);
        let written = revision(&mesh, &["tenants", "suspend", "acme", "-o", "json"]);
        let at_least = Some(written);
        let answer = tenants.get(GetTenantContextRequest { key: Some(id("acme")), at_least }).await;
        let answer = answer.expect("acme is there").into_inner();
        let acme = answer.tenant.expect("a tenant");
        assert_eq!((acme.tenant_id.as_str(), acme.status, acme.revision), ("acme", 2, written.revision), "{region}");
        assert!(answer.replica.is_some_and(|replica| replica.revision >= written.revision));
        assert_eq!(products(&acme), ["wiki"], "{region}: what other products know of a tenant is not for wiki");

        revision(&mesh, &["tenants", "unsuspend", "acme", "-o", "json"]);
        let by_host = tenants.get(get(host("ACME.example"))).await.expect("found").into_inner();
        let by_host = by_host.tenant.expect("a tenant");
        assert_eq!((by_host.tenant_id.as_str(), products(&by_host)), ("acme", vec!["wiki"]), "{region}");

        let keys = vec![id("globex"), id("nobody"), host("acme.example"), host("nobody.example")];
        let batch = BatchGetTenantContextsRequest { keys, at_least: None };
        let results = tenants.batch_get(batch).await.expect("answered").into_inner().results;
        for tenant in results.iter().filter_map(|result| result.tenant.as_ref()) {
            assert_eq!(products(tenant), ["wiki"], "{region}: {}", tenant.tenant_id);
        }
        let found: Vec<_> = results.into_iter().map(|result| result.tenant.map(|tenant| tenant.tenant_id)).collect();
        assert_eq!(found, [Some("globex".into()), None, Some("acme".into()), None], "{region}");

        let code = |answer: Result<_, tonic::Status>| answer.map(drop).expect_err("refused").code();
        assert_eq!(code(tenants.get(get(id("nobody"))).await), Code::NotFound);
        for bad in [get(id("Not-An-Id")), get(host("")), GetTenantContextRequest::default()] {
            assert_eq!(code(tenants.get(bad).await), Code::InvalidArgument);
        }
        let later = Revision { epoch: written.epoch, revision: written.revision + 1_000 };
        let early = GetTenantContextRequest { key: Some(id("acme")), at_least: Some(later) };
        assert_eq!(code(tenants.get(early).await), Code::Unavailable);
        let many = BatchGetTenantContextsRequest { keys: vec![id("acme"); 1_001], at_least: None };
        let refused = tenants.batch_get(many).await.map(drop).expect_err("too many").code();
        assert_eq!(refused, Code::InvalidArgument);
    }
    tokio::task::spawn_blocking(move || drop(mesh)).await.expect("ended");
}

#[test]
fn grpcurl_finds_the_service_by_reflection_and_what_it_answers_is_counted() {
    let mesh = mesh();
    let outbound = mesh.outbound("wiki", "us-east").to_string();
    let grpcurl = |args: &[&str]| {
        let mut command = Command::new(python::program("grpcurl").expect("grpcurl"));
        command.args(["-plaintext", "-max-time", "10", "-authority", "tcs.mesh", "-H", "x-tenant-id: nobody"]);
        let output = command.args(args).output().expect("grpcurl runs");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let listed = grpcurl(&[&outbound, "list"]);
    assert!(listed.contains("tenon.tcs.v1.TenantContexts"), "{listed}");
    let body = r#"{"key": {"host": "acme.example"}}"#;
    eventually(SOON, "the tenant has arrived", || {
        Ok(grpcurl(&["-d", body, &outbound, "tenon.tcs.v1.TenantContexts/Get"]).contains("\"tenantId\": \"acme\""))
    })
    .expect("found");
    let unknown = grpcurl(&["-d", r#"{"key": {"tenantId": "nobody"}}"#, &outbound, "tenon.tcs.v1.TenantContexts/Get"]);
    assert!(unknown.contains("NotFound"), "{unknown}");
    let nothing = grpcurl(&[&outbound, "tenon.tcs.v1.Tenants/Get"]);
    assert!(nothing.contains("Unimplemented"), "the write side is not for apps: {nothing}");
}
