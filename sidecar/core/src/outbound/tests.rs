use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tenon_proto::{policy::v1 as policy, tcs::v1 as tcs};

use super::*;
use crate::tenancy::Held;

const REACHED: Position = Position { epoch: 5, revision: 10 };

fn tenants() -> Held {
    let tenant = |id: &str, region: &str, revision| {
        let context = tcs::TenantContext {
            tenant_id: id.into(),
            revision,
            status: tcs::tenant_context::Status::Active.into(),
            hosts: vec![format!("{id}.example")],
            region: region.into(),
            ..Default::default()
        };
        Tenant::decode(Bytes::from(context.encode_to_vec())).unwrap()
    };
    Held::snapshot(REACHED, [tenant("acme", "eu-west", 3), tenant("umbrella", "us-east", 4), tenant("moon", "luna", 5)])
}

/// `media` keeps residency and runs in both regions, `search` does not; `crm` runs nowhere.
fn destinations() -> Destinations {
    let route = |service: &str, residency: policy::Residency| policy::Route {
        service: service.into(),
        product: String::new(),
        residency: residency.into(),
        ..Default::default()
    };
    let endpoint = |service: &str, region: &str, address: &str| policy::Endpoint {
        service: service.into(),
        region: region.into(),
        zone: String::new(),
        address: address.into(),
        lease: None,
    };
    let routes = [
        route("media", policy::Residency::Home),
        route("search", policy::Residency::Any),
        route("crm", policy::Residency::Any),
        route("wiki", policy::Residency::Any),
    ];
    let endpoints = [
        endpoint("media", "us-east", "10.0.0.1:1"),
        endpoint("media", "eu-west", "10.0.0.2:1"),
        endpoint("search", "us-east", "10.0.0.3:1"),
        endpoint("search", "eu-west", "10.0.0.4:1"),
        endpoint("wiki", "us-east", "10.0.0.5:1"),
    ];
    let region = "us-east".parse().unwrap();
    let (destinations, problems) = Destinations::build(&routes, &endpoints, (Some(&region), None), None);
    assert_eq!(problems, [""; 0]);
    destinations
}

fn state() -> State {
    let wiki = policy::Quarantine { service: "wiki".into(), reason: String::new() };
    State {
        me: "issues".parse().unwrap(),
        region: Some("us-east".parse().unwrap()),
        zone: None,
        originates: true,
        quarantined: [&wiki].into_iter().collect(),
        destinations: Some(destinations()),
    }
}

fn head<'a>(authority: &'a str, tenant: Option<&'a str>) -> Head<'a> {
    Head { authority, tenant_ids: tenant.map_or(Named::None, Named::One), tenant_hosts: Named::None }
}

type Outcome<'s> = Result<Verdict<'s, Arc<Tenant>>, Stop>;

fn decide_for<'s>(state: &'s State, head: &Head<'_>) -> Outcome<'s> {
    decide(state, &tenants(), head, |_| false, false)
}

/// Where the call would go: the addresses in the order in which they would be tried, or the reason.
fn goes_to(outcome: &Outcome<'_>) -> String {
    match outcome {
        Ok(verdict) => {
            let mut candidates = verdict.candidates.clone();
            let addresses: Vec<_> = std::iter::from_fn(|| candidates.next(0)).map(|e| e.address.to_string()).collect();
            addresses.join(" ")
        }
        Err(Stop::Refused(refusal)) => refusal.reason.to_string(),
        Err(Stop::Resolve(_)) => "(resolve)".to_owned(),
    }
}

