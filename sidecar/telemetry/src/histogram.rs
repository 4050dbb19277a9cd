//! A histogram of fixed bounds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts values into buckets, with relaxed atomics: a scrape stops nobody, and may see a value in the sum that it does not
/// see in a bucket yet.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds, each included in its bucket, rising.
    bounds: &'static [f64],
    /// One more than bounds.
    buckets: Box<[AtomicU64]>,
    /// In units of `1 / SCALE`: times in nanoseconds, sizes in billionths of bytes would overflow, so that sizes have 1.
    sum: AtomicU64,
    scale: f64,
}

/// What was counted up to a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    pub(crate) sum: f64,
    pub(crate) count: u64,
    /// Each with its upper bound, the last without end.
    pub(crate) buckets: Vec<(f64, u64)>,
}

impl Counts {
    /// `buckets` has one more than `bounds`.
    #[must_use]
    pub fn new(bounds: &[f64], buckets: &[u64], sum: f64) -> Self {
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(buckets.iter().copied()).collect();
        Self { sum, count: buckets.iter().map(|(_, count)| count).sum(), buckets }
    }
}

impl Histogram {
    /// Of durations, in seconds.
    #[must_use]
    pub fn of_seconds(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1e9)
    }

    /// Of sizes, in bytes.
    #[must_use]
    pub fn of_bytes(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1.0)
    }

    fn new(bounds: &'static [f64], scale: f64) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0), scale }
    }

    /// Something took so long.
    pub fn took(&self, took: Duration) {
        self.count(took.as_secs_f64(), u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Something had so many bytes.
    pub fn had(&self, bytes: u64) {
        #[expect(clippy::cast_precision_loss, reason = "compared with bounds that are far from 2^53")]
        self.count(bytes as f64, bytes);
    }

    fn count(&self, value: f64, units: u64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(units, Relaxed);
    }

    /// What was counted until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let buckets: Vec<_> = self.buckets.iter().map(|count| count.load(Relaxed)).collect();
        #[expect(clippy::cast_precision_loss, reason = "a sum for people")]
        let sum = self.sum.load(Relaxed) as f64 / self.scale;
        Counts::new(self.bounds, &buckets, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::of_seconds(&[0.5, 1.0]);
        for milliseconds in [0, 500, 501, 1000, 1001] {
            histogram.took(Duration::from_millis(milliseconds));
        }
        let counts = histogram.counts();
        assert_eq!(counts.buckets, [(0.5, 2), (1.0, 2), (f64::INFINITY, 1)]);
        assert_eq!(counts.count, 5);
        assert!((counts.sum - 3.002).abs() < 1e-9, "{}", counts.sum);
    }

    #[test]
    fn bytes_are_summed_as_they_are() {
        let histogram = Histogram::of_bytes(&[10.0]);
        histogram.had(10);
        histogram.had(1 << 40);
        assert_eq!(histogram.counts().buckets, [(10.0, 1), (f64::INFINITY, 1)]);
        assert!((histogram.counts().sum - 1_099_511_627_786.0).abs() < 1.0);
    }
}
