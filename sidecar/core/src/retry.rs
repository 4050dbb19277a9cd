//! Whether a call may be sent again, and when: of what surely was not begun every call, of what may have been begun only the
//! methods that a `Route` names with the codes that it names (gRFC A6). Never reads the clock, never rolls dice: `now` is
//! nanoseconds from any origin, and random numbers are arguments.

mod budget;
mod latencies;

use std::time::Duration;

pub use self::budget::Budget;
pub use self::latencies::Latencies;
use crate::{
    Named,
    route::{Hedge, MethodRoute, RetryBudget, Route},
};

/// How often one call is sent again that was sent and surely not begun: as when every instance goes away at once.
const UNBEGUN: u32 = 4;

/// gRPC's UNAVAILABLE: what a call that broke off before its answer has ended with.
pub const UNAVAILABLE: u32 = 14;

/// What is known of one destination from the calls of all workers; shared by all states that know it.
#[derive(Debug, Default)]
pub struct Memory {
    /// What was spent on attempts beyond the first.
    pub budget: Budget,
    /// How long the methods take that are hedged by that.
    pub latencies: Latencies,
}

/// How one attempt ended, as far as it matters for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer to hand on, or in a way that another attempt changes nothing about.
    ForGood,
    /// Nobody could be reached.
    Unreachable,
    /// It was sent, and the other side is sure not to have begun with it: REFUSED_STREAM, a stream above the last one of a
    /// GOAWAY, or the word of the callee's sidecar.
    Unbegun,
    /// The callee's sidecar had no room for it, so it was not begun.
    NoRoom,
    /// It may have been begun, and nothing of its answer was handed on.
    Failed {
        /// gRPC status.
        code: u32,
        /// What the other side said of another attempt.
        pushback: Pushback,
    },
}

/// What a failed answer says of another attempt: `grpc-retry-pushback-ms` (gRFC A6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pushback {
    /// Nothing.
    #[default]
    None,
    /// Wanted after exactly this long.
    After(Duration),
    /// Not wanted.
    Never,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another attempt, at an instance that has not been tried.
    Elsewhere,
    /// Another attempt after this long; at an instance that has not been tried if there is one.
    After(Duration),
    /// That was it.
    Stop(Why),
}

/// Why there is no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing failed that may be sent again.
    NotRetryable,
    /// The request was too long to be kept.
    NotKept,
    /// All attempts that it may have were made.
    Attempts,
    /// The other side does not want one.
    Pushback,
    /// It would begin after the deadline.
    Deadline,
    /// The destination has got as many as its budget allows.
    Budget,
}

/// The attempts of one call.
#[derive(Debug)]
pub struct Retries<'d> {
    method: &'d MethodRoute,
    limits: RetryBudget,
    memory: &'d Memory,
    /// Attempts that may have been begun and failed.
    failed: u32,
    /// Of these, since the other side last named a pause: what the pause grows with.
    in_a_row: u32,
    /// Attempts that were sent and surely not begun.
    unbegun: u32,
    /// Attempts that were sent beside others.
    hedges: u32,
    /// The other side wants no further attempt.
    pushed_back: bool,
}

impl<'d> Retries<'d> {
    /// Before the first attempt of a call of `path`; counts the call. No allocation.
    pub fn new(route: &'d Route, memory: &'d Memory, path: &str, now: u64) -> Self {
        memory.budget.called(now);
        Self {
            method: route.method(path),
            limits: route.retry_budget,
            memory,
            failed: 0,
            in_a_row: 0,
            unbegun: 0,
            hedges: 0,
            pushed_back: false,
        }
    }

    /// What follows an attempt that has ended so. `kept` says whether the request can be sent again at all, `left` how much
    /// time the call has, `random` spreads the pauses.
    pub fn next(&mut self, ended: Ended, kept: bool, left: Option<Duration>, now: u64, random: u64) -> Next {
        match ended {
            Ended::ForGood => Next::Stop(Why::NotRetryable),
            Ended::Unreachable | Ended::Unbegun | Ended::NoRoom | Ended::Failed { .. } if !kept => {
                Next::Stop(Why::NotKept)
            }
            // Nothing was sent, and each instance is tried once.
            Ended::Unreachable => Next::Elsewhere,
            Ended::Unbegun => self.unbegun(now, Next::After(Duration::ZERO), true),
            Ended::NoRoom => self.unbegun(now, Next::Elsewhere, false),
            Ended::Failed { code, pushback } => self.failed(code, pushback, left, now, random),
        }
    }

