//! How many calls an app can have at once before they only wait for each other: a limit that follows latency.
//!
//! After Netflix's `Gradient2` and Envoy's `adaptive_concurrency`: in each window the latency of calls is compared with what
//! they take when nothing is in their way. Above [`TOLERANCE`] times of that the limit shrinks in proportion, else it grows
//! by half its root, and doubles while it has never been too large. Three things are done otherwise:
//!
//! - Each class of methods is compared with itself, so that a change in what is called is not taken for a queue.
//! - What a class takes when quiet is the lowest that was seen, and drifts up only while the limit is far from used: a
//!   baseline that follows the latency under load, as in `Gradient2`, calls any queue normal after a while.
//! - It is measured anew with half the limit ([`PROBE_AFTER`], then at doubled intervals), not with the lowest limit
//!   for a whole second; and wherever the limit has come down to its lowest, as what calls take there is no queue's fault.

use std::time::Duration;

use super::unasked::Unasked;
use crate::route::Limits;

/// Classes of methods, told apart by a hash of their path.
pub const CLASSES: usize = 64;
/// The limit of an app of which nothing is known yet, where its bounds allow.
const FIRST: f64 = 32.0;
/// How much longer than when quiet calls may take.
const TOLERANCE: f64 = 1.25;
/// Where nobody asked for a limit it comes down to so many times what the app works on.
const FILL: f64 = 1.15;
/// What a second leaves of the most that it worked on: where calls take longer for another reason than a queue, fewer of them
/// are less work, and the limit would come down and down until that is found out.
const WORKED: f64 = 0.87;
/// How much a limit grows at once that has never been too large; less where nobody asked for one, so that a flood that finds
/// it just right makes no queue of more than what calls take.
const GROWTH: f64 = 2.0;
const GROWTH_UNASKED: f64 = 1.5;
/// And one that was, where calls take no longer than this times what they take when quiet.
const GROWTH_AGAIN: f64 = 1.25;
const UNTROUBLED: f64 = 1.1;
/// Calls that a window needs to say something.
const ENOUGH: u32 = 16;
/// How many standard errors the latency of a window must lie off to mean something.
const SURE: f64 = 1.5;
/// Where nobody asked for a limit, to be less than what was thought to be quiet: there are many windows.
const SURE_UNASKED: f64 = 2.5;
/// A limit that nobody comes near falls to so many times what is used, so that a flood finds no empty room; where nobody asked
/// for one, there is other room besides.
const ROOM: f64 = 2.5;
const ROOM_UNASKED: f64 = 1.5;
/// Whoever has so much of it comes near.
const USED: f64 = 0.5;
const USED_UNASKED: f64 = 0.7;
/// But not below this.
const SMALLEST_ROOM: f64 = 8.0;
/// What is left of a limit that nobody comes near after 100 ms.
const KEPT: f64 = 0.95;
/// A window that has not got them by then is closed with what it has.
const LONGEST: Duration = Duration::from_secs(2);
/// Calls by which half of what a class takes when quiet is what they took.
const LEARN: f64 = 100.0;
/// A limit that bites is questioned first after this.
const PROBE_AFTER: Duration = Duration::from_secs(1);
/// And later this often.
const PROBE_EACH: Duration = Duration::from_secs(10);
/// There is no queue where half the calls take so many times what all took.
const NO_QUEUE: f64 = 0.9;
/// A probe that changes what is known by more than this is soon followed by another.
const NEWS: f64 = 0.1;
/// The most that is waited for what came before a probe.
const LONGEST_DRAIN: Duration = Duration::from_secs(30);
/// A probe that nobody answers ends.
const PROBE_FOR: Duration = Duration::from_secs(2);

/// The limit, and what it follows.
#[derive(Debug)]
pub struct Gradient {
    bounds: Limits,
    limit: f64,
    /// How many times as long as when quiet calls took in the last window.
    before: f64,
    /// What they took.
    mean: Duration,
    /// When the limit grew last, or the calls at the app became so many that it may.
    settling: Duration,
    /// The limit has just been doubled: calls that have ended since are shorter than those that came since.
    growing: bool,
    /// It has never been too large, or has just been at its lowest: it grows fast.
    fast: bool,
    /// The most calls at once, slowly forgotten.
    peak: f64,
    /// Calls that the app worked on at once, on average in one window, as what was answered takes so long when quiet; the most,
    /// slowly forgotten.
    worked: f64,
    /// What each class takes when quiet, in microseconds; 0: not known.
    quiet: [f64; CLASSES],
    /// What came in since the last window that said something.
    window: Window,
    /// When that began.
    since: Duration,
    /// The last look.
    looked: Duration,
    probe: Probe,
    /// What is let in where nobody asked for a limit.
    unasked: Unasked,
}

