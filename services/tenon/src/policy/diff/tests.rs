use mesh_config::{SourceFile, parse};
use tenon_proto::policy::v1::{Flow, FlowTotal, flow::Decision};

use super::*;

const SERVICES: &str = "apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: demo}
spec: {trustDomain: demo.example, regions: [us-east]}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {product: media}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: issues}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: media}
spec:
  service: media
  mode: MODE
  rules:
";

const RULES: &str = "    - name: read
      callers: [wiki, issues]
      paths: [/media.v1.Media/Get, /media.v1.Media/List]
      tenant: optional
";

fn records(services: &str, rules: &str) -> Records {
    let text = format!("{}{rules}", services.replace("MODE", "enforce"));
    let files = [SourceFile { path: "mesh.yaml".into(), text }];
    compile(&parse(&files).unwrap_or_else(|problems| panic!("{problems}")))
}

fn in_force(records: &Records) -> DescribeResponse {
    DescribeResponse {
        services: records.allowlists.values().cloned().collect(),
        routes: records.routes.values().cloned().collect(),
        quarantines: records.quarantines.values().cloned().collect(),
        ..Default::default()
    }
}

fn flow(caller: &str, method: &str, decision: Decision, count: u64) -> FlowTotal {
    let path = if method.is_empty() { String::new() } else { format!("/media.v1.Media/{method}") };
    let reason = if decision == Decision::Allowed { "" } else { "TENANT_UNKNOWN" };
    let flow = Flow {
        caller: caller.into(),
        service: "media".into(),
        path,
        decision: decision.into(),
        reason: reason.into(),
        count,
    };
    FlowTotal { flow: Some(flow), first_unix_seconds: 1, last_unix_seconds: 2 }
}

fn refused(reason: &str) -> FlowTotal {
    let mut total = flow("wiki", "Get", Decision::Refused, 3);
    total.flow.as_mut().unwrap().reason = reason.into();
    total
}

fn record(flows: Vec<FlowTotal>) -> Record {
    Record { flows, from: 1_000, until: 2_000, silent_hours: 0 }
}

fn diff(old: &Records, new: &Records, flows: Vec<FlowTotal>) -> Diff {
    Diff::of(&in_force(old), new, &record(flows)).unwrap()
}

fn shown(changed: &[Changed]) -> Vec<String> {
    let line = |changed: &Changed| {
        let Call { caller, service, path } = &changed.call;
        format!("{}: {}", words::call(caller, service, path), changed.now.join(", "))
    };
    changed.iter().map(line).collect()
}

#[test]
fn a_flow_that_passed_and_that_no_rule_allows_any_more_is_newly_refused() {
    let old = records(SERVICES, RULES);
    let new = records(SERVICES, &RULES.replace("wiki, issues", "wiki"));
    let flows = vec![
        flow("issues", "Get", Decision::Allowed, 5),
        flow("issues", "Get", Decision::Refused, 2),
        // Its calls never passed, whatever the reason.
        flow("issues", "List", Decision::Refused, 3),
        flow("wiki", "Get", Decision::Allowed, 7),
        // Refused before and after.
        flow("wiki", "Erase", Decision::Refused, 1),
        flow("issues", "", Decision::Allowed, 4),
    ];
    let found = diff(&old, &new, flows);
    assert_eq!(shown(&found.refused), ["issues -> media /media.v1.Media/Get: PATH_NOT_ALLOWED"]);
    assert_eq!((found.refused[0].calls.passed(), found.refused[0].calls.all()), (5, 7));
    assert_eq!(found.refused[0].before, "rule read of allowlist media (mesh.yaml:28)");
    assert_eq!((found.may_be_refused.len(), found.allowed.len(), found.together), (0, 0, 4));
    let json = found.json(&record(Vec::new()));
    assert_eq!(
        (&json["newlyRefused"][0]["reason"], &json["newlyRefused"][0]["passed"]),
        (&"PATH_NOT_ALLOWED".into(), &5.into())
    );
}

