//! Calls by direction: relaxed atomics, which a scrape reads.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_telemetry::{Counts, Page};
use sidecar_core::Reason;

use super::{Direction, Metrics, Outcome};

/// Upper bounds of the latency histogram, in seconds.
const BOUNDS: [f64; 14] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Counters of one direction. Only relaxed atomics: a call pays a nanosecond each, and a scrape stops nobody.
#[derive(Debug)]
pub struct Calls {
    started: AtomicU64,
    ended: [AtomicU64; Outcome::ALL.len()],
    refused: Vec<AtomicU64>,
    audited: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
    connections: AtomicI64,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            started: AtomicU64::default(),
            ended: Default::default(),
            refused: Reason::ALL.iter().map(|_| AtomicU64::default()).collect(),
            audited: AtomicU64::default(),
            buckets: Default::default(),
            nanoseconds: AtomicU64::default(),
            connections: AtomicI64::default(),
        }
    }
}

impl Calls {
    /// A call has come in.
    pub fn started(&self) {
        self.started.fetch_add(1, Relaxed);
    }

    /// The call is over.
    pub fn ended(&self, outcome: Outcome, took: Duration) {
        self.ended[outcome as usize].fetch_add(1, Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
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
        let buckets = self.buckets.each_ref().map(|count| count.load(Relaxed));
        Counts::new(&BOUNDS, &buckets, self.nanoseconds.load(Relaxed) as f64 / 1e9)
    }

    /// Calls that have started and not ended. Zero once all is quiet: tests hold on to that.
    #[must_use]
    pub fn in_flight(&self) -> i64 {
        let started = self.started.load(Relaxed);
        let ended: u64 = self.ended.iter().map(|count| count.load(Relaxed)).sum();
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
    let of = |count: fn(&Calls) -> &AtomicU64| both.map(|(direction, calls)| ([direction], count(calls).load(Relaxed)));
    page.counter("tenon_calls_started", "Calls that came in", of(|calls| &calls.started))?;
    let ended = both.iter().flat_map(|(direction, calls)| {
        Outcome::ALL
            .map(|outcome| ([*direction, ("outcome", outcome.as_str())], calls.ended[outcome as usize].load(Relaxed)))
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
    page.counter("tenon_audited_calls", help, of(|calls| &calls.audited))?;
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
