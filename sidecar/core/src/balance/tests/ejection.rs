//! Who is left out, for how long, and how it comes back.

use std::{collections::BTreeMap, thread, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::route::Route;

pub(super) const S: u64 = 1_000 * MS;

/// So many endpoints in one tier, with a route of the defaults but for what `change` says.
pub(super) fn group(count: u8, change: impl Fn(&mut Route)) -> Endpoints {
    let mut route = Route::default();
    route.slow_start = Duration::ZERO;
    change(&mut route);
    endpoints((1..=count).map(|number| endpoint(number, "us-east", None)).collect()).succeed(None, &route)
}

pub(super) fn fail(load: &Arc<Load>, times: usize, now: u64) {
    for _ in 0..times {
        load.start().report(Shown::Failed, now);
    }
}

pub(super) fn serve(load: &Arc<Load>, times: usize, now: u64) {
    for _ in 0..times {
        let slot = load.start();
        slot.report(Shown::Answered { took: MS }, now);
        slot.ended(Ended::Well, now);
    }
}

fn states(endpoints: &Endpoints, now: u64) -> Vec<State> {
    endpoints.all().iter().map(|endpoint| endpoint.load.state(now)).collect()
}

/// How often each is the first choice of a thousand calls that are answered at once.
pub(super) fn shares(endpoints: &Endpoints, now: u64) -> BTreeMap<u8, u32> {
    let mut shares = BTreeMap::new();
    for _ in 0..1_000 {
        let chosen = endpoints.candidates(None).next(now).unwrap();
        serve(&chosen.load, 1, now);
        *shares.entry(last(chosen)).or_default() += 1;
    }
    shares
}

#[test]
fn five_failures_in_a_row_eject_and_four_do_not() {
    let endpoints = group(3, |_| {});
    let bad = find(&endpoints, 2);
    fail(bad, 4, 0);
    serve(bad, 1, 0);
    fail(bad, 4, 0);
    assert_eq!(bad.state(0), State::InUse);
    fail(bad, 1, 0);
    assert_eq!(bad.state(0), State::Ejected);
    assert_eq!(endpoints.group().ejections(Cause::Consecutive), 1);
    assert_eq!(shares(&endpoints, S).get(&2), None);
}

#[test]
fn a_call_that_says_twice_that_it_failed_counts_once() {
    let endpoints = group(3, |_| {});
    let bad = find(&endpoints, 1);
    for _ in 0..4 {
        let slot = bad.start();
        slot.report(Shown::Failed, 0);
        slot.ended(Ended::Failed, 0);
    }
    assert_eq!(bad.state(0), State::InUse);
}

#[test]
fn a_route_can_say_that_nobody_is_ejected() {
    let endpoints = group(4, |route| route.outliers.consecutive_failures = None);
    fail(find(&endpoints, 1), 1_000, 0);
    assert_eq!(states(&endpoints, 0), [State::InUse; 4]);
    let endpoints = group(4, |route| route.outliers.max_ejected_percent = 0);
    fail(find(&endpoints, 1), 1_000, 0);
    assert_eq!(states(&endpoints, 0), [State::InUse; 4]);
}

#[test]
fn never_more_than_half_are_left_out_and_never_the_last_one() {
    for (count, percent, most) in [(1, 50, 0), (2, 50, 1), (3, 50, 1), (4, 50, 2), (9, 50, 4), (10, 10, 1), (10, 25, 2)]
    {
        let endpoints = group(count, |route| route.outliers.max_ejected_percent = percent);
        for endpoint in endpoints.all() {
            fail(&endpoint.load, 20, 0);
            endpoint.load.set_healthy(false, 0);
        }
        let out = states(&endpoints, 0).iter().filter(|state| **state != State::InUse).count();
        assert_eq!(out, most, "{count} endpoints, {percent} %");
    }
}

#[test]
fn fewer_endpoints_pardon_those_that_are_too_many() {
    let endpoints = group(6, |_| {});
    for number in 1..=3 {
        fail(find(&endpoints, number), 5, u64::from(number) * MS);
    }
    let fewer = (1..=4).map(|number| endpoint(number, "us-east", None)).collect();
    let fewer = super::endpoints(fewer).succeed(Some(&endpoints), &Route::default());
    let left_out: Vec<u8> =
        fewer.all().iter().filter(|endpoint| endpoint.load.state(S) == State::Ejected).map(last).collect();
    assert_eq!(left_out, [2, 3], "the one whose ejection ends first is pardoned");
    // One that is ejected goes, and another one may be in its place.
    let others = [1, 3, 4, 5].map(|number| endpoint(number, "us-east", None)).to_vec();
    let others = super::endpoints(others).succeed(Some(&fewer), &Route::default());
    fail(find(&others, 4), 5, S);
    assert_eq!(find(&others, 4).state(S), State::Ejected);
    fail(find(&others, 5), 5, S);
    assert_ne!(find(&others, 5).state(S), State::Ejected);
}

#[test]
fn an_ejection_ends_with_one_call_that_goes_well() {
    let endpoints = group(3, |route| route.slow_start = 10 * Duration::from_secs(1));
    let bad = find(&endpoints, 2);
    fail(bad, 5, 0);
    assert_eq!(shares(&endpoints, 10 * S - 1).get(&2), None, "its ejection is not over");
    let mut candidates = endpoints.candidates(None);
    let chosen = candidates.next(10 * S).unwrap();
    assert_eq!(last(chosen), 2, "the first call after it");
    let probe = chosen.load.start();
    assert_eq!(bad.state(10 * S), State::Probation);
    assert_eq!(shares(&endpoints, 11 * S).get(&2), None, "and no other one");
    probe.report(Shown::Answered { took: MS }, 11 * S);
    assert_eq!(shares(&endpoints, 11 * S).get(&2), None, "how it ends is not known");
    probe.ended(Ended::Well, 11 * S);
    assert_eq!(bad.state(11 * S), State::Starting);
    assert_eq!(bad.state(21 * S), State::InUse);
}

#[test]
fn a_probation_that_fails_ejects_for_longer_each_time_and_long_use_makes_up_for_it() {
    let endpoints = group(2, |_| {});
    let bad = find(&endpoints, 1);
    fail(bad, 5, 0);
    let mut now = 10 * S;
    for times in 2..40 {
        let chosen = endpoints.candidates(None).next(now).unwrap();
        assert_eq!(last(chosen), 1);
        chosen.load.start().report(Shown::Failed, now);
        now += (times * 10 * S).min(300 * S);
        assert_eq!(last(endpoints.candidates(None).next(now - 1).unwrap()), 2, "{times}");
    }
    let chosen = endpoints.candidates(None).next(now).unwrap();
    serve(&chosen.load, 1, now);
    assert_eq!(bad.state(now), State::InUse);
    now += 1_000 * S;
    fail(bad, 5, now);
    assert_eq!(last(endpoints.candidates(None).next(now + 10 * S).unwrap()), 1, "as the first time");
}

#[test]
fn a_probation_that_shows_nothing_is_left_to_the_next_call() {
    let endpoints = group(2, |_| {});
    fail(find(&endpoints, 1), 5, 0);
    for _ in 0..3 {
        let chosen = endpoints.candidates(None).next(10 * S).unwrap();
        assert_eq!(last(chosen), 1);
        drop(chosen.load.start());
    }
    // A choice that no call followed is forgotten after half a minute.
    assert_eq!(last(endpoints.candidates(None).next(10 * S).unwrap()), 1);
    assert_eq!(last(endpoints.candidates(None).next(39 * S).unwrap()), 2);
    assert_eq!(last(endpoints.candidates(None).next(41 * S).unwrap()), 1);
}

#[test]
fn a_stream_that_has_begun_well_ends_a_probation_although_it_goes_on() {
    let endpoints = group(2, |_| {});
    let bad = find(&endpoints, 1);
    fail(bad, 5, 0);
    let stream = endpoints.candidates(None).next(10 * S).unwrap().load.start();
    stream.report(Shown::Answered { took: MS }, 10 * S);
    endpoints.sweep(14 * S);
    assert_eq!(bad.state(14 * S), State::Probation);
    endpoints.sweep(15 * S);
    assert_eq!(bad.state(15 * S), State::InUse);
}

#[test]
fn late_news_of_calls_before_the_ejection_change_nothing() {
    let endpoints = group(2, |_| {});
    let bad = find(&endpoints, 1);
    let (good, worse) = (bad.start(), bad.start());
    fail(bad, 5, 0);
    good.report(Shown::Answered { took: 10 * S }, 10 * S);
    good.ended(Ended::Well, 10 * S);
    worse.report(Shown::Failed, 10 * S);
    assert_eq!(bad.state(10 * S), State::Ejected);
    assert_eq!(endpoints.group().ejections(Cause::Consecutive), 1);
}

#[test]
fn of_two_threads_one_gets_the_call_of_a_probation() {
    for round in 0..200 {
        let endpoints = group(4, |_| {});
        fail(find(&endpoints, 3), 5, 0);
        let now = 10 * S + round;
        let probes: usize = thread::scope(|scope| {
            let choose = || {
                let mut probes = Vec::new();
                for _ in 0..50 {
                    let chosen = endpoints.candidates(None).next(now).unwrap();
                    if last(chosen) == 3 {
                        probes.push(chosen.load.start());
                    } else {
                        serve(&chosen.load, 1, now);
                    }
                }
                probes
            };
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(choose)).collect();
            // All slots are held until both are done: one that is dropped leaves the probation to the next call.
            let slots: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            slots.iter().map(Vec::len).sum()
        });
        assert_eq!(probes, 1, "round {round}");
    }
}