#[test]
fn a_flow_that_was_refused_and_that_a_rule_now_allows_is_newly_allowed() {
    let old = records(SERVICES, RULES);
    let new = records(SERVICES, &RULES.replace("/List]", "/List, /media.v1.Media/Erase]"));
    let found = diff(&old, &new, vec![flow("wiki", "Erase", Decision::Refused, 1)]);
    assert_eq!(
        shown(&found.allowed),
        ["wiki -> media /media.v1.Media/Erase: rule read of allowlist media (mesh.yaml:28)"]
    );
    assert!(found.refused.is_empty());
}

#[test]
fn a_quarantine_and_a_service_that_is_gone_refuse_all_flows() {
    let old = records(SERVICES, RULES);
    let flows = || vec![flow("wiki", "Get", Decision::Allowed, 1)];
    let quarantine = "---\napiVersion: tenon.dev/v1\nkind: Quarantine\nmetadata: {name: q}\nspec: {services: [wiki]}\n";
    let new = records(SERVICES, &format!("{RULES}{quarantine}"));
    assert_eq!(shown(&diff(&old, &new, flows()).refused), ["wiki -> media /media.v1.Media/Get: QUARANTINED"]);
    let mut new = records(SERVICES, RULES);
    new.allowlists.remove("media");
    new.routes.remove("media");
    assert_eq!(shown(&diff(&old, &new, flows()).refused), ["wiki -> media /media.v1.Media/Get: SERVICE_UNKNOWN"]);
}

#[test]
fn what_a_rule_newly_asks_may_refuse_what_passed_and_what_it_no_longer_asks_may_not() {
    let old = records(SERVICES, RULES);
    for (rules, services, conditions) in [
        (RULES.replace("optional", "required"), SERVICES.to_owned(), "tenant: required"),
        (RULES.replace("optional", "none"), SERVICES.to_owned(), ""),
        (format!("{RULES}      proof: transaction\n"), SERVICES.to_owned(), "proof: transaction"),
        (format!("{RULES}      rate: {{perTenant: 5/m}}\n"), SERVICES.to_owned(), "rate: 5/m per tenant, burst 5"),
        (
            format!("{RULES}      tenants: {{regions: [us-east], ids: [acme, globex]}}\n"),
            SERVICES.to_owned(),
            "tenants: regions us-east, tenants: ids acme globex",
        ),
        (RULES.to_owned(), SERVICES.replace("{product: media}", "{residency: home}"), "residency: home"),
        (
            RULES.to_owned(),
            SERVICES.replace("name: wiki}\nspec: {}", "name: wiki}\nspec: {originates: false}"),
            "originates: false of wiki",
        ),
        (RULES.to_owned(), SERVICES.replace("product: media", "product: films"), "product: films"),
    ] {
        let new = records(&services, &rules);
        let there = diff(&old, &new, vec![flow("wiki", "Get", Decision::Allowed, 1)]);
        let found: Vec<_> = there.may_be_refused.iter().map(|changed| changed.now.join(", ")).collect();
        assert_eq!(found.join("; "), conditions);
        assert!(there.refused.is_empty() && there.allowed.is_empty());
        if !rules.contains("none") && !services.contains("films") {
            let back = diff(&new, &old, vec![flow("wiki", "Get", Decision::Allowed, 1)]);
            let product = if services.contains("home") { vec!["product: media".to_owned()] } else { Vec::new() };
            assert_eq!(
                back.may_be_refused.iter().flat_map(|c| c.now.clone()).collect::<Vec<_>>(),
                product,
                "{conditions}"
            );
        }
    }
}

