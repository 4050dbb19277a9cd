//! How many attempts beyond the first a destination may get: a share of its calls of the last ten seconds, and some in any
//! case. Bounds what retries add to an outage.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::route::RetryBudget;

/// Seconds that are remembered.
const WINDOW: u64 = 10;
const SLOTS: usize = WINDOW as usize;
const SECOND: u64 = 1_000_000_000;

/// What one destination got, by all workers. Atomics only.
#[derive(Debug, Default)]
pub struct Budget {
    calls: Counts,
    further: Counts,
}

/// Counts of the last seconds, each with its second in the upper half.
#[derive(Debug, Default)]
struct Counts([AtomicU64; SLOTS]);

impl Budget {
    /// A call came, whatever becomes of it.
    pub fn called(&self, now: u64) {
        self.calls.add(now / SECOND);
    }

    /// Takes one further attempt out of the budget; `false` when that is used up. However many take at once, never more than
    /// `limits` allow have been taken within ten seconds.
    pub fn take(&self, limits: &RetryBudget, now: u64) -> bool {
        let second = now / SECOND;
        let allowed =
            self.calls.sum(second) * u64::from(limits.percent) / 100 + u64::from(limits.min_per_second) * WINDOW;
        // Counted before it is compared: of two that come to the last one together, both see both.
        self.further.add(second);
        if self.further.sum(second) <= allowed {
            return true;
        }
        self.further.undo(second);
        false
    }

    /// Further attempts that were taken within the last ten seconds.
    pub fn taken(&self, now: u64) -> u64 {
        self.further.sum(now / SECOND)
    }
}

impl Counts {
    fn slot(&self, second: u64) -> &AtomicU64 {
        &self.0[(second % WINDOW) as usize]
    }

    fn add(&self, second: u64) {
        let slot = self.slot(second);
        let seen = slot.load(SeqCst);
        // The clock may go back: what is newer than now is kept and counted.
        if stamp(seen) >= second as u32 {
            slot.fetch_add(1, SeqCst);
            return;
        }
        let begun = (u64::from(second as u32) << 32) | 1;
        if slot.compare_exchange(seen, begun, SeqCst, SeqCst).is_err() {
            // Another worker has begun this second.
            slot.fetch_add(1, SeqCst);
        }
    }

    fn undo(&self, second: u64) {
        // Where the slot has passed to a later second, there is nothing left to take back.
        let _passed = self
            .slot(second)
            .fetch_update(SeqCst, SeqCst, |seen| (stamp(seen) >= second as u32 && seen as u32 > 0).then(|| seen - 1));
    }

    fn sum(&self, second: u64) -> u64 {
        let oldest = (second as u32).saturating_sub(WINDOW as u32 - 1);
        let counts = self.0.iter().map(|slot| slot.load(SeqCst));
        counts.filter(|seen| stamp(*seen) >= oldest).map(|seen| u64::from(seen as u32)).sum()
    }
}

/// The second that a count is of.
const fn stamp(seen: u64) -> u32 {
    (seen >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use proptest::prelude::*;

    use super::*;

    const LIMITS: RetryBudget = RetryBudget { percent: 20, min_per_second: 1 };

    #[test]
    fn a_share_of_the_calls_and_some_in_any_case() {
        let budget = Budget::default();
        assert_eq!((0..50).filter(|_| budget.take(&LIMITS, 0)).count(), 10);
        (0..100).for_each(|_| budget.called(SECOND));
        assert_eq!((0..50).filter(|_| budget.take(&LIMITS, SECOND)).count(), 20);
        // The first second has passed out of sight, its attempts too.
        assert_eq!((0..50).filter(|_| budget.take(&LIMITS, 10 * SECOND)).count(), 10);
        // Nothing of it is left a minute later.
        assert_eq!(budget.taken(60 * SECOND), 0);
        let none = RetryBudget { percent: 0, min_per_second: 0 };
        assert!(!budget.take(&none, 60 * SECOND));
    }

    #[test]
    fn workers_that_take_at_once_never_get_more_together() {
        let budget = Arc::new(Budget::default());
        (0..1_000).for_each(|_| budget.called(0));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let budget = Arc::clone(&budget);
                thread::spawn(move || (0..1_000).filter(|_| budget.take(&LIMITS, 0)).count())
            })
            .collect();
        let taken: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        // Two at the last one may both be turned away: never more, and hardly fewer.
        assert!((200..=210).contains(&taken), "{taken}");
    }

    proptest! {
        #[test]
        fn never_more_than_the_budget_in_any_ten_seconds(
            steps in prop::collection::vec((0_u64..1_500, 0_usize..8, 0_usize..8), 1..200),
            percent in 0_u32..=100,
            min_per_second in 0_u32..3,
        ) {
            let limits = RetryBudget { percent, min_per_second };
            let (budget, mut now) = (Budget::default(), 0_u64);
            let (mut calls, mut taken) = (Vec::new(), Vec::new());
            for (ms, called, tried) in steps {
                now += ms * 1_000_000;
                let second = now / SECOND;
                let recent = |all: &[u64]| all.iter().filter(|at| **at + WINDOW > second).count() as u64;
                for _ in 0..called {
                    budget.called(now);
                    calls.push(second);
                }
                for _ in 0..tried {
                    if budget.take(&limits, now) {
                        taken.push(second);
                        let allowed = recent(&calls) * u64::from(percent) / 100 + u64::from(min_per_second) * WINDOW;
                        prop_assert!(recent(&taken) <= allowed, "{} of {allowed}", recent(&taken));
                    }
                }
                prop_assert_eq!(budget.taken(now), recent(&taken));
            }
        }
    }
}
