//! Calls by direction: relaxed atomics, which a scrape reads.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_telemetry::{Counts, Page};
use sidecar_core::Reason;

use super::{Direction, Metrics, Outcome};

/// Upper bounds of the latency histogram, in seconds.
const BOUNDS: [f64; 14] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Threads that count apart; any more share.
const SHARDS: usize = 8;

/// Counters of one direction. Only relaxed atomics: a call pays a nanosecond each, and a scrape stops nobody.
#[derive(Debug)]
pub struct Calls {
    every: [Every; SHARDS],
    refused: Vec<AtomicU64>,
    audited: AtomicU64,
    connections: AtomicI64,
}

/// What each call counts, on cache lines that no other worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Every {
    started: AtomicU64,
    ended: [AtomicU64; Outcome::ALL.len()],
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            every: Default::default(),
            refused: Reason::ALL.iter().map(|_| AtomicU64::default()).collect(),
            audited: AtomicU64::default(),
            connections: AtomicI64::default(),
        }
    }
}

/// Which shard is this thread's.
fn shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = THREADS.fetch_add(1, Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

impl Calls {
    /// A call has come in.
    pub fn started(&self) {
        self.every[shard()].started.fetch_add(1, Relaxed);
    }

    /// The call is over.
    pub fn ended(&self, outcome: Outcome, took: Duration) {
        let every = &self.every[shard()];
        every.ended[outcome as usize].fetch_add(1, Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        every.buckets[bucket].fetch_add(1, Relaxed);
        every.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// One of the counters of every call, of all threads.
    fn sum(&self, of: impl Fn(&Every) -> &AtomicU64) -> u64 {
        self.every.iter().map(|every| of(every).load(Relaxed)).sum()
    }

    /// A refusal was made, at the start of a call or in the middle of a stream.
    pub fn refused(&self, reason: Reason) {
        if let Some(index) = Reason::ALL.iter().position(|other| *other == reason) {
            self.refused[index].fetch_add(1, Relaxed);
        }
    }

    /// Audit mode let a call pass that enforcement would have refused.
    pub fn audited(&self) {
        self.audited.fetch_add(1, Relaxed);
    }

    /// A connection was accepted; it is counted as open until the guard is dropped.
    pub fn connected(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Relaxed);
        Connected(Arc::clone(self))
    }

    /// Accepted connections that are open.
    #[must_use]
    pub fn connections(&self) -> i64 {
        self.connections.load(Relaxed)
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum of seconds for people")]
    fn durations(&self) -> Counts {
        let buckets: [u64; BOUNDS.len() + 1] = std::array::from_fn(|bucket| self.sum(|every| &every.buckets[bucket]));
        Counts::new(&BOUNDS, &buckets, self.sum(|every| &every.nanoseconds) as f64 / 1e9)
    }

    /// Calls that have started and not ended. Zero once all is quiet: tests hold on to that.
    #[must_use]
    pub fn in_flight(&self) -> i64 {
        let started = self.sum(|every| &every.started);
        let ended: u64 = Outcome::ALL.into_iter().map(|outcome| self.sum(|every| &every.ended[outcome as usize])).sum();
        i64::try_from(started).unwrap_or(i64::MAX) - i64::try_from(ended).unwrap_or(i64::MAX)
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Connected(Arc<Calls>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// Writes those of both directions.
pub(super) fn show(metrics: &Metrics, page: &mut Page<'_, '_>) -> fmt::Result {
    let both = Direction::ALL.map(|direction| (("direction", direction.as_str()), &**metrics.calls(direction)));
    let of = |count: fn(&Calls) -> u64| both.map(|(direction, calls)| ([direction], count(calls)));
    page.counter("tenon_calls_started", "Calls that came in", of(|calls| calls.sum(|every| &every.started)))?;
    let ended = both.iter().flat_map(|(direction, calls)| {
        Outcome::ALL.map(|outcome| {
            ([*direction, ("outcome", outcome.as_str())], calls.sum(|every| &every.ended[outcome as usize]))
        })
    });
    page.counter("tenon_calls_ended", "Calls that ended, by how", ended)?;
    let open = both.map(|(direction, calls)| ([direction], calls.connections()));
    page.gauge("tenon_connections", "Open accepted connections", open)?;
    let refused = both.iter().flat_map(|(direction, calls)| {
        let counts = Reason::ALL.iter().zip(&calls.refused);
        counts.map(|(reason, count)| ([*direction, ("reason", reason.as_str())], count.load(Relaxed)))
    });
    page.counter("tenon_refusals", "Refusals, by reason", refused)?;
    let help = "Calls that audit mode let pass and enforcement would have refused";
    page.counter("tenon_audited_calls", help, of(|calls| calls.audited.load(Relaxed)))?;
    let durations = both.map(|(direction, calls)| ([direction], calls.durations()));
    page.histogram("tenon_call_duration_seconds", "From the request's headers to the end of the answer", durations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_started_and_ended_is_no_longer_in_flight() {
        let calls = Calls::default();
        calls.started();
        calls.started();
        calls.ended(Outcome::Finished, Duration::from_millis(3));
        assert_eq!(calls.in_flight(), 1);
        calls.ended(Outcome::Cancelled, Duration::from_secs(30));
        assert_eq!(calls.in_flight(), 0);
    }
}
