//! How calls ended: what they took and carried.

use std::time::Duration;

use mesh_telemetry::{Counts, Exemplar, RPC_BYTES, RPC_SECONDS};

use crate::metrics::{Direction, Outcome};

/// On which side a call ended, and with which gRPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ending {
    /// Of the client: of the callee's app, or of its own sidecar for it.
    pub direction: Direction,
    /// The number of the status.
    pub code: u8,
}

/// Of one call that ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure {
    /// From the request's headers to the end of the answer.
    pub took: Duration,
    /// Bytes of the messages of the request, without their framing.
    pub request: u64,
    /// The same of the answer.
    pub response: u64,
    /// Of its trace, where that is recorded, and when it ended.
    pub traced: Option<([u8; 16], Duration)>,
}

/// Calls that ended alike.
#[derive(Clone, Debug, Default)]
pub struct Measures {
    took: [u64; RPC_SECONDS.len() + 1],
    nanoseconds: u64,
    request: Sizes,
    response: Sizes,
    /// The latest of each bucket of `took` whose trace is recorded; few are.
    exemplars: Vec<(usize, Exemplar)>,
}

#[derive(Clone, Debug, Default)]
struct Sizes {
    buckets: [u64; RPC_BYTES.len() + 1],
    bytes: u64,
}

impl Sizes {
    fn had(&mut self, bytes: u64) {
        #[expect(clippy::cast_precision_loss, reason = "compared with bounds that are far from 2^53")]
        let bucket = place(RPC_BYTES, bytes as f64);
        self.buckets[bucket] += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn merge(&mut self, other: &Self) {
        merge(&mut self.buckets, &other.buckets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum for people")]
    fn counts(&self) -> Counts {
        Counts::new(RPC_BYTES, &self.buckets, self.bytes as f64)
    }
}

impl Measures {
    /// One more.
    pub fn had(&mut self, call: &Measure) {
        let bucket = place(RPC_SECONDS, call.took.as_secs_f64());
        self.took[bucket] += 1;
        self.nanoseconds = self.nanoseconds.saturating_add(u64::try_from(call.took.as_nanos()).unwrap_or(u64::MAX));
        self.request.had(call.request);
        self.response.had(call.response);
        if let Some((trace, at)) = call.traced {
            self.shows(bucket, Exemplar { trace, value: call.took.as_secs_f64(), at });
        }
    }

    /// All of the others.
    pub fn merge(&mut self, others: &Self) {
        merge(&mut self.took, &others.took);
        self.nanoseconds = self.nanoseconds.saturating_add(others.nanoseconds);
        self.request.merge(&others.request);
        self.response.merge(&others.response);
        others.exemplars.iter().for_each(|(bucket, exemplar)| self.shows(*bucket, *exemplar));
    }

    fn shows(&mut self, bucket: usize, exemplar: Exemplar) {
        match self.exemplars.iter_mut().find(|(of, _)| *of == bucket) {
            Some((_, shown)) if shown.at > exemplar.at => {}
            Some((_, shown)) => *shown = exemplar,
            None => self.exemplars.push((bucket, exemplar)),
        }
    }

    /// What they took, in seconds.
    #[expect(clippy::cast_precision_loss, reason = "a sum for people")]
    pub fn took(&self) -> Counts {
        Counts::new(RPC_SECONDS, &self.took, self.nanoseconds as f64 / 1e9)
    }

    /// One entry for each bucket of [`Measures::took`].
    pub fn exemplars(&self) -> impl Iterator<Item = Option<Exemplar>> {
        (0..self.took.len()).map(|bucket| self.exemplars.iter().find(|(of, _)| *of == bucket).map(|(_, it)| *it))
    }

    /// Bytes of the requests.
    pub fn request(&self) -> Counts {
        self.request.counts()
    }

    /// Bytes of the answers.
    pub fn response(&self) -> Counts {
        self.response.counts()
    }
}

/// Of the first bucket whose bound `value` does not exceed.
fn place(bounds: &[f64], value: f64) -> usize {
    bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len())
}

fn merge(buckets: &mut [u64], others: &[u64]) {
    buckets.iter_mut().zip(others).for_each(|(bucket, more)| *bucket += more);
}

/// Calls of one tenant that ended, by [`Outcome`].
pub type Ended = [u64; Outcome::ALL.len()];

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(trace: u8, milliseconds: u64, at: u64) -> Measure {
        let traced = Some(([trace; 16], Duration::from_secs(at)));
        Measure { took: Duration::from_millis(milliseconds), request: 10, response: 5_000, traced }
    }

    #[test]
    fn what_was_merged_is_what_would_have_been_counted_in_one_place() {
        let calls = [traced(1, 3, 10), traced(2, 4, 20), traced(3, 700, 15), Measure::default(), traced(4, 3, 12)];
        let (mut all, mut parts) = (Measures::default(), [Measures::default(), Measures::default()]);
        for (number, call) in calls.iter().enumerate() {
            all.had(call);
            parts[number % 2].had(call);
        }
        let [mut merged, other] = parts;
        merged.merge(&other);
        assert_eq!((merged.took(), merged.request(), merged.response()), (all.took(), all.request(), all.response()));
        let shown = |of: &Measures| of.exemplars().flatten().map(|it| it.trace[0]).collect::<Vec<_>>();
        assert_eq!(shown(&all), [2, 3], "the latest of each bucket, though others were counted after it");
        assert_eq!(shown(&merged), shown(&all));
    }
}
