//! One request, one answer. Pure.

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;

use super::published::{Found, Published};

/// A key that is in steady use is asked for again after a minute, in the background; whoever cannot reach us uses what it
/// has for four more. So a revoked key is gone everywhere after five minutes at the very most, usually after one.
const FOUND: HeaderValue = HeaderValue::from_static("public, max-age=60, stale-while-revalidate=240");
/// A key that is not there now may be there in a moment: its service has just come up.
const NOT_FOUND: HeaderValue = HeaderValue::from_static("public, max-age=5");

/// Answers `GET` and `HEAD`; the body of the request is never read.
pub(super) fn answer<B>(published: &Published, request: &Request<B>) -> Response<Full<Bytes>> {
    let head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n", false);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
    };
    let document = match published.get(request.uri().path()) {
        Found::Document(document) => document,
        Found::Nothing => {
            let mut response = text(StatusCode::NOT_FOUND, "there is nothing here\n", head);
            response.headers_mut().insert(CACHE_CONTROL, NOT_FOUND);
            return response;
        }
        Found::NotYet => {
            let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "not known yet\n", head);
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
            return response;
        }
    };
    let unchanged = names(request.headers(), &document.etag);
    let body = if head || unchanged { Bytes::new() } else { document.body.clone() };
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(ETAG, document.etag);
    headers.insert(CACHE_CONTROL, FOUND);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(document.media_type));
        headers.insert(CONTENT_LENGTH, document.body.len().into());
    }
    response
}

/// RFC 9110 §13.1.2: a list of tags, compared weakly, or "*".
fn names(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let tags = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    tags.flat_map(|value| value.split(',')).map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag.as_bytes() == etag.as_bytes()
    })
}

fn text(status: StatusCode, body: &'static str, head: bool) -> Response<Full<Bytes>> {
    let sent = if head { Bytes::new() } else { Bytes::from_static(body.as_bytes()) };
    let mut response = Response::new(Full::new(sent));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(CONTENT_LENGTH, body.len().into());
    response
}
