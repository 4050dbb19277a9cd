use tenon_proto::tcs::v1 as tcs;

use super::*;

const NOW: u64 = 1_000;

fn rule(name: &str, callers: &[&str], path: &str) -> proto::Rule {
    proto::Rule {
        allowlist: "media-clients".into(),
        name: name.into(),
        callers: callers.iter().map(ToString::to_string).collect(),
        paths: vec![path.into()],
        source: "media.yaml:7".into(),
        ..Default::default()
    }
}

fn service(name: &str) -> proto::ServicePolicy {
    proto::ServicePolicy { service: name.into(), originates: true, ..Default::default() }
}

fn client(name: &str) -> proto::ExternalClient {
    proto::ExternalClient { name: name.into(), issuer: name.into(), ..Default::default() }
}

fn policies() -> Vec<proto::ServicePolicy> {
    let proof = proto::Proof::Transaction.into();
    let none = proto::TenantRequirement::None.into();
    let media = proto::ServicePolicy {
        product: "media".into(),
        residency: proto::Residency::Home.into(),
        rules: vec![
            rule("read", &["issues", "search"], "/media.v1.Media/Get"),
            proto::Rule { tenant: none, ..rule("health", &["*"], "/grpc.health.v1.Health/*") },
            proto::Rule { audit: true, ..rule("trial", &["issues"], "/media.v1.Media/Upload") },
            rule("partner", &["partner"], "/media.v1.Media/Import"),
            proto::Rule { proof, ..rule("proof", &["issues"], "/media.v1.Media/Erase") },
            proto::Rule { proof, tenant: none, ..rule("any-proof", &["issues"], "/media.v1.Media/Count") },
        ],
        external_clients: vec![client("partner")],
        ..service("media")
    };
    let wiki = proto::ServicePolicy {
        audit_allowlist: "wiki-clients".into(),
        rules: vec![rule("feed", &["reader"], "/wiki.v1.Wiki/Feed")],
        external_clients: vec![client("reader")],
        ..service("wiki")
    };
    let search = proto::ServicePolicy { originates: false, ..service("search") };
    vec![media, wiki, search, service("issues")]
}

fn tenants() -> Vec<TenantContext> {
    let tenant = |id: &str, status: tcs::tenant_context::Status, region: &str| {
        let media = tcs::Product { state: tcs::product::State::Active.into(), ..Default::default() };
        TenantContext {
            tenant_id: id.into(),
            status: status.into(),
            region: region.into(),
            products: [("media".to_owned(), media)].into(),
            ..Default::default()
        }
    };
    vec![
        tenant("acme", tcs::tenant_context::Status::Active, "us-east"),
        tenant("globex", tcs::tenant_context::Status::Suspended, "us-east"),
    ]
}

fn mesh(tenants: Option<Vec<TenantContext>>) -> Mesh {
    let policies = policies();
    let routes: Vec<_> = policies
        .iter()
        .map(|policy| proto::Route {
            service: policy.service.clone(),
            product: policy.product.clone(),
            residency: policy.residency,
            ..Default::default()
        })
        .collect();
    Mesh::new(&policies, &routes, [], tenants).unwrap()
}

fn call<'a>(caller: &'a str, service: &'a str, path: &'a str, tenant: Option<&'a str>) -> Call<'a> {
    Call { caller, service, path, tenant, region: None, transaction: None }
}

fn reason(explanation: &Explanation) -> &'static str {
    explanation.reason.map_or("ALLOWED", Reason::as_str)
}

#[test]
fn calls_are_explained_by_the_rule_that_decided() {
    let mesh = mesh(Some(tenants()));
    for (caller, service, path, tenant, expected, rule) in [
        ("issues", "media", "/media.v1.Media/Get", Some("acme"), "ALLOWED", Some("read")),
        ("issues", "media", "/media.v1.Media/Get", Some("globex"), "TENANT_SUSPENDED", Some("read")),
        ("issues", "media", "/media.v1.Media/Get", Some("nobody"), "TENANT_UNKNOWN", Some("read")),
        ("issues", "media", "/media.v1.Media/Get", None, "TENANT_REQUIRED", Some("read")),
        ("issues", "media", "/media.v1.Media/Get", Some("No Id"), "TENANT_UNKNOWN", None),
        ("wiki", "media", "/media.v1.Media/Get", Some("acme"), "PATH_NOT_ALLOWED", None),
        ("wiki", "media", "/grpc.health.v1.Health/Check", None, "ALLOWED", Some("health")),
        ("issues", "search", "/search.v1.Search/Query", Some("acme"), "PATH_NOT_ALLOWED", None),
        ("issues", "nobody", "/x.v1.X/Y", None, "SERVICE_UNKNOWN", None),
    ] {
        let explanation = mesh.explain(&call(caller, service, path, tenant), NOW).unwrap();
        assert_eq!((reason(&explanation), explanation.rule.as_deref()), (expected, rule), "{caller} {path} {tenant:?}");
        assert_eq!(explanation.allowed, expected == "ALLOWED");
        assert_eq!(explanation.allowlist.as_deref(), rule.map(|_| "media-clients"));
        assert_eq!(explanation.source.as_deref(), rule.map(|_| "media.yaml:7"));
        assert_eq!(explanation.message.is_some(), !explanation.allowed);
        assert_eq!(explanation.assumed, [""; 0]);
    }
}

