//! `Decisions`: what this sidecar remembers of calls that it refused, or that audit mode let pass.

use sidecar_core::Reason;
use tenon_proto::admin::v1::{DecisionsRequest, DecisionsResponse};
use tonic::Status;

use crate::{decisions::Wanted, live::Live};

/// So many are told where nobody says how many; and at most. One takes up to five kilobytes.
const USUAL: u32 = 100;
const MOST: u32 = 500;

/// # Errors
/// INVALID_ARGUMENT names the field.
pub(super) fn decisions(live: &Live, instance: String, request: DecisionsRequest) -> Result<DecisionsResponse, Status> {
    let DecisionsRequest { request_id, reason, tenant, caller, limit } = request;
    if !reason.is_empty() && reason.parse::<Reason>().is_err() {
        return Err(Status::invalid_argument(format!("reason: {reason:?} is none; docs/life-of-a-call.md has them")));
    }
    if limit > MOST {
        return Err(Status::invalid_argument(format!("limit: expected {MOST} at most")));
    }
    let most = if limit == 0 { USUAL } else { limit } as usize;
    let wanted = Wanted { request_id, reason, tenant, caller };
    let (mut decisions, more) = live.decisions.latest(&wanted, most);
    decisions.iter_mut().for_each(|decision| decision.instance.clone_from(&instance));
    let remembered = u32::try_from(live.decisions.remembered()).unwrap_or(u32::MAX);
    Ok(DecisionsResponse { decisions, more, remembered })
}
