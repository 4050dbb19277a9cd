use std::{collections::HashMap, sync::atomic::AtomicU64, thread};

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn per_second(count: u64, burst: u64) -> Rate {
    Rate { count, per: Duration::from_secs(1), burst }
}

fn of<'a>(rule: &'a str, tenant: &'a str) -> Use<'a> {
    Use { allowlist: "media", rule, party: Bearer::Tenant(tenant) }
}

/// A bucket of tokens in exact arithmetic: `level` is in units of one `interval`-th of a call.
#[derive(Clone, Copy)]
struct Naive {
    level: u128,
    at: u64,
}

impl Naive {
    fn take(&mut self, interval: u64, burst: u64, now: u64) -> Result<(), u64> {
        let (full, call) = (u128::from(burst) * u128::from(interval), u128::from(interval));
        self.level = (self.level + u128::from(now - self.at)).min(full);
        self.at = now;
        if self.level < call {
            return Err(u64::try_from(call - self.level).unwrap());
        }
        self.level -= call;
        Ok(())
    }
}

proptest! {
    #[test]
    fn every_answer_is_that_of_a_bucket_of_tokens(
        count in 1_u64..2_000,
        burst in 1_u64..50,
        per in prop::sample::select(vec![1_u64, 60, 3_600]),
        steps in prop::collection::vec((0_u64..3, 0_u64..4), 1..400),
    ) {
        let rates = Rates::with_sets(4);
        let rate = Rate { count, per: Duration::from_secs(per), burst };
        let interval = (per * SECOND) / count;
        let mut naive: HashMap<u64, Naive> = HashMap::new();
        let mut now = SECOND;
        for (tenant, wait) in steps {
            // Bursts, pauses of about one interval, and long ones.
            now += [0, interval / 3, interval, interval * 7][usize::try_from(wait).unwrap()];
            let name = format!("t{tenant}");
            // Looking says the same before, and uses nothing up.
            let looked = [(); 2].map(|()| rates.look(rate, &of("get", &name), now));
            let got = rates.take(rate, &of("get", &name), now);
            prop_assert_eq!(looked, [got; 2]);
            let full = u128::from(burst) * u128::from(interval);
            let bucket = naive.entry(tenant).or_insert(Naive { level: full, at: now });
            let expected = bucket.take(interval, burst, now).map_err(Duration::from_nanos);
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn the_delay_of_a_refusal_is_exactly_long_enough(count in 1_u64..5_000, burst in 1_u64..20, pause in 0_u64..SECOND) {
        let rates = Rates::with_sets(4);
        let rate = per_second(count, burst);
        let (by, mut now) = (of("get", "acme"), 77);
        let delay = loop {
            match rates.take(rate, &by, now) {
                Ok(()) => now += pause % (SECOND / count),
                Err(delay) => break u64::try_from(delay.as_nanos()).unwrap(),
            }
        };
        prop_assert!(rates.take(rate, &by, now + delay - 1).is_err());
        prop_assert!(rates.take(rate, &by, now + delay).is_ok());
    }
}

#[test]
fn rules_tenants_and_callers_without_tenant_have_buckets_of_their_own() {
    let rates = Rates::with_sets(64);
    let rate = per_second(1, 1);
    let uses = [
        of("get", "acme"),
        of("get", "globex"),
        of("put", "acme"),
        Use { allowlist: "other", ..of("get", "acme") },
        Use { party: Bearer::Caller("acme"), ..of("get", "acme") },
    ];
    for by in &uses {
        assert!(rates.take(rate, by, 5).is_ok(), "{by:?}");
    }
    for by in &uses {
        assert!(rates.take(rate, by, 5).is_err(), "{by:?}");
    }
}

#[test]
fn a_new_rate_of_the_same_rule_starts_from_what_was_used_and_is_not_held_to_the_old_pace() {
    let rates = Rates::with_sets(4);
    let by = of("get", "acme");
    let hourly = Rate { count: 1, per: Duration::from_secs(3_600), burst: 2 };
    assert!((0..3).map(|_| rates.take(hourly, &by, 9).is_ok()).eq([true, true, false]));
    let faster = per_second(10, 5);
    assert_eq!(rates.take(faster, &by, 9), Err(Duration::from_millis(100)), "used up, and not for two hours");
    assert!(rates.take(faster, &by, 9 + SECOND / 10).is_ok());
}

#[test]
fn eight_threads_together_get_exactly_the_burst() {
    for round in 0..50_u64 {
        let (rates, passed) = (Rates::with_sets(1), AtomicU64::new(0));
        let rate = per_second(1, 1_000);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        if rates.take(rate, &of("get", "acme"), SECOND).is_ok() {
                            passed.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 1_000, "round {round}");
    }
}

#[test]
fn a_table_that_is_full_lets_newcomers_in_at_their_rate_and_the_heavy_no_faster() {
    let rates = Rates::with_sets(1);
    let rate = per_second(10, 5);
    let heavy = of("get", "heavy");
    let (mut passed, mut refused_in_a_row, mut worst) = (0_u64, HashMap::<String, u32>::new(), 0);
    // A hundred tenants on eight cells, each within its rate, and one at a hundred times its rate.
    for ms in 0..60_000_u64 {
        let now = SECOND + ms * 1_000_000;
        passed += u64::from(rates.take(rate, &heavy, now).is_ok());
        if ms % 10 == 0 {
            let name = format!("t{}", (ms / 10) % 100);
            match rates.take(rate, &of("get", &name), now) {
                Ok(()) => drop(refused_in_a_row.remove(&name)),
                Err(_) => {
                    let refused = refused_in_a_row.entry(name).or_default();
                    *refused += 1;
                    worst = worst.max(*refused);
                }
            }
        }
    }
    assert!((600..=900).contains(&passed), "10/s for a minute, and {passed} passed");
    assert_eq!(worst, 0, "calls in a row that a tenant within its rate was refused");
}
