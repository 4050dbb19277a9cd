//! `tenon tap`: who watches sees the calls that were asked for, and nothing of others.

use std::{
    process::{Command, Output},
    time::Duration,
};

use integration::{
    calls::{channel, metadata, outcome, with_headers},
    mesh::{Mesh, Plan, SOON, binary, eventually},
};
use serde_json::{Value, json};
use tenon_proto::media::v1::{DeleteRequest, ListRequest, media_client::MediaClient};
use tonic::transport::Channel;

/// Between two calls of whoever waits to be seen.
const AGAIN: Duration = Duration::from_millis(20);

fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let tenant = |id: &str| {
        let shard = json!({"cluster": "c1", "database": "media-1", "schema": "main"});
        json!({
            "tenantId": id, "status": "ACTIVE", "region": "us-east", "hosts": [format!("{id}.example.com")],
            "products": {"media": {"state": "ACTIVE", "shard": shard}}
        })
    };
    mesh.import(&[tenant("acme"), tenant("globex")]).expect("imported");
    mesh
}

/// `tenon tap` with these arguments in the background, until it ends by itself.
fn tap(mesh: &Mesh, args: &[&str]) -> tokio::task::JoinHandle<Output> {
    let mut command = Command::new(binary("tenon").expect("built"));
    command.args(["tap", "-o", "json"]).args(args).arg("--data").arg(mesh.data_dir());
    tokio::task::spawn_blocking(move || command.output().expect("it runs"))
}

