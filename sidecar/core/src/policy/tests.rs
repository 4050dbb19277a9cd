use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn rule(name: &str, callers: &[&str], paths: &[&str]) -> proto::Rule {
    proto::Rule {
        allowlist: "media".into(),
        name: name.into(),
        callers: callers.iter().map(ToString::to_string).collect(),
        paths: paths.iter().map(ToString::to_string).collect(),
        source: format!("media.yaml:{name}"),
        ..proto::Rule::default()
    }
}

fn policy(rules: Vec<proto::Rule>) -> Policy {
    Policy::try_from(&proto::ServicePolicy { service: "media".into(), rules, ..Default::default() }).unwrap()
}

fn decided(policy: &Policy, caller: &str, path: &str) -> Option<String> {
    match policy.authorize(Peer::Service(caller), path) {
        Match::Rule(index, rule) => {
            assert_eq!(policy.rule(index).unwrap().name(), rule.name());
            Some(rule.name().to_owned())
        }
        Match::Nothing => None,
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = policy(vec![
        rule("read", &["issues", "wiki"], &["/media.v1.Media/Get"]),
        rule("all", &["issues"], &["/media.v1.Media/*"]),
        rule("anyone", &["*"], &["/media.v1.Media/Get", "/grpc.health.v1.Health/*"]),
        rule("never", &["issues"], &["/media.v1.Media/Get"]),
    ]);
    for (caller, path, expected) in [
        ("issues", "/media.v1.Media/Get", Some("read")),
        ("wiki", "/media.v1.Media/Get", Some("read")),
        ("billing", "/media.v1.Media/Get", Some("anyone")),
        ("issues", "/media.v1.Media/Upload", Some("all")),
        ("wiki", "/media.v1.Media/Upload", None),
        ("billing", "/grpc.health.v1.Health/Check", Some("anyone")),
        ("billing", "/grpc.health.v1.Health/Watch", Some("anyone")),
        ("issues", "/media.v1.Thumbnails/List", None),
    ] {
        assert_eq!(decided(&policy, caller, path).as_deref(), expected, "{caller} {path}");
    }
}

#[test]
fn paths_are_compared_byte_for_byte() {
    let policy = policy(vec![rule("exact", &["issues"], &["/m.v1.M/Get"]), rule("all", &["issues"], &["/n.v1.N/*"])]);
    for path in ["/m.v1.M/Get", "/n.v1.N/Get", "/n.v1.N/*", "/n.v1.N/g%65t"] {
        assert!(decided(&policy, "issues", path).is_some(), "{path}");
    }
    for path in [
        "",
        "/",
        "//",
        "m.v1.M/Get",
        "/m.v1.M/get",
        "/m.v1.M/Get/",
        "/m.v1.M/Get?x=1",
        "/m.v1.M//Get",
        "//m.v1.M/Get",
        "/m.v1.M/G%65t",
        "/n.v1.N",
        "/n.v1.N/",
        "/n.v1.N//",
        "/n.v1.N/Get/More",
        "/n.v1.NN/Get",
        "/x/n.v1.N/Get",
    ] {
        assert_eq!(decided(&policy, "issues", path), None, "{path}");
    }
    for caller in ["", "*", "Issues", "issues ", "issue"] {
        assert_eq!(decided(&policy, caller, "/m.v1.M/Get"), None, "{caller:?}");
    }
}

#[test]
fn a_rule_that_cannot_be_understood_makes_the_record_an_error() {
    let with = |change: fn(&mut proto::Rule)| {
        let mut broken = rule("broken", &["issues"], &["/m.v1.M/Get"]);
        change(&mut broken);
        Policy::try_from(&proto::ServicePolicy { rules: vec![broken], ..Default::default() })
    };
    assert!(with(|_| {}).is_ok());
    assert!(with(|rule| rule.tenant = 9).is_err());
    assert!(with(|rule| rule.proof = 9).is_err());
    for path in ["", "/", "m.v1.M/Get", "/m.v1.M", "/m.v1.M/", "//Get", "/m.v1.M/Get/x", "/m.v1.M/G*"] {
        let broken = proto::ServicePolicy { rules: vec![rule("broken", &["*"], &[path])], ..Default::default() };
        assert!(Policy::try_from(&broken).is_err(), "{path:?}");
    }
    assert!(Policy::try_from(&proto::ServicePolicy { residency: 9, ..Default::default() }).is_err());
}

#[test]
fn tenant_conditions_that_cannot_be_kept_make_the_record_an_error() {
    let of = |conditions: proto::TenantConditions, tenant: proto::TenantRequirement, product: &str| {
        let conditional =
            proto::Rule { tenants: Some(conditions), tenant: tenant.into(), ..rule("x", &["*"], &["/m.v1.M/Get"]) };
        let product = product.to_owned();
        Policy::try_from(&proto::ServicePolicy { rules: vec![conditional], product, ..Default::default() }).is_ok()
    };
    use proto::TenantRequirement::{None, Optional, Required, Unspecified};
    let ids = proto::TenantConditions { ids: vec!["acme".into()], ..Default::default() };
    let editions = proto::TenantConditions { editions: vec!["paid".into()], ..Default::default() };
    let features = proto::TenantConditions { features: vec!["beta".into()], ..Default::default() };
    for (conditions, tenant, product, expected) in [
        (&ids, Required, "", true),
        (&ids, Optional, "", true),
        (&ids, Unspecified, "", true),
        (&ids, None, "media", false),
        (&editions, Required, "media", true),
        (&editions, Required, "", false),
        (&features, Required, "media", true),
        (&features, Required, "", false),
        (&proto::TenantConditions::default(), Required, "media", false),
    ] {
        assert_eq!(of(conditions.clone(), tenant, product), expected, "{conditions:?} {tenant:?} {product:?}");
    }
}

#[test]
fn what_a_rule_leaves_out_is_the_documented_default() {
    let policy = policy(vec![rule("plain", &["*"], &["/m.v1.M/*"])]);
    let rule = policy.rule(0).unwrap();
    assert_eq!(
        (rule.tenant, rule.proof, rule.rate(), rule.audit),
        (TenantRequirement::Required, Proof::None, None, false)
    );
    assert_eq!((policy.residency(), policy.product(), policy.audit_allowlist()), (Residency::Any, None, None));
}

#[test]
fn a_rate_keeps_its_unit() {
    let rate = Rate::from(&proto::Rate { count: 100, per_seconds: 60, burst: 200 });
    assert_eq!(rate, Rate { count: 100, per: Duration::from_secs(60), burst: 200 });
}

#[test]
fn the_nearest_rule_says_what_was_missed() {
    let policy = policy(vec![
        rule("read", &["issues", "search"], &["/media.v1.Media/Get"]),
        rule("thumbs", &["wiki"], &["/media.v1.Thumbnails/*"]),
        rule("admin", &["ops"], &["/media.v1.Admin/Purge"]),
    ]);
    for (caller, path, expected) in [
        ("wiki", "/media.v1.Media/Get", Some(("read", Missed::Caller, vec!["issues", "search"]))),
        ("billing", "/media.v1.Thumbnails/List", Some(("thumbs", Missed::Caller, vec!["wiki"]))),
        ("issues", "/media.v1.Media/Upload", Some(("read", Missed::Method, vec!["/media.v1.Media/Get"]))),
        ("wiki", "/media.v1.Media/Upload", Some(("read", Missed::CallerAndMethod, vec!["/media.v1.Media/Get"]))),
        ("ops", "/media.v2.Media/Get", Some(("admin", Missed::Service, vec!["/media.v1.Admin/Purge"]))),
        ("ops", "no path", Some(("admin", Missed::Service, vec!["/media.v1.Admin/Purge"]))),
        ("billing", "/other.v1.Other/Get", None),
    ] {
        let nearest = policy.nearest(Peer::Service(caller), path);
        let found = nearest.as_ref().map(|nearest| {
            (&*nearest.rule, nearest.missed, nearest.allows.iter().map(String::as_str).collect::<Vec<_>>())
        });
        assert_eq!(found, expected, "{caller} {path}");
    }
    assert_eq!(
        policy.nearest(Peer::Service("wiki"), "/media.v1.Media/Get").unwrap().to_string(),
        "rule read of media (media.yaml:read) missed by caller: it allows issues, search"
    );
}

#[test]
fn an_empty_policy_refuses_everything_and_originates_nothing() {
    let policy = Policy::empty();
    assert_eq!(decided(&policy, "issues", "/m.v1.M/Get"), None);
    assert!(!policy.originates());
    assert_eq!(policy.nearest(Peer::Service("issues"), "/m.v1.M/Get"), None);
}

/// DESIGN §6 read out loud: rules in order, each with its callers and paths.
fn naive(rules: &[proto::Rule], caller: &str, path: &str) -> Option<usize> {
    rules.iter().position(|rule| {
        let caller_fits = rule.callers.iter().any(|allowed| allowed == "*" || allowed == caller);
        let path_fits = rule.paths.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(service) => {
                path.strip_prefix(service).is_some_and(|method| !method.is_empty() && !method.contains('/'))
            }
            None => allowed == path,
        });
        caller_fits && path_fits
    })
}

