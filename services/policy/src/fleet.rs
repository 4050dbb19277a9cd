//! `tenon.policy.v1.Fleet`: what sidecars report, and what they are asked.
//!
//! `batch` is what a sidecar may report, `session` its stream, `sidecars` who is connected,
//! `taps` which calls operators watch. What is done with flows stands in
//! `crate::flows`.

mod batch;
mod session;
mod sidecars;
mod taps;

use std::{
    collections::HashSet,
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::Stream;
use journal::{Journal, OpenError, ReadError, Store};
use mesh_config::names::TrustDomain;
use mesh_identity::{
    Peer, clock,
    grpc::{Rpc, Who},
};
use tenon_proto::policy::v1::{
    ExplainRequest, ExplainResponse, Flow, FlowsRequest, FlowsResponse, ReportRequest, ReportResponse, TapRequest,
    fleet_server::{Fleet as FleetRpcs, FleetServer},
};
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    engine::chain,
    flows::{self, Recording},
    leases::Leases,
};
pub(crate) use taps::TapStream;
use {session::Front, sidecars::Sidecars, taps::Taps};

/// Who may call what of this service.
pub(crate) const FLEET_AUTHORIZATION: &[Rpc] = &[Rpc { path: "/tenon.policy.v1.Fleet/Report", who: Who::Services }];

/// The largest request of a sidecar.
const REQUEST: usize = 1 << 20;
/// Operators that the record is added up for at once, and for whom sidecars are asked at once; others wait.
const SUMMING: usize = 2;
const ASKING: usize = 64;
/// For how long they wait.
const TURN: Duration = Duration::from_secs(10);
/// Bytes of a request id.
const REQUEST_ID: usize = 128;
/// Between two warnings of the same.
const WARNING: u64 = 60;

/// What one sidecar reported at once, as it was taken: checked, and each batch once.
///
/// Of sidecars that report to another policy service it holds what was refused, some of it.
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
    front: Arc<Front>,
    journal: Arc<dyn Journal>,
    summing: Semaphore,
    asking: Semaphore,
}

