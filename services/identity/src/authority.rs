//! What the identity service decides: who gets which certificate, and in which order things become true.
//!
//! Never reads the clock, and knows of gRPC no more than the status of a refusal.

use std::sync::Arc;

use journal::{Journal, OpenError, Position};
use mesh_config::names::ServiceName;
use mesh_identity::{Identity, SpiffeId};
use tenon_proto::identity::v1::{AsapKey, Key};
use tenon_proto::kind;
use tonic::Status;
use zeroize::Zeroizing;

use crate::audit::{Audit, AuditError, Event};
use crate::ca::SVID_LIFETIME;
use crate::csr::CsrError;
use crate::keys::{KeyStoreError, Keys, ServiceKey, UnfitKey};
use crate::limits::{Limited, Limits, Settings};
use crate::oidc::{Attested, Attestors};
use crate::revocations::{RevocationStoreError, Revocations};
use crate::tokens::{self, Consumed, DEFAULT_TTL, JoinTokens, MAX_TTL, TokenError};
use crate::transaction::Transactions;
use crate::{Ca, Csr, IssueError, Issued};

/// All parts of the service. One a process, shared by its RPCs and its tasks.
pub(crate) struct Authority {
    pub ca: Arc<Ca>,
    /// This process's own, live.
    pub identity: Arc<Identity>,
    pub tokens: JoinTokens,
    pub keys: Keys,
    pub revocations: Arc<Revocations>,
    /// Whoever grants something records it here first.
    pub audit: Audit,
    /// Asked before each certificate, once it is proved for whom.
    pub limits: Limits,
    pub attestors: Attestors,
    #[expect(dead_code, reason = "no transaction token is made yet")]
    pub transactions: Transactions,
}

/// What attests a process that has no certificate yet.
#[derive(Clone, Copy)]
pub(crate) enum Proof<'a> {
    JoinToken(&'a str),
    /// A token of the platform.
    Oidc(&'a str),
}

/// A service's new certificate, and where its key stands.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub issued: Issued,
    /// Followers of the kind "key" at this position have the service's ASAP key.
    pub key: Position,
}

