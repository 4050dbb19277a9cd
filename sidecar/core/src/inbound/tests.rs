use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tenon_proto::{policy::v1 as policy, tcs::v1 as tcs};

use super::*;
use crate::{Proven, tenancy::Held};

mod audit;
mod conditions;

const NOW: u64 = 1_000;
const REACHED: Position = Position { epoch: 5, revision: 10 };

/// Takes the token "good", and refuses another one by its text.
struct Tokens;

impl Credentials for Tokens {
    fn verify(&mut self, peer: Peer<'_>, token: &[u8], now: u64) -> Result<(), Refusal> {
        assert_eq!(now, NOW);
        match std::str::from_utf8(token).unwrap() {
            "good" => Ok(()),
            reason => Err(Refusal::new(reason.parse().unwrap(), format!("token of {}", peer.name()))),
        }
    }

    /// A token of a tenant is "txn:" and its id.
    fn transaction(&mut self, token: &str, tenant: Named<'_>, now: u64) -> Result<Transaction, Refusal> {
        assert_eq!(now, NOW);
        match token.strip_prefix("txn:") {
            Some(id) => Ok(Transaction::compare(Some(id).filter(|id| !id.is_empty()), tenant)),
            None => Err(Refusal::new(token.parse().unwrap_or(Reason::TxnInvalid), "not good")),
        }
    }
}

fn rule(name: &str, path: &str, change: impl FnOnce(&mut policy::Rule)) -> policy::Rule {
    let mut rule = policy::Rule {
        allowlist: "media".into(),
        name: name.into(),
        callers: vec!["issues".into(), "wiki".into()],
        paths: vec![path.into()],
        ..Default::default()
    };
    change(&mut rule);
    rule
}

/// Paths are named after what their rule wants.
fn record() -> policy::ServicePolicy {
    let optional = policy::TenantRequirement::Optional.into();
    let none = policy::TenantRequirement::None.into();
    let transaction = policy::Proof::Transaction.into();
    policy::ServicePolicy {
        service: "media".into(),
        product: "media".into(),
        residency: policy::Residency::Home.into(),
        originates: true,
        external_clients: Vec::new(),
        rules: vec![
            rule("required", "/m.M/Required", |_| {}),
            rule("optional", "/m.M/Optional", |rule| rule.tenant = optional),
            rule("none", "/m.M/None", |rule| rule.tenant = none),
            rule("proof", "/m.M/Proof", |rule| rule.proof = transaction),
            rule("audit", "/m.M/Audit", |rule| rule.audit = true),
            rule("audit-proof", "/m.M/AuditProof", |rule| (rule.audit, rule.proof) = (true, transaction)),
        ],
        audit_allowlist: String::new(),
        canary: None,
        signature: None,
    }
}

fn state(record: &policy::ServicePolicy) -> State {
    let wiki = policy::Quarantine { service: "wiki".into(), reason: "lost key".into() };
    State {
        me: "media".parse().unwrap(),
        region: Some("us-east".parse().unwrap()),
        policy: Some(Arc::new(Policy::try_from(record).unwrap())),
        quarantined: [&wiki].into_iter().collect(),
        policy_position: Some(Position { epoch: 1, revision: 1 }),
    }
}

fn tenant(id: &str, change: impl FnOnce(&mut tcs::TenantContext)) -> Tenant {
    let media = tcs::Product { state: tcs::product::State::Active.into(), ..Default::default() };
    let mut context = tcs::TenantContext {
        tenant_id: id.into(),
        status: tcs::tenant_context::Status::Active.into(),
        region: "us-east".into(),
        products: [("media".to_owned(), media)].into(),
        ..Default::default()
    };
    change(&mut context);
    Tenant::decode(Bytes::from(context.encode_to_vec())).unwrap()
}

fn with_state(context: &mut tcs::TenantContext, state: tcs::product::State) {
    context.products.entry("media".into()).or_default().state = state.into();
}

