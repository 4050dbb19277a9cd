//! Random worlds and calls, of few names so that they meet.

use tenon_proto::{
    policy::v1 as proto,
    tcs::v1::{self as tcs, TenantContext},
};

use super::interpreter::{Call, SERVICES, Txn, World};

const CALLERS: [&str; 7] = ["a", "b", "c", "d", "x", "y", "*"];
const ALLOWED: [&str; 8] = ["/s/m", "/s/n", "/s/*", "/t/m", "/t/*", "/st/m", "/st/*", "/s.t/m"];
const CALLED: [&str; 17] = [
    "/s/m", "/s/n", "/s/o", "/t/m", "/t/o", "/st/m", "/s.t/m", "/s.t/o", "/u/m", "/s/", "/s", "/s//", "/s/m/", "//s/m",
    "s/m", "/s/m?n", "",
];
const TENANTS: [&str; 5] = ["t1", "t2", "t3", "t4", "nobody"];
const REGIONS: [&str; 3] = ["r1", "r2", ""];
const EDITIONS: [&str; 3] = ["free", "paid", ""];
const FEATURES: [&str; 3] = ["f1", "f2", "f3"];
const NOW: u64 = 1_000;

/// SplitMix64 (Steele, Lea, Flood, 2014): the same numbers for the same seed, on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Once in `times`.
    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn of<T: Copy>(&mut self, pool: &[T]) -> T {
        pool[self.below(pool.len())]
    }

    fn some<T: Copy>(&mut self, pool: &[T], most: usize) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| self.of(pool)).collect()
    }

    fn texts(&mut self, pool: &[&str], most: usize) -> Vec<String> {
        self.some(pool, most).into_iter().map(str::to_owned).collect()
    }
}

impl World {
    pub fn random(random: &mut Random) -> Self {
        let product = if random.one_in(4) { "" } else { "p" };
        // Rules stand in order; each Allowlist is as a whole in audit mode or not.
        let audited = [random.one_in(4), random.one_in(8)];
        let outside = random.texts(&["x", "y"], 2);
        let rules = (0..random.below(8)).map(|index| rule(random, index, product, audited)).collect();
        let audit_allowlist = if audited[0] {
            "l0"
        } else if audited[1] {
            "l1"
        } else {
            ""
        };
        World {
            policy: proto::ServicePolicy {
                service: "me".to_owned(),
                product: product.to_owned(),
                residency: random.of(&[0, 1, 2]),
                originates: random.one_in(2),
                rules,
                audit_allowlist: audit_allowlist.to_owned(),
                external_clients: outside
                    .into_iter()
                    .map(|name| proto::ExternalClient { name, ..Default::default() })
                    .collect(),
                ..Default::default()
            },
            quarantined: match random.one_in(6) {
                true => random.texts(&["a", "b", "x", "me", "stranger"], 2),
                false => Vec::new(),
            },
            tenants: ["t1", "t2", "t3", "t4"].map(|id| tenant(random, id)).into(),
            here: Some(random.of(&REGIONS)).filter(|region| !region.is_empty()),
            now: NOW,
        }
    }
}

fn rule(random: &mut Random, index: usize, product: &str, audited: [bool; 2]) -> proto::Rule {
    let allowlist = random.below(2);
    let tenant = random.of(&[0, 1, 2, 3]);
    proto::Rule {
        allowlist: format!("l{allowlist}"),
        name: format!("rule-{index}"),
        callers: random.texts(&CALLERS, 3),
        paths: random.texts(&ALLOWED, 3),
        tenant,
        proof: random.of(&[0, 1, 1, 2]),
        audit: audited[allowlist],
        tenants: if tenant != 3 && random.one_in(2) { conditions(random, product) } else { None },
        ..Default::default()
    }
}

fn conditions(random: &mut Random, product: &str) -> Option<proto::TenantConditions> {
    let of_product = !product.is_empty();
    let conditions = proto::TenantConditions {
        editions: if of_product && random.one_in(2) { random.texts(&EDITIONS[..2], 2) } else { Vec::new() },
        features: if of_product && random.one_in(2) { random.texts(&FEATURES, 2) } else { Vec::new() },
        regions: if random.one_in(3) { random.texts(&REGIONS[..2], 2) } else { Vec::new() },
        ids: if random.one_in(3) { random.texts(&TENANTS, 3) } else { Vec::new() },
    };
    Some(conditions).filter(|conditions| *conditions != proto::TenantConditions::default())
}

fn tenant(random: &mut Random, id: &str) -> TenantContext {
    let mut context = TenantContext {
        tenant_id: id.to_owned(),
        status: random.of(&[1, 1, 1, 1, 2, 0, 7]),
        region: random.of(&REGIONS).to_owned(),
        ..Default::default()
    };
    for name in ["p", "q"] {
        let license_expires_at = random.of(&[None, None, Some(999), Some(1_000), Some(1_001)]);
        let product = tcs::Product {
            state: random.of(&[1, 1, 1, 1, 2, 3, 0, 7]),
            edition: random.of(&EDITIONS).to_owned(),
            license_expires_at: license_expires_at.map(|seconds| pbjson_types::Timestamp { seconds, nanos: 0 }),
            features: random.texts(&FEATURES, 4),
            ..Default::default()
        };
        if !random.one_in(8) {
            context.products.insert(name.to_owned(), product);
        }
    }
    context
}

impl Call {
    pub fn random(random: &mut Random, _world: &World) -> Self {
        let tenants = match random.below(12) {
            0 | 1 => Vec::new(),
            2 => vec![random.of(&["", "T1", "-t", "t1.t2"])],
            3 => random.some(&TENANTS, 3),
            _ => vec![random.of(&TENANTS)],
        };
        let token_of = tenants.first().copied().filter(|_| !random.one_in(4)).or(Some("t1"));
        Call {
            caller: random.of(&["a", "b", "c", "d", "e", "x", "y", "*", ""]),
            as_outside: !random.one_in(4),
            // Twice as often what rules may name.
            path: if random.one_in(2) { random.of(&CALLED) } else { random.of(&CALLED[..8]) },
            to: random.of(&SERVICES),
            seen: random.of(&[None, None, None, Some(1), Some(10), Some(11)]),
            txn: random.of(&[
                Txn::None,
                Txn::Many,
                Txn::Bad,
                Txn::Old,
                Txn::Of(None),
                Txn::Of(token_of),
                Txn::Of(token_of),
            ]),
            serving: random.some(&TENANTS, 3),
            tenants,
        }
    }
}