/// Why there is no certificate. Its text may be told to the caller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    UnfitKey(#[from] UnfitKey),
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Limited(#[from] Limited),
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The platform's token attests nobody; the status says why.
    #[error("{}", .0.message())]
    Platform(#[from] Status),
}

/// Why the parts cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    #[error(transparent)]
    Journal(#[from] OpenError),
    #[error(transparent)]
    Revocations(#[from] RevocationStoreError),
}

/// Why there is no join token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateTokenError {
    #[error("a join token may live for {MAX_TTL} s at most, and {0} s were asked for")]
    Ttl(u32),
    #[error("{0} is revoked: lift that first (`tenon identity revoke --lift --service {0}`)")]
    Revoked(ServiceName),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl Authority {
    /// Over its journals, by kind. From now on `identity` refuses whom the journals say is revoked.
    pub(crate) async fn open(
        ca: Arc<Ca>,
        identity: Arc<Identity>,
        audit: Audit,
        journal: impl Fn(&'static str) -> Result<Arc<dyn Journal>, OpenError>,
    ) -> Result<Self, AuthorityError> {
        let live = Arc::clone(&identity);
        let apply = move |revoked| live.set_revoked(revoked);
        let revocations = Arc::new(Revocations::open(journal(kind::REVOCATION)?, apply).await?);
        Ok(Self {
            ca,
            identity,
            tokens: JoinTokens::new(journal(tokens::KIND)?),
            keys: Keys::new(journal(kind::KEY)?, Arc::clone(&revocations)),
            revocations,
            audit,
            limits: Limits::new(Settings::default()),
            attestors: Attestors::default(),
            transactions: Transactions::default(),
        })
    }

    /// A first certificate for whoever has a join token or a token of its platform.
    ///
    /// The certificate is signed before the token is consumed, so a token is never spent on a request that cannot be
    /// granted; the token is consumed before the key is recorded, so that of two holders of one token only the first
    /// gets a key into the repository; and nothing is answered before both are durable. When the key cannot be
    /// recorded, the token is given back.
    pub(crate) async fn attest(
        &self,
        proof: Proof<'_>,
        csr: &[u8],
        asap_key: Option<AsapKey>,
        now: u64,
    ) -> Result<Admitted, AdmitError> {
        let join_token = match proof {
            Proof::JoinToken(token) => token,
            Proof::Oidc(token) => return self.attest_platform(token, csr, asap_key, now).await,
        };
        let token = self.tokens.look_up(join_token, now).await?;
        let service = token.service.clone();
        let (csr, key) = (Csr::parse(csr)?, ServiceKey::parse(asap_key, &service)?);
        self.keys.check(&key).await?;
        let issued = self.issue(&csr, &service, now)?;

        let consumed = self.tokens.consume(token, now).await?;
        match self.keys.confirm(&key, now).await {
            Ok(position) => match self.record("attest", "join-token", &service, &issued, &key) {
                Ok(()) => Ok(Admitted { issued, key: position }),
                Err(error) => {
                    self.give_back(consumed, &service).await;
                    Err(error.into())
                }
            },
            Err(error) => {
                self.give_back(consumed, &service).await;
                Err(error.into())
            }
        }
    }

    /// The same for a token of the platform, which is not spent by it.
    async fn attest_platform(
        &self,
        oidc_token: &str,
        csr: &[u8],
        asap_key: Option<AsapKey>,
        now: u64,
    ) -> Result<Admitted, AdmitError> {
        let asked = asap_key.as_ref().and_then(|key| key.kid.split_once('/')).map_or("", |(issuer, _)| issuer);
        let Attested { service, attestor } =
            self.attestors.attest(oidc_token, asked, now).await.map_err(Status::from)?;
        let (csr, key) = (Csr::parse(csr)?, ServiceKey::parse(asap_key, &service)?);
        let issued = self.issue(&csr, &service, now)?;
        let position = self.keys.confirm(&key, now).await?;
        self.record("attest", &attestor, &service, &issued, &key)?;
        Ok(Admitted { issued, key: position })
    }

    /// The next certificate of a service that has proved with its present one who it is.
    pub(crate) async fn renew(
        &self,
        service: &ServiceName,
        csr: &[u8],
        asap_key: Option<AsapKey>,
        now: u64,
    ) -> Result<Admitted, AdmitError> {
        let (csr, key) = (Csr::parse(csr)?, ServiceKey::parse(asap_key, service)?);
        let issued = self.issue(&csr, service, now)?;
        let position = self.keys.confirm(&key, now).await?;
        self.record("renew", "svid", service, &issued, &key)?;
        Ok(Admitted { issued, key: position })
    }

    /// A token for `service` and its end, Unix seconds. `ttl` of 0 is the usual life. `by` is the operator.
    pub(crate) async fn create_join_token(
        &self,
        by: &str,
        service: &ServiceName,
        ttl: u32,
        now: u64,
    ) -> Result<(Zeroizing<String>, u64), CreateTokenError> {
        let ttl = if ttl == 0 { DEFAULT_TTL } else { ttl };
        if ttl > MAX_TTL {
            return Err(CreateTokenError::Ttl(ttl));
        }
        if self.revocations.names_service(service) {
            return Err(CreateTokenError::Revoked(service.clone()));
        }
        let (token, expires) = self.tokens.create(service, ttl, now).await?;
        self.audit.record(Event::JoinToken { by, service: service.as_str(), expires })?;
        Ok((token, expires))
    }

    pub(crate) async fn list_keys(&self) -> Result<Vec<Key>, KeyStoreError> {
        self.keys.list().await
    }

    fn issue(&self, csr: &Csr, service: &ServiceName, now: u64) -> Result<Issued, AdmitError> {
        self.limits.take(service.as_str(), now)?;
        let id = SpiffeId::service(self.ca.trust_domain().clone(), service.clone());
        Ok(self.ca.issue(csr, &id, SVID_LIFETIME, now)?)
    }

    /// One line in the log and one in the audit log for each certificate, before anybody has it.
    fn record(
        &self,
        method: &'static str,
        attested_by: &str,
        service: &ServiceName,
        issued: &Issued,
        key: &ServiceKey,
    ) -> Result<(), AuditError> {
        let (serial, not_after, kid) = (issued.serial.as_str(), issued.not_after, key.kid().as_str());
        let (service, attested_by) = (service.as_str(), Some(attested_by));
        self.audit.record(Event::Issue { method, service, serial, not_after, kid: Some(kid), attested_by })?;
        tracing::info!(method, service, serial, not_after, kid, "certificate issued");
        Ok(())
    }

    async fn give_back(&self, token: Consumed, service: &ServiceName) {
        if let Err(error) = self.tokens.release(token).await {
            tracing::warn!(%service, %error, "a join token was spent on an attestation that failed: make another one");
        }
    }
}

#[cfg(test)]
mod tests;