/// Tenants are named after what is the matter with them.
fn tenants() -> Held {
    let expired = |seconds| Some(pbjson_types::Timestamp { seconds, nanos: 0 });
    Held::snapshot(
        REACHED,
        [
            tenant("acme", |_| {}),
            tenant("suspended", |context| context.status = tcs::tenant_context::Status::Suspended.into()),
            tenant("without-product", |context| context.products.clear()),
            tenant("inactive", |context| with_state(context, tcs::product::State::Inactive)),
            tenant("product-suspended", |context| with_state(context, tcs::product::State::Suspended)),
            tenant("expired", |context| {
                context.products.entry("media".into()).or_default().license_expires_at = expired(999);
            }),
            tenant("expires-now", |context| {
                context.products.entry("media".into()).or_default().license_expires_at = expired(1_000);
            }),
            tenant("european", |context| context.region = "eu-west".into()),
            tenant("homeless", |context| context.region = String::new()),
        ],
    )
}

fn head<'a>(path: &'a str, tenant: Option<&'a str>) -> Head<'a> {
    let tenant = tenant.map_or(Named::None, Named::One);
    Head { path, token: Token::One(b"good"), tenant, tenant_revision: None, txn_token: Named::None }
}

fn decide_as(state: &State, peer: &str, head: &Head<'_>) -> Result<Verdict<Arc<Tenant>>, Stop> {
    decide(state, &tenants(), &mut Tokens, Peer::Service(peer), head, NOW, Waited::default())
}

/// The reason of a refusal, "" when the call is allowed.
fn reason(outcome: &Result<Verdict<Arc<Tenant>>, Stop>) -> &'static str {
    match outcome {
        Ok(_) => "",
        Err(Stop::Refused(refusal)) => refusal.reason.as_str(),
        Err(Stop::WaitFor(_)) => "(wait)",
        Err(Stop::Resolve(_)) => "(resolve)",
    }
}

#[test]
fn credentials_are_checked_before_all_else() {
    let state = State { policy: None, ..state(&record()) };
    for (token, expected) in [
        (Token::Missing, "ASAP_MISSING"),
        (Token::Ambiguous, "ASAP_MALFORMED"),
        (Token::One(b"ASAP_SIGNATURE"), "ASAP_SIGNATURE"),
        (Token::One(b"ASAP_KEYS_UNAVAILABLE"), "ASAP_KEYS_UNAVAILABLE"),
        (Token::One(b"good"), "QUARANTINED"),
    ] {
        let outcome = decide_as(&state, "wiki", &Head { token, ..head("/m.M/Required", None) });
        assert_eq!(reason(&outcome), expected, "{token:?}");
    }
}

#[test]
fn every_check_refuses_with_its_reason_and_lets_its_twin_pass() {
    let state = state(&record());
    for (path, tenant, expected) in [
        ("/m.M/Required", Some("acme"), ""),
        ("/m.M/Required", None, "TENANT_REQUIRED"),
        ("/m.M/Required", Some("nobody"), "TENANT_UNKNOWN"),
        ("/m.M/Required", Some("Not-An-Id"), "TENANT_UNKNOWN"),
        ("/m.M/Required", Some(""), "TENANT_UNKNOWN"),
        ("/m.M/Required", Some("suspended"), "TENANT_SUSPENDED"),
        ("/m.M/Required", Some("without-product"), "PRODUCT_NOT_LICENSED"),
        ("/m.M/Required", Some("inactive"), "PRODUCT_NOT_LICENSED"),
        ("/m.M/Required", Some("expired"), "PRODUCT_NOT_LICENSED"),
        ("/m.M/Required", Some("expires-now"), ""),
        ("/m.M/Required", Some("product-suspended"), "PRODUCT_SUSPENDED"),
        ("/m.M/Required", Some("european"), "TENANT_WRONG_REGION"),
        ("/m.M/Required", Some("homeless"), "TENANT_WRONG_REGION"),
        ("/m.M/Optional", None, ""),
        ("/m.M/Optional", Some("acme"), ""),
        ("/m.M/Optional", Some("suspended"), "TENANT_SUSPENDED"),
        ("/m.M/Optional", Some("nobody"), "TENANT_UNKNOWN"),
        ("/m.M/None", None, ""),
        ("/m.M/None", Some("suspended"), ""),
        ("/m.M/None", Some("Not-An-Id"), ""),
        ("/m.M/Proof", Some("acme"), "TXN_MISSING"),
        ("/m.M/Other", Some("acme"), "PATH_NOT_ALLOWED"),
    ] {
        let outcome = decide_as(&state, "issues", &head(path, tenant));
        assert_eq!(reason(&outcome), expected, "{path} for {tenant:?}");
        if let Ok(verdict) = outcome {
            let attached = verdict.tenant.as_ref().map(|tenant| tenant.id());
            assert_eq!(attached, tenant.filter(|_| path != "/m.M/None"), "{path} for {tenant:?}");
            assert!(verdict.audited.is_none());
        }
    }
}

