//! Three endpoints, one of which goes bad, on a clock of its own: no randomness but the seed of the choice, no time.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;
use crate::route::Route;

const S: u64 = 1_000 * MS;
/// A call every 2 ms.
const EVERY: u64 = 2 * MS;
/// What an answer takes.
const WELL: u64 = 5 * MS;
/// When it goes bad, when it is well again, and the end.
const BAD: u64 = 20 * S;
const GOOD: u64 = 60 * S;
const END: u64 = 120 * S;
/// A connection that is silent is given up after this long; an attempt to connect after that.
const SILENCE: u64 = 3 * S;
const CONNECT: u64 = 2 * S;

/// How the third endpoint is between [`BAD`] and [`GOOD`].
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    BlackHole,
    TwoPercentFail,
    TenTimesSlow,
}

/// What a call has come to.
struct Done {
    began: u64,
    took: u64,
    well: bool,
    by: u8,
}

struct Going {
    began: u64,
    attempt_began: u64,
    by: usize,
    slot: Slot,
    shown: Shown,
    tried: u32,
}

/// 500 calls a second for two minutes; a call that could not be connected goes to another endpoint, as in the proxy.
fn run(trouble: Trouble) -> Vec<Done> {
    let route = Route::default();
    let endpoints = endpoints((1..=3).map(|number| endpoint(number, "us-east", None)).collect()).succeed(None, &route);
    let mut world =
        World { endpoints: &endpoints, trouble, connected: true, going: Vec::new(), events: BinaryHeap::new() };
    let mut done = Vec::new();
    let (mut next, mut sweep, mut count) = (0, 0, 0);
    while next < END {
        // What is over by then, in the order of time.
        while let Some(Reverse((at, index))) = world.events.peek().copied().filter(|Reverse((at, _))| *at <= next) {
            world.events.pop();
            done.extend(world.over(index, at));
        }
        if next >= sweep {
            endpoints.sweep(next);
            sweep += S;
        }
        count += 1;
        world.attempt(next, next, 0, count);
        next += EVERY;
    }
    done
}

struct World<'e> {
    endpoints: &'e Endpoints,
    trouble: Trouble,
    /// Whether there is a connection to the third endpoint.
    connected: bool,
    going: Vec<Option<Going>>,
    events: BinaryHeap<Reverse<(u64, usize)>>,
}

impl World<'_> {
    fn attempt(&mut self, began: u64, now: u64, tried: u32, count: u64) {
        let chosen = self.endpoints.candidates(None).next(now).unwrap();
        let by = usize::from(last(chosen));
        let bad = by == 3 && (BAD..GOOD).contains(&now);
        // Latencies differ a little, as they do.
        let well = WELL + count * 7_919 % MS;
        let (takes, shown) = match self.trouble {
            Trouble::BlackHole if bad && self.connected => (SILENCE, Shown::Failed),
            Trouble::BlackHole if bad => (CONNECT, Shown::Unreachable),
            Trouble::TwoPercentFail if bad && count.is_multiple_of(50) => (well, Shown::Failed),
            Trouble::TenTimesSlow if bad => (10 * well, Shown::Answered { took: 10 * well }),
            Trouble::BlackHole | Trouble::TwoPercentFail | Trouble::TenTimesSlow => {
                (well, Shown::Answered { took: well })
            }
        };
        if by == 3 && !bad {
            self.connected = true;
        }
        self.events.push(Reverse((now + takes, self.going.len())));
        self.going.push(Some(Going { began, attempt_began: now, by, slot: chosen.load.start(), shown, tried }));
    }

    fn over(&mut self, index: usize, now: u64) -> Option<Done> {
        let going = self.going[index].take()?;
        going.slot.report(going.shown, now);
        match going.shown {
            Shown::Answered { .. } => going.slot.ended(Ended::Well, now),
            Shown::Failed if self.trouble == Trouble::BlackHole => {
                self.connected = false;
                // The connection is given up: every call on it is lost at once, and not after a silence of its own.
                for other in self.going.iter_mut().flatten().filter(|other| other.by == 3 && other.attempt_began >= BAD)
                {
                    other.slot.report(Shown::Failed, now);
                }
            }
            Shown::Unreachable if going.tried < 7 => {
                drop(going.slot);
                self.attempt(going.began, now, going.tried + 1, index as u64);
                return None;
            }
            Shown::Failed
            | Shown::Unreachable
            | Shown::Busy { .. }
            | Shown::Refused
            | Shown::Silent { .. }
            | Shown::Outrun { .. }
            | Shown::Waited { .. } => {}
        }
        let well = matches!(going.shown, Shown::Answered { .. });
        Some(Done { began: going.began, took: now - going.began, well, by: going.by as u8 })
    }
}

/// Of the calls that began in a span: success rate, 99th percentile of the time in ms, share of the third endpoint.
fn figures(done: &[Done], from: u64, to: u64) -> (f64, u64, f64) {
    let calls: Vec<&Done> = done.iter().filter(|done| (from..to).contains(&done.began)).collect();
    let mut times: Vec<u64> = calls.iter().map(|done| done.took / MS).collect();
    times.sort_unstable();
    let share =
        |wanted: &dyn Fn(&Done) -> bool| calls.iter().filter(|done| wanted(done)).count() as f64 / calls.len() as f64;
    (share(&|done| done.well), times[times.len() * 99 / 100], share(&|done| done.by == 3))
}

#[test]
fn a_black_hole_costs_a_few_calls_and_is_back_when_it_answers() {
    let done = run(Trouble::BlackHole);
    let (success, p99, share) = figures(&done, 0, BAD);
    assert_eq!((success, p99), (1.0, 5));
    assert!(share > 0.25, "{share}");
    let (success, p99, _) = figures(&done, BAD, GOOD);
    assert!(success >= 0.999, "{success}");
    assert!(p99 < 10, "{p99}");
    let (success, p99, _) = figures(&done, BAD + 5 * S, GOOD);
    assert!(success >= 0.9995 && p99 < 10, "after five seconds: {success} {p99}");
    let (success, p99, share) = figures(&done, GOOD + 40 * S, END);
    assert!(success == 1.0 && p99 < 10 && share > 0.2, "{success} {p99} {share}");
}

#[test]
fn an_endpoint_of_whose_calls_two_percent_fail_is_ejected_by_its_success_rate() {
    let done = run(Trouble::TwoPercentFail);
    let (success, ..) = figures(&done, BAD, GOOD);
    assert!(success >= 0.999, "{success}");
    let (success, _, share) = figures(&done, BAD + 5 * S, GOOD);
    assert!(success >= 0.9993, "{success}");
    assert!(share < 0.2, "{share}");
    let (success, _, share) = figures(&done, GOOD + 30 * S, END);
    assert!(success == 1.0 && share > 0.2, "{success} {share}");
}

#[test]
fn an_endpoint_that_is_ten_times_slower_gets_next_to_nothing_until_it_is_not() {
    let done = run(Trouble::TenTimesSlow);
    let (success, p99, share) = figures(&done, BAD + S, GOOD);
    assert_eq!(success, 1.0);
    assert!(p99 < 10 && share < 0.01, "{p99} {share}");
    let (_, p99, share) = figures(&done, GOOD + 30 * S, END);
    assert!(p99 < 10 && share > 0.2, "{p99} {share}");
}
