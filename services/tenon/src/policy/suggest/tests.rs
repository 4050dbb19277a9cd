use tenon_proto::policy::v1::{Flow, FlowTotal, flow::Decision};

use super::*;

const MESH: &str = "apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: demo}
spec: {trustDomain: demo.example, regions: [us-east]}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {product: media}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: issues}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: wiki}
spec:
  service: media
  mode: enforce
  rules:
    - name: everything
      callers: [issues, wiki]
      paths: [/media.v1.Media/*]
      rate: {perTenant: 7/m, burst: 9}
      tenants: {products: {media: {editions: [enterprise, \"no\"]}}, regions: [us-east]}
    - name: erase
      callers: [wiki]
      paths: [/media.v1.Erase/Now]
      proof: transaction
      tenant: optional
    - name: health
      callers: [\"*\"]
      paths: [/grpc.health.v1.Health/*]
      tenant: none
";

fn described(text: &str) -> DescribeResponse {
    let files = [SourceFile { path: "mesh.yaml".into(), text: text.into() }];
    let records = compile(&parse(&files).unwrap_or_else(|problems| panic!("{problems}")));
    DescribeResponse {
        mesh: "demo".into(),
        trust_domain: "demo.example".into(),
        services: records.allowlists.into_values().collect(),
        routes: records.routes.into_values().collect(),
        ..Default::default()
    }
}

fn flow(caller: &str, service: &str, path: &str, decision: Decision, count: u64) -> FlowTotal {
    let reason = if decision == Decision::Allowed { "" } else { "TENANT_REQUIRED" };
    let (caller, service, path, reason) = (caller.into(), service.into(), path.into(), reason.into());
    let flow = Flow { caller, service, path, decision: decision.into(), reason, count };
    FlowTotal { flow: Some(flow), first_unix_seconds: 1, last_unix_seconds: 2 }
}

fn record(flows: Vec<FlowTotal>) -> Record {
    Record { flows, from: 1_700_000_000, until: 1_700_007_200, silent_hours: 1 }
}

fn written(described: &DescribeResponse, record: &Record) -> String {
    let suggestions = suggest(described, record, None).unwrap();
    let text = yaml::document(&suggestions, record);
    checked(&text, described, &suggestions).unwrap();
    text
}

const GET: &str = "/media.v1.Media/Get";

/// From the record of the first test.
const SUGGESTED: &str = "\
# Made by `tenon policy suggest` from 2 hours of record, 1 hour silent: 2023-11-14T22:13:20Z to 2023-11-15T00:13:20Z.
# Exact callers and paths of the calls that passed. What was refused, or never called, is not in it.
---
# media: 24 calls. Instead of Allowlist wiki.
# left out: issues -> media /media.v1.Old/Get, 6 calls: refused today: PATH_NOT_ALLOWED
# left out: wiki -> media /media.v1.Media/Get%20, 1 calls: cannot be written as caller and path of a rule
# left out: 8 calls of the whole record to paths that it does not tell apart
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: media}
spec:
  service: media
  mode: enforce
  rules:
    # 4 calls, by rule everything of wiki (mesh.yaml:28)
    - name: everything
      callers: [issues]
      paths:
        - /media.v1.Media/Put
      tenant: required
      rate: {perTenant: 7/m, burst: 9}
      tenants: {products: {media: {editions: [enterprise, \"no\"]}}, regions: [us-east]}
    # 10 calls, by rule everything of wiki (mesh.yaml:28)
    - name: everything-2
      callers: [issues, wiki]
      paths:
        - /media.v1.Media/Get
        - /media.v1.Media/List
      tenant: required
      rate: {perTenant: 7/m, burst: 9}
      tenants: {products: {media: {editions: [enterprise, \"no\"]}}, regions: [us-east]}
    # 1 calls, by rule erase of wiki (mesh.yaml:33)
    - name: erase
      callers: [wiki]
      paths:
        - /media.v1.Erase/Now
      tenant: optional
      proof: transaction
    # 9 calls, by rule health of wiki (mesh.yaml:38)
    - name: health
      callers: [issues]
      paths:
        - /grpc.health.v1.Health/Check
      tenant: none
";

#[test]
fn the_suggestion_has_the_calls_that_passed_and_nothing_else_with_what_their_rules_ask() {
    let allowed = Decision::Allowed;
    let record = record(vec![
        flow("wiki", "media", GET, allowed, 5),
        flow("wiki", "media", GET, Decision::Refused, 3),
        flow("issues", "media", GET, allowed, 1),
        flow("issues", "media", "/media.v1.Media/List", allowed, 2),
        flow("wiki", "media", "/media.v1.Media/List", allowed, 2),
        flow("issues", "media", "/media.v1.Media/Put", allowed, 4),
        flow("wiki", "media", "/media.v1.Erase/Now", allowed, 1),
        flow("issues", "media", "/grpc.health.v1.Health/Check", allowed, 9),
        // Never passed.
        flow("issues", "media", "/media.v1.Erase/Now", Decision::Refused, 9),
        // Passed once, by a rule that is gone.
        flow("issues", "media", "/media.v1.Old/Get", allowed, 6),
        // By the wildcard, and nothing that a rule could name.
        flow("wiki", "media", "/media.v1.Media/Get%20", allowed, 1),
        flow("wiki", "media", "", allowed, 8),
    ]);
    assert_eq!(written(&described(MESH), &record), SUGGESTED);
}

#[test]
fn what_audit_mode_let_pass_without_a_rule_is_allowed_with_an_optional_tenant_and_said() {
    let described = described(&MESH.replace("mode: enforce", "mode: audit"));
    let record = record(vec![
        flow("wiki", "media", "/media.v1.Other/Get", Decision::Audited, 5),
        flow("wiki", "media", GET, Decision::Audited, 2),
        flow("wiki", "media", GET, Decision::Allowed, 3),
    ]);
    let text = written(&described, &record);
    let rule = "    # 2 of them passed in audit mode alone, and are refused by this: TENANT_REQUIRED\n    - name: everything\n";
    assert!(text.contains(rule), "{text}");
    let audited = "    # 5 calls that only audit mode let pass: no rule decides them today.\n    \
                   # The record has no tenants: make it required where every call names one.\n    - name: audited\n      \
                   callers: [wiki]\n      paths:\n        - /media.v1.Other/Get\n      tenant: optional\n";
    assert!(text.contains(audited) && text.contains("mode: enforce"), "{text}");
}

#[test]
fn a_name_that_another_service_uses_is_not_taken() {
    let text = MESH
        .replace("metadata: {name: wiki}\nspec:\n  service: media", "metadata: {name: wiki}\nspec:\n  service: issues");
    let described =
        described(&text.replace(
            "tenants: {products: {media: {editions: [enterprise, \"no\"]}}, regions: [us-east]}",
            "tenant: none",
        ));
    assert_eq!(free_name("wiki", &described), "wiki-2");
    assert_eq!(free_name("media", &described), "media");
    let rules = [("read", "x"), ("read-2", "x")].map(|(name, _)| Rule { name: name.into(), ..Default::default() });
    let mut taken = BTreeSet::new();
    let names = ["read", "read", "read-2"].map(|base| free_rule_name(base, &rules, &mut taken));
    assert_eq!(names, ["read", "read-3", "read-2"]);
    let long = "x".repeat(63);
    assert!(numbered(&long).take(3).all(|name| name.len() <= 63));
}

#[test]
fn only_the_service_that_is_named_is_suggested_for_and_the_same_record_gives_the_same_text() {
    let described = described(MESH);
    let record = record(vec![
        flow("wiki", "media", GET, Decision::Allowed, 5),
        flow("media", "issues", "/i.I/Get", Decision::Refused, 5),
    ]);
    assert_eq!(suggest(&described, &record, Some("issues")).unwrap().len(), 0);
    assert_eq!(suggest(&described, &record, Some("media")).unwrap().len(), 1);
    assert_eq!(written(&described, &record), written(&described, &record));
}

/// Named after what a check that compares nothing would let pass.
#[test]
fn a_suggestion_that_asks_for_less_is_not_printed() {
    let described = described(MESH);
    let record = record(vec![flow("wiki", "media", GET, Decision::Allowed, 5)]);
    let suggestions = suggest(&described, &record, None).unwrap();
    let text = yaml::document(&suggestions, &record);
    for (from, to) in [
        ("tenant: required", "tenant: none"),
        ("      rate: {perTenant: 7/m, burst: 9}\n", ""),
        ("callers: [wiki]", "callers: [issues]"),
        ("mode: enforce", "mode: audit"),
        ("kind: Allowlist", "kind: Alowlist"),
    ] {
        let weaker = text.replace(from, to).replace("none\n      rate: {perTenant: 7/m, burst: 9}\n      tenants: {products: {media: {editions: [enterprise, \"no\"]}}, regions: [us-east]}", "none");
        assert!(checked(&weaker, &described, &suggestions).is_err(), "{to}");
    }
}