fn rules() -> impl Strategy<Value = Vec<proto::Rule>> {
    let caller = prop::sample::select(vec!["a", "b", "c", "*"]);
    let path = prop::sample::select(vec!["/s/x", "/s/y", "/s/*", "/t/x", "/t/*", "/ss/x", "/ss/*", "/s.s/x"]);
    let one = (prop::collection::vec(caller, 0..4), prop::collection::vec(path, 0..4));
    prop::collection::vec(one.prop_map(|(callers, paths)| rule("any", &callers, &paths)), 0..12)
}

proptest! {
    #[test]
    fn the_index_finds_what_a_walk_over_all_rules_finds(
        rules in rules(),
        caller in prop::sample::select(vec!["a", "b", "c", "d", ""]),
        path in prop::sample::select(vec![
            "/s/x", "/s/y", "/s/z", "/t/x", "/t/z", "/ss/x", "/ss/z", "/s.s/x", "/u/x", "/s/", "/s", "/", "", "/s/x/y", "s/x",
        ]),
    ) {
        let expected = naive(&rules, caller, path);
        let policy = policy(rules);
        let found = match policy.authorize(Peer::Service(caller), path) {
            Match::Rule(index, _) => Some(index as usize),
            Match::Nothing => None,
        };
        prop_assert_eq!(found, expected);
        if expected.is_none() {
            // Whatever it says, it must not claim that the call fits.
            if let Some(nearest) = policy.nearest(Peer::Service(caller), path) {
                prop_assert!(policy.rule(nearest.index).is_some());
            }
        }
    }
}

