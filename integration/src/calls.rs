//! Calls through sidecars as apps make them, and what is read off their answers.

use std::net::SocketAddr;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioExecutor;
use tonic::{
    Request, Status,
    metadata::{MetadataKey, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt as _;

/// A connection to a sidecar's outbound listener, for calls to `authority`.
///
/// # Errors
/// The sidecar does not answer.
pub async fn channel(outbound: SocketAddr, authority: &str) -> anyhow::Result<Channel> {
    let origin: Uri = format!("http://{authority}").parse()?;
    let endpoint = Endpoint::from_shared(format!("http://{outbound}"))?.origin(origin);
    endpoint.connect().await.with_context(|| format!("connecting to the sidecar at {outbound}"))
}

/// A request for a tenant.
pub fn for_tenant<M>(tenant: &str, message: M) -> Request<M> {
    with_headers(&[("x-tenant-id", tenant)], message)
}

/// A request with these headers.
///
/// # Panics
/// When they are no headers.
pub fn with_headers<M>(headers: &[(&str, &str)], message: M) -> Request<M> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        let name = MetadataKey::from_bytes(name.as_bytes()).expect("a header name");
        request.metadata_mut().append(name, MetadataValue::try_from(*value).expect("a header value"));
    }
    request
}

/// The reason of a refusal by Tenon; `None` for a status that an app made.
#[must_use]
pub fn reason(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == "tenon.dev").then_some(info.reason)
}

/// One field of a refusal's metadata.
#[must_use]
pub fn metadata(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.get(key).cloned()
}

/// `ALLOWED`, the reason of the refusal, or what else came.
pub fn outcome<T>(answer: &Result<T, Status>) -> String {
    match answer {
        Ok(_) => "ALLOWED".into(),
        Err(status) => reason(status).unwrap_or_else(|| format!("{:?}: {}", status.code(), status.message())),
    }
}

/// The body of a plain HTTP answer.
///
/// # Errors
/// There is no answer, or it is not 200.
pub async fn http_get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let response = client.get(format!("http://{address}{path}").parse()?).await?;
    anyhow::ensure!(response.status() == 200, "{path} answered {}", response.status());
    Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().into())?)
}
