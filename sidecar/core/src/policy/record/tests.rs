use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use tenon_proto::policy::v1::{Canary, ExternalClient, Rate, Rule, ServicePolicy};

use crate::{
    Peer,
    policy::{Match, Policy},
};

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-zé:.]{1,8}", "[a-z]{120,140}"]
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let caller = prop::sample::select(vec!["wiki", "issues", "*", "partner"]);
    let path = prop::sample::select(vec!["/s.v1.S/Get", "/s.v1.S/*", "/t.v1.T/Get", "/s.v1.S/Put"]);
    let lists = (prop::collection::vec(caller, 0..4), prop::collection::vec(path, 0..4));
    let rule = ((text(), text(), text()), lists, 0..4, any::<bool>(), prop::option::of(1..9_u64));
    let rule = rule.prop_map(|((allowlist, name, source), (callers, paths), tenant, audit, count)| Rule {
        allowlist,
        name,
        source,
        callers: callers.into_iter().map(str::to_owned).collect(),
        paths: paths.into_iter().map(str::to_owned).collect(),
        tenant,
        audit,
        rate: count.map(|count| Rate { count, per_seconds: 60, burst: count }),
        ..Rule::default()
    });
    prop::collection::vec(rule, 0..5)
}

fn records() -> impl Strategy<Value = ServicePolicy> {
    (rules(), text(), any::<bool>(), any::<bool>()).prop_map(|(rules, audit_allowlist, originates, rolled_out)| {
        let partner = ExternalClient { name: "partner".to_owned(), ..ExternalClient::default() };
        let new = ServicePolicy { rules: rules.clone(), ..ServicePolicy::default() };
        let canary = rolled_out.then(|| Box::new(Canary { policy: Some(Box::new(new)), ..Canary::default() }));
        let external_clients = vec![partner];
        let service = "media".to_owned();
        ServicePolicy { service, rules, audit_allowlist, originates, external_clients, canary, ..Default::default() }
    })
}

/// The first rule that names both, found by looking at all of them.
fn first(record: &ServicePolicy, peer: Peer<'_>, path: &str) -> Option<usize> {
    let outside = |name: &str| record.external_clients.iter().any(|client| client.name == name);
    let named = |caller: &String| match peer {
        Peer::Service(name) => caller == "*" || (caller == name && !outside(name)),
        Peer::Outside(name) => caller == name && outside(name),
    };
    let (service, _method) = path.rsplit_once('/')?;
    let over = |of: &String| of == path || of.strip_suffix("/*") == Some(service);
    record.rules.iter().position(|rule| rule.callers.iter().any(named) && rule.paths.iter().any(over))
}

/// That `policy` says of every rule, and of calls, what stands in `record`.
fn says(policy: &Policy, rest: &ServicePolicy, record: &ServicePolicy) -> Result<(), TestCaseError> {
    prop_assert_eq!(rest, &ServicePolicy { rules: Vec::new(), ..record.clone() });
    prop_assert_eq!((policy.service(), policy.originates()), (&*record.service, record.originates));
    prop_assert_eq!(policy.rules().len(), record.rules.len());
    for (rule, message) in policy.rules().iter().zip(&record.rules) {
        prop_assert_eq!((rule.allowlist(), rule.name()), (&*message.allowlist, &*message.name));
        prop_assert_eq!((rule.source(), rule.audit), (&*message.source, message.audit));
        prop_assert!(rule.paths().eq(message.paths.iter().map(String::as_str)));
        prop_assert_eq!(rule.rate().map(|rate| rate.count), message.rate.as_ref().map(|rate| rate.count));
    }
    for peer in [Peer::Service("wiki"), Peer::Service("issues"), Peer::Service("anybody"), Peer::Outside("partner")] {
        for path in ["/s.v1.S/Get", "/s.v1.S/Put", "/t.v1.T/Get", "/u.v1.U/Get"] {
            let found = match policy.authorize(peer, path) {
                Match::Rule(index, _) => Some(index),
                Match::Nothing => None,
            };
            prop_assert_eq!(found.map(|at| at as usize), first(record, peer, path), "{:?} on {}", peer, path);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_rule_says_what_stands_in_its_record(record in records()) {
        let (policy, rest) = Policy::decode(record.encode_to_vec().into()).unwrap();
        says(&policy, &rest, &record)?;
    }

    #[test]
    fn a_damaged_record_is_refused_where_its_message_would_be_and_otherwise_read_as_that(
        record in records(), at in any::<prop::sample::Index>(), flip in 1..=255_u8, cut in any::<bool>()
    ) {
        let mut raw = record.encode_to_vec();
        let at = at.index(raw.len());
        if cut { raw.truncate(at) } else { raw[at] ^= flip }
        let message = ServicePolicy::decode(&*raw);
        // The same once more, as this version writes it.
        let taken = message.as_ref().is_ok_and(|message| Policy::try_from(message).is_ok());
        match (Policy::decode(raw.into()), message) {
            (Ok((policy, rest)), Ok(message)) => says(&policy, &rest, &message)?,
            (Ok(_), Err(error)) => prop_assert!(false, "taken, though {error}"),
            (Err(error), Ok(_) | Err(_)) => prop_assert!(!taken, "refused: {error}"),
        }
    }
}

#[test]
fn of_a_text_that_stands_twice_in_a_rule_the_last_counts_and_rules_may_stand_anywhere() {
    let part = |name: &str, callers: &str| {
        let rule = Rule { name: name.to_owned(), callers: vec![callers.to_owned()], ..Rule::default() };
        rule.encode_to_vec()
    };
    let path = Rule { paths: vec!["/s.v1.S/Get".to_owned()], ..Rule::default() }.encode_to_vec();
    let whole = [part("first", "wiki"), path, part("second", "issues")].concat();
    // Field 5; and a length that is written with a byte more than it needs.
    let rule = [&[5 << 3 | 2, u8::try_from(whole.len()).unwrap() | 0x80, 0][..], &whole].concat();
    let of = |service: &str| ServicePolicy { service: service.to_owned(), ..ServicePolicy::default() }.encode_to_vec();
    // Field 99 of 4 bytes, which nobody knows.
    let unknown = vec![0x9d, 0x06, 1, 2, 3, 4];
    let raw = [of("old"), unknown, rule.clone(), of("media"), rule].concat();
    let (policy, _) = Policy::decode(Bytes::from(raw)).unwrap();
    assert_eq!((policy.service(), policy.rules().len()), ("media", 2));
    for caller in ["wiki", "issues"] {
        let Match::Rule(0, rule) = policy.authorize(Peer::Service(caller), "/s.v1.S/Get") else {
            panic!("{caller} is allowed by the first rule");
        };
        assert_eq!(rule.name(), "second");
    }
}
