use proptest::prelude::*;
use tenon_proto::policy::v1 as proto;

use super::*;

const PATH: &str = "/media.v1.Media/Get";
const SECOND: u64 = 1_000_000_000;

fn route(attempts: u32, budget: proto::RetryBudget) -> Route {
    Route::decode(&proto::RouteSettings {
        methods: vec![proto::MethodRoute {
            paths: vec![PATH.to_owned()],
            retry: Some(proto::Retry { codes: vec![14, 8], attempts, backoff_ms: 100, max_backoff_ms: 300 }),
            hedge: Some(proto::Hedge { after_ms: 0, attempts: 2 }),
            ..proto::MethodRoute::default()
        }],
        retry_budget: Some(budget),
        ..proto::RouteSettings::default()
    })
}

fn ample() -> proto::RetryBudget {
    proto::RetryBudget { percent: 20, min_per_second: 10 }
}

fn failed(code: u32) -> Ended {
    Ended::Failed { code, pushback: Pushback::None }
}

#[test]
fn without_a_route_only_what_was_not_begun_is_sent_again() {
    let (route, memory) = (Route::default(), Memory::default());
    let mut retries = Retries::new(&route, &memory, PATH, 0);
    let now = Next::After(Duration::ZERO);
    for (ended, next) in [
        (Ended::ForGood, Next::Stop(Why::NotRetryable)),
        (failed(14), Next::Stop(Why::NotRetryable)),
        (failed(8), Next::Stop(Why::NotRetryable)),
        (Ended::Unreachable, Next::Elsewhere),
        (Ended::Unbegun, now),
        (Ended::NoRoom, Next::Elsewhere),
    ] {
        assert_eq!(retries.next(ended, true, None, 0, 0), next, "{ended:?}");
    }
    // None of them was begun.
    assert_eq!(retries.previous_attempts(), 0);
    assert_eq!(retries.hedge(0), Err(Why::NotRetryable));
}

#[test]
fn what_was_not_kept_is_never_sent_again() {
    let (route, memory) = (route(5, ample()), Memory::default());
    let mut retries = Retries::new(&route, &memory, PATH, 0);
    for ended in [Ended::Unreachable, Ended::Unbegun, Ended::NoRoom, failed(14)] {
        assert_eq!(retries.next(ended, false, None, 0, 0), Next::Stop(Why::NotKept), "{ended:?}");
    }
    assert_eq!(memory.budget.taken(0), 0);
}

#[test]
fn a_named_method_is_tried_again_for_the_named_codes_and_no_oftener_than_named() {
    let (route, memory) = (route(3, ample()), Memory::default());
    let mut retries = Retries::new(&route, &memory, PATH, 0);
    assert_eq!(retries.next(failed(13), true, None, 0, 0), Next::Stop(Why::NotRetryable));
    assert!(matches!(retries.next(failed(14), true, None, 0, 0), Next::After(_)));
    assert!(matches!(retries.next(failed(8), true, None, 0, 0), Next::After(_)));
    assert_eq!(retries.previous_attempts(), 2);
    assert_eq!(retries.next(failed(14), true, None, 0, 0), Next::Stop(Why::Attempts));
    let mut other = Retries::new(&route, &memory, "/media.v1.Media/Put", 0);
    assert_eq!(other.next(failed(14), true, None, 0, 0), Next::Stop(Why::NotRetryable));
}

#[test]
fn a_call_that_nobody_begins_is_given_up() {
    let (route, memory) = (Route::default(), Memory::default());
    let mut retries = Retries::new(&route, &memory, PATH, 0);
    let sent_again =
        (0..20).take_while(|_| retries.next(Ended::Unbegun, true, None, 0, 0) != Next::Stop(Why::Attempts));
    assert_eq!(sent_again.count(), UNBEGUN as usize);
    // The first one was free.
    assert_eq!(memory.budget.taken(0), u64::from(UNBEGUN) - 1);
}

#[test]
fn an_empty_budget_stops_all_but_the_first_transparent_one() {
    let (route, memory) = (route(5, proto::RetryBudget { percent: 0, min_per_second: 0 }), Memory::default());
    let fresh = || Retries::new(&route, &memory, PATH, 0);
    assert_eq!(fresh().next(failed(14), true, None, 0, 0), Next::Stop(Why::Budget));
    assert_eq!(fresh().next(Ended::NoRoom, true, None, 0, 0), Next::Stop(Why::Budget));
    assert_eq!(fresh().hedge(0), Err(Why::Budget));
    assert_eq!(fresh().next(Ended::Unreachable, true, None, 0, 0), Next::Elsewhere);
    let mut retries = fresh();
    assert_eq!(retries.next(Ended::Unbegun, true, None, 0, 0), Next::After(Duration::ZERO));
    assert_eq!(retries.next(Ended::Unbegun, true, None, 0, 0), Next::Stop(Why::Budget));
}