#[test]
fn a_refusal_by_conditions_names_the_rule_and_one_by_the_allowlist_the_nearest() {
    let state = state(&record());
    let Err(Stop::Refused(refusal)) = decide_as(&state, "issues", &head("/m.M/Optional", Some("suspended"))) else {
        panic!("expected a refusal");
    };
    assert_eq!((refusal.rule, &refusal.nearest), (Some(1), &None));
    assert_eq!(refusal.to_string(), "TENANT_SUSPENDED: tenant suspended is suspended");
    let Err(Stop::Refused(refusal)) = decide_as(&state, "billing", &head("/m.M/None", None)) else {
        panic!("expected a refusal");
    };
    assert_eq!(refusal.rule, None);
    assert_eq!(refusal.nearest.unwrap().rule, "none");
    assert_eq!(refusal.message, "no rule of service media allows billing the path /m.M/None");
}

#[test]
fn several_tenant_ids_are_nobodys_unless_the_rule_ignores_tenants() {
    let state = state(&record());
    for (path, expected) in
        [("/m.M/Required", "TENANT_UNKNOWN"), ("/m.M/Optional", "TENANT_UNKNOWN"), ("/m.M/None", "")]
    {
        let outcome = decide_as(&state, "issues", &Head { tenant: Named::Many, ..head(path, None) });
        assert_eq!(reason(&outcome), expected, "{path}");
    }
}

#[test]
fn a_rule_that_wants_a_proof_refuses_each_token_that_is_none_for_this_call() {
    let state = state(&record());
    let table = [
        (Named::None, Some("acme"), "TXN_MISSING"),
        (Named::Many, Some("acme"), "TXN_INVALID"),
        (Named::One(""), Some("acme"), "TXN_INVALID"),
        (Named::One("TXN_INVALID"), Some("acme"), "TXN_INVALID"),
        (Named::One("TXN_EXPIRED"), Some("acme"), "TXN_EXPIRED"),
        (Named::One("txn:european"), Some("acme"), "TXN_TENANT_MISMATCH"),
        (Named::One("txn:"), Some("acme"), "TXN_TENANT_MISMATCH"),
        (Named::One("txn:acme"), None, "TXN_TENANT_MISMATCH"),
        (Named::One("txn:acme"), Some("acme"), ""),
        // The token stands before the tenant.
        (Named::One("txn:suspended"), Some("suspended"), "TENANT_SUSPENDED"),
        (Named::One("txn:acme"), Some("suspended"), "TXN_TENANT_MISMATCH"),
        (Named::One("txn:"), None, "TENANT_REQUIRED"),
    ];
    for (txn_token, tenant, expected) in table {
        let head = Head { txn_token, ..head("/m.M/Proof", tenant) };
        let outcome = decide_as(&state, "issues", &head);
        assert_eq!(reason(&outcome), expected, "{txn_token:?} for {tenant:?}");
        match outcome {
            Ok(verdict) => assert_eq!(verdict.transaction, Some(Transaction::SameTenant)),
            Err(Stop::Refused(refusal)) => {
                assert_eq!(refusal.rule, Some(3));
                assert!(!refusal.message.contains("european"), "nothing of another tenant: {refusal}");
            }
            Err(Stop::WaitFor(_) | Stop::Resolve(_)) => panic!("nothing to wait for"),
        }
    }
    let several = Head { tenant: Named::Many, txn_token: Named::One("txn:acme"), ..head("/m.M/Proof", None) };
    assert_eq!(reason(&decide_as(&state, "issues", &several)), "TXN_TENANT_MISMATCH");
}