/// What happened since the last look.
#[derive(Clone, Debug)]
pub struct Window {
    /// Calls that were answered, by class.
    pub classes: [Latency; CLASSES],
    /// The most calls that were at the app at once.
    pub peak: u32,
    /// The fewest.
    pub fewest: u32,
    /// Those that are there now.
    pub in_use: u32,
    /// Calls that were refused.
    pub refused: u32,
}

/// How long the calls of one class took, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// How many there were.
    pub calls: u32,
    /// Of all.
    pub sum: u64,
    /// Of all.
    pub squares: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { classes: [Latency::default(); CLASSES], peak: 0, fewest: 0, in_use: 0, refused: 0 }
    }
}

impl Window {
    /// Calls that were answered.
    pub fn calls(&self) -> u32 {
        self.classes.iter().map(|class| class.calls).sum()
    }

    /// How long they took together, in microseconds.
    pub fn sum(&self) -> u64 {
        self.classes.iter().map(|class| class.sum).sum()
    }

    fn mean(&self) -> Duration {
        let sum = self.sum();
        Duration::from_micros(sum / u64::from(self.calls().max(1)))
    }

    fn add(&mut self, other: &Window) {
        for (class, more) in self.classes.iter_mut().zip(&other.classes) {
            class.add(*more);
        }
        self.peak = self.peak.max(other.peak);
    }
}

impl Latency {
    /// Calls of the same class.
    pub fn add(&mut self, more: Latency) {
        self.calls = self.calls.saturating_add(more.calls);
        self.sum = self.sum.saturating_add(more.sum);
        self.squares = self.squares.saturating_add(more.squares);
    }

    fn mean(&self) -> f64 {
        float(self.sum) / f64::from(self.calls)
    }

    /// Variance of the mean.
    fn error(&self) -> f64 {
        let (calls, mean) = (f64::from(self.calls), self.mean());
        let variance = (float(self.squares) / calls - mean * mean).max(0.0);
        variance / (calls - 1.0).max(0.5)
    }
}

/// Where the questioning of the limit stands.
#[derive(Clone, Copy, Debug)]
enum Probe {
    /// The limit does not bite.
    Idle,
    /// It has bitten since; after `pause` it is questioned.
    Due { since: Duration, pause: Duration },
    /// It is halved. What ends before `from` came before, or is shorter than others that came since.
    Under { from: Duration, pause: Duration },
}

/// What is in force until the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Calls at once.
    pub limit: u32,
    /// The same, but while it is questioned.
    pub whole: u32,
}

impl Gradient {
    /// Of an app of which nothing is known yet.
    pub fn new(bounds: Limits) -> Self {
        let mut new = Self {
            bounds,
            limit: FIRST,
            before: 1.0,
            mean: Duration::ZERO,
            settling: Duration::ZERO,
            growing: true,
            fast: true,
            peak: 0.0,
            worked: 0.0,
            quiet: [0.0; CLASSES],
            window: Window::default(),
            since: Duration::ZERO,
            looked: Duration::ZERO,
            probe: Probe::Idle,
            unasked: Unasked::default(),
        };
        new.set_bounds(bounds);
        new
    }

    /// The policy may say otherwise by now.
    pub fn set_bounds(&mut self, bounds: Limits) {
        self.bounds = bounds;
        self.limit = self.bounded(self.limit);
    }

    /// Between what the limit stays.
    pub fn bounds(&self) -> Limits {
        self.bounds
    }

    /// Looks at what happened since the last look, some 100 ms ago.
    pub fn look(&mut self, window: &Window, now: Duration) -> Decided {
        let in_force = self.limit();
        let looked = std::mem::replace(&mut self.looked, now);
        if !self.bounds.alone {
            let before = self.holds();
            self.unasked.look(window, (self.limit, in_force), now);
            if before != self.holds() {
                (self.window, self.since, self.settling) = (Window::default(), looked, now);
                self.probe = Probe::Idle;
            }
        }
        let draining = matches!(self.probe, Probe::Under { from, .. } if looked < from);
        if !draining {
            self.window.add(window);
        }
        let (calls, waited) = (self.window.calls(), now.saturating_sub(self.since));
        if calls >= ENOUGH || (calls > 0 && waited >= LONGEST) {
            let closed = std::mem::take(&mut self.window);
            self.since = now;
            self.close(&closed, waited, now);
        } else if calls == 0 && waited >= LONGEST {
            // Nothing was answered: that is no reason to take on more, or less.
            self.window = Window::default();
            self.since = now;
        }
        self.probe(now)
    }

