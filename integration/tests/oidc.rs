//! A platform's token instead of a join token: real sidecars join a running mesh with what an issuer that the test runs
//! has signed, as Kubernetes signs projected service-account tokens.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use integration::{
    calls::{channel, for_tenant, outcome},
    mesh::{Mesh, Plan, SOON, eventually, signal},
};
use mesh_asap::SigningKey;
use mesh_identity::{
    clock, grpc,
    join::{self, Attestation, JoinError, Joined},
    repository::testing::{KeyServer, Reply, WebCa},
    testing::service,
};
use rcgen::{CertificateParams, SanType};
use rustix::process::Signal;
use serde_json::{Value, json};
use tenon_proto::{
    identity::v1::{AsapKey, AttestRequest, identity_client::IdentityClient},
    media::v1::{ListRequest, media_client::MediaClient},
};
use tonic::Code;

const AUDIENCE: &str = "tenon.test.example";

/// An issuer as a Kubernetes cluster is one.
struct Issuer {
    server: KeyServer,
    ca: WebCa,
    url: String,
}

/// One of its keys.
struct Key {
    kid: &'static str,
    pair: KeyPair,
}

impl Key {
    fn new(kid: &'static str) -> Self {
        Self { kid, pair: KeyPair::generate(KeySize::Rsa2048).expect("a key") }
    }

    fn jwk(&self) -> Value {
        let public = self.pair.public_key();
        json!({
            "use": "sig", "kty": "RSA", "kid": self.kid, "alg": "RS256",
            "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
            "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()),
        })
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "RS256", "kid": self.kid });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        let signed = self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature);
        signed.expect("a signature");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Issuer {
    async fn start(keys: &[&Key]) -> Self {
        let ca = WebCa::new();
        let server = KeyServer::start(&ca).await;
        let url = server.url().trim_end_matches('/').to_owned();
        let issuer = Self { server, ca, url };
        let jwks_uri = format!("{}/openid/v1/jwks", issuer.url);
        issuer.serve(".well-known/openid-configuration", &json!({ "issuer": issuer.url, "jwks_uri": jwks_uri }));
        issuer.publish(keys);
        issuer
    }

    fn publish(&self, keys: &[&Key]) {
        let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
        self.serve("openid/v1/jwks", &json!({ "keys": keys }));
    }

    fn serve(&self, path: &str, document: &Value) {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        self.server.tell(path, Reply::Answer { status: 200, headers, body: document.to_string().into() });
    }

    fn goes_down(&self) {
        self.server.tell(".well-known/openid-configuration", Reply::Close);
        self.server.tell("openid/v1/jwks", Reply::Close);
    }

    /// An Attestor document: service accounts of the namespace `shop` are services of the same name.
    fn attestor(&self) -> String {
        let pem = self.ca.pem().replace('\n', "\n    ");
        let rule = |account: &str| {
            format!(
                "    - claims: {{/kubernetes.io/namespace: shop, /kubernetes.io/serviceaccount/name: {account}}}\n      \
                 service: {account}\n"
            )
        };
        format!(
            "apiVersion: tenon.dev/v1\nkind: Attestor\nmetadata: {{name: cluster}}\nspec:\n  issuer: {}\n  \
             audience: {AUDIENCE}\n  ca: |\n    {}\n  rules:\n{}{}",
            self.url,
            pem.trim_end(),
            rule("media"),
            rule("wiki"),
        )
    }

    /// What the kubelet projects into a pod of this service account.
    fn claims(&self, account: &str) -> Value {
        let now = clock::unix_seconds();
        json!({
            "iss": self.url,
            "aud": [AUDIENCE],
            "iat": now, "nbf": now, "exp": now + 3600,
            "jti": "5f3a3a0e-8c1b-4c53-9f8a-0c6a1d1f7d0e",
            "sub": format!("system:serviceaccount:shop:{account}"),
            "kubernetes.io": {
                "namespace": "shop",
                "node": { "name": "node-1", "uid": "646e7c5e" },
                "pod": { "name": format!("{account}-0"), "uid": "5e0bd49b" },
                "serviceaccount": { "name": account, "uid": "14ee3fa4" },
            },
        })
    }
}

