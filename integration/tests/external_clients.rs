//! Clients outside of the mesh through the front door: named in the policy, with certificates of their own CA and tokens of
//! their own keys.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use integration::{
    calls::{channel, for_tenant, outcome, reason, with_headers},
    guide::Place,
    mesh::{Mesh, Plan, SOON, eventually, repository},
    python,
};
use mesh_asap::SigningKey;
use mesh_identity::{
    clock,
    repository::testing::{KeyServer, Reply, WebCa},
    testing::{self, Ca, Certificate, Leaf},
    tls,
};
use serde_json::json;
use tenon_proto::media::v1::{GetRequest, ListRequest, media_client::MediaClient};
use tokio::net::TcpStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

/// A company outside of the mesh: a CA, a key repository, and one client with its key.
struct Partner {
    ca: Ca,
    web: WebCa,
    keys: KeyServer,
    key: SigningKey,
}

impl Partner {
    async fn new() -> Self {
        let web = WebCa::new();
        let keys = KeyServer::start(&web).await;
        let key = SigningKey::generate("partner/billing").expect("a key");
        let partner = Self { ca: Ca::new("partner.example"), web, keys, key };
        partner.publish(&partner.key);
        partner
    }

    /// Puts the public half into the repository, under its key id.
    fn publish(&self, key: &SigningKey) {
        let pem = pem::encode(&pem::Pem::new("PUBLIC KEY", key.public_spki()));
        self.keys.tell(key.kid().as_str(), Reply::key(&pem));
    }

    /// The documents that let `billing` in, by this CA.
    fn documents(&self, ca: &Ca) -> String {
        let block = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
        format!(
            "apiVersion: tenon.dev/v1\nkind: ExternalClient\nmetadata: {{name: billing}}\nspec:\n  issuer: partner/billing\n  \
             certificateNames: ['dns:billing.partner.example']\n  keyRepositories: ['{}']\n  subjects: [nightly]\n  ca: |\n{}  \
             keyRepositoryCa: |\n{}",
            self.keys.url(),
            block(&ca.bundle().to_pem()),
            block(&self.web.pem()),
        )
    }

    fn certificate(&self) -> Certificate {
        self.ca.certificate(&Leaf::outside("billing.partner.example"))
    }

    fn token(&self) -> String {
        self.key.mint("media", clock::unix_seconds(), 300)
    }
}

/// A token by PyPI `atlassian-jwt-auth`, as a partner's own program makes it.
fn token_of_python(partner: &Partner, subject: &str) -> String {
    let code = "import sys, atlassian_jwt_auth\n\
                signer = atlassian_jwt_auth.create_signer(sys.argv[1], sys.argv[2], sys.argv[3], algorithm='ES256')\n\
                print(signer.generate_jwt('media', additional_claims={'sub': sys.argv[4]}).decode())";
    let key = pem::encode(&pem::Pem::new("PRIVATE KEY", partner.key.pkcs8().to_vec()));
    let mut python = Command::new(python::program("python").expect("python"));
    python.args(["-c", code, "partner/billing", partner.key.kid().as_str(), &key, subject]);
    let output = python.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

const ALLOWLIST: &str = "
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: media-outside}
spec:
  service: media
  rules:
    - {name: billing-lists, callers: [billing], paths: [/media.v1.Media/List]}
    - {name: billing-watches, callers: [billing], paths: [/grpc.health.v1.Health/Watch], tenant: none}
";

async fn mesh_with(partner: &Partner) -> Mesh {
    let documents = format!("{}---{ALLOWLIST}", partner.documents(&partner.ca));
    let mesh = Plan::demo().expect("a plan").file("outside.yaml", &documents).start().expect("the mesh starts");
    let media = json!({"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}});
    let acme = json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"media": media}});
    mesh.import(&[acme]).expect("imported");
    let issues = channel(mesh.outbound("issues", "us-east"), "media").await.expect("the sidecar answers");
    let mut issues = MediaClient::new(issues);
    holds("the tenant has arrived", async || issues.list(for_tenant("acme", ListRequest {})).await.is_ok()).await;
    mesh
}

