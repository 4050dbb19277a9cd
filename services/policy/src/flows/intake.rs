//! Batches on their way to the store, and what is told of them on the way.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tenon_proto::policy::v1::Flow;
use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::Status;

use super::{counts::FlowKey, passed::Passed, stored::MarkKey};
use crate::fleet::Report;

/// Bytes of batches that may wait, of all services and of one.
const ALL: usize = 64 << 20;
const OF_A_SERVICE: usize = 8 << 20;
/// Bytes that a batch takes beside the name of its sidecar and its flows: itself, its keys, and whoever waits for it.
const BATCH: usize = 512;
/// Batches that a reader of the reports may be behind.
const REPORTS: usize = 4096;

/// Takes batches, and knows what the recorder has learned of them. Does not hold the store.
pub(crate) struct Intake {
    arriving: mpsc::UnboundedSender<Batch>,
    waiting: Mutex<Waiting>,
    passed: Mutex<Passed>,
    reports: broadcast::Sender<Report>,
    /// What comes cannot be written, so that not all of it is announced.
    failing: AtomicBool,
}

/// Bytes of the batches that wait.
#[derive(Default)]
struct Waiting {
    of_service: HashMap<Arc<str>, usize>,
    all: usize,
}

/// One batch, checked.
pub(super) struct Batch {
    pub from: MarkKey,
    pub boot: u64,
    pub sequence: u64,
    /// When it came, Unix seconds.
    pub at: u64,
    pub flows: Arc<[Flow]>,
    /// Readers of the reports know of it.
    pub announced: bool,
    done: oneshot::Sender<Result<(), Status>>,
    _room: Room,
}

/// What a batch takes of [`Waiting`], given back when it is dropped.
struct Room {
    intake: Arc<Intake>,
    service: Arc<str>,
    bytes: usize,
}

/// What becomes of a batch: it is written, it is refused, or (dropped) this service ends before that.
pub(crate) type Done = oneshot::Receiver<Result<(), Status>>;

impl Intake {
    pub(super) fn new(passed: Passed) -> (Arc<Self>, mpsc::UnboundedReceiver<Batch>) {
        let (arriving, batches) = mpsc::unbounded_channel();
        let reports = broadcast::Sender::new(REPORTS);
        let intake = Self {
            arriving,
            waiting: Mutex::default(),
            passed: Mutex::new(passed),
            reports,
            failing: AtomicBool::default(),
        };
        (Arc::new(intake), batches)
    }

    /// Takes a batch that holds only what its sender may say.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` where too much waits to be written: it is to be sent again later.
    pub fn take(
        self: &Arc<Self>,
        (service, instance): (&Arc<str>, &Arc<str>),
        (boot, sequence): (u64, u64),
        at: u64,
        flows: Vec<Flow>,
    ) -> Result<Done, Status> {
        let room = self.room(service, instance, &flows)?;
        let (done, told) = oneshot::channel();
        let from = MarkKey { service: Arc::clone(service), instance: Arc::clone(instance) };
        let batch = Batch { from, boot, sequence, at, flows: flows.into(), announced: false, done, _room: room };
        // Dropped where nobody records any more.
        drop(self.arriving.send(batch));
        Ok(told)
    }

    pub fn reports(&self) -> broadcast::Receiver<Report> {
        self.reports.subscribe()
    }

    /// Whether what sidecars report is written, and with that announced, as far as is known.
    pub fn is_recording(&self) -> bool {
        !self.failing.load(Ordering::Acquire)
    }

    pub(super) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Release);
    }

    pub fn passed_before(&self, caller: &str, service: &str, path: &str, moment: u64) -> bool {
        self.passed().before(caller, service, path, moment)
    }

    pub(super) fn passed(&self) -> MutexGuard<'_, Passed> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the readers of the reports of flows.
    pub(super) fn announce(&self, from: &MarkKey, flows: Arc<[Flow]>) {
        let MarkKey { service, instance } = from.clone();
        // Nobody may be reading.
        let _ = self.reports.send(Report { instance, service, flows });
    }

    fn room(self: &Arc<Self>, service: &Arc<str>, instance: &str, flows: &[Flow]) -> Result<Room, Status> {
        let text = |flow: &Flow| flow.caller.len() + flow.service.len() + flow.path.len() + flow.reason.len();
        let of_flows: usize = flows.iter().map(|flow| text(flow) + size_of::<Flow>()).sum();
        let bytes = BATCH + instance.len() + of_flows;
        let mut waiting = self.waiting();
        let of_service = waiting.of_service.get(service).copied().unwrap_or_default();
        if of_service + bytes > OF_A_SERVICE || waiting.all + bytes > ALL {
            return Err(Status::resource_exhausted("too many flows wait to be written: send them again later"));
        }
        waiting.of_service.insert(Arc::clone(service), of_service + bytes);
        waiting.all += bytes;
        Ok(Room { intake: Arc::clone(self), service: Arc::clone(service), bytes })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut waiting = self.intake.waiting();
        waiting.all -= self.bytes;
        if let Some(of_service) = waiting.of_service.get_mut(&self.service) {
            *of_service -= self.bytes;
            if *of_service == 0 {
                waiting.of_service.remove(&self.service);
            }
        }
    }
}

impl Batch {
    /// Tells the sidecar's stream what became of it.
    pub fn end(self, outcome: Result<(), Status>) {
        // The stream may have gone.
        let _ = self.done.send(outcome);
    }

    /// Of one sidecar, one start of its process, one batch.
    pub fn key(&self) -> (MarkKey, u64, u64) {
        (self.from.clone(), self.boot, self.sequence)
    }

    /// Nobody waits for what becomes of it.
    pub fn is_abandoned(&self) -> bool {
        self.done.is_closed()
    }

    pub fn keys(&self) -> impl Iterator<Item = (FlowKey, u64)> + '_ {
        self.flows.iter().map(|flow| (FlowKey::of(flow), flow.count))
    }
}
