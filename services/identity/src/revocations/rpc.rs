//! `Revoke`, `LiftRevocation` and `ListRevocations`.

use std::sync::Arc;

use journal::AppendError;
use mesh_identity::Peer;
use tenon_proto::identity::v1::{Key, LiftRevocationRequest, ListRevocationsResponse, RevokeRequest, RevokeResponse};
use tonic::Status;

use super::{RevocationStoreError, Selector, SelectorError};
use crate::audit::Event;
use crate::authority::Authority;
use crate::service::{store_failed, store_full};

/// `Revoke`. The revocation counts from the moment at which it is durable; that it deletes keys, and is in the audit log,
/// comes after that and cannot undo it.
pub(crate) async fn revoke(
    authority: &Arc<Authority>,
    operator: &Peer,
    request: RevokeRequest,
    now: u64,
) -> Result<RevokeResponse, Status> {
    let selector = Selector::to_revoke(&request)?;
    if let Selector::Serial(serial) = &selector {
        let own = authority.identity.svid();
        if *serial == own.serial() {
            return Err(SelectorError::ControlPlane(format!("the certificate with serial {serial}")).into());
        }
        if *serial == operator.serial {
            let text = "this is the certificate that you are calling with: let another operator revoke it";
            return Err(Status::failed_precondition(text));
        }
    }
    if matches!(&selector, Selector::Operator(name) if operator.id.operator_name() == Some(name)) {
        let text = "this is the name that you are calling with: let another operator revoke it";
        return Err(Status::failed_precondition(text));
    }
    let (authority, by) = (Arc::clone(authority), operator.id.to_string());
    // To its end even when the caller goes away.
    let work = tokio::spawn(async move {
        let key_known = knows_key(&authority, &selector).await;
        let position = match authority.revocations.revoke(&selector, &by, &request.reason, now).await {
            Ok(position) => position,
            Err(error) => {
                // In force for followers and here, though a crash may undo it.
                if error.is_unconfirmed()
                    && let Ok(Some(revision)) = authority.revocations.revision(&selector).await
                {
                    let _logged = complete(&authority, &selector, &by, &request.reason, revision).await;
                }
                return Err(error.into());
            }
        };
        let revision = position.revision;
        let deleted = complete(&authority, &selector, &by, &request.reason, revision).await;
        // After it counts: the audit log may be gigabytes long.
        let known = key_known && is_audited(&authority, &selector).await;
        let warning = match (deleted, known) {
            (Err(warning), _) => warning,
            (Ok(()), false) => unknown(&selector),
            (Ok(()), true) => String::new(),
        };
        Ok(RevokeResponse { epoch: position.epoch, revision, warning })
    });
    work.await.map_err(|_| Status::internal("revoking failed; the log of the identity service says why"))?
}

/// What follows from a revocation that is in force: its keys go, and it is in the logs.
async fn complete(
    authority: &Authority,
    selector: &Selector,
    by: &str,
    reason: &str,
    revision: u64,
) -> Result<(), String> {
    let deleted = delete_keys(authority, selector).await;
    let what = selector.to_string();
    authority.audit.note(Event::Revoke { by, what: &what, reason, revision });
    tracing::warn!(by, what, reason, revision, "revoked");
    deleted
}

/// `LiftRevocation`.
pub(crate) async fn lift(
    authority: &Arc<Authority>,
    operator: &Peer,
    request: LiftRevocationRequest,
    _now: u64,
) -> Result<RevokeResponse, Status> {
    let selector = Selector::to_lift(&request)?;
    let (what, by) = (selector.to_string(), operator.id.to_string());
    let none = || Status::not_found(format!("{what} is not revoked: `tenon identity revoke --list` shows what is"));
    authority.revocations.catch_up().await?;
    if !authority.revocations.names(&selector) {
        return Err(none());
    }
    authority.audit.record(Event::Lift { by: &by, what: &what })?;
    let authority = Arc::clone(authority);
    let work = tokio::spawn(async move { authority.revocations.lift(&selector).await });
    let lifted =
        work.await.map_err(|_| Status::internal("lifting failed; the log of the identity service says why"))?;
    let position = lifted?.ok_or_else(none)?;
    tracing::warn!(by, what, revision = position.revision, "revocation lifted");
    Ok(RevokeResponse { epoch: position.epoch, revision: position.revision, warning: String::new() })
}

