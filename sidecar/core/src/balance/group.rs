//! What the instances of one destination share: when they are left out, and how many may be. Atomics only; kept from state
//! to state, as the loads are.

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use crate::route::Route;

/// Why an instance was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// So many calls in a row failed.
    Consecutive,
    /// Fewer of its calls succeed than of the others'.
    SuccessRate,
    /// The one call that was to show that it is well again failed.
    Probation,
}

impl Cause {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Consecutive, Self::SuccessRate, Self::Probation];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive_failures",
            Self::SuccessRate => "success_rate",
            Self::Probation => "probation",
        }
    }
}

/// What the instances of one destination share.
#[derive(Debug, Default)]
pub struct Group {
    /// How many instances there are.
    size: AtomicU32,
    /// How many of them are left out: ejected, or unhealthy by their own word.
    out: AtomicU32,
    /// The earliest moment at which an ejected one may be tried again, monotonic ns. May be too early.
    due_at: AtomicU64,
    /// No instance backs off after failed connects for longer than this, monotonic ns.
    backing_off_until: AtomicU64,
    /// A call was made to this destination.
    used: AtomicBool,
    /// Ejections so far, by cause.
    ejections: [AtomicU64; Cause::ALL.len()],
    /// [`crate::route::Outliers::consecutive_failures`]; 0: never.
    consecutive: AtomicU32,
    /// [`crate::route::Outliers::max_ejected_percent`].
    max_percent: AtomicU32,
    /// [`crate::route::Outliers::success_rate_stdev`] as the bits of an f64; 0.0: never.
    stdevs: AtomicU64,
    /// [`crate::route::Outliers::ejection`] in ns.
    ejection: AtomicU64,
    /// [`Route::slow_start`] in ns; 0: none.
    slow_start: AtomicU64,
}

impl Group {
    /// Follows the destination's `Route`, for so many instances.
    pub(super) fn set(&self, route: &Route, size: usize) {
        let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let outliers = route.outliers;
        self.consecutive.store(outliers.consecutive_failures.unwrap_or(0), Relaxed);
        self.stdevs.store(outliers.success_rate_stdev.unwrap_or(0.0).to_bits(), Relaxed);
        self.max_percent.store(outliers.max_ejected_percent, Relaxed);
        self.ejection.store(nanos(outliers.ejection).max(1), Relaxed);
        self.slow_start.store(nanos(route.slow_start), Relaxed);
        self.size.store(u32::try_from(size).unwrap_or(u32::MAX), Relaxed);
    }

    /// How many may be left out at once: the configured share, at least one, never more than half, so never the last one.
    pub(super) fn allowed(&self) -> u32 {
        let (size, percent) = (self.size.load(Relaxed), self.max_percent.load(Relaxed));
        if percent == 0 {
            return 0;
        }
        let share = u64::from(size) * u64::from(percent) / 100;
        u32::try_from(share).unwrap_or(u32::MAX).max(1).min(size / 2)
    }

    /// How many are left out.
    pub(super) fn out(&self) -> u32 {
        self.out.load(Relaxed)
    }

    /// Takes one of the places of those that may be left out, if one is free.
    pub(super) fn reserve(&self) -> bool {
        let allowed = self.allowed();
        self.out.fetch_update(AcqRel, Acquire, |out| (out < allowed).then_some(out + 1)).is_ok()
    }

    /// Gives a place back.
    pub(super) fn release(&self) {
        let _never_below_zero = self.out.fetch_update(AcqRel, Acquire, |out| out.checked_sub(1));
    }

    /// No instance is left out, and none backs off: nobody has to look at each of them.
    pub(super) fn is_calm(&self, now: u64) -> bool {
        self.out() == 0 && now >= self.backing_off_until.load(Relaxed)
    }

    pub(super) fn backs_off_until(&self, until: u64) {
        self.backing_off_until.fetch_max(until, Relaxed);
    }

    /// An ejected instance may be tried again from `at` on.
    pub(super) fn due(&self, at: u64) {
        self.due_at.fetch_min(at, AcqRel);
    }

    /// Whether an ejected instance may be due, so that somebody should look. Who is told so looks at all of them and says
    /// [`Group::due`] for each.
    pub(super) fn is_due(&self, now: u64) -> bool {
        let due_at = self.due_at.load(Relaxed);
        now >= due_at && self.due_at.compare_exchange(due_at, u64::MAX, AcqRel, Relaxed).is_ok()
    }

    pub(super) fn count(&self, cause: Cause) {
        self.ejections[cause as usize].fetch_add(1, Relaxed);
    }

    /// Ejections so far.
    pub fn ejections(&self, cause: Cause) -> u64 {
        self.ejections[cause as usize].load(Relaxed)
    }

    /// Whether a call was ever made to this destination.
    pub fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    pub(super) fn use_it(&self) {
        // Written once: a line that all workers write on each call would cost them.
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    /// Failures in a row that eject, where they do.
    pub(super) fn consecutive(&self) -> Option<u32> {
        Some(self.consecutive.load(Relaxed)).filter(|failures| *failures > 0)
    }

    /// Standard deviations below the mean that eject, where they do.
    pub(super) fn stdevs(&self) -> Option<f64> {
        Some(f64::from_bits(self.stdevs.load(Relaxed))).filter(|stdevs| *stdevs > 0.0)
    }

    /// Of the first ejection, ns.
    pub(super) fn ejection(&self) -> u64 {
        self.ejection.load(Relaxed)
    }

    /// Of a new instance, ns.
    pub(super) fn slow_start(&self) -> u64 {
        self.slow_start.load(Relaxed)
    }
}