    /// What is in force.
    pub fn limit(&self) -> u32 {
        let limit = match self.probe {
            Probe::Under { .. } => self.bounded(self.limit / 2.0),
            Probe::Idle | Probe::Due { .. } => self.limit,
        };
        whole(limit.max(self.floor()))
    }

    /// Whether there is nothing but the limit.
    fn holds(&self) -> bool {
        self.bounds.alone || self.unasked.is_queue()
    }

    fn floor(&self) -> f64 {
        if self.bounds.alone { 0.0 } else { self.unasked.floor(self.looked) }
    }

    fn close(&mut self, window: &Window, lasted: Duration, now: Duration) {
        self.peak = f64::from(window.peak).max(self.peak * 0.98);
        let used = f64::from(window.peak) >= self.limit * if self.bounds.alone { USED } else { USED_UNASKED };
        let (ratio, at_least) = self.ratio(window);
        if let Probe::Under { pause, .. } = self.probe {
            // Where half as many calls take as long there is no queue: that is what they take now.
            let halved = self.bounds.alone || !self.is_lowest();
            let no_queue = halved && self.before > TOLERANCE && ratio > NO_QUEUE * self.before;
            let thought = self.quiet;
            self.learn(window, if no_queue { Learn::Anew } else { Learn::Lower });
            self.fast |= no_queue;
            let learnt = thought.iter().zip(&self.quiet).any(|(before, after)| (after / before - 1.0).abs() > NEWS);
            // What is answered next came while fewer were there: that is no reason to take on more.
            self.settling = now;
            if no_queue {
                // What it answered was so much more work.
                self.worked *= ratio;
            }
            // Few calls tell much by chance; where nobody asked for a limit, only what makes a difference is followed up.
            let learnt = learnt && (self.bounds.alone || no_queue);
            let pause = if learnt { PROBE_AFTER } else { (pause * 2).min(PROBE_EACH) };
            self.probe = Probe::Due { since: now, pause };
            return;
        }
        (self.before, self.mean) = (ratio, window.mean());
        let worked_on = self.work(window) / lasted.as_secs_f64().max(1e-3);
        self.worked = worked_on.max(self.worked * WORKED.powf(lasted.as_secs_f64()));
        let quiet = self.work(window) / f64::from(window.calls().max(1));
        self.unasked.take(Duration::from_secs_f64(quiet));
        let good = at_least <= TOLERANCE;
        let lowest = self.is_lowest() && (self.bounds.alone || f64::from(window.peak) <= self.limit);
        let as_it_is = lowest || (good && !used);
        match (as_it_is, std::mem::take(&mut self.growing)) {
            (true, _) => self.learn(window, Learn::Both),
            (false, false) => self.learn(window, Learn::Lower),
            (false, true) => self.learn(window, Learn::First),
        }
        let step = (self.limit.sqrt() / 2.0).max(1.0);
        if !good {
            self.limit = self.bounded(self.shrunk((ratio, at_least), used, step));
            self.fast = self.is_lowest();
        } else if used && now.saturating_sub(self.settling) >= self.mean * 2 {
            // What a step did, or a flood, shows only when calls that came since have been answered.
            self.settling = now;
            self.limit = self.bounded(self.grown(ratio, step));
            self.growing = self.fast;
        } else if !used {
            self.settling = now;
            let room = self.bounded((self.room()).max(SMALLEST_ROOM));
            // Within seconds, however few calls there are.
            self.limit = self.limit.min((self.limit * KEPT.powf(lasted.as_secs_f64() * 10.0)).max(room));
            self.fast |= self.limit <= room;
        }
        self.probe = match self.probe {
            Probe::Idle if used && !good && self.holds() => Probe::Due { since: now, pause: PROBE_AFTER },
            Probe::Due { .. } if self.peak * 4.0 < self.limit => Probe::Idle,
            probe @ (Probe::Idle | Probe::Due { .. } | Probe::Under { .. }) => probe,
        };
    }

    /// What a limit that nobody comes near falls to.
    fn room(&self) -> f64 {
        self.peak * if self.bounds.alone { ROOM } else { ROOM_UNASKED }
    }

