//! Which instances of the mesh live, and what each of them holds. Never reads the clock.

use std::sync::Arc;

use mesh_identity::Peer;
use tenon_proto::identity::v1::{ConfirmRequest, ConfirmResponse};
use tonic::Status;

use crate::authority::Authority;

/// `Confirm`.
pub(crate) async fn confirm(
    _authority: &Arc<Authority>,
    _peer: &Peer,
    _request: ConfirmRequest,
    _now: u64,
) -> Result<ConfirmResponse, Status> {
    Err(Status::unimplemented("not served"))
}
