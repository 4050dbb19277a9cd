//! GET over HTTPS, of small JSON documents of an issuer. TLS 1.3 alone, as everywhere in Tenon.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, USER_AGENT};
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

/// A whole fetch, from resolving the name to the last byte.
const DEADLINE: Duration = Duration::from_secs(5);
/// Larger documents are refused. Key sets of the largest platforms have a few kilobytes.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// A document that an issuer serves, and how long it may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Document {
    pub body: Bytes,
    /// `max-age` of `Cache-Control`; zero for `no-store` and `no-cache`; absent when it says nothing.
    pub max_age: Option<Duration>,
}

/// Why a document was not fetched. Says nothing of what was answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0} is no https URL")]
    Url(String),
    #[error("no authority to trust: {0}")]
    Roots(String),
    #[error("{url} cannot be reached: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} answers with the status {status}")]
    Status { url: String, status: u16 },
    #[error("{url} does not answer within {} s", DEADLINE.as_secs())]
    Slow { url: String },
    #[error("the answer of {url} is larger than {MAX_BODY_BYTES} bytes, or breaks off")]
    Body { url: String },
}

/// Where documents come from: the network, or a test.
pub(super) trait Fetch: Send + Sync {
    fn get(&self, url: &str) -> impl Future<Output = Result<Document, FetchError>> + Send;
}

type HyperClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A client that trusts the authorities of one Attestor.
pub(super) struct Https {
    /// DER; empty: those that the system trusts.
    ca: Vec<Bytes>,
    /// Made at the first use: reading the system's authorities takes milliseconds and may fail, until they are there.
    client: OnceLock<HyperClient>,
}

impl Https {
    pub(super) fn new(ca: Vec<Bytes>) -> Self {
        Self { ca, client: OnceLock::new() }
    }

    fn client(&self) -> Result<&HyperClient, FetchError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = client(&self.ca)?;
        Ok(self.client.get_or_init(|| client))
    }
}

impl Fetch for Https {
    /// Follows no redirect: what is configured, or found by discovery, is the place itself.
    async fn get(&self, url: &str) -> Result<Document, FetchError> {
        let uri: Uri = url.parse().map_err(|_| FetchError::Url(url.to_owned()))?;
        if uri.scheme_str() != Some("https") {
            return Err(FetchError::Url(url.to_owned()));
        }
        let client = self.client()?;
        let request = Request::get(uri)
            .header(ACCEPT, "application/json, application/jwk-set+json")
            .header(USER_AGENT, "tenon-identity")
            .body(Empty::new())
            .map_err(|_| FetchError::Url(url.to_owned()))?;
        let work = async {
            let response = client.request(request).await.map_err(|error| unreachable(url, &error))?;
            if response.status() != http::StatusCode::OK {
                return Err(FetchError::Status { url: url.to_owned(), status: response.status().as_u16() });
            }
            let max_age = max_age(response.headers());
            let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
            let body = body.map_err(|_| FetchError::Body { url: url.to_owned() })?.to_bytes();
            Ok(Document { body, max_age })
        };
        tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(FetchError::Slow { url: url.to_owned() }))
    }
}

fn client(ca: &[Bytes]) -> Result<HyperClient, FetchError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites");
    let builder = if ca.is_empty() {
        builder.with_native_roots().map_err(|error| FetchError::Roots(error.to_string()))?
    } else {
        let mut roots = RootCertStore::empty();
        for der in ca {
            let added = roots.add(CertificateDer::from(der.to_vec()));
            added.map_err(|error| FetchError::Roots(error.to_string()))?;
        }
        builder.with_root_certificates(roots)
    };
    let mut config = builder.with_no_client_auth();
    // Nothing is resumed: each fetch proves anew who the issuer's server is.
    config.resumption = rustls::client::Resumption::disabled();
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
    // A connection kept for ten minutes saves nothing and is found dead.
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
}

fn unreachable(url: &str, error: &(dyn std::error::Error + 'static)) -> FetchError {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    FetchError::Unreachable { url: url.to_owned(), why: causes.collect::<Vec<_>>().join(": ") }
}

/// RFC 9111 §5.2.2, as far as it concerns a cache of our kind.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let mut found = None;
    for directive in headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()) {
        for directive in directive.split(',').map(|text| text.trim().to_ascii_lowercase()) {
            match directive.split_once('=') {
                Some(("max-age", seconds)) => {
                    let seconds = seconds.trim_matches('"').parse().ok();
                    found = found.or(seconds.map(Duration::from_secs));
                }
                None if directive == "no-store" || directive == "no-cache" => return Some(Duration::ZERO),
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
