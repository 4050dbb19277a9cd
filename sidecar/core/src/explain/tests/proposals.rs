use super::*;

/// `media`, with a rule for some tenants.
fn with_conditions(change: fn(&mut proto::TenantConditions)) -> (Vec<proto::ServicePolicy>, Vec<proto::Route>) {
    let mut policies = policies();
    let mut conditions = proto::TenantConditions::default();
    change(&mut conditions);
    policies[0].rules[0].tenants = Some(conditions);
    let routes = policies.iter().map(|policy| proto::Route {
        service: policy.service.clone(),
        product: policy.product.clone(),
        residency: policy.residency,
        ..Default::default()
    });
    let routes = routes.collect();
    (policies, routes)
}

#[test]
fn a_tenant_that_a_rule_is_not_for_is_told_by_which_condition_and_what_would_change_it() {
    type Case = (fn(&mut proto::TenantConditions), &'static str, &'static str);
    let cases: [Case; 5] = [
        (
            |of| of.ids = vec!["globex".into()],
            "id",
            "add acme to `tenants.ids` of rule read of allowlist media-clients (media.yaml:7)",
        ),
        (
            |of| of.regions = vec!["eu-west".into()],
            "region",
            "add us-east to `tenants.regions` of rule read of allowlist media-clients (media.yaml:7), \
             which lets in every tenant of us-east",
        ),
        (
            |of| of.features = vec!["beta".into()],
            "feature",
            "remove beta from `tenants.features` of rule read of allowlist media-clients (media.yaml:7), \
             which lets in tenants without it",
        ),
        (
            |of| (of.ids, of.features) = (vec!["globex".into()], vec!["beta".into(), "gamma".into()]),
            "id",
            "add acme to `tenants.ids` of rule read of allowlist media-clients (media.yaml:7); \
             and remove beta from `tenants.features` of rule read of allowlist media-clients (media.yaml:7), \
             which lets in tenants without it; \
             and remove gamma from `tenants.features` of rule read of allowlist media-clients (media.yaml:7), \
             which lets in tenants without it",
        ),
        // It has no edition that could be named.
        (|of| of.editions = vec!["enterprise".into()], "edition", ""),
    ];
    for (change, condition, proposal) in cases {
        let (policies, routes) = with_conditions(change);
        let mesh = Mesh::new(&policies, &routes, [], Some(tenants())).unwrap();
        let explanation = mesh.explain(&call("issues", "media", "/media.v1.Media/Get", Some("acme")), NOW).unwrap();
        assert_eq!(reason(&explanation), "TENANT_NOT_ALLOWED");
        assert_eq!(explanation.condition.map(Condition::as_str), Some(condition));
        assert_eq!(explanation.proposal.map(|proposal| proposal.to_string()).unwrap_or_default(), proposal);
        let message = explanation.message.unwrap();
        assert_eq!(message, format!("rule read of service media is not for tenant acme, by its {condition}"));
    }
}

#[test]
fn without_tenants_the_named_one_is_assumed_to_be_what_the_rule_is_for_but_for_its_id() {
    let (policies, routes) = with_conditions(|of| {
        (of.editions, of.features) = (vec!["enterprise".into()], vec!["beta".into()]);
        (of.regions, of.ids) = (vec!["eu-west".into(), "us-east".into()], vec!["acme".into()]);
    });
    let mesh = Mesh::new(&policies, &routes, [], None).unwrap();
    for (tenant, region, expected, condition) in [
        ("acme", None, "ALLOWED", None),
        ("acme", Some("us-east"), "ALLOWED", None),
        ("acme", Some("ap-south"), "TENANT_NOT_ALLOWED", Some(Condition::Region)),
        ("globex", None, "TENANT_NOT_ALLOWED", Some(Condition::Id)),
    ] {
        let call = Call { region, ..call("issues", "media", "/media.v1.Media/Get", Some(tenant)) };
        let explanation = mesh.explain(&call, NOW).unwrap();
        assert_eq!((reason(&explanation), explanation.condition), (expected, condition), "{tenant} {region:?}");
        let mut assumed =
            vec![format!("tenant {tenant} is known, active, licensed and at home where the instance runs")];
        if expected == "ALLOWED" {
            assumed.push(format!("tenant {tenant} is one that rule read is for"));
        }
        assert_eq!(explanation.assumed, assumed);
    }
}

