//! How one endpoint does: latency, calls in flight, failed connects. Atomics only; written by every worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{group::Group, standing::Standing};
use crate::{Code, Reason};

/// After this long a measurement counts 1/e: as Finagle and linkerd have it.
const DECAY_NS: f64 = 10e9;
/// Stands for the latency of an endpoint that has calls in flight and has answered none: worse than any measured one.
const UNMEASURED_NS: f64 = 1e9;
/// A refusal for lack of room counts as an answer that took so many times what answers take:
const PENALTY: f64 = 8.0;
/// no less than this, and no more than that. A fast refusal must not make an endpoint the fastest of all.
const PENALTY_NS: (f64, f64) = (10e6, 1e9);
/// A failure as one that took twice as long, within these.
const FAILED_NS: (f64, f64) = (10e6, 40e6);
/// Who is outrun and has answered nobody for so long has failed, and is not only slower than others.
const OUTRUN_NS: u64 = 10_000_000_000;
/// Back-off after the first failed connect; doubled by each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_DOUBLINGS: u32 = 7;
/// For so long nobody else connects while one tries again after failures: longer than connecting may take.
const CONNECTING_NS: u64 = 3_000_000_000;

/// What is known of one endpoint. Readers may see the parts of two updates mixed: it is a hint, never a count.
#[derive(Debug, Default)]
pub struct Load {
    /// Peak-EWMA of the latency in ns, as the bits of an f64; 0.0 when nothing was measured.
    latency: AtomicU64,
    /// When `latency` was written, monotonic ns.
    measured_at: AtomicU64,
    /// When it last answered a call, monotonic ns.
    answered_at: AtomicU64,
    /// Calls that hold a [`Slot`].
    in_flight: AtomicU32,
    /// Failed connects since the last good one.
    failures: AtomicU32,
    /// No connect is wanted before this, monotonic ns.
    retry_at: AtomicU64,
    /// Whether it gets calls at all.
    pub(super) standing: Standing,
    /// What it shares with the other endpoints of its destination.
    pub(super) group: Arc<Group>,
}

/// What an attempt has shown of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The head of an answer was there after so many nanoseconds. How the call ends is still to come: [`Slot::ended`].
    Answered {
        /// Nanoseconds.
        took: u64,
    },
    /// It refused for lack of room (RESOURCE_EXHAUSTED): quick, and no reason to send more there.
    Busy {
        /// Nanoseconds.
        took: u64,
    },
    /// It refused by policy, or let the call go before it began (drain): says nothing about how it does.
    Refused,
    /// It answered with a failure of its own (UNAVAILABLE, say), reset the call, or the connection broke.
    Failed,
    /// The call's deadline passed, so many nanoseconds after it was sent, and nothing of an answer had come. Where other
    /// calls were answered meanwhile that is the deadline's fault; else the endpoint may be a black hole.
    Silent {
        /// Nanoseconds.
        took: u64,
    },
    /// An attempt at another instance that began later was answered first, and this one was given up so many nanoseconds
    /// after it was sent.
    Outrun {
        /// Nanoseconds.
        took: u64,
    },
    /// The call was over, so many nanoseconds after it had begun to wait, before there was a connection for it.
    Waited {
        /// Nanoseconds.
        took: u64,
    },
    /// There was no connection to be had.
    Unreachable,
}

/// How a call that was answered has ended, as far as the endpoint can help it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The endpoint did what was asked of it; a failure of the caller's making (NOT_FOUND, say) is none of its own.
    Well,
    /// It failed.
    Failed,
    /// Nobody can say: the caller went away.
    Unknown,
}

/// UNKNOWN, INTERNAL, UNAVAILABLE and DATA_LOSS: gRPC statuses that are the fault of who answers with them, whatever was
/// asked. DEADLINE_EXCEEDED is none: the time was the caller's choice.
pub fn is_own_fault(code: u32) -> bool {
    matches!(code, 2 | 13 | 14 | 15)
}