#[test]
fn pushback_names_the_pause_or_ends_the_call() {
    for (text, expected) in [
        ("0", Pushback::After(Duration::ZERO)),
        ("250", Pushback::After(Duration::from_millis(250))),
        ("-1", Pushback::Never),
        ("", Pushback::Never),
        ("soon", Pushback::Never),
        ("1.5", Pushback::Never),
        ("+1", Pushback::Never),
        ("4294967296", Pushback::Never),
    ] {
        assert_eq!(Pushback::parse(Named::One(text)), expected, "{text:?}");
    }
    assert_eq!(Pushback::parse(Named::Many), Pushback::Never);
    assert_eq!(Pushback::parse(Named::None), Pushback::None);

    let (route, memory) = (route(5, ample()), Memory::default());
    let mut retries = Retries::new(&route, &memory, PATH, 0);
    let named = Ended::Failed { code: 14, pushback: Pushback::After(Duration::from_millis(7)) };
    assert_eq!(retries.next(failed(14), true, None, 0, u64::MAX), Next::After(Duration::from_millis(150)));
    assert_eq!(retries.next(named, true, None, 0, 0), Next::After(Duration::from_millis(7)));
    // From the start again.
    assert_eq!(retries.next(failed(14), true, None, 0, u64::MAX), Next::After(Duration::from_millis(150)));
    let never = Ended::Failed { code: 14, pushback: Pushback::Never };
    assert_eq!(retries.next(never, true, None, 0, 0), Next::Stop(Why::Pushback));
}

#[test]
fn nobody_waits_for_an_attempt_that_comes_after_the_deadline() {
    let (route, memory) = (route(5, ample()), Memory::default());
    let mut retries = Retries::new(&route, &memory, PATH, 0);
    let left = |ms| Some(Duration::from_millis(ms));
    assert_eq!(retries.next(failed(14), true, left(50), 0, 0), Next::Stop(Why::Deadline));
    assert_eq!(memory.budget.taken(0), 0);
    assert_eq!(retries.next(failed(14), true, left(51), 0, 0), Next::After(Duration::from_millis(50)));
}

#[test]
fn hedges_are_attempts_and_come_out_of_the_budget() {
    let (route, memory) = (route(3, ample()), Memory::default());
    let mut retries = Retries::new(&route, &memory, PATH, 0);
    assert_eq!(retries.hedge_after(PATH), None);
    (0..100).for_each(|_| retries.took(PATH, 10_000_000));
    assert!(retries.hedge_after(PATH).is_some_and(|after| after >= Duration::from_millis(10)));
    assert_eq!(retries.hedge(0), Ok(()));
    assert_eq!(memory.budget.taken(0), 1);
    assert_eq!(retries.hedge(0), Err(Why::Attempts));
    assert_eq!(retries.previous_attempts(), 1);

    let mut retries = Retries::new(&route, &memory, PATH, 0);
    retries.heed(Pushback::Never);
    assert_eq!(retries.hedge(0), Err(Why::Pushback));
    assert!(retries.others_may_do_better(failed(14)) && !retries.others_may_do_better(failed(5)));
    assert!(!retries.others_may_do_better(Ended::ForGood));
}

proptest! {
    #[test]
    fn pauses_lie_about_their_mean_and_the_mean_below_its_bound(before in 0_u32..100, random: u64) {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(3));
        let mean = mean_pause(first, max, before);
        prop_assert!(mean >= first && mean <= max);
        prop_assert!(before < 5 || mean == max);
        let pause = jittered(mean, random);
        prop_assert!(pause >= mean / 2 && pause <= mean + mean / 2, "{:?} of {:?}", pause, mean);
    }

    #[test]
    fn no_call_is_sent_more_often_than_its_bounds(
        ends in prop::collection::vec((0_u32..4, any::<u64>()), 0..100),
        attempts in 2_u32..=5,
    ) {
        let (route, memory) = (route(attempts, ample()), Memory::default());
        let mut retries = Retries::new(&route, &memory, PATH, 0);
        let mut begun = 1;
        let mut sent = 1;
        for (index, (end, random)) in ends.into_iter().enumerate() {
            let ended = [failed(14), Ended::Unbegun, Ended::NoRoom, failed(2)][end as usize];
            let next = retries.next(ended, true, None, index as u64 * SECOND, random);
            if matches!(next, Next::Stop(_)) {
                break;
            }
            sent += 1;
            begun += u32::from(ended == failed(14));
        }
        prop_assert!(begun <= attempts);
        prop_assert!(sent <= attempts + UNBEGUN);
        prop_assert!(retries.previous_attempts() == begun - 1);
    }
}
