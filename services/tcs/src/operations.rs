//! `tenon.tcs.v1.Operations`: the store of tenants as operators look after it.

use futures_util::stream::BoxStream;
use mesh_identity::OperatorRole;
use mesh_identity::grpc::{Rpc, Subject, Who};
use tenon_proto::tcs::v1::operations_server::Operations;
use tenon_proto::tcs::v1::{BackupRequest, BackupResponse, GetGuardRequest, Guard};
use tonic::{Request, Response, Status};

use crate::backup;
use crate::guard::SetError;
use crate::store::{Store, StoreError};
use crate::writing::{Writing, caller};

/// Who may call what: the rows of this service in the server's authorization table.
pub(crate) const OPERATIONS_AUTHORIZATION: &[Rpc] = &[
    Rpc { path: "/tenon.tcs.v1.Operations/Backup", who: Who::Operators(OperatorRole::Admin) },
    Rpc { path: "/tenon.tcs.v1.Operations/GetGuard", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.tcs.v1.Operations/SetGuard", who: Who::Operators(OperatorRole::Admin) },
];

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct OperationsService {
    writing: Writing,
}

impl OperationsService {
    pub(crate) const fn new(writing: Writing) -> Self {
        Self { writing }
    }
}

#[tonic::async_trait]
impl Operations for OperationsService {
    type BackupStream = BoxStream<'static, Result<BackupResponse, Status>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let (store, guards) = self.writing.guards()?;
        let backup = backup::send(&**store.journal(), guards.journal()).await?;
        tracing::info!(operator = %caller(&request), "a backup is taken");
        Ok(Response::new(backup))
    }

    async fn get_guard(&self, _: Request<GetGuardRequest>) -> Result<Response<Guard>, Status> {
        let mut guard = self.writing.guard();
        if let Ok(store) = self.writing.store() {
            guard.missing_canaries = missing(store, &guard.canaries).await;
        }
        Ok(Response::new(guard))
    }

    async fn set_guard(&self, request: Request<Guard>) -> Result<Response<Guard>, Status> {
        let (store, guards) = self.writing.guards()?;
        let (operator, subject) = (caller(&request), Subject::of(&request));
        let guard = request.into_inner();
        subject.is(format!("largest shrink {} %, {} canaries", guard.largest_shrink_percent, guard.canaries.len()));
        // One that is on the list already may be gone: an override is set for just that.
        let known = guards.get().canaries;
        for canary in guard.canaries.iter().filter(|canary| !known.contains(canary)) {
            match store.get(canary).await {
                Err(StoreError::Unknown(_)) => {
                    let why = "a canary must exist, or no follower would take a snapshot";
                    return Err(Status::failed_precondition(format!("there is no tenant {canary}: {why}")));
                }
                found => drop(found?),
            }
        }
        let mut guard = guards.set(guard).await.map_err(|error| match error {
            SetError::Invalid(_) => Status::invalid_argument(error.to_string()),
            SetError::Emptied => Status::failed_precondition(error.to_string()),
            SetError::Write(error) => StoreError::from(error).into(),
        })?;
        guard.missing_canaries = missing(store, &guard.canaries).await;
        let allowed = guard.r#override.as_ref();
        tracing::warn!(
            %operator,
            largest_shrink_percent = guard.largest_shrink_percent,
            canaries = guard.canaries.join(","),
            missing_canaries = guard.missing_canaries.join(","),
            allowed_to = allowed.map(|allowed| allowed.smallest_records),
            allowed_until_unix_seconds = allowed.and_then(|allowed| allowed.until.as_ref()).map(|until| until.seconds),
            reason = allowed.map(|allowed| allowed.reason.as_str()),
            "the guard of the tenants is set"
        );
        Ok(Response::new(guard))
    }
}

/// Those that certainly do not exist.
async fn missing(store: &Store, canaries: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    for canary in canaries {
        if let Err(StoreError::Unknown(_)) = store.get(canary).await {
            missing.push(canary.clone());
        }
    }
    missing
}
