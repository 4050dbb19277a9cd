use super::*;

const MS: u64 = 1_000_000;

fn endpoint(last: u8, region: &str, zone: Option<&str>) -> Endpoint {
    Endpoint {
        address: SocketAddr::from(([10, 0, 0, last], 1)),
        region: region.parse().unwrap(),
        zone: zone.map(|zone| zone.parse().unwrap()),
        load: Arc::default(),
    }
}

/// As a sidecar in us-east, zone a, sees them.
fn endpoints(all: Vec<Endpoint>) -> Endpoints {
    Endpoints::new(all, Some(&"us-east".parse().unwrap()), Some(&"a".parse().unwrap()), 42)
}

fn last(endpoint: &Endpoint) -> u8 {
    let SocketAddr::V4(address) = endpoint.address else { panic!("expected IPv4") };
    address.ip().octets()[3]
}

fn order(mut candidates: Candidates<'_>, now: u64) -> Vec<u8> {
    std::iter::from_fn(|| candidates.next(now)).map(last).collect()
}

fn find(endpoints: &Endpoints, number: u8) -> &Arc<Load> {
    &endpoints.all().iter().find(|endpoint| last(endpoint) == number).unwrap().load
}

#[test]
fn own_zone_goes_before_own_region_before_others() {
    let endpoints = endpoints(vec![
        endpoint(1, "ap-south", Some("a")),
        endpoint(2, "us-east", None),
        endpoint(3, "us-east", Some("a")),
        endpoint(4, "eu-west", None),
        endpoint(5, "us-east", Some("b")),
    ]);
    let order = order(endpoints.candidates(None), 0);
    assert_eq!(order[0], 3);
    assert_eq!([order[1].min(order[2]), order[1].max(order[2])], [2, 5]);
    assert_eq!([order[3].min(order[4]), order[3].max(order[4])], [1, 4]);
}

#[test]
fn one_region_can_be_asked_for() {
    let endpoints = endpoints(vec![
        endpoint(1, "ap-south", None),
        endpoint(2, "us-east", None),
        endpoint(3, "us-east", Some("a")),
        endpoint(4, "eu-west", None),
        endpoint(5, "ap-south-2", None),
    ]);
    for (region, expected) in [("us-east", vec![3, 2]), ("ap-south", vec![1]), ("eu-west", vec![4]), ("eu", vec![])] {
        let candidates = endpoints.candidates(Some(region));
        assert_eq!((candidates.len(), candidates.is_empty()), (expected.len(), expected.is_empty()), "{region}");
        assert_eq!(order(candidates, 0), expected, "{region}");
    }
}

#[test]
fn without_a_region_all_endpoints_are_equally_far() {
    let all = vec![endpoint(1, "us-east", Some("a")), endpoint(2, "eu-west", None)];
    let endpoints = Endpoints::new(all, None, None, 1);
    assert_eq!(endpoints.tiers, [0..0, 0..0, 0..2]);
}

#[test]
fn each_candidate_is_handed_out_once_and_at_most_eight() {
    let endpoints = endpoints((1..=20).map(|number| endpoint(number, "us-east", None)).collect());
    for _ in 0..100 {
        let mut order = order(endpoints.candidates(None), 0);
        assert_eq!(order.len(), MAX_ATTEMPTS);
        order.sort_unstable();
        order.dedup();
        assert_eq!(order.len(), MAX_ATTEMPTS, "one was handed out twice");
    }
}

#[test]
fn the_slowest_of_many_is_never_the_first_choice_and_all_others_are() {
    let endpoints = endpoints((1..=5).map(|number| endpoint(number, "us-east", None)).collect());
    for number in 1..=5 {
        find(&endpoints, number).observe(if number == 3 { 50 * MS } else { MS }, 0);
    }
    let mut firsts = [0; 6];
    for _ in 0..1_000 {
        firsts[usize::from(last(endpoints.candidates(None).next(0).unwrap()))] += 1;
    }
    assert_eq!(firsts[3], 0, "{firsts:?}");
    assert!([1, 2, 4, 5].iter().all(|number| firsts[*number] > 100), "{firsts:?}");
}