#[test]
fn what_calls_were_refused_for_and_a_rule_no_longer_asks_may_be_newly_allowed() {
    const PLACES: &str = "{product: media, residency: home}";
    let services = SERVICES.replace("{product: media}", PLACES).replace("regions: [us-east]", "regions: [us-east, eu]");
    let strict = RULES.replace("optional", "required")
        + "      proof: transaction
      rate: {perTenant: 5/m}
      tenants: {regions: [eu], ids: [acme]}
";
    let replaced = |what: &str, by: &str| (services.clone(), strict.replace(what, by));
    let no_tenant = strict.replace("required", "none").replace("      tenants: {regions: [eu], ids: [acme]}\n", "");
    let no_tenant = (services.replace(PLACES, "{}"), no_tenant.replace("      rate: {perTenant: 5/m}\n", ""));
    let audit = (services.replace("MODE", "audit"), strict.clone());
    let old = records(&services, &strict);
    for (reasons, (services, rules), conditions) in [
        (&["TENANT_REQUIRED"][..], replaced("required", "optional"), "tenant: required"),
        // An id that nobody knows is refused by `optional` as well.
        (&["TENANT_UNKNOWN"], replaced("required", "optional"), ""),
        (&["TENANT_REQUIRED"], no_tenant.clone(), "tenant: required"),
        (&["TENANT_UNKNOWN"], no_tenant.clone(), "tenant: required"),
        (&["TENANT_SUSPENDED"], audit.clone(), "tenant: required"),
        (&["TXN_TENANT_MISMATCH"], no_tenant.clone(), "tenant: required"),
        (&["TXN_MISSING"], no_tenant.clone(), ""),
        (&["TXN_MISSING", "TXN_EXPIRED"], replaced("      proof: transaction\n", ""), "proof: transaction"),
        (&["TXN_TENANT_MISMATCH"], replaced("      proof: transaction\n", ""), "proof: transaction"),
        (&["TENANT_RATE_LIMITED"], replaced("5/m", "6/m"), "rate: 5/m per tenant, burst 5"),
        (&["TENANT_RATE_LIMITED"], replaced("5/m", "4/m"), ""),
        (&["TENANT_NOT_ALLOWED"], replaced(", ids: [acme]", ""), "tenants: ids acme"),
        (&["TENANT_NOT_ALLOWED"], replaced("[eu]", "[eu, us-east]"), "tenants: regions eu"),
        (&["PRODUCT_NOT_LICENSED"], (services.replace(PLACES, "{residency: home}"), strict.clone()), "product: media"),
        (&["TENANT_WRONG_REGION"], (services.replace(PLACES, "{product: media}"), strict.clone()), "residency: home"),
        (&["TENANT_NOT_ALLOWED", "TENANT_REQUIRED"], audit, "tenant: required, tenants: regions eu, tenants: ids acme"),
        // Refused for something else.
        (&["TXN_MISSING", "TENANT_UNKNOWN", "PATH_NOT_ALLOWED"], replaced(", ids: [acme]", ""), ""),
        (&["TENANT_REQUIRED", "TXN_MISSING", "TENANT_NOT_ALLOWED"], (services.clone(), strict.clone()), ""),
    ] {
        let new = records(&services, &rules);
        let found = diff(&old, &new, reasons.iter().copied().map(refused).collect());
        let asked: Vec<_> = found.may_be_allowed.iter().map(|changed| changed.now.join(", ")).collect();
        assert_eq!(asked.join("; "), conditions, "{reasons:?}");
        assert!(found.refused.is_empty() && found.allowed.is_empty() && found.may_be_refused.is_empty());
        let json = found.json(&record(Vec::new()));
        if let Some(flow) = json["mayBeAllowed"].get(0) {
            let count = 3 * reasons.len();
            assert_eq!((&flow["count"], &flow["passed"]), (&count.into(), &0.into()));
            assert_eq!(flow["conditions"].as_array().unwrap().len(), conditions.split(", t").count());
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut out = Output::piped(crate::cli::Format::Table, file.reopen().unwrap());
        show(&mut out, &found, &record(Vec::new())).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.contains("no recorded call is decided otherwise"), conditions.is_empty(), "{text}");
    }
}

