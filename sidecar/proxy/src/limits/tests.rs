use http::HeaderMap;

use super::*;

fn limits() -> (Arc<Limits>, Arc<Seats>) {
    let limits = Arc::new(Limits::new(1 << 30));
    limits.set_bounds(route::Limits { max_concurrent: 8, min_concurrent: 8, alone: true });
    let mut gradient = Gradient::new(*limits.bounds());
    limits.look(&mut gradient, &mut Instant::now());
    let seats = Arc::new(Seats::new(Arc::clone(&limits)));
    (limits, seats)
}

#[test]
fn a_seat_is_given_back_with_the_call_and_not_twice() {
    let (limits, seats) = limits();
    for _ in 0..3 {
        let calls: Vec<_> =
            (0..20).filter_map(|_| limits.admit(&seats, Some("acme"), "issues", "/a.B/C").ok()).collect();
        assert_eq!((calls.len(), limits.gauges().app.in_use), (8, 8));
        seats.sweep();
        drop(calls);
        assert_eq!(limits.gauges().app.in_use, 0);
    }
    assert_eq!(limits.gauges().refused, [0, 36, 0]);
    let slots = seats.slots();
    assert_eq!((slots.seats.len(), slots.free.len()), (8, 8), "seats are used again");
}

#[test]
fn a_stream_that_has_begun_to_answer_counts_for_a_second_more_and_no_longer() {
    let (limits, seats) = limits();
    let mut watch =
        limits.admit(&seats, Some("acme"), "issues", "/a.B/Watch").unwrap_or_else(|refusal| panic!("{refusal}"));
    watch.answered(&HeaderMap::new());
    seats.sweep();
    assert_eq!(limits.gauges().app.in_use, 1);
    seats.slots().seats[0].until = Instant::now();
    seats.sweep();
    assert_eq!(limits.gauges().app.in_use, 0);
    drop(watch);
    assert_eq!(limits.gauges().app.in_use, 0);
}

#[test]
fn tenants_and_callers_without_tenant_are_parties_of_their_own_and_too_many_share_places() {
    let parties = Parties::new();
    let hashes = RandomState::new();
    let first = parties.get("acme", &hashes);
    assert!(Arc::ptr_eq(&first, &parties.get("acme", &hashes)));
    for number in 0..PARTIES + 100 {
        let _party = parties.get(&format!("t{number}"), &hashes);
    }
    assert_eq!(parties.known.len(), PARTIES);
    assert!(Arc::ptr_eq(&first, &parties.get("acme", &hashes)), "who is known stays so");
    parties.forget(FORGOTTEN + 1);
    assert!(parties.known.is_empty());
}