/// `ListRevocations`.
pub(crate) async fn list(authority: &Authority) -> Result<ListRevocationsResponse, Status> {
    authority.revocations.catch_up().await?;
    Ok(ListRevocationsResponse { revocations: authority.revocations.all() })
}

/// Whether there is a key of what is to be revoked; said of operators and certificates too. When that cannot be found
/// out, there is.
async fn knows_key(authority: &Authority, selector: &Selector) -> bool {
    let (issuer, id) = match selector {
        Selector::Service(service) => (Some(service.as_str()), None),
        Selector::Kid(kid) => (None, Some(kid.as_str())),
        Selector::Operator(_) | Selector::Serial(_) => return true,
    };
    let is_it = |key: &Key| issuer == Some(&*key.issuer) || id == Some(&*key.kid);
    authority.keys.list().await.map_or(true, |keys| keys.iter().any(is_it))
}

/// Whether a certificate was ever issued, or an operator ever did anything; said of all else too. When that cannot be
/// found out, so it was.
async fn is_audited(authority: &Arc<Authority>, selector: &Selector) -> bool {
    let (authority, selector) = (Arc::clone(authority), selector.clone());
    let search = tokio::task::spawn_blocking(move || match &selector {
        Selector::Service(_) | Selector::Kid(_) => Ok(true),
        Selector::Operator(name) => authority.audit.names_operator(name),
        Selector::Serial(serial) => authority.audit.names_serial(serial),
    });
    search.await.map_or(true, |found| found.unwrap_or(true))
}

fn unknown(selector: &Selector) -> String {
    match selector {
        Selector::Service(service) => {
            format!("no key of {service} is known: is the name right? (Of an ExternalClient none ever is.)")
        }
        Selector::Operator(name) => {
            format!("nothing that an operator {name} did stands in the audit log: is the name right?")
        }
        Selector::Kid(kid) => {
            format!(
                "no key {kid} is known: is the kid right? `tenon identity keys` lists them, but those of ExternalClients"
            )
        }
        Selector::Serial(serial) => {
            format!("no certificate {serial} stands in the audit log: is the serial right?")
        }
    }
}

/// Deletes the keys that nobody may use any more. What is left when that fails goes with the next pruning, and is not
/// served meanwhile.
async fn delete_keys(authority: &Authority, selector: &Selector) -> Result<(), String> {
    let deleted = match selector {
        Selector::Service(service) => authority.keys.delete(|key| key.issuer == service.as_str()).await,
        Selector::Kid(kid) => authority.keys.delete(|key| key.kid == kid.as_str()).await,
        Selector::Operator(_) | Selector::Serial(_) => return Ok(()),
    };
    match deleted {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = crate::service::with_source(&error);
            tracing::error!(error = text, "keys of what was revoked could not be deleted");
            Err(format!("it is revoked, but its keys may still be listed, and go later: {text}"))
        }
    }
}

impl From<SelectorError> for Status {
    fn from(error: SelectorError) -> Self {
        match error {
            SelectorError::ControlPlane(_) => Self::failed_precondition(error.to_string()),
            SelectorError::Nothing
            | SelectorError::Service(_)
            | SelectorError::Operator(_)
            | SelectorError::Kid(_)
            | SelectorError::Serial
            | SelectorError::Reason => Self::invalid_argument(error.to_string()),
        }
    }
}

impl From<RevocationStoreError> for Status {
    fn from(error: RevocationStoreError) -> Self {
        match error {
            RevocationStoreError::Write(AppendError::Full(_)) => store_full(&error),
            RevocationStoreError::Damaged(_) | RevocationStoreError::Read(_) | RevocationStoreError::Write(_) => {
                store_failed(&error)
            }
        }
    }
}
