//! How a call ended.

use http::{HeaderMap, StatusCode, header};
use tonic::Code;

/// As gRPC writes them, in the order of their numbers.
pub(super) const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a gRPC status, by its number.
#[must_use]
pub fn code_name(code: u32) -> Option<&'static str> {
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied()
}

/// What the headers of an answer say, where they say it: an answer without messages, or plain HTTP, by gRPC's own table
/// ("HTTP to gRPC Status Code Mapping").
pub(super) fn of_headers(status: StatusCode, headers: &HeaderMap) -> Option<Code> {
    if let Some(code) = of_trailers(headers) {
        return Some(code);
    }
    let grpc = headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    match (status, grpc) {
        (StatusCode::OK, true) => None,
        (status, _) if status.is_success() => Some(Code::Ok),
        (StatusCode::BAD_REQUEST, _) => Some(Code::Internal),
        (StatusCode::UNAUTHORIZED, _) => Some(Code::Unauthenticated),
        (StatusCode::FORBIDDEN, _) => Some(Code::PermissionDenied),
        (StatusCode::NOT_FOUND, _) => Some(Code::Unimplemented),
        (
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT,
            _,
        ) => Some(Code::Unavailable),
        _ => Some(Code::Unknown),
    }
}

pub(super) fn of_trailers(trailers: &HeaderMap) -> Option<Code> {
    trailers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}