#[test]
fn a_client_outside_of_the_mesh_and_a_service_never_pass_as_one_another() {
    let record = proto::ServicePolicy {
        rules: vec![
            rule("health", &["*"], &["/grpc.health.v1.Health/*"]),
            rule("both", &["wiki", "partner"], &["/m.v1.M/Get"]),
            rule("partner", &["partner"], &["/m.v1.M/*"]),
        ],
        external_clients: vec![proto::ExternalClient { name: "partner".into(), ..Default::default() }],
        ..Default::default()
    };
    let policy = Policy::try_from(&record).unwrap();
    assert!(policy.knows_outside("partner") && !policy.knows_outside("wiki"));
    let decided = |peer, path| match policy.authorize(peer, path) {
        Match::Rule(_, rule) => Some(rule.name()),
        Match::Nothing => None,
    };
    for (peer, path, expected) in [
        (Peer::Outside("partner"), "/m.v1.M/Get", Some("both")),
        (Peer::Outside("partner"), "/m.v1.M/Put", Some("partner")),
        (Peer::Outside("partner"), "/grpc.health.v1.Health/Check", None),
        (Peer::Outside("wiki"), "/m.v1.M/Get", None),
        (Peer::Outside("*"), "/grpc.health.v1.Health/Check", None),
        (Peer::Service("wiki"), "/m.v1.M/Get", Some("both")),
        (Peer::Service("partner"), "/m.v1.M/Get", None),
        (Peer::Service("partner"), "/m.v1.M/Put", None),
        (Peer::Service("partner"), "/grpc.health.v1.Health/Check", Some("health")),
    ] {
        assert_eq!(decided(peer, path), expected, "{peer:?} {path}");
    }
    for (peer, path, expected) in [
        (Peer::Outside("partner"), "/grpc.health.v1.Health/Check", Some(("health", Missed::Caller))),
        (Peer::Outside("partner"), "/n.v1.N/Get", Some(("both", Missed::Service))),
        (Peer::Service("partner"), "/m.v1.M/Get", Some(("both", Missed::Caller))),
        (Peer::Outside("wiki"), "/m.v1.M/Get", Some(("both", Missed::Caller))),
        (Peer::Outside("stranger"), "/n.v1.N/Get", None),
    ] {
        let nearest = policy.nearest(peer, path);
        let found = nearest.as_ref().map(|nearest| (nearest.rule.as_str(), nearest.missed));
        assert_eq!(found, expected, "{peer:?} {path}");
    }
}
