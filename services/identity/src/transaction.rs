//! The Txn-Token Service (draft-ietf-oauth-transaction-tokens). Never reads the clock.

use std::sync::Arc;

use mesh_identity::Peer;
use tenon_proto::identity::v1::{IssueTransactionTokenRequest, IssueTransactionTokenResponse};
use tonic::Status;

use crate::authority::Authority;

/// What transaction tokens are made with.
#[derive(Default)]
pub(crate) struct Transactions {}

/// `IssueTransactionToken`.
pub(crate) async fn issue(
    _authority: &Arc<Authority>,
    _operator: &Peer,
    _request: IssueTransactionTokenRequest,
    _now: u64,
) -> Result<IssueTransactionTokenResponse, Status> {
    Err(Status::unimplemented("not served"))
}
