use super::*;

/// (path, tenant, seen revision) → (attached tenant, index of the rule, what audit mode let pass)
type Audited =
    ((&'static str, Option<&'static str>, Option<&'static str>), (Option<&'static str>, Option<u32>, &'static str));

#[test]
fn audit_mode_writes_down_what_it_would_refuse_and_attaches_only_servable_tenants() {
    let open = state(&policy::ServicePolicy { audit_allowlist: "media".into(), ..record() });
    let table: [Audited; 13] = [
        // The rule's own Allowlist is in audit mode.
        (("/m.M/Audit", Some("acme"), None), (Some("acme"), Some(4), "")),
        (("/m.M/Audit", None, None), (None, Some(4), "TENANT_REQUIRED")),
        (("/m.M/Audit", Some("suspended"), None), (None, Some(4), "TENANT_SUSPENDED")),
        (("/m.M/Audit", Some("nobody"), None), (None, Some(4), "TENANT_UNKNOWN")),
        (("/m.M/Audit", Some("european"), None), (None, Some(4), "TENANT_WRONG_REGION")),
        (("/m.M/Audit", Some("acme"), Some("9.9")), (None, Some(4), "TENANT_STALE")),
        // The first failure is the one written down, and the tenant is still looked at.
        (("/m.M/AuditProof", Some("acme"), None), (Some("acme"), Some(5), "TXN_MISSING")),
        (("/m.M/AuditProof", Some("suspended"), None), (None, Some(5), "TXN_MISSING")),
        (("/m.M/AuditProof", None, None), (None, Some(5), "TXN_MISSING")),
        // No rule matches.
        (("/m.M/Other", None, None), (None, None, "PATH_NOT_ALLOWED")),
        (("/m.M/Other", Some("acme"), None), (Some("acme"), None, "PATH_NOT_ALLOWED")),
        (("/m.M/Other", Some("suspended"), None), (None, None, "PATH_NOT_ALLOWED")),
        (("/m.M/Other", Some("acme"), Some("9.9")), (None, None, "PATH_NOT_ALLOWED")),
    ];
    for ((path, tenant, seen), (attached, rule, audited)) in table {
        let head = Head { tenant_revision: seen, ..head(path, tenant) };
        let verdict =
            decide(&open, &tenants(), &mut Tokens, Peer::Service("issues"), &head, NOW, Waited::FOR_ALL).unwrap();
        let found = verdict.audited.as_ref().map_or("", |refusal| refusal.reason.as_str());
        assert_eq!(
            (verdict.tenant.as_ref().map(|tenant| tenant.id()), verdict.rule, found),
            (attached, rule, audited),
            "{path} {tenant:?}"
        );
        assert_eq!(verdict.audited.and_then(|refusal| refusal.rule), rule.filter(|_| !audited.is_empty()));
    }
}

#[test]
fn audit_mode_writes_down_a_token_of_another_tenant_and_attaches_the_calls() {
    let state = state(&record());
    for (txn_token, audited, transaction) in [
        (Named::One("txn:acme"), "", Some(Transaction::SameTenant)),
        (Named::One("txn:european"), "TXN_TENANT_MISMATCH", Some(Transaction::OtherTenant)),
        (Named::One("TXN_EXPIRED"), "TXN_EXPIRED", None),
        (Named::Many, "TXN_INVALID", None),
    ] {
        let head = Head { txn_token, ..head("/m.M/AuditProof", Some("acme")) };
        let verdict = decide_as(&state, "issues", &head).unwrap();
        let found = verdict.audited.as_ref().map_or("", |refusal| refusal.reason.as_str());
        assert_eq!((found, verdict.transaction), (audited, transaction), "{txn_token:?}");
        assert_eq!(verdict.tenant.unwrap().id(), "acme");
    }
}

#[test]
fn an_allowlist_in_audit_mode_does_not_soften_the_rules_of_another() {
    let open = state(&policy::ServicePolicy { audit_allowlist: "other".into(), ..record() });
    assert_eq!(reason(&decide_as(&open, "issues", &head("/m.M/Required", None))), "TENANT_REQUIRED");
    // And without it, a rule in audit mode opens no other path.
    assert_eq!(reason(&decide_as(&state(&record()), "issues", &head("/m.M/Other", None))), "PATH_NOT_ALLOWED");
}

#[test]
fn audit_mode_waits_for_a_revision_like_any_other() {
    let head = Head { tenant_revision: Some("5.11"), ..head("/m.M/Audit", Some("acme")) };
    assert_eq!(reason(&decide_as(&state(&record()), "issues", &head)), "(wait)");
}
