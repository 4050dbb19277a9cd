//! The Txn-Token Service (draft-ietf-oauth-transaction-tokens): says for whom, for which tenant and to what purpose a
//! request from outside is served, in a token that stays the same through the whole chain of calls.
//!
//! Services ask with an RFC 8693 token exchange over mTLS (`endpoint.rs`), when their Route says that they may; operators
//! with an RPC. What a requester says of the subject and the tenant is believed: that is what the policy allows it. The
//! keys are `keys.rs`. Never reads the clock.
//!
//! A token is never exchanged for another one: a service passes on the one that it got.

mod endpoint;
mod error;
mod exchange;
mod keys;
mod serve;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use mesh_asap::{Expect, Grant, Kid, Lookup, PublicKey, SigningKey, txn, verify};
use mesh_config::names::{ServiceName, TenantId, control_plane};
use mesh_identity::Peer;
use serde_json::{Map, Value};
use tenon_proto::identity::v1::{IssueTransactionTokenRequest, IssueTransactionTokenResponse, Key, KeyUse};
use tonic::Status;
use uuid::{NoContext, Timestamp, Uuid};

use crate::audit::{AuditError, Event};
use crate::authority::Authority;
use crate::limits::{Limits, Rate, Settings};
use error::OAuthError;
use exchange::{Exchange, Scope, Subject, SubjectToken};

pub(crate) use endpoint::{AUTHORIZATION, route};
pub use keys::KeyFileError;
pub(crate) use keys::TRANSACTION_KID;
pub(crate) use serve::start;

/// A gateway asks once a request from outside; what it may not do is fill the audit log of all others.
const LIMITS: Settings =
    Settings { service: Rate { burst: 10_000, per_second: 2_000 }, all: Rate { burst: 40_000, per_second: 8_000 } };

/// What transaction tokens are made with.
pub(crate) struct Transactions {
    /// Absent until a key is published that every live instance has.
    signing: ArcSwapOption<SigningKey>,
    /// Which services may ask; see [`Self::follow`]. Absent: this process follows no policy, so none may.
    requesters: OnceLock<Box<MayAsk>>,
    limits: Limits,
}

type MayAsk = dyn Fn(&ServiceName) -> Option<bool> + Send + Sync;

impl Default for Transactions {
    fn default() -> Self {
        Self { signing: ArcSwapOption::empty(), requesters: OnceLock::new(), limits: Limits::new(LIMITS) }
    }
}

impl Transactions {
    /// From now on `may_ask` says which services may; None: nobody knows yet. Once a process.
    pub(crate) fn follow(&self, may_ask: impl Fn(&ServiceName) -> Option<bool> + Send + Sync + 'static) {
        let first = self.requesters.set(Box::new(may_ask)).is_ok();
        debug_assert!(first, "the requesters are followed once");
    }
}

/// What a token shall say, apart from what the service itself adds.
struct Wanted<'a> {
    /// The SPIFFE id of who asked.
    requester: &'a str,
    subject: &'a Subject,
    scope: &'a Scope,
    tenant: Option<&'a TenantId>,
    details: &'a Map<String, Value>,
    context: &'a Map<String, Value>,
}

/// A token that was signed.
struct Minted {
    token: String,
    /// Unix seconds.
    expires: u64,
}