#[test]
fn a_token_that_no_rule_wants_is_not_looked_at() {
    let state = state(&record());
    for txn_token in [Named::One("TXN_EXPIRED"), Named::Many, Named::None] {
        let outcome = decide_as(&state, "issues", &Head { txn_token, ..head("/m.M/Required", Some("acme")) });
        assert_eq!(outcome.unwrap().transaction, None);
    }
}

#[test]
fn a_rule_that_ignores_tenants_ignores_that_of_the_token_and_an_optional_one_wants_the_calls() {
    let with = |tenant| {
        let mut record = record();
        record.rules[3].tenant = tenant;
        state(&record)
    };
    let none = with(policy::TenantRequirement::None.into());
    let optional = with(policy::TenantRequirement::Optional.into());
    for (txn_token, tenant, ignoring, looking) in [
        ("txn:acme", Some("acme"), "", ""),
        ("txn:acme", Some("european"), "", "TXN_TENANT_MISMATCH"),
        ("txn:acme", None, "", "TXN_TENANT_MISMATCH"),
        ("txn:", Some("acme"), "", "TXN_TENANT_MISMATCH"),
        ("txn:", None, "", ""),
        ("TXN_EXPIRED", None, "TXN_EXPIRED", "TXN_EXPIRED"),
    ] {
        let head = Head { txn_token: Named::One(txn_token), ..head("/m.M/Proof", tenant) };
        assert_eq!(reason(&decide_as(&none, "issues", &head)), ignoring, "none: {txn_token} for {tenant:?}");
        assert_eq!(reason(&decide_as(&optional, "issues", &head)), looking, "optional: {txn_token} for {tenant:?}");
    }
}

#[test]
fn an_open_call_keeps_what_its_token_proved_and_one_that_had_none_ends_when_a_rule_wants_one() {
    let state = state(&record());
    for (transaction, expected) in [
        (Some(Transaction::SameTenant), ""),
        (Some(Transaction::OtherTenant), "TXN_TENANT_MISMATCH"),
        (None, "TXN_MISSING"),
    ] {
        let head = Head { txn_token: Named::One(""), ..head("/m.M/Proof", Some("acme")) };
        let issues = Peer::Service("issues");
        let outcome = decide(&state, &tenants(), &mut Proven { transaction }, issues, &head, NOW, Waited::FOR_ALL);
        assert_eq!(reason(&outcome), expected, "{transaction:?}");
    }
}

#[test]
fn a_client_outside_of_the_mesh_comes_in_by_rules_that_name_it_and_by_nothing_else() {
    let partner = policy::ExternalClient { name: "partner".into(), ..Default::default() };
    let mut record =
        policy::ServicePolicy { external_clients: vec![partner], audit_allowlist: "media".into(), ..record() };
    let none = policy::TenantRequirement::None.into();
    record.rules.push(rule("partner", "/m.M/Partner", |rule| rule.callers = vec!["partner".into()]));
    record.rules.push(rule("all", "/m.M/All", |rule| (rule.callers, rule.tenant) = (vec!["*".into()], none)));
    let state = state(&record);
    for (peer, path, expected) in [
        (Peer::Outside("partner"), "/m.M/Partner", ""),
        (Peer::Outside("partner"), "/m.M/All", "PATH_NOT_ALLOWED"),
        (Peer::Outside("partner"), "/m.M/Other", "PATH_NOT_ALLOWED"),
        (Peer::Service("billing"), "/m.M/All", ""),
        // Audit mode lets pass what no rule matches, of services.
        (Peer::Service("billing"), "/m.M/Other", ""),
        (Peer::Outside("wiki"), "/m.M/Partner", "QUARANTINED"),
    ] {
        let outcome = decide(&state, &tenants(), &mut Tokens, peer, &head(path, Some("acme")), NOW, Waited::default());
        assert_eq!(reason(&outcome), expected, "{peer:?} {path}");
    }
}

