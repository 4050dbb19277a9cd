//! Certificates of operators, each with a role. Never reads the clock.

use std::sync::Arc;
use std::time::Duration;

use journal::{Journal, ReadError, Write};
use mesh_identity::{OperatorRole, Peer, SpiffeId};
use prost::Message as _;
use tenon_proto::identity::v1::IssueOperatorRequest;

use crate::Csr;
use crate::audit::Event;
use crate::authority::{AdmitError, Admitted, Authority};
use crate::keys::KeyStoreError;
use crate::revocations::Selector;

/// Life of a certificate for which no other is asked, in seconds.
const DEFAULT_TTL: u32 = 86_400;
/// The longest life, in seconds: that of the issuing CA.
const MAX_TTL: u32 = 30 * 86_400;

/// Kind of the journal that keeps the roles that operators were given last, by name. Never replicated.
pub(crate) const KIND: &str = "operator";

/// The role that each operator was given last. A certificate that is older and has a higher one is not renewed with it: its
/// holder would keep, for ever, what an admin took.
pub(crate) struct Roles(Arc<dyn Journal>);

/// A role as it was given. Field numbers are never used again.
#[derive(Clone, PartialEq, prost::Message)]
struct Given {
    /// As it stands in the certificate.
    #[prost(string, tag = "1")]
    role: String,
    /// When it was issued.
    #[prost(uint64, tag = "2")]
    at_unix_seconds: u64,
}

impl Roles {
    pub(crate) fn new(journal: Arc<dyn Journal>) -> Self {
        Self(journal)
    }

    /// The highest role that a certificate of `name` is renewed with; `None` for one whom no admin has made here, such as
    /// whoever runs `tenon up`. What cannot be read as a role is the least one, as in a certificate.
    pub(crate) async fn most(&self, name: &str) -> Result<Option<OperatorRole>, ReadError> {
        let given = self.0.get(name).await?.map(|record| Given::decode(record.value).unwrap_or_default());
        Ok(given.map(|given| given.role.parse().unwrap_or(OperatorRole::Viewer)))
    }

    async fn give(&self, name: &str, role: OperatorRole, now: u64) -> Result<(), KeyStoreError> {
        let given = Given { role: role.as_str().to_owned(), at_unix_seconds: now };
        self.0.append(vec![Write::put(name, given.encode_to_vec())]).await?;
        Ok(())
    }
}

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
    // First, and durable: nobody holds the new certificate while the old one can still be renewed with more.
    authority.roles.give(name, role, now).await?;
    let (by, serial, not_after) = (admin.id.to_string(), issued.serial.as_str(), issued.not_after);
    authority.audit.record(Event::Operator { by: &by, operator: name, role: role.as_str(), serial, not_after })?;
    tracing::warn!(by, operator = name, %role, serial, not_after, "certificate of an operator issued");
    Ok(Admitted { issued, bundle: authority.ca.bundle(), key: journal::Position::ZERO })
}
