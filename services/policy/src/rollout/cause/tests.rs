use tenon_proto::policy::v1 as proto;

use super::*;

const GET: &str = "/media.v1.Media/Get";

fn rule() -> proto::Rule {
    proto::Rule {
        allowlist: "media".to_owned(),
        name: "read".to_owned(),
        callers: vec!["issues".to_owned()],
        paths: vec![GET.to_owned()],
        tenant: proto::TenantRequirement::Optional.into(),
        proof: proto::Proof::None.into(),
        source: "media.yaml:7".to_owned(),
        ..proto::Rule::default()
    }
}

fn media(rules: &[proto::Rule]) -> ServicePolicy {
    ServicePolicy {
        service: "media".to_owned(),
        product: "media".to_owned(),
        residency: proto::Residency::Any.into(),
        originates: true,
        rules: rules.to_vec(),
        ..ServicePolicy::default()
    }
}

fn with(change: impl FnOnce(&mut proto::Rule)) -> ServicePolicy {
    let mut rule = rule();
    change(&mut rule);
    media(&[rule])
}

fn of(change: impl FnOnce(&mut ServicePolicy)) -> ServicePolicy {
    let mut policy = media(&[rule()]);
    change(&mut policy);
    policy
}

fn refuses(old: &ServicePolicy, new: &ServicePolicy, reason: Reason) -> bool {
    Changed::new(old.clone(), new.clone()).unwrap().refuses("issues", GET, reason.as_str())
}

fn tenant(requirement: proto::TenantRequirement) -> ServicePolicy {
    with(|rule| rule.tenant = requirement.into())
}

fn for_tenants(change: impl FnOnce(&mut TenantConditions)) -> ServicePolicy {
    with(|rule| {
        let mut conditions = TenantConditions::default();
        change(&mut conditions);
        rule.tenants = Some(conditions);
    })
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn rate(count: u64, per_seconds: u32, burst: u64) -> ServicePolicy {
    with(|rule| rule.rate = Some(proto::Rate { count, per_seconds, burst }))
}

fn proof() -> ServicePolicy {
    with(|rule| rule.proof = proto::Proof::Transaction.into())
}

#[test]
fn another_product_may_refuse_tenants_either_way() {
    let (media, video) = (of(|_| {}), of(|policy| policy.product = "video".to_owned()));
    assert!(refuses(&media, &video, Reason::ProductNotLicensed) && refuses(&video, &media, Reason::ProductSuspended));
}

/// Each is why in one direction, and in the other, where the policy only becomes wider, it is not.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_refusal_counts_where_the_new_policy_wants_more_than_the_old_one() {
    use Reason::*;
    use proto::TenantRequirement as Tenant;
    let wide = media(&[rule()]);
    for (what, old, new, reasons) in [
        ("the rule is gone", wide.clone(), media(&[]), vec![PathNotAllowed]),
        ("another caller", wide.clone(), with(|rule| rule.callers = texts(&["wiki"])), vec![PathNotAllowed]),
        ("another path", wide.clone(), with(|rule| rule.paths = texts(&["/media.v1.Media/Put"])), vec![PathNotAllowed]),
        (
            "audit mode is over",
            ServicePolicy { audit_allowlist: "media".to_owned(), ..media(&[]) },
            media(&[]),
            vec![PathNotAllowed],
        ),
        ("a tenant must be named", wide.clone(), tenant(Tenant::Required), vec![TenantRequired]),
        (
            "tenants are looked at",
            tenant(Tenant::None),
            wide.clone(),
            vec![TenantUnknown, TenantSuspended, ProductNotLicensed, ProductSuspended],
        ),
        (
            "tenants are looked at in earnest",
            with(|rule| (rule.tenant, rule.audit) = (Tenant::Required.into(), true)),
            tenant(Tenant::Required),
            vec![TenantRequired, TenantUnknown, TenantSuspended, ProductNotLicensed, ProductSuspended],
        ),
        (
            "a product",
            of(|policy| policy.product = String::new()),
            wide.clone(),
            vec![ProductNotLicensed, ProductSuspended],
        ),
        (
            "tenants at home alone",
            wide.clone(),
            of(|policy| policy.residency = proto::Residency::Home.into()),
            vec![TenantWrongRegion],
        ),
        ("for some tenants", wide.clone(), for_tenants(|it| it.ids = texts(&["acme"])), vec![TenantNotAllowed]),
        (
            "for fewer tenants",
            for_tenants(|it| it.ids = texts(&["acme", "umbrella"])),
            for_tenants(|it| it.ids = texts(&["acme"])),
            vec![TenantNotAllowed],
        ),
        (
            "for tenants with more features",
            for_tenants(|it| it.features = texts(&["beta"])),
            for_tenants(|it| it.features = texts(&["beta", "export"])),
            vec![TenantNotAllowed],
        ),
        (
            "for tenants of fewer editions and regions",
            for_tenants(|it| it.editions = texts(&["free", "team"])),
            for_tenants(|it| (it.editions, it.regions) = (texts(&["free", "team"]), texts(&["eu-west"]))),
            vec![TenantNotAllowed],
        ),
        ("with a transaction", wide.clone(), proof(), vec![TxnMissing, TxnInvalid, TxnExpired, TxnTenantMismatch]),
        // A tenant over its rate takes no policy back.
        ("a rate", wide.clone(), rate(10, 1, 20), vec![]),
        ("a lower rate", rate(10, 1, 20), rate(60, 60, 20), vec![]),
        ("a smaller burst", rate(10, 1, 20), rate(10, 1, 10), vec![]),
    ] {
        for reason in Reason::ALL {
            let expected = reasons.contains(reason);
            assert_eq!(refuses(&old, &new, *reason), expected, "{what}: {reason}");
            assert!(!refuses(&new, &old, *reason), "{what}, the other way round: {reason}");
            assert!(!refuses(&new, &new, *reason), "{what}, unchanged: {reason}");
        }
    }
}

