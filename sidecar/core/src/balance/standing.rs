//! Whether an endpoint gets calls: ejected when it fails, let back in by one good call, and then by and by.
//!
//! ```text
//!          failures in a row, success rate            time over: one call
//!   in use ─────────────────────────────────► ejected ───────────────────► on probation
//!     ▲ slow start                              ▲                             │      │
//!     └─────────────────────────────────────────┼───────── it went well ──────┘      │
//!                                               └───────── longer ───── it failed ◄──┘
//! ```

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use super::{
    group::{Cause, Group},
    load::Load,
};

/// It failed and gets no calls.
const EJECTED: u32 = 1;
/// By its own word (gRPC health) it cannot serve.
const SICK: u32 = 2;
/// It is not among the endpoints of its destination any more.
const GONE: u32 = 4;
/// The call that decides whether it comes back is chosen and has not begun.
const OFFERED: u32 = 8;
/// That call is on its way.
const PROBED: u32 = 16;
/// That call has the head of a good answer: a long stream need not end for it.
const ANSWERED: u32 = 32;
/// What probation leaves behind.
const PROBATION: u32 = OFFERED | PROBED | ANSWERED;

/// [`Standing::since`] of an endpoint that nobody has looked at yet.
const UNSEEN: u64 = u64::MAX;
/// Until the call of a probation has shown something no other one is let through, but for this long at most.
const PROBE_NS: u64 = 30_000_000_000;
/// A call of a probation whose answer has begun well and that is still open after this long has gone well.
const STREAMING_NS: u64 = 5_000_000_000;
/// No ejection is longer than this, however many came before.
const LONGEST_NS: u64 = 300_000_000_000;
/// The smallest share of its share that a new endpoint gets.
const LEAST_WEIGHT: f64 = 0.1;
/// One call in the counts of [`Standing::counts`], so that they can fade without being rounded away.
pub(super) const ONE: u32 = 16;

/// How an endpoint stands.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The bits above.
    bits: AtomicU32,
    /// When its ejection ends, or its probation; monotonic ns.
    until: AtomicU64,
    /// Ejections that count for the length of the next.
    times: AtomicU32,
    /// When it last came back, monotonic ns.
    returned_at: AtomicU64,
    /// When its slow start began, monotonic ns; 0: it has had it, [`UNSEEN`]: with the first look.
    since: AtomicU64,
    /// Failures in a row.
    in_a_row: AtomicU32,
    /// Calls that went well, and calls that failed, in [`ONE`]s; fading.
    ok: AtomicU32,
    bad: AtomicU32,
    /// Why it was ejected last: a discriminant of [`Cause`].
    cause: AtomicU32,
    /// Ejections in all, and how many of them, with how it stood then, somebody was told of.
    ejections: AtomicU32,
    told: AtomicU64,
}

/// In a word, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Gets its share.
    InUse,
    /// New or back, and gets a growing share.
    Starting,
    /// No connection can be had; nobody tries for a while.
    BackingOff,
    /// Left out because it failed.
    Ejected,
    /// Ejected, and one call is on its way to see whether it is well again.
    Probation,
    /// Left out because it says itself that it cannot serve.
    Unhealthy,
}

impl State {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 6] =
        [Self::InUse, Self::Starting, Self::BackingOff, Self::Ejected, Self::Probation, Self::Unhealthy];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::Starting => "starting",
            Self::BackingOff => "backing_off",
            Self::Ejected => "ejected",
            Self::Probation => "probation",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What became of an endpoint since somebody asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It was ejected, until so many ns from now.
    Ejected(Cause, u64),
    /// It cannot serve by its own word.
    Unhealthy,
    /// It is in use again.
    Returned,
}

impl Standing {
    pub(super) fn new(new: bool) -> Self {
        Self { since: AtomicU64::new(if new { UNSEEN } else { 0 }), ..Self::default() }
    }

    pub(super) fn is_out(&self) -> bool {
        self.bits.load(Relaxed) & (EJECTED | SICK) != 0
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.bits.load(Relaxed) & EJECTED != 0
    }

    pub(super) fn until(&self) -> u64 {
        self.until.load(Acquire)
    }

    /// The share of its share that it gets at `now`: grows from a tenth to one over the slow start.
    pub(super) fn weight(&self, slow_start: u64, now: u64) -> f64 {
        let since = match self.since.load(Relaxed) {
            0 => return 1.0,
            UNSEEN => {
                let _other_thread_was_first = self.since.compare_exchange(UNSEEN, now.max(1), Relaxed, Relaxed);
                now
            }
            since => since,
        };
        let age = now.saturating_sub(since);
        if age >= slow_start {
            let _came_back_anew = self.since.compare_exchange(since, 0, Relaxed, Relaxed);
            return 1.0;
        }
        (age as f64 / slow_start as f64).max(LEAST_WEIGHT)
    }