#[test]
fn quarantine_stands_before_the_allowlist_and_before_audit() {
    let open = policy::ServicePolicy { audit_allowlist: "media".into(), ..record() };
    assert_eq!(reason(&decide_as(&state(&open), "wiki", &head("/m.M/Required", Some("acme")))), "QUARANTINED");
    let me = State { me: "wiki".parse().unwrap(), ..state(&open) };
    assert_eq!(reason(&decide_as(&me, "issues", &head("/m.M/Required", Some("acme")))), "QUARANTINED");
}

#[test]
fn before_the_first_policy_nobody_is_let_in_and_an_empty_one_refuses_by_the_allowlist() {
    let none_yet = State { policy: None, ..state(&record()) };
    assert_eq!(reason(&decide_as(&none_yet, "issues", &head("/m.M/None", None))), "POLICY_UNAVAILABLE");
    let empty = State { policy: Some(Arc::new(Policy::empty())), ..state(&record()) };
    assert_eq!(reason(&decide_as(&empty, "issues", &head("/m.M/None", None))), "PATH_NOT_ALLOWED");
}

#[test]
fn before_the_first_snapshot_of_tenants_only_calls_without_one_pass() {
    let state = state(&record());
    for (path, tenant, expected) in [
        ("/m.M/Required", Some("acme"), "TCS_UNAVAILABLE"),
        ("/m.M/Required", None, "TENANT_REQUIRED"),
        ("/m.M/Required", Some("Not-An-Id"), "TENANT_UNKNOWN"),
        ("/m.M/Optional", Some("acme"), "TCS_UNAVAILABLE"),
        ("/m.M/Optional", None, ""),
        ("/m.M/None", Some("acme"), ""),
    ] {
        let head = Head { tenant_revision: Some("5.99"), ..head(path, tenant) };
        let outcome =
            decide(&state, &Held::nothing_yet(), &mut Tokens, Peer::Service("issues"), &head, NOW, Waited::FOR_ALL);
        assert_eq!(reason(&outcome), expected, "{path} for {tenant:?}");
    }
}

#[test]
fn a_revision_that_the_replica_lacks_is_waited_for_once() {
    let state = state(&record());
    for (seen, first, then) in [
        ("5.10", "", ""),
        ("5.9", "", ""),
        ("4.99", "", ""),
        ("5.11", "(wait)", "TENANT_STALE"),
        ("6.1", "(wait)", "TENANT_STALE"),
        ("", "TENANT_STALE", "TENANT_STALE"),
        ("10", "TENANT_STALE", "TENANT_STALE"),
        ("5.010", "TENANT_STALE", "TENANT_STALE"),
    ] {
        for (waited, expected) in [(false, first), (true, then)] {
            let head = Head { tenant_revision: Some(seen), ..head("/m.M/Required", Some("acme")) };
            let so_far = Waited { for_revision: waited, for_tenant: false };
            let outcome = decide(&state, &tenants(), &mut Tokens, Peer::Service("issues"), &head, NOW, so_far);
            assert_eq!(reason(&outcome), expected, "{seen}, waited: {waited}");
            if let Err(Stop::WaitFor(position)) = outcome {
                assert_eq!(position.to_string(), seen);
            }
        }
    }
}

#[test]
fn freshness_concerns_only_calls_whose_tenant_is_looked_at() {
    let state = state(&record());
    for (path, tenant) in [("/m.M/None", Some("acme")), ("/m.M/Optional", None)] {
        for seen in ["9.9", "broken"] {
            let outcome = decide_as(&state, "issues", &Head { tenant_revision: Some(seen), ..head(path, tenant) });
            assert_eq!(reason(&outcome), "", "{path} {seen}");
        }
    }
}

