use std::net::SocketAddr;

use hyper_util::rt::TokioIo;
use mesh_config::names::control_plane;
use mesh_identity::grpc::{self, uncovered};
use mesh_identity::join::{self, Joined};
use mesh_identity::{testing, tls};
use prost::Message as _;
use replica::{Follow, Raw, Replica, Value as _};
use tenon_proto::identity::v1::identity_client::IdentityClient;
use tenon_proto::identity::v1::{
    AsapKey, ConfirmRequest, CreateJoinTokenRequest, GetTrustBundleRequest, IssueSvidRequest,
    IssueTransactionTokenRequest, KeyUse, ListKeysRequest, ListRevocationsRequest, RenewRequest, RevokeRequest,
    revoke_request,
};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::*;
use crate::SVID_LIFETIME;

const DEADLINE: Duration = Duration::from_secs(20);

/// An identity service with a CA of its own.
struct Service {
    address: SocketAddr,
    ca: Ca,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    dir: tempfile::TempDir,
}

fn demo() -> TrustDomain {
    "demo.example".parse().unwrap()
}

async fn config(dir: &Path) -> Config {
    Config {
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ca_dir: dir.join("ca"),
        passphrase: None,
        data_dir: dir.join("identity"),
        trust_domain: demo(),
        key_repository: None,
        key_repository_names: Vec::new(),
        policy: Vec::new(),
    }
}

impl Service {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(dir: tempfile::TempDir) -> Self {
        let config = config(dir.path()).await;
        let address = config.listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { serve(config, stop).await.unwrap() });
        // It listens already; the CA is there once it has answered.
        let _ = anonymous(address).get_trust_bundle(GetTrustBundleRequest {}).await.unwrap();
        let ca = Ca::open(&dir.path().join("ca"), &demo(), None, clock::unix_seconds()).unwrap();
        Self { address, ca, shutdown, task, dir }
    }

    fn operator(&self) -> Arc<Identity> {
        let svid = self
            .ca
            .issue_operator("ada", mesh_identity::OperatorRole::Admin, SVID_LIFETIME, clock::unix_seconds())
            .unwrap();
        Identity::new(svid, self.ca.bundle().clone())
    }

    fn service(&self, name: &str) -> Arc<Identity> {
        let svid = self.ca.issue_service(&testing::service(name), SVID_LIFETIME, clock::unix_seconds()).unwrap();
        Identity::new(svid, self.ca.bundle().clone())
    }

    fn channel(&self, identity: &Arc<Identity>) -> Channel {
        grpc::channel(self.address, identity, &testing::service(control_plane::IDENTITY))
    }

    async fn token(&self, service: &str) -> String {
        let request = CreateJoinTokenRequest { service: service.to_owned(), ttl_seconds: 0 };
        let mut client = IdentityClient::new(self.channel(&self.operator()));
        client.create_join_token(request).await.unwrap().into_inner().join_token
    }

    fn joining(&self, service: &str, join_token: Option<String>) -> join::Config {
        join::Config {
            identity_address: self.address,
            pin: self.ca.bundle().pin(),
            attestation: join::Attestation { join_token, ..join::Attestation::default() },
            service: testing::service(service),
            state_dir: self.dir.path().join("sidecars").join(service),
        }
    }

    async fn join(&self, service: &str) -> Joined {
        join::join(self.joining(service, Some(self.token(service).await))).await.unwrap()
    }

    fn follow(&self, kind: &'static str, identity: &Arc<Identity>) -> Replica<Raw> {
        let follow =
            Follow { kind, instance: "test".to_owned(), parents: vec![self.channel(identity)], state_dir: None };
        follow.start(|_| {}, self.shutdown.clone()).0
    }

    async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.task.await.unwrap();
        self.dir
    }
}

