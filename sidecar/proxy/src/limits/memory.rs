//! The memory of the sidecar as a whole. What waits for readers is bounded a stream; where thousands of streams are not
//! read, this ends what nobody reads and takes nothing new.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
};

use sidecar_core::{Reason, Refusal};
use tikv_jemalloc_ctl::{epoch, stats};

/// Where there is no limit of a control group.
const DEFAULT_BUDGET: u64 = 1 << 30;
/// It is short of memory until less than this is in use, in percent of the budget.
const ENOUGH: u64 = 90;
/// Looks for which a stream may wait for its reader when memory becomes short: 5 s, and down to 1 s as long as it stays so.
const PATIENCE: (u32, u32) = (50, 10);
/// From so much on, in percent of the budget, it is 300 ms for all: calls that were let in before it was short go on filling.
const URGENT: u64 = 125;
const NO_PATIENCE: u32 = 3;

/// How much memory is in use, and what follows from it.
#[derive(Debug)]
pub struct Memory {
    /// Bytes that may be in use.
    budget: u64,
    /// Bytes that are.
    used: AtomicU64,
    short: AtomicBool,
    /// Counts the looks: what streams are dated by.
    tick: AtomicU32,
    /// Streams that have waited for their reader since before this tick are ended; 0: none.
    ended_before: AtomicU32,
    /// Calls that were ended.
    ended: AtomicU64,
}

impl Memory {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            budget,
            used: AtomicU64::new(0),
            short: AtomicBool::new(false),
            tick: AtomicU32::new(1),
            ended_before: AtomicU32::new(0),
            ended: AtomicU64::new(0),
        }
    }

    /// Whether no new calls are taken.
    pub fn is_short(&self) -> bool {
        self.short.load(Relaxed)
    }

    /// What streams are dated by; never 0.
    pub fn tick(&self) -> u32 {
        self.tick.load(Relaxed)
    }

    /// Streams whose reader has not read since before this are to be ended.
    pub fn ended_before(&self) -> Option<u32> {
        Some(self.ended_before.load(Relaxed)).filter(|tick| *tick > 0)
    }

    /// So many were.
    pub fn count(&self, calls: usize) {
        self.ended.fetch_add(calls as u64, Relaxed);
    }

    /// What whoever is turned away is told.
    pub fn refusal() -> Refusal {
        Refusal::new(Reason::Overloaded, "this sidecar has no memory left for more")
    }

    pub(super) fn figures(&self) -> (u64, u64) {
        (self.used.load(Relaxed), self.budget)
    }

    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// Asks the allocator.
    pub(super) fn look(&self) {
        let used = epoch::advance().and_then(|_| stats::allocated::read());
        // Another allocator than that of the binary: in tests.
        self.looked(used.map_or(0, |used| used as u64));
    }

    fn looked(&self, used: u64) {
        self.used.store(used, Relaxed);
        let tick = self.tick.fetch_add(1, Relaxed) + 1;
        let was = self.is_short();
        let short = used >= if was { self.budget / 100 * ENOUGH } else { self.budget };
        self.short.store(short, Relaxed);
        let (first, last) = PATIENCE;
        let before = match self.ended_before() {
            _ if !short => 0,
            _ if used >= self.budget / 100 * URGENT => tick.saturating_sub(NO_PATIENCE).max(1),
            None => tick.saturating_sub(first).max(1),
            // Those that have waited longest are ended first: each look catches up with two more.
            Some(before) => (before + 3).min(tick.saturating_sub(last)).max(1),
        };
        self.ended_before.store(before, Relaxed);
    }
}

/// Four fifths of what the control group may use, where that is limited.
#[must_use]
pub fn default_budget() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    // Each group is held to the limits of those around it.
    let around = root.join(group);
    let folders = around.ancestors().take_while(|folder| folder.starts_with(root));
    let limits = folders.map(|folder| folder.join("memory.max")).chain([root.join("memory/memory.limit_in_bytes")]);
    let least = limits.filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()).min();
    // Version 1 writes "no limit" as a number that nobody has.
    least.filter(|bytes| *bytes < 1 << 50).map_or(DEFAULT_BUDGET, |bytes| bytes / 5 * 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_memory_ends_those_first_who_have_waited_longest_until_there_is_enough() {
        let memory = Memory::new(1_000);
        for _ in 0..100 {
            memory.looked(999);
        }
        assert_eq!((memory.is_short(), memory.ended_before()), (false, None));
        memory.looked(1_000);
        assert_eq!((memory.is_short(), memory.ended_before()), (true, Some(memory.tick() - 50)));
        for _ in 0..100 {
            memory.looked(950);
        }
        assert_eq!((memory.is_short(), memory.ended_before()), (true, Some(memory.tick() - 10)));
        memory.looked(1_250);
        assert_eq!(memory.ended_before(), Some(memory.tick() - NO_PATIENCE));
        memory.looked(899);
        assert_eq!((memory.is_short(), memory.ended_before()), (false, None));
    }

    #[test]
    fn there_is_always_a_budget() {
        assert!(default_budget() > 1 << 20);
    }
}
