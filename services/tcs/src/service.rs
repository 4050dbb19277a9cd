//! `tenon.tcs.v1.Tenants`: operators write here, and read what was written.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use journal::{AppendError, Position};
use mesh_config::names::control_plane;
use mesh_identity::OperatorRole;
use mesh_identity::grpc::{Rpc, Subject, Who};
use tenon_proto::tcs::v1::get_request::By;
use tenon_proto::tcs::v1::tenant_context::Status as TenantStatus;
use tenon_proto::tcs::v1::tenants_server::Tenants;
use tenon_proto::tcs::v1::{
    DeleteRequest, GetRequest, ImportRequest, ImportResponse, ListRequest, SuspendRequest, TenantContext,
    UnsuspendRequest, WatchRequest, WatchResponse, WriteResponse,
};
use tokio::sync::mpsc;
use tokio_stream::Iter;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::lifecycle;
use crate::lifecycle::machine::Refused;
use crate::reading::{Reading, Stale};
use crate::staged::{Import, Problems, Staged};
use crate::store::StoreError;
use crate::watch;
use crate::writing::{Writing, caller};

/// Who may call what: the rows of this service in the server's authorization table.
pub(crate) const TENANTS_AUTHORIZATION: &[Rpc] = &[
    Rpc { path: "/tenon.tcs.v1.Tenants/Import", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.tcs.v1.Tenants/Get", who: Who::OperatorsAnd(OperatorRole::Viewer, &[control_plane::POLICY]) },
    Rpc { path: "/tenon.tcs.v1.Tenants/List", who: Who::Operators(OperatorRole::Viewer) },
    Rpc { path: "/tenon.tcs.v1.Tenants/Suspend", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.tcs.v1.Tenants/Unsuspend", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.tcs.v1.Tenants/Delete", who: Who::Operators(OperatorRole::Operator) },
    Rpc { path: "/tenon.tcs.v1.Tenants/Watch", who: Who::Operators(OperatorRole::Viewer) },
];

/// Messages of an import that wait to be looked through: the rest waits at the sender.
const WAITING: usize = 2;
/// `google.rpc.ErrorInfo.domain` of every refusal.
const DOMAIN: &str = "tenon.dev";

type Listed = Box<dyn Iterator<Item = Result<TenantContext, Status>> + Send>;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TenantsService {
    reading: Reading,
    writing: Writing,
    shutdown: CancellationToken,
}

impl TenantsService {
    /// Ends what it watches at `shutdown`.
    pub(crate) fn new(reading: Reading, writing: Writing, shutdown: CancellationToken) -> Self {
        Self { reading, writing, shutdown }
    }
}

#[tonic::async_trait]
impl Tenants for TenantsService {
    /// Refusals name records as `record N:`, counted from 1 over the whole import, one a line: INVALID_ARGUMENT for what
    /// is wrong in the import itself, ALREADY_EXISTS for hosts of tenants that it does not replace.
    async fn import(&self, request: Request<Streaming<ImportRequest>>) -> Result<Response<ImportResponse>, Status> {
        let store = self.writing.store()?;
        let (operator, subject) = (caller(&request), Subject::of(&request));
        let import = receive(request.into_inner()).await?;
        let tenants = import.tenants().len() as u64;
        subject.is(format!("{tenants} tenants"));
        let Position { epoch, revision } = store.import(import).await?;
        tracing::info!(%operator, tenants, epoch, revision, "tenants imported");
        Ok(Response::new(ImportResponse { tenants, epoch, revision }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<TenantContext>, Status> {
        let subject = Subject::of(&request);
        let GetRequest { by, at_least } = request.into_inner();
        if let Some(By::TenantId(name) | By::Host(name)) = &by {
            subject.is(name);
        }
        self.reading.reached(at_least.as_ref()).await?;
        let tenant = match by {
            Some(By::TenantId(id)) => self.reading.get(&id).await?,
            // Host names are kept in lower case, and are the same in any (RFC 4343).
            Some(By::Host(host)) => self.reading.by_host(&host.to_ascii_lowercase()).await?,
            None => return Err(Status::invalid_argument("name a tenant id or a host")),
        };
        Ok(Response::new(tenant))
    }

    type ListStream = Iter<Listed>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let subject = Subject::of(&request);
        let ListRequest { region } = request.into_inner();
        subject.is(if region.is_empty() { "all tenants" } else { &region });
        let tenants = self.reading.list().await?.map(|tenant| tenant.map_err(Status::from));
        let wanted = tenants
            .filter(move |tenant| region.is_empty() || tenant.as_ref().map_or(true, |tenant| tenant.region == region));
        let wanted: Listed = Box::new(wanted);
        Ok(Response::new(tokio_stream::iter(wanted)))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Result<Response<WriteResponse>, Status> {
        Subject::of(&request).is(&request.get_ref().tenant_id);
        let store = self.writing.store()?;
        let (operator, id) = (caller(&request), request.into_inner().tenant_id);
        let position = store.set_status(id.clone(), TenantStatus::Suspended).await?;
        Ok(written(operator, &id, "suspended", position))
    }

    async fn unsuspend(&self, request: Request<UnsuspendRequest>) -> Result<Response<WriteResponse>, Status> {
        Subject::of(&request).is(&request.get_ref().tenant_id);
        let store = self.writing.store()?;
        let (operator, id) = (caller(&request), request.into_inner().tenant_id);
        let position = store.set_status(id.clone(), TenantStatus::Active).await?;
        Ok(written(operator, &id, "unsuspended", position))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<WriteResponse>, Status> {
        Subject::of(&request).is(&request.get_ref().tenant_id);
        let store = self.writing.store()?;
        let (operator, id) = (caller(&request), request.into_inner().tenant_id);
        let position = store.delete(id.clone()).await?;
        Ok(written(operator, &id, "deleted", position))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let subject = Subject::of(&request);
        let WatchRequest { after, tenant_id } = request.into_inner();
        subject.is(if tenant_id.is_empty() { "all tenants" } else { &tenant_id });
        let head = self.reading.head().await?.ok_or(StoreError::Nothing)?;
        let after = after.map_or(head, |after| Position::new(after.epoch, after.revision));
        if after.epoch != head.epoch {
            return Err(watch::no_longer_kept());
        }
        let watch = watch::changes(self.reading.tail(after), after, tenant_id);
        let shutdown = self.shutdown.clone().cancelled_owned();
        Ok(Response::new(Box::pin(watch.take_until(shutdown))))
    }
}

/// Looked through as it comes in, where it holds up nobody: a million records are seconds of work.
async fn receive(mut requests: Streaming<ImportRequest>) -> Result<Import, Status> {
    let (sender, mut received) = mpsc::channel::<ImportRequest>(WAITING);
    let staging = tokio::task::spawn_blocking(move || {
        let mut staged = Staged::default();
        while let Some(request) = received.blocking_recv() {
            request.tenants.into_iter().for_each(|tenant| staged.push(tenant));
        }
        staged
    });
    while let Some(request) = requests.next().await {
        let _ended_with_the_runtime = sender.send(request?).await;
    }
    drop(sender);
    let stopping = |_| Status::unavailable("the TCS is stopping: nothing has changed");
    let staged = staging.await.map_err(stopping)?;
    staged.finish().map_err(|problems: Problems| Status::invalid_argument(problems.to_string()))
}

fn written(
    operator: impl std::fmt::Display,
    tenant: &str,
    what: &'static str,
    position: Position,
) -> Response<WriteResponse> {
    let Position { epoch, revision } = position;
    tracing::info!(%operator, tenant, epoch, revision, "tenant {what}");
    Response::new(WriteResponse { epoch, revision })
}

impl From<Stale> for Status {
    fn from(stale: Stale) -> Self {
        Self::unavailable(stale.to_string())
    }
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let status = plain(&error);
        let Some((reason, metadata)) = lifecycle::details(&error) else { return status };
        let metadata = metadata.into_iter().map(|(name, value)| (name.to_owned(), value));
        let details =
            ErrorDetails::with_error_info(reason, DOMAIN, metadata.collect::<std::collections::HashMap<_, _>>());
        Self::with_error_details(status.code(), status.message(), details)
    }
}

fn plain(error: &StoreError) -> Status {
    match error {
        StoreError::Unknown(_) => Status::not_found(error.to_string()),
        StoreError::HostsTaken(_) | StoreError::EventIdUsed(_) => Status::already_exists(error.to_string()),
        StoreError::Refused(Refused::Invalid(_)) => Status::invalid_argument(error.to_string()),
        StoreError::Refused(Refused::Illegal { .. } | Refused::Misfit(_))
        | StoreError::HostTaken { .. }
        | StoreError::Shrink(_) => Status::failed_precondition(error.to_string()),
        StoreError::OtherRevision { .. } | StoreError::Contended => Status::aborted(error.to_string()),
        StoreError::Nothing | StoreError::Behind | StoreError::Busy => Status::unavailable(error.to_string()),
        // Not UNAVAILABLE: trying again helps only when somebody has made room.
        StoreError::Write(full @ AppendError::Full(_)) => {
            tracing::error!(%error, source = %full, "the store has no room");
            Status::resource_exhausted(format!("{error}: {full}"))
        }
        StoreError::Damaged { .. } => {
            tracing::error!(%error, "the store is damaged");
            Status::data_loss(error.to_string())
        }
        StoreError::Read(source) => failed(error, source),
        StoreError::Write(source) => failed(error, source),
    }
}

fn failed(error: &StoreError, source: &dyn std::error::Error) -> Status {
    tracing::error!(%error, %source, "the store failed");
    Status::unavailable(format!("{error}: {source}"))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_full_disk_is_told_to_the_caller_as_resource_exhausted() {
        let full = AppendError::Full(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
        let status = Status::from(StoreError::from(full));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("no room left on the disk"), "{status}");
    }
}
