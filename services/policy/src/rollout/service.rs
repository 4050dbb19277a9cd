//! What operators are answered. The work is done on its own: a client that goes away must not stop it halfway.

use std::sync::Arc;

use tenon_proto::policy::v1::{ApplyResponse, RolloutResponse};
use tonic::Status;

use super::{BeginError, Begun, ChoiceError, EndError, Proposed, Rollouts};
use crate::service::{answer, unreadable};

/// Begins a rollout.
pub(crate) async fn begin(rollouts: Arc<Rollouts>, proposed: Proposed) -> Result<ApplyResponse, Status> {
    let begun = to_end(async move { rollouts.begin(proposed).await }).await?;
    match begun {
        Ok(Begun::Staged(applied)) => answer(Ok(applied)),
        Ok(Begun::AtOnce(applied)) => {
            let said = "no service's policy changes, so there is nothing to try: applied everywhere at once".to_owned();
            Ok(ApplyResponse { said, ..answer(Ok(applied))? })
        }
        Err(BeginError::Apply(error)) => answer(Err(error)),
        Err(BeginError::Choice(error @ ChoiceError::Nobody)) => Err(Status::failed_precondition(error.to_string())),
        Err(BeginError::Choice(
            error @ (ChoiceError::Percent(_) | ChoiceError::UnknownService(_) | ChoiceError::UntouchedService(_)),
        )) => Err(Status::invalid_argument(error.to_string())),
    }
}

/// Completes a rollout, or gives it up.
pub(crate) async fn end(
    rollouts: Arc<Rollouts>,
    complete: bool,
    operator: String,
    note: String,
) -> Result<RolloutResponse, Status> {
    match to_end(async move { rollouts.end(complete, &operator, note).await }).await? {
        Ok(status) => Ok(RolloutResponse { rollout: Some(status) }),
        Err(error @ EndError::None) => Err(Status::failed_precondition(error.to_string())),
        Err(EndError::Read(error)) => Err(unreadable(&error)),
        Err(EndError::Apply(error)) => match answer(Err(error)) {
            Err(status) => Err(status),
            Ok(_) => Err(Status::aborted("the policy was changed meanwhile: look at it again")),
        },
    }
}

async fn to_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(|error| {
        tracing::error!(%error, "a rollout failed");
        Status::internal("the rollout failed: see the log of the policy service")
    })
}
