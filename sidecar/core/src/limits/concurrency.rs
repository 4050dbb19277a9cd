//! How many calls are at the app at once, and whose.
//!
//! Below the limit everybody is let in: a place that nobody else wants is not kept free. At the limit only those are who
//! have less than their share, and they at once: they need not wait until those who have more give places back, so the
//! limit is exceeded, by as much again at the most. Shares are max-min fair: what a party does
//! not want is divided among those who want more. A party is a tenant, or a service whose calls name no tenant.
//!
//! A party has its share when it has as many calls at the app now, or had on average lately: where a share is less than one
//! call, taking turns is fair, and coming often is not. Calls of a party that is well below its share may come in bunches, of
//! three times the share at the most, unless it wants more than it gets anyhow: then it is held to its share.

use std::{
    sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64,
        Ordering::{AcqRel, Relaxed},
    },
    time::Duration,
};

use super::gradient::{CLASSES, Gradient, Latency, Window};
use crate::route::Limits;

/// Looks after which a party that made no call counts no more: about a second.
const LATELY: u64 = 10;
/// Looks after which nobody is refused for the sake of a party that made no call: about five seconds.
const RECENTLY: u64 = 50;
/// Whoever is refused more than so many of a thousand calls wants more than it gets.
const HUNGRY: u64 = 250;
/// What a look leaves of what was used before it: half is forgotten within two thirds of a second.
const FORGET: f64 = 0.9;
/// How much above its share nobody is held to it, so that who takes just its share is not refused by chance.
const SLACK: f64 = 1.2;
/// Workers whose latencies are written apart; any more share them.
const SHARDS: usize = 8;
/// A latency that is longer is taken for a minute.
const LONGEST_US: u64 = 60_000_000;

/// The calls at one app. Shared by all workers; only [`Concurrency::look`] wants to be called by one at a time. On cache lines
/// of its own: each call writes here, and what lies beside it is only read.
#[derive(Debug)]
#[repr(align(128))]
pub struct Concurrency {
    /// Calls at once.
    limit: AtomicU32,
    /// Calls at the app now.
    in_use: AtomicU32,
    /// The most calls at once, whoever has a right to one more.
    ceiling: AtomicU32,
    /// The most that were in use since the last look.
    peak: AtomicU32,
    /// The fewest.
    fewest: AtomicU32,
    /// Calls that were refused since the last look.
    turned_away: AtomicU32,
    /// Whether anybody is refused at all.
    bites: AtomicBool,
    /// Whether anybody called lately: whoever comes then is the second.
    somebody: AtomicBool,
    /// Counts the looks.
    turn: AtomicU64,
    /// The share of a party that was not there at the last look, in thousandths of a call.
    newcomer: AtomicU64,
    /// Latency since the last look, by worker: lines that two cores write cost each of them more than what is written.
    latencies: [Latencies; SHARDS],
}

#[derive(Debug)]
#[repr(align(128))]
struct Latencies([Class; CLASSES]);

#[derive(Debug, Default)]
struct Class {
    calls: AtomicU32,
    /// In microseconds.
    sum: AtomicU64,
    squares: AtomicU64,
}

/// One of those who share the app.
#[derive(Debug)]
pub struct Party {
    /// Its calls at the app.
    in_use: AtomicU32,
    /// Time that calls which have left since the last look had spent, in microseconds.
    spent: AtomicU64,
    /// Its calls at the app at the last look.
    looked: AtomicU32,
    /// Calls at once on average lately, in thousandths.
    lately: AtomicU64,
    /// Its share, in thousandths; [`UNKNOWN`] before the first look.
    share: AtomicU64,
    /// The look after which it came last.
    seen: AtomicU64,
    /// Calls since the last look, and how many of them were refused.
    came: AtomicU32,
    refused: AtomicU32,
    /// How many of a thousand calls were refused lately.
    refusals: AtomicU64,
}

/// Of a party that no look has seen yet.
const UNKNOWN: u64 = u64::MAX;

impl Default for Party {
    fn default() -> Self {
        Self {
            in_use: AtomicU32::new(0),
            spent: AtomicU64::new(0),
            looked: AtomicU32::new(0),
            lately: AtomicU64::new(0),
            share: AtomicU64::new(UNKNOWN),
            seen: AtomicU64::new(0),
            came: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            refusals: AtomicU64::new(0),
        }
    }
}