type Proposed = (&'static str, &'static str, &'static str, Option<&'static str>, &'static str);

/// Caller, callee, path, tenant, and what would allow the call.
const PROPOSALS: &[Proposed] = &[
    (
        "wiki",
        "media",
        "/media.v1.Media/Get",
        Some("acme"),
        "add wiki to `callers` of rule read of allowlist media-clients (media.yaml:7)",
    ),
    (
        "issues",
        "media",
        "/media.v1.Media/List",
        Some("acme"),
        // As a path of rule read it would be open to search as well.
        "add to allowlist media-clients: \
             {name: issues-list, callers: [issues], paths: [/media.v1.Media/List], tenant: required}",
    ),
    // The nearest rule wants a tenant, and the call has none.
    (
        "wiki",
        "media",
        "/media.v1.Media/Get",
        None,
        "add to allowlist media-clients: {name: wiki-get, callers: [wiki], paths: [/media.v1.Media/Get], tenant: none}",
    ),
    // The nearest rule allows other callers other methods.
    (
        "wiki",
        "media",
        "/media.v1.Media/List",
        Some("acme"),
        "add to allowlist media-clients: {name: wiki-list, callers: [wiki], paths: [/media.v1.Media/List], tenant: required}",
    ),
    (
        "wiki",
        "media",
        "/media.v1.Media/Get",
        Some("globex"),
        "add wiki to `callers` of rule read of allowlist media-clients (media.yaml:7); and unsuspend it: \
             tenon tenants unsuspend globex",
    ),
    (
        "issues",
        "search",
        "/search.v1.Search/Query",
        Some("acme"),
        "write an Allowlist for service search with the rule \
             {name: issues-query, callers: [issues], paths: [/search.v1.Search/Query], tenant: required}",
    ),
    ("issues", "media", "/media.v1.Media/Get", None, "name a tenant in the call: x-tenant-id"),
    ("issues", "media", "/media.v1.Media/Get", Some("nobody"), "write tenant nobody: tenon tenants apply FILE"),
    ("issues", "media", "/media.v1.Media/Get", Some("No Id"), ""),
    (
        "issues",
        "media",
        "/media.v1.Media/Erase",
        Some("acme"),
        "send the transaction token of the request that this call belongs to",
    ),
    ("issues", "nobody", "/x.v1.X/Y", None, "define nobody as a Service, and ask again"),
    (
        "stranger",
        "media",
        "/media.v1.Media/Get",
        None,
        "define stranger, a Service or an ExternalClient if it only calls, and ask again",
    ),
    ("issues", "media", "no path", Some("acme"), ""),
    // Pasted into a policy file it would be every method.
    ("issues", "media", "/media.v1.Media/*", Some("acme"), ""),
    ("wiki", "media", "/media.v1.Media/*", Some("acme"), ""),
    // Audit mode let it pass, and what would be needed if it was enforced is told all the same.
    (
        "issues",
        "wiki",
        "/wiki.v1.Wiki/Get",
        None,
        "add to allowlist media-clients: {name: issues-get, callers: [issues], paths: [/wiki.v1.Wiki/Get], tenant: none}",
    ),
    ("issues", "media", "/media.v1.Media/Upload", Some("globex"), "unsuspend it: tenon tenants unsuspend globex"),
    ("issues", "media", "/grpc.health.v1.Health/Check", None, ""),
];

#[test]
fn every_proposal_is_the_smallest_change_and_works_where_it_is_the_policys() {
    let mesh = mesh(Some(tenants()));
    for (caller, service, path, tenant, proposal) in PROPOSALS {
        let (service, proposal) = (*service, *proposal);
        let asked = call(caller, service, path, *tenant);
        let explanation = mesh.explain(&asked, NOW).unwrap();
        let found = explanation.proposal.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(found, proposal, "{caller} {service} {path} {tenant:?}");
        let Some(Proposal { changes }) = explanation.proposal else { continue };
        if changes.iter().all(|change| matches!(change, Change::Add { .. } | Change::NewRule { .. })) {
            let changed = applied(&policies(), service, &changes);
            let routes =
                changed.iter().map(|policy| proto::Route { service: policy.service.clone(), ..Default::default() });
            let mesh = Mesh::new(&changed, &routes.collect::<Vec<_>>(), [], Some(tenants())).unwrap();
            let explanation = mesh.explain(&asked, NOW).unwrap();
            assert!(explanation.allowed && explanation.audited.is_none(), "{proposal}: {explanation:?}");
        }
    }
}

/// The policies as somebody who follows the proposal writes them.
fn applied(policies: &[proto::ServicePolicy], service: &str, changes: &[Change]) -> Vec<proto::ServicePolicy> {
    let mut policies = policies.to_vec();
    let policy = policies.iter_mut().find(|policy| policy.service == service).unwrap();
    for change in changes {
        match change {
            Change::Add { rule, field, value, .. } => {
                let rule = policy.rules.iter_mut().find(|known| known.name == rule.rule).unwrap();
                match *field {
                    "callers" => rule.callers.push(value.clone()),
                    "paths" => rule.paths.push(value.clone()),
                    other => panic!("{other}"),
                }
            }
            Change::NewRule { name, caller, path, tenant, .. } => {
                assert!(!policy.rules.iter().any(|rule| rule.name == *name), "{name} is taken");
                let requirement = match *tenant {
                    "required" => proto::TenantRequirement::Required,
                    "none" => proto::TenantRequirement::None,
                    other => panic!("{other}"),
                };
                policy.rules.push(proto::Rule { tenant: requirement.into(), ..rule(name, &[caller], path) });
            }
            other @ (Change::Remove { .. }
            | Change::Define { .. }
            | Change::Release { .. }
            | Change::Elsewhere { .. }) => {
                panic!("{other}")
            }
        }
    }
    policies
}

#[test]
fn a_quarantine_is_proposed_to_be_ended_for_each_side_that_is_cut_off() {
    let quarantines = ["issues", "media"].map(|name| proto::Quarantine { service: name.into(), reason: "leak".into() });
    let routes = ["media", "issues"].map(|name| proto::Route { service: name.into(), ..Default::default() });
    let mesh = Mesh::new(&policies(), &routes, &quarantines, Some(tenants())).unwrap();
    let explanation = mesh.explain(&call("issues", "media", "/media.v1.Media/Get", Some("acme")), NOW).unwrap();
    let words = explanation.proposal.unwrap().to_string();
    assert_eq!(words, "take issues out of its Quarantine; and take media out of its Quarantine");
}

#[test]
fn a_path_is_proposed_for_a_rule_of_the_caller_alone_rather_than_what_opens_more() {
    let policy = proto::ServicePolicy {
        rules: vec![rule("all", &["issues"], "/media.v1.Media/*"), rule("own", &["wiki"], "/media.v1.Media/Get")],
        ..service("media")
    };
    let mesh = Mesh::new(
        [&policy],
        &["media", "wiki", "issues"].map(|name| proto::Route { service: name.into(), ..Default::default() }),
        [],
        None,
    );
    let call = call("wiki", "media", "/media.v1.Media/Delete", Some("acme"));
    let proposal = mesh.unwrap().explain(&call, NOW).unwrap().proposal.unwrap().to_string();
    assert_eq!(proposal, "add /media.v1.Media/Delete to `paths` of rule own of allowlist media-clients (media.yaml:7)");
}
