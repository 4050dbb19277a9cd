//! How many log lines of one sort a second may bring.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Lines a second; those above are counted and the count stands in the next line.
const LINES: u64 = 100;

/// A budget shared by all workers. Races between them cost or save a line, no more.
#[derive(Debug, Default)]
pub struct LineBudget {
    second: AtomicU64,
    taken: AtomicU64,
    unlogged: AtomicU64,
}

impl LineBudget {
    /// Whether one more line may be written at `now` (Unix seconds), and how many were not since the last one.
    pub fn take(&self, now: u64) -> Option<u64> {
        if self.second.swap(now, Relaxed) != now {
            self.taken.store(0, Relaxed);
        }
        if self.taken.fetch_add(1, Relaxed) < LINES {
            Some(self.unlogged.swap(0, Relaxed))
        } else {
            self.unlogged.fetch_add(1, Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_a_hundred_lines_a_second_and_is_counted() {
        let budget = LineBudget::default();
        let written = (0..1_000).filter(|_| budget.take(1).is_some()).count();
        assert_eq!(written, 100);
        assert_eq!(budget.take(2), Some(900));
        assert_eq!(budget.take(2), Some(0));
    }
}