#[test]
fn threads_that_eject_at_once_leave_half_in_use() {
    for _ in 0..100 {
        let endpoints = group(7, |_| {});
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| endpoints.all().iter().for_each(|endpoint| fail(&endpoint.load, 9, 0)));
            }
        });
        let out = states(&endpoints, 0).iter().filter(|state| **state == State::Ejected).count();
        assert_eq!((out, endpoints.group.out()), (3, 3));
    }
}

#[test]
fn the_success_rate_of_one_is_compared_with_the_others() {
    let ejects = |bad: [usize; 4]| {
        let endpoints = group(4, |route| route.outliers.consecutive_failures = None);
        for (endpoint, bad) in endpoints.all().iter().zip(bad) {
            fail(&endpoint.load, bad, 0);
            serve(&endpoint.load, 1_000 - bad, 0);
        }
        assert!(endpoints.sweep(0).len() <= 1);
        endpoints.all().iter().find(|endpoint| endpoint.load.state(0) == State::Ejected).map(last)
    };
    assert_eq!(ejects([0, 20, 0, 0]), Some(2), "2 % where the others do not fail");
    assert_eq!(ejects([0, 4, 0, 0]), None, "too few to say");
    assert_eq!(ejects([18, 20, 22, 19]), None, "all fail alike");
    assert_eq!(ejects([100, 900, 120, 90]), Some(2));
    assert_eq!(ejects([100, 125, 120, 90]), None, "within what the others differ by");
}

