//! The repository's own certificate: with DNS and IP names, below the mesh's root, replaced while it is in use.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use mesh_identity::clock;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{default_provider, sign};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;

use super::RepositoryError;
use crate::ServerCertificate;
use crate::audit::Event;
use crate::authority::Authority;

/// A day: clients check it against the root alone, and nobody revokes it.
const LIFETIME: Duration = Duration::from_secs(86_400);
/// How often to look whether it is time. The machine may have slept, so no long timer is trusted.
const LOOK: Duration = Duration::from_secs(60);

/// The certificate as it is shown now.
#[derive(Debug)]
pub(super) struct Certificate {
    names: Vec<String>,
    shown: ArcSwap<CertifiedKey>,
    facts: Mutex<Facts>,
}

#[derive(Debug, Clone, Copy)]
struct Facts {
    not_before: u64,
    not_after: u64,
    /// SHA-256 of the certificate that signed it.
    issuer: Option<[u8; 32]>,
}

impl Certificate {
    /// A first one.
    pub(super) fn issue(authority: &Authority, names: Vec<String>) -> Result<Self, RepositoryError> {
        let (key, facts) = make(authority, &names, clock::unix_seconds())?;
        Ok(Self { names, shown: ArcSwap::new(key), facts: Mutex::new(facts) })
    }

    fn renew(&self, authority: &Authority, now: u64) -> Result<(), RepositoryError> {
        let (key, facts) = make(authority, &self.names, now)?;
        self.shown.store(key);
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts;
        Ok(())
    }

    /// At half of its life, and when another authority issues: the one that signed it may soon be trusted no longer.
    fn is_due(&self, authority: &Authority, now: u64) -> bool {
        let Facts { not_before, not_after, issuer } = *self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let issues = authority.identity.bundle().rotation().issuing_authority;
        now >= not_before.midpoint(not_after) || (issues.is_some() && issues != issuer)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }
}

fn make(authority: &Authority, names: &[String], now: u64) -> Result<(Arc<CertifiedKey>, Facts), RepositoryError> {
    let ServerCertificate { chain, key_pkcs8, serial, not_after } = authority.ca.issue_server(names, LIFETIME, now)?;
    let issuer = chain.get(1).map(fingerprint);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.as_slice()));
    let key = CertifiedKey::new(chain, sign::any_supported_type(&key)?);
    let service = names.join(" ");
    // It grants nothing to anybody, and without it nobody could look at anything.
    authority.audit.note(Event::Issue {
        method: "own",
        service: &service,
        serial: &serial,
        not_after,
        kid: None,
        attested_by: None,
    });
    tracing::info!(method = "own", names = service, serial, not_after, "certificate of the key repository issued");
    Ok((Arc::new(key), Facts { not_before: now, not_after, issuer }))
}

fn fingerprint(der: &CertificateDer<'_>) -> [u8; 32] {
    digest::digest(&digest::SHA256, der).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// TLS 1.3, no client certificate, no session that outlives a renewal; HTTP/2 or HTTP/1.1.
pub(super) fn tls(certificate: Arc<Certificate>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// Replaces the certificate whenever it is due. What cannot be made is tried again; the old one is shown meanwhile.
pub(super) async fn keep_renewed(
    certificate: Arc<Certificate>,
    authority: Arc<Authority>,
    shutdown: CancellationToken,
) {
    let mut changes = authority.identity.changes();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = changes.changed() => {}
            () = shutdown.cancelled() => return,
        }
        let now = clock::unix_seconds();
        if certificate.is_due(&authority, now)
            && let Err(error) = certificate.renew(&authority, now)
        {
            tracing::error!(error = crate::service::with_source(&error), "the key repository has no new certificate");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