    /// Whether it gets less than its share at `now`. For whoever only looks: a slow start that nobody has begun is not begun.
    fn is_starting(&self, slow_start: u64, now: u64) -> bool {
        match self.since.load(Relaxed) {
            0 => false,
            UNSEEN => slow_start > 0,
            since => now.saturating_sub(since) < slow_start,
        }
    }

    /// Makes the caller the one whose call decides whether the endpoint comes back, once its ejection is over.
    pub(super) fn offer(&self, now: u64) -> bool {
        let until = self.until();
        let bits = self.bits.load(Acquire);
        let wanted = bits & EJECTED != 0 && bits & (SICK | GONE | ANSWERED) == 0 && now >= until;
        let next = now.saturating_add(PROBE_NS);
        if !wanted || self.until.compare_exchange(until, next, AcqRel, Relaxed).is_err() {
            return false;
        }
        self.bits.fetch_or(OFFERED | PROBED, AcqRel);
        true
    }

    /// Whether the call that begins now is that one.
    pub(super) fn take_offered(&self) -> bool {
        self.bits.load(Relaxed) & OFFERED != 0 && self.bits.fetch_and(!OFFERED, AcqRel) & OFFERED != 0
    }

    /// The answer to the call of the probation has begun.
    pub(super) fn probe_answered(&self, now: u64) {
        self.until.store(now.saturating_add(STREAMING_NS), Relaxed);
        self.bits.fetch_or(ANSWERED, AcqRel);
    }

    /// The call of the probation is over; unless it was answered it has shown nothing, and another one may be it.
    pub(super) fn probe_again(&self, group: &Group) {
        if self.bits.load(Acquire) & ANSWERED != 0 {
            return;
        }
        self.bits.fetch_and(!PROBATION, AcqRel);
        self.until.store(0, Relaxed);
        group.due(0);
    }

    /// A call went well.
    pub(super) fn well(&self) {
        self.ok.fetch_add(ONE, Relaxed);
        if self.in_a_row.load(Relaxed) != 0 {
            self.in_a_row.store(0, Relaxed);
        }
    }

    /// Calls that went well and calls that failed, in [`ONE`]s.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.ok.load(Relaxed), self.bad.load(Relaxed))
    }

    /// Lets a tenth of the counts go.
    pub(super) fn fade(&self) {
        for count in [&self.ok, &self.bad] {
            // Another thread may forget them in between.
            let faded = |count: u32| Some(count - count.div_ceil(10));
            let _always_set = count.fetch_update(Relaxed, Relaxed, faded);
        }
    }

    pub(super) fn forget(&self) {
        for count in [&self.ok, &self.bad, &self.in_a_row] {
            count.store(0, Relaxed);
        }
    }

    /// What became of it since this was asked last.
    pub(super) fn turn(&self, now: u64) -> Option<Turn> {
        let (bits, ejections) = (self.bits.load(Acquire), self.ejections.load(Acquire));
        let seen = u64::from(ejections) << 8 | u64::from(bits & (EJECTED | SICK));
        let told = self.told.swap(seen, Relaxed);
        let cause = Cause::ALL[self.cause.load(Relaxed) as usize % Cause::ALL.len()];
        if told == seen {
            None
        } else if bits & EJECTED != 0 && told >> 8 != u64::from(ejections) {
            Some(Turn::Ejected(cause, self.until().saturating_sub(now)))
        } else if bits & (EJECTED | SICK) == 0 {
            Some(Turn::Returned)
        } else if bits & SICK != 0 {
            Some(Turn::Unhealthy)
        } else {
            None
        }
    }
}

impl Load {
    /// How it stands at `now`.
    pub fn state(&self, now: u64) -> State {
        let bits = self.standing.bits.load(Relaxed);
        if bits & SICK != 0 {
            State::Unhealthy
        } else if bits & PROBED != 0 {
            State::Probation
        } else if bits & EJECTED != 0 {
            State::Ejected
        } else if !self.is_available(now) {
            State::BackingOff
        } else if self.standing.is_starting(self.group.slow_start(), now) {
            State::Starting
        } else {
            State::InUse
        }
    }

    /// When its ejection ends, monotonic ns, and why it was ejected; `None` while it is not.
    pub fn ejected(&self) -> Option<(u64, Cause)> {
        let cause = Cause::ALL[self.standing.cause.load(Relaxed) as usize % Cause::ALL.len()];
        self.standing.is_ejected().then(|| (self.standing.until(), cause))
    }

    /// Calls that failed in a row by its fault.
    pub fn failures(&self) -> u32 {
        self.standing.in_a_row.load(Relaxed)
    }

    /// A call failed by its fault.
    pub(super) fn failed(&self, now: u64) {
        self.standing.bad.fetch_add(ONE, Relaxed);
        let in_a_row = self.standing.in_a_row.fetch_add(1, Relaxed).saturating_add(1);
        if self.group.consecutive().is_some_and(|most| in_a_row >= most) {
            self.eject(Cause::Consecutive, now);
        }
    }

