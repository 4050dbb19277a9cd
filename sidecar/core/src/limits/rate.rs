//! How often one tenant may use one rule: a generic cell rate algorithm (GCRA, ITU-T I.371) over a table of fixed size.
//!
//! A cell is one number, the theoretical arrival time (TAT): when the tenant has paid for all of its calls so far. A call
//! may come until the TAT lies so far ahead that the burst is used up, and moves it on by one interval. Cells live in sets
//! of [`WAYS`]; one whose TAT has passed is worth as much as none and is used again, so nothing has to be tidied up, and
//! nothing is allocated once the table is there.
//!
//! **When a set is full** of cells that all still mean something, the one that ends soonest goes, and the newcomer inherits
//! its TAT, so far as that leaves it one call: it has the burst behind it and goes on at its rate. A tenant that is pushed
//! out gains one call by that, and to be pushed out between any two of its calls there would have to be more calls of
//! others on its set than of its own; nobody passes unlimited, and nobody who is new is refused for what others did.

use std::{
    sync::{
        OnceLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use ahash::RandomState;

use crate::policy::Rate;

/// Cells that one hash may be in: two cache lines.
const WAYS: usize = 8;
/// Sets of the table of a sidecar: 131,072 cells, 2 MiB.
const SETS: usize = 16_384;
/// No cell.
const VACANT: u64 = 0;

/// What tenants have used of the rates of rules. Exact over all threads, and kept by the names of Allowlist and rule: a
/// policy that comes meanwhile changes what may be used, not what was.
#[derive(Debug)]
pub struct Rates {
    /// Made at the first call of a rule with a rate.
    sets: OnceLock<Box<[Set]>>,
    /// How many sets there will be.
    size: usize,
    /// Unknown to tenants: nobody chooses whose set they are in.
    hashes: RandomState,
}

#[derive(Debug, Default)]
struct Set {
    /// Held for the moment in which a cell gets another owner. Calls of tenants that have a cell do not look at it.
    entering: AtomicBool,
    cells: [Cell; WAYS],
}

#[derive(Debug, Default)]
struct Cell {
    /// Hash of rule and tenant.
    key: AtomicU64,
    /// Theoretical arrival time in nanoseconds.
    tat: AtomicU64,
}

/// Who uses which rule.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Use<'a> {
    /// The Allowlist of the rule.
    pub allowlist: &'a str,
    /// Its name.
    pub rule: &'a str,
    /// Who shares one bucket.
    pub party: Bearer<'a>,
}

/// Whose calls are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bearer<'a> {
    /// The calls for this tenant, of whichever caller.
    Tenant(&'a str),
    /// The calls of this service that name no tenant.
    Caller(&'a str),
}

impl Default for Rates {
    fn default() -> Self {
        Self::with_sets(SETS)
    }
}

impl Rates {
    fn with_sets(size: usize) -> Self {
        Self { sets: OnceLock::new(), size, hashes: RandomState::new() }
    }

    /// Counts one call at `now` (nanoseconds of any monotonic clock that never goes back).
    ///
    /// # Errors
    /// The rate is used up: in how long one more call would be let in.
    pub fn take(&self, rate: Rate, by: &Use<'_>, now: u64) -> Result<(), Duration> {
        let key = self.hashes.hash_one(by).max(VACANT + 1);
        let sets = self.sets.get_or_init(|| (0..self.size).map(|_| Set::default()).collect());
        let index = usize::try_from(key).unwrap_or(usize::MAX) % sets.len();
        let pace = Pace::of(rate);
        let set = &sets[index];
        loop {
            let found = set.cells.iter().find(|cell| cell.key.load(Acquire) == key);
            let taken = match found {
                Some(cell) => cell.take(key, pace, now),
                None => set.enter(key, pace, now),
            };
            if let Some(outcome) = taken {
                return outcome;
            }
        }
    }
}

impl Rates {
    /// What [`Rates::take`] would say at `now`. Counts nothing.
    ///
    /// # Errors
    /// The rate is used up: in how long one more call would be let in.
    pub fn look(&self, rate: Rate, by: &Use<'_>, now: u64) -> Result<(), Duration> {
        let key = self.hashes.hash_one(by).max(VACANT + 1);
        let Some(sets) = self.sets.get() else { return Ok(()) };
        let set = &sets[usize::try_from(key).unwrap_or(usize::MAX) % sets.len()];
        // Whoever has no cell has room for a call.
        let found = set.cells.iter().find(|cell| cell.key.load(Acquire) == key);
        found.map_or(Ok(()), |cell| Pace::of(rate).pay(cell.tat.load(Acquire), now).1)
    }
}

impl Set {
    /// Gives the caller a cell and counts its first call; `None`: look again.
    fn enter(&self, key: u64, pace: Pace, now: u64) -> Option<Result<(), Duration>> {
        if self.entering.compare_exchange(false, true, AcqRel, Relaxed).is_err() {
            std::hint::spin_loop();
            return None;
        }
        let entered = self.enter_alone(key, pace, now);
        self.entering.store(false, Release);
        entered
    }

    fn enter_alone(&self, key: u64, pace: Pace, now: u64) -> Option<Result<(), Duration>> {
        if self.cells.iter().any(|cell| cell.key.load(Acquire) == key) {
            return None;
        }
        let soonest = self.cells.iter().min_by_key(|cell| cell.tat.load(Acquire))?;
        let before = soonest.tat.load(Acquire);
        // A newcomer always has room for one call.
        let inherited = before.clamp(now, now.saturating_add(pace.burst));
        let paid = inherited.saturating_add(pace.interval);
        // Its owner may use it this very moment: then it is not the one that ends soonest.
        soonest.tat.compare_exchange(before, paid, AcqRel, Relaxed).ok()?;
        soonest.key.store(key, Release);
        Some(Ok(()))
    }
}

impl Cell {
    /// `None`: it has another owner by now, or somebody else was faster.
    fn take(&self, key: u64, pace: Pace, now: u64) -> Option<Result<(), Duration>> {
        let held = self.tat.load(Acquire);
        if self.key.load(Acquire) != key {
            return None;
        }
        let (paid, outcome) = pace.pay(held, now);
        if paid != held {
            self.tat.compare_exchange(held, paid, AcqRel, Relaxed).ok()?;
        }
        Some(outcome)
    }
}

/// A rate as GCRA counts it, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// What one call costs.
    interval: u64,
    /// How far the TAT may lie ahead when a call comes.
    burst: u64,
}

impl Pace {
    /// More than a call a nanosecond is a call a nanosecond.
    fn of(rate: Rate) -> Self {
        let per = u64::try_from(rate.per.as_nanos()).unwrap_or(u64::MAX);
        let interval = (per / rate.count.max(1)).max(1);
        Self { interval, burst: interval.saturating_mul(rate.burst.max(1) - 1) }
    }

    /// What the TAT becomes by a call at `now`, and whether it passes.
    fn pay(self, held: u64, now: u64) -> (u64, Result<(), Duration>) {
        // What a slower rate had booked ahead before the policy changed does not count beyond what this one can book.
        let tat = held.clamp(now, now.saturating_add(self.burst).saturating_add(self.interval));
        let ahead = tat - now;
        if ahead > self.burst {
            (tat, Err(Duration::from_nanos(ahead - self.burst)))
        } else {
            (tat.saturating_add(self.interval), Ok(()))
        }
    }
}

#[cfg(test)]
mod tests;
