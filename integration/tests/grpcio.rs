//! A Python `grpcio` client and a Python `grpcio` server, each behind its sidecar: every shape of call passes.

use std::{collections::BTreeMap, process::Command};

use integration::{
    mesh::{Mesh, Plan, repository},
    python,
};
use serde_json::json;

const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: echo}
spec: {product: echo}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: echo}
spec:
  service: echo
  rules:
    - {name: everything, callers: [wiki], paths: [/echo.v1.Echo/*]}
";

fn mesh() -> Mesh {
    let python = python::program("python").expect("python");
    let server = repository().join("integration/tests/python/server.py");
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY).caller("wiki", "us-east");
    let mesh = plan
        .app("echo", "us-east", |port| {
            vec![python.display().to_string(), server.display().to_string(), format!("127.0.0.1:{port}")]
        })
        .start()
        .expect("the mesh starts");
    mesh.import(&[json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"echo": {"state": "ACTIVE"}}
    })])
    .expect("imported");
    mesh
}

#[test]
fn every_shape_of_call_passes_between_a_python_client_and_a_python_server() {
    let mesh = mesh();
    let output = Command::new(python::program("python").expect("python"))
        .arg(repository().join("integration/tests/python/client.py"))
        .arg(mesh.outbound("wiki", "us-east").to_string())
        .arg("acme")
        .output()
        .expect("the client runs");
    let complained = String::from_utf8_lossy(&output.stderr);
    let results: BTreeMap<String, String> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {complained}"));
    let failed: Vec<_> = results.iter().filter(|(_, result)| *result != "ok").collect();
    for (check, result) in &failed {
        eprintln!("== {check}: {result}");
    }
    assert!(failed.is_empty(), "{} of {} checks failed", failed.len(), results.len());
    assert_eq!(results.len(), 13, "{:?}", results.keys());
}