#[test]
fn a_success_rate_needs_calls_and_another_one_to_compare_with() {
    let endpoints = group(2, |route| route.outliers.consecutive_failures = None);
    let (bad, good) = (find(&endpoints, 1), find(&endpoints, 2));
    fail(bad, 60, 0);
    serve(bad, 60, 0);
    assert_eq!(endpoints.sweep(0), [], "the other one has no calls");
    serve(good, 99, 0);
    assert_eq!(endpoints.sweep(0), []);
    serve(good, 50, 0);
    fail(bad, 20, 0);
    let turns = endpoints.sweep(S);
    assert_eq!(turns, [(endpoints.all()[0].address, Turn::Ejected(Cause::SuccessRate, 10 * S))]);
    assert_eq!(endpoints.sweep(S), [], "told once");
    assert_eq!(endpoints.group().ejections(Cause::SuccessRate), 1);
}

#[test]
fn calls_of_a_minute_ago_do_not_count_any_more() {
    let endpoints = group(2, |route| route.outliers.consecutive_failures = None);
    fail(find(&endpoints, 1), 300, 0);
    for second in 0..60 {
        endpoints.sweep(second * S);
    }
    serve(find(&endpoints, 1), 300, 60 * S);
    serve(find(&endpoints, 2), 300, 60 * S);
    assert_eq!(endpoints.sweep(60 * S), []);
}