fn mesh(issuer: &Issuer) -> Mesh {
    let plan = Plan::demo().expect("a plan").file("attestors.yaml", &issuer.attestor());
    let mesh = plan.start().expect("the mesh starts");
    mesh.import(&[json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east",
        "products": {"media": {"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}}}
    })])
    .expect("imported");
    mesh
}

fn token_file(mesh: &Mesh, token: &str) -> PathBuf {
    let path = mesh.scratch().join("platform-token");
    fs::write(&path, token).expect("written");
    path
}

/// A process of this service that has nothing but the platform's token joins.
async fn attest(mesh: &Mesh, name: &str, token: &str) -> Result<Joined, JoinError> {
    let file = mesh.mesh_file().expect("mesh.json");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    join::join(join::Config {
        identity_address: text(&file["controlPlane"]["identity"]).parse().expect("an address"),
        pin: text(&file["trustBundleSha256"]),
        attestation: Attestation { oidc_token_file: Some(token_file(mesh, token)), ..Attestation::default() },
        service: service(name),
        state_dir: mesh.scratch().join(format!("attested-{name}-{}", clock::since_epoch().as_nanos())),
    })
    .await
}

/// Why it did not get in, in the words of the identity service.
async fn refused(mesh: &Mesh, name: &str, token: &str) -> String {
    match attest(mesh, name, token).await {
        Err(JoinError::RefusedPlatform { message, .. }) => message,
        Err(other) => other.to_string(),
        Ok(joined) => panic!("{name} got in as {}", joined.identity.id()),
    }
}

