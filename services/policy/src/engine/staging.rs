//! A policy that some instances have already: begun, completed, or given up.

use journal::{Journal, ReadError};
use mesh_config::Records;
use tenon_proto::policy::v1::Canary;

use super::{Author, Step};

/// Why a rollout ended that another policy has taken the place of.
pub(super) const GAVE_WAY: &str = "another policy was applied";

/// Puts what the canaries decide by into the records of the policy in force. Only what differs has a canary: services that are
/// new come with completion, and those that go stay until then.
pub(super) fn overlay(in_force: &mut Records, staged: &Records, canaries: &[String]) {
    for (service, policy) in &mut in_force.allowlists {
        if let Some(next) = staged.allowlists.get(service).filter(|next| *next != policy) {
            let canary = Canary { policy: Some(Box::new(next.clone())), instances: canaries.to_vec() };
            policy.canary = Some(Box::new(canary));
        }
    }
}

/// What the record `rollout` becomes when `step` ends the rollout that runs, of a caller that has not said it itself.
pub(super) async fn ended(
    _sources: &dyn Journal,
    _step: &Step<'_>,
    _author: &Author,
) -> Result<Option<Vec<u8>>, ReadError> {
    Ok(None)
}