/// Ids of the keys that are there, without those of transaction tokens.
async fn asap_keys(operator: &mut IdentityClient<Channel>) -> Vec<String> {
    let keys = operator.list_keys(ListKeysRequest {}).await.unwrap().into_inner().keys;
    keys.into_iter().filter(|key| key.r#use() == KeyUse::Unspecified).map(|key| key.kid).collect()
}

/// Without a certificate.
fn anonymous_channel(address: SocketAddr) -> Channel {
    let config = testing::client_config(None, &[b"h2"]);
    Endpoint::from_static("https://tenon-identity").connect_with_connector_lazy(tower::service_fn(move |_| {
        let config = Arc::clone(&config);
        async move { tls::connect(&config, TcpStream::connect(address).await.unwrap()).await.map(TokioIo::new) }
    }))
}

fn anonymous(address: SocketAddr) -> IdentityClient<Channel> {
    IdentityClient::new(anonymous_channel(address))
}

#[test]
fn every_rpc_of_every_service_stands_in_the_table() {
    let services = ["tenon.identity.v1.Identity", "tenon.replication.v1.Replication", "tenon.audit.v1.Audit"];
    assert_eq!(uncovered(&services, &AUTHORIZATION), Vec::<String>::new());
}

/// One empty message to any RPC, whatever its shape; the status that ends it.
async fn call(channel: &Channel, path: &'static str) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = path.parse().unwrap();
    match client.server_streaming(tonic::Request::new(()), path, codec).await {
        Err(status) => status,
        Ok(answer) => answer.into_inner().message().await.err().unwrap_or_else(|| Status::ok("")),
    }
}

#[tokio::test]
async fn each_rpc_lets_through_whom_its_row_names_and_nobody_else() {
    let service = Service::start().await;
    let callers = [
        ("anonymous", anonymous_channel(service.address)),
        ("service", service.channel(&service.service("media"))),
        ("operator", service.channel(&service.operator())),
    ];
    for rpc in AUTHORIZATION.iter() {
        let admitted: &[&str] = match rpc.path {
            "/tenon.identity.v1.Identity/GetTrustBundle" | "/tenon.identity.v1.Identity/Attest" => {
                &["anonymous", "service", "operator"]
            }
            "/tenon.identity.v1.Identity/Confirm" | "/token" => &["service"],
            "/tenon.identity.v1.Identity/Renew"
            | "/tenon.replication.v1.Replication/Follow"
            | "/tenon.replication.v1.Replication/Fetch" => &["service", "operator"],
            _ => &["operator"],
        };
        for (name, channel) in &callers {
            let status = call(channel, rpc.path).await;
            let refused = status.message().contains("may not call") || status.message().contains("client certificate");
            assert_eq!(!refused, admitted.contains(name), "{name} to {}: {status}", rpc.path);
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn a_process_joins_with_a_token_renews_over_mtls_and_its_key_reaches_followers() {
    let service = Service::start().await;
    let joined = service.join("media").await;
    assert_eq!(joined.identity.id().to_string(), "spiffe://demo.example/svc/media");
    let svid = joined.identity.svid();
    assert_eq!(svid.not_after() - svid.not_before(), 3900);

    let (epoch, revision) = joined.key_position.unwrap();
    let issues = service.follow(kind::KEY, &service.service("issues"));
    let arrived = issues.wait_for(replica::Position::new(epoch, revision));
    tokio::time::timeout(DEADLINE, arrived).await.unwrap();
    let key = issues.get(joined.asap_key.kid().as_str()).unwrap();
    let key = tenon_proto::identity::v1::Key::decode(key.raw()).unwrap();
    assert_eq!((key.issuer.as_str(), &key.spki[..]), ("media", &joined.asap_key.public_spki()[..]));

    // The same key, over mTLS: it is confirmed, not added.
    let mut client = IdentityClient::new(service.channel(&joined.identity));
    let asap_key = AsapKey { kid: key.kid, spki: key.spki };
    let renew = RenewRequest { csr: testing::csr().into(), asap_key: Some(asap_key), ..RenewRequest::default() };
    let renewed = client.renew(renew).await.unwrap().into_inner();
    assert_eq!(renewed.trust_bundle.unwrap(), service.ca.bundle().to_proto());
    assert_eq!(
        (renewed.key_epoch, renewed.key_revision),
        (epoch, revision),
        "the key is confirmed once in ten minutes"
    );
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    assert_eq!(asap_keys(&mut operator).await.len(), 1);
    service.stop().await;
}

#[tokio::test]
async fn a_token_that_was_used_or_never_made_joins_nobody() {
    let service = Service::start().await;
    let token = service.token("media").await;
    join::join(service.joining("media", Some(token.clone()))).await.unwrap();
    for (token, expected) in [(token, "used already"), ("nonsense".to_owned(), "is not known")] {
        let mut config = service.joining("media", Some(token));
        config.state_dir = service.dir.path().join("elsewhere");
        let error = join::join(config).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // A token for one service does not attest another: the request names who it is for.
    let token = service.token("media").await;
    assert!(join::join(service.joining("issues", Some(token))).await.is_err());
    service.stop().await;
}

#[tokio::test]
async fn join_tokens_are_for_names_that_services_can_have() {
    let service = Service::start().await;
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    for (name, ttl_seconds) in [("", 0), ("Media", 0), ("a/b", 0), ("media", 86_401)] {
        let request = CreateJoinTokenRequest { service: name.to_owned(), ttl_seconds };
        assert_eq!(operator.create_join_token(request).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    service.stop().await;
}

#[tokio::test]
async fn the_trust_bundle_and_an_empty_set_of_revocations_are_replicated() {
    let service = Service::start().await;
    let media = service.service("media");
    let (bundles, revocations) = (service.follow(kind::TRUST_BUNDLE, &media), service.follow(kind::REVOCATION, &media));
    for replica in [&bundles, &revocations] {
        let mut positions = replica.subscribe();
        tokio::time::timeout(DEADLINE, positions.wait_for(Option::is_some)).await.unwrap().unwrap();
    }
    let bundle = bundles.get("demo.example").unwrap();
    assert_eq!(bundle.raw(), service.ca.bundle().to_proto().encode_to_vec());
    assert!(revocations.entries().is_empty());
    service.stop().await;
}

#[tokio::test]
async fn a_certificate_that_an_operator_was_given_is_not_renewed_after_a_restart_either() {
    let service = Service::start().await;
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec().into();
    let request = IssueSvidRequest { service: "media".to_owned(), csr, ..IssueSvidRequest::default() };
    let answer = operator.issue_svid(request).await.unwrap().into_inner();
    let chain = answer.chain.iter().map(|der| der.to_vec().into()).collect();
    let svid = mesh_identity::Svid::from_der(chain, zeroize::Zeroizing::new(key.serialize_der())).unwrap();
    let lent = Identity::new(svid, service.ca.bundle());

    let service = Service::start_in(service.stop().await).await;
    let asap_key = mesh_asap::SigningKey::generate("media").unwrap();
    let asap_key = AsapKey { kid: asap_key.kid().to_string(), spki: asap_key.public_spki().into() };
    let renew = RenewRequest { csr: testing::csr().into(), asap_key: Some(asap_key), instance: String::new() };
    let mut media = IdentityClient::new(service.channel(&lent));
    let refused = media.renew(renew.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let mut media = IdentityClient::new(service.channel(&service.service("media")));
    media.renew(renew).await.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn whoever_asks_for_what_is_not_its_own_stands_in_the_audit_log_whichever_rpc_it_takes() {
    let service = Service::start().await;
    let issues = service.join("issues").await;
    let key = AsapKey { kid: issues.asap_key.kid().to_string(), spki: issues.asap_key.public_spki().into() };
    let mut media = IdentityClient::new(service.channel(&service.service("media")));
    let confirm = ConfirmRequest { asap_key: Some(key), ..ConfirmRequest::default() };
    assert_eq!(media.confirm(confirm).await.unwrap_err().code(), Code::PermissionDenied);
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    operator.revoke(RevokeRequest::default()).await.unwrap_err();
    operator.issue_transaction_token(IssueTransactionTokenRequest::default()).await.unwrap_err();
    let too_long = CreateJoinTokenRequest { service: "media".to_owned(), ttl_seconds: 86_401 };
    operator.create_join_token(too_long).await.unwrap_err();
    let dir = service.stop().await;
    let log = fs::read_to_string(dir.path().join("identity").join(audit::FILE)).unwrap();
    let refused = |by: &str, rpc: &str| {
        let (by, rpc) = (format!("/{by}\""), format!("\"rpc\":\"{rpc}\""));
        log.lines().any(|line| line.contains("\"refuse\"") && line.contains(&rpc) && line.contains(&by))
    };
    assert!(refused("svc/media", "Confirm"), "{log}");
    for rpc in ["Revoke", "IssueTransactionToken", "CreateJoinToken"] {
        assert!(refused("operator/ada", rpc), "{log}");
    }
}

#[tokio::test]
async fn the_revocation_of_a_serial_counts_before_a_long_audit_log_is_searched_for_it() {
    let service = Service::start().await;
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    // A log that has no end before somebody writes one.
    let log = service.dir.path().join("identity").join(audit::FILE);
    fs::remove_file(&log).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&log).status().unwrap().success());
    let mut held = fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();

    let what = Some(revoke_request::What::Serial("ab".to_owned()));
    let mut revoking = operator.clone();
    let revoking = tokio::spawn(async move { revoking.revoke(RevokeRequest { what, reason: String::new() }).await });
    let revoked = async {
        while operator.list_revocations(ListRevocationsRequest {}).await.unwrap().into_inner().revocations.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, revoked).await;
    let searching = !revoking.is_finished();
    io::Write::write_all(&mut held, b"\"serial\":\"ab\"\n").unwrap();
    assert!(in_time.is_ok() && searching);
    assert_eq!(revoking.await.unwrap().unwrap().into_inner().warning, "");
    service.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_ca_the_keys_and_the_tokens() {
    let service = Service::start().await;
    let (pin, token) = (service.ca.bundle().pin(), service.token("media").await);
    let issues = service.join("issues").await;
    let service = Service::start_in(service.stop().await).await;
    assert_eq!(service.ca.bundle().pin(), pin);
    join::join(service.joining("media", Some(token))).await.unwrap();
    let mut operator = IdentityClient::new(service.channel(&service.operator()));
    let keys = asap_keys(&mut operator).await;
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().any(|kid| kid == issues.asap_key.kid().as_str()));
    service.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_mesh_is_nobody_here() {
    let service = Service::start().await;
    let other = testing::Ca::new("demo.example");
    let stranger = Identity::new(other.operator("ada"), service.ca.bundle().clone());
    let mut client = IdentityClient::new(service.channel(&stranger));
    assert!(client.get_trust_bundle(GetTrustBundleRequest {}).await.is_err());
    service.stop().await;
}

#[tokio::test]
async fn a_ca_of_another_trust_domain_a_store_in_use_and_a_folder_that_cannot_be_are_named() {
    let service = Service::start().await;
    let message = async |config| {
        let error = serve(config, CancellationToken::new()).await.unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    };
    let in_use = message(config(service.dir.path()).await).await;
    assert!(in_use.contains("store.redb is in use by another process"), "{in_use}");

    let file = service.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let no_folder = message(Config { data_dir: file.join("data"), ..config(service.dir.path()).await }).await;
    assert!(no_folder.contains("cannot create") && no_folder.contains("file/data"), "{no_folder}");

    let dir = service.stop().await;
    let foreign = message(Config { trust_domain: "other.example".parse().unwrap(), ..config(dir.path()).await }).await;
    assert!(foreign.contains("of trust domain demo.example, not of other.example"), "{foreign}");
}

mod operators;
mod rotations;