    /// The first one is free (gRFC A6, transparent retries), unless it is for lack of room: then there is a crowd of them.
    fn unbegun(&mut self, now: u64, next: Next, first_is_free: bool) -> Next {
        self.unbegun += 1;
        if self.unbegun > UNBEGUN {
            return Next::Stop(Why::Attempts);
        }
        let free = first_is_free && self.unbegun == 1;
        if free || self.memory.budget.take(&self.limits, now) { next } else { Next::Stop(Why::Budget) }
    }

    fn failed(&mut self, code: u32, pushback: Pushback, left: Option<Duration>, now: u64, random: u64) -> Next {
        let Some(retry) = self.method.retry.as_ref().filter(|retry| retry.covers(code)) else {
            return Next::Stop(Why::NotRetryable);
        };
        if self.failed + self.hedges + 1 >= retry.attempts {
            return Next::Stop(Why::Attempts);
        }
        let pause = match pushback {
            Pushback::None if self.pushed_back => return Next::Stop(Why::Pushback),
            Pushback::None => jittered(mean_pause(retry.backoff, retry.max_backoff, self.in_a_row), random),
            Pushback::After(pause) => pause,
            Pushback::Never => return Next::Stop(Why::Pushback),
        };
        // Who waits in vain is told later, and of less.
        if left.is_some_and(|left| pause >= left) {
            return Next::Stop(Why::Deadline);
        }
        if !self.memory.budget.take(&self.limits, now) {
            return Next::Stop(Why::Budget);
        }
        self.failed += 1;
        self.in_a_row = if pushback == Pushback::None { self.in_a_row + 1 } else { 0 };
        Next::After(pause)
    }

    /// After how long a second attempt is sent beside one that has not answered; `None`: there is none, be it that too
    /// little is known of what the method takes.
    pub fn hedge_after(&self, path: &str) -> Option<Duration> {
        let hedge = self.method.hedge.as_ref()?;
        hedge.after.or_else(|| self.memory.latencies.p95(path))
    }

    /// Whether a further attempt may be sent beside those that have not answered; counts it where it may.
    ///
    /// # Errors
    /// Why not.
    pub fn hedge(&mut self, now: u64) -> Result<(), Why> {
        let Some(hedge) = &self.method.hedge else { return Err(Why::NotRetryable) };
        if self.pushed_back {
            return Err(Why::Pushback);
        }
        if self.hedges + self.failed + 1 >= hedge.attempts {
            return Err(Why::Attempts);
        }
        if !self.memory.budget.take(&self.limits, now) {
            return Err(Why::Budget);
        }
        self.hedges += 1;
        Ok(())
    }

    /// Notes what an attempt beside others has said of further ones.
    pub fn heed(&mut self, pushback: Pushback) {
        self.pushed_back |= pushback == Pushback::Never;
    }

    /// Whether, among several attempts under way, this end of one leaves hope in the others.
    pub fn others_may_do_better(&self, ended: Ended) -> bool {
        match ended {
            Ended::ForGood => false,
            Ended::Unreachable | Ended::Unbegun | Ended::NoRoom => true,
            Ended::Failed { code, .. } => {
                code == UNAVAILABLE || self.method.retry.as_ref().is_some_and(|retry| retry.covers(code))
            }
        }
    }

    /// Notes that an answer took so long, where that is wanted.
    pub fn took(&self, path: &str, nanoseconds: u64) {
        if let Some(Hedge { after: None, .. }) = self.method.hedge {
            self.memory.latencies.note(path, nanoseconds);
        }
    }

    /// `grpc-previous-rpc-attempts` of the next attempt: those that were surely not begun do not count (gRFC A6).
    pub fn previous_attempts(&self) -> u32 {
        self.failed + self.hedges
    }

    /// How the method is called.
    pub fn method(&self) -> &'d MethodRoute {
        self.method
    }
}

impl Pushback {
    /// Reads `grpc-retry-pushback-ms`: a number that is negative or that cannot be read asks for no further attempt.
    pub fn parse(value: Named<'_>) -> Self {
        match value {
            Named::None => Pushback::None,
            Named::One(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse::<u32>().map_or(Pushback::Never, |ms| Pushback::After(Duration::from_millis(ms.into())))
            }
            Named::One(_) | Named::Many => Pushback::Never,
        }
    }
}

/// The mean pause after so many others.
fn mean_pause(first: Duration, max: Duration, before: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(before).unwrap_or(u32::MAX)).min(max)
}

/// Evenly between half and one and a half of `mean`.
fn jittered(mean: Duration, random: u64) -> Duration {
    let share = (random >> 32) as f64 / f64::from(u32::MAX);
    mean.div_f64(2.0) + mean.mul_f64(share)
}

/// The gRPC status of an HTTP status where the answer names none ("HTTP to gRPC Status Code Mapping").
pub const fn code_of_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => UNAVAILABLE,
        _ => 2,
    }
}

#[cfg(test)]
mod tests;
