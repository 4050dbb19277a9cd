//! How instances come back, and what is asked without taking it.

use std::thread;

use super::{
    ejection::{S, fail, group, serve, shares},
    *,
};
use crate::route::Route;

/// Bug: probation looked only into the tier that got the call, and one without a healthy instance gets none.
#[test]
fn an_instance_that_is_alone_in_its_zone_comes_back() {
    let zones = [(1, "us-east", Some("a")), (2, "us-east", Some("b")), (3, "eu-west", None)];
    for ejected in 1..=3 {
        let all = zones.map(|(number, region, zone)| endpoint(number, region, zone)).to_vec();
        let endpoints = endpoints(all).succeed(None, &Route::default());
        let bad = find(&endpoints, ejected);
        fail(bad, 5, 0);
        assert_eq!(shares(&endpoints, 10 * S - 1).get(&ejected), None);
        shares(&endpoints, 10 * S);
        assert_eq!(bad.state(30 * S), State::InUse, "{ejected}");
    }
}

/// A call that may go to one region only tries no instance of another.
#[test]
fn a_call_for_one_region_is_no_probation_of_another() {
    let all = vec![endpoint(1, "us-east", None), endpoint(2, "us-east", None), endpoint(3, "eu-west", None)];
    let endpoints = endpoints(all).succeed(None, &Route::default());
    fail(find(&endpoints, 3), 5, 0);
    assert_ne!(last(endpoints.candidates(Some("us-east")).next(10 * S).unwrap()), 3);
    assert_eq!(find(&endpoints, 3).state(10 * S), State::Ejected);
    assert_eq!(last(endpoints.candidates(None).next(11 * S).unwrap()), 3);
}

/// Bug: a count that was forgotten while it faded wrapped around to four thousand million.
#[test]
fn a_count_that_is_forgotten_while_it_fades_stays_near_zero() {
    let endpoints = group(2, |_| {});
    let load = find(&endpoints, 1);
    thread::scope(|scope| {
        scope.spawn(|| (0..200_000).for_each(|_| load.standing.fade()));
        for _ in 0..200_000 {
            load.standing.well();
            load.standing.forget();
            let (ok, _) = load.standing.counts();
            assert!(ok <= 16, "{ok}");
        }
    });
}

/// Bug: a hedge was paid for, and then there was no instance to send it to.
#[test]
fn whether_there_is_another_candidate_is_known_without_taking_it() {
    let endpoints = group(2, |_| {});
    let mut candidates = endpoints.candidates(None);
    for left in [true, true, false] {
        assert_eq!(candidates.has_next(), left);
        assert_eq!(candidates.clone().next(0).is_some(), left);
        candidates.next(0);
    }
}

/// Bug: who lost every race with a hedge showed nothing, so that what it had been before faded to the lowest cost of all.
#[test]
fn an_instance_that_hangs_and_is_hedged_is_not_the_favourite() {
    let endpoints = group(3, |_| {});
    let mut firsts = 0;
    let mut now = S;
    for call in 0..6_000 {
        now += 10 * MS;
        let mut candidates = endpoints.candidates(None);
        let first = candidates.next(now).unwrap();
        if call < 1_000 || last(first) != 1 {
            serve(&first.load, 1, now);
            continue;
        }
        firsts += 1;
        let slow = first.load.start();
        serve(&candidates.next(now + 10 * MS).unwrap().load, 1, now + 11 * MS);
        slow.report(Shown::Outrun { took: 11 * MS }, now + 11 * MS);
    }
    assert!(firsts < 100, "{firsts} of 5,000");
}

#[test]
fn who_is_outrun_has_failed_only_where_it_answers_nobody() {
    let endpoints = group(2, |_| {});
    let load = find(&endpoints, 1);
    serve(load, 1, 10 * S);
    for _ in 0..20 {
        load.start().report(Shown::Outrun { took: 20 * MS }, 19 * S);
    }
    assert_eq!(load.state(19 * S), State::InUse);
    assert_eq!(load.latency(19 * S).as_millis(), 20);
    for _ in 0..5 {
        load.start().report(Shown::Outrun { took: 20 * MS }, 21 * S);
    }
    assert_eq!(load.state(21 * S), State::Ejected);
}

#[test]
fn a_call_that_waited_for_a_connection_in_vain_makes_dear_and_ejects_nobody() {
    let endpoints = group(2, |_| {});
    let load = find(&endpoints, 1);
    for _ in 0..20 {
        load.start().report(Shown::Waited { took: 300 * MS }, S);
    }
    assert_eq!(load.state(S), State::InUse);
    assert_eq!(load.latency(S).as_millis(), 300);
    assert_eq!(shares(&endpoints, S).get(&1), None);
}