#[derive(Debug, thiserror::Error)]
enum MintError {
    #[error("there is no key yet that every instance has: try again in a moment")]
    NoKey,
    #[error("request_details and request_context make a token longer than {} bytes", mesh_asap::MAX_TOKEN_BYTES)]
    Long,
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// Signs a token and writes it into the audit log, and gives none that does not stand there.
fn mint(authority: &Authority, wanted: &Wanted<'_>, now: u64) -> Result<Minted, MintError> {
    let key = authority.transactions.signing.load_full().ok_or(MintError::NoKey)?;
    let txn = Uuid::new_v7(Timestamp::from_unix(NoContext, now, 0)).to_string();
    let token = key.mint_transaction(
        &txn::NewToken {
            trust_domain: authority.ca.trust_domain().as_str(),
            txn: Some(&txn),
            subject: wanted.subject.as_str(),
            scope: wanted.scope.as_str(),
            tenant: wanted.tenant.map(TenantId::as_str),
            transaction_context: wanted.details,
            requester_context: wanted.context,
            requester: wanted.requester,
            lifetime_seconds: txn::LIFETIME_SECONDS,
        },
        now,
    );
    if token.len() > mesh_asap::MAX_TOKEN_BYTES {
        return Err(MintError::Long);
    }
    let expires = now + txn::LIFETIME_SECONDS;
    authority.audit.record(Event::TxnToken {
        by: wanted.requester,
        tenant: wanted.tenant.map_or("", TenantId::as_str),
        subject: wanted.subject.as_str(),
        scope: wanted.scope.as_str(),
        txn: &txn,
        expires,
    })?;
    Ok(Minted { token, expires })
}

/// The token exchange, for `peer` which has proved who it is. Refusals are in the audit log.
async fn exchange(authority: &Authority, peer: &Peer, form: &[u8], now: u64) -> Result<Minted, OAuthError> {
    let requester = peer.id.to_string();
    let outcome = exchange_unaudited(authority, peer, &requester, form, now).await;
    if let Err(refused) = &outcome {
        tracing::debug!(requester, error = refused.code, why = refused.description, "no transaction token");
        authority.audit.refused("token", Some(&requester), &refused.description);
    }
    outcome
}

async fn exchange_unaudited(
    authority: &Authority,
    peer: &Peer,
    requester: &str,
    form: &[u8],
    now: u64,
) -> Result<Minted, OAuthError> {
    let transactions = &authority.transactions;
    let service = peer.id.service_name().ok_or_else(OAuthError::invalid_client)?;
    match transactions.requesters.get().map_or(Some(false), |may_ask| may_ask(service)) {
        Some(true) => {}
        Some(false) => {
            let allow = format!("the mesh policy does not let {service} ask for transaction tokens");
            return Err(OAuthError::unauthorized_client(allow));
        }
        None => return Err(OAuthError::unavailable("the mesh policy is not known yet")),
    }
    if transactions.limits.take(service.as_str(), now).is_err() {
        return Err(OAuthError::slow_down("too many transaction tokens were asked for: try again in a second"));
    }
    let Exchange { scope, subject_token, details, tenant, context } =
        Exchange::parse(form, authority.ca.trust_domain())?;
    let (subject, allowed) = subject_of(authority, service, &subject_token, now).await?;
    if allowed.is_some_and(|allowed| !scope.is_within(&allowed)) {
        return Err(OAuthError::invalid_scope("scope is more than the subject token allows"));
    }
    let wanted = Wanted {
        requester,
        subject: &subject,
        scope: &scope,
        tenant: tenant.as_ref(),
        details: &details,
        context: &context,
    };
    mint(authority, &wanted, now).map_err(|error| match error {
        MintError::Long => OAuthError::invalid_request(error.to_string()),
        MintError::NoKey => OAuthError::unavailable(error.to_string()),
        MintError::Audit(_) => OAuthError::unavailable("the audit log cannot be written"),
    })
}

/// The subject, and the scope that its token limits the transaction to, if it does.
async fn subject_of(
    authority: &Authority,
    requester: &ServiceName,
    token: &SubjectToken,
    now: u64,
) -> Result<(Subject, Option<String>), OAuthError> {
    let verified;
    let claims = match token {
        SubjectToken::Unsigned(claims) => claims,
        SubjectToken::SelfSigned(token) => {
            verified = self_signed(authority, requester, token, now).await?;
            &verified
        }
    };
    let subject = claims.get("sub").and_then(Value::as_str).and_then(Subject::parse);
    let subject = subject.ok_or_else(|| {
        OAuthError::invalid_request("the subject token names no subject: `sub`, of at most 256 bytes")
    })?;
    match claims.get("scope") {
        None => Ok((subject, None)),
        Some(Value::String(scope)) => Ok((subject, Some(scope.clone()))),
        Some(_) => Err(OAuthError::invalid_request("the scope of the subject token is not a string")),
    }
}

/// The claims of a subject token that is an ASAP token of the requester's own, for this service, with any subject.
async fn self_signed(
    authority: &Authority,
    requester: &ServiceName,
    token: &str,
    now: u64,
) -> Result<Map<String, Value>, OAuthError> {
    let unfit = |why: &str| OAuthError::invalid_request(format!("the subject token is not good: {why}"));
    let claims = mesh_asap::inspect(token).map_err(|error| unfit(&error.to_string()))?;
    let kid = claims.header.get("kid").and_then(Value::as_str).unwrap_or_default();
    let key = authority.keys.find(kid).await.map_err(|_| OAuthError::unavailable("the keys cannot be read now"))?;
    let key = key.and_then(|key| usable(authority, &key));
    let lookup = |_: &str| key.clone().map_or(Lookup::Unknown, Lookup::Found);
    // It speaks for whomever it names: that is what asking for a transaction token is.
    let subject = claims.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    let grants = [Grant { issuer: requester.to_string(), subject: subject.to_owned() }];
    let mut expect = Expect::new(control_plane::IDENTITY, Some(requester.as_str()));
    expect.grants = &grants;
    verify(token, &expect, &lookup, now).map_err(|error| unfit(&error.to_string()))?;
    Ok(claims.claims)
}

/// An ASAP key, and one that nobody has revoked.
fn usable(authority: &Authority, key: &Key) -> Option<Arc<PublicKey>> {
    let kid: Kid = key.kid.parse().ok()?;
    if key.r#use() != KeyUse::Unspecified || authority.revocations.names_kid(&kid) {
        return None;
    }
    PublicKey::from_spki(&key.spki).ok().map(Arc::new)
}

/// `IssueTransactionToken`.
pub(crate) async fn issue(
    authority: &Arc<Authority>,
    operator: &Peer,
    request: IssueTransactionTokenRequest,
    now: u64,
) -> Result<IssueTransactionTokenResponse, Status> {
    let IssueTransactionTokenRequest { tenant, subject, scope } = request;
    let tenant = TenantId::try_from(tenant.as_str()).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let subject = Subject::parse(&subject)
        .ok_or_else(|| Status::invalid_argument("the subject must be one line of 1 to 256 bytes"))?;
    let scope = Scope::parse(&scope).ok_or_else(|| Status::invalid_argument(Scope::malformed().description))?;
    let requester = operator.id.to_string();
    let nothing = Map::new();
    let wanted = Wanted {
        requester: &requester,
        subject: &subject,
        scope: &scope,
        tenant: Some(&tenant),
        details: &nothing,
        context: &nothing,
    };
    let Minted { token, expires } = mint(authority, &wanted, now).map_err(|error| match error {
        MintError::Audit(_) => Status::resource_exhausted(error.to_string()),
        MintError::NoKey | MintError::Long => Status::unavailable(error.to_string()),
    })?;
    Ok(IssueTransactionTokenResponse { token, expires_unix_seconds: expires })
}

#[cfg(test)]
mod tests;