#[test]
fn a_caller_that_may_newly_not_originate_is_refused_whatever_the_rule_or_the_mode_of_the_callee() {
    let bound = |services: &str| services.replace("name: wiki}\nspec: {}", "name: wiki}\nspec: {originates: false}");
    let audit = SERVICES.replace("MODE", "audit");
    for (services, rules, method) in [
        (SERVICES, RULES.replace("optional", "none"), "Get"),
        (SERVICES, RULES.to_owned(), "Get"),
        (&audit, RULES.to_owned(), "Get"),
        (&audit, RULES.to_owned(), "Erase"),
    ] {
        let (old, new) = (records(services, &rules), records(&bound(services), &rules));
        let found = diff(&old, &new, vec![flow("wiki", method, Decision::Allowed, 1)]);
        let lines = [format!("wiki -> media /media.v1.Media/{method}: originates: false of wiki")];
        assert_eq!(shown(&found.may_be_refused), lines);
        let refusal = |reason: &str| {
            let mut total = refused(reason);
            total.flow.as_mut().unwrap().path = format!("/media.v1.Media/{method}");
            vec![total]
        };
        assert_eq!(shown(&diff(&new, &old, refusal("TENANT_NOT_IN_FLIGHT")).may_be_allowed), lines);
        assert_eq!(diff(&new, &old, refusal("TENANT_UNKNOWN")).may_be_allowed, []);
    }
}

#[test]
fn audit_mode_asks_nothing_so_that_enforcing_asks_everything() {
    let old = records(&SERVICES.replace("MODE", "audit"), RULES);
    let new = records(SERVICES, RULES);
    let flows = vec![flow("wiki", "Get", Decision::Audited, 1), flow("wiki", "Erase", Decision::Audited, 2)];
    let found = diff(&old, &new, flows.clone());
    assert_eq!(shown(&found.refused), ["wiki -> media /media.v1.Media/Erase: PATH_NOT_ALLOWED"]);
    assert_eq!(found.refused[0].before, "audit mode of allowlist media");
    assert_eq!(shown(&found.may_be_refused), ["wiki -> media /media.v1.Media/Get: tenant: optional, product: media"]);
    let back = diff(&new, &old, flows);
    assert_eq!((back.refused.len(), back.may_be_refused.len()), (0, 0));
}

#[test]
fn services_whose_records_differ_are_touched_and_what_is_for_all_is_named() {
    let old = records(SERVICES, RULES);
    let new = records(SERVICES, &RULES.replace("optional", "required"));
    assert_eq!(touched(&in_force(&old), &new), BTreeSet::from(["media"]));
    assert_eq!(touched(&in_force(&old), &old), BTreeSet::new());
    assert_eq!(for_all(&in_force(&old), &new), Vec::<&str>::new());
    let new = records(&SERVICES.replace("product: media", "residency: home"), RULES);
    assert_eq!(for_all(&in_force(&old), &new), ["routes"]);
    let mut signed = in_force(&old);
    signed.services[0].canary = Some(Default::default());
    assert_eq!(touched(&signed, &old), BTreeSet::new(), "a canary is no change of the policy");
}

#[test]
fn a_service_that_is_called_otherwise_is_told_with_what_changes() {
    let route = "---\napiVersion: tenon.dev/v1\nkind: Route\nmetadata: {name: media}\nspec: {service: media, timeout: {max: 5s}}\n";
    let (old, new) = (records(SERVICES, RULES), records(SERVICES, &format!("{RULES}{route}")));
    let longer = records(SERVICES, &format!("{RULES}{route}").replace("5s", "1m"));
    assert_eq!(for_all(&in_force(&old), &new), ["routes"]);
    assert_eq!(routes(&in_force(&old), &new), ["route media added"]);
    assert_eq!(routes(&in_force(&new), &longer), ["route media: timeout now default off max 1m"]);
    assert_eq!(routes(&in_force(&new), &new), Vec::<String>::new());
    assert_eq!(touched(&in_force(&old), &new), BTreeSet::new());
    let found = Diff { routes: routes(&in_force(&new), &old), ..diff(&new, &old, Vec::new()) };
    assert_eq!(found.json(&record(Vec::new()))["routes"], json!(["route media removed"]));
}

#[test]
fn what_sidecars_registered_is_no_part_of_a_policy() {
    let old = records(SERVICES, RULES);
    let mut described = in_force(&old);
    let lease = Some(tenon_proto::policy::v1::Lease::default());
    described.endpoints.push(tenon_proto::policy::v1::Endpoint { lease, ..Default::default() });
    assert_eq!(for_all(&described, &old), Vec::<&str>::new());
}
