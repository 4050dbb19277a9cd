//! ASAP libraries of other people as the other side: each is a program that is asked in JSON, line by line.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, ensure};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    },
};
use identity::{Ca, SVID_LIFETIME};
use mesh_asap::{Algorithm, Expect, Kid, SigningKey};
use mesh_config::names::{ServiceName, TrustDomain, control_plane};
use mesh_identity::{
    Identity, clock, grpc,
    repository::{
        Repositories, Settings,
        testing::{KeyServer, Reply, WebCa},
    },
};
use serde_json::{Value, json};
use tenon_proto::identity::v1::{AsapKey, ConfirmRequest, identity_client::IdentityClient};
use tokio::{net::TcpListener, runtime::Handle, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    mesh::{SOON, binary, repository, target_profile_dir},
    python,
};

/// Whose keys and tokens these tests are about.
pub const ISSUER: &str = "partner";
/// Whom the tokens are for.
pub const AUDIENCE: &str = "media";

/// A running program that answers each line of JSON with one.
pub struct Peer {
    name: &'static str,
    child: Child,
    stdin: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Peer {
    /// PyPI `atlassian-jwt-auth`. The authority of a repository is named in each question.
    ///
    /// # Errors
    /// It is not installed, or cannot be started.
    pub fn python() -> anyhow::Result<Self> {
        let mut command = Command::new(python::program("python")?);
        command.arg(repository().join("integration/tests/python/asap.py"));
        Self::start("PyPI atlassian-jwt-auth", command)
    }

    /// npm `jwt-authentication`; `authority` is the PEM file of who vouches for key repositories.
    ///
    /// # Errors
    /// It is not installed, or cannot be started.
    pub fn node(authority: &Path) -> anyhow::Result<Self> {
        let modules = target()?.join("node/node_modules");
        let package = modules.join("jwt-authentication");
        ensure!(package.exists(), "{} is missing: run `make deps`", package.display());
        let mut command = Command::new("node");
        command.arg(repository().join("integration/tests/node/asap.js"));
        command.env("NODE_PATH", modules).env("NODE_EXTRA_CA_CERTS", authority);
        // Of its dependencies, which are of another time.
        command.env("NODE_NO_WARNINGS", "1");
        Self::start("npm jwt-authentication", command)
    }

    /// The crate `asap`; `authority` as for [`Self::node`].
    ///
    /// # Errors
    /// It is not built, or cannot be started.
    pub fn asap_crate(authority: &Path) -> anyhow::Result<Self> {
        let program = target()?.join("peers/debug/asap-peer");
        ensure!(program.exists(), "{} is missing: run `make deps`", program.display());
        let mut command = Command::new(program);
        command.env("SSL_CERT_FILE", authority).env_remove("SSL_CERT_DIR");
        Self::start("the crate asap", command)
    }

    fn start(name: &'static str, mut command: Command) -> anyhow::Result<Self> {
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("{name} does not start: run `make deps`"))?;
        let stdin = child.stdin.take().context("stdin is piped")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { name, child, stdin, answers })
    }

    /// # Errors
    /// No answer; one that says `error` is an answer.
    pub fn ask(&mut self, question: &Value) -> anyhow::Result<Value> {
        writeln!(self.stdin, "{question}")?;
        let answer = self.answers.recv_timeout(SOON).with_context(|| format!("{} does not answer", self.name))?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// The token that it mints with `key`; `private` is that key as it wants it.
    ///
    /// # Errors
    /// It mints none: with what it says.
    pub fn mint(&mut self, key: &SigningKey, private: &str) -> anyhow::Result<String> {
        let answer = self.ask(&json!({
            "do": "mint", "issuer": ISSUER, "kid": key.kid().as_str(), "algorithm": key.algorithm().name(), "key": private,
            "audience": AUDIENCE,
        }))?;
        let token = answer["token"].as_str();
        Ok(token.with_context(|| format!("{}: {answer}", self.name))?.to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn target() -> anyhow::Result<PathBuf> {
    let profile = target_profile_dir()?;
    Ok(profile.parent().unwrap_or(&profile).to_owned())
}

/// A key of [`ISSUER`] for each of the nine algorithms; the six of RSA share one, under an id each.
///
/// # Errors
/// No randomness.
pub fn keys() -> anyhow::Result<Vec<SigningKey>> {
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048)?;
    let rsa = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa)?;
    let curves = [
        (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED_SIGNING),
        (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED_SIGNING),
        (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED_SIGNING),
    ];
    let key = |algorithm: Algorithm| {
        let kid: Kid = format!("{ISSUER}/2026/{}.pem", algorithm.name().to_lowercase()).parse()?;
        let key = match curves.iter().find(|(fitting, _)| *fitting == algorithm) {
            Some((_, curve)) => SigningKey::from_pkcs8(kid, EcdsaKeyPair::generate(curve)?.to_pkcs8v1()?.as_ref()),
            None => SigningKey::from_pkcs8(kid, rsa.as_ref()),
        };
        Ok(key?.with_issuer(ISSUER)?.with_algorithm(algorithm)?)
    };
    Algorithm::ALL.into_iter().map(key).collect()
}

/// The private half, PKCS#8 PEM.
#[must_use]
pub fn private_pem(key: &SigningKey) -> String {
    pem::encode(&pem::Pem::new("PRIVATE KEY", key.pkcs8().as_slice()))
}

/// The public half, as a key repository serves it.
#[must_use]
pub fn public_pem(key: &SigningKey) -> String {
    pem::encode(&pem::Pem::new("PUBLIC KEY", key.public_spki()))
}

/// An identity service in this process that serves our key repository.
pub struct OurRepository {
    /// Its base URL.
    pub url: String,
    /// The trust bundle of the mesh: who vouches for the repository.
    pub bundle: PathBuf,
    dir: tempfile::TempDir,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), identity::ServeError>>,
}