#[test]
fn calls_in_flight_count_like_latency() {
    let endpoints = endpoints(vec![endpoint(1, "us-east", None), endpoint(2, "us-east", None)]);
    find(&endpoints, 1).observe(MS, 0);
    find(&endpoints, 2).observe(2 * MS, 0);
    assert_eq!(order(endpoints.candidates(None), 0), [1, 2]);
    let slots: Vec<_> = (0..2).map(|_| find(&endpoints, 1).start()).collect();
    assert_eq!(order(endpoints.candidates(None), 0), [2, 1]);
    drop(slots);
    assert_eq!(find(&endpoints, 1).in_flight(), 0);
    assert_eq!(order(endpoints.candidates(None), 0), [1, 2]);
}

#[test]
fn an_endpoint_that_never_answered_gets_one_call_and_not_a_crowd() {
    let endpoints = endpoints(vec![endpoint(1, "us-east", None), endpoint(2, "us-east", None)]);
    find(&endpoints, 1).observe(MS, 0);
    assert_eq!(order(endpoints.candidates(None), 0)[0], 2);
    let _slot = find(&endpoints, 2).start();
    assert_eq!(order(endpoints.candidates(None), 0)[0], 1);
}

#[test]
fn an_endpoint_that_cannot_be_connected_to_is_left_out_until_its_time_is_over() {
    let endpoints = endpoints(vec![endpoint(1, "us-east", Some("a")), endpoint(2, "eu-west", None)]);
    let near = find(&endpoints, 1);
    near.connect_failed(0);
    assert_eq!(order(endpoints.candidates(None), 99 * MS), [2, 1]);
    assert_eq!(order(endpoints.candidates(None), 100 * MS), [1, 2]);
    near.connect_failed(100 * MS);
    assert_eq!(order(endpoints.candidates(None), 299 * MS), [2, 1], "twice as long after the second failure");
    near.connected();
    assert_eq!(order(endpoints.candidates(None), 299 * MS), [1, 2]);
}

#[test]
fn when_all_are_backing_off_the_nearest_is_tried_all_the_same() {
    let endpoints = endpoints(vec![endpoint(1, "eu-west", None), endpoint(2, "us-east", None)]);
    find(&endpoints, 1).connect_failed(0);
    find(&endpoints, 2).connect_failed(0);
    assert_eq!(order(endpoints.candidates(None), 0), [2, 1]);
}

#[test]
fn back_off_grows_to_a_bound() {
    let load = Load::default();
    for _ in 0..100 {
        load.connect_failed(0);
    }
    assert!(!load.is_available(12_799 * MS));
    assert!(load.is_available(12_800 * MS));
}

#[test]
fn a_peak_counts_at_once_and_fades() {
    let load = Load::default();
    assert_eq!(load.latency(0).as_millis(), 0);
    load.observe(10 * MS, 0);
    load.observe(100 * MS, MS);
    assert_eq!(load.latency(MS).as_millis(), 100);
    load.observe(10 * MS, 2 * MS);
    assert!(load.latency(2 * MS).as_millis() > 98, "one fast answer does not make up for it");
    let after_10_s = load.latency(10_000 * MS).as_millis();
    assert!((36..=37).contains(&after_10_s), "1/e after 10 s, not {after_10_s}");
    load.observe(10 * MS, 30_000 * MS);
    assert!((10..20).contains(&load.latency(30_000 * MS).as_millis()));
    // A clock that went back is no reason to panic or to forget.
    assert!(load.latency(0).as_millis() > 0);
}

#[test]
fn a_slot_counts_until_it_is_dropped() {
    let load = Arc::new(Load::default());
    let (one, two) = (load.start(), load.start());
    assert_eq!(load.in_flight(), 2);
    drop(one);
    assert_eq!(two.load().in_flight(), 1);
    drop(two);
    assert_eq!(load.in_flight(), 0);
}

mod ejection;
mod returning;
mod simulation;
