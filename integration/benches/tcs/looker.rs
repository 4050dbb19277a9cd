//! One thread that looks tenants up, and how long that takes it.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde_json::Value;

use crate::report::{histogram, latency};

/// Keys that are looked up, in no order.
pub struct Keys(Vec<String>);

impl Keys {
    /// `count` of the keys that `key` makes of 0 to `records`.
    pub fn of(records: u64, count: usize, key: impl Fn(u64) -> String) -> Self {
        let mut random = SmallRng::seed_from_u64(7);
        Self((0..count).map(|_| key(random.random_range(0..records))).collect())
    }

    /// The key of this step, read as a call has read the header that it stands in: fetching it from memory is no part of a
    /// look-up.
    pub fn read(&self, step: usize) -> &str {
        let key = self.at(step);
        black_box(key.bytes().fold(0_u8, u8::wrapping_add));
        key
    }

    fn at(&self, step: usize) -> &str {
        &self.0[step % self.0.len()]
    }
}

/// Each look-up timed by itself, for `time`: p50, p99, max (a reading of the clock included), and how many a second one
/// thread makes.
pub fn timed(keys: &Keys, time: Duration, mut look_up: impl FnMut(&str) -> bool) -> Value {
    let mut times = histogram();
    let (began, mut step, mut found) = (Instant::now(), 0, 0_usize);
    while began.elapsed() < time {
        let key = keys.read(step);
        let before = Instant::now();
        found += usize::from(look_up(key));
        times.saturating_record(nanos(before.elapsed()));
        step += 1;
    }
    let mut figures = latency(&times);
    // Without a clock between any two.
    let (began, rounds) = (Instant::now(), step.min(5_000_000));
    for step in 0..rounds {
        found += usize::from(look_up(keys.at(step)));
    }
    black_box(found);
    figures["per_second"] =
        (f64::from(u32::try_from(rounds).unwrap_or(u32::MAX)) / began.elapsed().as_secs_f64()).into();
    figures
}

/// Looks up a little every 200 µs, as calls do, until it is stopped, and notes how long each took: a stall is one of them
/// that takes long.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Histogram<u64>>,
}

impl Watch {
    /// Begins. Every key must be found at any time: the answer `false` counts as a failure and ends the benchmark.
    pub fn start(keys: Keys, look_up: impl Fn(&str) -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut times = histogram();
            let mut step = 0;
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    let key = keys.read(step);
                    let before = Instant::now();
                    assert!(look_up(key), "{key} was not found");
                    times.saturating_record(nanos(before.elapsed()));
                    step += 1;
                }
                std::thread::park_timeout(Duration::from_micros(200));
            }
            times
        });
        Self { stop, thread }
    }

    /// Every look-up since the start.
    pub fn stop(self) -> Histogram<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every look-up found its tenant")
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
