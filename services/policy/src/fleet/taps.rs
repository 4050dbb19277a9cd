//! Calls that operators watch: who wants which, and the way of each from the sidecar that saw it.
//!
//! Every session tells its sidecar all that is wanted, whenever that changes. What a sidecar tells is believed of its own
//! calls alone, and held to the filter once more. Nothing is kept: who reads slowly is told how many calls it missed.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::Stream;
use prost::Message as _;
use sidecar_core::tap::{Filter, Seen, Telling, telling};
use tenon_proto::policy::v1::{
    TapRequest, TapResponse, TapState, TappedCall,
    report_request::Tapped,
    report_response::{Tap, Taps as Wanted},
    tap_response::Response,
    tapped_call::Outcome,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::sidecars::{Sidecar, Sidecars};

/// Operators who watch at once.
const TAPS: usize = 16;
/// Calls a second, when nobody says how many, and at most.
const USUAL_RATE: u32 = 100;
const HIGHEST_RATE: u32 = 1_000;
/// Headers that are asked for by name.
const HEADERS: usize = 32;
/// Calls that wait for a slow reader.
const WAITING: usize = 1_024;
/// Bytes of one call.
const CALL: usize = 32 << 10;
/// Between two looks at what has changed for the one who watches.
const STATE: Duration = Duration::from_secs(1);

/// What an operator is told.
pub(crate) type TapStream = Pin<Box<dyn Stream<Item = Result<TapResponse, Status>> + Send>>;

/// All that is watched.
pub(super) struct Taps {
    wanted: watch::Sender<Wanted>,
    watching: Mutex<BTreeMap<u64, Arc<Watcher>>>,
    next: AtomicU64,
    sidecars: Arc<Sidecars>,
}

/// One who watches.
struct Watcher {
    filter: Filter,
    tap: Tap,
    calls: mpsc::Sender<TappedCall>,
    left_out: AtomicU64,
    /// The second that began last, and what was told in it.
    told: Mutex<(Instant, u32)>,
}

/// Watches until it is dropped.
struct Watching {
    taps: Arc<Taps>,
    watcher: Arc<Watcher>,
    calls: mpsc::Receiver<TappedCall>,
    tick: tokio::time::Interval,
    /// As it was told last.
    state: Option<TapState>,
    ending: CancellationToken,
}

impl Taps {
    /// Nobody watches.
    pub fn new(sidecars: Arc<Sidecars>) -> Arc<Self> {
        let (wanted, _) = watch::channel(Wanted::default());
        Arc::new(Self { wanted, watching: Mutex::default(), next: AtomicU64::new(1), sidecars })
    }

    /// All that is wanted, as it changes; what is wanted already counts as a change.
    pub fn wanted(&self) -> watch::Receiver<Wanted> {
        let mut wanted = self.wanted.subscribe();
        if !wanted.borrow().taps.is_empty() {
            wanted.mark_changed();
        }
        wanted
    }

    /// Begins to watch, until the stream is dropped or this service ends.
    ///
    /// # Errors
    /// A filter that makes no sense, a header that is told to nobody, or too many who watch.
    pub fn watch(self: &Arc<Self>, request: TapRequest, ending: &CancellationToken) -> Result<TapStream, Status> {
        let (filter, tap) = self.accept(request)?;
        let (sender, calls) = mpsc::channel(WAITING);
        let watcher = Arc::new(Watcher {
            filter,
            tap,
            calls: sender,
            left_out: AtomicU64::new(0),
            told: Mutex::new((Instant::now(), 0)),
        });
        let mut watching = self.watching();
        if watching.len() >= TAPS {
            return Err(Status::resource_exhausted(format!(
                "{TAPS} operators watch calls already, and no more may: try again when one has ended"
            )));
        }
        watching.insert(watcher.tap.id, Arc::clone(&watcher));
        self.tell(&watching);
        drop(watching);
        let (taps, ending, tick) = (Arc::clone(self), ending.clone(), interval(STATE));
        let watching = Watching { taps, watcher, calls, tick, state: None, ending };
        Ok(Box::pin(futures_util::stream::unfold(watching, |mut watching| async move {
            watching.next().await.map(|response| (Ok(TapResponse { response: Some(response) }), watching))
        })))
    }

    fn accept(&self, TapRequest { filter, rate, headers }: TapRequest) -> Result<(Filter, Tap), Status> {
        let of = Filter::try_from(filter.clone().unwrap_or_default()).map_err(Status::invalid_argument)?;
        let rate = match rate {
            0 => USUAL_RATE,
            rate if rate <= HIGHEST_RATE => rate,
            rate => {
                return Err(Status::invalid_argument(format!(
                    "rate is {rate}, expected at most {HIGHEST_RATE} calls/s"
                )));
            }
        };
        if headers.len() > HEADERS {
            return Err(Status::invalid_argument(format!("expected at most {HEADERS} headers")));
        }
        let headers: Vec<_> = headers.iter().map(|name| name.to_ascii_lowercase()).collect();
        if let Some(name) = headers.iter().find(|name| telling(name) == Telling::Never) {
            return Err(Status::invalid_argument(format!(
                "header {name} may hold a credential, or is binary: its value is told to nobody"
            )));
        }
        let id = self.next.fetch_add(1, Relaxed);
        Ok((of, Tap { id, filter, rate, headers }))
    }

    /// Hands on what a sidecar tells, to whoever still watches.
    pub fn told(&self, sidecar: &Sidecar, Tapped { tap, calls, left_out }: Tapped) {
        let Some(watcher) = self.watching().get(&tap).cloned() else { return };
        watcher.left_out.fetch_add(left_out, Relaxed);
        for call in calls {
            if is_own(sidecar, &call) && watcher.filter.matches(&seen(&call)) {
                watcher.tell(TappedCall { instance: sidecar.instance.to_string(), ..call });
            }
        }
    }

    fn forget(&self, id: u64) {
        let mut watching = self.watching();
        watching.remove(&id);
        self.tell(&watching);
    }

    fn tell(&self, watching: &BTreeMap<u64, Arc<Watcher>>) {
        self.wanted.send_replace(Wanted { taps: watching.values().map(|watcher| watcher.tap.clone()).collect() });
    }

    fn watching(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Watcher>>> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    fn tell(&self, call: TappedCall) {
        if !self.take() || self.calls.try_send(call).is_err() {
            self.left_out.fetch_add(1, Relaxed);
        }
    }

    /// Whether one more call is within the rate of all sidecars together.
    fn take(&self) -> bool {
        let (began, told) = &mut *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if began.elapsed() >= STATE {
            (*began, *told) = (Instant::now(), 0);
        }
        *told += 1;
        *told <= self.tap.rate
    }
}

impl Watching {
    /// `None` when this service ends.
    async fn next(&mut self) -> Option<Response> {
        loop {
            if self.state.is_none() {
                return Some(self.told_state());
            }
            tokio::select! {
                () = self.ending.cancelled() => return None,
                Some(call) = self.calls.recv() => return Some(Response::Call(call)),
                _ = self.tick.tick() => {
                    if self.state != Some(self.state_now()) {
                        return Some(self.told_state());
                    }
                }
            }
        }
    }

    fn state_now(&self) -> TapState {
        let sidecars = u32::try_from(self.taps.sidecars.all().len()).unwrap_or(u32::MAX);
        TapState { sidecars, left_out: self.watcher.left_out.load(Relaxed) }
    }

    fn told_state(&mut self) -> Response {
        let state = self.state_now();
        self.state = Some(state);
        Response::State(state)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.taps.forget(self.watcher.tap.id);
    }
}

fn seen(call: &TappedCall) -> Seen<'_> {
    Seen {
        inbound: call.direction == INBOUND,
        refused: call.outcome() == Outcome::Refused,
        caller: &call.caller,
        service: &call.service,
        path: &call.path,
        tenant: &call.tenant,
    }
}

const INBOUND: &str = "inbound";

/// Whether the sidecar can have seen that call.
fn is_own(sidecar: &Sidecar, call: &TappedCall) -> bool {
    let own = match call.direction.as_str() {
        INBOUND => &call.service,
        "outbound" => &call.caller,
        _ => return false,
    };
    **own == *sidecar.service && call.encoded_len() <= CALL
}
