//! How one endpoint does: latency, calls in flight, failed connects. Atomics only; written by every worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// After this long a measurement counts 1/e: as Finagle and linkerd have it.
const DECAY_NS: f64 = 10e9;
/// Stands for the latency of an endpoint that has calls in flight and has answered none: worse than any measured one.
const UNMEASURED_NS: f64 = 1e9;
/// Back-off after the first failed connect; doubled by each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_DOUBLINGS: u32 = 7;

/// What is known of one endpoint. Readers may see the parts of two updates mixed: it is a hint, never a count.
#[derive(Debug, Default)]
pub struct Load {
    /// Peak-EWMA of the latency in ns, as the bits of an f64; 0.0 when nothing was measured.
    latency: AtomicU64,
    /// When `latency` was written, monotonic ns.
    measured_at: AtomicU64,
    /// Calls that hold a [`Slot`].
    in_flight: AtomicU32,
    /// Failed connects since the last good one.
    failures: AtomicU32,
    /// No connect is wanted before this, monotonic ns.
    retry_at: AtomicU64,
}

/// One call's place at an endpoint: counts as in flight until it is dropped. Taking one allocates nothing.
#[derive(Debug)]
pub struct Slot(Arc<Load>);

impl Load {
    /// Counts a call as in flight for as long as the slot lives.
    pub fn start(self: &Arc<Self>) -> Slot {
        self.in_flight.fetch_add(1, Relaxed);
        Slot(Arc::clone(self))
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
        self.latency.store(new.to_bits(), Relaxed);
        self.measured_at.store(now, Relaxed);
    }

    /// Notes a failed connect: nobody should try again for a while, longer with each failure (100 ms to 12.8 s).
    pub fn connect_failed(&self, now: u64) {
        let failures = self.failures.fetch_add(1, Relaxed);
        let backoff = BACKOFF_FIRST * (1 << failures.min(BACKOFF_DOUBLINGS));
        let nanos = u64::try_from(backoff.as_nanos()).unwrap_or(u64::MAX);
        self.retry_at.store(now.saturating_add(nanos), Relaxed);
    }

    /// Notes a good connect.
    pub fn connected(&self) {
        self.failures.store(0, Relaxed);
        self.retry_at.store(0, Relaxed);
    }

    /// Whether it is not backing off after failed connects.
    pub fn is_available(&self, now: u64) -> bool {
        now >= self.retry_at.load(Relaxed)
    }

    /// What a further call is expected to cost here. Lower is better; only ever compared.
    pub fn cost(&self, now: u64) -> f64 {
        let in_flight = f64::from(self.in_flight());
        let latency = self.decayed(now);
        if latency == 0.0 { UNMEASURED_NS * in_flight } else { latency * (in_flight + 1.0) }
    }

    fn decayed(&self, now: u64) -> f64 {
        f64::from_bits(self.latency.load(Relaxed)) * self.kept(now)
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
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