/// What a refusal by the callee's own sidecar has shown of the instance, after `took` nanoseconds.
pub fn shown_by_refusal(reason: Reason, took: u64) -> Shown {
    match (reason, reason.code()) {
        (Reason::Overloaded, _) => Shown::Busy { took },
        // A replica that is a little behind what the caller has seen is no fault; one that has nothing is.
        (Reason::TenantStale, _) => Shown::Refused,
        (_, Code::Unavailable) => Shown::Failed,
        (_, _) => Shown::Refused,
    }
}

/// One call's place at an endpoint: counts as in flight until it is dropped. Taking one allocates nothing.
#[derive(Debug)]
pub struct Slot {
    load: Arc<Load>,
    /// It is the one call that decides whether an ejected endpoint comes back.
    probe: bool,
    /// What the call has shown is counted: once, however often it is said.
    settled: AtomicBool,
}

impl Load {
    /// One of the endpoints of a destination; `new` where others are known already and this one was not.
    pub(super) fn new(group: &Arc<Group>, new: bool) -> Self {
        Self { standing: Standing::new(new), group: Arc::clone(group), ..Self::default() }
    }

    /// Counts a call as in flight for as long as the slot lives.
    pub fn start(self: &Arc<Self>) -> Slot {
        self.in_flight.fetch_add(1, Relaxed);
        self.group.use_it();
        Slot { load: Arc::clone(self), probe: self.standing.take_offered(), settled: AtomicBool::new(false) }
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// The smoothed latency as it counts at `now`; zero when nothing was measured or all of it is long ago.
    pub fn latency(&self, now: u64) -> Duration {
        Duration::from_nanos(self.decayed(now) as u64)
    }

    /// Notes that an answer took `latency_ns`. A slower answer than expected counts at once, a faster one by and by.
    pub fn observe(&self, latency_ns: u64, now: u64) {
        let (latency, old) = (latency_ns as f64, f64::from_bits(self.latency.load(Relaxed)));
        let kept = self.kept(now);
        let new = if latency >= old { latency } else { old * kept + latency * (1.0 - kept) };
        self.measured(new, now);
    }

    /// Notes that an answer was not there after so many nanoseconds.
    pub fn observe_at_least(&self, latency_ns: u64, now: u64) {
        if latency_ns as f64 > self.decayed(now) {
            self.observe(latency_ns, now);
        }
    }

    /// Notes that it failed: for its cost that is a slower answer. Not by much, or it would get too few calls to be seen to
    /// fail, and would go on getting those.
    fn not_quick(&self, now: u64) {
        let (decayed, (least, most)) = (self.decayed(now), FAILED_NS);
        self.measured(decayed.max((decayed * 2.0).clamp(least, most)), now);
    }

    /// Notes that it had no room: for its cost that is a slow answer.
    fn penalize(&self, took: u64, now: u64) {
        let (least, most) = PENALTY_NS;
        let penalty = (self.decayed(now) * PENALTY).clamp(least, most);
        self.measured(penalty.max(took as f64), now);
    }

    fn measured(&self, latency: f64, now: u64) {
        self.latency.store(latency.to_bits(), Relaxed);
        self.measured_at.store(now, Relaxed);
    }

    /// What was measured before it was left out says nothing now.
    pub(super) fn forget_latency(&self) {
        self.latency.store(0, Relaxed);
    }

    /// Notes a failed connect: nobody should try again for a while, longer with each failure (100 ms to 12.8 s).
    pub fn connect_failed(&self, now: u64) {
        let failures = self.failures.fetch_add(1, Relaxed);
        let backoff = BACKOFF_FIRST * (1 << failures.min(BACKOFF_DOUBLINGS));
        let until = now.saturating_add(u64::try_from(backoff.as_nanos()).unwrap_or(u64::MAX));
        self.retry_at.store(until, Relaxed);
        self.group.backs_off_until(until);
    }

    /// Connects that failed in a row.
    pub fn failed_connects(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// Notes a good connect.
    pub fn connected(&self) {
        // Mostly it is so already, and a line that is only read stays in every core's cache.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.retry_at.store(0, Relaxed);
        }
    }

    /// Whether it is not backing off after failed connects.
    pub fn is_available(&self, now: u64) -> bool {
        now >= self.retry_at.load(Relaxed)
    }

    /// Whether a call may go there: after failed connects one call alone tries whether it can be reached again, and the
    /// others do not wait with it.
    pub(super) fn claim(&self, now: u64) -> bool {
        if self.failures.load(Relaxed) == 0 {
            return true;
        }
        let retry_at = self.retry_at.load(Relaxed);
        let until = now.saturating_add(CONNECTING_NS);
        let claimed = now >= retry_at && self.retry_at.compare_exchange(retry_at, until, Relaxed, Relaxed).is_ok();
        if claimed {
            self.group.backs_off_until(until);
        }
        claimed
    }

    /// Whether it may be chosen: not left out, not backing off.
    pub(super) fn is_usable(&self, now: u64) -> bool {
        !self.standing.is_out() && self.is_available(now)
    }

    /// What a further call is expected to cost here. Lower is better; only ever compared.
    pub fn cost(&self, now: u64) -> f64 {
        let in_flight = f64::from(self.in_flight());
        let latency = self.decayed(now);
        if latency == 0.0 { UNMEASURED_NS * in_flight } else { latency * (in_flight + 1.0) }
    }

    /// Whether it has answered a call yet.
    pub(super) fn is_measured(&self) -> bool {
        self.latency.load(Relaxed) != 0
    }

    fn decayed(&self, now: u64) -> f64 {
        let latency = f64::from_bits(self.latency.load(Relaxed));
        if latency == 0.0 { 0.0 } else { latency * self.kept(now) }
    }

    /// The share of the last measurement that still counts.
    fn kept(&self, now: u64) -> f64 {
        let age = now.saturating_sub(self.measured_at.load(Relaxed));
        (-(age as f64) / DECAY_NS).exp()
    }
}

impl Slot {
    /// Where the call went.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Notes what the attempt has shown of the endpoint. After [`Shown::Answered`] comes [`Slot::ended`]; all else is the
    /// last word.
    pub fn report(&self, shown: Shown, now: u64) {
        let load = &*self.load;
        match shown {
            Shown::Answered { took } => {
                load.connected();
                load.observe(took, now);
                load.answered_at.store(now, Relaxed);
                if self.probe {
                    load.standing.probe_answered(now);
                }
            }
            Shown::Busy { took } => {
                load.connected();
                load.penalize(took, now);
                self.settle(Ended::Unknown, now);
            }
            Shown::Refused => {
                load.connected();
                self.settle(Ended::Unknown, now);
            }
            Shown::Failed => {
                load.connected();
                self.settle(Ended::Failed, now);
            }
            Shown::Silent { took } => {
                let answered = load.answered_at.load(Relaxed) > now.saturating_sub(took);
                self.settle(if answered { Ended::Unknown } else { Ended::Failed }, now);
            }
            Shown::Outrun { took } => {
                load.observe_at_least(took, now);
                let answered = load.answered_at.load(Relaxed) > now.saturating_sub(took.max(OUTRUN_NS));
                self.settle(if answered { Ended::Unknown } else { Ended::Failed }, now);
            }
            Shown::Waited { took } => {
                load.observe_at_least(took, now);
                // As below.
                self.settle(if self.probe { Ended::Failed } else { Ended::Unknown }, now);
            }
            Shown::Unreachable => {
                load.connect_failed(now);
                // The back-off keeps calls away; only an ejected endpoint must not come back by it.
                self.settle(if self.probe { Ended::Failed } else { Ended::Unknown }, now);
            }
        }
    }

    /// The call has ended.
    pub fn ended(&self, ended: Ended, now: u64) {
        self.settle(ended, now);
    }

    fn settle(&self, ended: Ended, now: u64) {
        if self.settled.swap(true, Relaxed) {
            return;
        }
        if ended == Ended::Failed {
            self.load.not_quick(now);
        }
        match (self.probe, ended) {
            (true, Ended::Well) => self.load.return_to_use(now),
            (true, Ended::Failed) => self.load.probation_failed(now),
            (true, Ended::Unknown) => self.load.standing.probe_again(&self.load.group),
            (false, Ended::Well) => self.load.standing.well(),
            (false, Ended::Failed) => self.load.failed(now),
            (false, Ended::Unknown) => {}
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Relaxed);
        if self.probe && !*self.settled.get_mut() {
            self.load.standing.probe_again(&self.load.group);
        }
    }
}
