//! What is found in Routes, and what is not.

use std::fs;

use super::{
    allowlist, findings, folder_with,
    page::{Page, descriptors},
    rule,
};

/// A Route of media, with rules that let its callers call all that it names, and ask for its health.
fn route(spec: &str) -> String {
    let all = rule("all", "issues", "/media.v1.Things/*");
    let health = "    - {name: health, callers: [\"*\"], paths: [/grpc.health.v1.Health/*], tenant: none}\n".to_owned();
    let head = "apiVersion: tenon.dev/v1\nkind: Route\nmetadata: {name: to-media}\nspec:\n  service: media\n";
    format!("{head}{spec}---\n{}", allowlist(&[all, health]))
}

fn ids(spec: &str) -> Vec<String> {
    let dir = folder_with(&route(spec));
    findings(dir.path(), &[]).into_iter().map(|(id, _)| id).collect()
}

#[test]
fn a_route_is_looked_at_by_what_it_does() {
    let get = "  methods:\n    - paths: [/media.v1.Things/Get]\n";
    let cases: &[(&str, String, &[&str])] = &[
        ("nothing said", String::new(), &[]),
        ("one method", get.to_owned(), &[]),
        ("the narrow path first", format!("{get}    - paths: [/media.v1.Things/*]\n"), &[]),
        ("the same path again", format!("{get}    - paths: [/media.v1.Things/Get]\n"), &["TP020"]),
        (
            "beside its wildcard",
            "  methods:\n    - paths: [/media.v1.Things/*, /media.v1.Things/Get]\n".into(),
            &["TP020"],
        ),
        ("a wildcard of which a rule has one method", "  methods:\n    - paths: [/media.v1.Media/*]\n".into(), &[]),
        ("another service", "  methods:\n    - paths: [/media.v2.Things/*]\n".into(), &["TP021"]),
        ("gRPC's own", "  methods:\n    - paths: [/grpc.reflection.v1.ServerReflection/*]\n".into(), &[]),
        (
            "what passes by itself",
            format!("{get}      retry: {{codes: [UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED]}}\n"),
            &[],
        ),
        ("half done", format!("{get}      retry: {{codes: [UNKNOWN, INTERNAL]}}\n"), &["TP023", "TP023"]),
        ("half done twice", format!("{get}      idempotent: true\n      retry: {{codes: [UNKNOWN]}}\n"), &[]),
        ("in vain", format!("{get}      idempotent: true\n      retry: {{codes: [NOT_FOUND]}}\n"), &["TP022"]),
        ("in time", format!("{get}      timeout: {{max: 76ms}}\n      retry: {{codes: [UNAVAILABLE]}}\n"), &[]),
        ("too late", format!("{get}      timeout: {{max: 75ms}}\n      retry: {{codes: [UNAVAILABLE]}}\n"), &["TP024"]),
        (
            "the time of the service",
            format!("  timeout: {{default: 20ms}}\n{get}      retry: {{codes: [UNAVAILABLE]}}\n"),
            &["TP024"],
        ),
        (
            "a hedge too late",
            format!("{get}      timeout: {{max: 50ms}}\n      idempotent: true\n      hedge: {{after: 50ms}}\n"),
            &["TP024"],
        ),
        (
            "a hedge by what is measured",
            format!("{get}      timeout: {{max: 50ms}}\n      idempotent: true\n      hedge: {{after: p95}}\n"),
            &[],
        ),
        ("health that all may ask for", "  healthCheck: {}\n".into(), &[]),
    ];
    for (what, spec, expected) in cases {
        assert_eq!(ids(spec), *expected, "{what}: {spec}");
    }
}

#[test]
fn a_health_check_wants_a_rule_that_asks_for_no_tenant() {
    let document =
        "apiVersion: tenon.dev/v1\nkind: Route\nmetadata: {name: m}\nspec: {service: media, healthCheck: {}}\n---\n";
    let health =
        |more: &str| format!("    - {{name: health, callers: [\"*\"], paths: [/grpc.health.v1.Health/Check]{more}}}\n");
    for (more, expected) in [
        (", tenant: none", vec![]),
        (", tenant: optional", vec![]),
        ("", vec!["TP025"]),
        (", tenant: none, proof: transaction", vec!["TP025"]),
    ] {
        let dir = folder_with(&format!("{document}{}", allowlist(&[health(more)])));
        let found = findings(dir.path(), &[]);
        assert_eq!(found.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), expected, "{more}");
    }
    let dir = folder_with(document);
    let (_, found) = findings(dir.path(), &[]).remove(0);
    let message =
        "the health check of media: no rule lets issues, wiki call /grpc.health.v1.Health/Check without a tenant";
    assert_eq!(found["message"], message);
    assert_eq!((&found["line"], &found["column"]), (&4.into(), &37.into()));
}

#[test]
fn a_path_of_a_route_that_no_app_has_is_told_with_its_place() {
    let base = Page::read().base;
    assert!(base.contains("/media.v1.Media/Get"));
    let dir = folder_with(
        "apiVersion: tenon.dev/v1\nkind: Route\nmetadata: {name: media}\nspec:\n  service: media\n  methods:\n    - paths: \
         [/media.v1.Media/Get]\n    - paths: [/media.v1.Media/*, /media.v1.Media/Gte]\n",
    );
    let file = dir.path().join("media.binpb");
    let proto = "package media.v1;\nservice Media {\n  rpc Get(GetRequest) returns (GetResponse);\n}\n";
    fs::write(&file, prost::Message::encode_to_vec(&descriptors(proto))).unwrap();
    let found = findings(dir.path(), &["--descriptors", file.to_str().unwrap()]);
    let unknown: Vec<_> = found.iter().filter(|(id, _)| id == "TP013").map(|(_, one)| one).collect();
    assert_eq!(unknown.len(), 1, "{found:#?}");
    assert_eq!(unknown[0]["message"], "the Route of media: media.v1.Media has no method Gte (did you mean \"Get\"?)");
    assert_eq!((&unknown[0]["line"], &unknown[0]["column"]), (&8.into(), &34.into()));
}
