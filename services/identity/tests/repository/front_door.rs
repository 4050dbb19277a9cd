//! An identity service in this process, and clients of its two listeners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::response::Parts;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use identity::{Ca, Config};
use mesh_identity::{Identity, clock, grpc, testing};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tenon_proto::identity::v1::identity_client::IdentityClient;
use tenon_proto::identity::v1::{
    AsapKey, AttestRequest, CreateJoinTokenRequest, GetTrustBundleRequest, IssueResponse, IssueSvidRequest, KeyUse,
    ListKeysRequest, RenewRequest,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

pub const DEADLINE: Duration = Duration::from_secs(20);
const LIFETIME: Duration = Duration::from_secs(600);

/// The process, and the same CA opened beside it.
pub struct Service {
    address: SocketAddr,
    pub repository: SocketAddr,
    pub ca: Ca,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Service {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key_repository = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, repository) = (listener.local_addr().unwrap(), key_repository.local_addr().unwrap());
        let domain = "demo.example".parse().unwrap();
        Ca::create(&dir.path().join("ca"), &domain, None, clock::unix_seconds()).unwrap();
        let config = Config {
            listener,
            ca_dir: dir.path().join("ca"),
            passphrase: None,
            data_dir: dir.path().join("identity"),
            trust_domain: domain.clone(),
            key_repository: Some(key_repository),
            key_repository_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            policy: Vec::new(),
        };
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { identity::serve(config, stop).await.unwrap() });
        let ca = Ca::open(&dir.path().join("ca"), &domain, None, clock::unix_seconds()).unwrap();
        let service = Self { address, repository, ca, shutdown, task, dir };
        service.operator().get_trust_bundle(GetTrustBundleRequest {}).await.unwrap();
        service
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        timeout(DEADLINE, self.task).await.unwrap().unwrap();
    }

    fn channel(&self, identity: &Arc<Identity>) -> Channel {
        grpc::channel(self.address, identity, &testing::service("tenon-identity"))
    }

    pub fn operator_identity(&self) -> Arc<Identity> {
        self.operator_named("ada")
    }

    pub fn operator_named(&self, name: &str) -> Arc<Identity> {
        let svid =
            self.ca.issue_operator(name, mesh_identity::OperatorRole::Admin, LIFETIME, clock::unix_seconds()).unwrap();
        Identity::new(svid, self.ca.bundle().clone())
    }

    pub fn operator_as(&self, identity: &Arc<Identity>) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel(identity))
    }

    pub fn operator(&self) -> IdentityClient<Channel> {
        self.operator_as(&self.operator_identity())
    }

    /// A new SVID each time.
    pub fn identity_of(&self, name: &str) -> Arc<Identity> {
        let svid = self.ca.issue_service(&testing::service(name), LIFETIME, clock::unix_seconds()).unwrap();
        Identity::new(svid, self.ca.bundle().clone())
    }

    pub async fn renew(&self, name: &str, key: AsapKey) -> Result<IssueResponse, Status> {
        self.renew_as(&self.identity_of(name), key).await
    }

    pub async fn renew_as(&self, identity: &Arc<Identity>, key: AsapKey) -> Result<IssueResponse, Status> {
        let request = RenewRequest { csr: csr(), asap_key: Some(key), ..RenewRequest::default() };
        Ok(IdentityClient::new(self.channel(identity)).renew(request).await?.into_inner())
    }

    pub async fn join_token(&self, name: &str) -> Result<String, Status> {
        let request = CreateJoinTokenRequest { service: name.to_owned(), ttl_seconds: 0 };
        Ok(self.operator().create_join_token(request).await?.into_inner().join_token)
    }

    pub async fn attest(&self, join_token: &str, key: AsapKey) -> Result<IssueResponse, Status> {
        let request = AttestRequest {
            join_token: join_token.to_owned(),
            csr: csr(),
            asap_key: Some(key),
            ..AttestRequest::default()
        };
        // Whoever calls: the token is the proof.
        Ok(self.operator().attest(request).await?.into_inner())
    }

    pub async fn svid(&self, name: &str, ttl_seconds: u32) -> Result<IssueResponse, Status> {
        let asap_key = mesh_asap::SigningKey::generate(name).ok();
        let asap_key = asap_key.map(|key| AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() });
        let request = IssueSvidRequest { service: name.to_owned(), csr: csr(), ttl_seconds, asap_key };
        Ok(self.operator().issue_svid(request).await?.into_inner())
    }

    /// Keys that the identity service has made for itself.
    pub async fn own_keys(&self) -> usize {
        let keys = self.operator().list_keys(ListKeysRequest {}).await.unwrap().into_inner().keys;
        keys.iter().filter(|key| key.r#use() == KeyUse::Transaction).count()
    }

    pub fn audited(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.dir.path().join("identity/audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// From now on every line of the audit log finds the disk full, or not any more.
    pub fn fill_the_disk_of_the_audit_log(&self, full: bool) {
        let path = self.dir.path().join("identity/audit.jsonl");
        let aside = path.with_extension("aside");
        if full {
            std::fs::rename(&path, aside).unwrap();
            std::os::unix::fs::symlink("/dev/full", path).unwrap();
        } else {
            std::fs::rename(aside, path).unwrap();
        }
    }

    fn client(&self, protocol: &[u8]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for root in self.ca.bundle().roots() {
            roots.add(root.clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = if protocol.is_empty() { Vec::new() } else { vec![protocol.to_vec()] };
        Arc::new(config)
    }
}

pub fn csr() -> Bytes {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec().into()
}

pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A connection to the key repository, which proved to be "localhost" below the mesh's root.
pub struct Https {
    sender: Sender,
    /// The certificate that signed the server's.
    pub issuer: CertificateDer<'static>,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Https {
    /// `protocol` by ALPN; empty: none is offered, which is HTTP/1.1.
    pub async fn connect(service: &Service, protocol: &[u8]) -> Self {
        Self::connect_from(service, protocol, "127.0.0.1").await
    }

    pub async fn connect_from(service: &Service, protocol: &[u8], from: &str) -> Self {
        let stream = tls(service, protocol, from).await;
        let connection = stream.get_ref().1;
        assert_eq!(connection.alpn_protocol(), Some(protocol).filter(|protocol| !protocol.is_empty()));
        let issuer = connection.peer_certificates().unwrap()[1].clone().into_owned();
        let io = TokioIo::new(stream);
        let sender = if protocol == b"h2" {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Self { sender, issuer }
    }

    pub async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> (Parts, Bytes) {
        let uri = match self.sender {
            Sender::Http1(_) => path.to_owned(),
            Sender::Http2(_) => format!("https://localhost{path}"),
        };
        let mut request = http::Request::builder().method(method).uri(uri).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).unwrap();
        let response = match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request).await.unwrap(),
            Sender::Http2(sender) => sender.send_request(request).await.unwrap(),
        };
        let (head, body) = response.into_parts();
        (head, body.collect().await.unwrap().to_bytes())
    }

    /// Asks until it answers so: what was just written is a moment on its way.
    pub async fn until(&mut self, path: &str, status: u16) -> (Parts, Bytes) {
        let end = Instant::now() + DEADLINE;
        loop {
            let (head, body) = self.send("GET", path, &[]).await;
            if head.status.as_u16() == status {
                return (head, body);
            }
            assert!(Instant::now() < end, "{path} still answers {}", head.status);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn tls(service: &Service, protocol: &[u8], from: &str) -> TlsStream<TcpStream> {
    let stream = tcp(from, service.repository).await;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(service.client(protocol)).connect(name, stream).await.unwrap()
}

/// A connection from one of this machine's addresses.
pub async fn tcp(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Waits until the other side has closed.
pub async fn closed(mut stream: TcpStream) {
    let read = timeout(DEADLINE, stream.read(&mut [0; 1])).await.expect("it is closed");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

/// The status of the answer to a request line that no client would send.
pub async fn raw_status(service: &Service, line: &str) -> String {
    let mut stream = tls(service, b"http/1.1", "127.0.0.1").await;
    stream.write_all(format!("{line}\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}
