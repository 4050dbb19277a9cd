//! Policies of any size, and calls that they allow.

use std::sync::Arc;

use prost::Message as _;
use sidecar_core::{
    Named, Peer, Position, Proven, Token, inbound,
    policy::Policy,
    tenancy::{Held, Tenant},
};
use tenon_proto::{policy::v1 as proto, tcs::v1 as tcs};

/// Calls and tenants: more than fit the nearest cache.
const CALLS: usize = 8_192;
const TENANTS: usize = 10_000;

/// One sidecar's state, and calls that its rules allow.
pub struct Mesh {
    state: inbound::State,
    tenants: Held,
    calls: Vec<Call>,
}

struct Call {
    caller: String,
    path: String,
    tenant: String,
}

impl Mesh {
    /// A service with so many rules, as [`record`] writes them.
    pub fn new(rules: usize) -> Self {
        let wiki = proto::Quarantine { service: "wiki".into(), reason: String::new() };
        let state = inbound::State {
            me: "media".parse().expect("a service"),
            region: Some("us-east".parse().expect("a region")),
            policy: Some(Arc::new(Policy::try_from(&record("media", rules)).expect("a policy"))),
            quarantined: [&wiki].into_iter().collect(),
            policy_position: None,
        };
        let tenants = Held::snapshot(Position { epoch: 1, revision: 9 }, (0..TENANTS).map(tenant));
        Mesh { state, tenants, calls: (0..CALLS).map(|index| call(scattered(index), rules)).collect() }
    }

    /// Looks at what the call names, as a proxy has that has just read its head.
    pub fn read(&self, index: usize) {
        let call = &self.calls[index % CALLS];
        let bytes = [&call.caller, &call.path, &call.tenant].into_iter().flat_map(|text| text.bytes());
        std::hint::black_box(bytes.fold(0, u8::wrapping_add));
    }

    /// Decides one of the calls.
    pub fn decide(&self, index: usize) -> inbound::Verdict<Arc<Tenant>> {
        let call = &self.calls[index % CALLS];
        let head = inbound::Head {
            path: &call.path,
            token: Token::One(b"token"),
            tenant: Named::One(&call.tenant),
            tenant_revision: Some("1.5"),
            txn_token: Named::None,
        };
        let (peer, waited) = (Peer::Service(&call.caller), inbound::Waited::default());
        inbound::decide(&self.state, &self.tenants, &mut Proven::default(), peer, &head, 1_000, waited)
            .expect("every call is allowed")
    }
}

/// The same for the same index, and far apart for near ones.
fn scattered(index: usize) -> usize {
    (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 20
}

/// A service whose rules have three callers and two paths each, one of them a wildcard, and in every tenth rule tenant
/// conditions.
pub fn record(service: &str, rules: usize) -> proto::ServicePolicy {
    proto::ServicePolicy {
        service: service.into(),
        product: "media".into(),
        residency: proto::Residency::Home.into(),
        rules: (0..rules).map(rule).collect(),
        ..Default::default()
    }
}

fn rule(index: usize) -> proto::Rule {
    let conditions = proto::TenantConditions {
        editions: vec!["premium".into(), "enterprise".into()],
        features: vec!["export".into()],
        regions: vec!["us-east".into()],
        ..Default::default()
    };
    proto::Rule {
        allowlist: "media".into(),
        name: format!("rule-{index}"),
        source: format!("services/media.yaml:{index}"),
        callers: [index, index + 1, index + 2].map(|caller| format!("service-{}", caller % 1_000)).into(),
        paths: vec![format!("/media.v{index}.Media/Get"), format!("/media.v{index}.Thumbnails/*")],
        tenants: index.is_multiple_of(10).then_some(conditions),
        ..Default::default()
    }
}

/// A service with so many rules that have so many callers and paths each, half of them those of the next rule as well.
pub fn wide(rules: usize, callers: usize, paths: usize) -> proto::ServicePolicy {
    let rule = |rule: usize| proto::Rule {
        allowlist: "media".into(),
        name: format!("rule-{rule}"),
        callers: (0..callers).map(|caller| format!("service-{}", rule * callers / 2 + caller)).collect(),
        paths: (0..paths).map(|path| format!("/media.v1.Media/Method{}", rule * paths / 2 + path)).collect(),
        ..Default::default()
    };
    proto::ServicePolicy { service: "media".into(), rules: (0..rules).map(rule).collect(), ..Default::default() }
}

fn call(index: usize, rules: usize) -> Call {
    let rule = index % rules;
    let method = if index.is_multiple_of(2) { "Media/Get" } else { "Thumbnails/List" };
    Call {
        caller: format!("service-{}", (rule + index % 3) % 1_000),
        path: format!("/media.v{rule}.{method}"),
        tenant: format!("tenant-{}", index % TENANTS),
    }
}

fn tenant(index: usize) -> Tenant {
    let media = tcs::Product {
        state: tcs::product::State::Active.into(),
        edition: "premium".into(),
        features: vec!["import".into(), "export".into()],
        ..Default::default()
    };
    let context = tcs::TenantContext {
        tenant_id: format!("tenant-{index}"),
        revision: 5,
        status: tcs::tenant_context::Status::Active.into(),
        region: "us-east".into(),
        products: [("media".to_owned(), media)].into(),
        ..Default::default()
    };
    Tenant::decode(context.encode_to_vec()).expect("a tenant context")
}