#[test]
fn the_authority_names_a_service_and_perhaps_a_region() {
    let state = state();
    for (authority, expected) in [
        ("search", "10.0.0.3:1 10.0.0.4:1"),
        ("search:443", "10.0.0.3:1 10.0.0.4:1"),
        ("search.eu-west", "10.0.0.4:1"),
        ("search.eu-west:50051", "10.0.0.4:1"),
        ("search.luna", "NO_ENDPOINT"),
        ("search.", "NO_ENDPOINT"),
        ("search.eu-west.example", "NO_ENDPOINT"),
        ("crm", "NO_ENDPOINT"),
        ("crm.us-east", "NO_ENDPOINT"),
        ("nobody", "SERVICE_UNKNOWN"),
        ("Search", "SERVICE_UNKNOWN"),
        ("", "SERVICE_UNKNOWN"),
        (":443", "SERVICE_UNKNOWN"),
        ("search:http", "SERVICE_UNKNOWN"),
        ("app@search", "SERVICE_UNKNOWN"),
        ("[::1]:443", "SERVICE_UNKNOWN"),
        ("wiki", "QUARANTINED"),
    ] {
        assert_eq!(goes_to(&decide_for(&state, &head(authority, None))), expected, "{authority}");
    }
}

#[test]
fn a_quarantined_app_calls_nobody() {
    let state = State { me: "wiki".parse().unwrap(), ..state() };
    assert_eq!(goes_to(&decide_for(&state, &head("search", None))), "QUARANTINED");
    assert_eq!(goes_to(&decide_for(&state, &head("nobody", None))), "SERVICE_UNKNOWN");
}

#[test]
fn residency_sends_a_tenants_calls_home_unless_the_authority_pins_a_region() {
    let state = state();
    for (authority, tenant, expected) in [
        ("media", Some("acme"), "10.0.0.2:1"),
        ("media", Some("umbrella"), "10.0.0.1:1"),
        ("media", Some("moon"), "NO_ENDPOINT"),
        ("media", Some("nobody"), "10.0.0.1:1 10.0.0.2:1"),
        ("media", None, "10.0.0.1:1 10.0.0.2:1"),
        ("media.us-east", Some("acme"), "10.0.0.1:1"),
        ("media.eu-west", Some("moon"), "10.0.0.2:1"),
        ("search", Some("acme"), "10.0.0.3:1 10.0.0.4:1"),
        ("search", Some("moon"), "10.0.0.3:1 10.0.0.4:1"),
    ] {
        assert_eq!(goes_to(&decide_for(&state, &head(authority, tenant))), expected, "{authority} for {tenant:?}");
    }
}

#[test]
fn a_tenant_is_named_once_by_id_or_by_host() {
    use Named::{Many, None as No, One};
    let state = state();
    for (tenant_ids, tenant_hosts, expected) in [
        (No, No, Ok(None)),
        (One("acme"), No, Ok(Some(("acme", Some("5.3"))))),
        (No, One("acme.example"), Ok(Some(("acme", Some("5.3"))))),
        (No, One("ACME.Example"), Ok(Some(("acme", Some("5.3"))))),
        (One("nobody"), No, Ok(Some(("nobody", None)))),
        (One("Not-An-Id"), No, Err("TENANT_UNKNOWN")),
        (One(""), No, Err("TENANT_UNKNOWN")),
        (No, One("nobody.example"), Err("TENANT_UNKNOWN")),
        (No, One(""), Err("TENANT_UNKNOWN")),
        (No, One("acme"), Err("TENANT_UNKNOWN")),
        (Many, No, Err("TENANT_AMBIGUOUS")),
        (No, Many, Err("TENANT_AMBIGUOUS")),
        (One("acme"), One("acme.example"), Err("TENANT_AMBIGUOUS")),
        (Many, Many, Err("TENANT_AMBIGUOUS")),
        (Many, One("acme.example"), Err("TENANT_AMBIGUOUS")),
        (One("acme"), Many, Err("TENANT_AMBIGUOUS")),
    ] {
        let outcome = decide_for(&state, &Head { authority: "search", tenant_ids, tenant_hosts });
        let found = outcome.map_err(|stop| Refusal::from(stop).reason.as_str()).map(|verdict| {
            let position = verdict.tenant.position().map(|position| position.to_string());
            verdict.tenant.id().map(|id| (id.to_owned(), position))
        });
        let expected = expected.map(|named| named.map(|(id, at)| (id.to_owned(), at.map(str::to_owned))));
        assert_eq!(found, expected, "{tenant_ids:?} {tenant_hosts:?}");
    }
}