#[test]
fn the_region_is_the_instances_and_without_one_residency_is_satisfied() {
    let mesh = mesh(Some(tenants()));
    for (region, expected) in
        [(None, "ALLOWED"), (Some("us-east"), "ALLOWED"), (Some("eu-west"), "TENANT_WRONG_REGION")]
    {
        let call = Call { region, ..call("issues", "media", "/media.v1.Media/Get", Some("acme")) };
        assert_eq!(reason(&mesh.explain(&call, NOW).unwrap()), expected, "{region:?}");
    }
}

#[test]
fn a_refused_path_comes_with_the_nearest_rule() {
    let explanation = mesh(None).explain(&call("wiki", "media", "/media.v1.Media/Get", None), NOW).unwrap();
    let nearest = explanation.nearest.unwrap();
    assert_eq!((nearest.rule.as_str(), nearest.missed.as_str()), ("read", "caller"));
}

#[test]
fn audit_mode_allows_and_says_what_enforcing_would_refuse() {
    let mesh = mesh(Some(tenants()));
    let trial = mesh.explain(&call("issues", "media", "/media.v1.Media/Upload", Some("globex")), NOW).unwrap();
    assert_eq!((trial.allowed, trial.reason, trial.audited), (true, None, Some(Reason::TenantSuspended)));
    assert_eq!(trial.rule.as_deref(), Some("trial"));
    let open = mesh.explain(&call("issues", "wiki", "/wiki.v1.Wiki/Get", None), NOW).unwrap();
    assert_eq!((open.allowed, open.audited), (true, Some(Reason::PathNotAllowed)));
    assert_eq!((open.allowlist.as_deref(), open.rule), (Some("wiki-clients"), None));
}

#[test]
fn without_tenants_the_named_one_is_assumed_servable_and_that_is_said() {
    let mesh = mesh(None);
    for region in [None, Some("eu-west")] {
        let call = Call { region, ..call("issues", "media", "/media.v1.Media/Get", Some("anyone")) };
        let explanation = mesh.explain(&call, NOW).unwrap();
        assert_eq!((reason(&explanation), explanation.rule.as_deref()), ("ALLOWED", Some("read")), "{region:?}");
        assert_eq!(explanation.assumed.len(), 1);
    }
    let broken = mesh.explain(&call("issues", "media", "/media.v1.Media/Get", Some("No Id")), NOW).unwrap();
    assert_eq!((reason(&broken), broken.assumed.len()), ("TENANT_UNKNOWN", 0));
    let nobody = mesh.explain(&call("issues", "media", "/media.v1.Media/Get", None), NOW).unwrap();
    assert_eq!((reason(&nobody), nobody.assumed.len()), ("TENANT_REQUIRED", 0));
}

#[test]
fn a_service_that_does_not_originate_is_assumed_to_serve_the_tenant() {
    let mesh = mesh(Some(tenants()));
    let explanation = mesh.explain(&call("search", "media", "/media.v1.Media/Get", Some("acme")), NOW).unwrap();
    assert_eq!(reason(&explanation), "ALLOWED");
    assert_eq!(explanation.assumed, ["search is serving tenant acme at the moment (originates: false)"]);
}

#[test]
fn quarantine_is_explained_in_both_directions() {
    let policies = policies();
    let routes = ["media", "issues"].map(|name| proto::Route { service: name.into(), ..Default::default() });
    for cut_off in ["issues", "media"] {
        let quarantine = proto::Quarantine { service: cut_off.into(), reason: "leak".into() };
        let mesh = Mesh::new(&policies, &routes, [&quarantine], Some(tenants())).unwrap();
        let explanation = mesh.explain(&call("issues", "media", "/media.v1.Media/Get", Some("acme")), NOW).unwrap();
        assert_eq!(reason(&explanation), "QUARANTINED", "{cut_off}");
    }
}

