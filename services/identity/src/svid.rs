//! SVIDs of services for operators who debug. Never reads the clock.

use std::sync::Arc;
use std::time::Duration;

use journal::{Journal, ReadError, Record, Write};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Peer, SpiffeId};
use tenon_proto::identity::v1::{IssueResponse, IssueSvidRequest};
use tonic::Status;

use crate::Csr;
use crate::audit::Event;
use crate::authority::{AdmitError, Authority};
use crate::keys::{KeyStoreError, ServiceKey};

/// Life of a certificate whose operator names none, in seconds.
const DEFAULT_TTL: u32 = 900;
/// The longest life, in seconds: that of any service's.
const MAX_TTL: u32 = 3_600;

/// Kind of the journal that keeps the serials of such certificates. Never replicated.
pub(crate) const KIND: &str = "lent_svid";

/// The certificates that operators were given and that have not ended. None of them is renewed: it would be one of the
/// service's own then, for ever, and no operator's name beside it.
pub(crate) struct Lent(Arc<dyn Journal>);

impl Lent {
    pub(crate) fn new(journal: Arc<dyn Journal>) -> Self {
        Self(journal)
    }

    pub(crate) async fn has(&self, serial: &str) -> Result<bool, ReadError> {
        Ok(self.0.get(serial).await?.is_some())
    }

    async fn add(&self, serial: &str, not_after: u64, now: u64) -> Result<(), KeyStoreError> {
        let ended = |lent: &Record| lent.value[..].try_into().is_ok_and(|end| now > u64::from_be_bytes(end));
        let records = self.0.snapshot().await?.records.into_iter();
        let mut writes: Vec<_> = records.filter(ended).map(|lent| Write::delete(lent.key)).collect();
        writes.push(Write::put(serial, not_after.to_be_bytes().to_vec()));
        self.0.append(writes).await?;
        Ok(())
    }
}

/// `IssueSvid`. In the audit log, with the operator's name, before the operator has it.
pub(crate) async fn issue(
    authority: &Arc<Authority>,
    operator: &Peer,
    request: IssueSvidRequest,
    now: u64,
) -> Result<IssueResponse, Status> {
    let by = operator.id.to_string();
    // To its end even when the caller goes away.
    let work = {
        let (authority, by) = (Arc::clone(authority), by.clone());
        tokio::spawn(async move { issue_for(&authority, &by, request, now).await })
    };
    let outcome =
        work.await.map_err(|_| Status::internal("issuing failed; the log of the identity service says why"))?;
    if let Err(status) = &outcome {
        authority.audit.refused("IssueSvid", Some(&by), status.message());
    }
    outcome
}

async fn issue_for(
    authority: &Authority,
    by: &str,
    request: IssueSvidRequest,
    now: u64,
) -> Result<IssueResponse, Status> {
    let IssueSvidRequest { service, csr, ttl_seconds, asap_key } = request;
    let ttl = if ttl_seconds == 0 { DEFAULT_TTL } else { ttl_seconds };
    if ttl > MAX_TTL {
        return Err(Status::invalid_argument(format!(
            "an SVID may live for {MAX_TTL} s at most, and {ttl} s were asked for"
        )));
    }
    let service =
        ServiceName::try_from(service.as_str()).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if service.as_str().starts_with(control_plane::PREFIX) {
        return Err(Status::failed_precondition(format!(
            "{service} belongs to the control plane: who could be it could be anybody. Operators have an SVID of their \
             own for the control plane's RPCs"
        )));
    }
    if authority.revocations.names_service(&service) {
        let text =
            format!("{service} is revoked: lift that first (`tenon identity revoke --lift --service {service}`)");
        return Err(Status::failed_precondition(text));
    }
    let csr = Csr::parse(&csr)?;
    let key = asap_key.map(|key| ServiceKey::parse(Some(key), &service)).transpose().map_err(AdmitError::from)?;
    authority.limits.take(service.as_str(), now)?;
    let id = SpiffeId::service(authority.ca.trust_domain().clone(), service.clone());
    let issued = authority.ca.issue(&csr, &id, Duration::from_secs(ttl.into()), now)?;
    authority.lent.add(&issued.serial, issued.not_after, now).await?;
    let position = match &key {
        Some(key) => Some(authority.keys.confirm(key, now).await?),
        None => None,
    };

    let (serial, not_after) = (issued.serial.as_str(), issued.not_after);
    let kid = key.as_ref().map(|key| key.kid().as_str());
    authority.audit.record(Event::Svid { by, service: service.as_str(), serial, not_after, kid })?;
    tracing::warn!(by, %service, serial, not_after, kid, "certificate of a service issued to an operator");
    Ok(IssueResponse {
        chain: issued.chain.iter().map(|der| der.to_vec().into()).collect(),
        trust_bundle: Some(authority.ca.bundle().to_proto()),
        key_epoch: position.map_or(0, |position| position.epoch),
        key_revision: position.map_or(0, |position| position.revision),
    })
}
