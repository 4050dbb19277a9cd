//! The order in which records are written.

use tenon_proto::policy::v1::{Attestor, Quarantine};

use super::*;

fn snapshot<M: Message>(records: &BTreeMap<String, M>) -> Snapshot {
    let records = encoded(records).into_iter().zip(1..);
    let records: Vec<_> =
        records.map(|((key, value), revision)| Record { key, revision, value: value.into() }).collect();
    Snapshot { position: Position::new(1, records.len() as u64), records }
}

fn held(records: &Records) -> Held {
    Held([
        snapshot(&records.allowlists),
        snapshot(&records.routes),
        snapshot(&records.endpoints),
        snapshot(&records.quarantines),
        snapshot(&records.attestors),
    ])
}

fn quarantine(service: &str) -> (String, Quarantine) {
    (service.to_owned(), Quarantine { service: service.to_owned(), reason: String::new() })
}

fn attestor(name: &str, audience: &str) -> (String, Attestor) {
    let attestor = Attestor { name: name.to_owned(), audience: audience.to_owned(), ..Attestor::default() };
    (name.to_owned(), attestor)
}

fn route(service: &str, tokens: bool, tenants: bool) -> (String, Route) {
    let route = Route {
        service: service.to_owned(),
        requests_transaction_tokens: tokens,
        manages_tenants: tenants,
        ..Route::default()
    };
    (service.to_owned(), route)
}

/// Each step that writes, as "kind: +put -deleted".
fn told(steps: Vec<(usize, Vec<Write>)>) -> Vec<String> {
    let write = |write: &Write| format!("{}{}", if write.value.is_some() { "+" } else { "-" }, write.key);
    let step = |(kind, writes): (usize, Vec<Write>)| {
        format!("{}: {}", KINDS[kind], writes.iter().map(write).collect::<Vec<_>>().join(" "))
    };
    steps.into_iter().filter(|(_, writes)| !writes.is_empty()).map(step).collect()
}

#[test]
fn what_takes_away_is_written_before_the_allowlists_and_what_gives_after_them() {
    let old = Records {
        routes: BTreeMap::from([route("both", true, false), route("gone", false, false), route("same", true, true)]),
        quarantines: BTreeMap::from([quarantine("lifted"), quarantine("stays")]),
        attestors: BTreeMap::from([attestor("changed", "a"), attestor("gone", "a")]),
        ..Records::default()
    };
    let new = Records {
        routes: BTreeMap::from([route("both", false, true), route("new", true, false), route("same", true, true)]),
        quarantines: BTreeMap::from([quarantine("cut"), quarantine("stays")]),
        attestors: BTreeMap::from([attestor("changed", "b"), attestor("new", "a")]),
        ..Records::default()
    };
    let steps = steps(&held(&old), &Wanted::new(&new, b"mark".to_vec()));
    let less = steps[2].1.iter().find(|write| write.key == "both").unwrap().value.clone().unwrap();
    assert_eq!(Route::decode(less).unwrap(), route("both", false, false).1, "what it gets comes later");
    assert_eq!(
        told(steps),
        [
            "quarantine: +cut",
            "attestation: -gone",
            "route: -gone +both",
            "allowlist: +tenon-policy",
            "route: +both +new",
            "attestation: +changed +new",
            "quarantine: -lifted",
        ]
    );
}

#[test]
fn only_what_differs_is_written() {
    let records = BTreeMap::from([quarantine("a"), quarantine("b")]);
    let held = snapshot(&records);
    assert_eq!(difference(&held, &encoded(&records)), []);
    let other = Quarantine { reason: "other".to_owned(), ..quarantine("b").1 };
    let wanted = BTreeMap::from([("b".to_owned(), other), quarantine("c")]);
    let made: Vec<_> =
        difference(&held, &encoded(&wanted)).into_iter().map(|it| (it.key, it.value.is_some())).collect();
    assert_eq!(made, [("a".to_owned(), false), ("b".to_owned(), true), ("c".to_owned(), true)]);
}
