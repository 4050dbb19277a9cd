//! Two Envoys that do what two sidecars do as far as Envoy can: TLS 1.3 with certificates on both sides, a token of the
//! caller that the callee verifies and remembers, and rules by SPIFFE id and path. They know nothing of tenants.

use std::{net::SocketAddr, path::Path};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_asap::SigningKey;
use mesh_identity::{
    clock,
    testing::{Ca, Leaf},
};
use serde_json::json;

use crate::{
    CALLER,
    envoy::{Caller, Envoy, Form, Proxy, rbac},
};

const DOMAIN: &str = "bench.example";

/// What both pairs prove themselves with: P-256 certificates and an ES256 token, as sidecars do.
pub struct Credentials<'a> {
    dir: &'a Path,
    token: String,
    key_set: String,
}

impl<'a> Credentials<'a> {
    /// Writes certificates and keys into `dir`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(dir: &'a Path) -> anyhow::Result<Self> {
        let ca = Ca::new(DOMAIN);
        let pem = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
        std::fs::write(dir.join("root.pem"), pem("CERTIFICATE", ca.root()))?;
        for service in [CALLER, "media"] {
            let (chain, key) = ca.certificate(&Leaf::uri(&ca.id(service).to_string()));
            let chain: String = chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
            std::fs::write(dir.join(format!("{service}.pem")), chain)?;
            std::fs::write(dir.join(format!("{service}.key")), pem("PRIVATE KEY", &key))?;
        }
        let key = SigningKey::generate(CALLER)?;
        let spki = key.public_spki();
        // It ends with the uncompressed point (RFC 5480): 4, x, y.
        let point = spki.last_chunk::<64>().context("a P-256 key")?;
        let [x, y] = [&point[..32], &point[32..]].map(|part| URL_SAFE_NO_PAD.encode(part));
        let public = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": key.kid().as_str(), "x": x, "y": y});
        let key_set = json!({"keys": [public]}).to_string();
        Ok(Self { dir, token: key.mint("media", clock::unix_seconds(), 3_600), key_set })
    }

    /// One side of TLS: `service` shows its certificate and wants one of `peer`.
    fn tls(&self, service: &str, peer: &str, message: &str, more: &str) -> String {
        let dir = self.dir.display();
        format!(
            "{{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{message}, {more}\
             common_tls_context: {{alpn_protocols: [h2], \
             tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
             tls_certificates: [{{certificate_chain: {{filename: {dir}/{service}.pem}}, \
             private_key: {{filename: {dir}/{service}.key}}}}], \
             validation_context: {{trusted_ca: {{filename: {dir}/root.pem}}, \
             match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"spiffe://{DOMAIN}/svc/{peer}\"}}}}]}}}}}}"
        )
    }

    fn authentication(&self) -> String {
        format!(
            "{{name: jwt, typed_config: {{\
             \"@type\": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication, \
             providers: {{asap: {{issuer: {CALLER}, audiences: [media], local_jwks: {{inline_string: '{}'}}, \
             jwt_cache_config: {{jwt_cache_size: 100}}}}}}, \
             rules: [{{match: {{prefix: /}}, requires: {{provider_name: asap}}}}]}}}}",
            self.key_set
        )
    }
}

/// A running pair; ends with this.
pub struct EnvoyPair {
    caller: Envoy,
    callee: Envoy,
}

impl EnvoyPair {
    /// Starts it with rules for these paths.
    ///
    /// # Errors
    /// There is no Envoy, or one does not listen.
    pub fn start(form: Form, paths: &[String], with: &Credentials<'_>, app: SocketAddr) -> anyhow::Result<Self> {
        let id = format!("spiffe://{DOMAIN}/svc/{CALLER}");
        let callee = Envoy::start(&format!("callee-{form:?}"), with.dir, |listen| {
            let filters = vec![with.authentication(), rbac(form, Caller::Certificate(&id), paths)];
            let tls = with.tls("media", CALLER, "DownstreamTlsContext", "require_client_certificate: true, ");
            let proxy = Proxy { listen, tls: Some(tls), filters, adds_header: None, upstream: app, upstream_tls: None };
            proxy.configuration()
        })?;
        let token = format!("Bearer {}", with.token);
        let caller = Envoy::start(&format!("caller-{form:?}"), with.dir, |listen| {
            let tls = with.tls(CALLER, "media", "UpstreamTlsContext", "");
            let adds_header = Some(("authorization", token.as_str()));
            let (upstream, upstream_tls) = (callee.address, Some(tls));
            Proxy { listen, tls: None, filters: Vec::new(), adds_header, upstream, upstream_tls }.configuration()
        })?;
        Ok(Self { caller, callee })
    }

    pub fn address(&self) -> SocketAddr {
        self.caller.address
    }

    pub fn pids(&self) -> Vec<u32> {
        vec![self.caller.pid(), self.callee.pid()]
    }
}
