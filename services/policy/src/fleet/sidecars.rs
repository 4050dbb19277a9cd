//! The sidecars that have a stream open, and how they are asked for a decision.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tenon_proto::policy::v1::{ExplainResponse, RecentDecision};
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;

/// Streams of one service.
const OF_A_SERVICE: usize = if cfg!(test) { 30 } else { 4096 };
/// Questions that wait until a stream takes them. One that takes none is asked no more.
const QUESTIONS: usize = 64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long other answers are waited for once a sidecar has remembered the request: that of the other side, or of another
/// instance where the call was tried again.
const GRACE: Duration = Duration::from_millis(200);
/// Decisions of one answer.
const DECISIONS: usize = 100;

/// Who is connected.
#[derive(Default)]
pub(super) struct Sidecars {
    open: Mutex<Open>,
    next: AtomicU64,
}

#[derive(Default)]
struct Open {
    streams: HashMap<u64, Arc<Sidecar>>,
    of_service: HashMap<Arc<str>, usize>,
}

/// One stream of a sidecar.
pub(super) struct Sidecar {
    pub service: Arc<str>,
    pub instance: Arc<str>,
    /// When it last reported calls to itself, Unix seconds; 0: it has not.
    called: AtomicU64,
    questions: mpsc::Sender<Question>,
}

/// What a sidecar is asked: does it know this request?
pub(super) struct Question {
    pub id: u64,
    pub request_id: Arc<str>,
    /// Has room for one answer of each who is asked.
    pub answer: mpsc::Sender<Option<RecentDecision>>,
}

/// A stream that is open until this is dropped.
pub(super) struct Registration {
    sidecars: Arc<Sidecars>,
    id: u64,
    pub sidecar: Arc<Sidecar>,
}

impl Sidecar {
    /// It has reported calls to itself.
    pub fn was_called(&self, at: u64) {
        self.called.store(at, Ordering::Relaxed);
    }

    /// Whether it has reported calls to itself since `moment`, Unix seconds.
    pub fn called_since(&self, moment: u64) -> bool {
        self.called.load(Ordering::Relaxed) >= moment.max(1)
    }
}

impl Sidecars {
    /// # Errors
    /// `RESOURCE_EXHAUSTED` where the service has too many streams.
    pub fn register(
        self: &Arc<Self>,
        service: Arc<str>,
        instance: Arc<str>,
    ) -> Result<(Registration, mpsc::Receiver<Question>), Status> {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let sidecar = Arc::new(Sidecar { service, instance, called: AtomicU64::default(), questions });
        let mut open = self.open();
        let of_service = open.of_service.entry(Arc::clone(&sidecar.service)).or_default();
        if *of_service >= OF_A_SERVICE {
            return Err(Status::resource_exhausted(format!(
                "{OF_A_SERVICE} sidecars of {} report to this policy service, and it takes no more: start one more policy service \
                 and name it with --policy as well",
                sidecar.service
            )));
        }
        *of_service += 1;
        open.streams.insert(id, Arc::clone(&sidecar));
        drop(open);
        Ok((Registration { sidecars: Arc::clone(self), id, sidecar }, asked))
    }

    pub fn all(&self) -> Vec<Arc<Sidecar>> {
        self.open().streams.values().cloned().collect()
    }

    /// Asks everyone, and waits until everyone has answered, or for as long as an answer may take.
    pub async fn ask(&self, request_id: &str) -> ExplainResponse {
        let request_id: Arc<str> = request_id.into();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let sidecars = self.all();
        let asked = sidecars.len();
        let (answer, mut answers) = mpsc::channel(asked.max(1));
        for sidecar in sidecars {
            let question = Question { id, request_id: Arc::clone(&request_id), answer: answer.clone() };
            // Who takes no questions does not answer either.
            let _ = sidecar.questions.try_send(question);
        }
        drop(answer);
        let mut deadline = Instant::now() + PATIENCE;
        let (mut decisions, mut answered) = (Vec::new(), 0);
        while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, answers.recv()).await {
            answered += 1;
            if let Some(decision) = answer.filter(|_| decisions.len() < DECISIONS) {
                deadline = deadline.min(Instant::now() + GRACE);
                decisions.push(decision);
            }
        }
        decisions.sort_by(|a, b| (a.at_unix_ms, &a.instance).cmp(&(b.at_unix_ms, &b.instance)));
        ExplainResponse { decisions, asked: u32::try_from(asked).unwrap_or(u32::MAX), answered }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut open = self.sidecars.open();
        open.streams.remove(&self.id);
        if let Some(of_service) = open.of_service.get_mut(&self.sidecar.service) {
            *of_service -= 1;
            if *of_service == 0 {
                open.of_service.remove(&self.sidecar.service);
            }
        }
    }
}
