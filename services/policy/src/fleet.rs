//! `tenon.policy.v1.Fleet`: what sidecars report, and what they are asked.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use mesh_identity::grpc::{Rpc, Who};
use tenon_proto::policy::v1::{
    ExplainRequest, ExplainResponse, Flow, FlowsRequest, FlowsResponse, ReportRequest, ReportResponse,
    fleet_server::{Fleet as FleetRpcs, FleetServer},
};
use tokio::sync::broadcast;
use tonic::{Request, Response, Status, Streaming};

/// Who may call what of this service.
pub(crate) const FLEET_AUTHORIZATION: &[Rpc] = &[Rpc { path: "/tenon.policy.v1.Fleet/Report", who: Who::Services }];

/// Batches that a reader of [`Fleet::reports`] may be behind.
const REPORTS: usize = 4096;

/// What one sidecar reported at once, as it was taken: checked, and each batch once.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// Name of the sidecar's process, as in `Start.instance` of the replication protocol.
    pub instance: Arc<str>,
    /// The service that it proved to be.
    pub service: Arc<str>,
    pub flows: Arc<[Flow]>,
}

/// The sidecars that report, and what they have reported.
pub(crate) struct Fleet {
    reports: broadcast::Sender<Report>,
}

impl Fleet {
    pub fn new() -> Self {
        Self { reports: broadcast::Sender::new(REPORTS) }
    }

    /// Every batch from now on. Who falls behind is told how many were missed.
    pub fn reports(&self) -> broadcast::Receiver<Report> {
        self.reports.subscribe()
    }

    /// Whether the record has such a call that passed (allowed, or let pass by audit mode) before `moment`, in Unix
    /// seconds. Where paths were too many to be told apart, any of them may have been this one. Reads no store.
    pub fn passed_before(&self, _caller: &str, _service: &str, _path: &str, _moment: u64) -> bool {
        false
    }

    /// Instance and service of each sidecar that has a stream open, in order.
    pub fn connected(&self) -> Vec<(Arc<str>, Arc<str>)> {
        Vec::new()
    }

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
