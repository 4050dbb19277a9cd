//! Certificates of operators, each with a role. Never reads the clock.

use std::time::Duration;

use mesh_identity::{OperatorRole, Peer, SpiffeId};
use tenon_proto::identity::v1::IssueOperatorRequest;

use crate::Csr;
use crate::audit::Event;
use crate::authority::{AdmitError, Admitted, Authority};
use crate::revocations::Selector;

/// Life of a certificate for which no other is asked, in seconds.
const DEFAULT_TTL: u32 = 86_400;
/// The longest life, in seconds: that of the issuing CA.
const MAX_TTL: u32 = 30 * 86_400;

/// Why there is no such operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    #[error("{0:?} is no role of an operator, expected viewer, operator or admin")]
    Role(String),
    #[error("{0:?} is no name of an operator: {1}")]
    Name(String, mesh_identity::SpiffeIdError),
    #[error("a certificate of an operator may live for {MAX_TTL} s at most, and {0} s were asked for")]
    Ttl(u32),
}

/// `IssueOperator`. In the audit log, with the name of the admin, before anybody has it.
pub(crate) async fn issue(
    authority: &Authority,
    admin: &Peer,
    request: &IssueOperatorRequest,
    now: u64,
) -> Result<Admitted, AdmitError> {
    let IssueOperatorRequest { name, role, csr, ttl_seconds } = request;
    let role: OperatorRole = role.parse().map_err(|_| OperatorError::Role(role.clone()))?;
    let id = SpiffeId::operator(authority.ca.trust_domain().clone(), name)
        .map_err(|error| OperatorError::Name(name.clone(), error))?;
    let ttl = if *ttl_seconds == 0 { DEFAULT_TTL } else { *ttl_seconds };
    if ttl > MAX_TTL {
        return Err(OperatorError::Ttl(ttl).into());
    }
    let csr = Csr::parse(csr)?;
    let _held = authority.revocations.hold().await;
    if authority.revocations.names_operator(name) {
        return Err(AdmitError::Revoked(Selector::Operator(name.clone())));
    }
    authority.limits.take(&format!("operator/{name}"), now)?;
    let issued = authority.ca.issue_to_operator(&csr, &id, role, Duration::from_secs(ttl.into()), now)?;
    let (by, serial, not_after) = (admin.id.to_string(), issued.serial.as_str(), issued.not_after);
    authority.audit.record(Event::Operator { by: &by, operator: name, role: role.as_str(), serial, not_after })?;
    tracing::warn!(by, operator = name, %role, serial, not_after, "certificate of an operator issued");
    Ok(Admitted { issued, bundle: authority.ca.bundle(), key: journal::Position::ZERO })
}
