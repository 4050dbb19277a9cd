//! Transaction tokens through the front door: a service at the edge asks for one by token exchange, an operator with the
//! CLI, and the calls of the whole chain pass with it alone.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration::{
    calls::{channel, outcome, with_headers},
    mesh::{Mesh, Plan, SOON, eventually, signal},
};
use mesh_asap::{Kid, SigningKey, txn};
use mesh_identity::{
    Identity, clock,
    join::{self, Attestation},
    testing::{self, service},
    tls,
};
use serde_json::{Map, Value, json};
use tenon_proto::{
    issues::v1::{AttachHeader, AttachRequest, CreateRequest, attach_request, issues_client::IssuesClient},
    media::v1::{ListRequest, media_client::MediaClient},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Channel;

/// The demo, where wiki asks for tokens, and every call for a tenant wants one.
fn mesh() -> Mesh {
    let wanted = |service: &str, rule: &str, caller: &str, paths: &str| {
        format!(
            "apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: {rule}}}\nspec:\n  service: {service}\n  rules:\n    \
             - {{name: {rule}, callers: [{caller}], paths: [{paths}], proof: transaction}}\n"
        )
    };
    let allowlists = [
        wanted("issues", "links", "wiki", "/issues.v1.Issues/*"),
        wanted("media", "files", "issues", "/media.v1.Media/*"),
        wanted("media", "reads", "wiki", "/media.v1.Media/List"),
    ];
    let plan = Plan::demo().expect("a plan").file("allowlists.yaml", &allowlists.join("---\n"));
    let demo =
        fs::read_to_string(integration::mesh::repository().join("mesh-config/demo/services.yaml")).expect("there");
    let services = demo.replace("  product: wiki", "  product: wiki\n  requestsTransactionTokens: true");
    assert_ne!(services, demo);
    let mesh = plan.file("services.yaml", &services).start().expect("the mesh starts");
    let shard = json!({"cluster": "c1", "database": "d1", "schema": "s1"});
    let product = json!({"state": "ACTIVE", "shard": shard});
    let tenant = |id: &str| {
        json!({
            "tenantId": id, "status": "ACTIVE", "region": "us-east",
            "products": {"media": product, "issues": product, "wiki": product},
        })
    };
    mesh.import(&[tenant("acme"), tenant("globex")]).expect("imported");
    mesh
}

fn cli(mesh: &Mesh, tenant: &str) -> String {
    let args = ["identity", "txn-token", "--tenant", tenant, "--subject", "ann", "--scope", "media.read"];
    let printed = mesh.tenon_ok(&args).expect("a token");
    let token = printed.strip_suffix('\n').expect("a line").to_owned();
    assert!(!token.contains(char::is_whitespace), "the token alone: {token:?}");
    token
}

async fn media(mesh: &Mesh, caller: &str) -> MediaClient<Channel> {
    MediaClient::new(channel(mesh.outbound(caller, "us-east"), "media").await.expect("the sidecar answers"))
}

/// How a call for `tenant` with these transaction tokens comes out.
async fn list(client: &mut MediaClient<Channel>, tenant: &str, tokens: &[&str]) -> String {
    let mut headers = vec![("x-tenant-id", tenant)];
    headers.extend(tokens.iter().map(|token| ("txn-token", *token)));
    outcome(&client.list(with_headers(&headers, ListRequest::default())).await)
}

/// Until the tenants have arrived everywhere.
async fn ready(client: &mut MediaClient<Channel>, token: &str) {
    let end = std::time::Instant::now() + SOON;
    loop {
        let answer = list(client, "acme", &[token]).await;
        if answer == "ALLOWED" {
            return;
        }
        assert!(std::time::Instant::now() < end, "never: {answer}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The key that signs now, as somebody has it who broke into the identity service.
fn stolen_key(mesh: &Mesh) -> SigningKey {
    let folder = mesh.data_dir().join("identity/transaction-keys");
    for entry in fs::read_dir(folder).expect("the keys' folder") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a key");
        if text.contains("\nsigning-since: ") {
            let kid = text.lines().find_map(|line| line.strip_prefix("kid: ")).expect("its id");
            let kid: Kid = kid.parse().expect("a key id");
            return SigningKey::from_pkcs8(kid, pem::parse(text).expect("PEM").contents()).expect("a P-256 key");
        }
    }
    panic!("no key signs");
}

fn mint(key: &SigningKey, trust_domain: &str, tenant: &str, now: u64) -> String {
    let nothing = Map::new();
    let token = txn::NewToken {
        trust_domain,
        txn: None,
        subject: "ann",
        scope: "media.read",
        tenant: Some(tenant),
        transaction_context: &nothing,
        requester_context: &nothing,
        requester: "spiffe://test.example/svc/wiki",
        lifetime_seconds: txn::LIFETIME_SECONDS,
    };
    key.mint_transaction(&token, now)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_wants_a_transaction_token_passes_with_a_current_one_of_its_tenant_alone() {
    let mesh = mesh();
    let mut client = media(&mesh, "issues").await;
    let good = cli(&mesh, "acme");
    ready(&mut client, &good).await;
    let now = clock::unix_seconds();
    let (key, stranger) = (stolen_key(&mesh), SigningKey::generate("tenon-identity").expect("a key"));
    assert_eq!(list(&mut client, "acme", &[&mint(&key, "test.example", "acme", now)]).await, "ALLOWED");

    let parts: Vec<_> = good.split('.').collect();
    let other_claims: Vec<_> = mint(&key, "test.example", "globex", now).split('.').map(str::to_owned).collect();
    let tampered = format!("{}.{}.{}", parts[0], other_claims[1], parts[2]);
    let asap = key.mint("media", now, 300);
    for (what, tenant, tokens, expected) in [
        ("none", "acme", vec![], "TXN_MISSING"),
        ("its own", "acme", vec![good.clone()], "ALLOWED"),
        ("the other tenant's", "globex", vec![good.clone()], "TXN_TENANT_MISMATCH"),
        ("its own of the other", "globex", vec![cli(&mesh, "globex")], "ALLOWED"),
        ("changed claims", "globex", vec![tampered], "TXN_INVALID"),
        ("nonsense", "acme", vec!["nonsense".to_owned()], "TXN_INVALID"),
        ("an ASAP token", "acme", vec![asap], "TXN_INVALID"),
        ("two", "acme", vec![good.clone(), good.clone()], "TXN_INVALID"),
        ("another mesh's", "acme", vec![mint(&key, "other.example", "acme", now)], "TXN_INVALID"),
        ("signed by a stranger", "acme", vec![mint(&stranger, "test.example", "acme", now)], "TXN_INVALID"),
        ("one that has ended", "acme", vec![mint(&key, "test.example", "acme", now - 400)], "TXN_EXPIRED"),
        ("its own again", "acme", vec![good.clone()], "ALLOWED"),
    ] {
        let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
        assert_eq!(list(&mut client, tenant, &tokens).await, expected, "{what}");
    }

    let audit = fs::read_to_string(mesh.data_dir().join("identity/audit.jsonl")).expect("the audit log");
    let line = audit.lines().rev().find(|line| line.contains("\"txn-token\"")).expect("it is written down");
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!((&line["tenant"], &line["subject"]), (&json!("globex"), &json!("ann")));
    assert!(line["by"].as_str().expect("who").starts_with("spiffe://test.example/operator/"), "{line}");
    assert!(!audit.contains(parts[2]), "the token stands in the log");
    let refused = mesh.tenon(&["identity", "txn-token", "--tenant", "ACME", "--subject", "a", "--scope", "s"]);
    assert_eq!(refused.expect("runs").status.code(), Some(1));
}

fn identity_address(mesh: &Mesh) -> SocketAddr {
    let file = mesh.mesh_file().expect("mesh.json");
    file["controlPlane"]["identity"].as_str().expect("text").parse().expect("an address")
}

/// A process of this service, joined like any other.
async fn joined(mesh: &Mesh, name: &str) -> Arc<Identity> {
    let token = mesh.tenon_ok(&["identity", "join-token", "--service", name]).expect("a join token");
    let joined = join::join(join::Config {
        identity_address: identity_address(mesh),
        pin: mesh.mesh_file().expect("mesh.json")["trustBundleSha256"].as_str().expect("text").to_owned(),
        attestation: Attestation::join_token(token.trim()),
        service: service(name),
        state_dir: mesh.scratch().join(format!("joined-{name}-{}", clock::since_epoch().as_nanos())),
    });
    joined.await.expect("joins").identity
}

/// `POST /token` over HTTP/2 and mTLS; the status and what it says.
async fn exchange(mesh: &Mesh, identity: &Arc<Identity>, form: &str) -> (u16, Value) {
    let tcp = TcpStream::connect(identity_address(mesh)).await.expect("connects");
    let config = tls::client_config(identity, &service("tenon-identity"));
    post(tls::connect(&config, tcp).await.expect("the handshake"), form).await
}

/// The same without any certificate.
async fn exchange_anonymously(mesh: &Mesh, form: &str) -> (u16, Value) {
    let tcp = TcpStream::connect(identity_address(mesh)).await.expect("connects");
    let connector = TlsConnector::from(testing::client_config(None, &[b"h2"]));
    post(connector.connect(tls::server_name(), tcp).await.expect("the handshake"), form).await
}

async fn post(stream: TlsStream<TcpStream>, form: &str) -> (u16, Value) {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let request = http::Request::post("https://tenon-identity/token")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::new(bytes::Bytes::copy_from_slice(form.as_bytes())));
    let response = sender.send_request(request.expect("a request")).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    connection.abort();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

/// A transaction of a user of acme. Every character that means something in a form is escaped.
const FORM: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
                    &requested_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Atxn_token\
                    &audience=test.example&scope=issues.write+media.write\
                    &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aunsigned_json\
                    &subject_token=%7B%22sub%22%3A%22user-7%22%7D\
                    &request_details=%7B%22tenant%22%3A%22acme%22%7D\
                    &request_context=%7B%22req_ip%22%3A%22192.0.2.7%22%7D";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_at_the_edge_gets_a_token_by_exchange_and_it_lets_the_whole_chain_of_calls_pass() {
    let mesh = mesh();
    let (wiki, issues) = (joined(&mesh, "wiki").await, joined(&mesh, "issues").await);
    let (status, body) = exchange(&mesh, &wiki, FORM).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["token_type"], &body["expires_in"]), (&json!("N_A"), &json!(300)));
    let token = body["access_token"].as_str().expect("a token");
    let claims = mesh_asap::inspect(token).expect("a token").claims;
    assert_eq!(claims["req_wl"], "spiffe://test.example/svc/wiki");
    assert_eq!((&claims["sub"], &claims["aud"]), (&json!("user-7"), &json!("test.example")));

    let (status, body) = exchange(&mesh, &issues, FORM).await;
    assert_eq!((status, &body["error"]), (403, &json!("unauthorized_client")));
    assert_eq!(exchange_anonymously(&mesh, FORM).await, (401, Value::Null));
    let (status, body) = exchange(&mesh, &wiki, &FORM.replace("test.example", "other.example")).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid_target")));

    // wiki → issues → media: what issues calls passes with the token that it was called with.
    ready(&mut media(&mesh, "issues").await, token).await;
    let channel = channel(mesh.outbound("wiki", "us-east"), "issues").await.expect("the sidecar answers");
    let mut client = IssuesClient::new(channel);
    let create = || CreateRequest { project: "OPS".into(), summary: "Disk full".into(), ..CreateRequest::default() };
    let without = client.create(with_headers(&[("x-tenant-id", "acme")], create())).await;
    assert_eq!(outcome(&without), "TXN_MISSING");
    let headers = [("x-tenant-id", "acme"), ("txn-token", token)];
    let issue = client.create(with_headers(&headers, create())).await.expect("created").into_inner();
    let header = AttachHeader { key: issue.key, name: "df.txt".into(), content_type: "text/plain".into() };
    let parts = [attach_request::Part::Header(header), attach_request::Part::Data("100 %".into())];
    let parts = tokio_stream::iter(parts.map(|part| AttachRequest { part: Some(part) }));
    let attached = client.attach(with_headers(&headers, parts)).await.expect("attached through two hops").into_inner();
    assert!(!attached.media_id.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_outlive_a_restart_of_the_identity_service_and_a_rotation_of_its_keys() {
    let mesh = mesh();
    let mut client = media(&mesh, "issues").await;
    let before = cli(&mesh, "acme");
    ready(&mut client, &before).await;
    let kid = |token: &str| mesh_asap::inspect(token).expect("a token").header["kid"].as_str().map(str::to_owned);

    let running = mesh.processes("identity serve");
    let (pid, _) = running.iter().find(|(_, words)| words.iter().any(|word| word == "--ca")).expect("it runs");
    signal(*pid, rustix::process::Signal::KILL).expect("killed");
    assert_eq!(list(&mut client, "acme", &[&before]).await, "ALLOWED", "nobody needs it for tokens that there are");
    let ask = ["identity", "txn-token", "--tenant", "acme", "--subject", "ann", "--scope", "media.read"];
    eventually(SOON, "it gives tokens again", || Ok(mesh.tenon(&ask)?.status.success())).expect("it does");
    let after = cli(&mesh, "acme");
    assert_eq!(kid(&after), kid(&before), "it signs with the key that it had");
    assert_eq!(list(&mut client, "acme", &[&after]).await, "ALLOWED");

    mesh.tenon_ok(&["identity", "rotate", "keys"]).expect("rotated");
    let mut rotated = String::new();
    eventually(SOON, "another key signs", || {
        rotated = cli(&mesh, "acme");
        Ok(kid(&rotated) != kid(&before))
    })
    .expect("it does");
    for token in [&before, &after, &rotated] {
        assert_eq!(list(&mut client, "acme", &[token]).await, "ALLOWED", "{:?}", kid(token));
    }
}
