//! `--reflect` against servers: v1, v1alpha alone, one that never answers and one that serves something else.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use prost::Message as _;
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::transport::{Server, server::TcpIncoming};

use super::{Page, allowlist, descriptors, findings, folder_with, rule};

const PROTO: &str = "package media.v1;\nservice Media {\nrpc Get(\nrpc Erase(\n}\n";

/// An app that reflects `media.v1.Media` with `Get` and `Erase`; it need not serve them.
fn app(runtime: &Runtime, versions: &[&str]) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = descriptors(PROTO).encode_to_vec();
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(bytes.leak_copy())
            .include_reflection_service(false)
    };
    let (_, health) = tonic_health::server::health_reporter();
    let v1 = versions.contains(&"v1").then(|| builder().build_v1().unwrap());
    let v1alpha = versions.contains(&"v1alpha").then(|| builder().build_v1alpha().unwrap());
    let router = Server::builder().add_service(health).add_optional_service(v1).add_optional_service(v1alpha);
    runtime.spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
    address
}

/// Descriptors that live as long as the test's process: the builder borrows them.
trait LeakCopy {
    fn leak_copy(&self) -> &'static [u8];
}

impl LeakCopy for Vec<u8> {
    fn leak_copy(&self) -> &'static [u8] {
        Vec::leak(self.clone())
    }
}

fn found(more: &str, reflect: &[String]) -> Vec<(String, String)> {
    let dir = folder_with(more);
    let args: Vec<&str> = reflect.iter().flat_map(|one| ["--reflect", one.as_str()]).collect();
    let text = |one: &serde_json::Value| one["message"].as_str().unwrap().to_owned();
    findings(dir.path(), &args).into_iter().map(|(id, one)| (id, text(&one))).collect()
}

#[test]
fn a_running_app_is_asked_for_its_methods_in_either_version() {
    let runtime = Runtime::new().unwrap();
    for versions in [&["v1"][..], &["v1alpha"], &["v1", "v1alpha"]] {
        let reflect = [format!("media={}", app(&runtime, versions))];
        let more =
            allowlist(&[rule("erase", "wiki", "/media.v1.Media/Erase"), rule("lst", "wiki", "/media.v1.Media/Eraze")]);
        let found = found(&more, &reflect);
        let expected = "rule lst of media: media.v1.Media has no method Eraze (did you mean \"Erase\"?)";
        assert_eq!(found, [("TP013".to_owned(), expected.to_owned())], "{versions:?}");
    }
    let reflect = [format!("media={}", app(&runtime, &["v1"]))];
    let expected = "nobody may call 1 of the 2 methods of media.v1.Media on media: Erase";
    assert_eq!(found("", &reflect), [("TP015".to_owned(), expected.to_owned())]);
}

#[test]
fn the_apps_of_the_local_mesh_are_asked_without_being_named() {
    let runtime = Runtime::new().unwrap();
    let address = app(&runtime, &["v1"]).to_string();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base.yaml"), Page::read().base.replace("127.0.0.1:9002", &address)).unwrap();
    let ids: Vec<_> = findings(dir.path(), &["--reflect"]).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["TP015"]);
}

#[test]
fn who_does_not_answer_is_told_after_two_seconds_and_the_others_are_not_kept_waiting() {
    let runtime = Runtime::new().unwrap();
    // It takes connections, and says nothing.
    let silent = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let silent_at = silent.local_addr().unwrap();
    let without = app(&runtime, &[]);
    let reflect = [
        format!("media={silent_at}"),
        format!("wiki={without}"),
        "issues=127.0.0.1:1".to_owned(),
        format!("media={}", app(&runtime, &["v1"])),
    ];
    let began = Instant::now();
    let found = found(&allowlist(&[rule("erase", "wiki", "/media.v1.Media/Erase")]), &reflect);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(found.iter().all(|(id, _)| id == "TP016"), "{found:#?}");
    let messages = found.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("\n");
    for expected in [
        format!("media at {silent_at} does not tell its methods: no answer within 2 s"),
        format!("wiki at {without} does not tell its methods: it does not serve gRPC reflection"),
        "issues at 127.0.0.1:1 does not tell its methods: ".to_owned(),
    ] {
        assert!(messages.contains(&expected), "{expected} in {messages}");
    }
    assert_eq!(found.len(), 3, "{messages}");
}