#[test]
fn an_unhealthy_endpoint_is_left_out_until_it_says_otherwise() {
    let endpoints = group(3, |_| {});
    let sick = find(&endpoints, 1);
    assert!(sick.set_healthy(false, 0));
    assert!(!find(&endpoints, 2).set_healthy(false, 0), "one of three is all that may be left out");
    assert_eq!(shares(&endpoints, 1_000 * S).get(&1), None, "no call is tried");
    assert_eq!(endpoints.sweep(0), [(endpoints.all()[0].address, Turn::Unhealthy)]);
    fail(sick, 5, 0);
    assert!(sick.set_healthy(true, S));
    assert_eq!(sick.state(S), State::Ejected, "that its calls failed is another matter");
    assert!(!find(&endpoints, 2).set_healthy(false, S));
    serve(&endpoints.candidates(None).next(10 * S).unwrap().load, 1, 10 * S);
    assert_eq!(sick.state(10 * S), State::InUse);
    assert_eq!(endpoints.sweep(10 * S), [(endpoints.all()[0].address, Turn::Returned)]);
    assert!(find(&endpoints, 2).set_healthy(false, 10 * S));
}

#[test]
fn where_all_that_a_call_may_go_to_are_left_out_it_goes_there_all_the_same() {
    let all = vec![endpoint(1, "us-east", None), endpoint(2, "us-east", None), endpoint(3, "eu-west", None)];
    let endpoints = endpoints(all).succeed(None, &Route::default());
    fail(find(&endpoints, 3), 5, 0);
    assert_eq!(order(endpoints.candidates(Some("eu-west")), S), [3]);
    assert_eq!(order(endpoints.candidates(None), S)[2], 3, "last of all");
}

#[test]
fn shares_are_fair_where_all_do_alike() {
    for count in [3, 5, 16] {
        let shares = shares(&group(count, |_| {}), 0);
        let fair = 1_000 / u32::from(count);
        assert!((1..=count).all(|number| shares[&number] > fair / 2 && shares[&number] < fair * 2), "{shares:?}");
    }
}

#[test]
fn the_share_of_a_new_endpoint_grows() {
    let route = Route::default();
    let old = endpoints((1..=3).map(|number| endpoint(number, "us-east", None)).collect()).succeed(None, &route);
    serve(find(&old, 1), 1, 0);
    let all = (1..=4).map(|number| endpoint(number, "us-east", None)).collect();
    let endpoints = super::endpoints(all).succeed(Some(&old), &route);
    assert_eq!(find(&endpoints, 4).state(0), State::Starting);
    let share = |now| shares(&endpoints, now).get(&4).copied().unwrap_or(0);
    let grown = [0, 2, 5, 8, 10].map(|second| share(second * S));
    assert!(grown.is_sorted(), "{grown:?}");
    assert!((5..60).contains(&grown[0]), "a tenth of a quarter: {grown:?}");
    assert!((70..190).contains(&grown[2]), "half of a quarter: {grown:?}");
    assert!(grown[4] > 180, "{grown:?}");
    assert_eq!(states(&endpoints, 11 * S), [State::InUse; 4]);
}

