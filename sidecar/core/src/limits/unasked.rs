//! Where no Route says what the limits are: what is let in whatever latency says, until calls are seen to stand in a queue.
//!
//! An app that is held up for a moment, by a collection of garbage or a neighbour that compiles, looks like one that has too
//! much to do: calls take long. But the calls that came meanwhile are gone soon after, while a flood's fill whatever room
//! there is and stay. As in `CoDel`, what counts is what stands there all the time.

use std::time::Duration;

use super::gradient::Window;

/// What the app answers in this time in ordinary times is let in: so long may it be held up.
const HELD_UP: Duration = Duration::from_secs(1);
/// And what one server would do in this time, so that bursts of quick calls pass.
const BURST: Duration = Duration::from_millis(2_500);
/// But not less than this, nor more by a burst alone.
const SMALLEST: f64 = 8.0;
const LARGEST_BURST: f64 = 1_000.0;
/// And never more.
const LARGEST: f64 = 16_384.0;
/// Until so long after the first answer nobody knows what is ordinary.
const UNKNOWN: Duration = Duration::from_secs(3);
/// In what steps of time it is found, and how far each brings what is thought to what was seen: soon up, and half down within
/// ten seconds.
const STEP: Duration = Duration::from_secs(1);
const RISES: f64 = 0.5;
const FALLS: f64 = 0.07;
/// Calls that stand there for so long are a queue.
const STANDS: Duration = Duration::from_millis(1_500);
/// And if by so many of those that were answered more came than were: an app that answers all that come is slow, not overloaded.
const BEHIND: f64 = 0.1;
/// What it takes then counts as ordinary, up to so many times what it takes when quiet.
const SLOWER: u32 = 4;
/// When none stood there for so long, it is over.
const OVER: Duration = Duration::from_secs(2);

/// What is ordinary, and whether calls stand in a queue.
#[derive(Debug, Default)]
pub struct Unasked {
    /// When the first answers were seen.
    first: Option<Duration>,
    /// Answers a second in ordinary times.
    rate: f64,
    /// What one call takes when quiet, on average of those that are made.
    quiet: Duration,
    /// What one took lately while all that came were answered.
    takes: Duration,
    /// What is ordinary is found from this.
    step: Step,
    /// Since calls have stood there.
    stand: Option<Step>,
    /// When they last did, where that is a queue.
    queue: Option<Duration>,
}

/// Some time, and what happened in it.
#[derive(Debug, Default)]
struct Step {
    since: Duration,
    answers: u32,
    /// How long they took, in microseconds.
    took: u64,
    /// Calls that were refused.
    refused: u32,
    /// Calls at the app when it began.
    began_with: u32,
    /// All room was taken for a moment: that is not ordinary.
    full: bool,
}

impl Unasked {
    /// Looks at what happened since the last look, while `limit` was found and `in_force` held.
    pub fn look(&mut self, window: &Window, (limit, in_force): (f64, u32), now: Duration) {
        let answers = window.calls();
        if answers > 0 {
            self.first.get_or_insert(now);
        }
        let full = window.peak >= in_force;
        self.ordinary(window, full, now);
        let stands = full && (f64::from(window.fewest) >= limit || limit >= f64::from(in_force));
        if stands {
            let stand = self.stand.get_or_insert_with(|| Step::new(window, now));
            let stood = now.saturating_sub(stand.since);
            if stood > Duration::ZERO {
                stand.add(window);
            }
            if self.queue.is_some() || (stood >= STANDS && !stand.keeps_up(window)) {
                self.queue = Some(now);
            }
            if stood >= 2 * STANDS {
                self.stand = None;
            }
        } else {
            self.stand = None;
            // Of what is there all the time little is a queue.
            match &mut self.queue {
                Some(last) if window.fewest >= (in_force / 2).max(1) => *last = now,
                Some(last) if now.saturating_sub(*last) >= OVER => self.queue = None,
                Some(_) | None => {}
            }
        }
    }

    /// What calls take when quiet, those that are made.
    pub fn take(&mut self, quiet: Duration) {
        self.quiet = if self.quiet.is_zero() { quiet } else { (self.quiet + quiet) / 2 };
    }

    /// Calls stand in a queue: the limit holds.
    pub fn is_queue(&self) -> bool {
        self.queue.is_some()
    }

    /// So many are let in at least.
    pub fn floor(&self, now: Duration) -> f64 {
        if self.is_queue() {
            return 0.0;
        }
        let burst = (BURST.as_secs_f64() / self.quiet.as_secs_f64().max(1e-6)).clamp(SMALLEST, LARGEST_BURST);
        let is_known = self.first.is_some_and(|first| now.saturating_sub(first) >= UNKNOWN);
        let burst = if is_known { burst } else { LARGEST_BURST };
        let takes = self.takes.clamp(self.quiet, self.quiet * SLOWER);
        (self.rate * (HELD_UP + takes).as_secs_f64()).clamp(burst, LARGEST)
    }

    fn ordinary(&mut self, window: &Window, full: bool, now: Duration) {
        let step = &mut self.step;
        step.add(window);
        step.full |= full;
        let lasted = now.saturating_sub(step.since);
        if lasted < STEP {
            return;
        }
        let rate = f64::from(step.answers) / lasted.as_secs_f64();
        let weight = if rate > self.rate { RISES } else { FALLS };
        if !step.full {
            self.rate += (rate - self.rate) * weight;
        }
        if step.answers > 0 && step.keeps_up(window) {
            let took = Duration::from_micros(step.took / u64::from(step.answers));
            self.takes = (self.takes + took) / 2;
        }
        *step = Step::new(window, now);
    }
}

impl Step {
    /// Begins after `window`.
    fn new(window: &Window, now: Duration) -> Self {
        Self { since: now, began_with: window.in_use, ..Self::default() }
    }

    fn add(&mut self, window: &Window) {
        self.answers = self.answers.saturating_add(window.calls());
        self.took = self.took.saturating_add(window.sum());
        self.refused = self.refused.saturating_add(window.refused);
    }

    /// As many calls were answered as came, but for what chance does.
    fn keeps_up(&self, window: &Window) -> bool {
        let answers = f64::from(self.answers);
        let behind = f64::from(self.refused) + f64::from(window.in_use) - f64::from(self.began_with);
        behind <= answers * BEHIND + answers.sqrt()
    }
}
