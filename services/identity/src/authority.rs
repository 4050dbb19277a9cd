//! What the identity service decides: who gets which certificate, and in which order things become true.
//!
//! Never reads the clock, and knows of gRPC no more than the status of a refusal.

use std::sync::Arc;

use bytes::Bytes;
use journal::{AppendError, Journal, OpenError, Position, Publisher, ReadError};
use mesh_config::names::ServiceName;
use mesh_identity::{Identity, OperatorRole, Peer, SpiffeId, TrustBundle};
use tenon_proto::identity::v1::{AsapKey, Key};
use tenon_proto::kind;
use tonic::Status;
use zeroize::Zeroizing;

use crate::audit::{Audit, AuditError, Event};
use crate::ca::{self, OPERATOR_LIFETIME, SVID_LIFETIME};
use crate::csr::CsrError;
use crate::keys::{KeyStoreError, Keys, ServiceKey, UnfitKey};
use crate::limits::{Limited, Limits, Settings};
use crate::oidc::{Attested, Attestors};
use crate::operators::{self, OperatorError, Roles};
use crate::registry::{self, BadName, Holding, Registry};
use crate::revocations::{RevocationStoreError, Revocations, Selector};
use crate::svid::{self, Lent};
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
    /// Who lives, and what each of them holds.
    pub registry: Registry,
    /// Journal of the kind "trust_bundle".
    pub bundles: Arc<dyn Journal>,
    /// Held by the one step of a rotation that is being done.
    pub rotating: tokio::sync::Mutex<()>,
    pub attestors: Attestors,
    pub transactions: Transactions,
    pub lent: Lent,
    pub roles: Roles,
}

/// What attests a process that has no certificate yet.
#[derive(Clone, Copy)]
pub(crate) enum Proof<'a> {
    JoinToken(&'a str),
    /// A token of the platform.
    Oidc(&'a str),
}

/// What a process asks for, as it sent it.
pub(crate) struct Asked {
    /// PKCS#10, DER.
    pub csr: Bytes,
    pub asap_key: Option<AsapKey>,
    /// Names the instance; empty for one that has no name.
    pub instance: String,
}

/// What a process asks for that has proved to be `service`, checked.
struct Admitting {
    service: ServiceName,
    csr: Csr,
    key: ServiceKey,
    instance: Option<String>,
}

impl Admitting {
    fn parse(asked: Asked, service: &ServiceName) -> Result<Self, AdmitError> {
        let (csr, key) = (Csr::parse(&asked.csr)?, ServiceKey::parse(asked.asap_key, service)?);
        Ok(Self { service: service.clone(), csr, key, instance: Registry::name(asked.instance)? })
    }
}

/// A service's new certificate, and where its key stands.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub issued: Issued,
    /// What goes with it: it has the root of the certificate.
    pub bundle: TrustBundle,
    /// Followers of the kind "key" at this position have the service's ASAP key.
    pub key: Position,
}

