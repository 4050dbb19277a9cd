//! `Revoke`, `LiftRevocation` and `ListRevocations`.

use std::sync::Arc;

use mesh_identity::Peer;
use tenon_proto::identity::v1::{LiftRevocationRequest, ListRevocationsResponse, RevokeRequest, RevokeResponse};
use tonic::Status;

use crate::authority::Authority;

/// `Revoke`.
pub(crate) async fn revoke(
    _authority: &Arc<Authority>,
    _operator: &Peer,
    _request: RevokeRequest,
    _now: u64,
) -> Result<RevokeResponse, Status> {
    Err(Status::unimplemented("not served"))
}

/// `LiftRevocation`.
pub(crate) async fn lift(
    _authority: &Arc<Authority>,
    _operator: &Peer,
    _request: LiftRevocationRequest,
    _now: u64,
) -> Result<RevokeResponse, Status> {
    Err(Status::unimplemented("not served"))
}

/// `ListRevocations`.
pub(crate) async fn list(_authority: &Arc<Authority>) -> Result<ListRevocationsResponse, Status> {
    Err(Status::unimplemented("not served"))
}
