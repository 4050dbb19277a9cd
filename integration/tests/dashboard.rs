//! The dashboard, by a real browser and by whoever has no business there.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use integration::{
    calls::{channel, for_tenant, metadata, outcome},
    mesh::{Mesh, Plan, SOON, eventually, repository},
    python::program,
};
use serde_json::{Value, json};
use tenon_proto::media::v1::{DeleteRequest, ListRequest, media_client::MediaClient};
use tonic::transport::Channel;

/// Between two calls of whoever is to be seen.
const AGAIN: Duration = Duration::from_millis(100);

fn mesh() -> Mesh {
    of(Plan::demo().expect("a plan"))
}

/// A thousand services more, which nobody runs.
fn many_services() -> Plan {
    let service = |number: u32| {
        format!(
            "---\napiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: many-{number:04}}}\nspec: {{}}\n---\n\
             apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: many-{number:04}}}\nspec:\n  service: many-{number:04}\n  \
             rules: [{{name: one, callers: [wiki], paths: [/many.v1.Many/*]}}]\n"
        )
    };
    Plan::demo().expect("a plan").file("many.yaml", &(0..1_000).map(service).collect::<String>())
}

fn of(plan: Plan) -> Mesh {
    let mesh = plan.start().expect("the mesh starts");
    let shard = json!({"cluster": "c1", "database": "media-1", "schema": "main"});
    mesh.import(&[json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east", "hosts": ["acme.example.com"],
        "products": {"media": {"state": "ACTIVE", "edition": "premium", "shard": shard}}
    })])
    .expect("imported");
    mesh
}

async fn wiki(mesh: &Mesh) -> MediaClient<Channel> {
    let mut media =
        MediaClient::new(channel(mesh.outbound("wiki", "us-east"), "media").await.expect("the sidecar answers"));
    let end = std::time::Instant::now() + SOON;
    while outcome(&media.list(for_tenant("acme", ListRequest {})).await) != "ALLOWED" {
        assert!(std::time::Instant::now() < end, "the tenant never arrives");
    }
    media
}

/// Makes a call that is refused, and returns its request id once its sidecar has told of it.
async fn refused(mesh: &Mesh, media: &mut MediaClient<Channel>) -> (String, Value) {
    let status = media.delete(for_tenant("acme", DeleteRequest::default())).await.expect_err("it is refused");
    let id = metadata(&status, "request_id").expect("a refusal names its request");
    let mut told = Value::Null;
    eventually(SOON, "the sidecar that refused reports", || {
        let output = mesh.tenon(&["explain", &id, "-o", "json"])?;
        told = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Ok(output.status.success())
    })
    .expect("it is remembered");
    (id, told)
}

fn link(mesh: &Mesh) -> (SocketAddr, String, String) {
    let link = mesh.tenon_ok(&["dashboard"]).expect("a link").trim().to_owned();
    let (address, code) = link.strip_prefix("http://").and_then(|rest| rest.split_once("/#code=")).expect("a link");
    (address.parse().expect("an address"), code.to_owned(), link.clone())
}