#[test]
fn what_is_in_audit_mode_refuses_nothing() {
    let strict = |audit| {
        with(|rule| {
            rule.tenant = proto::TenantRequirement::Required.into();
            rule.proof = proto::Proof::Transaction.into();
            rule.audit = audit;
        })
    };
    for reason in Reason::ALL {
        assert!(!refuses(&tenant(proto::TenantRequirement::None), &strict(true), *reason), "{reason}");
    }
    assert!(refuses(&tenant(proto::TenantRequirement::None), &strict(false), Reason::TxnMissing));
}

#[test]
fn only_the_caller_and_the_path_of_the_call_are_judged() {
    let old = with(|rule| rule.paths = texts(&["/media.v1.Media/*"]));
    let new = with(|rule| rule.callers = texts(&["issues", "wiki"]));
    let changed = Changed::new(old, new).unwrap();
    let refused = Reason::PathNotAllowed.as_str();
    assert!(changed.refuses("issues", "/media.v1.Media/Put", refused));
    assert!(!changed.refuses("issues", GET, refused), "allowed by both");
    assert!(!changed.refuses("wiki", "/media.v1.Media/Put", refused), "never allowed");
    assert!(!changed.refuses("issues", "", refused), "paths that were not told apart");
    assert!(!changed.refuses("issues", "/media.v1.Media/Put", "SOMETHING_NEWER"));
}

#[test]
fn an_outside_client_that_is_described_differently_may_fail_to_prove_who_it_is() {
    let client = |issuer: &str| {
        of(|policy| {
            policy.rules[0].callers = texts(&["partner"]);
            let client = ExternalClient { name: "partner".to_owned(), issuer: issuer.to_owned(), ..Default::default() };
            policy.external_clients = vec![client];
        })
    };
    let changed = Changed::new(client("a"), client("b")).unwrap();
    assert!(changed.refuses("partner", GET, Reason::AsapIssuer.as_str()));
    assert!(!changed.refuses("partner", GET, Reason::AsapExpired.as_str()), "a token's own fault");
    assert!(!changed.refuses("issues", GET, Reason::AsapIssuer.as_str()), "a service of the mesh");
    let gone = Changed::new(client("a"), media(&[])).unwrap();
    assert!(gone.refuses("partner", GET, Reason::PathNotAllowed.as_str()));
    assert!(!Changed::new(client("a"), client("a")).unwrap().refuses("partner", GET, Reason::AsapIssuer.as_str()));
}

#[test]
fn who_may_no_longer_originate_calls_is_kept_from_calling() {
    let not = of(|policy| policy.originates = false);
    let may = of(|_| {});
    let reason = Reason::TenantNotInFlight.as_str();
    assert!(Changed::new(may.clone(), not.clone()).unwrap().keeps_from_calling(reason));
    assert!(!Changed::new(may.clone(), not.clone()).unwrap().keeps_from_calling(Reason::TenantUnknown.as_str()));
    assert!(!Changed::new(not.clone(), may.clone()).unwrap().keeps_from_calling(reason));
    assert!(!Changed::new(not.clone(), not).unwrap().keeps_from_calling(reason));
}

#[test]
fn the_rule_is_named_with_its_place() {
    let changed = Changed::new(media(&[rule()]), with(|rule| rule.paths = texts(&["/media.v1.Media/Put"]))).unwrap();
    assert_eq!(changed.rule("issues", "/media.v1.Media/Put"), "rule read of media (media.yaml:7)");
    let nearest = "rule read of media (media.yaml:7) missed by method: it allows /media.v1.Media/Put";
    assert_eq!(changed.rule("issues", GET), nearest);
    assert_eq!(changed.rule("nobody", "/other.v1.Other/Get"), "");
}

#[test]
fn paths_that_were_not_told_apart_may_hide_what_the_change_refuses_and_nothing_else() {
    let may = |old: &ServicePolicy, new: &ServicePolicy, caller: &str, reason: Reason| {
        Changed::new(old.clone(), new.clone()).unwrap().may_refuse(caller, reason.as_str())
    };
    let paths = |paths: &[&str]| with(|rule| rule.paths = texts(paths));
    let (both, one, all) = (paths(&[GET, "/media.v1.Media/Put"]), paths(&[GET]), paths(&["/media.v1.Media/*"]));
    for (old, new, caller, reason, hides) in [
        (&both, &one, "issues", Reason::PathNotAllowed, true),
        (&all, &both, "issues", Reason::PathNotAllowed, true),
        (&one, &both, "issues", Reason::PathNotAllowed, false),
        (&both, &all, "issues", Reason::PathNotAllowed, false),
        (&both, &one, "wiki", Reason::PathNotAllowed, false),
        (&both, &one, "issues", Reason::Overloaded, false),
        (&both, &one, "issues", Reason::TenantRequired, false),
        (&one, &tenant(proto::TenantRequirement::Required), "issues", Reason::TenantRequired, true),
        (&of(|it| it.audit_allowlist = "media".to_owned()), &one, "wiki", Reason::PathNotAllowed, true),
    ] {
        assert_eq!(may(old, new, caller, reason), hides, "{caller} {reason:?} {:?}", new.rules[0].paths);
    }
    assert!(!Changed::new(both, one).unwrap().may_refuse("issues", "SOMETHING_LATER"));
}
