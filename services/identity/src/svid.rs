//! SVIDs of services for operators who debug. Never reads the clock.

use std::sync::Arc;

use mesh_identity::Peer;
use tenon_proto::identity::v1::{IssueResponse, IssueSvidRequest};
use tonic::Status;

use crate::authority::Authority;

/// `IssueSvid`.
pub(crate) async fn issue(
    _authority: &Arc<Authority>,
    _operator: &Peer,
    _request: IssueSvidRequest,
    _now: u64,
) -> Result<IssueResponse, Status> {
    Err(Status::unimplemented("not served"))
}
