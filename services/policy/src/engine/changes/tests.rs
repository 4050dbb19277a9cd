//! What changes are called.

use tenon_proto::policy::v1::RouteSettings;

use super::*;

fn rule(name: &str, path: &str) -> Rule {
    Rule { name: name.to_owned(), paths: vec![path.to_owned()], ..Rule::default() }
}

fn records(service: &str, rules: Vec<Rule>) -> Records {
    let policy = ServicePolicy { service: service.to_owned(), rules, ..ServicePolicy::default() };
    let route = Route { service: service.to_owned(), ..Route::default() };
    Records {
        allowlists: BTreeMap::from([(service.to_owned(), policy)]),
        routes: BTreeMap::from([(service.to_owned(), route)]),
        ..Records::default()
    }
}

#[test]
fn rules_are_told_by_their_names() {
    let old = records("media", vec![rule("read", "/a"), rule("write", "/b"), rule("gone", "/c")]);
    let new = records("media", vec![rule("read", "/other"), rule("write", "/b"), rule("erase", "/d"), rule("x", "/d")]);
    assert_eq!(between(&old, &new), ["service media: rules read changed, erase x added, gone removed"]);
    let turned = records("media", vec![rule("write", "/b"), rule("read", "/a"), rule("gone", "/c")]);
    assert_eq!(between(&old, &turned), ["service media: rules in another order"]);
}

#[test]
fn where_a_rule_stands_means_nothing() {
    let moved = Rule { source: "b.yaml:9".to_owned(), ..rule("read", "/a") };
    assert!(between(&records("media", vec![rule("read", "/a")]), &records("media", vec![moved])).is_empty());
}

#[test]
fn everything_else_is_told_as_well() {
    let old = records("media", vec![]);
    let mut new = records("media", vec![]);
    let policy = new.allowlists.get_mut("media").unwrap();
    policy.audit_allowlist = "media".to_owned();
    policy.product = "media".to_owned();
    policy.residency = Residency::Home.into();
    policy.originates = true;
    new.routes.get_mut("media").unwrap().requests_transaction_tokens = true;
    new.allowlists.extend(records("wiki", vec![rule("read", "/a")]).allowlists);
    let quarantine = Quarantine { service: "wiki".to_owned(), reason: "leaked\nkey".to_owned() };
    new.quarantines.insert("wiki".to_owned(), quarantine);
    new.endpoints.insert("media/us-east/a:1".to_owned(), Endpoint::default());
    new.attestors.insert("kubernetes".to_owned(), Attestor::default());
    assert_eq!(
        between(&old, &new),
        [
            "service media: mode now audit (allowlist media); product now media; residency now home; originates now true; \
             requestsTransactionTokens now true",
            "service wiki added, rules read",
            "wiki quarantined: leaked key",
            "instance media/us-east/a:1 added",
            "attestor kubernetes added",
        ]
    );
    assert_eq!(
        between(&new, &records("other", vec![])),
        [
            "service media removed",
            "service other added",
            "service wiki removed",
            "quarantine of wiki lifted",
            "instance media/us-east/a:1 removed",
            "attestor kubernetes removed",
        ]
    );
}

#[test]
fn how_a_service_is_called_has_a_line_of_its_own() {
    let old = records("media", vec![]);
    let mut new = records("media", vec![rule("read", "/a")]);
    let timeout = Some(tenon_proto::policy::v1::Timeout { default_ms: 5_000, max_ms: 0 });
    let settings = RouteSettings { timeout, ..RouteSettings::default() };
    new.routes.get_mut("media").unwrap().settings = Some(settings);
    assert_eq!(between(&old, &new), ["service media: rules read added", "route media added"]);
    let mut off = new.clone();
    off.routes.get_mut("media").unwrap().settings = Some(RouteSettings::default());
    assert_eq!(between(&new, &off), ["route media: timeout now default off max off"]);
    assert_eq!(between(&new, &Records::default()), ["service media removed"]);
}

#[test]
fn lines_are_few_and_short() {
    let mut new = Records::default();
    for number in 0..150 {
        let rules = (0..150).map(|rule_number| rule(&format!("rule-{rule_number}"), "/a")).collect();
        new.allowlists.extend(records(&format!("service-{number:03}"), rules).allowlists);
    }
    let lines = between(&Records::default(), &new);
    assert_eq!((lines.len(), lines[99].as_str()), (100, "and 51 more"));
    assert!(lines.iter().all(|line| line.chars().count() <= MAX_LINE + 1));
}
