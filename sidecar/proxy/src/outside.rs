//! Clients outside of the mesh, as the policy in force describes them: whose handshakes pass, and whose keys verify.
//!
//! All of this is off the path of the mesh's own calls. A caller from outside whose key is not known yet waits for its
//! key repository; nobody else does.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use mesh_asap::{Grant, Keys, Lookup, precheck};
use mesh_identity::{
    Identity,
    repository::{Repositories, Settings},
    tls::{Outsider, Outsiders},
};
use rustls::pki_types::CertificateDer;
use tenon_proto::policy::v1::ExternalClient;
use tokio::runtime::Handle;
use tracing::warn;

/// One client. Never changes: another description makes another one, with the same key repositories where those are the
/// same.
#[derive(Debug)]
pub struct Client {
    /// What rules call it.
    pub name: Arc<str>,
    /// `iss` of its tokens.
    pub issuer: Box<str>,
    /// Other subjects that its tokens may name (A12).
    pub grants: Vec<Grant>,
    /// Its public keys. They verify nobody else's tokens.
    pub repositories: Repositories,
    /// What it was made from.
    record: ExternalClient,
}

/// All clients of one service.
pub struct Clients {
    /// For handshakes.
    pub tls: Arc<Outsiders>,
    clients: ArcSwap<HashMap<Arc<str>, Arc<Client>>>,
    /// Where keys are fetched: not on a worker.
    runtime: Handle,
}

impl Clients {
    /// None yet. Keys will be fetched on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self { tls: Arc::default(), clients: ArcSwap::default(), runtime }
    }

    /// The client of this name, if the policy still has it.
    pub fn get(&self, name: &str) -> Option<Arc<Client>> {
        self.clients.load().get(name).cloned()
    }

    /// From now on these and nobody else. What is the same as before stays as it is, with the keys that are known.
    pub fn set(&self, records: &[ExternalClient]) {
        let before = self.clients.load_full();
        if before.len() == records.len()
            && records.iter().all(|record| before.get(&*record.name).is_some_and(|client| client.record == *record))
        {
            return;
        }
        let (mut clients, mut outsiders) = (HashMap::new(), Vec::new());
        for record in records {
            match outsider(record).and_then(|tls| Ok((tls, self.client(record, before.get(&*record.name))?))) {
                Ok((tls, client)) => {
                    clients.insert(Arc::clone(&client.name), client);
                    outsiders.push(tls);
                }
                Err(error) => warn!(client = record.name, %error, "a client outside of the mesh is left out"),
            }
        }
        // Whoever gets through a handshake meanwhile and is not here yet is refused, not taken for somebody else.
        self.clients.store(Arc::new(clients));
        self.tls.set(outsiders);
    }

    fn client(&self, record: &ExternalClient, before: Option<&Arc<Client>>) -> Result<Arc<Client>, String> {
        if let Some(same) = before.filter(|client| client.record == *record) {
            return Ok(Arc::clone(same));
        }
        let same_keys = |other: &ExternalClient| {
            other.key_repositories == record.key_repositories && other.key_repository_ca == record.key_repository_ca
        };
        let repositories = match before.filter(|client| same_keys(&client.record)) {
            Some(client) => client.repositories.clone(),
            None => Repositories::new(settings(record), &self.runtime).map_err(|error| error.to_string())?,
        };
        let grant = |subject: &String| Grant { issuer: record.issuer.clone(), subject: subject.clone() };
        Ok(Arc::new(Client {
            name: record.name.as_str().into(),
            issuer: record.issuer.as_str().into(),
            grants: record.subjects.iter().map(grant).collect(),
            repositories,
            record: record.clone(),
        }))
    }
}

/// Whether the record describes a client; said before it is taken over, so that a bad one is refused with its policy.
///
/// # Errors
/// One line that says what is wrong.
pub fn check(record: &ExternalClient) -> Result<(), String> {
    if record.issuer.is_empty() {
        return Err(format!("outside client {} names no issuer", record.name));
    }
    outsider(record).map(drop)
}

fn outsider(record: &ExternalClient) -> Result<Outsider, String> {
    Outsider::new(&record.name, certificates(&record.ca), &record.certificate_names).map_err(|error| error.to_string())
}

fn settings(record: &ExternalClient) -> Settings {
    let settings = Settings::new(record.key_repositories.iter().cloned());
    if record.key_repository_ca.is_empty() {
        settings
    } else {
        settings.with_roots(certificates(&record.key_repository_ca))
    }
}

fn certificates(ders: &[bytes::Bytes]) -> Vec<CertificateDer<'static>> {
    ders.iter().map(|der| CertificateDer::from(der.to_vec())).collect()
}

impl Client {
    /// Waits for the key of this token, where it is not known yet and the token has nothing else against it that can be
    /// seen without a key: who cannot pass makes nobody fetch anything (A15).
    pub async fn wait_for_key(&self, identity: &Identity, token: &str, now: u64) {
        let Ok(token) = precheck(token) else { return };
        if token.issuer != self.issuer || identity.revoked().kids.contains(token.kid.as_str()) {
            return;
        }
        if let Lookup::Unavailable = self.repositories.cached(token.kid.as_str(), now) {
            self.repositories.ensure(&token.kid).await;
        }
    }
}

/// The keys of one client as they are known now; a revoked one is none.
pub struct KnownKeys<'a> {
    /// Whose.
    pub client: &'a Client,
    /// Which are revoked.
    pub identity: &'a Identity,
    /// Unix seconds.
    pub now: u64,
}

impl Keys for KnownKeys<'_> {
    fn get(&self, kid: &str) -> Lookup {
        // Looking a key up may start a fetch of it: a key that is somebody else's is not looked up.
        if self.identity.revoked().kids.contains(kid) || !belongs_to(kid, &self.client.issuer) {
            return Lookup::Unknown;
        }
        self.client.repositories.cached(kid, self.now)
    }
}

/// A5.
fn belongs_to(kid: &str, issuer: &str) -> bool {
    kid.strip_prefix(issuer).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests;
