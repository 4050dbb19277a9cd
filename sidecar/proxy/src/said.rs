//! What a request's head says to the mesh, read in one pass: each look-up by name hashes that name.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use mesh_asap::{BearerError, bearer};
use sidecar_core::{Named, Token};

use crate::headers::{self, ASAP_TOKEN, REQUEST_ID, TENANT_ID, TENANT_REVISION};

/// The values of one header name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Values<'h> {
    first: Option<&'h HeaderValue>,
    several: bool,
}

impl<'h> Values<'h> {
    fn add(&mut self, value: &'h HeaderValue) {
        self.several = self.first.is_some();
        self.first.get_or_insert(value);
    }

    /// The first one, as it is.
    pub fn first(self) -> Option<&'h HeaderValue> {
        self.first
    }

    /// How often the name stands there, and with what text.
    pub fn named(self) -> Named<'h> {
        match self.first {
            None => Named::None,
            Some(_) if self.several => Named::Many,
            Some(value) => Named::One(value.to_str().unwrap_or_default()),
        }
    }
}

/// All headers of a request that the mesh looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said<'h> {
    pub tenant_id: Values<'h>,
    pub tenant_host: Values<'h>,
    pub tenant_revision: Values<'h>,
    pub txn_token: Values<'h>,
    pub grpc_timeout: Values<'h>,
    content_type: Values<'h>,
    asap_token: Values<'h>,
    request_id: Values<'h>,
    authorization: bool,
    host: bool,
    /// Others that belong to the mesh.
    reserved: bool,
}

/// What has to go before a request goes on.
#[derive(Clone, Copy, Debug)]
pub struct Stale {
    tenant_id: bool,
    keeps_tenant: bool,
    tenant_revision: bool,
    reserved: bool,
    host: bool,
}

impl<'h> Said<'h> {
    /// Reads a head.
    pub fn of(headers: &'h HeaderMap) -> Self {
        let mut said = Self::default();
        for (name, value) in headers {
            match name.as_str() {
                "x-tenant-id" => said.tenant_id.add(value),
                "x-tenant-revision" => said.tenant_revision.add(value),
                "x-asap-token" => said.asap_token.add(value),
                "x-mesh-request-id" => said.request_id.add(value),
                "txn-token" => said.txn_token.add(value),
                "grpc-timeout" => said.grpc_timeout.add(value),
                "content-type" => said.content_type.add(value),
                "authorization" => said.authorization = true,
                "host" => said.host = true,
                "x-tenant-host" => {
                    said.tenant_host.add(value);
                    said.reserved = true;
                }
                other => said.reserved |= headers::is_reserved(other),
            }
        }
        said
    }

    /// Whether the answer must be a gRPC one.
    pub fn is_grpc(&self) -> bool {
        self.content_type.first.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
    }

    /// The ASAP token: `x-asap-token` between sidecars; where that is absent, `authorization: Bearer` (ASAP A13) of the same
    /// `headers`. Says also which header held it.
    pub fn token(&self, headers: &'h HeaderMap) -> (Token<'h>, HeaderName) {
        match self.asap_token.first {
            Some(_) if self.asap_token.several => return (Token::Ambiguous, ASAP_TOKEN),
            Some(value) => return (Token::One(value.as_bytes()), ASAP_TOKEN),
            None if !self.authorization => return (Token::Missing, header::AUTHORIZATION),
            None => {}
        }
        // Some other scheme is the app's own affair: it is no token, and says nothing about one.
        let token = match bearer(headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes)) {
            Ok(token) => Token::One(token.as_bytes()),
            Err(BearerError::Missing) => Token::Missing,
            Err(BearerError::Malformed) => Token::Ambiguous,
        };
        (token, header::AUTHORIZATION)
    }

    /// `Some("")` where the revision stands several times or is not text: that is none, and refused as such.
    pub fn revision(&self) -> Option<&'h str> {
        match self.tenant_revision.named() {
            Named::None => None,
            Named::One(revision) => Some(revision),
            Named::Many => Some(""),
        }
    }

    /// The request id of another sidecar, when it has the form of one.
    pub fn foreign_request_id(&self) -> Option<HeaderValue> {
        let id = self.request_id.first.filter(|_| !self.request_id.several)?;
        // To the end whatever comes: then the compiler looks at many bytes at once.
        let letters =
            id.as_bytes().iter().fold(true, |so_far, byte| so_far & (byte.is_ascii_alphanumeric() | (*byte == b'-')));
        ((1..=64).contains(&id.len()) && letters).then(|| headers::never_indexed(id.clone()))
    }

    /// What of the head must not go on as it is, when the tenant is `tenant`.
    pub fn stale(&self, tenant: Option<&str>) -> Stale {
        let keeps_tenant = tenant.is_some_and(|tenant| self.tenant_id.named() == Named::One(tenant));
        Stale {
            tenant_id: self.tenant_id.first.is_some() && !keeps_tenant,
            keeps_tenant,
            tenant_revision: self.tenant_revision.first.is_some(),
            reserved: self.reserved,
            host: self.host,
        }
    }
}

