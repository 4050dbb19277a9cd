//! `Confirm`.

use std::sync::Arc;

use mesh_identity::Peer;
use tenon_proto::identity::v1::{ConfirmRequest, ConfirmResponse};
use tonic::Status;

use super::{BadName, Instance, Registry};
use crate::authority::{AdmitError, Authority};
use crate::keys::ServiceKey;

/// Publishes the key if it is new, notes what the instance has, and says how far the key has come.
pub(crate) async fn confirm(
    authority: &Arc<Authority>,
    peer: &Peer,
    request: ConfirmRequest,
    now: u64,
) -> Result<ConfirmResponse, Status> {
    let service = peer.id.service_name().ok_or_else(|| Status::permission_denied("only services confirm"))?;
    let ConfirmRequest { asap_key, instance, issuing_authority, svid_not_after_unix_seconds: not_after, leaving } =
        request;
    let name = Registry::name(instance)?.unwrap_or_else(|| Registry::unnamed(&peer.serial));
    if ![0, 32].contains(&issuing_authority.len()) {
        return Err(Status::invalid_argument("issuing_authority is a SHA-256, of 32 bytes"));
    }
    if leaving {
        authority.registry.left(service, &name).await;
        return Ok(ConfirmResponse::default());
    }
    let key = ServiceKey::parse(asap_key, service).map_err(AdmitError::from)?;
    let position = authority.keys.confirm(&key, now).await?;
    let registry = &authority.registry;
    registry.confirmed(service, &name, issuing_authority, not_after, key.kid().as_str(), now);

    let counts = |instance: &Instance| !authority.is_revoked(instance);
    let behind = registry.behind_with_keys(authority.ca.trust_domain(), position, now, counts);
    if behind == 0 {
        registry.signs_with(service, &name, key.kid().as_str(), now);
    }
    Ok(ConfirmResponse {
        key_epoch: position.epoch,
        key_revision: position.revision,
        behind: u32::try_from(behind).unwrap_or(u32::MAX),
    })
}

impl From<BadName> for Status {
    fn from(error: BadName) -> Self {
        Self::invalid_argument(error.to_string())
    }
}
