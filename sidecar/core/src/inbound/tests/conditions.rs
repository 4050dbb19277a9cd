use super::*;

/// `record`, with rules for some tenants: named after what they want.
fn choosy() -> policy::ServicePolicy {
    let mut record = record();
    let conditions = |change: fn(&mut policy::TenantConditions)| {
        let mut conditions = policy::TenantConditions::default();
        change(&mut conditions);
        Some(conditions)
    };
    let ids = conditions(|of| of.ids = vec!["acme".into(), "suspended".into(), "european".into()]);
    let editions = conditions(|of| of.editions = vec!["enterprise".into()]);
    let both = conditions(|of| (of.ids, of.regions) = (vec!["acme".into()], vec!["eu-west".into()]));
    let optional = policy::TenantRequirement::Optional.into();
    record.rules.push(rule("ids", "/m.M/Ids", |rule| rule.tenants = ids.clone()));
    record.rules.push(rule("edition", "/m.M/Edition", |rule| rule.tenants = editions.clone()));
    record.rules.push(rule("both", "/m.M/Both", |rule| rule.tenants = both));
    record.rules.push(rule("some", "/m.M/Some", |rule| (rule.tenants, rule.tenant) = (editions, optional)));
    record.rules.push(rule("trial", "/m.M/Trial", |rule| (rule.tenants, rule.audit) = (ids, true)));
    record
}

#[test]
fn the_conditions_of_a_rule_come_after_all_that_the_tenant_itself_lacks() {
    let state = state(&choosy());
    for (path, tenant, expected) in [
        ("/m.M/Ids", Some("acme"), ""),
        ("/m.M/Ids", Some("expires-now"), "TENANT_NOT_ALLOWED"),
        ("/m.M/Ids", Some("suspended"), "TENANT_SUSPENDED"),
        ("/m.M/Ids", Some("european"), "TENANT_WRONG_REGION"),
        ("/m.M/Ids", Some("expired"), "PRODUCT_NOT_LICENSED"),
        ("/m.M/Ids", Some("nobody"), "TENANT_UNKNOWN"),
        ("/m.M/Ids", None, "TENANT_REQUIRED"),
        ("/m.M/Edition", Some("acme"), "TENANT_NOT_ALLOWED"),
        ("/m.M/Both", Some("acme"), "TENANT_NOT_ALLOWED"),
        ("/m.M/Some", Some("acme"), "TENANT_NOT_ALLOWED"),
        ("/m.M/Some", None, ""),
    ] {
        let outcome = decide_as(&state, "issues", &head(path, tenant));
        assert_eq!(reason(&outcome), expected, "{path} for {tenant:?}");
        if let (Err(Stop::Refused(refusal)), "TENANT_NOT_ALLOWED") = (outcome, expected) {
            assert!(refusal.rule.is_some());
            let others = ["acme", "suspended", "european"].into_iter().filter(|id| Some(*id) != tenant);
            assert!(!others.into_iter().any(|id| refusal.message.contains(id)), "{refusal}");
            assert!(refusal.message.contains(tenant.unwrap()), "{refusal}");
        }
    }
}

#[test]
fn audit_mode_hands_the_app_a_tenant_that_the_rule_is_not_for_and_writes_that_down() {
    let state = state(&choosy());
    for (tenant, attached, audited) in [
        ("acme", Some("acme"), ""),
        ("expires-now", Some("expires-now"), "TENANT_NOT_ALLOWED"),
        ("suspended", None, "TENANT_SUSPENDED"),
    ] {
        let verdict = decide_as(&state, "issues", &head("/m.M/Trial", Some(tenant))).unwrap();
        let found = verdict.audited.as_ref().map_or("", |refusal| refusal.reason.as_str());
        assert_eq!((verdict.tenant.as_ref().map(|tenant| tenant.id()), found), (attached, audited), "{tenant}");
    }
}
