//! Rotations of roots, issuing CAs and ASAP keys, step by step. Never reads the clock.

use std::sync::Arc;

use mesh_identity::Peer;
use tenon_proto::identity::v1::{RotateRequest, RotateResponse};
use tonic::Status;

use crate::authority::Authority;

/// `Rotate`.
pub(crate) async fn rotate(
    _authority: &Arc<Authority>,
    _operator: &Peer,
    _request: RotateRequest,
    _now: u64,
) -> Result<RotateResponse, Status> {
    Err(Status::unimplemented("not served"))
}
