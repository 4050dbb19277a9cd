//! Calls at a fixed rate, whatever becomes of those before: how long each took counts from when it was due, so that a stall
//! shows in every call that it held up (no coordinated omission).

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Calls under way at once, at most: beyond, the machine and not the mesh is what is measured.
const UNDER_WAY: usize = 4_096;

/// One call: when it was due after the beginning, how long it took from then, and what failed it.
#[derive(Debug, Clone)]
pub struct Made {
    pub due: Duration,
    pub took: Duration,
    pub failure: Option<String>,
}

/// Calls that go on until they are stopped.
pub struct OpenLoop {
    begun: Instant,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Vec<Made>>,
}

/// What came of them, in the order in which they were due.
#[derive(Debug)]
pub struct Record {
    pub calls: Vec<Made>,
}

impl OpenLoop {
    /// Makes `call` so many times a second; its error is what failed it.
    pub fn start<F, T>(per_second: u32, call: F) -> Self
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (stop, begun) = (CancellationToken::new(), Instant::now());
        let task = tokio::spawn(run(begun, Duration::from_secs(1) / per_second, call, stop.clone()));
        Self { begun, stop, task }
    }

    /// Since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Ends when the calls under way have ended.
    ///
    /// # Panics
    /// When a call panicked.
    pub async fn stop(self) -> Record {
        self.stop.cancel();
        Record { calls: self.task.await.expect("no call panics") }
    }
}

impl Record {
    /// Those that were due between two moments after the beginning.
    pub fn between(&self, from: Duration, until: Duration) -> impl Iterator<Item = &Made> {
        self.calls.iter().filter(move |call| (from..until).contains(&call.due))
    }

    /// The share of calls that did not fail, and how long `quantile` of them took at most; of those due between the two.
    #[must_use]
    pub fn summary(&self, from: Duration, until: Duration, quantile: f64) -> (f64, Duration) {
        let mut took: Vec<Duration> = self.between(from, until).map(|call| call.took).collect();
        took.sort_unstable();
        let good = self.between(from, until).filter(|call| call.failure.is_none()).count();
        let at = (took.len() as f64 * quantile) as usize;
        let quantile = took.get(at.min(took.len().saturating_sub(1))).copied().unwrap_or_default();
        (good as f64 / took.len().max(1) as f64, quantile)
    }

    /// What failed, and how often.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<&str, usize> {
        let mut failures = BTreeMap::new();
        for failure in self.calls.iter().filter_map(|call| call.failure.as_deref()) {
            *failures.entry(failure).or_default() += 1;
        }
        failures
    }
}

async fn run<F, T>(begun: Instant, every: Duration, call: F, stop: CancellationToken) -> Vec<Made>
where
    F: Fn() -> T,
    T: Future<Output = Result<(), String>> + Send + 'static,
{
    let (mut under_way, mut calls) = (JoinSet::new(), Vec::new());
    for number in 0_u32.. {
        let due = every * number;
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep_until(begun + due) => {}
        }
        while let Some(Ok(made)) = under_way.try_join_next() {
            calls.push(made);
        }
        if under_way.len() >= UNDER_WAY {
            let failure = Some("too many calls are under way".to_owned());
            calls.push(Made { due, took: Duration::ZERO, failure });
            continue;
        }
        let answer = call();
        under_way.spawn(async move {
            let failure = answer.await.err();
            Made { due, took: begun.elapsed().saturating_sub(due), failure }
        });
    }
    calls.extend(under_way.join_all().await);
    calls.sort_by_key(|call| call.due);
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stall_counts_for_every_call_that_was_due_in_it() {
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let open = std::sync::Arc::clone(&gate);
        let calls = OpenLoop::start(1_000, move || {
            let gate = std::sync::Arc::clone(&gate);
            async move { gate.acquire().await.map(drop).map_err(|error| error.to_string()) }
        });
        let held = open.acquire().await.expect("open");
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(held);
        let record = calls.stop().await;
        let took = |number: usize| record.calls[number].took.as_millis();
        // Each waits for what is left of the stall.
        assert_eq!([took(0), took(50), took(150)], [200, 150, 50]);
        assert!(record.failures().is_empty());
    }
}