/// One request of HTTP, as a program makes it: the status, the head and the body.
fn http(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(at).expect("the dashboard listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let own = if headers.iter().any(|(name, _)| *name == "host") { String::new() } else { format!("host: {at}\r\n") };
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let text =
        format!("{method} {path} HTTP/1.1\r\n{own}{more}connection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_lowercase(), body.to_owned())
}

fn get(at: SocketAddr, path: &str, token: &str) -> (u16, Value) {
    let (status, _, body) = http(at, "GET", path, &[("authorization", &format!("Bearer {token}"))], "");
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn sign_in(at: SocketAddr, code: &str) -> (u16, Value) {
    let body = json!({"code": code}).to_string();
    let (status, _, body) = http(at, "POST", "/api/session", &[("content-type", "application/json")], &body);
    (status, serde_json::from_str(&body).expect("JSON"))
}

/// Everything that tells something.
const ANSWERS: [&str; 9] = [
    "/api/session",
    "/api/mesh",
    "/api/services/media",
    "/api/refusals",
    "/api/explain/some-id",
    "/api/tenants/acme",
    "/api/sidecars",
    "/api/rollouts",
    "/api/tap",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_told_alike_by_the_command_the_dashboard_and_grpcurl() {
    let mesh = mesh();
    let (id, by_command) = refused(&mesh, &mut wiki(&mesh).await).await;
    let (at, code, _) = link(&mesh);
    let (status, session) = sign_in(at, &code);
    assert_eq!(status, 200, "{session}");
    let token = session["token"].as_str().expect("a token");
    let (status, by_dashboard) = get(at, &format!("/api/explain/{id}"), token);
    assert_eq!((status, &by_dashboard), (200, &by_command));
    assert_eq!((&by_dashboard["reason"], &by_dashboard["tenant"]), (&json!("PATH_NOT_ALLOWED"), &json!("acme")));
    let admin = mesh.admin("media", "us-east").to_string();
    let output = Command::new(program("grpcurl").expect("make deps brings it"))
        .args(["-plaintext", "-d", &json!({"requestId": id}).to_string(), &admin, "tenon.admin.v1.Sidecar/Decisions"])
        .output()
        .expect("it runs");
    let grpcurl: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let found = &grpcurl["decisions"][0];
    for name in [
        "requestId",
        "reason",
        "nearest",
        "message",
        "instance",
        "direction",
        "caller",
        "service",
        "path",
        "tenant",
        "allowlist",
        "rule",
        "source",
        "policyRevision",
        "tenantRevision",
    ] {
        assert_eq!(found[name], by_dashboard[name], "{name}: {found} and {by_dashboard}");
    }
    let (status, unknown) = get(at, "/api/explain/nobody-asked", token);
    assert_eq!(status, 404, "{unknown}");
    assert!(unknown["error"].as_str().is_some_and(|error| error.contains("no sidecar remembers")), "{unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_signed_in_sees_nothing_and_who_may_only_look_changes_nothing() {
    let mesh = mesh();
    let (at, code, _) = link(&mesh);
    for path in ANSWERS {
        for token in ["", "0000", &code] {
            let (status, answer) = get(at, path, token);
            assert_eq!(status, 401, "{path}: {answer}");
            assert!(answer["error"].as_str().is_some_and(|error| error.contains("tenon dashboard")), "{answer}");
        }
    }
    let (status, session) = sign_in(at, &code);
    assert_eq!((status, &session["session"]["role"]), (200, &json!("admin")), "{session}");
    assert_eq!(sign_in(at, &code).0, 401, "a link works once");
    let token = session["token"].as_str().expect("a token").to_owned();
    let (status, head, _) = http(at, "GET", "/", &[], "");
    assert_eq!(status, 200);
    for header in
        ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "cache-control: no-store"]
    {
        assert!(head.contains(header), "{header}: {head}");
    }
    // A page from elsewhere whose name leads to this machine.
    for (host, expected) in
        [("evil.example:80", 421), ("localhost:1", 200), ("127.0.0.1.evil.example", 421), ("[::1]:1", 200)]
    {
        assert_eq!(http(at, "GET", "/", &[("host", host)], "").0, expected, "{host}");
    }
    let bearer = format!("Bearer {token}");
    let json_body = ("content-type", "application/json");
    // No form of another page sends JSON, and nothing else is taken.
    let forged = http(
        at,
        "POST",
        "/api/rollout/end",
        &[("authorization", &bearer), ("content-type", "text/plain")],
        "{\"complete\":true}",
    );
    assert_eq!(forged.0, 415, "{}", forged.2);
    let ended = http(at, "POST", "/api/rollout/end", &[("authorization", &bearer), json_body], "{\"complete\":true}");
    assert_eq!(ended.0, 409, "there is none: {}", ended.2);
    // Whoever is on the machine may connect, and keeps nobody out.
    let idle: Vec<_> = (0..400).map(|_| TcpStream::connect(at).expect("connected")).collect();
    assert_eq!(get(at, "/api/mesh", &token).0, 200, "beside {} that say nothing", idle.len());
    assert_eq!(http(at, "DELETE", "/api/session", &[("authorization", &bearer)], "").0, 200);
    assert_eq!(get(at, "/api/mesh", &token).0, 401, "signed out");
    looks_only(&mesh);
}

/// With the credentials of a viewer.
fn looks_only(mesh: &Mesh) {
    let folder = mesh.scratch().join("viewer");
    let out = folder.to_str().expect("text");
    mesh.tenon_ok(&["identity", "operator", "--name", "vera", "--role", "viewer", "--out", out]).expect("a viewer");
    let mut command = Command::new(integration::mesh::binary("tenon").expect("built"));
    let output = command.args(["dashboard", "--data", out]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (address, code) =
        text.strip_prefix("http://").and_then(|it| it.split_once("/#code=")).unwrap_or_else(|| panic!("{output:?}"));
    let at = address.parse().expect("an address");
    let (_, session) = sign_in(at, code);
    assert_eq!((&session["session"]["role"], &session["session"]["mayAct"]), (&json!("viewer"), &json!(false)));
    let token = session["token"].as_str().expect("a token").to_owned();
    assert_eq!(get(at, "/api/mesh", &token).0, 200);
    let (status, answer) = get(at, "/api/tap", &token);
    assert_eq!(status, 403, "{answer}");
    let headers = [("authorization", format!("Bearer {token}")), ("content-type", "application/json".to_owned())];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let ended = http(at, "POST", "/api/rollout/end", &headers, "{\"complete\":true}");
    assert!(ended.0 == 403 && ended.2.contains("is viewer, and this is for operator"), "{ended:?}");
    // Whose certificate is revoked is signed in no longer.
    let listed = mesh.tenon_ok(&["identity", "revoke", "--operator", "vera"]);
    listed.expect("revoked");
    eventually(SOON, "the revocation arrives", || Ok(get(at, "/api/mesh", &token).0 == 401)).expect("signed out");
}

/// Where the browser is: `make deps` brings it.
fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found =
        std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|file| file.is_file());
    found.expect("there is no chromium: run `make deps`")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_finds_every_page_without_an_error_and_without_a_fault_of_accessibility() {
    // Where somebody wants the pictures of the README.
    let shots = std::env::var("TENON_TEST_SCREENSHOTS").ok();
    let large = shots.is_none();
    let mesh = if large { of(many_services()) } else { mesh() };
    let mut media = wiki(&mesh).await;
    let (id, told) = refused(&mesh, &mut media).await;
    let (_, _, link) = link(&mesh);
    let wanted = json!({
        "chromium": chromium(), "link": link, "requestId": id, "tenant": "acme", "service": "media", "shots": shots,
    });
    let mut command = Command::new("node");
    command.arg(repository().join("integration/tests/node/dashboard.js")).arg(wanted.to_string());
    command.env("NODE_PATH", repository().join("target/node/node_modules")).stdin(Stdio::null());
    let over = AtomicBool::new(false);
    let browser = tokio::task::spawn_blocking(move || command.output());
    let calling = async {
        while !over.load(Relaxed) {
            let allowed = outcome(&media.list(for_tenant("acme", ListRequest {})).await);
            let refused = outcome(&media.delete(for_tenant("acme", DeleteRequest::default())).await);
            assert_eq!((allowed.as_str(), refused.as_str()), ("ALLOWED", "PATH_NOT_ALLOWED"));
            tokio::time::sleep(AGAIN).await;
        }
    };
    let ended = async {
        let output = browser.await.expect("it ends").expect("node runs: `make deps` brings it");
        over.store(true, Relaxed);
        output
    };
    let (output, ()) = tokio::join!(ended, calling);
    let text = String::from_utf8_lossy(&output.stdout);
    let saw: Value =
        text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_else(|| panic!("{output:?}"));
    assert_eq!(saw["failed"], Value::Null, "{saw:#}");
    assert_eq!(saw["errors"], json!([]), "{saw:#}");
    assert_eq!(saw["faults"], json!([]), "{saw:#}");
    if large {
        shows_what_is(&saw, &told);
    }
}

fn shows_what_is(saw: &Value, told: &Value) {
    let page = |name: &str| saw["pages"][name].as_str().unwrap_or_else(|| panic!("no page {name}: {saw:#}")).to_owned();
    for (name, parts) in [
        ("graph", &["media", "wiki", "sidecars connected", "calls refused", "The 60 services with the most calls"][..]),
        ("service", &["Allowlist", "/media.v1.Media/", "PATH_NOT_ALLOWED", "wiki", "127.0.0.1:"]),
        ("services", &["media", "enforced", "of 1,003 shown"]),
        ("refusals", &["PATH_NOT_ALLOWED", "/media.v1.Media/Delete", "explain"]),
        ("tenant", &["acme", "ACTIVE", "acme.example.com", "premium", "us-east"]),
        ("sidecars", &["media", "wiki", "ok", "allowlist"]),
        ("rollouts", &["History", "applied", "folder"]),
        ("sign-in", &["tenon dashboard"]),
    ] {
        for part in parts {
            assert!(page(name).contains(part), "{part} in {name}: {}", page(name));
        }
    }
    let refusal = page("refusal");
    for name in ["reason", "message", "caller", "service", "path", "tenant", "instance", "policyRevision", "nearest"] {
        let value = told[name].as_str().unwrap_or_else(|| panic!("{name}: {told:#}"));
        assert!(refusal.contains(value), "{name} {value}: {refusal}");
    }
    let notes = &saw["notes"];
    let url = notes["urlAfterSignIn"].as_str().expect("a URL");
    assert!(!url.contains("code="), "the code stays in no history: {url}");
    assert_eq!(notes["sorted"], "descending");
    assert_eq!(notes["firstStop"], "Skip to the page");
    assert!(notes["byKeyboard"].as_str().is_some_and(|url| url.contains("#/services/")), "{notes}");
    assert!(notes["unknownTenant"].as_str().is_some_and(|text| text.contains("nobody-of-this-name")), "{notes}");
    assert!(notes["usedLink"].as_str().is_some_and(|text| text.contains("used already")), "{notes}");
}