impl Party {
    /// The look after which it came last.
    pub fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// Whether it came so lately, at the look `turn`, that others are refused for its sake.
    fn was_here(&self, turn: u64) -> bool {
        let seen = self.seen();
        seen > 0 && seen + RECENTLY > turn
    }

    /// Whether it has calls at the app.
    pub fn is_busy(&self) -> bool {
        self.in_use.load(Relaxed) > 0
    }

    /// In thousandths: the calls that it has now, and what it had on average lately.
    fn has(&self) -> (u64, u64) {
        (u64::from(self.in_use.load(Relaxed)) * 1_000, self.lately.load(Relaxed))
    }

    /// Whether it wants much more than it gets.
    fn is_hungry(&self) -> bool {
        self.refusals.load(Relaxed) > HUNGRY
    }
}

/// The app has no room for one more call of this party.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// What a scrape shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Calls at once.
    pub limit: u32,
    /// Whether anybody is refused for it.
    pub bites: bool,
    /// Calls at the app now.
    pub in_use: u32,
}

impl Concurrency {
    /// Of an app of which nothing is known yet.
    pub fn new(gradient: &Gradient) -> Self {
        let limit = gradient.limit();
        Self {
            limit: AtomicU32::new(limit),
            in_use: AtomicU32::new(0),
            ceiling: AtomicU32::new(limit * 2),
            peak: AtomicU32::new(0),
            fewest: AtomicU32::new(0),
            turned_away: AtomicU32::new(0),
            bites: AtomicBool::new(gradient.bounds().alone),
            somebody: AtomicBool::new(false),
            turn: AtomicU64::new(1),
            newcomer: AtomicU64::new(u64::from(limit) * 500),
            latencies: std::array::from_fn(|_| Latencies(std::array::from_fn(|_| Class::default()))),
        }
    }

    /// Lets a call of `party` in, which has to [`Concurrency::leave`] once. No lock, no allocation.
    ///
    /// # Errors
    /// The limit is reached and the party has its share.
    pub fn admit(&self, party: &Party) -> Result<(), Full> {
        let (limit, turn) = (self.limit.load(Relaxed), self.turn.load(Relaxed));
        if !party.is_busy() && !party.was_here(turn) && self.somebody.load(Relaxed) {
            // Its flood is not to be there before the next look sees it.
            self.bites.store(true, Relaxed);
        }
        if party.seen() != turn {
            party.seen.store(turn, Relaxed);
        }
        party.came.fetch_add(1, Relaxed);
        let before = self.in_use.fetch_add(1, AcqRel);
        if before >= limit && self.bites.load(Relaxed) && !self.has_a_right(party, before, limit) {
            self.in_use.fetch_sub(1, AcqRel);
            party.refused.fetch_add(1, Relaxed);
            self.turned_away.fetch_add(1, Relaxed);
            return Err(Full);
        }
        party.in_use.fetch_add(1, AcqRel);
        if before >= self.peak.load(Relaxed) {
            self.peak.fetch_max(before + 1, Relaxed);
        }
        Ok(())
    }

    /// Whether `party` has less than its share, and there is room above the limit.
    fn has_a_right(&self, party: &Party, before: u32, limit: u32) -> bool {
        let (known, (now, lately)) = (party.share.load(Relaxed), party.has());
        let share = if known == UNKNOWN { self.newcomer.load(Relaxed) } else { known };
        if now.max(lately) < share {
            return before < self.ceiling.load(Relaxed);
        }
        // In a bunch; the last quarter of the room is for those who have less.
        let bunch = known != UNKNOWN && now + 2 * lately < 3 * share && !party.is_hungry();
        bunch && before < limit + limit / 2
    }

    /// The head of the answer to a call of this worker has come `took` after it was let in.
    pub fn answered(&self, worker: usize, class: usize, took: Duration) {
        let class = &self.latencies[worker % SHARDS].0[class % CLASSES];
        // Within what a sum of squares has room for.
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(LONGEST_US);
        class.calls.fetch_add(1, Relaxed);
        class.sum.fetch_add(took, Relaxed);
        class.squares.fetch_add(took * took, Relaxed);
    }