#[test]
fn residency_needs_a_region_and_any_needs_none() {
    let nowhere = State { region: None, ..state(&record()) };
    assert_eq!(reason(&decide_as(&nowhere, "issues", &head("/m.M/Required", Some("acme")))), "TENANT_WRONG_REGION");
    assert_eq!(reason(&decide_as(&nowhere, "issues", &head("/m.M/Required", Some("homeless")))), "TENANT_WRONG_REGION");
    let any = policy::ServicePolicy { residency: policy::Residency::Any.into(), ..record() };
    let any = State { region: None, ..state(&any) };
    for tenant in ["acme", "european", "homeless"] {
        assert_eq!(reason(&decide_as(&any, "issues", &head("/m.M/Required", Some(tenant)))), "", "{tenant}");
    }
}

#[test]
fn a_platform_service_asks_for_no_product() {
    let platform = state(&policy::ServicePolicy { product: String::new(), ..record() });
    for tenant in ["acme", "without-product", "inactive", "product-suspended", "expired"] {
        assert_eq!(reason(&decide_as(&platform, "issues", &head("/m.M/Required", Some(tenant)))), "", "{tenant}");
    }
    assert_eq!(reason(&decide_as(&platform, "issues", &head("/m.M/Required", Some("suspended")))), "TENANT_SUSPENDED");
}

#[test]
fn freshness_is_asked_after_the_transaction_token_and_before_the_tenant() {
    let state = state(&record());
    for (path, tenant, expected) in [
        ("/m.M/Proof", "nobody", "TXN_MISSING"),
        ("/m.M/Required", "nobody", "(wait)"),
        ("/m.M/Other", "nobody", "PATH_NOT_ALLOWED"),
    ] {
        let outcome = decide_as(&state, "issues", &Head { tenant_revision: Some("5.11"), ..head(path, Some(tenant)) });
        assert_eq!(reason(&outcome), expected, "{path}");
    }
}

/// A cache that holds one tenant, as it was at 5.4, and has to ask for all others.
struct Cache(Arc<Tenant>);

impl Tenants for Cache {
    type Ref = Arc<Tenant>;

    fn position(&self) -> Option<Position> {
        Some(REACHED)
    }

    fn get(&self, id: &str) -> Lookup<Arc<Tenant>> {
        if id == self.0.id() { Lookup::Found(Arc::clone(&self.0)) } else { Lookup::NotHeld }
    }

    fn by_host(&self, _host: &str) -> Lookup<Arc<Tenant>> {
        Lookup::NotHeld
    }

    fn as_of(&self, _tenant: &Arc<Tenant>) -> Option<Position> {
        Some(Position { epoch: 5, revision: 4 })
    }
}

#[test]
fn a_tenant_that_is_not_held_is_asked_for_once() {
    let (state, cache) = (state(&record()), Cache(Arc::new(tenant("acme", |_| {}))));
    for (path, tenant, seen, first, then) in [
        ("/m.M/Required", "acme", None, "", ""),
        ("/m.M/Required", "acme", Some("5.4"), "", ""),
        ("/m.M/Required", "acme", Some("5.5"), "(resolve)", "TENANT_STALE"),
        ("/m.M/Required", "globex", None, "(resolve)", "TCS_UNAVAILABLE"),
        ("/m.M/Optional", "globex", None, "(resolve)", "TCS_UNAVAILABLE"),
        ("/m.M/Audit", "globex", None, "(resolve)", ""),
        ("/m.M/None", "globex", None, "", ""),
        ("/m.M/Required", "Not-An-Id", None, "TENANT_UNKNOWN", "TENANT_UNKNOWN"),
    ] {
        for (for_tenant, expected) in [(false, first), (true, then)] {
            let (head, waited) =
                (Head { tenant_revision: seen, ..head(path, Some(tenant)) }, Waited { for_revision: true, for_tenant });
            let outcome = decide(&state, &cache, &mut Tokens, Peer::Service("issues"), &head, NOW, waited);
            assert_eq!(reason(&outcome), expected, "{path} for {tenant} seen at {seen:?}, asked: {for_tenant}");
            if let Err(Stop::Resolve(wanted)) = outcome {
                assert_eq!(wanted, Wanted::Id(tenant.parse().unwrap()));
            }
        }
    }
}
