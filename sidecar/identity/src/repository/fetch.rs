//! Asking key repositories: HTTPS, one after the other (A15).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mesh_asap::{Kid, PublicKey};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

use super::SettingsError;
use super::base::{Base, Origin};
use super::cache::Answer;
use super::freshness::Freshness;
use crate::clock::Steady;

/// The media type of a key.
const PEM: &str = "application/x-pem-file";
/// Longest body, in bytes: a PEM of the largest key that is accepted has 1,600.
const MAX_BODY: usize = 16 * 1024;
/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// Connections to one repository that are kept.
const MAX_IDLE: usize = 4;
/// Redirects on one host that are followed.
const MAX_REDIRECTS: usize = 3;
/// Connections are kept for the next key for so long.
const IDLE: Duration = Duration::from_secs(30);

/// The repositories of one client.
#[derive(Debug)]
pub(super) struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    bases: Vec<Base>,
    deadline: Duration,
}

/// Why one repository gave no key.
#[derive(Debug, thiserror::Error)]
pub enum Miss {
    /// 404 or 403.
    #[error("it answered {0}: it has no such key")]
    Absent(StatusCode),
    /// No whole answer in time.
    #[error("it did not answer within {0:?}")]
    Deadline(Duration),
    /// No connection, no TLS, no HTTP; the text has the causes.
    #[error("no answer: {0}")]
    Http(String),
    /// Any other status that is not 200.
    #[error("it answered {0}")]
    Status(StatusCode),
    /// Off its host and port, more than three times, or nowhere.
    #[error("it redirects to another host, too often or nowhere")]
    Redirect,
    /// Not what A15 says.
    #[error("the media type of its answer is not {PEM}")]
    MediaType,
    /// More than 16 KiB, or less than it had promised.
    #[error("its answer is longer than {MAX_BODY} bytes, or broke off")]
    Body,
    /// Not one PEM SubjectPublicKeyInfo that is accepted.
    #[error("its answer is no key: {0}")]
    Key(String),
}

impl Miss {
    /// Whether the repository says that there is no such key, rather than that it cannot say.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

impl Client {
    pub(super) fn new(
        bases: Vec<Base>,
        roots: Option<Vec<CertificateDer<'static>>>,
        deadline: Duration,
    ) -> Result<Self, SettingsError> {
        let config = config(roots_of(roots)?);
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .wrap_connector(tcp);
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_HEAD)
            .build(https);
        Ok(Self { http, bases, deadline })
    }

    /// Asks one repository after the other until one has the key.
    pub(super) async fn ask(&self, kid: &Kid) -> Answer {
        let mut absent = true;
        for base in &self.bases {
            match self.ask_in_time(base, kid).await {
                Ok((key, text, life)) => return Answer::Key(Arc::new(key), text, life),
                Err(miss) if miss.is_absent() => {
                    tracing::debug!(%kid, repository = %base, %miss, "key repository has no such key");
                }
                Err(miss) => {
                    absent = false;
                    tracing::warn!(%kid, repository = %base, %miss, "key repository cannot be used");
                }
            }
        }
        if absent { Answer::Absent } else { Answer::Failed }
    }

    /// Asks all of them once, for a person who wants to know what each said.
    pub(super) async fn ask_once(&self, kid: &Kid) -> Result<PublicKey, Vec<Miss>> {
        let mut misses = Vec::new();
        for base in &self.bases {
            match self.ask_in_time(base, kid).await {
                Ok((key, _, _)) => return Ok(key),
                Err(miss) => misses.push(miss),
            }
        }
        Err(misses)
    }

    async fn ask_in_time(&self, base: &Base, kid: &Kid) -> Result<(PublicKey, Box<str>, Freshness), Miss> {
        let asked = tokio::time::timeout(self.deadline, self.ask_one(base, kid)).await;
        asked.unwrap_or(Err(Miss::Deadline(self.deadline)))
    }

    async fn ask_one(&self, base: &Base, kid: &Kid) -> Result<(PublicKey, Box<str>, Freshness), Miss> {
        let mut uri = base.of(kid).map_err(|error| Miss::Http(error.to_string()))?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.get(&uri).await?;
            match response.status() {
                StatusCode::OK => return read(response).await,
                status @ (StatusCode::NOT_FOUND | StatusCode::FORBIDDEN) => return Err(Miss::Absent(status)),
                status if status.is_redirection() => uri = redirected(&response, &uri, base.origin())?,
                status => return Err(Miss::Status(status)),
            }
        }
        Err(Miss::Redirect)
    }

    async fn get(&self, uri: &Uri) -> Result<Response<Incoming>, Miss> {
        let request = Request::get(uri)
            .header(ACCEPT, PEM)
            .header(USER_AGENT, concat!("tenon/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| Miss::Http(error.to_string()))?;
        self.http.request(request).await.map_err(|error| Miss::Http(causes(&error)))
    }
}

async fn read(response: Response<Incoming>) -> Result<(PublicKey, Box<str>, Freshness), Miss> {
    let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case(PEM) {
        return Err(Miss::MediaType);
    }
    let life = Freshness::of(response.headers());
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|_| Miss::Body)?.to_bytes();
    let text = std::str::from_utf8(&body).map_err(|error| Miss::Key(error.to_string()))?;
    let key = PublicKey::from_pem(text).map_err(|error| Miss::Key(error.to_string()))?;
    Ok((key, text.into(), life))
}

/// Where a redirect leads: a path or a whole URL, on the repository's own host and port.
fn redirected(response: &Response<Incoming>, from: &Uri, origin: &Origin) -> Result<Uri, Miss> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).ok_or(Miss::Redirect)?;
    let to = if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority().ok_or(Miss::Redirect)?;
        format!("https://{authority}{location}")
    } else {
        location.to_owned()
    };
    let to: Uri = to.parse().map_err(|_| Miss::Redirect)?;
    if Origin::of(&to).as_ref() == Some(origin) { Ok(to) } else { Err(Miss::Redirect) }
}

/// TLS 1.3 alone, as everywhere in the mesh; certificates as on the web, by the clock that does not step. The connector
/// sets ALPN.
fn config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_details(provider, Arc::new(Steady))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Not rustls-platform-verifier: on Linux it verifies by the same roots with the same webpki, and elsewhere the verdict
/// would be the platform's, by the platform's clock.
fn roots_of(given: Option<Vec<CertificateDer<'static>>>) -> Result<RootCertStore, SettingsError> {
    let mut store = RootCertStore::empty();
    let certificates = match given {
        Some(certificates) => certificates,
        None => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                let why = found.errors.first().map_or("the system has none".to_owned(), ToString::to_string);
                return Err(SettingsError::Roots(why));
            }
            found.certs
        }
    };
    let (added, _) = store.add_parsable_certificates(certificates);
    if added == 0 { Err(SettingsError::Roots("none of them is a certificate".into())) } else { Ok(store) }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