fn told(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

async fn wiki(mesh: &Mesh) -> MediaClient<Channel> {
    let mut media =
        MediaClient::new(channel(mesh.outbound("wiki", "us-east"), "media").await.expect("the sidecar answers"));
    let end = std::time::Instant::now() + SOON;
    for tenant in ["acme", "globex"] {
        while outcome(&list(&mut media, tenant).await) != "ALLOWED" {
            assert!(std::time::Instant::now() < end, "the tenants never arrive");
        }
    }
    media
}

async fn list(
    media: &mut MediaClient<Channel>,
    tenant: &str,
) -> Result<tonic::Response<impl Sized + use<>>, tonic::Status> {
    let headers = [("x-tenant-id", tenant), ("authorization", "Bearer of-a-user"), ("baggage", "user=ann")];
    media.list(with_headers(&headers, ListRequest {})).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tap_of_one_tenant_shows_its_calls_and_no_others() {
    let mesh = mesh();
    let mut media = wiki(&mesh).await;
    let tap = tap(&mesh, &["--tenant", "acme", "--count", "20", "--for", "2m"]);
    // Before it has begun they are nobody's to see.
    let mut calls = 0_u32;
    while !tap.is_finished() {
        for tenant in ["globex", "acme"] {
            assert_eq!(outcome(&list(&mut media, tenant).await), "ALLOWED");
        }
        calls += 1;
        tokio::time::sleep(AGAIN).await;
    }
    let output = tap.await.expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let told = told(&output);
    assert_eq!(told.len(), 20, "of {calls}");
    let mut begun_before = 0;
    for call in &told {
        assert_eq!(
            (&call["tenant"], &call["caller"], &call["service"]),
            (&json!("acme"), &json!("wiki"), &json!("media"))
        );
        assert_eq!(
            (&call["direction"], &call["outcome"], &call["grpcStatus"]),
            (&json!("inbound"), &json!("finished"), &json!(0))
        );
        let headers = call["headers"].as_array().expect("headers");
        if headers.is_empty() {
            begun_before += 1;
            continue;
        }
        let value =
            |name: &str| headers.iter().find(|header| header["name"] == name).map(|header| header["value"].clone());
        assert_eq!(value("content-type"), Some(json!("application/grpc")));
        for hidden in ["authorization", "baggage", "x-asap-token", "x-tenant-id"] {
            assert_eq!(value(hidden), Some(Value::Null), "{hidden} is told by name alone");
        }
    }
    assert!(begun_before <= 1, "one call at a time was open when it began");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("of-a-user"), "a credential");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_watched_with_the_reason_and_the_request_id_that_explain_knows() {
    let mesh = mesh();
    let mut media = wiki(&mesh).await;
    let tap = tap(&mesh, &["--refused", "--path", "/media.v1.Media/*", "--count", "1", "--for", "2m"]);
    let mut ids = Vec::new();
    while !tap.is_finished() {
        assert_eq!(outcome(&list(&mut media, "acme").await), "ALLOWED");
        let delete = with_headers(&[("x-tenant-id", "acme")], DeleteRequest { id: "no-such-file".into() });
        let refusal = media.delete(delete).await.expect_err("no rule allows it");
        ids.push(metadata(&refusal, "request_id").expect("an id"));
        tokio::time::sleep(AGAIN).await;
    }
    let output = tap.await.expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let [told] = told(&output).try_into().expect("one call");
    assert_eq!((&told["outcome"], &told["reason"]), (&json!("refused"), &json!("PATH_NOT_ALLOWED")));
    let id = told["requestId"].as_str().expect("an id").to_owned();
    assert!(ids.contains(&id), "{id}");
    let explained: Value =
        serde_json::from_str(&mesh.tenon_ok(&["explain", &id, "-o", "json"]).expect("known")).expect("JSON");
    assert_eq!((&explained["reason"], &explained["path"]), (&told["reason"], &told["path"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_tenant_was_named_by_host_is_watched_by_the_tenants_id_on_both_sides() {
    let mesh = mesh();
    let mut media = wiki(&mesh).await;
    let tap = tap(&mesh, &["--tenant", "acme", "--both-sides", "--header", "baggage", "--count", "4", "--for", "2m"]);
    while !tap.is_finished() {
        let headers = [("x-tenant-host", "acme.example.com"), ("baggage", "user=ann")];
        assert_eq!(outcome(&media.list(with_headers(&headers, ListRequest {})).await), "ALLOWED");
        tokio::time::sleep(AGAIN).await;
    }
    let told = told(&tap.await.expect("it ends"));
    let sides: std::collections::BTreeSet<_> = told.iter().map(|call| call["direction"].to_string()).collect();
    assert_eq!(sides.len(), 2, "{told:#?}");
    for call in &told {
        let headers = call["headers"].as_array().expect("headers");
        if headers.is_empty() {
            // It was open when the command began.
            continue;
        }
        assert!(headers.contains(&json!({"name": "baggage", "value": "user=ann", "length": 8})), "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_most_is_told_by_tenant_and_by_method_with_what_was_refused() {
    let mesh = mesh();
    let mut media = wiki(&mesh).await;
    let top = |args: &[&str]| {
        let mut command = Command::new(binary("tenon").expect("built"));
        command.args(["top", "--rounds", "1", "--every", "4s", "-o", "json"]).args(args);
        command.arg("--data").arg(mesh.data_dir());
        tokio::task::spawn_blocking(move || command.output().expect("it runs"))
    };
    let (by_tenant, by_method) = (top(&["--by", "tenant"]), top(&["--by", "method", "--tenant", "acme"]));
    while !by_tenant.is_finished() || !by_method.is_finished() {
        for tenant in ["acme", "acme", "acme", "globex"] {
            assert_eq!(outcome(&list(&mut media, tenant).await), "ALLOWED");
        }
        let delete = with_headers(&[("x-tenant-id", "acme")], DeleteRequest { id: "no-such-file".into() });
        assert!(media.delete(delete).await.is_err(), "no rule allows it");
        tokio::time::sleep(AGAIN).await;
    }
    let told = |output: Output| -> Value {
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let (by_tenant, by_method) = (told(by_tenant.await.expect("it ends")), told(by_method.await.expect("it ends")));
    assert_eq!(by_tenant["sidecars"], 4, "{by_tenant:#}");
    let number = |line: &Value, name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name} of {line}"));
    let keys = |told: &Value, by: &str| -> Vec<String> {
        told["lines"]
            .as_array()
            .expect("lines")
            .iter()
            .map(|line| line[by].as_str().expect("a key").to_owned())
            .collect()
    };
    assert_eq!(keys(&by_tenant, "tenant"), ["acme", "globex"], "{by_tenant:#}");
    assert_eq!(keys(&by_method, "method"), ["/media.v1.Media/List", "/media.v1.Media/Delete"], "{by_method:#}");
    let [acme, globex] = [0, 1].map(|index| by_tenant["lines"][index].clone());
    // Of five calls four are acme's, one of them refused; the first and the last round may be cut.
    let share = number(&acme, "callsPerSecond") / number(&globex, "callsPerSecond");
    assert!((3.0..5.5).contains(&share), "{by_tenant:#}");
    assert!(number(&acme, "refusedPerSecond") > 0.0 && number(&globex, "refusedPerSecond") == 0.0, "{by_tenant:#}");
    let [list, delete] = [0, 1].map(|index| by_method["lines"][index].clone());
    assert!(number(&list, "p99Microseconds") >= number(&list, "p50Microseconds"), "{by_method:#}");
    assert_eq!(delete["refusedPerSecond"], delete["callsPerSecond"], "{by_method:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_may_not_watch_and_operators_see_no_values_of_their_choice() {
    let mesh = mesh();
    for (role, more, problem) in [
        ("viewer", &[][..], "is viewer, and /tenon.policy.v1.Policy/Tap is for operator"),
        ("operator", &["--header", "baggage"], "values of headers are told to admins alone"),
    ] {
        let folder = mesh.scratch().join(role);
        let data = folder.to_str().expect("a path");
        mesh.tenon_ok(&["identity", "operator", "--name", role, "--role", role, "--out", data]).expect("issued");
        let mut command = Command::new(binary("tenon").expect("built"));
        let output = command.args(["tap", "--for", "1s", "--data", data]).args(more).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(problem), "{said}");
    }
    eventually(SOON, "nothing came", || {
        let output = mesh.tenon(&["tap", "--path", "/nobody.calls/This", "--count", "1", "--for", "1s"])?;
        Ok(output.status.code() == Some(1))
    })
    .expect("exit 1");
    let wrong = mesh.tenon(&["tap", "--path", "media.v1.Media/Get"]).expect("it runs");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("path is media.v1.Media/Get, expected"), "{wrong:?}");
}
