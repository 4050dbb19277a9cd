//! `tenon.policy.v1.Fleet`: what sidecars report, and what they are asked.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use mesh_identity::grpc::{Rpc, Who};
use tenon_proto::policy::v1::{
    ExplainRequest, ExplainResponse, FlowsRequest, FlowsResponse, ReportRequest, ReportResponse,
    fleet_server::{Fleet as FleetRpcs, FleetServer},
};
use tonic::{Request, Response, Status, Streaming};

/// Who may call what of this service.
pub(crate) const FLEET_AUTHORIZATION: &[Rpc] = &[Rpc { path: "/tenon.policy.v1.Fleet/Report", who: Who::Services }];

/// The sidecars that report, and what they have reported.
pub(crate) struct Fleet;

impl Fleet {
    /// Sums up the flow record.
    pub async fn flows(&self, _request: FlowsRequest) -> Result<FlowsResponse, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    /// Asks every connected sidecar for its decision on one request.
    pub async fn explain(&self, _request: ExplainRequest) -> Result<ExplainResponse, Status> {
        Err(Status::unimplemented("not built yet"))
    }
}

/// Serves [`Fleet`] to sidecars. Expects the peer in the extensions of each request.
pub(crate) struct FleetService(pub Arc<Fleet>);

impl FleetService {
    pub fn into_server(self) -> FleetServer<Self> {
        FleetServer::new(self)
    }
}

#[tonic::async_trait]
impl FleetRpcs for FleetService {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send>>;

    async fn report(
        &self,
        _request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        Err(Status::unimplemented("not built yet"))
    }
}