#[test]
fn what_is_no_name_is_an_error_and_no_answer() {
    let mesh = mesh(None);
    let good = call("issues", "media", "/media.v1.Media/Get", None);
    assert!(mesh.explain(&good, NOW).is_ok());
    assert!(mesh.explain(&Call { caller: "*", ..good }, NOW).is_err());
    assert!(mesh.explain(&Call { service: "media.eu-west", ..good }, NOW).is_err());
    assert!(mesh.explain(&Call { region: Some("EU"), ..good }, NOW).is_err());
}

#[test]
fn a_client_outside_of_the_mesh_is_asked_nothing_but_what_the_callee_asks() {
    let mesh = mesh(Some(tenants()));
    for (caller, service, path, tenant, expected) in [
        ("partner", "media", "/media.v1.Media/Import", Some("acme"), "ALLOWED"),
        ("partner", "media", "/media.v1.Media/Import", None, "TENANT_REQUIRED"),
        ("partner", "media", "/media.v1.Media/Import", Some("globex"), "TENANT_SUSPENDED"),
        ("partner", "media", "/media.v1.Media/Import", Some("No Id"), "TENANT_UNKNOWN"),
        ("partner", "media", "/media.v1.Media/Get", Some("acme"), "PATH_NOT_ALLOWED"),
        // "*" is any service of the mesh.
        ("partner", "media", "/grpc.health.v1.Health/Check", None, "PATH_NOT_ALLOWED"),
        ("partner", "nobody", "/x.v1.X/Y", None, "SERVICE_UNKNOWN"),
        // Known to another service, in whose sidecar alone it has a name.
        ("partner", "wiki", "/wiki.v1.Wiki/Get", None, "PATH_NOT_ALLOWED"),
        // Audit mode is for services.
        ("reader", "wiki", "/wiki.v1.Wiki/Get", None, "PATH_NOT_ALLOWED"),
        ("reader", "wiki", "/wiki.v1.Wiki/Feed", Some("acme"), "ALLOWED"),
    ] {
        let explanation = mesh.explain(&call(caller, service, path, tenant), NOW).unwrap();
        assert_eq!(reason(&explanation), expected, "{caller} {service} {path} {tenant:?}");
    }
}

#[test]
fn a_caller_that_nobody_defines_is_refused_also_where_a_rule_allows_everybody_or_audit_mode_does() {
    let mesh = mesh(Some(tenants()));
    for (service, path, expected) in [
        ("media", "/grpc.health.v1.Health/Check", "PATH_NOT_ALLOWED"),
        ("media", "/media.v1.Media/Get", "PATH_NOT_ALLOWED"),
        ("wiki", "/wiki.v1.Wiki/Get", "PATH_NOT_ALLOWED"),
        ("nobody", "/x.v1.X/Y", "SERVICE_UNKNOWN"),
    ] {
        let explanation = mesh.explain(&call("stranger", service, path, None), NOW).unwrap();
        assert_eq!((reason(&explanation), explanation.allowed), (expected, false), "{service} {path}");
        let message = explanation.message.unwrap();
        assert_eq!(message.contains("stranger is neither a service"), expected == "PATH_NOT_ALLOWED", "{message}");
    }
}

#[test]
fn a_rule_that_wants_a_proof_is_explained_with_the_token_that_the_call_is_said_to_carry() {
    let mesh = mesh(Some(tenants()));
    let of = |tenant| Some(TransactionToken { tenant });
    for (path, transaction, expected) in [
        ("/media.v1.Media/Erase", None, "TXN_MISSING"),
        ("/media.v1.Media/Erase", of(Some("acme")), "ALLOWED"),
        ("/media.v1.Media/Erase", of(Some("globex")), "TXN_TENANT_MISMATCH"),
        ("/media.v1.Media/Erase", of(None), "TXN_TENANT_MISMATCH"),
        ("/media.v1.Media/Count", None, "TXN_MISSING"),
        ("/media.v1.Media/Count", of(Some("globex")), "ALLOWED"),
        ("/media.v1.Media/Get", of(Some("globex")), "ALLOWED"),
    ] {
        let call = Call { transaction, ..call("issues", "media", path, Some("acme")) };
        assert_eq!(reason(&mesh.explain(&call, NOW).unwrap()), expected, "{path} {transaction:?}");
    }
}

mod proposals;
