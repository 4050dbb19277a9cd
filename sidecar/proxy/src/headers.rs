//! Header hygiene: what a request may carry across each border of the mesh (DESIGN §3).

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header, uri};
use mesh_asap::{BearerError, bearer};
use sidecar_core::{Named, Token};

pub const TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
pub const TENANT_HOST: HeaderName = HeaderName::from_static("x-tenant-host");
pub const TENANT_REVISION: HeaderName = HeaderName::from_static("x-tenant-revision");
pub const TENANT_CONTEXT: HeaderName = HeaderName::from_static("x-tenant-context-bin");
pub const ASAP_TOKEN: HeaderName = HeaderName::from_static("x-asap-token");
pub const CALLER: HeaderName = HeaderName::from_static("x-mesh-caller");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-mesh-request-id");
pub const TXN_TOKEN: HeaderName = HeaderName::from_static("txn-token");

/// Everything with these prefixes belongs to the mesh.
const RESERVED: [&str; 3] = ["x-tenant-", "x-mesh-", "x-asap-"];

/// Removes every header that belongs to the mesh.
pub fn strip_reserved(headers: &mut HeaderMap) {
    // Taken out one at a time: a name is a reference count, and there are three of them on an ordinary call.
    while let Some(name) = headers.keys().find(|name| is_reserved(name)).cloned() {
        headers.remove(name);
    }
}

fn is_reserved(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-") && RESERVED.iter().any(|prefix| name.starts_with(prefix))
}

/// How often a name stands there.
pub fn named<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Named<'a> {
    Named::from_values(headers.get_all(name).iter().map(|value| value.to_str().ok()))
}

/// The ASAP token: `x-asap-token` between sidecars; where that is absent, `authorization: Bearer` (ASAP A13). Says also
/// which header held it.
pub fn token(headers: &HeaderMap) -> (Token<'_>, HeaderName) {
    match named(headers, &ASAP_TOKEN) {
        Named::One(token) => return (Token::One(token), ASAP_TOKEN),
        Named::Many => return (Token::Ambiguous, ASAP_TOKEN),
        Named::None => {}
    }
    // Some other scheme is the app's own affair: it is no token, and says nothing about one.
    let token = match bearer(headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes)) {
        Ok(token) => Token::One(token),
        Err(BearerError::Missing) => Token::Missing,
        Err(BearerError::Malformed) => Token::Ambiguous,
    };
    (token, header::AUTHORIZATION)
}

/// The request id of another sidecar, when it has the form of one.
pub fn foreign_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let Named::One(id) = named(headers, &REQUEST_ID) else { return None };
    let fits = (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    fits.then(|| headers.get(&REQUEST_ID).cloned()).flatten()
}

/// A new request id: UUID v7, so that ids sort by time.
pub fn new_request_id() -> HeaderValue {
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("00000000-0000-7000-8000-000000000000"))
}

/// `x-tenant-context-bin` of an encoded context.
pub fn binary(context: &[u8]) -> Option<HeaderValue> {
    HeaderValue::try_from(STANDARD_NO_PAD.encode(context)).ok()
}

/// The same path on another authority.
pub fn redirect(from: &http::Uri, scheme: uri::Scheme, authority: uri::Authority) -> http::Uri {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority);
    parts.path_and_query = from.path_and_query().cloned().or(Some(uri::PathAndQuery::from_static("/")));
    http::Uri::from_parts(parts).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_what_belongs_to_the_mesh_is_stripped() {
        let mut headers = map(&[
            ("x-tenant-id", "acme"),
            ("x-tenant-id", "evil"),
            ("x-tenant-future-header", "1"),
            ("x-mesh-caller", "root"),
            ("x-asap-token", "t"),
            ("x-tenancy", "stays"),
            ("x-meshes", "stays"),
            ("authorization", "Bearer user"),
            ("traceparent", "00-1"),
        ]);
        strip_reserved(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "traceparent", "x-meshes", "x-tenancy"]);
    }

    #[test]
    fn the_token_is_x_asap_token_and_else_a_bearer() {
        let (token_, held_by) = token_of(&[("x-asap-token", "mesh"), ("authorization", "Bearer user")]);
        assert_eq!((token_.as_str(), held_by), ("mesh", ASAP_TOKEN));
        let (token_, held_by) = token_of(&[("authorization", "bEaReR outside")]);
        assert_eq!((token_.as_str(), held_by), ("outside", header::AUTHORIZATION));
        assert_eq!(token_of(&[("authorization", "Basic dXNlcg")]).0, "missing");
        assert_eq!(token_of(&[("x-asap-token", "a"), ("x-asap-token", "b")]).0, "many");
        assert_eq!(token_of(&[]).0, "missing");
    }

    fn token_of(pairs: &[(&'static str, &'static str)]) -> (String, HeaderName) {
        let headers = map(pairs);
        let (token, held_by) = token(&headers);
        let text = match token {
            Token::Missing => "missing".to_owned(),
            Token::Ambiguous => "many".to_owned(),
            Token::One(token) => token.to_owned(),
        };
        (text, held_by)
    }

    #[test]
    fn a_request_id_is_taken_over_only_when_it_has_the_form_of_one() {
        assert!(foreign_request_id(&map(&[("x-mesh-request-id", "0198-abc")])).is_some());
        assert!(foreign_request_id(&map(&[("x-mesh-request-id", "a b")])).is_none());
        assert!(foreign_request_id(&map(&[("x-mesh-request-id", "a"), ("x-mesh-request-id", "b")])).is_none());
        assert!(foreign_request_id(&HeaderMap::new()).is_none());
        assert_ne!(new_request_id(), new_request_id());
    }
}
