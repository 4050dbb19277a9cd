//! What the methods of one destination take, for hedging after the 95th percentile. Written by every worker, without locks.

use std::{
    hash::{BuildHasher as _, Hasher as _},
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ahash::RandomState;

/// Methods of one destination; further ones are not measured, and so not hedged. 22 KB in all, taken with the first.
const METHODS: usize = 64;
/// Four buckets for each power of two from 64 µs on, up to 67 s.
const BUCKETS: usize = 80;
const FIRST_OCTAVE: u32 = 16;
/// So few calls say nothing of the slowest ones.
const ENOUGH: u32 = 50;
/// With so many calls all counts are halved: what was long ago fades.
const FULL: u32 = 2_000;

/// Histograms by method.
#[derive(Debug, Default)]
pub struct Latencies(OnceLock<Box<Table>>);

#[derive(Debug)]
struct Table {
    hasher: RandomState,
    methods: [Method; METHODS],
}

#[derive(Debug)]
struct Method {
    /// Hash of its path; zero: free. Two paths of one hash share a histogram.
    key: AtomicU64,
    total: AtomicU32,
    buckets: [AtomicU32; BUCKETS],
}

impl Latencies {
    /// An answer took so long.
    pub fn note(&self, path: &str, nanoseconds: u64) {
        let table = self.0.get_or_init(Table::new);
        let Some(method) = table.find(path, true) else { return };
        method.buckets[bucket(nanoseconds)].fetch_add(1, Relaxed);
        if method.total.fetch_add(1, Relaxed) + 1 == FULL {
            method.halve();
        }
    }

    /// What 19 of 20 calls of `path` stay below; `None` while too few are known.
    pub fn p95(&self, path: &str) -> Option<Duration> {
        let method = self.0.get()?.find(path, false)?;
        let counts = method.buckets.each_ref().map(|bucket| bucket.load(Relaxed));
        let total: u32 = counts.iter().sum();
        if total < ENOUGH {
            return None;
        }
        let mut slower = total / 20;
        for (index, count) in counts.iter().enumerate().rev() {
            if *count > slower {
                return Some(Duration::from_nanos(upper_bound(index)));
            }
            slower -= count;
        }
        None
    }
}

impl Table {
    fn new() -> Box<Self> {
        let method = |_| Method {
            key: AtomicU64::new(0),
            total: AtomicU32::new(0),
            buckets: std::array::from_fn(|_| AtomicU32::new(0)),
        };
        Box::new(Self { hasher: RandomState::new(), methods: std::array::from_fn(method) })
    }

    fn find(&self, path: &str, make: bool) -> Option<&Method> {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(path.as_bytes());
        let key = hasher.finish().max(1);
        let start = (key % METHODS as u64) as usize;
        for index in (start..METHODS).chain(0..start) {
            let method = &self.methods[index];
            let mut seen = method.key.load(Relaxed);
            if seen == 0 {
                if !make {
                    return None;
                }
                seen = method.key.compare_exchange(0, key, Relaxed, Relaxed).map_or_else(|other| other, |_| key);
            }
            if seen == key {
                return Some(method);
            }
        }
        None
    }
}

impl Method {
    /// Others may count meanwhile: nothing depends on one more or less.
    fn halve(&self) {
        let mut total = 0;
        for bucket in &self.buckets {
            let half = bucket.load(Relaxed) / 2;
            bucket.store(half, Relaxed);
            total += half;
        }
        self.total.store(total, Relaxed);
    }
}

fn bucket(nanoseconds: u64) -> usize {
    let octave = 63 - nanoseconds.max(1 << FIRST_OCTAVE).leading_zeros();
    let quarter = (nanoseconds.max(1 << FIRST_OCTAVE) >> (octave - 2)) & 3;
    (((octave - FIRST_OCTAVE) * 4) as usize + quarter as usize).min(BUCKETS - 1)
}

/// The first number of nanoseconds that the bucket does not have.
fn upper_bound(bucket: usize) -> u64 {
    let (octave, quarter) = (FIRST_OCTAVE + (bucket / 4) as u32, (bucket % 4) as u64);
    (5 + quarter) << (octave - 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_95th_percentile_is_known_when_enough_calls_are() {
        let latencies = Latencies::default();
        assert_eq!(latencies.p95("/a.B/Get"), None);
        for call in 0..49 {
            latencies.note("/a.B/Get", if call % 20 == 0 { 900 * MS } else { 10 * MS });
        }
        assert_eq!(latencies.p95("/a.B/Get"), None);
        (49..200).for_each(|call| latencies.note("/a.B/Get", if call % 20 == 0 { 900 * MS } else { 10 * MS }));
        let p95 = latencies.p95("/a.B/Get").unwrap();
        assert!((10..13).contains(&p95.as_millis()), "{p95:?}");
        assert_eq!(latencies.p95("/a.B/List"), None);
    }

    #[test]
    fn what_was_long_ago_fades() {
        let latencies = Latencies::default();
        (0..1_999).for_each(|_| latencies.note("/a.B/Get", 500 * MS));
        (0..20_000).for_each(|_| latencies.note("/a.B/Get", 10 * MS));
        assert!(latencies.p95("/a.B/Get").unwrap() < Duration::from_millis(13));
    }

    #[test]
    fn the_number_of_methods_is_bounded() {
        let latencies = Latencies::default();
        for number in 0..1_000 {
            (0..60).for_each(|_| latencies.note(&format!("/a.B/M{number}"), MS));
        }
        let measured = (0..1_000).filter(|number| latencies.p95(&format!("/a.B/M{number}")).is_some()).count();
        assert_eq!(measured, METHODS);
    }

    proptest! {
        #[test]
        fn every_latency_lies_in_its_bucket(nanoseconds in 0_u64..60_000_000_000) {
            let bucket = bucket(nanoseconds);
            prop_assert!(nanoseconds < upper_bound(bucket));
            prop_assert!(bucket == 0 || nanoseconds >= upper_bound(bucket - 1));
        }
    }
}
