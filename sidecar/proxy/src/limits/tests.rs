use http::HeaderMap;

use super::*;

fn limits() -> (Arc<Limits>, Arc<Seats>) {
    let limits = Arc::new(Limits::new(1 << 30));
    limits.set_bounds(route::Limits { max_concurrent: 8, min_concurrent: 8, alone: true });
    let mut gradient = Gradient::new(*limits.bounds());
    limits.look(&mut gradient, &mut Instant::now());
    let seats = Arc::new(Seats::new(Arc::clone(&limits), 0));
    (limits, seats)
}

#[test]
fn a_seat_is_given_back_with_the_call_and_not_twice() {
    let (limits, seats) = limits();
    for _ in 0..3 {
        let calls: Vec<_> = (0..20)
            .filter_map(|_| limits.admit(&seats, Some("acme"), "issues", "/a.B/C", Instant::now()).ok())
            .collect();
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
        limits.admit(&seats, Some("acme"), "issues", "/a.B/Watch", Instant::now()).unwrap_or_else(|it| panic!("{it}"));
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
fn each_worker_remembers_parties_only_for_as_long_as_all_do() {
    let (limits, seats) = limits();
    let other = Arc::new(Seats::new(Arc::clone(&limits), 1));
    let mut looks = (Gradient::new(*limits.bounds()), Instant::now());
    let party = |seats: &Arc<Seats>, who: Bearer<'_>| std::ptr::from_ref::<Party>(&**seats.party(who));
    let call = |tenant| limits.admit(&seats, Some(tenant), "issues", "/a.B/C", Instant::now()).map(drop);
    // Many in few places, some of them services of the same name.
    for number in 0..2_000 {
        let name = format!("t{number}");
        let both = [Bearer::Tenant(&name), Bearer::Caller(&name)].map(|who| {
            let found = party(&seats, who);
            assert_eq!([found; 2], [party(&seats, who), party(&other, who)]);
            found
        });
        assert_ne!(both[0], both[1]);
    }
    assert!(call("acme").is_ok());
    let before = party(&seats, Bearer::Tenant("acme"));
    for turn in 0..FORGOTTEN + 10 {
        limits.look(&mut looks.0, &mut looks.1);
        if turn < FORGOTTEN / 4 {
            assert_eq!(party(&seats, Bearer::Tenant("acme")), before);
        }
    }
    limits.tenants.forget(FORGOTTEN + 10);
    assert_eq!(party(&seats, Bearer::Tenant("acme")), party(&other, Bearer::Tenant("acme")), "not the forgotten one");
}

#[test]
fn tenants_and_callers_without_tenant_are_parties_of_their_own_and_too_many_share_places() {
    let parties = Parties::new();
    let hashes = RandomState::new();
    let (first, alone) = parties.get("acme", &hashes);
    assert!(alone && Arc::ptr_eq(&first, &parties.get("acme", &hashes).0));
    for number in 0..PARTIES + 100 {
        let _party = parties.get(&format!("t{number}"), &hashes);
    }
    assert_eq!(parties.known.len(), PARTIES);
    assert!(!parties.get("one more", &hashes).1);
    assert!(Arc::ptr_eq(&first, &parties.get("acme", &hashes).0), "who is known stays so");
    parties.forget(FORGOTTEN + 1);
    assert!(parties.known.is_empty());
}