#[test]
fn a_tier_spills_over_when_less_than_seven_tenths_of_it_are_healthy() {
    let near = (1..=10).map(|number| endpoint(number, "us-east", Some("a")));
    let far = (11..=13).map(|number| endpoint(number, "us-east", Some("b")));
    let endpoints = endpoints(near.chain(far).collect()).succeed(None, &Route::default());
    let spilled = |now| shares(&endpoints, now).iter().filter(|(number, _)| **number > 10).map(|(_, n)| n).sum::<u32>();
    assert_eq!(spilled(0), 0);
    for number in 1..=2 {
        fail(find(&endpoints, number), 5, 0);
    }
    assert_eq!(spilled(0), 0, "eight tenths are healthy");
    for number in 3..=5 {
        fail(find(&endpoints, number), 5, 0);
    }
    let half = spilled(0);
    assert!((230..370).contains(&half), "1 - 1.4 × 5 / 10 of 1,000, not {half}");
    // Those that cannot be connected to count as well, and are left out beyond the half.
    for number in 6..=10 {
        find(&endpoints, number).connect_failed(0);
    }
    assert_eq!(spilled(0), 1_000);
}

#[test]
fn after_a_failed_connect_one_call_tries_again_and_the_others_do_not_wait_for_it() {
    let endpoints = group(2, |_| {});
    let dead = find(&endpoints, 1);
    dead.start().report(Shown::Unreachable, 0);
    assert_eq!(dead.state(0), State::BackingOff);
    let firsts: Vec<u8> = (0..10)
        .map(|_| last(endpoints.candidates(None).next(100 * MS).unwrap()))
        .filter(|number| *number == 1)
        .collect();
    assert_eq!(firsts, [1]);
    dead.start().report(Shown::Answered { took: MS }, 101 * MS);
    assert_eq!(dead.state(101 * MS), State::InUse);
}

#[test]
fn a_fast_refusal_makes_an_endpoint_dear_and_not_cheap() {
    let endpoints = group(2, |_| {});
    for number in [1, 2] {
        find(&endpoints, number).observe(5 * MS, 0);
    }
    find(&endpoints, 1).start().report(Shown::Busy { took: MS / 10 }, 0);
    assert_eq!(find(&endpoints, 1).latency(0).as_millis(), 40);
    assert_eq!(find(&endpoints, 1).state(0), State::InUse, "it is no failure");
    find(&endpoints, 2).start().report(Shown::Refused, 0);
    assert_eq!(find(&endpoints, 2).latency(0).as_millis(), 5, "what policy refuses says nothing");
    for _ in 0..10 {
        find(&endpoints, 1).start().report(Shown::Busy { took: 1 }, 0);
    }
    assert_eq!(find(&endpoints, 1).latency(0).as_millis(), 1_000, "no more than that");
}

#[test]
fn a_deadline_that_passes_is_the_instances_fault_only_where_it_answers_nobody() {
    let endpoints = group(2, |_| {});
    let load = find(&endpoints, 1);
    for _ in 0..20 {
        serve(load, 1, 10 * S);
        load.start().report(Shown::Silent { took: S }, 10 * S);
    }
    assert_eq!(load.state(10 * S), State::InUse);
    for _ in 0..5 {
        load.start().report(Shown::Silent { took: S }, 12 * S);
    }
    assert_eq!(load.state(12 * S), State::Ejected);
}

#[test]
fn what_policy_refuses_is_no_fault_of_the_instance() {
    use crate::Reason;
    for reason in Reason::ALL {
        let expected = match reason.as_str() {
            "OVERLOADED" => Shown::Busy { took: 1 },
            "UPSTREAM_CONNECT" | "NO_ENDPOINT" | "POLICY_UNAVAILABLE" | "TCS_UNAVAILABLE" | "ASAP_KEYS_UNAVAILABLE" => {
                Shown::Failed
            }
            _ => Shown::Refused,
        };
        assert_eq!(shown_by_refusal(*reason, 1), expected, "{reason}");
    }
    let faults: Vec<u32> = (0..17).filter(|code| is_own_fault(*code)).collect();
    assert_eq!(faults, [2, 13, 14, 15]);
}