impl Stale {
    /// The tenant's id stands there already, once.
    pub fn keeps_tenant(self) -> bool {
        self.keeps_tenant
    }

    /// Removes every header that belongs to the mesh, but a tenant's id that may stay, and the token and the request id, which
    /// whoever calls this writes or removes.
    pub fn strip(self, headers: &mut HeaderMap) {
        if self.reserved {
            headers::strip(headers, |name| *name != TENANT_ID && *name != ASAP_TOKEN && *name != REQUEST_ID);
        } else if self.tenant_revision {
            headers.remove(TENANT_REVISION);
        }
        if self.tenant_id {
            headers.remove(TENANT_ID);
        }
    }

    /// Removes `host` too: the authority is the callee's name, and another one is nobody's.
    pub fn strip_with_host(self, headers: &mut HeaderMap) {
        self.strip(headers);
        if self.host {
            headers.remove(header::HOST);
        }
    }
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
    fn the_names_read_are_those_that_are_written() {
        for (name, read) in [
            (TENANT_ID, (|said: &Said<'_>| said.tenant_id.named() == Named::One("v")) as fn(&Said<'_>) -> bool),
            (HeaderName::from_static("x-tenant-host"), |said| said.tenant_host.named() == Named::One("v")),
            (TENANT_REVISION, |said| said.revision() == Some("v")),
            (HeaderName::from_static("txn-token"), |said| said.txn_token.named() == Named::One("v")),
            (ASAP_TOKEN, |said| said.asap_token.named() == Named::One("v")),
            (REQUEST_ID, |said| said.foreign_request_id().is_some_and(|id| id == "v")),
            (HeaderName::from_static("grpc-timeout"), |said| said.grpc_timeout.named() == Named::One("v")),
        ] {
            let mut headers = HeaderMap::new();
            assert!(!read(&Said::of(&headers)));
            headers.insert(name.clone(), HeaderValue::from_static("v"));
            assert!(read(&Said::of(&headers)), "{name}");
            headers.append(name.clone(), HeaderValue::from_static("v"));
            assert!(!read(&Said::of(&headers)), "{name}");
        }
    }

    #[test]
    fn the_tenants_id_stays_where_it_is_this_tenants_alone() {
        for (given, tenant, stays) in [
            (&["acme"][..], Some("acme"), true),
            (&["acme"], Some("evil"), false),
            (&["acme", "acme"], Some("acme"), false),
            (&["acme"], None, false),
            (&[], Some("acme"), false),
        ] {
            for more in [&[][..], &[("x-mesh-caller", "root"), ("x-tenant-future", "1"), ("x-tenant-host", "h")]] {
                let mut headers = map(&[("x-tenant-revision", "1.1"), ("accept", "stays"), ("host", "evil")]);
                headers.extend(map(more));
                for id in given {
                    headers.append(TENANT_ID, HeaderValue::from_static(id));
                }
                let stale = Said::of(&headers).stale(tenant);
                stale.strip_with_host(&mut headers);
                assert_eq!(
                    (headers.contains_key(TENANT_ID), stale.keeps_tenant()),
                    (stays, stays),
                    "{given:?} {tenant:?}"
                );
                assert_eq!(headers.len(), 1 + usize::from(stays), "{headers:?}");
            }
        }
    }

    #[test]
    fn the_token_is_x_asap_token_and_else_a_bearer() {
        let (token, held_by) = token_of(&[("x-asap-token", "mesh"), ("authorization", "Bearer user")]);
        assert_eq!((token.as_str(), held_by), ("mesh", ASAP_TOKEN));
        let (token, held_by) = token_of(&[("authorization", "bEaReR outside")]);
        assert_eq!((token.as_str(), held_by), ("outside", header::AUTHORIZATION));
        assert_eq!(token_of(&[("authorization", "Basic dXNlcg")]).0, "missing");
        assert_eq!(token_of(&[("x-asap-token", "a"), ("x-asap-token", "b")]).0, "many");
        assert_eq!(token_of(&[]).0, "missing");
    }

    fn token_of(pairs: &[(&'static str, &'static str)]) -> (String, HeaderName) {
        let headers = map(pairs);
        let (token, held_by) = Said::of(&headers).token(&headers);
        let text = match token {
            Token::Missing => "missing".to_owned(),
            Token::Ambiguous => "many".to_owned(),
            Token::One(token) => String::from_utf8(token.to_vec()).unwrap(),
        };
        (text, held_by)
    }

    #[test]
    fn a_request_id_is_taken_over_only_when_it_has_the_form_of_one() {
        let id = |pairs: &[(&'static str, &'static str)]| Said::of(&map(pairs)).foreign_request_id();
        assert!(id(&[("x-mesh-request-id", "0198-abc")]).is_some());
        assert!(id(&[("x-mesh-request-id", "a b")]).is_none());
        assert!(id(&[("x-mesh-request-id", "a"), ("x-mesh-request-id", "b")]).is_none());
        assert!(id(&[]).is_none());
    }
}
