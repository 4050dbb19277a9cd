use proptest::prelude::*;

use super::*;
use crate::route::Route;

/// What each of `insatiable` gets, found by trying.
fn tried(wants: &[f64], limit: f64, insatiable: usize) -> f64 {
    let (mut low, mut high) = (0.0, limit);
    for _ in 0..200 {
        let level = f64::midpoint(low, high);
        let spent: f64 = wants.iter().map(|want| want.min(level)).sum::<f64>() + level * count(insatiable);
        if spent > limit { high = level } else { low = level }
    }
    low
}

proptest! {
    #[test]
    fn the_level_is_that_of_max_min_fairness(
        mut wants in prop::collection::vec(0.0_f64..30.0, 0..40),
        limit in 1.0_f64..200.0,
        insatiable in 1_usize..4,
        left_out in any::<prop::sample::Index>(),
    ) {
        wants.sort_by(f64::total_cmp);
        let water = Water::new(wants.iter().copied(), limit);
        prop_assert!((water.level(None, insatiable) - tried(&wants, limit, insatiable)).abs() < 1e-6);
        if !wants.is_empty() {
            let index = left_out.index(wants.len());
            let level = water.level(Some(index), insatiable);
            wants.remove(index);
            prop_assert!((level - tried(&wants, limit, insatiable)).abs() < 1e-6);
        }
    }
}

/// An app with a fixed limit.
fn fixed(limit: u32, alone: bool) -> (Concurrency, Gradient, Limits) {
    let limits = Limits { max_concurrent: limit, min_concurrent: limit, alone };
    let gradient = Gradient::new(limits);
    (Concurrency::new(&gradient), gradient, limits)
}

fn look(app: &Concurrency, gradient: &mut Gradient, limits: Limits, parties: &[&Party]) {
    let tick = Duration::from_millis(100);
    app.look(gradient, parties.iter().copied(), limits, (tick, tick));
}

#[test]
fn who_is_alone_is_refused_only_where_the_route_says_how_much_the_app_takes() {
    assert!(!Route::default().limits.alone);
    for (alone, expected) in [(true, 8), (false, 50)] {
        let (app, mut gradient, limits) = fixed(8, alone);
        let party = Party::default();
        look(&app, &mut gradient, limits, &[&party]);
        assert_eq!((0..50).filter(|_| app.admit(&party).is_ok()).count(), expected);
    }
}

#[test]
fn a_party_that_comes_to_a_full_app_is_let_in_at_once_up_to_its_share() {
    let (app, mut gradient, limits) = fixed(10, true);
    let (heavy, light) = (Party::default(), Party::default());
    let calls = |party| (0..50).filter(|_| app.admit(party).is_ok()).count();
    assert_eq!(calls(&heavy), 10);
    look(&app, &mut gradient, limits, &[&heavy]);
    assert_eq!(calls(&light), 5, "half of the limit, and none of the other's calls has ended");
    assert_eq!(calls(&heavy), 0);
    (0..10).for_each(|_| app.leave(&heavy, Duration::from_millis(1)));
    (0..5).for_each(|_| app.leave(&light, Duration::from_millis(1)));
    assert_eq!(app.figures().in_use, 0);
}

#[test]
fn however_many_parties_come_at_once_the_limit_is_exceeded_by_itself_at_most() {
    let (app, mut gradient, limits) = fixed(8, true);
    let heavy = Party::default();
    let held = (0..20).filter(|_| app.admit(&heavy).is_ok()).count();
    look(&app, &mut gradient, limits, &[&heavy]);
    let crowd: Vec<Party> = (0..1_000).map(|_| Party::default()).collect();
    let inside = crowd.iter().filter(|party| app.admit(party).is_ok()).count();
    assert_eq!((held, inside), (8, 8));
}

#[test]
fn what_came_while_nobody_was_refused_takes_no_room_from_others() {
    let (app, mut gradient, limits) = fixed(10, false);
    let (heavy, light) = (Party::default(), Party::default());
    look(&app, &mut gradient, limits, &[&heavy]);
    assert_eq!((0..3_000).filter(|_| app.admit(&heavy).is_ok()).count(), 3_000);
    assert!(app.admit(&light).is_ok());
    look(&app, &mut gradient, limits, &[&heavy, &light]);
    assert!(app.admit(&light).is_ok(), "though three times the limit is at the app");
    assert_eq!(app.admit(&heavy), Err(Full));
}

#[test]
fn what_one_does_not_want_is_the_others() {
    let (app, mut gradient, limits) = fixed(10, true);
    let (heavy, light) = (Party::default(), Party::default());
    for _ in 0..20 {
        let _one = app.admit(&light).map(|()| app.leave(&light, Duration::from_millis(100)));
        let _refused = app.admit(&heavy);
        look(&app, &mut gradient, limits, &[&heavy, &light]);
    }
    let share = |party: &Party| of(party.share.load(Relaxed)) / SLACK;
    assert!((9.0..9.6).contains(&share(&heavy)), "all but what the other has on average: {}", share(&heavy));
    assert!((share(&light) - 5.0).abs() < 0.1, "half, should it want that much: {}", share(&light));
}

/// An app that answers whatever comes after 2 ms, for 20 s of two tenants that call now and then, ten times a second.
fn quick_app_of_two() -> (Concurrency, Gradient, Limits, [Party; 2]) {
    let limits = Route::default().limits;
    let mut gradient = Gradient::new(limits);
    let (app, parties) = (Concurrency::new(&gradient), [Party::default(), Party::default()]);
    for turn in 0..200_u32 {
        for party in &parties {
            app.admit(party).expect("room");
            app.answered(turn as usize, 0, Duration::from_millis(2));
            app.leave(party, Duration::from_millis(2));
        }
        let tick = Duration::from_millis(100);
        app.look(&mut gradient, parties.iter(), limits, (tick * turn, tick));
    }
    (app, gradient, limits, parties)
}

#[test]
fn a_burst_of_one_tenant_into_an_idle_app_is_not_refused() {
    let (app, _, _, [one, _]) = quick_app_of_two();
    assert_eq!((0..500).filter(|_| app.admit(&one).is_ok()).count(), 500);
}

#[test]
fn a_caller_whose_neighbour_was_here_a_while_ago_is_never_refused() {
    let (app, mut gradient, limits, [one, other]) = quick_app_of_two();
    for _ in 0..=RECENTLY {
        look(&app, &mut gradient, limits, &[&one, &other]);
    }
    assert_eq!((0..4_096).filter(|_| app.admit(&one).is_ok()).count(), 4_096);
}