#[test]
fn a_host_name_of_any_length_is_looked_up_or_unknown() {
    let long = "A".repeat(300);
    let head = Head { authority: "search", tenant_ids: Named::None, tenant_hosts: Named::One(&long) };
    assert_eq!(goes_to(&decide_for(&state(), &head)), "TENANT_UNKNOWN");
}

#[test]
fn before_the_first_snapshot_of_tenants_an_id_is_passed_on_and_a_host_cannot_be_found() {
    let state = state();
    let nothing = Held::nothing_yet();
    let outcome = decide(&state, &nothing, &head("search", Some("acme")), |_| false, true);
    assert_eq!(goes_to(&outcome), "10.0.0.3:1 10.0.0.4:1");
    let verdict = outcome.unwrap();
    assert_eq!((verdict.tenant.id(), verdict.tenant.position()), (Some("acme"), None));
    let by_host = Head { authority: "media", tenant_ids: Named::None, tenant_hosts: Named::One("acme.example") };
    assert_eq!(goes_to(&decide(&state, &nothing, &by_host, |_| false, true)), "TCS_UNAVAILABLE");
}

#[test]
fn a_service_that_does_not_originate_calls_only_for_tenants_it_is_serving() {
    for (originates, tenant, expected) in [
        (true, Some("acme"), "10.0.0.3:1 10.0.0.4:1"),
        (false, Some("acme"), "TENANT_NOT_IN_FLIGHT"),
        (false, Some("umbrella"), "10.0.0.3:1 10.0.0.4:1"),
        (false, Some("nobody"), "TENANT_NOT_IN_FLIGHT"),
        (false, None, "10.0.0.3:1 10.0.0.4:1"),
    ] {
        let state = State { originates, ..state() };
        let outcome = decide(&state, &tenants(), &head("search", tenant), |id| id == "umbrella", false);
        assert_eq!(goes_to(&outcome), expected, "originates: {originates}, {tenant:?}");
    }
    let state = State { originates: false, ..state() };
    let by_host = Head { authority: "search", tenant_ids: Named::None, tenant_hosts: Named::One("acme.example") };
    assert_eq!(goes_to(&decide(&state, &tenants(), &by_host, |id| id == "umbrella", false)), "TENANT_NOT_IN_FLIGHT");
}

#[test]
fn before_the_first_routes_no_service_is_called_unknown() {
    let state = State { destinations: None, ..state() };
    assert_eq!(goes_to(&decide_for(&state, &head("search", None))), "POLICY_UNAVAILABLE");
}

#[test]
fn a_new_state_keeps_what_was_learned_about_an_endpoint() {
    let route = policy::Route { service: "media".into(), ..Default::default() };
    let endpoint = |address: &str| policy::Endpoint {
        service: "media".into(),
        region: "us-east".into(),
        zone: String::new(),
        address: address.into(),
        lease: None,
    };
    let (one, two) = (endpoint("10.0.0.1:1"), endpoint("10.0.0.2:1"));
    let (before, _) = Destinations::build([&route], [&one], (None, None), None);
    before.get("media").unwrap().endpoints().all()[0].load.connect_failed(0);
    let (after, _) = Destinations::build([&route], [&one, &two], (None, None), Some(&before));
    let available: Vec<_> =
        after.get("media").unwrap().endpoints().all().iter().map(|endpoint| endpoint.load.is_available(1)).collect();
    assert_eq!(available, [false, true]);
}

#[test]
fn an_instance_that_is_registered_and_in_the_policy_files_is_one_and_knows_best_where_it_is() {
    let route = policy::Route { service: "media".into(), ..Default::default() };
    let endpoint = |region: &str, lease: Option<policy::Lease>| policy::Endpoint {
        service: "media".into(),
        region: region.into(),
        zone: String::new(),
        address: "10.0.0.1:1".into(),
        lease,
    };
    let (listed, registered) = (endpoint("us-east", None), endpoint("eu-west", Some(policy::Lease::default())));
    for records in [[&listed, &registered], [&registered, &listed]] {
        let (destinations, problems) = Destinations::build([&route], records, (None, None), None);
        let [endpoint] = destinations.get("media").unwrap().endpoints().all() else { panic!("one endpoint") };
        assert_eq!((endpoint.region.as_str(), problems), ("eu-west", vec![]));
    }
}