/// What may happen to a destination.
#[derive(Clone, Debug)]
enum Step {
    Call(Ended),
    Fails(usize),
    Health(usize, bool),
    Unreachable(usize),
    Sweep,
    Wait(u64),
    Resize(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let ended = prop_oneof![Just(Ended::Well), Just(Ended::Failed), Just(Ended::Unknown)];
    prop_oneof![
        8 => ended.prop_map(Step::Call),
        4 => (0..9usize).prop_map(Step::Fails),
        1 => (0..9usize, any::<bool>()).prop_map(|(index, healthy)| Step::Health(index, healthy)),
        1 => (0..9usize).prop_map(Step::Unreachable),
        2 => Just(Step::Sweep),
        3 => (0..20_000u64).prop_map(|ms| Step::Wait(ms * MS)),
        1 => (1..9u8).prop_map(Step::Resize),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_half_are_in_use_and_nobody_is_chosen_who_is_left_out(
        count in 1..9u8,
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let mut endpoints = group(count, |_| {});
        let mut now = 0;
        for step in steps {
            let nth = |index: usize| &endpoints.all()[index % endpoints.all().len()].load;
            match step {
                Step::Call(ended) => {
                    let usable = endpoints.all().iter().any(|endpoint| endpoint.load.is_usable(now));
                    let before = states(&endpoints, now);
                    let chosen = endpoints.candidates(None).next(now).unwrap();
                    let index = endpoints.all().iter().position(|one| one.address == chosen.address).unwrap();
                    let on_probation = chosen.load.state(now) == State::Probation && before[index] == State::Ejected;
                    prop_assert!(
                        !usable || matches!(before[index], State::InUse | State::Starting) || on_probation,
                        "{before:?} {index}"
                    );
                    chosen.load.start().ended(ended, now);
                }
                Step::Fails(index) => fail(nth(index), 5, now),
                Step::Health(index, healthy) => { nth(index).set_healthy(healthy, now); }
                Step::Unreachable(index) => nth(index).start().report(Shown::Unreachable, now),
                Step::Sweep => drop(endpoints.sweep(now)),
                Step::Wait(time) => now += time,
                Step::Resize(count) => {
                    let all = (1..=count).map(|number| endpoint(number, "us-east", None)).collect();
                    endpoints = super::endpoints(all).succeed(Some(&endpoints), &Route::default());
                }
            }
            let out = endpoints.all().iter().filter(|endpoint| endpoint.load.standing.is_out()).count();
            prop_assert!(out <= endpoints.all().len() / 2, "{out} of {}", endpoints.all().len());
            prop_assert_eq!(out, endpoints.group.out() as usize, "the count is right");
        }
    }
}

/// Bug: of instances that had all begun lately, chance decided instead of latency for as long as the slow start lasted.
#[test]
fn a_slow_instance_is_left_alone_also_where_all_of_them_have_just_begun() {
    let mut route = Route::default();
    route.slow_start = Duration::from_secs(10);
    let one = super::endpoints(vec![endpoint(9, "us-east", None)]).succeed(None, &route);
    let all = [1, 2, 3].map(|number| endpoint(number, "us-east", None)).to_vec();
    let endpoints = super::endpoints(all).succeed(Some(&one), &route);
    shares(&endpoints, S);
    find(&endpoints, 1).start().report(Shown::Answered { took: 200 * MS }, S);
    assert_eq!(shares(&endpoints, 2 * S).get(&1), None);
}

/// Bug: one that answered slowly got the calls of those that were in their slow start.
#[test]
fn an_instance_in_its_slow_start_takes_over_from_one_that_is_much_slower() {
    let mut route = Route::default();
    route.slow_start = Duration::from_secs(10);
    let one = super::endpoints(vec![endpoint(1, "us-east", None)]).succeed(None, &route);
    let all = [1, 2, 3].map(|number| endpoint(number, "us-east", None)).to_vec();
    let endpoints = super::endpoints(all).succeed(Some(&one), &route);
    let early = shares(&endpoints, S);
    assert!(early[&1] > early[&2] && early[&1] > early[&3], "new ones get less: {early:?}");
    find(&endpoints, 1).start().report(Shown::Answered { took: 200 * MS }, S);
    let later = shares(&endpoints, 2 * S);
    assert_eq!(later.get(&1), None, "{later:?}");
}