fn audit(mesh: &Mesh) -> Vec<Value> {
    let text = fs::read_to_string(mesh.data_dir().join("identity/audit.jsonl")).expect("the audit log");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The same command line with another state folder, and a platform's token in the place of the join token.
fn attested_by_platform(command: &[String], state_dir: &Path, token: &Path) -> Vec<String> {
    let mut changed = command.to_vec();
    for at in 0..changed.len() {
        match changed[at].as_str() {
            "--state-dir" => changed[at + 1] = state_dir.display().to_string(),
            "--join-token-file" => {
                changed[at] = "--oidc-token-file".to_owned();
                changed[at + 1] = token.display().to_string();
            }
            _ => {}
        }
    }
    changed
}

async fn list(mesh: &Mesh) -> String {
    let Ok(channel) = channel(mesh.outbound("issues", "us-east"), "media").await else { return "no sidecar".into() };
    outcome(&MediaClient::new(channel).list(for_tenant("acme", ListRequest::default())).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_joins_with_a_token_of_its_platform_and_serves() {
    let key = Key::new("key-1");
    let issuer = Issuer::start(&[&key]).await;
    let mut mesh = mesh(&issuer);
    assert_eq!(list(&mesh).await, "ALLOWED");

    // The sidecar that `tenon up` started goes, and nobody starts it again.
    let sidecars = mesh.processes("--service media --trust-domain test.example --region us-east");
    let [(pid, command)] = &sidecars[..] else { panic!("one sidecar, not {sidecars:?}") };
    signal(mesh.pid(), Signal::STOP).expect("tenon up is stopped");
    signal(*pid, Signal::KILL).expect("the sidecar is killed");
    assert_ne!(list(&mesh).await, "ALLOWED");
    // Another one in its place, with a new folder and no join token.
    let token = token_file(&mesh, &key.sign(&issuer.claims("media")));
    let state = mesh.scratch().join("attested");
    let sidecar = command.iter().position(|word| word.ends_with("tenon-sidecar")).expect("the program");
    mesh.start_by_hand(&attested_by_platform(&command[sidecar..], &state, &token)).expect("started");

    let end = std::time::Instant::now() + SOON;
    loop {
        match list(&mesh).await {
            answer if answer == "ALLOWED" => break,
            answer => assert!(std::time::Instant::now() < end, "it never served: {answer}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let issued =
        audit(&mesh).into_iter().rev().find(|line| line["event"] == "issue" && line["attestedBy"] == "cluster");
    assert_eq!(issued.expect("it is in the audit log")["service"], "media");
    assert!(state.join("svid.pem").exists());
    let text = fs::read_to_string(mesh.data_dir().join("identity/audit.jsonl")).expect("the audit log");
    let log = mesh.logs().remove("identity.log").expect("a log");
    let signature = fs::read_to_string(&token).expect("the token").rsplit('.').next().map(str::to_owned);
    let signature = signature.expect("a signature");
    assert!(!text.contains(&signature) && !log.contains(&signature), "the token stands in a log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_no_rule_attests_gets_no_certificate_and_it_is_written_down() {
    let (key, other) = (Key::new("key-1"), Key::new("key-1"));
    let issuer = Issuer::start(&[&key]).await;
    let mesh = mesh(&issuer);
    let with = |name: &str, value: Value| {
        let mut claims = issuer.claims("media");
        claims[name] = value;
        claims
    };
    let now = clock::unix_seconds();
    let elsewhere = json!({ "namespace": "bank", "serviceaccount": { "name": "media" } });
    for (claims, expected) in [
        (with("aud", json!(["https://kubernetes.default.svc"])), "for this audience"),
        (with("exp", json!(now - 60)), "has expired"),
        (with("nbf", json!(now + 600)), "not valid yet"),
        (with("iss", json!("https://other.example")), "no Attestor"),
        (with("kubernetes.io", elsewhere), "no rule"),
    ] {
        let message = refused(&mesh, "media", &key.sign(&claims)).await;
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let good = key.sign(&issuer.claims("media"));
    assert!(refused(&mesh, "wiki", &good).await.contains("attests media, and not wiki"));
    assert!(refused(&mesh, "issues", &good).await.contains("attests media, and not issues"));
    // The same key id of another issuer.
    assert!(refused(&mesh, "media", &other.sign(&issuer.claims("media"))).await.contains("signature"));
    let parts: Vec<_> = good.split('.').collect();
    let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"key-1"}"#), parts[1]);
    assert!(refused(&mesh, "media", &none).await.contains("can be read"));
    let hmac = format!("{}.{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"key-1"}"#), parts[1], parts[2]);
    assert!(refused(&mesh, "media", &hmac).await.contains("algorithm"));

    let refusals: Vec<_> = audit(&mesh).into_iter().filter(|line| line["event"] == "refuse").collect();
    assert!(refusals.len() >= 10, "{refusals:?}");
    assert!(refusals.iter().all(|line| line["rpc"] == "Attest"), "{refusals:?}");
    // And who is attested gets in, again and again: a container that is restarted finds the same token.
    for _ in 0..2 {
        let joined = attest(&mesh, "media", &good).await.expect("joins");
        assert_eq!(joined.identity.id().to_string(), "spiffe://test.example/svc/media");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_gives_a_certificate_and_a_key_of_what_it_attests_and_of_nothing_else() {
    let key = Key::new("key-1");
    let issuer = Issuer::start(&[&key]).await;
    let mesh = mesh(&issuer);
    let token = key.sign(&issuer.claims("media"));
    let present = attest(&mesh, "media", &token).await.expect("joins");
    let file = mesh.mesh_file().expect("mesh.json");
    let address = file["controlPlane"]["identity"].as_str().expect("text");
    let mut client = IdentityClient::new(grpc::channel(address, &present.identity, &service("tenon-identity")));

    let asap_key = |issuer: &str| {
        let key = SigningKey::generate(issuer).expect("a key");
        AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() }
    };
    let taken = AsapKey { kid: present.asap_key.kid().to_string(), ..asap_key("media") };
    let good = || AttestRequest {
        oidc_token: token.clone(),
        csr: csr(None).into(),
        asap_key: Some(asap_key("media")),
        ..AttestRequest::default()
    };
    let named = |uri: &str| AttestRequest { csr: csr(Some(uri)).into(), ..good() };
    let owning = |key: Option<AsapKey>| AttestRequest { asap_key: key, ..good() };
    for (what, request, expected) in [
        ("as it should be", good(), Code::Ok),
        ("a request that names it", named("spiffe://test.example/svc/media"), Code::Ok),
        ("a request for another service", named("spiffe://test.example/svc/issues"), Code::PermissionDenied),
        ("a request for another mesh", named("spiffe://other.example/svc/media"), Code::PermissionDenied),
        ("a request for an operator", named("spiffe://test.example/operator/ann"), Code::PermissionDenied),
        ("a key of another service", owning(Some(asap_key("issues"))), Code::PermissionDenied),
        ("a key of transaction tokens", owning(Some(asap_key("tenon-identity"))), Code::PermissionDenied),
        ("another key under a known id", owning(Some(taken)), Code::AlreadyExists),
        ("no key", owning(None), Code::InvalidArgument),
        ("no request", AttestRequest { csr: "".into(), ..good() }, Code::InvalidArgument),
        ("a join token beside it", AttestRequest { join_token: "x".into(), ..good() }, Code::InvalidArgument),
        ("nothing", AttestRequest { oidc_token: String::new(), ..good() }, Code::Unauthenticated),
    ] {
        let code = client.attest(request).await.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(code, expected, "{what}");
    }
    // Who is revoked is not attested.
    mesh.tenon_ok(&["identity", "revoke", "--service", "wiki", "--reason", "stolen"]).expect("revoked");
    let wiki = key.sign(&issuer.claims("wiki"));
    assert!(attest(&mesh, "wiki", &wiki).await.is_err());
    mesh.tenon_ok(&["identity", "revoke", "--service", "wiki", "--lift"]).expect("lifted");
    attest(&mesh, "wiki", &wiki).await.expect("joins");
}

fn csr(uri: Option<&str>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uri.map(|uri| SanType::URI(uri.try_into().expect("a URI"))).into_iter().collect();
    let key = rcgen::KeyPair::generate().expect("a key");
    params.serialize_request(&key).expect("a request").der().to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_issuer_rotates_its_keys_and_dies_and_the_policy_changes_without_a_restart() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let issuer = Issuer::start(&[&old]).await;
    let mesh = mesh(&issuer);
    attest(&mesh, "media", &old.sign(&issuer.claims("media"))).await.expect("joins");

    // A key that is unknown is looked for, though not more often than every ten seconds.
    issuer.publish(&[&old, &new]);
    let token = new.sign(&issuer.claims("media"));
    let end = std::time::Instant::now() + SOON;
    while let Err(error) = attest(&mesh, "media", &token).await {
        assert!(std::time::Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    // Without the policy service, from what is known; after a restart from the disk.
    let process = |role: &str| {
        let found = mesh.processes(role);
        let [(pid, _)] = &found[..] else { panic!("one process of {role}, not {found:?}") };
        *pid
    };
    let policy = process("policy serve");
    signal(policy, Signal::STOP).expect("stopped");
    attest(&mesh, "wiki", &new.sign(&issuer.claims("wiki"))).await.expect("joins");
    signal(process("identity serve"), Signal::KILL).expect("killed");
    let end = std::time::Instant::now() + SOON;
    while let Err(error) = attest(&mesh, "wiki", &new.sign(&issuer.claims("wiki"))).await {
        assert!(std::time::Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    signal(policy, Signal::CONT).expect("goes on");
    // Known keys outlive the issuer.
    issuer.goes_down();
    attest(&mesh, "wiki", &new.sign(&issuer.claims("wiki"))).await.expect("joins");

    // An Attestor that goes attests nobody.
    fs::remove_file(mesh.policy_dir().join("attestors.yaml")).expect("removed");
    let end = std::time::Instant::now() + SOON;
    while attest(&mesh, "wiki", &new.sign(&issuer.claims("wiki"))).await.is_ok() {
        assert!(std::time::Instant::now() < end, "it still attests");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(refused(&mesh, "wiki", &new.sign(&issuer.claims("wiki"))).await.contains("no Attestor"));
    eventually(SOON, "the policy is in force", || Ok(mesh.tenon_ok(&["policy", "status", "-o", "json"]).is_ok()))
        .expect("the mesh goes on");
}