/// Why the flow record cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The store cannot be opened.
    #[error("the store of flows cannot be used")]
    Open(#[from] OpenError),
    /// The store cannot be read.
    #[error("the flow record cannot be read")]
    Read(#[from] ReadError),
    /// The state folder cannot be used.
    #[error("the name under which flows are counted cannot be kept in the state folder")]
    Writer(#[source] io::Error),
}

impl Fleet {
    /// The name under which this policy service writes, made once and kept in the state folder.
    ///
    /// # Errors
    /// [`FleetError::Writer`]
    pub fn name(state_dir: &Path) -> Result<Arc<str>, FleetError> {
        flows::writer(state_dir).map_err(FleetError::Writer)
    }

    /// Opens the flow record, beside an embedded store or in a NATS cluster, and begins to write it.
    ///
    /// # Errors
    /// [`FleetError`]
    pub async fn open(
        store: &Store,
        trust_domain: &TrustDomain,
        state_dir: &Path,
        shutdown: &CancellationToken,
    ) -> Result<(Arc<Self>, Recording), FleetError> {
        let journal = flows::open(store, trust_domain, state_dir).await?;
        let writer = Self::name(state_dir)?;
        let others = matches!(store, Store::Nats(_));
        Ok(Self::over(journal, writer, others, shutdown).await?)
    }

    /// As `writer` over an open journal, which `others` write as well.
    async fn over(
        journal: Arc<dyn Journal>,
        writer: Arc<str>,
        others: bool,
        shutdown: &CancellationToken,
    ) -> Result<(Arc<Self>, Recording), ReadError> {
        let (intake, recording) = flows::record(Arc::clone(&journal), writer, others, shutdown).await?;
        let sidecars: Arc<Sidecars> = Arc::default();
        let taps = Taps::new(Arc::clone(&sidecars));
        let front = Front { intake, sidecars, taps, ending: shutdown.clone(), refused: Often::default() };
        let (summing, asking) = (Semaphore::new(SUMMING), Semaphore::new(ASKING));
        Ok((Arc::new(Self { front: Arc::new(front), journal, summing, asking }), recording))
    }

    /// Every batch from now on. Who falls behind is told how many were missed.
    pub fn reports(&self) -> broadcast::Receiver<Report> {
        self.front.intake.reports()
    }

    /// Whether what sidecars report is written, and with that told to readers of [`Fleet::reports`], as far as is known.
    pub fn is_recording(&self) -> bool {
        self.front.intake.is_recording()
    }

    /// Whether the record has such a call that passed (allowed, or let pass by audit mode) before `moment`, in Unix
    /// seconds. Where paths were too many to be told apart, any of them may have been this one. Reads no store.
    ///
    /// What passed before this process began is known by the hour, as if at its beginning.
    pub fn passed_before(&self, caller: &str, service: &str, path: &str, moment: u64) -> bool {
        self.front.intake.passed_before(caller, service, path, moment)
    }

    /// Of the sidecars that have a stream open here, those that reported calls to themselves since `moment`, Unix seconds.
    pub fn called_since(&self, moment: u64) -> HashSet<Arc<str>> {
        let open = self.front.sidecars.all().into_iter();
        open.filter(|sidecar| sidecar.called_since(moment)).map(|sidecar| Arc::clone(&sidecar.instance)).collect()
    }

    /// Instance and service of each sidecar that has a stream open, in order.
    pub fn connected(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let open = self.front.sidecars.all();
        let mut names: Vec<_> = open.iter().map(|it| (Arc::clone(&it.instance), Arc::clone(&it.service))).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Sums up the flow record: what is written, so what `until_unix_seconds` says is the age of the answer.
    pub async fn flows(&self, request: FlowsRequest) -> Result<FlowsResponse, Status> {
        let _turn = turn(&self.summing).await?;
        flows::sum(&*self.journal, request, clock::unix_seconds()).await.map_err(|error| {
            tracing::warn!(error = chain(&error), "the flow record cannot be read");
            Status::unavailable("the flow record cannot be read now: try again")
        })
    }

    /// Asks every connected sidecar for its decision on one request, and takes a second for it at most.
    pub async fn explain(&self, request: ExplainRequest) -> Result<ExplainResponse, Status> {
        let id = request.request_id;
        if id.is_empty() || id.len() > REQUEST_ID || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Status::invalid_argument(
                "a request id has 1 to 128 characters, all of them visible ASCII: take it from the x-request-id of the answer",
            ));
        }
        let _turn = turn(&self.asking).await?;
        Ok(self.front.sidecars.ask(&id).await)
    }

    /// Tells of calls as they end, as the connected sidecars see them, until the stream is dropped.
    ///
    /// # Errors
    /// A filter that makes no sense, or too many who watch.
    pub fn tap(&self, request: TapRequest) -> Result<TapStream, Status> {
        self.front.taps.watch(request, &self.front.ending)
    }
}

async fn turn(of: &Semaphore) -> Result<tokio::sync::SemaphorePermit<'_>, Status> {
    let busy = || Status::resource_exhausted("too many others ask the same at this moment: try again");
    tokio::time::timeout(TURN, of.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())
}

/// What happens often is warned of once a minute.
#[derive(Default)]
struct Often {
    /// Unix seconds.
    last: AtomicU64,
    others: AtomicU64,
}

impl Often {
    /// `warn` is told how often it was not called since it last was.
    fn warn(&self, warn: impl FnOnce(u64)) {
        let (now, last) = (clock::unix_seconds(), self.last.load(Ordering::Relaxed));
        let due = now.saturating_sub(last) >= WARNING;
        if due && self.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            warn(self.others.swap(0, Ordering::Relaxed));
        } else {
            self.others.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a sidecar is told.
type ReportStream = Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send>>;

/// Serves [`Fleet`] to sidecars. Expects the peer in the extensions of each request.
pub(crate) struct FleetService {
    front: Arc<Front>,
    leases: Option<Leases>,
}

impl FleetService {
    /// Without `leases` it takes no registrations.
    pub fn new(fleet: &Fleet, leases: Option<Leases>) -> Self {
        Self { front: Arc::clone(&fleet.front), leases }
    }

    pub fn into_server(self) -> FleetServer<Self> {
        FleetServer::new(self).max_decoding_message_size(REQUEST)
    }
}

#[tonic::async_trait]
impl FleetRpcs for FleetService {
    type ReportStream = ReportStream;

    async fn report(&self, request: Request<Streaming<ReportRequest>>) -> Result<Response<Self::ReportStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("who reports is not known: call over mTLS"))?;
        session::begin(Arc::clone(&self.front), self.leases.as_ref(), &peer, request.into_inner())
            .await
            .map(Response::new)
    }
}

#[cfg(test)]
mod tests;