    /// Leaves it out for a while, unless too many are left out already. Says whether it did.
    pub(super) fn eject(&self, cause: Cause, now: u64) -> bool {
        let (standing, group) = (&self.standing, &self.group);
        if standing.bits.load(Relaxed) & (EJECTED | GONE) != 0 || self.is_one_too_many() {
            return false;
        }
        // What lies back long enough does not count any more.
        let in_use = now.saturating_sub(standing.returned_at.load(Relaxed)) / group.ejection();
        let before = standing.times.load(Relaxed).saturating_sub(u32::try_from(in_use).unwrap_or(u32::MAX));
        // Before anyone can see that it is ejected.
        let until = standing.sentence(group, before + 1, now);
        let ejected = self.leave_out(EJECTED);
        if ejected {
            self.sentenced(cause, until);
        }
        ejected
    }

    /// So many are left out that this one cannot be.
    fn is_one_too_many(&self) -> bool {
        !self.standing.is_out() && self.group.out() >= self.group.allowed()
    }

    /// Leaves it out for one of two reasons. It takes one place, also where it has both. Says whether it does now and did not.
    fn leave_out(&self, reason: u32) -> bool {
        let (bits, group) = (&self.standing.bits, &self.group);
        let reserved = bits.load(Acquire) & (EJECTED | SICK) == 0;
        if reserved && !group.reserve() {
            return false;
        }
        let set = |bits: u32| (bits & (reason | GONE) == 0).then_some(bits | reason);
        let before = bits.fetch_update(AcqRel, Acquire, set).map(|bits| bits & (EJECTED | SICK) != 0);
        match (before, reserved) {
            (Ok(true), false) | (Ok(false), true) => true,
            // The other reason came, or went, in between.
            (Ok(true), true) => {
                group.release();
                true
            }
            (Ok(false), false) => {
                let room = group.reserve();
                if !room {
                    bits.fetch_and(!reason, AcqRel);
                }
                room
            }
            (Err(_), reserved) => {
                if reserved {
                    group.release();
                }
                false
            }
        }
    }

    /// The one call failed: ejected again, for longer.
    pub(super) fn probation_failed(&self, now: u64) {
        let standing = &self.standing;
        let until = standing.sentence(&self.group, standing.times.load(Relaxed).saturating_add(1), now);
        let bits = standing.bits.fetch_and(!PROBATION, AcqRel);
        if bits & EJECTED != 0 {
            self.sentenced(Cause::Probation, until);
        }
    }

    fn sentenced(&self, cause: Cause, until: u64) {
        self.standing.cause.store(cause as u32, Relaxed);
        self.standing.ejections.fetch_add(1, AcqRel);
        self.standing.forget();
        self.group.count(cause);
        self.group.due(until);
    }

    /// In use again, with a slow start.
    pub(super) fn return_to_use(&self, now: u64) {
        if self.readmit(EJECTED | PROBATION, now.max(1)) {
            self.standing.returned_at.store(now, Relaxed);
            self.forget_latency();
        }
    }

    /// Ends a probation whose call goes on and on.
    pub(super) fn look_at_probation(&self, now: u64) {
        if self.standing.bits.load(Acquire) & ANSWERED != 0 && now >= self.standing.until() {
            self.return_to_use(now);
        }
    }

    /// What gRPC health says of it. `false` when it should be left out and too many are already.
    pub fn set_healthy(&self, healthy: bool, now: u64) -> bool {
        let standing = &self.standing;
        if healthy {
            if standing.bits.load(Relaxed) & SICK != 0 {
                self.readmit(SICK, now.max(1));
            }
            return true;
        }
        standing.bits.load(Relaxed) & SICK != 0 || self.leave_out(SICK)
    }

    /// Fewer may be left out than are: this one comes back whatever it did.
    pub(super) fn pardon(&self) {
        self.readmit(EJECTED | PROBATION | SICK, UNSEEN);
    }

    /// It is no endpoint of its destination any more: it takes no place from the others.
    pub(super) fn leave(&self) {
        if self.standing.bits.swap(GONE, AcqRel) & (EJECTED | SICK) != 0 {
            self.group.release();
        }
    }

    /// Whether it is in use now and was not.
    fn readmit(&self, cleared: u32, since: u64) -> bool {
        let standing = &self.standing;
        let bits = standing.bits.fetch_and(!cleared, AcqRel);
        let out = bits & (EJECTED | SICK);
        let readmitted = out != 0 && out & !cleared == 0;
        if readmitted {
            standing.forget();
            standing.since.store(since, Relaxed);
            self.group.release();
        }
        readmitted
    }
}

impl Standing {
    /// Sets the end of the ejection that is the `times`-th.
    fn sentence(&self, group: &Group, times: u32, now: u64) -> u64 {
        let length = group.ejection().saturating_mul(u64::from(times)).min(LONGEST_NS.max(group.ejection()));
        let until = now.saturating_add(length);
        self.times.store(times, Relaxed);
        self.until.store(until, Relaxed);
        until
    }
}
