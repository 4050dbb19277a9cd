//! A key repository for tests: a real HTTPS server on a port of its own, that answers as it is told. Not for production
//! use: it panics on bad input.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the server says to one path.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An answer with these headers; its length is added.
    Answer {
        /// The HTTP status.
        status: u16,
        /// Names and values.
        headers: Vec<(String, String)>,
        /// As it is.
        body: Vec<u8>,
    },
    /// The connection stays open and silent, until the reply is another one.
    Silence,
    /// The connection is closed without a word.
    Close,
}

impl Reply {
    /// A key as A15 wants it.
    pub fn key(pem: &str) -> Self {
        Self::Answer {
            status: 200,
            headers: vec![("content-type".into(), "application/x-pem-file".into())],
            body: pem.into(),
        }
    }

    /// Nothing but a status.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    /// With one header more, or the only one of this name.
    #[must_use]
    pub fn with(self, name: &str, value: &str) -> Self {
        let Self::Answer { status, mut headers, body } = self else { panic!("only an answer has headers") };
        headers.retain(|(other, _)| other != name);
        headers.push((name.into(), value.into()));
        Self::Answer { status, headers, body }
    }
}

/// A certificate authority of the web, for servers on loopback.
pub struct WebCa {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl WebCa {
    /// A new one.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("a root").der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    /// Its certificate.
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    /// Its certificate as PEM, for other programs.
    pub fn pem(&self) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE", self.root.as_ref()))
    }

    /// A configuration of a server that is `localhost`, 127.0.0.1 and ::1.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a P-256 key");
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 suites")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())
            .expect("the key is the certificate's");
        Arc::new(config)
    }
}

impl Default for WebCa {
    fn default() -> Self {
        Self::new()
    }
}

/// A running key repository; dropping it ends it.
pub struct KeyServer {
    address: SocketAddr,
    told: Arc<Told>,
    _running: DropGuard,
}

/// What the server was told, and was asked.
struct Told {
    replies: watch::Sender<HashMap<String, Reply>>,
    /// The paths in the order of the requests, with the value of `accept`.
    asked: Mutex<Vec<(String, String)>>,
    seen: watch::Sender<usize>,
}

impl KeyServer {
    /// Listens on loopback. Every path is 404 until it is told otherwise.
    pub async fn start(ca: &WebCa) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let told = Arc::new(Told {
            replies: watch::Sender::new(HashMap::new()),
            asked: Mutex::default(),
            seen: watch::Sender::new(0),
        });
        let shutdown = CancellationToken::new();
        let running = shutdown.clone().drop_guard();
        tokio::spawn(shutdown.run_until_cancelled_owned(serve(listener, ca.server_config(), Arc::clone(&told))));
        Self { address, told, _running: running }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("https://{}/", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `path`, without the first slash, is answered so.
    pub fn tell(&self, path: &str, reply: Reply) {
        self.told.replies.send_modify(|replies| {
            replies.insert(format!("/{path}"), reply);
        });
    }

    /// The paths that were asked for so far, without the first slash.
    pub fn asked(&self) -> Vec<String> {
        let asked = self.told.asked.lock().expect("no test panics while it holds this");
        asked.iter().map(|(path, _)| path.trim_start_matches('/').to_owned()).collect()
    }

    /// The `accept` headers that came so far.
    pub fn accepted(&self) -> Vec<String> {
        let asked = self.told.asked.lock().expect("no test panics while it holds this");
        asked.iter().map(|(_, accept)| accept.clone()).collect()
    }

    /// Waits until it was asked this often in all.
    pub async fn asked_times(&self, times: usize) {
        let mut seen = self.told.seen.subscribe();
        seen.wait_for(|seen| *seen >= times).await.expect("the server runs");
    }
}

async fn serve(listener: TcpListener, config: Arc<ServerConfig>, told: Arc<Told>) {
    let acceptor = TlsAcceptor::from(config);
    // Dropped with the server: no connection outlives it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (acceptor, told) = (acceptor.clone(), Arc::clone(&told));
        connections.spawn(async move {
            // Whoever goes away meanwhile is no concern of the server.
            let _ = converse(acceptor, stream, &told).await;
        });
    }
}

/// One request after the other, as HTTP/1.1 has it.
async fn converse(acceptor: TlsAcceptor, stream: TcpStream, told: &Told) -> std::io::Result<()> {
    let mut stream = BufReader::new(acceptor.accept(stream).await?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            head.push(line);
        }
        let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
        let accept = head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("accept").then(|| value.trim().to_owned())
        });
        told.asked.lock().expect("no test panics while it holds this").push((path.clone(), accept.unwrap_or_default()));
        told.seen.send_modify(|seen| *seen += 1);
        let reply = told.reply(&path).await;
        let Reply::Answer { status, headers, body } = reply else { return Ok(()) };
        let mut answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in &headers {
            answer.push_str(&format!("{name}: {value}\r\n"));
        }
        answer.push_str("\r\n");
        stream.write_all(answer.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.flush().await?;
    }
}

impl Told {
    /// What to say, once it is something to say.
    async fn reply(&self, path: &str) -> Reply {
        let mut replies = self.replies.subscribe();
        let silent = |replies: &HashMap<String, Reply>| matches!(replies.get(path), Some(Reply::Silence));
        let replies = replies.wait_for(|replies| !silent(replies)).await.expect("the server holds the sender");
        replies.get(path).cloned().unwrap_or_else(|| Reply::status(404))
    }
}
