//! The compiled decision against one that reads DESIGN §6 out loud, on random policies and calls.
//!
//! `TENON_NAIVE_SEED` and `TENON_NAIVE_CASES` repeat a failure or look for longer.

#[path = "naive/interpreter.rs"]
mod interpreter;
#[path = "naive/random.rs"]
mod random;

use std::{collections::BTreeMap, sync::Arc};

use interpreter::{Call, Txn, World};
use prost::Message as _;
use random::Random;
use sidecar_core::{
    Credentials, Named, Peer, Position, Reason, Refusal, Token, Transaction, inbound,
    outbound::{self, Destinations},
    policy::Policy,
    tenancy::{Held, Tenant},
};
use tenon_proto::policy::v1 as proto;

/// Calls of one policy.
const CALLS: usize = 8;
const CASES: usize = 100_000;

#[test]
fn the_compiled_decision_is_the_naive_one() {
    let number = |name: &str, usual: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => usual,
    };
    let (first, cases) = (number("TENON_NAIVE_SEED", 1), number("TENON_NAIVE_CASES", CASES as u64));
    let mut seen = BTreeMap::new();
    // Each policy has its own seed, so that one failure is repeated alone.
    for seed in (first..).take((cases as usize).div_ceil(CALLS)) {
        let mut random = Random::new(seed);
        let world = World::random(&mut random);
        let compiled = Compiled::new(&world);
        for _ in 0..CALLS {
            let call = Call::random(&mut random, &world);
            let expected = world.inbound(&call);
            let came = compiled.inbound(&world, &call);
            let repeat = format!("TENON_NAIVE_SEED={seed} TENON_NAIVE_CASES={CALLS}");
            assert_eq!(came, expected, "\n{repeat}\n{call:?}\n{:#?}", world.policy);
            if expected.outcome.ends_with("PATH_NOT_ALLOWED") {
                let nearest = world.nearest(&call);
                assert_eq!(compiled.nearest(&world, &call), nearest, "\n{repeat}\n{call:?}\n{:#?}", world.policy);
                let missed = nearest.map_or("nothing", |(_, missed)| missed);
                *seen.entry(format!("missed by {missed}")).or_insert(0) += 1;
            }
            *seen.entry(expected.outcome).or_insert(0_u64) += 1;
            let expected = world.outbound(&call);
            assert_eq!(compiled.outbound(&world, &call), expected, "\n{repeat}\n{call:?}\n{:#?}", world.policy);
            *seen.entry(format!("outbound {expected}")).or_insert(0) += 1;
        }
    }
    if cases >= CASES as u64 {
        every_outcome_occurred(&seen);
    }
}

fn every_outcome_occurred(seen: &BTreeMap<String, u64>) {
    let of_tenants = [
        "TXN_MISSING",
        "TXN_INVALID",
        "TXN_EXPIRED",
        "TXN_TENANT_MISMATCH",
        "TENANT_STALE",
        "TENANT_REQUIRED",
        "TENANT_UNKNOWN",
        "TENANT_SUSPENDED",
        "PRODUCT_NOT_LICENSED",
        "PRODUCT_SUSPENDED",
        "TENANT_WRONG_REGION",
        "TENANT_NOT_ALLOWED",
        "PATH_NOT_ALLOWED",
    ];
    let outbound = ["ALLOWED", "QUARANTINED", "TENANT_AMBIGUOUS", "TENANT_NOT_IN_FLIGHT", "TENANT_UNKNOWN"];
    let expected = of_tenants
        .iter()
        .flat_map(|reason| [(*reason).to_owned(), format!("audited {reason}")])
        .chain(["ALLOWED", "QUARANTINED"].map(str::to_owned))
        .chain(["nothing", "caller", "method", "caller_and_method", "service"].map(|by| format!("missed by {by}")))
        .chain(outbound.iter().map(|outcome| format!("outbound {outcome}")));
    for outcome in expected {
        let times = seen.get(&outcome).copied().unwrap_or_default();
        assert!(times >= 20, "{outcome} came {times} times: {seen:#?}");
    }
}

/// The world as a sidecar holds it.
struct Compiled {
    state: inbound::State,
    tenants: Held,
    outbound: outbound::State,
}

