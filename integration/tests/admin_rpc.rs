//! `tenon.admin.v1` on the admin listener, asked with the real grpcurl and beside it with other clients.

use std::{fs, net::SocketAddr, process::Command, time::Instant};

use integration::{
    calls::{channel, for_tenant, http_get, metadata, outcome, reason, with_headers},
    mesh::{Mesh, Plan, SOON, eventually},
    python,
};
use serde_json::{Value, json};
use tenon_proto::media::v1::{DeleteRequest, ListRequest, media_client::MediaClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Status;

const LIST: &str = "/media.v1.Media/List";
/// What must never be written anywhere.
const SECRETS: [&str; 3] = ["Bearer s3cret-of-the-app", "session=s3cret-of-the-app", "eyJ0eXAiOiJ0eG50b2tlbis"];

fn tenant(id: &str, status: &str) -> Value {
    let media = json!({"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}});
    let hosts = [format!("{id}.example.com")];
    json!({"tenantId": id, "status": status, "hosts": hosts, "region": "us-east", "products": {"media": media}})
}

async fn settled(plan: Plan) -> Mesh {
    let mesh = plan.start().expect("the mesh starts");
    mesh.import(&[tenant("acme", "ACTIVE"), tenant("asleep", "SUSPENDED")]).expect("imported");
    let end = Instant::now() + SOON;
    while list(&mesh, "acme").await != "ALLOWED" {
        assert!(Instant::now() < end, "calls never pass");
    }
    mesh
}

fn demo() -> Plan {
    Plan::demo().expect("a plan")
}

async fn wiki(mesh: &Mesh) -> MediaClient<tonic::transport::Channel> {
    MediaClient::new(channel(mesh.outbound("wiki", "us-east"), "media").await.expect("the sidecar answers"))
}

async fn list(mesh: &Mesh, tenant: &str) -> String {
    outcome(&wiki(mesh).await.list(for_tenant(tenant, ListRequest {})).await)
}

/// Asks with grpcurl: the answer, or what it complains of.
fn ask(admin: SocketAddr, method: &str, request: &Value) -> Result<Value, String> {
    let mut command = Command::new(python::program("grpcurl").expect("grpcurl"));
    command.args(["-plaintext", "-max-time", "10", "-d", &request.to_string(), &admin.to_string()]);
    let output = command.arg(format!("tenon.admin.v1.{method}")).output().expect("grpcurl runs");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn answer(admin: SocketAddr, method: &str, request: &Value) -> Value {
    ask(admin, method, request).unwrap_or_else(|error| panic!("{method} {request}: {error}"))
}

fn complaint(admin: SocketAddr, method: &str, request: &Value) -> String {
    ask(admin, method, request).expect_err("it is refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_call_is_the_same_by_its_request_id_for_the_command_line_and_for_grpcurl() {
    let mesh = settled(demo()).await;
    let asleep = wiki(&mesh).await.list(for_tenant("asleep", ListRequest {})).await.expect_err("it is suspended");
    let delete = wiki(&mesh).await.delete(for_tenant("acme", DeleteRequest { id: "x".into() })).await;
    let unknown = MediaClient::new(channel(mesh.outbound("wiki", "us-east"), "nosuch").await.expect("a channel"));
    let unknown = unknown.clone().list(for_tenant("acme", ListRequest {})).await.expect_err("nobody has the name");
    let by = |service: &str| mesh.admin(service, "us-east");
    let refused: [(Status, SocketAddr); 3] =
        [(asleep, by("media")), (delete.expect_err("no rule allows it"), by("media")), (unknown, by("wiki"))];
    for (status, admin) in refused {
        let id = metadata(&status, "request_id").expect("a refusal names its request");
        let mut told = Value::Null;
        eventually(SOON, "the sidecar that refused reports", || {
            let output = mesh.tenon(&["explain", &id, "-o", "json"])?;
            told = serde_json::from_slice(&output.stdout).unwrap_or_default();
            Ok(output.status.success())
        })
        .expect("it is remembered");
        let decisions = answer(admin, "Sidecar/Decisions", &json!({"requestId": id}));
        let found = &decisions["decisions"][0];
        assert_eq!(decisions["decisions"].as_array().map(Vec::len), Some(1), "{decisions}");
        assert_eq!(found["reason"], json!(reason(&status)), "{found}");
        assert_eq!(found["decision"], "REFUSED");
        let names = ["requestId", "reason", "nearest", "message", "instance", "direction", "caller", "service", "path"];
        let more = ["tenant", "allowlist", "rule", "source", "policyRevision", "tenantRevision"];
        for name in names.into_iter().chain(more) {
            assert_eq!(found[name], told[name], "{name}: {found} and {told}");
        }
    }
    let all = answer(by("media"), "Sidecar/Decisions", &json!({"caller": "wiki", "limit": 1}));
    assert_eq!((&all["decisions"][0]["reason"], &all["more"]), (&json!("PATH_NOT_ALLOWED"), &json!(true)), "{all}");
    let of_tenant = answer(by("media"), "Sidecar/Decisions", &json!({"tenant": "asleep"}));
    assert_eq!(of_tenant["decisions"][0]["reason"], "TENANT_SUSPENDED", "{of_tenant}");
    let none = answer(by("media"), "Sidecar/Decisions", &json!({"requestId": "nobody-asked"}));
    assert_eq!(none["decisions"], Value::Null);
    let wrong = complaint(by("media"), "Sidecar/Decisions", &json!({"reason": "NO_SUCH"}));
    assert!(wrong.contains("InvalidArgument") && wrong.contains("reason: \"NO_SUCH\""), "{wrong}");
}

const RATED: &str = "
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: media}
spec:
  service: media
  rules:
    - {name: rated, callers: [wiki], paths: [/media.v1.Media/List], rate: {perTenant: 2/h, burst: 2}}
    - {name: proved, callers: [wiki], paths: [/media.v1.Media/Get], proof: transaction}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_be_explained_a_call_uses_up_nothing_and_is_decided_as_it_is_when_it_is_made() {
    let mesh = demo().file("allowlists.yaml", RATED).start().expect("the mesh starts");
    mesh.import(&[tenant("acme", "ACTIVE"), tenant("asleep", "SUSPENDED")]).expect("imported");
    let media = mesh.admin("media", "us-east");
    let explain = |more: Value| {
        let mut request = json!({"caller": "wiki", "path": LIST, "tenant": "acme"});
        more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
        answer(media, "Sidecar/Explain", &request)
    };
    eventually(SOON, "the tenant arrives", || Ok(explain(json!({}))["allowed"] == true)).expect("allowed");
    let calls = || http_get(media, "/metrics");
    let counted = |metrics: &str| -> Vec<String> {
        let of_calls = |line: &&str| line.contains("rpc_server") || line.contains("refus") || line.contains("limited");
        metrics.lines().filter(of_calls).map(str::to_owned).collect()
    };
    let before = counted(&calls().await.expect("metrics"));
    assert!(!before.is_empty());
    for _ in 0..20 {
        let told = explain(json!({}));
        assert_eq!((&told["allowed"], &told["rule"]), (&json!(true), &json!("rated")), "{told}");
        assert_eq!(told["rate"], json!({"calls": "2", "seconds": "3600", "burst": "2", "of": "tenant"}), "{told}");
    }
    for (more, expected) in [
        (json!({"tenant": "asleep"}), "TENANT_SUSPENDED"),
        (json!({"tenant": ""}), "TENANT_REQUIRED"),
        (json!({"tenant": "nobody"}), "TENANT_UNKNOWN"),
        (json!({"path": "/media.v1.Media/Delete"}), "PATH_NOT_ALLOWED"),
        (json!({"caller": "nosuch"}), "PATH_NOT_ALLOWED"),
        (json!({"path": "/media.v1.Media/Get"}), "TXN_MISSING"),
        (json!({"path": "/media.v1.Media/Get", "transaction": "globex"}), "TXN_TENANT_MISMATCH"),
    ] {
        let told = explain(more.clone());
        assert_eq!((&told["allowed"], &told["reason"]), (&json!(false), &json!(expected)), "{more}: {told}");
    }
    assert_eq!(explain(json!({"path": "/media.v1.Media/Get", "transaction": "acme"}))["allowed"], true);
    assert_eq!(counted(&calls().await.expect("metrics")), before, "no call was made");
    assert_eq!(answer(media, "Sidecar/Decisions", &json!({}))["remembered"], Value::Null);

    // None of that used up the rate; these do.
    for _ in 0..2 {
        assert_eq!(list(&mesh, "acme").await, "ALLOWED");
    }
    let told = explain(json!({}));
    assert_eq!((&told["allowed"], &told["reason"]), (&json!(false), &json!("TENANT_RATE_LIMITED")), "{told}");
    assert!(told["rate"]["nextMs"].as_str().is_some_and(|next| next.parse::<u64>().unwrap() > 60_000), "{told}");
    let refused = wiki(&mesh).await.list(for_tenant("acme", ListRequest {})).await.expect_err("it is used up");
    let message = told["message"].as_str().expect("a message");
    assert!(refused.message().starts_with(&format!("TENANT_RATE_LIMITED: {message} (request")), "{refused} {told}");
    explains_the_way_out(&mesh);
}

fn explains_the_way_out(mesh: &Mesh) {
    let out = |more: Value| {
        let mut request = json!({"direction": "OUTBOUND", "service": "media", "path": LIST, "tenant": "acme"});
        more.as_object().into_iter().flatten().for_each(|(name, value)| request[name] = value.clone());
        answer(mesh.admin("wiki", "us-east"), "Sidecar/Explain", &request)
    };
    let passed = out(json!({}));
    // Its tenants are served at home.
    let candidates = passed["candidates"].as_array().expect("candidates");
    let at = mesh.inbound("media", "us-east").to_string();
    assert_eq!(candidates.iter().map(|one| &one["address"]).collect::<Vec<_>>(), [&json!(at)], "{passed}");
    assert_eq!(out(json!({"service": "nosuch"}))["reason"], "SERVICE_UNKNOWN");
    assert_eq!(out(json!({"region": "mars"}))["reason"], "NO_ENDPOINT");
    for (request, field) in [
        (json!({"caller": "wiki"}), "path: "),
        (json!({"caller": "Wiki!", "path": LIST}), "caller: "),
        (json!({"caller": "wiki", "path": LIST, "service": "issues"}), "service: "),
        (json!({"caller": "wiki", "path": LIST, "region": "eu-west"}), "region: "),
        (json!({"caller": "wiki", "path": LIST, "transaction": "No!"}), "transaction: "),
        (json!({"direction": 9, "caller": "wiki", "path": LIST}), "direction: "),
        (json!({"direction": "OUTBOUND", "caller": "issues", "service": "issues", "path": LIST}), "caller: "),
    ] {
        let wrong = complaint(mesh.admin("media", "us-east"), "Sidecar/Explain", &request);
        assert!(
            wrong.contains("InvalidArgument") && wrong.contains(&format!("Message: {field}")),
            "{request}: {wrong}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_instances_are_told_page_by_page_and_the_document_is_that_of_the_configuration_without_secrets() {
    let mesh = settled(demo()).await;
    let admin = mesh.admin("wiki", "us-east");
    let all = answer(admin, "Sidecar/Endpoints", &json!({}));
    let all = all["endpoints"].as_array().expect("instances").clone();
    let called = all.iter().find(|one| one["service"] == "media" && one["region"] == "us-east").expect("media");
    assert_eq!((&called["tier"], &called["source"]), (&json!("region"), &json!("registered")), "{called}");
    assert!(called["latencyMs"].as_f64().is_some_and(|ms| ms > 0.0), "{called}");
    assert!(called["connections"].as_u64().is_some_and(|count| count >= 1), "{called}");
    let (mut paged, mut token) = (Vec::new(), json!(""));
    while !token.is_null() {
        let page = answer(admin, "Sidecar/Endpoints", &json!({"limit": 1, "pageToken": token}));
        paged.extend(page["endpoints"].as_array().cloned().unwrap_or_default());
        token = page["nextPageToken"].clone();
    }
    let addresses = |of: &[Value]| of.iter().map(|one| one["address"].clone()).collect::<Vec<_>>();
    assert_eq!(addresses(&paged), addresses(&all));
    assert!(complaint(admin, "Sidecar/Endpoints", &json!({"pageToken": "x"})).contains("page_token: "));
    assert!(complaint(admin, "Sidecar/Endpoints", &json!({"services": ["nosuch"]})).contains("nobody defines"));

    let described = answer(admin, "Sidecar/Describe", &json!({}))["document"].clone();
    let config: Value = serde_json::from_str(&http_get(admin, "/config").await.expect("/config")).expect("JSON");
    let names = |of: &Value| of.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let config = without_nulls(config);
    assert_eq!(names(&described), names(&config));
    for same in ["svid", "roots", "allowlist", "routes", "revisions", "log", "inbound"] {
        assert_eq!(described[same], config[same]);
    }
    let state = mesh.data_dir().join("sidecars/wiki-us-east");
    let mut keys = Vec::new();
    for entry in fs::read_dir(&state).expect("the state folder") {
        let text = fs::read_to_string(entry.expect("an entry").path()).unwrap_or_default();
        let key = |line: &&str| line.len() == 64 && !line.contains(' ');
        keys.extend(
            text.split("PRIVATE KEY-----")
                .skip(1)
                .flat_map(|pem| pem.lines().filter(key).map(str::to_owned).collect::<Vec<_>>()),
        );
    }
    assert!(!keys.is_empty(), "the state folder has private keys");
    let text = format!("{described}{config}");
    assert!(keys.iter().all(|line| !text.contains(line)) && !text.contains("PRIVATE"), "a private key is told");
}

/// A field that is absent says the same.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let there = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(there.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_told_as_this_service_may_see_it_and_asked_for_where_it_is_not_held() {
    let mesh = settled(demo().on_demand("media", "us-east")).await;
    for (service, mode) in [("media", "on-demand"), ("issues", "full")] {
        let admin = mesh.admin(service, "us-east");
        for by in [json!({"tenantId": "asleep"}), json!({"host": "Asleep.example.com"})] {
            eventually(SOON, "the tenant arrives", || Ok(ask(admin, "Tenants/Get", &by).is_ok())).expect("it is told");
            let told = answer(admin, "Tenants/Get", &by);
            assert_eq!(
                (&told["tenant"]["tenantId"], &told["tenant"]["status"]),
                (&json!("asleep"), &json!("SUSPENDED"))
            );
            assert_eq!(told["mode"], mode, "{told}");
            // media's own product, and issues has no business with it.
            assert_eq!(told["tenant"]["products"].is_object(), service == "media", "{told}");
            assert!(told["replicaRevision"].as_str().is_some_and(|revision| revision.contains('.')), "{told}");
        }
        let nobody = complaint(admin, "Tenants/Get", &json!({"tenantId": "nobody"}));
        let why = if mode == "full" { "holds all tenants as of revision" } else { "the TCS was asked" };
        assert!(nobody.contains("NotFound") && nobody.contains(why), "{nobody}");
        assert!(complaint(admin, "Tenants/Get", &json!({"tenantId": "No!"})).contains("tenant_id: "));
        assert!(complaint(admin, "Tenants/Get", &json!({})).contains("expected tenant_id or host"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_no_level_does_the_log_hold_what_a_call_carries_and_a_level_for_a_while_goes_back() {
    let mesh = settled(demo()).await;
    for service in ["wiki", "media"] {
        let admin = mesh.admin(service, "us-east");
        let set = answer(admin, "Sidecar/SetLogLevel", &json!({"filter": "trace"}));
        assert_eq!((&set["old"], &set["new"]), (&json!("info"), &json!("trace")));
    }
    let headers =
        [("authorization", SECRETS[0]), ("cookie", SECRETS[1]), ("txn-token", SECRETS[2]), ("x-tenant-id", "acme")];
    let mut client = wiki(&mesh).await;
    for _ in 0..20 {
        client.list(with_headers(&headers, ListRequest {})).await.expect("it passes");
        let refused = with_headers(&headers, DeleteRequest { id: "x".into() });
        client.delete(refused).await.expect_err("no rule allows it");
    }
    drop(client);
    // Each of these ends a connection, which our own crates tell of at `debug`.
    eventually(SOON, "the level is in effect", || {
        std::net::TcpStream::connect(mesh.inbound("media", "us-east"))?;
        Ok(log(&mesh, "media").contains("DEBUG"))
    })
    .expect("more is logged");
    for service in ["wiki", "media"] {
        let log = log(&mesh, service);
        let told = SECRETS.iter().find(|secret| log.contains(secret.trim_start_matches("Bearer ")));
        assert_eq!(told, None, "the log of {service}");
        // An ASAP token, or any other that is signed.
        assert!(!log.contains("eyJ"), "a token is in the log of {service}");
        assert!(log.lines().all(|line| !line.contains(" TRACE h2") && !line.contains(" DEBUG h2")), "h2 is heard");
    }
    goes_back(mesh.admin("media", "us-east"));
}

fn log(mesh: &Mesh, service: &str) -> String {
    fs::read_to_string(mesh.data_dir().join(format!("{service}-us-east.log"))).expect("a log")
}

fn goes_back(admin: SocketAddr) {
    let now = || answer(admin, "Sidecar/Describe", &json!({"sections": ["log"]}))["document"]["log"]["filter"].clone();
    answer(admin, "Sidecar/SetLogLevel", &json!({"filter": "warn"}));
    let first = answer(admin, "Sidecar/SetLogLevel", &json!({"filter": "debug", "seconds": 3600}));
    assert!(first["untilUnixSeconds"].as_str().is_some_and(|until| until.len() == 10), "{first}");
    let second = answer(admin, "Sidecar/SetLogLevel", &json!({"filter": "info,tenon=debug", "seconds": 1}));
    assert_eq!((&second["old"], &second["new"]), (&json!("debug"), &json!("info,tenon=debug")));
    eventually(SOON, "it goes back to what was to stay", || Ok(now() == "warn")).expect("it goes back");
    let wrong = complaint(admin, "Sidecar/SetLogLevel", &json!({"filter": "info,hyper=debug"}));
    assert!(wrong.contains("InvalidArgument") && wrong.contains("\"hyper=debug\" at character 6"), "{wrong}");
    let wrong = complaint(admin, "Sidecar/SetLogLevel", &json!({"filter": "info", "seconds": 86_401}));
    assert!(wrong.contains("seconds: "), "{wrong}");
    assert_eq!(now(), "warn", "what was refused changed nothing");
    assert_eq!(answer(admin, "Sidecar/SetLogLevel", &json!({}))["new"], "info");
}

/// Browsers speak HTTP/1.1 where there is no TLS, also to a name that somebody made lead here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_cannot_ask_a_sidecar_anything() {
    let mesh = settled(demo()).await;
    let admin = mesh.admin("media", "us-east");
    let mut page = TcpStream::connect(admin).await.expect("connected");
    let request = "POST /tenon.admin.v1.Sidecar/SetLogLevel HTTP/1.1\r\nhost: evil.example\r\n\
                   content-type: application/grpc\r\ncontent-length: 5\r\nconnection: close\r\n\r\n\0\0\0\0\0";
    page.write_all(request.as_bytes()).await.expect("sent");
    let mut answered = String::new();
    page.read_to_string(&mut answered).await.expect("answered");
    assert!(answered.contains("grpc-status: 7") && answered.contains("web%20pages"), "{answered}");
    let mut command = Command::new(python::program("grpcurl").expect("grpcurl"));
    command.args(["-plaintext", "-H", "origin: http://evil.example", &admin.to_string()]);
    let output = command.arg("tenon.admin.v1.Sidecar/Decisions").output().expect("grpcurl runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("PermissionDenied"), "{output:?}");
    assert_eq!(list(&mesh, "acme").await, "ALLOWED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_no_answer_keeps_others_out_for_a_quarter_of_a_minute_at_most() {
    let mesh = settled(demo()).await;
    let admin = mesh.admin("media", "us-east");
    let tcp = TcpStream::connect(admin).await.expect("connected");
    let connection = h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(tcp);
    let (client, connection) = connection.await.expect("HTTP/2");
    let driver = tokio::spawn(connection);
    let mut client = client.ready().await.expect("open");
    let mut unread = Vec::new();
    for _ in 0..8 {
        let request = http::Request::post(format!("http://{admin}/tenon.admin.v1.Sidecar/Describe"));
        let request = request.header("content-type", "application/grpc").header("te", "trailers").body(());
        let (answer, mut body) = client.send_request(request.expect("a request"), false).expect("sent");
        body.send_data(bytes::Bytes::from_static(&[0; 5]), true).expect("sent");
        // Its head is there; the rest waits for whoever reads it.
        unread.push(answer.await.expect("an answer"));
    }
    let full = complaint(admin, "Sidecar/Decisions", &json!({}));
    assert!(full.contains("ResourceExhausted") && full.contains("try again"), "{full}");
    assert!(http_get(admin, "/live").await.is_ok(), "a probe is answered");
    eventually(2 * SOON, "there is room again", || Ok(ask(admin, "Sidecar/Decisions", &json!({})).is_ok()))
        .expect("room");
    tokio::time::timeout(SOON, driver).await.expect("the connection is closed").expect("it ends").ok();
}
