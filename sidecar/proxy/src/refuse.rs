//! Refusals on the wire: gRPC Trailers-Only with `ErrorInfo`, or HTTP with `application/problem+json`.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message as _;
use sidecar_core::Refusal;
use tonic_types::pb::{ErrorInfo, RetryInfo, Status};

use crate::{body::CallBody, call::Facts};

/// `ErrorInfo.domain` of every refusal.
pub const DOMAIN: &str = "tenon.dev";

/// What a `grpc-message` must escape: everything but printable ASCII without `%` (gRPC over HTTP/2, Status-Message).
const MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// What was in force when a call was refused, each `<epoch>.<revision>` or empty when nothing has arrived.
#[derive(Debug)]
pub struct Revisions {
    /// Of the callee's allowlist (inbound) or of the caller's own (outbound).
    pub policy: String,
    /// Of the tenant replica.
    pub tenants: String,
}

/// The whole answer to a call that never began.
pub fn response(refusal: &Refusal, facts: &Facts, revisions: &Revisions) -> Response<CallBody> {
    if facts.grpc { trailers_only(refusal, facts, revisions) } else { problem(refusal, facts, revisions) }
}

/// `grpc-status`, `grpc-message` and `grpc-status-details-bin`, for Trailers-Only answers and for streams cut short.
pub fn trailers(refusal: &Refusal, facts: &Facts, revisions: &Revisions) -> HeaderMap {
    let message = message(refusal, facts);
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert("grpc-status", HeaderValue::from(refusal.reason.code() as i32));
    let escaped = utf8_percent_encode(&message, MESSAGE).to_string();
    if let Ok(value) = HeaderValue::from_str(&escaped) {
        headers.insert("grpc-message", value);
    }
    let details = STANDARD_NO_PAD.encode(details(refusal, facts, revisions, message));
    if let Ok(value) = HeaderValue::from_str(&details) {
        headers.insert("grpc-status-details-bin", value);
    }
    headers
}

fn trailers_only(refusal: &Refusal, facts: &Facts, revisions: &Revisions) -> Response<CallBody> {
    let mut response = Response::new(CallBody::empty());
    *response.headers_mut() = trailers(refusal, facts, revisions);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// For callers that do not speak gRPC (RFC 9457).
fn problem(refusal: &Refusal, facts: &Facts, revisions: &Revisions) -> Response<CallBody> {
    let status = StatusCode::from_u16(refusal.reason.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::json!({
        "type": "about:blank",
        "title": refusal.reason.as_str(),
        "status": status.as_u16(),
        "detail": message(refusal, facts),
        "reason": refusal.reason.as_str(),
        "domain": DOMAIN,
        "metadata": metadata(facts, revisions),
    });
    let body =
        if facts.method == Method::HEAD { CallBody::empty() } else { CallBody::text(Bytes::from(body.to_string())) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(delay) = refusal.retry_after() {
        let seconds = u64::try_from(delay.as_millis().div_ceil(1_000).max(1)).unwrap_or(u64::MAX);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// One line that begins with the reason.
fn message(refusal: &Refusal, facts: &Facts) -> String {
    format!("{}: {} (request {})", refusal.reason.as_str(), refusal.message, facts.request_id())
}

fn metadata(facts: &Facts, revisions: &Revisions) -> HashMap<String, String> {
    [
        ("service", facts.service.as_ref()),
        ("path", facts.uri.path()),
        ("caller", facts.caller.as_ref()),
        ("tenant", facts.tenant()),
        ("policy_revision", revisions.policy.as_str()),
        ("tenant_revision", revisions.tenants.as_str()),
        ("request_id", facts.request_id()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// An encoded `google.rpc.Status`.
fn details(refusal: &Refusal, facts: &Facts, revisions: &Revisions, message: String) -> Vec<u8> {
    let info = ErrorInfo {
        reason: refusal.reason.as_str().to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: metadata(facts, revisions),
    };
    let mut details = vec![any("google.rpc.ErrorInfo", &info)];
    if let Some(delay) = refusal.retry_after() {
        let retry = RetryInfo { retry_delay: prost_duration(delay) };
        details.push(any("google.rpc.RetryInfo", &retry));
    }
    Status { code: refusal.reason.code() as i32, message, details }.encode_to_vec()
}

fn any(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

fn prost_duration(delay: std::time::Duration) -> Option<prost_types::Duration> {
    delay.try_into().ok()
}

#[cfg(test)]
mod tests {
    use sidecar_core::Reason;

    use super::*;

    /// Status and `www-authenticate` of a refusal to a caller that does not speak gRPC.
    fn answer(reason: Reason) -> (u16, Option<HeaderValue>) {
        let facts = Facts {
            service: "media".into(),
            caller: "issues".into(),
            uri: http::Uri::from_static("/"),
            tenant: None,
            request_id: HeaderValue::from_static("1"),
            grpc: false,
            method: Method::POST,
        };
        let revisions = Revisions { policy: String::new(), tenants: String::new() };
        let response = response(&Refusal::new(reason, "why"), &facts, &revisions);
        (response.status().as_u16(), response.headers().get(header::WWW_AUTHENTICATE).cloned())
    }

    fn of_asap(reason: Reason) -> bool {
        reason.as_str().starts_with("ASAP_") && reason != Reason::AsapKeysUnavailable
    }

    #[test]
    fn a14_a_refused_token_is_401_with_a_bearer_challenge() {
        let tokens: Vec<Reason> = Reason::ALL.iter().copied().filter(|reason| of_asap(*reason)).collect();
        assert_eq!(tokens.len(), 11, "{tokens:?}");
        for reason in tokens {
            assert_eq!(answer(reason), (401, Some(HeaderValue::from_static("Bearer"))), "{reason:?}");
        }
    }

    #[test]
    fn a14_what_is_no_fault_of_the_token_is_another_status_without_a_challenge() {
        assert_eq!(answer(Reason::AsapKeysUnavailable), (503, None));
        for reason in Reason::ALL.iter().copied().filter(|reason| !of_asap(*reason)) {
            let (status, challenge) = answer(reason);
            assert_eq!(status == 401, challenge.is_some(), "{reason:?}");
            // A transaction token is asked for in the same way.
            assert!(status != 401 || reason.as_str().starts_with("TXN_"), "{reason:?}");
        }
    }
}