#[test]
fn a_record_that_cannot_be_used_takes_no_other_with_it() {
    let route = |service: &str| policy::Route { service: service.into(), ..Default::default() };
    let endpoint = |region: &str, zone: &str, address: &str| policy::Endpoint {
        service: "media".into(),
        region: region.into(),
        zone: zone.into(),
        address: address.into(),
        lease: None,
    };
    let endpoints = [
        endpoint("us-east", "", "10.0.0.1:1"),
        endpoint("us-east", "", "localhost:1"),
        endpoint("US", "", "10.0.0.2:1"),
        endpoint("us-east", "Z", "10.0.0.3:1"),
    ];
    let (destinations, problems) =
        Destinations::build(&[route("media"), route("No.Name")], &endpoints, (None, None), None);
    assert_eq!(destinations.iter().count(), 1);
    assert_eq!(destinations.get("media").unwrap().endpoints().all().len(), 1);
    assert_eq!(problems.len(), 4, "{problems:?}");
}

/// A cache that holds one tenant, as it was in an older epoch, and has to ask for all others.
struct Cache(Held);

impl Tenants for Cache {
    type Ref = Arc<Tenant>;

    fn position(&self) -> Option<Position> {
        Some(REACHED)
    }

    fn get(&self, id: &str) -> Lookup<Arc<Tenant>> {
        if id == "acme" { self.0.get(id) } else { Lookup::NotHeld }
    }

    fn by_host(&self, _host: &str) -> Lookup<Arc<Tenant>> {
        Lookup::NotHeld
    }

    fn as_of(&self, _tenant: &Arc<Tenant>) -> Option<Position> {
        Some(Position { epoch: 4, revision: 900 })
    }
}

#[test]
fn a_tenant_that_cannot_be_asked_for_goes_nowhere_where_its_home_must_be_known() {
    let (state, cache) = (state(), Cache(tenants()));
    let (id, host) = (Named::One("globex"), Named::One("GLOBEX.example"));
    for (authority, tenant_ids, tenant_hosts, first, then) in [
        ("search", id, Named::None, "(resolve)", "10.0.0.3:1 10.0.0.4:1"),
        ("media", id, Named::None, "(resolve)", "TCS_UNAVAILABLE"),
        ("media.eu-west", id, Named::None, "(resolve)", "10.0.0.2:1"),
        ("search", Named::None, host, "(resolve)", "TCS_UNAVAILABLE"),
        ("search", Named::One("Not-An-Id"), Named::None, "TENANT_UNKNOWN", "TENANT_UNKNOWN"),
        ("search", Named::None, Named::One(""), "TENANT_UNKNOWN", "TENANT_UNKNOWN"),
        ("nobody", id, Named::None, "SERVICE_UNKNOWN", "SERVICE_UNKNOWN"),
    ] {
        for (asked, expected) in [(false, first), (true, then)] {
            let head = Head { authority, tenant_ids, tenant_hosts };
            let outcome = decide(&state, &cache, &head, |_| false, asked);
            assert_eq!(goes_to(&outcome), expected, "{authority} {tenant_ids:?} {tenant_hosts:?}, asked: {asked}");
            if let Err(Stop::Resolve(Wanted::Host(host))) = outcome {
                assert_eq!(&*host, "globex.example", "as the TCS knows it");
            }
        }
    }
    let own = State { originates: false, ..state };
    let outcome = decide(&own, &cache, &head("search", Some("globex")), |_| false, true);
    assert_eq!(goes_to(&outcome), "TENANT_NOT_IN_FLIGHT");
}

#[test]
fn a_record_of_an_older_epoch_is_not_said_to_be_of_the_present_one() {
    let (state, cache) = (state(), Cache(tenants()));
    let verdict = decide(&state, &cache, &head("search", Some("acme")), |_| false, false).unwrap();
    assert_eq!(verdict.tenant.position().unwrap().to_string(), "4.3");
}