    /// The call is not at the app any more, or does not count as being there; it `held` its place for so long.
    pub fn leave(&self, party: &Party, held: Duration) {
        let left = self.in_use.fetch_sub(1, AcqRel).saturating_sub(1);
        if left < self.fewest.load(Relaxed) {
            self.fewest.fetch_min(left, Relaxed);
        }
        party.in_use.fetch_sub(1, AcqRel);
        party.spent.fetch_add(u64::try_from(held.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether `party` came so lately that it is not forgotten within the next `looks`, where those are that did not come for
    /// twice as many.
    pub fn knows(&self, party: &Party, looks: u64) -> bool {
        party.seen() + looks > self.turn.load(Relaxed)
    }

    /// Sets the limit by what happened since the last look, `passed` ago, and the shares of `parties`: all of those that
    /// may make calls. `alone`: whether a party that has the app to itself is refused too.
    pub fn look<'p>(
        &self,
        gradient: &mut Gradient,
        parties: impl Iterator<Item = &'p Party>,
        limits: Limits,
        (now, passed): (Duration, Duration),
    ) {
        let turn = self.turn.fetch_add(1, Relaxed);
        let mut window = Window {
            classes: [Latency::default(); CLASSES],
            peak: self.peak.swap(self.in_use.load(Relaxed), Relaxed),
            fewest: self.fewest.swap(self.in_use.load(Relaxed), Relaxed),
            in_use: self.in_use.load(Relaxed),
            refused: self.turned_away.swap(0, Relaxed),
        };
        for latencies in &self.latencies {
            let had_calls = |(_, more): &(&mut Latency, &Class)| more.calls.load(Relaxed) > 0;
            for (class, more) in window.classes.iter_mut().zip(&latencies.0).filter(had_calls) {
                class.add(Latency {
                    calls: more.calls.swap(0, Relaxed),
                    sum: more.sum.swap(0, Relaxed),
                    squares: more.squares.swap(0, Relaxed),
                });
            }
        }
        gradient.set_bounds(limits);
        let decided = gradient.look(&window, now);
        self.limit.store(decided.limit, Relaxed);
        // What came while nobody was refused, or the limit was larger, takes no room from others.
        let (in_use, twice) = (self.in_use.load(Relaxed), decided.limit.saturating_mul(2));
        let bit = self.bites.load(Relaxed);
        let before = if bit { self.ceiling.load(Relaxed) } else { u32::MAX };
        self.ceiling.store(before.min(in_use.saturating_add(decided.limit)).max(twice), Relaxed);
        let (mut there, mut next) = (0_usize, 0_usize);
        let active: Vec<&Party> = parties
            .inspect(|party| {
                there += usize::from(party.is_busy() || party.was_here(turn));
                next += usize::from(party.is_busy() || party.was_here(turn + 1));
                party.forget(passed);
            })
            .filter(|party| party.is_busy() || party.seen() + LATELY > turn)
            .collect();
        self.bites.store(limits.alone || there > 1, Relaxed);
        // Until the next look, for whom this one's last ones are gone.
        self.somebody.store(next > 0, Relaxed);
        let (in_use, whole) = (f64::from(in_use), f64::from(decided.whole));
        // What waited behind others that have gone takes nobody's place any more.
        let lately: f64 = active.iter().map(|party| of(party.lately.load(Relaxed))).sum();
        if lately > 2.0 * in_use.max(whole) {
            let left = in_use.max(whole) / lately;
            active
                .iter()
                .for_each(|party| party.lately.store(thousandths(of(party.lately.load(Relaxed)) * left), Relaxed));
        }
        // Where far more are there than the limit says, as they came before, shares are of what is there: who has little of
        // that is not refused because it waits behind the others.
        let crowded = if in_use > 2.0 * whole { in_use / (whole * SLACK * 1.05) } else { 1.0 };
        let active = active.into_iter().map(Wants::of).collect();
        self.share(active, f64::from(decided.limit) * crowded, whole * crowded, limits.alone);
    }

    /// Divides the `whole` limit; while that is questioned, those who want more than they get divide what is left of it.
    fn share(&self, mut active: Vec<Wants<'_>>, limit: f64, whole: f64, asked_for: bool) {
        active.sort_unstable_by(|one, other| one.calls.total_cmp(&other.calls));
        let hungry = active.iter().filter(|wants| wants.calls.is_infinite()).count();
        let finite = active.len() - hungry;
        let water = Water::new(active.iter().take(finite).map(|wants| wants.calls), whole);
        self.newcomer.store(thousandths(water.level(None, hungry + 1)), Relaxed);
        // Who is alone has the limit, and needs no right to anything above it; or has no limit, and is as new as whoever comes.
        let alone = active.len() == 1;
        if alone && !asked_for {
            return;
        }
        let level = water.level(None, hungry.max(1)) * (limit / whole);
        for (index, wants) in active.iter().enumerate() {
            // What it would get if it wanted all.
            let share = if index < finite { water.level(Some(index), hungry + 1) } else { level };
            wants.party.share.store(if alone { 0 } else { thousandths(share * SLACK) }, Relaxed);
        }
    }

    /// For a scrape.
    pub fn figures(&self) -> Figures {
        Figures { limit: self.limit.load(Relaxed), bites: self.bites.load(Relaxed), in_use: self.in_use.load(Relaxed) }
    }
}

impl Party {
    fn forget(&self, passed: Duration) {
        let passed = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
        let spent = self.spent.swap(0, Relaxed).saturating_mul(1_000) / passed;
        // Calls that take longer than the time between two looks have spent nothing yet.
        let now = self.in_use.load(Relaxed);
        let staying = now.min(self.looked.swap(now, Relaxed));
        let spent = spent.max(u64::from(staying) * 1_000);
        let before = self.lately.load(Relaxed);
        if spent | before != 0 {
            self.lately.store(thousandths((FORGET * of(before) + (1.0 - FORGET) * of(spent)).max(0.0)), Relaxed);
        }
        let (came, refused) = (self.came.swap(0, Relaxed), self.refused.swap(0, Relaxed));
        if came > 0 {
            let share = u64::from(refused) * 1_000 / u64::from(came);
            self.refusals.store((self.refusals.load(Relaxed) * 6 + share * 4) / 10, Relaxed);
        } else {
            // Whoever does not come wants nothing.
            self.refusals.store(self.refusals.load(Relaxed) * 9 / 10, Relaxed);
        }
        // Whoever comes back after a while is a newcomer.
        self.share.store(UNKNOWN, Relaxed);
    }
}

/// What one party wants.
struct Wants<'p> {
    party: &'p Party,
    /// At once; infinite when it was refused lately.
    calls: f64,
}

impl<'p> Wants<'p> {
    fn of(party: &'p Party) -> Self {
        let (now, lately) = party.has();
        let calls = if party.is_hungry() { f64::INFINITY } else { of(now.max(lately)) };
        Self { party, calls }
    }
}

/// Max-min fair division of `limit` among wants of which each is met in full or reaches the common level.
struct Water {
    /// Ascending.
    wants: Vec<f64>,
    /// Sums of the first 0, 1, … of them.
    sums: Vec<f64>,
    limit: f64,
}

impl Water {
    fn new(wants: impl Iterator<Item = f64>, limit: f64) -> Self {
        let wants: Vec<f64> = wants.collect();
        let mut sums = vec![0.0];
        sums.extend(wants.iter().scan(0.0, |sum, want| {
            *sum += want;
            Some(*sum)
        }));
        Self { wants, sums, limit }
    }

    /// What each of `insatiable` others gets, where the wants but `without` are met first as far as they are below that.
    fn level(&self, without: Option<usize>, insatiable: usize) -> f64 {
        let level = |met: usize| {
            let left_out = without.filter(|index| *index < met);
            let spent = self.sums[met] - left_out.map_or(0.0, |index| self.wants[index]);
            let unmet = self.wants.len() - met - usize::from(without.is_some_and(|index| index >= met));
            ((self.limit - spent) / count(unmet + insatiable)).max(0.0)
        };
        // The first want that is not below the level is the first that is not met: from there on none is.
        let (mut low, mut high) = (0, self.wants.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.wants[middle] < level(middle) { low = middle + 1 } else { high = middle }
        }
        level(low)
    }
}

#[expect(clippy::cast_precision_loss, reason = "parties are some thousands")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "calls are some thousands")]
fn of(thousandths: u64) -> f64 {
    thousandths as f64 / 1_000.0
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, and casts saturate")]
fn thousandths(calls: f64) -> u64 {
    (calls * 1_000.0).min(1e15) as u64
}

#[cfg(test)]
mod tests;