impl OurRepository {
    /// Starts it, and publishes `keys` as the service [`ISSUER`] does.
    ///
    /// # Errors
    /// It does not start, or does not take a key.
    pub async fn start(keys: &[SigningKey]) -> anyhow::Result<Self> {
        let trust_domain = TrustDomain::try_from("test.example")?;
        let dir = tempfile::tempdir()?;
        let (listener, repository) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let (address, url) = (listener.local_addr()?, format!("https://{}/", repository.local_addr()?));
        let ca_dir = dir.path().join("ca");
        let now = clock::unix_seconds();
        let ca = Ca::create(&ca_dir, &trust_domain, None, now)?;
        let config = identity::Config {
            listener,
            ca_dir,
            passphrase: None,
            data_dir: dir.path().join("data"),
            trust_domain,
            key_repository: Some(repository),
            key_repository_names: vec!["127.0.0.1".into()],
            policy: Vec::new(),
        };
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let running = tokio::spawn(async move { identity::serve(config, stop).await });

        let bundle = dir.path().join("trust-bundle.pem");
        std::fs::write(&bundle, ca.bundle().to_pem())?;
        let svid = ca.issue_service(&ServiceName::try_from(ISSUER)?, SVID_LIFETIME, now)?;
        let identity = Identity::new(svid, ca.bundle());
        let channel = grpc::channel(address, &identity, &ServiceName::try_from(control_plane::IDENTITY)?);
        let mut client = IdentityClient::new(channel);
        for key in keys {
            let asap_key = AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() };
            client.confirm(ConfirmRequest { asap_key: Some(asap_key), ..ConfirmRequest::default() }).await?;
        }
        Ok(Self { url, bundle, dir, shutdown, running })
    }

    /// Ends it.
    ///
    /// # Errors
    /// It has ended by itself before.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.running.await??;
        self.dir.close()?;
        Ok(())
    }
}

/// A key repository outside of the mesh, run by the test, with what verifies by it: the library and the command.
pub struct Outside {
    server: KeyServer,
    repositories: Repositories,
    /// PEM of its authority.
    pub authority: tempfile::NamedTempFile,
}

impl Outside {
    /// Starts it with these keys.
    ///
    /// # Errors
    /// No temporary file.
    pub async fn start(keys: &[SigningKey]) -> anyhow::Result<Self> {
        let ca = WebCa::new();
        let server = KeyServer::start(&ca).await;
        for key in keys {
            server.tell(key.kid().as_str(), Reply::key(&public_pem(key)));
        }
        let settings = Settings::new([server.url()]).with_roots(vec![ca.root()]);
        let repositories = Repositories::new(settings, &Handle::current())?;
        let mut authority = tempfile::NamedTempFile::new()?;
        authority.write_all(ca.pem().as_bytes())?;
        Ok(Self { server, repositories, authority })
    }

    /// What the library says: `ok`, or the reason.
    pub async fn library(&self, token: &str) -> String {
        if let Ok(checked) = mesh_asap::precheck(token) {
            self.repositories.ensure(&checked.kid).await;
        }
        let now = clock::unix_seconds();
        let keys = |kid: &str| self.repositories.cached(kid, now);
        match mesh_asap::verify(token, &Expect::new(AUDIENCE, None), &keys, now) {
            Ok(_) => "ok".into(),
            Err(error) => error.reason().into(),
        }
    }

    /// As [`verified_by_command`], by this repository.
    ///
    /// # Errors
    /// The same.
    pub async fn command(&self, token: &str) -> anyhow::Result<(Value, Option<i32>)> {
        verified_by_command(token, &self.server.url(), self.authority.path()).await
    }
}

/// What `tenon asap verify` prints of a token for [`AUDIENCE`], with its exit code.
///
/// # Errors
/// It does not start, or prints no JSON.
pub async fn verified_by_command(token: &str, url: &str, authority: &Path) -> anyhow::Result<(Value, Option<i32>)> {
    let mut command = Command::new(binary("tenon")?);
    command.args(["asap", "verify", "--audience", AUDIENCE, "--keys", url, "--ca"]).arg(authority);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let token = format!("{token}\n");
    let done = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let mut child = command.spawn()?;
        child.stdin.take().context("stdin is piped")?.write_all(token.as_bytes())?;
        Ok(child.wait_with_output()?)
    });
    let output = done.await??;
    Ok((serde_json::from_slice(&output.stdout)?, output.status.code()))
}
