//! Header hygiene: what a request may carry across each border of the mesh (DESIGN §3).

use std::{cell::RefCell, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, uri};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use sidecar_core::Named;

pub const TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
pub const TENANT_REVISION: HeaderName = HeaderName::from_static("x-tenant-revision");
pub const TENANT_CONTEXT: HeaderName = HeaderName::from_static("x-tenant-context-bin");
pub const ASAP_TOKEN: HeaderName = HeaderName::from_static("x-asap-token");
pub const CALLER: HeaderName = HeaderName::from_static("x-mesh-caller");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-mesh-request-id");
/// `1`: whoever answers so is sure that nothing of the call reached the app. Between sidecars only.
pub const UNSENT: HeaderName = HeaderName::from_static("x-mesh-unsent");
/// The reason of a refusal by the callee's own sidecar. Between sidecars only.
pub const REFUSED: HeaderName = HeaderName::from_static("x-mesh-refused");
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Everything with these prefixes belongs to the mesh.
const RESERVED: [&str; 3] = ["x-tenant-", "x-mesh-", "x-asap-"];

/// Removes every header that belongs to the mesh.
pub fn strip_reserved(headers: &mut HeaderMap) {
    strip(headers, |_| true);
}

/// Removes those that belong to the mesh and go.
pub fn strip(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    // Taken out one at a time: a name is a reference count, and there are few of them on an ordinary call.
    while let Some(name) = headers.keys().find(|name| is_reserved(name.as_str()) && goes(name)).cloned() {
        headers.remove(name);
    }
}

/// Whether a header of this name belongs to the mesh.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with("x-") && RESERVED.iter().any(|prefix| name.starts_with(prefix))
}

/// How often a name stands there.
pub fn named<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Named<'a> {
    Named::from_values(headers.get_all(name).iter().map(|value| value.to_str().ok()))
}

thread_local! {
    /// Ids must differ, and need not be hard to guess: no call pays for cryptography here.
    static RANDOM: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Bytes that are hard to repeat, and need not be hard to guess.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    RANDOM.with_borrow_mut(|random| random.fill_bytes(&mut bytes));
    bytes
}

/// The id of a request that came at this time since 1970: UUID v7, so that ids sort by time.
pub fn new_request_id(at: Duration) -> HeaderValue {
    let milliseconds = u64::try_from(at.as_millis()).unwrap_or_default();
    let random: [u8; 10] = random();
    let mut buffer = uuid::Uuid::encode_buffer();
    let id = uuid::Builder::from_unix_timestamp_millis(milliseconds, &random).into_uuid();
    let text = id.hyphenated().encode_lower(&mut buffer);
    let none = || HeaderValue::from_static("00000000-0000-7000-8000-000000000000");
    never_indexed(HeaderValue::from_str(text).unwrap_or_else(|_| none()))
}

/// For values between sidecars that differ from call to call, or from tenant to tenant. In HPACK's dynamic table, which
/// forgets its oldest entries first, they would push out the token, and h2 compares a value with all others of its name.
/// Towards the app there is no token, and a table is worth having for tenants that come often (docs/performance.md).
pub fn never_indexed(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
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
    fn no_two_request_ids_are_the_same() {
        assert_ne!(new_request_id(Duration::ZERO), new_request_id(Duration::ZERO));
    }
}