impl Admitted {
    /// What the one who gets it will hold.
    fn holding(&self) -> Holding {
        let issuing = self.issued.chain.get(1).map(|issuing| ca::sha256(issuing));
        Holding {
            issuing_authority: issuing.map(|hash| Bytes::copy_from_slice(&hash)).unwrap_or_default(),
            svid_not_after: self.issued.not_after,
            sequence: self.bundle.rotation().sequence,
        }
    }
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
    Instance(#[from] BadName),
    #[error(transparent)]
    Limited(#[from] Limited),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(
        "the certificate was given to an operator and is not renewed: ask for another one with `tenon identity svid`"
    )]
    Lent,
    /// Refused before it comes here, unless it was revoked since.
    #[error("{0} is revoked: another operator must lift that first (`tenon identity revoke --lift`)")]
    Revoked(Selector),
    #[error(transparent)]
    Operator(#[from] OperatorError),
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
    #[error("the instances that live cannot be read from the store")]
    Registry(#[from] ReadError),
}

/// Why there is no join token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateTokenError {
    #[error("a join token may live for {MAX_TTL} s at most, and {0} s were asked for")]
    Ttl(u32),
    #[error("{0} is revoked: lift that first (`tenon identity revoke --lift --service {0}`)")]
    Revoked(ServiceName),
    #[error("{0} makes its own certificate and joins by no token: who could be it could be anybody")]
    Own(ServiceName),
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
        publishers: Vec<Publisher>,
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
            registry: Registry::open(journal(registry::KIND)?, publishers).await?,
            bundles: journal(kind::TRUST_BUNDLE)?,
            rotating: tokio::sync::Mutex::default(),
            attestors: Attestors::default(),
            transactions: Transactions::default(),
            lent: Lent::new(journal(svid::KIND)?),
            roles: Roles::new(journal(operators::KIND)?),
        })
    }

    /// A first certificate for whoever has a join token or a token of its platform.
    ///
    /// The certificate is signed before the token is consumed, so a token is never spent on a request that cannot be
    /// granted; the token is consumed before the key is recorded, so that of two holders of one token only the first
    /// gets a key into the repository; and nothing is answered before both are durable. When the key was not
    /// recorded, the token is given back. Whoever never got the answer may ask again for the same public key.
    pub(crate) async fn attest(&self, proof: Proof<'_>, asked: Asked, now: u64) -> Result<Admitted, AdmitError> {
        let join_token = match proof {
            Proof::JoinToken(token) => token,
            Proof::Oidc(token) => return self.attest_platform(token, asked, now).await,
        };
        let token = match self.tokens.look_up(join_token, now).await {
            Err(TokenError::Used) => {
                let by = Csr::parse(&asked.csr)?.holder();
                self.tokens.look_up_again(join_token, &by, now).await?
            }
            found => found?,
        };
        let admitting = Admitting::parse(asked, &token.service)?;
        self.keys.check(&admitting.key).await?;
        let (issued, bundle) = self.issue(&admitting, now)?;

        let consumed = self.tokens.consume(token, &admitting.csr.holder(), now).await?;
        let recorded = async {
            let position = self.keys.confirm(&admitting.key, now).await?;
            self.record("attest", "join-token", &admitting, &issued)?;
            Ok(position)
        };
        match recorded.await {
            Ok(key) => Ok(self.attested(admitting, Admitted { issued, bundle, key }, now).await),
            // The key may be in the repository: the token stays that of its holder, who may ask again.
            Err(error @ AdmitError::Keys(KeyStoreError::Write(AppendError::Unconfirmed(_)))) => Err(error),
            Err(error) => {
                self.give_back(consumed, &admitting.service).await;
                Err(error)
            }
        }
    }

    /// The same for a token of the platform, which is not spent by it.
    async fn attest_platform(&self, oidc_token: &str, asked: Asked, now: u64) -> Result<Admitted, AdmitError> {
        let whom = asked.asap_key.as_ref().and_then(|key| key.kid.split_once('/')).map_or("", |(issuer, _)| issuer);
        let Attested { service, attestor } =
            self.attestors.attest(oidc_token, whom, now).await.map_err(Status::from)?;
        let admitting = Admitting::parse(asked, &service)?;
        let (issued, bundle) = self.issue(&admitting, now)?;
        let key = self.keys.confirm(&admitting.key, now).await?;
        self.record("attest", &attestor, &admitting, &issued)?;
        Ok(self.attested(admitting, Admitted { issued, bundle, key }, now).await)
    }

    async fn attested(&self, admitting: Admitting, admitted: Admitted, now: u64) -> Admitted {
        let Admitting { service, instance, key, .. } = admitting;
        let name = instance.unwrap_or_else(|| Registry::unnamed(&admitted.issued.serial));
        self.registry.attested(&service, &name, admitted.holding(), key.kid().as_str(), now).await;
        admitted
    }

    /// The next certificate of a service that has proved with its present one, `peer`'s, who it is.
    pub(crate) async fn renew(
        &self,
        service: &ServiceName,
        peer: &Peer,
        asked: Asked,
        now: u64,
    ) -> Result<Admitted, AdmitError> {
        if self.lent.has(&peer.serial).await.map_err(KeyStoreError::from)? {
            return Err(AdmitError::Lent);
        }
        let admitting = Admitting::parse(asked, service)?;
        let (issued, bundle) = self.issue(&admitting, now)?;
        let key = self.keys.confirm(&admitting.key, now).await?;
        self.record("renew", "svid", &admitting, &issued)?;
        let admitted = Admitted { issued, bundle, key };
        let (given, kid) = (admitted.holding(), admitting.key.kid().as_str());
        match &admitting.instance {
            Some(name) => self.registry.renewed(service, name, None, given, kid, now).await,
            None => {
                let name = Registry::unnamed(&admitted.issued.serial);
                let before = Registry::unnamed(&peer.serial);
                self.registry.renewed(service, &name, Some(&before), given, kid, now).await;
            }
        }
        Ok(admitted)
    }

    /// The next certificate of an operator, with the role of the present one, or the one that an admin gave since if that is
    /// less. Operators are people: no instance, no ASAP key.
    pub(crate) async fn renew_operator(&self, peer: &Peer, csr: &[u8], now: u64) -> Result<Admitted, AdmitError> {
        let (id, present) = (&peer.id, peer.role.unwrap_or(OperatorRole::Viewer));
        let csr = Csr::parse(csr)?;
        let name = id.operator_name().unwrap_or_default();
        let whose = format!("operator/{name}");
        let _held = self.revocations.hold().await;
        if self.revocations.names_operator(name) {
            return Err(AdmitError::Revoked(Selector::Operator(name.to_owned())));
        }
        let most = self.roles.most(name).await.map_err(KeyStoreError::from)?;
        let role = most.map_or(present, |most| present.min(most));
        self.limits.take(&whose, now)?;
        let issued = self.ca.issue_to_operator(&csr, id, role, OPERATOR_LIFETIME, now)?;
        let (serial, not_after) = (issued.serial.as_str(), issued.not_after);
        let attested_by = Some("svid");
        self.audit.record(Event::Issue {
            method: "renew",
            service: &whose,
            serial,
            not_after,
            kid: None,
            attested_by,
        })?;
        tracing::info!(method = "renew", operator = %id, %role, serial, not_after, "certificate issued");
        Ok(Admitted { issued, bundle: self.ca.bundle(), key: Position::ZERO })
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
        if self.identity.service() == Some(service) {
            return Err(CreateTokenError::Own(service.clone()));
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

    /// A certificate, and the bundle that it belongs to: at least what was trusted when it was signed.
    fn issue(&self, admitting: &Admitting, now: u64) -> Result<(Issued, TrustBundle), AdmitError> {
        let Admitting { service, csr, .. } = admitting;
        self.limits.take(service.as_str(), now)?;
        let id = SpiffeId::service(self.ca.trust_domain().clone(), service.clone());
        let issued = self.ca.issue(csr, &id, SVID_LIFETIME, now)?;
        Ok((issued, self.ca.bundle()))
    }

    /// One line in the log and one in the audit log for each certificate, before anybody has it.
    fn record(
        &self,
        method: &'static str,
        attested_by: &str,
        admitting: &Admitting,
        issued: &Issued,
    ) -> Result<(), AuditError> {
        let (serial, not_after, kid) = (issued.serial.as_str(), issued.not_after, admitting.key.kid().as_str());
        let (service, attested_by) = (admitting.service.as_str(), Some(attested_by));
        self.audit.record(Event::Issue { method, service, serial, not_after, kid: Some(kid), attested_by })?;
        let instance = admitting.instance.as_deref();
        tracing::info!(method, service, instance, serial, not_after, kid, "certificate issued");
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