impl Compiled {
    fn new(world: &World) -> Self {
        let policy = Arc::new(Policy::try_from(&world.policy).expect("a policy"));
        let quarantines: Vec<_> = world
            .quarantined
            .iter()
            .map(|name| proto::Quarantine { service: name.clone(), reason: "why".into() })
            .collect();
        let routes = interpreter::SERVICES.map(|name| proto::Route { service: name.into(), ..Default::default() });
        let places = interpreter::SERVICES.map(|name| proto::Endpoint {
            service: name.into(),
            region: "r1".into(),
            address: "10.0.0.1:15006".into(),
            ..Default::default()
        });
        let tenants = world.tenants.iter().map(|tenant| Tenant::decode(tenant.encode_to_vec()).expect("a tenant"));
        Compiled {
            outbound: outbound::State {
                me: world.policy.service.parse().expect("a name"),
                region: None,
                zone: None,
                originates: policy.originates(),
                quarantined: quarantines.iter().collect(),
                destinations: Some(Destinations::build(&routes, &places, (None, None), None).0),
            },
            state: inbound::State {
                me: world.policy.service.parse().expect("a name"),
                region: world.here.map(|region| region.parse().expect("a name")),
                policy: Some(policy),
                quarantined: quarantines.iter().collect(),
                policy_position: None,
            },
            tenants: Held::snapshot(Position { epoch: 1, revision: interpreter::REACHED }, tenants),
        }
    }

    fn inbound(&self, world: &World, call: &Call) -> interpreter::Outcome {
        let peer = peer(world, call);
        let seen = call.seen.map(|revision| format!("1.{revision}"));
        let head = inbound::Head {
            path: call.path,
            token: Token::One(b""),
            tenant: named(&call.tenants),
            tenant_revision: seen.as_deref(),
            txn_token: match call.txn {
                Txn::None => Named::None,
                Txn::Many => Named::Many,
                Txn::Bad | Txn::Old | Txn::Of(_) => Named::One(""),
            },
        };
        let waited = inbound::Waited::FOR_ALL;
        match inbound::decide(&self.state, &self.tenants, &mut Tokens(call.txn), peer, &head, world.now, waited) {
            Ok(verdict) => interpreter::Outcome {
                outcome: verdict.audited.map_or("ALLOWED".to_owned(), |of| format!("audited {}", of.reason)),
                rule: verdict.rule.map(|index| index as usize),
                app_gets: verdict.tenant.map(|tenant| tenant.id().to_owned()),
            },
            Err(inbound::Stop::Refused(refusal)) => interpreter::Outcome {
                outcome: refusal.reason.to_string(),
                rule: refusal.rule.map(|index| index as usize),
                app_gets: None,
            },
            Err(stop) => panic!("{stop:?}"),
        }
    }

    fn nearest(&self, world: &World, call: &Call) -> Option<(usize, &'static str)> {
        let nearest = self.state.policy.as_ref()?.nearest(peer(world, call), call.path)?;
        Some((nearest.index as usize, nearest.missed.as_str()))
    }

    fn outbound(&self, _world: &World, call: &Call) -> String {
        let head = outbound::Head { authority: call.to, tenant_ids: named(&call.tenants), tenant_hosts: Named::None };
        let serving = |tenant: &str| call.serving.contains(&tenant);
        match outbound::decide(&self.outbound, &self.tenants, &head, serving, true) {
            Ok(_) => "ALLOWED".to_owned(),
            Err(stop) => Refusal::from(stop).reason.to_string(),
        }
    }
}

fn peer<'c>(world: &World, call: &'c Call) -> Peer<'c> {
    let outside = world.policy.external_clients.iter().any(|client| client.name == call.caller);
    if outside && call.as_outside { Peer::Outside(call.caller) } else { Peer::Service(call.caller) }
}

fn named<'a>(values: &[&'a str]) -> Named<'a> {
    Named::from_values(values.iter().copied().map(Some))
}

struct Tokens(Txn);

impl Credentials for Tokens {
    fn verify(&mut self, _peer: Peer<'_>, _token: &[u8], _now: u64) -> Result<(), Refusal> {
        Ok(())
    }

    fn transaction(&mut self, _token: &str, tenant: Named<'_>, _now: u64) -> Result<Transaction, Refusal> {
        match self.0 {
            Txn::Of(tenant_of_token) => Ok(Transaction::compare(tenant_of_token, tenant)),
            Txn::Old => Err(Refusal::new(Reason::TxnExpired, "old")),
            Txn::Bad | Txn::None | Txn::Many => Err(Refusal::new(Reason::TxnInvalid, "bad")),
        }
    }
}