async fn holds(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !ask().await {
        assert!(Instant::now() < end, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A connection to the inbound listener by whoever shows this, opened when it is first used.
fn connection(inbound: SocketAddr, shown: Certificate) -> Channel {
    let config = testing::client_config(Some(shown), &[b"h2"]);
    Endpoint::from_static("https://media").connect_with_connector_lazy(tower::service_fn(move |_| {
        let config = Arc::clone(&config);
        async move {
            let tcp = TcpStream::connect(inbound).await.map_err(tls::TlsError::Io)?;
            tls::connect(&config, tcp).await.map(TokioIo::new)
        }
    }))
}

async fn list(client: &mut MediaClient<Channel>, token: &str) -> Result<(), Status> {
    let bearer = format!("Bearer {token}");
    let headers = [("x-tenant-id", "acme"), ("authorization", bearer.as_str())];
    client.list(with_headers(&headers, ListRequest {})).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_outside_gets_in_by_its_own_certificate_and_token_and_only_to_its_paths() {
    let partner = Partner::new().await;
    let mesh = mesh_with(&partner).await;
    let inbound = mesh.inbound("media", "us-east");
    let mut client = MediaClient::new(connection(inbound, partner.certificate()));
    let token = partner.token();
    holds("the client gets in", async || outcome(&list(&mut client, &token).await) == "ALLOWED").await;
    let once = partner.keys.asked().len();
    assert_eq!(outcome(&list(&mut client, &token).await), "ALLOWED");
    assert_eq!(outcome(&list(&mut client, &partner.token()).await), "ALLOWED");
    assert_eq!(partner.keys.asked().len(), once, "a known key is not fetched again");

    let bearer = format!("Bearer {token}");
    let headers = [("x-tenant-id", "acme"), ("authorization", bearer.as_str())];
    let get = client.get(with_headers(&headers, GetRequest { id: "x".into() })).await;
    assert_eq!(outcome(&get), "PATH_NOT_ALLOWED");
    let mut health = HealthClient::new(connection(inbound, partner.certificate()));
    // "*" is every service of the mesh, and nobody else.
    assert_eq!(outcome(&health.check(with_headers(&headers, HealthCheckRequest::default())).await), "PATH_NOT_ALLOWED");

    // What other libraries sign, for a subject that the document grants, and for one that it does not.
    assert_eq!(outcome(&list(&mut client, &token_of_python(&partner, "partner/billing")).await), "ALLOWED");
    assert_eq!(outcome(&list(&mut client, &token_of_python(&partner, "nightly")).await), "ALLOWED");
    assert_eq!(outcome(&list(&mut client, &token_of_python(&partner, "weekly")).await), "ASAP_SUBJECT");

    // The same in the mesh's own header, and without any.
    let both = [("x-tenant-id", "acme"), ("x-asap-token", token.as_str()), ("authorization", "Basic dXNlcg==")];
    assert_eq!(outcome(&client.list(with_headers(&both, ListRequest {})).await), "ALLOWED");
    assert_eq!(outcome(&client.list(for_tenant("acme", ListRequest {})).await), "ASAP_MISSING");

    // Tokens that somebody else could have made, or made for somebody else.
    let now = clock::unix_seconds();
    let other = SigningKey::generate("partner/wages").expect("a key");
    partner.publish(&other);
    let before = partner.keys.asked().len();
    assert_eq!(outcome(&list(&mut client, &other.mint("media", now, 300)).await), "ASAP_ISSUER");
    assert_eq!(outcome(&list(&mut client, "nonsense").await), "ASAP_MALFORMED");
    assert_eq!(partner.keys.asked().len(), before, "no key is fetched for a token that cannot pass");
    assert_eq!(outcome(&list(&mut client, &partner.key.mint("issues", now, 300)).await), "ASAP_AUDIENCE");
    assert_eq!(outcome(&list(&mut client, &partner.key.mint("media", now - 400, 300)).await), "ASAP_EXPIRED");
    let unknown = SigningKey::generate("partner/billing").expect("a key");
    assert_eq!(outcome(&list(&mut client, &unknown.mint("media", now, 300)).await), "ASAP_KEY_UNKNOWN");

    // A certificate of another CA ends in the handshake.
    let stranger = Partner::new().await;
    let mut client = MediaClient::new(connection(inbound, stranger.certificate()));
    let refused = list(&mut client, &token).await.expect_err("no connection");
    assert_eq!(reason(&refused), None, "refused in the handshake: {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_repository_that_is_down_refuses_those_alone_who_need_it_and_recovers() {
    let partner = Partner::new().await;
    let mesh = mesh_with(&partner).await;
    let inbound = mesh.inbound("media", "us-east");
    let mut client = MediaClient::new(connection(inbound, partner.certificate()));
    let known = partner.token();
    holds("the client gets in", async || outcome(&list(&mut client, &known).await) == "ALLOWED").await;

    let fresh = SigningKey::generate("partner/billing").expect("a key");
    partner.keys.tell(fresh.kid().as_str(), Reply::Silence);
    let token = fresh.mint("media", clock::unix_seconds(), 300);
    // Who waits for it delays nobody else, not even on the same connection.
    let mut waiting = client.clone();
    let slow = tokio::spawn(async move { list(&mut waiting, &token).await });
    partner.keys.asked_times(2).await;
    let mut issues = MediaClient::new(channel(mesh.outbound("issues", "us-east"), "media").await.expect("answers"));
    for _ in 0..20 {
        assert_eq!(outcome(&list(&mut client, &known).await), "ALLOWED");
        assert_eq!(outcome(&issues.list(for_tenant("acme", ListRequest {})).await), "ALLOWED");
    }
    assert!(!slow.is_finished(), "others were served while one waited");
    let refused = slow.await.expect("no panic").expect_err("nobody can say whether there is such a key");
    assert_eq!(outcome::<()>(&Err(refused.clone())), "ASAP_KEYS_UNAVAILABLE");
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(refused.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{refused:?}");

    partner.publish(&fresh);
    let token = fresh.mint("media", clock::unix_seconds(), 300);
    holds("it recovers", async || outcome(&list(&mut client, &token).await) == "ALLOWED").await;
}

/// A client that has got in, and a stream of it that stays open for as long as it may.
async fn enter(
    partner: &Partner,
    inbound: SocketAddr,
) -> (MediaClient<Channel>, tonic::Streaming<tonic_health::pb::HealthCheckResponse>) {
    let channel = connection(inbound, partner.certificate());
    let mut client = MediaClient::new(channel.clone());
    holds("the client gets in", async || outcome(&list(&mut client, &partner.token()).await) == "ALLOWED").await;
    let bearer = format!("Bearer {}", partner.token());
    let watch = with_headers(&[("authorization", bearer.as_str())], HealthCheckRequest::default());
    let mut stream = HealthClient::new(channel).watch(watch).await.expect("allowed").into_inner();
    stream.message().await.expect("a first message").expect("not its end");
    (client, stream)
}

/// The reason with which a stream is cut off, soon.
async fn cut_off(stream: &mut tonic::Streaming<tonic_health::pb::HealthCheckResponse>) -> String {
    let ended = tokio::time::timeout(SOON, stream.message()).await.expect("the stream ends");
    let status = ended.expect_err("and not as if all were well");
    reason(&status).unwrap_or_else(|| panic!("no reason: {status:?}"))
}

/// Makes these the documents about clients outside of the mesh.
fn apply(mesh: &Mesh, documents: &str) {
    let fresh = mesh.scratch().join("outside.yaml");
    let file = mesh.policy_dir().join("outside.yaml");
    fs::write(&fresh, documents).and_then(|()| fs::rename(fresh, file)).expect("written");
    let folder = mesh.policy_dir().display().to_string();
    // The mesh watches its folder too: who comes second may be told to look again.
    let overtaken = |error: &anyhow::Error| format!("{error:#}").contains("somebody else changed it");
    eventually(SOON, "the policy is applied", || match mesh.tenon_ok(&["policy", "apply", "-f", &folder]) {
        Err(error) if overtaken(&error) => Ok(false),
        applied => applied.map(|_| true),
    })
    .expect("applied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_of_a_client_that_is_removed_revoked_or_of_another_ca_is_closed() {
    let partner = Partner::new().await;
    let mesh = mesh_with(&partner).await;
    let inbound = mesh.inbound("media", "us-east");
    let with = |ca: &Ca| format!("{}---{ALLOWLIST}", partner.documents(ca));
    let (before, other) = (with(&partner.ca), with(&Ca::new("partner.example")));
    let revoke = ["identity", "revoke", "--service", "billing"];
    for what in ["removed", "another CA", "revoked"] {
        let (mut client, mut stream) = enter(&partner, inbound).await;
        match what {
            "removed" => apply(&mesh, ""),
            "another CA" => apply(&mesh, &other),
            _ => drop(mesh.tenon_ok(&revoke).expect("revoked")),
        }
        let reason_given = cut_off(&mut stream).await;
        // Rules and clients come as one: whichever is looked at first.
        let good = reason_given == "ASAP_ISSUER" || (what == "removed" && reason_given == "PATH_NOT_ALLOWED");
        assert!(good, "{what}: {reason_given}");
        holds(
            "it gets no further than the handshake",
            async || matches!(list(&mut client, &partner.token()).await, Err(status) if reason(&status).is_none()),
        )
        .await;
        match what {
            "revoked" => drop(mesh.tenon_ok(&[&revoke[..], &["--lift"]].concat()).expect("lifted")),
            _ => apply(&mesh, &before),
        }
    }
    enter(&partner, inbound).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_and_a_revoked_key_end_calls_from_outside_and_not_the_connection() {
    let partner = Partner::new().await;
    let mesh = mesh_with(&partner).await;
    let documents = format!("{}---{ALLOWLIST}", partner.documents(&partner.ca));
    let (mut client, mut stream) = enter(&partner, mesh.inbound("media", "us-east")).await;
    let quarantine =
        "---\napiVersion: tenon.dev/v1\nkind: Quarantine\nmetadata: {name: q}\nspec: {services: [billing]}\n";
    apply(&mesh, &format!("{documents}\n{quarantine}"));
    assert_eq!(cut_off(&mut stream).await, "QUARANTINED");
    assert_eq!(outcome(&list(&mut client, &partner.token()).await), "QUARANTINED");
    apply(&mesh, &documents);

    let (mut client, mut stream) = enter(&partner, mesh.inbound("media", "us-east")).await;
    mesh.tenon_ok(&["identity", "revoke", "--kid", partner.key.kid().as_str()]).expect("revoked");
    assert_eq!(cut_off(&mut stream).await, "ASAP_KEY_UNKNOWN");
    assert_eq!(outcome(&list(&mut client, &partner.token()).await), "ASAP_KEY_UNKNOWN");
    let other = SigningKey::generate("partner/billing").expect("a key");
    partner.publish(&other);
    assert_eq!(outcome(&list(&mut client, &other.mint("media", clock::unix_seconds(), 300)).await), "ALLOWED");
}

/// What `tenon identity svid` writes: certificate, key, and the ASAP key of the service.
fn svid(mesh: &Mesh, service: &str) -> (Certificate, SigningKey) {
    let out = mesh.scratch().join(format!("svid-{service}"));
    mesh.tenon_ok(&["identity", "svid", "--service", service, "--out", &out.display().to_string()]).expect("an SVID");
    let read = |name: &str| fs::read_to_string(out.join(name)).expect("a file");
    let chain = pem::parse_many(read("svid.pem")).expect("PEM").into_iter().map(|block| block.into_contents().into());
    let key = pem::parse(read("key.pem")).expect("PEM").into_contents();
    let asap = SigningKey::from_data_uri(read("asap.key").trim()).expect("a data URI");
    ((chain.collect(), key.into()), asap.with_issuer(service).expect("its own key"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_the_mesh_that_was_stolen_is_of_no_use_to_anybody_else() {
    let partner = Partner::new().await;
    let mesh = mesh_with(&partner).await;
    let inbound = mesh.inbound("media", "us-east");
    let (issues, issues_key) = svid(&mesh, "issues");
    let (wiki, wiki_key) = svid(&mesh, "wiki");
    let now = clock::unix_seconds();
    let (of_issues, of_wiki) = (issues_key.mint("media", now, 300), wiki_key.mint("media", now, 300));
    let mut by_issues = MediaClient::new(connection(inbound, issues));
    let mut by_wiki = MediaClient::new(connection(inbound, wiki));
    let mut outside = MediaClient::new(connection(inbound, partner.certificate()));
    holds("the keys have arrived", async || outcome(&list(&mut by_issues, &of_issues).await) == "ALLOWED").await;
    holds("the keys have arrived", async || outcome(&list(&mut by_wiki, &of_wiki).await) == "ALLOWED").await;
    holds("the client gets in", async || outcome(&list(&mut outside, &partner.token()).await) == "ALLOWED").await;

    assert_eq!(outcome(&list(&mut by_wiki, &of_issues).await), "ASAP_ISSUER");
    assert_eq!(outcome(&list(&mut by_issues, &of_wiki).await), "ASAP_ISSUER");
    assert_eq!(outcome(&list(&mut outside, &of_issues).await), "ASAP_ISSUER");
    // Keys from outside verify nothing inside, be their owner known or not.
    assert_eq!(outcome(&list(&mut by_wiki, &partner.token()).await), "ASAP_KEY_UNKNOWN");
    // And whoever calls itself by the outside client's issuer in a token of the mesh has no key of it.
    let forged = SigningKey::generate("partner/billing").expect("a key").mint("media", now, 300);
    assert_eq!(outcome(&list(&mut outside, &forged).await), "ASAP_KEY_UNKNOWN");
}

const ECHO: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: echo}
spec: {product: echo}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: echo}
spec:
  service: echo
  rules:
    - {name: billing, callers: [billing], paths: [/echo.v1.Echo/Unary, /echo.v1.Echo/Headers, /echo.v1.Echo/Count]}
    - {name: everybody, callers: ['*'], paths: [/echo.v1.Echo/Cancelled]}
";

/// Writes the client's certificate and key as other programs read them.
fn write_certificate(folder: &Path, (chain, key): Certificate) -> [PathBuf; 2] {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).expect("a folder");
    let pem = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
    let files = [folder.join("chain.pem"), folder.join("key.pem")];
    fs::write(&files[0], chain.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>()).expect("written");
    fs::write(&files[1], pem("PRIVATE KEY", &key)).expect("written");
    files
}

/// The roots that whoever is outside holds servers of the mesh to.
fn root(mesh: &Mesh) -> PathBuf {
    mesh.data_dir().join("trust-bundle.pem")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_from_outside_calls_a_python_server_in_the_mesh() {
    let partner = Partner::new().await;
    let python = python::program("python").expect("python");
    let script = |name: &str| repository().join("integration/tests/python").join(name).display().to_string();
    let (program, server) = (python.display().to_string(), script("server.py"));
    let mesh = Plan::new()
        .expect("a plan")
        .file("policy.yaml", ECHO)
        .file("outside.yaml", &partner.documents(&partner.ca))
        .app("echo", "us-east", |port| vec![program, server, format!("127.0.0.1:{port}")])
        .start()
        .expect("the mesh starts");
    let acme =
        json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"echo": {"state": "ACTIVE"}}});
    mesh.import(&[acme]).expect("imported");
    let [chain, key] = write_certificate(&mesh.scratch().join("billing"), partner.certificate());
    let token = partner.key.mint("echo", clock::unix_seconds(), 300);
    let (inbound, root) = (mesh.inbound("echo", "us-east").to_string(), root(&mesh));
    let mut results = BTreeMap::new();
    // The first round may come before the tenant, the app or the policy.
    holds("every check passes", async || {
        let mut client = Command::new(&python);
        client.arg(script("outside.py")).args([&inbound, "echo.svc.test.example"]).arg(&root).args([&chain, &key]);
        client.arg(&token);
        let output = tokio::task::spawn_blocking(move || client.output()).await.expect("no panic").expect("it runs");
        let complained = String::from_utf8_lossy(&output.stderr);
        results = serde_json::from_slice::<BTreeMap<String, String>>(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {complained}"));
        let failed: Vec<_> = results.iter().filter(|(_, result)| *result != "ok").collect();
        failed.iter().for_each(|(check, result)| eprintln!("== {check}: {result}"));
        failed.is_empty()
    })
    .await;
    assert_eq!(results.len(), 8, "{:?}", results.keys());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_calls_from_outside_with_a_certificate_and_a_token_of_the_command_line() {
    let partner = Partner::new().await;
    let mesh = mesh_with(&partner).await;
    let [chain, key] = write_certificate(&mesh.scratch().join("billing"), partner.certificate());
    let pem = mesh.scratch().join("billing/asap.pem");
    fs::write(&pem, pem::encode(&pem::Pem::new("PRIVATE KEY", partner.key.pkcs8().to_vec()))).expect("written");
    let place = Place::of(&mesh, &[]).expect("a place");
    for (name, file) in
        [("trust-bundle.pem", &root(&mesh)), ("chain.pem", &chain), ("key.pem", &key), ("asap.pem", &pem)]
    {
        fs::copy(file, place.folder().join(name)).expect("copied");
    }
    let inbound = mesh.inbound("media", "us-east").to_string();
    let place = place.with("mesh.example:15006", &inbound).with("partner/billing/1", partner.key.kid().as_str());
    let call = |method: &str| {
        let place = place.clone().with("media.v1.Media/List", method);
        let shell = place.shell("docs/outside-clients.md", "grpcurl").expect("the command of the document");
        shell.output(place.folder(), &[]).expect("it runs")
    };
    holds("the call passes", async || call("media.v1.Media/List").0 == Some(0)).await;
    let (exit, printed) = call("media.v1.Media/Delete");
    assert!(exit != Some(0) && printed.contains("PATH_NOT_ALLOWED"), "{printed}");
}
