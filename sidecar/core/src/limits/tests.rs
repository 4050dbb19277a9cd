//! Simulations: what the limit comes to, and who gets what.
#![expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a model")]

mod model;
mod unasked;

use self::model::{Model, Tenant};
use crate::route::Limits;

const LIMITS: Limits = Limits { max_concurrent: 1_000, min_concurrent: 4, alone: true };

/// Calls a second.
fn capacity(servers: usize, work: f64) -> f64 {
    servers as f64 * 1_000.0 / work
}

/// Apps of different size, pace, and regularity.
fn apps() -> impl Iterator<Item = (usize, f64, f64)> {
    [4, 8, 32, 200].into_iter().flat_map(|servers| {
        [(5.0, 0.0), (5.0, 1.0), (50.0, 0.0), (50.0, 1.0), (200.0, 0.0)].map(|(work, spread)| (servers, work, spread))
    })
}

#[test]
fn under_overload_the_limit_comes_to_what_the_app_can_do_at_once() {
    for (servers, work, spread) in apps() {
        let capacity = capacity(servers, work);
        let mut model = Model::new(servers, work, LIMITS, vec![Tenant::new(capacity * 3.0)]);
        model.spread = spread;
        model.run(20.0);
        let before = model.tenants[0].latencies.len();
        model.run(20.0);
        let (limit, done) = (model.limit(200) / servers as f64, model.tenants[0].latencies.len() - before);
        let done = done as f64 / (capacity * 20.0);
        let app =
            format!("{servers} servers, {work} ms, spread {spread}: limit {limit:.2} times servers, {done:.2} done");
        assert!((0.9..=3.0).contains(&limit), "{app}");
        assert!(done > 0.85, "{app}");
    }
}

#[test]
fn at_half_load_next_to_nobody_is_refused() {
    for (servers, work, spread) in apps() {
        let mut model = Model::new(servers, work, LIMITS, vec![Tenant::new(capacity(servers, work) * 0.5)]);
        model.spread = spread;
        // An app of which nothing is known gets 32 calls at once, and the double every 100 ms.
        model.run(5.0);
        model.tenants[0].forget();
        model.run(30.0);
        let success = model.tenants[0].success();
        assert!(success > 0.995, "{servers} servers, {work} ms, spread {spread}: {success}");
    }
}

#[test]
fn an_app_that_was_slow_for_a_while_gets_all_it_can_do_again() {
    for slower in [5.0, 20.0] {
        let (servers, work) = (16, 10.0);
        let mut model = Model::new(servers, work, LIMITS, vec![Tenant::new(capacity(servers, work) * 0.8)]);
        model.run(10.0);
        model.work = vec![work * slower];
        model.run(15.0);
        let least = model.limits_seen.iter().min().copied().unwrap_or_default();
        assert!(least >= LIMITS.min_concurrent);
        model.tenants[0].forget();
        model.run(10.0);
        // As many as it can do, though it takes longer for each.
        let done = model.tenants[0].latencies.len() as f64 / (capacity(servers, work * slower) * 10.0);
        assert!(done > 0.8, "{slower} times slower: {done:.2} of what it can do");
        model.work = vec![work];
        model.run(3.0);
        model.tenants[0].forget();
        model.run(10.0);
        let success = model.tenants[0].success();
        assert!(success > 0.98, "{slower} times slower, and well again: {success}");
    }
}

#[test]
fn what_is_called_may_change_without_being_taken_for_a_queue() {
    let mut model = Model::new(32, 2.0, LIMITS, vec![Tenant::new(200.0)]);
    model.run(10.0);
    // Half of the calls are of a method that takes fifty times as long.
    model.work = vec![2.0, 100.0];
    model.tenants[0].forget();
    model.run(20.0);
    assert!(model.tenants[0].success() > 0.995, "{}", model.tenants[0].success());
}

#[test]
fn a_tenant_at_twenty_times_its_share_does_not_take_the_others() {
    for (servers, work, spread) in apps().filter(|(servers, ..)| (8..100).contains(servers)) {
        let share = capacity(servers, work) / 2.0;
        let mut model = Model::new(servers, work, LIMITS, vec![Tenant::new(share * 0.5), Tenant::new(0.0)]);
        model.spread = spread;
        model.run(30.0);
        let quiet = model.tenants[0].p99();
        model.tenants[0].forget();
        model.tenants[1].rate = share * 20.0;
        model.run(60.0);
        let (light, heavy) = (&model.tenants[0], &model.tenants[1]);
        let (success, p99) = (light.success(), light.p99());
        let app =
            format!("{servers} servers, {work} ms, spread {spread}: {success:.4}, p99 {p99:.1}, quiet {quiet:.1}");
        assert!(success >= 0.95, "{app}");
        // The flood finds the limit where it was: some of the first second's calls wait behind it.
        assert!(p99 <= quiet * 3.5, "{app}");
        let heavy = heavy.latencies.len() as f64 / (share * 2.0 * 60.0);
        assert!(heavy > 0.65, "what the other does not want is not left over: {heavy:.2}");
    }
}

#[test]
fn of_fifty_tenants_one_at_twenty_times_its_share_takes_nobodys() {
    for (of_share, least_share) in [(0.5, 0.33), (2.0, 0.75)] {
        let (servers, work) = (32, 20.0);
        let share = capacity(servers, work) / 50.0;
        let rate = |index| share * if index == 0 { 20.0 } else { of_share };
        let mut model = Model::new(servers, work, LIMITS, (0..50).map(|index| Tenant::new(rate(index))).collect());
        model.run(60.0);
        let done = |tenant: &Tenant| tenant.latencies.len() as f64 / (share * 60.0);
        let least = model.tenants[1..].iter().map(done).fold(f64::MAX, f64::min);
        assert!(least > least_share, "tenants that want {of_share} of their share: one gets {least:.2}");
        if of_share < 1.0 {
            let worst = model.tenants[1..].iter().map(Tenant::success).fold(1.0, f64::min);
            assert!(worst >= 0.95, "{worst}");
        }
    }
}
