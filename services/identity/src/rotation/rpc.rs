//! `Rotate`.

use std::io::ErrorKind;
use std::sync::Arc;

use mesh_identity::Peer;
use tenon_proto::identity::v1::{RotateRequest, RotateResponse};
use tonic::Status;

use super::StepError;
use crate::authority::Authority;
use crate::ca::{CaError, RotateError};
use crate::service::{store_failed, store_full, with_source};

/// Runs to its end even when the caller goes away.
pub(crate) async fn rotate(
    authority: &Arc<Authority>,
    operator: &Peer,
    request: RotateRequest,
    now: u64,
) -> Result<RotateResponse, Status> {
    let step = request.step();
    if i32::from(step) != request.step {
        return Err(Status::invalid_argument("there is no such step"));
    }
    let (authority, by) = (Arc::clone(authority), operator.id.clone());
    let done = tokio::spawn(async move { authority.rotate(&by, step, now).await });
    Ok(done.await.unwrap_or(Err(StepError::Gone))?)
}

impl From<StepError> for Status {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Rotate(RotateError::Busy) => Self::aborted(error.to_string()),
            StepError::Rotate(RotateError::OutOfTurn(_)) => Self::failed_precondition(error.to_string()),
            StepError::Rotate(RotateError::Ca(error)) => error.into(),
            StepError::Keys(error) => error.into(),
            StepError::Audit(error) => error.into(),
            StepError::Publish(error) if error.disk_is_full() => store_full(&error),
            StepError::Publish(error) => store_failed(&error),
            StepError::Read(_) => store_failed(&error),
            StepError::Gone => Self::internal(error.to_string()),
        }
    }
}

impl From<CaError> for Status {
    fn from(error: CaError) -> Self {
        let text = with_source(&error);
        tracing::error!(error = text, "the CA was not changed");
        let full = |kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        if let CaError::File { source, .. } = &error
            && full(source.kind())
        {
            return Self::resource_exhausted(format!(
                "no room left on the disk of the CA; nothing has changed: {text}"
            ));
        }
        Self::unavailable(format!("the CA was not changed: {text}"))
    }
}
