//! `tenon.tcs.v1.Tenants` over the store.

use journal::{AppendError, Position};
use mesh_identity::Peer;
use mesh_identity::grpc::{Rpc, Who};
use tenon_proto::tcs::v1::get_request::By;
use tenon_proto::tcs::v1::tenant_context::Status as TenantStatus;
use tenon_proto::tcs::v1::tenants_server::Tenants;
use tenon_proto::tcs::v1::{
    DeleteRequest, GetRequest, ImportRequest, ImportResponse, ListRequest, SuspendRequest, TenantContext,
    UnsuspendRequest, WatchRequest, WatchResponse, WriteResponse,
};
use tokio_stream::{Iter, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::staged::{Import, Problems, Staged};
use crate::store::{Store, StoreError};

/// Who may call what: the rows of this service in the server's authorization table.
pub(crate) const TENANTS_AUTHORIZATION: &[Rpc] = &[
    Rpc { path: "/tenon.tcs.v1.Tenants/Import", who: Who::Operators },
    Rpc { path: "/tenon.tcs.v1.Tenants/Get", who: Who::Operators },
    Rpc { path: "/tenon.tcs.v1.Tenants/List", who: Who::Operators },
    Rpc { path: "/tenon.tcs.v1.Tenants/Suspend", who: Who::Operators },
    Rpc { path: "/tenon.tcs.v1.Tenants/Unsuspend", who: Who::Operators },
    Rpc { path: "/tenon.tcs.v1.Tenants/Delete", who: Who::Operators },
    Rpc { path: "/tenon.tcs.v1.Tenants/Watch", who: Who::Operators },
];

/// Decoded as they are sent, so that a list of any length takes the memory of the encoded records alone.
type Listed = Box<dyn Iterator<Item = Result<TenantContext, Status>> + Send>;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TenantsService {
    store: Store,
}

impl TenantsService {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl Tenants for TenantsService {
    /// Refusals name records as `record N:`, counted from 1 over the whole import, one a line: INVALID_ARGUMENT for what
    /// is wrong in the import itself, ALREADY_EXISTS for hosts of tenants that it does not replace.
    async fn import(&self, request: Request<Streaming<ImportRequest>>) -> Result<Response<ImportResponse>, Status> {
        let operator = operator(&request);
        let import = receive(request.into_inner()).await?;
        let tenants = import.tenants().len() as u64;
        let Position { epoch, revision } = self.store.import(import).await?;
        tracing::info!(operator, tenants, epoch, revision, "tenants imported");
        Ok(Response::new(ImportResponse { tenants, epoch, revision }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<TenantContext>, Status> {
        let tenant = match request.into_inner().by {
            Some(By::TenantId(id)) => self.store.get(&id).await?,
            // Host names are kept in lower case, and are the same in any (RFC 4343).
            Some(By::Host(host)) => self.store.by_host(&host.to_ascii_lowercase()).await?,
            None => return Err(Status::invalid_argument("name a tenant id or a host")),
        };
        Ok(Response::new(tenant))
    }

    type ListStream = Iter<Listed>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let ListRequest { region } = request.into_inner();
        let tenants = self.store.list().await?.map(|tenant| tenant.map_err(Status::from));
        let wanted = tenants
            .filter(move |tenant| region.is_empty() || tenant.as_ref().map_or(true, |tenant| tenant.region == region));
        let wanted: Listed = Box::new(wanted);
        Ok(Response::new(tokio_stream::iter(wanted)))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Result<Response<WriteResponse>, Status> {
        let (operator, id) = (operator(&request), request.into_inner().tenant_id);
        let position = self.store.set_status(id.clone(), TenantStatus::Suspended).await?;
        Ok(written(&operator, &id, "suspended", position))
    }

    async fn unsuspend(&self, request: Request<UnsuspendRequest>) -> Result<Response<WriteResponse>, Status> {
        let (operator, id) = (operator(&request), request.into_inner().tenant_id);
        let position = self.store.set_status(id.clone(), TenantStatus::Active).await?;
        Ok(written(&operator, &id, "unsuspended", position))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<WriteResponse>, Status> {
        let (operator, id) = (operator(&request), request.into_inner().tenant_id);
        let position = self.store.delete(id.clone()).await?;
        Ok(written(&operator, &id, "deleted", position))
    }

    type WatchStream = tokio_stream::Empty<Result<WatchResponse, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}

async fn receive(mut requests: Streaming<ImportRequest>) -> Result<Import, Status> {
    let mut staged = Staged::default();
    while let Some(request) = requests.next().await {
        request?.tenants.into_iter().for_each(|tenant| staged.push(tenant));
    }
    // Seconds of work for a million records: connections must be answered meanwhile.
    let finished = tokio::task::spawn_blocking(move || staged.finish()).await;
    let finished = finished.map_err(|_| Status::unavailable("the TCS is stopping: nothing has changed"))?;
    finished.map_err(|problems: Problems| Status::invalid_argument(problems.to_string()))
}

/// For the log.
fn operator<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map(|peer| peer.id.to_string()).unwrap_or_default()
}

fn written(operator: &str, tenant: &str, what: &'static str, position: Position) -> Response<WriteResponse> {
    let Position { epoch, revision } = position;
    tracing::info!(operator, tenant, epoch, revision, "tenant {what}");
    Response::new(WriteResponse { epoch, revision })
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unknown(_) => Self::not_found(error.to_string()),
            StoreError::HostsTaken(_) => Self::already_exists(error.to_string()),
            StoreError::Write(AppendError::Conflict { .. }) => {
                Self::aborted("other writers were faster: try again; nothing has changed")
            }
            // Not UNAVAILABLE: trying again helps only when somebody has made room.
            StoreError::Write(full @ AppendError::Full(_)) => {
                tracing::error!(%error, source = %full, "the store has no room");
                Self::resource_exhausted(format!("{error}: {full}"))
            }
            StoreError::Damaged { .. } => {
                tracing::error!(%error, "the store is damaged");
                Self::data_loss(error.to_string())
            }
            StoreError::Read(source) => failed(&error, source),
            StoreError::Write(source) => failed(&error, source),
        }
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