    /// The limit after a window in which calls waited for each other.
    fn shrunk(&self, (ratio, at_least): (f64, f64), used: bool, step: f64) -> f64 {
        // One bad window of an app that has little to do says nothing about how much it could do.
        let least = if used { 0.0 } else { self.room() };
        if self.bounds.alone {
            let wanted = (self.limit * (TOLERANCE / at_least).max(0.5) + step).max(least);
            return f64::midpoint(self.limit, wanted.min(self.limit));
        }
        // By Little's law: so many calls the app worked on, the others waited. There may be far more than the limit.
        let sure = (ratio / at_least).min(TOLERANCE);
        let wanted = (FILL * sure * self.worked).max(least);
        // What is far off is no chance.
        if ratio > 2.0 * TOLERANCE { wanted.max(self.limit / 2.0) } else { f64::midpoint(self.limit, wanted) }
    }

    /// The limit after a window in which they did not.
    fn grown(&self, ratio: f64, step: f64) -> f64 {
        match (self.bounds.alone, self.fast) {
            (true, true) => self.limit * GROWTH,
            (false, true) => self.limit * GROWTH_UNASKED,
            (false, false) if ratio < UNTROUBLED => (self.limit * GROWTH_AGAIN).max(self.limit + step),
            (_, false) => self.limit + step,
        }
    }

    /// How long the calls of `window` take when quiet, together, in seconds.
    fn work(&self, window: &Window) -> f64 {
        let work = window.classes.iter().zip(&self.quiet).map(|(class, quiet)| f64::from(class.calls) * quiet);
        work.sum::<f64>() / 1e6
    }

    fn is_lowest(&self) -> bool {
        self.limit <= f64::from(self.bounds.min_concurrent) + 0.5
    }

    /// Begins a probe that is due, and ends one that nothing came of.
    fn probe(&mut self, now: Duration) -> Decided {
        match self.probe {
            Probe::Due { since, pause } if now.saturating_sub(since) >= pause => {
                self.probe = Probe::Under { from: now + (self.mean * 2).min(LONGEST_DRAIN), pause };
                (self.window, self.since) = (Window::default(), now);
            }
            Probe::Under { from, pause } if now.saturating_sub(from) >= PROBE_FOR => {
                self.probe = Probe::Due { since: now, pause: (pause * 2).min(PROBE_EACH) };
            }
            Probe::Idle | Probe::Due { .. } | Probe::Under { .. } => {}
        }
        Decided { limit: self.limit(), whole: whole(self.limit.max(self.floor())) }
    }

    /// How many times as long as when quiet calls took, and the same with what chance may have added taken off; 1 where nothing
    /// is known.
    fn ratio(&self, window: &Window) -> (f64, f64) {
        let (mut calls, mut times, mut error) = (0.0, 0.0, 0.0);
        let known = window.classes.iter().zip(&self.quiet).filter(|(class, quiet)| class.calls > 0 && **quiet > 0.0);
        for (class, quiet) in known {
            let weight = f64::from(class.calls);
            calls += weight;
            times += weight * class.mean() / quiet;
            error += weight * weight * class.error() / (quiet * quiet);
        }
        if calls > 0.0 { (times / calls, (times - SURE * error.sqrt()) / calls) } else { (1.0, 1.0) }
    }

    /// What calls took when quiet: where all is quiet, what they take now; else what is surely less than was thought.
    fn learn(&mut self, window: &Window, learn: Learn) {
        for (class, quiet) in window.classes.iter().zip(&mut self.quiet).filter(|(class, _)| class.calls > 0) {
            let (took, weight) = (class.mean(), (f64::from(class.calls) / LEARN).min(0.5));
            let sure = if self.bounds.alone { SURE } else { SURE_UNASKED };
            let at_most = took + sure * class.error().sqrt();
            let surely_less = class.calls >= ENOUGH / 2 && at_most < *quiet;
            if *quiet <= 0.0 {
                *quiet = took;
            } else if surely_less && learn != Learn::First {
                *quiet = at_most;
            } else {
                *quiet += match learn {
                    Learn::Anew => took - *quiet,
                    Learn::Both => (took - *quiet) * weight,
                    Learn::Lower | Learn::First => 0.0,
                };
            }
        }
    }

    fn bounded(&self, limit: f64) -> f64 {
        let least = f64::from(self.bounds.min_concurrent.max(1));
        limit.clamp(least, f64::from(self.bounds.max_concurrent).max(least))
    }
}

/// In which direction is learnt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Learn {
    Anew,
    Both,
    Lower,
    /// Only of what nothing is known yet.
    First,
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn float(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "limits are between 1 and u32::MAX")]
fn whole(limit: f64) -> u32 {
    limit.round() as u32
}
