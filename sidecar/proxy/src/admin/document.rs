//! Everything effective, nothing secret: one document for `GET /config` and for `tenon.admin.v1.Sidecar/Describe`.

use mesh_identity::Identity;
use serde_json::{Map, Value, json};
use sidecar_core::policy::{Policy, Residency};

use super::Admin;
use crate::{
    config::{Config, SvidFrom},
    live::Live,
    log_filter,
};

/// The document, as it is at this moment.
pub(super) fn document(admin: &Admin) -> Map<String, Value> {
    let mut document = Map::new();
    let mut extend = |part: Value| {
        if let Value::Object(part) = part {
            document.extend(part);
        }
    };
    extend(configuration(&admin.config));
    let snapshot = admin.snapshot();
    extend(json!({
        "svid": null,
        "membership": membership(admin),
        "missing": admin.missing(),
        "destinations": snapshot.destinations,
        "replicas": snapshot.replicas,
        "log": log_filter::current().map(|log| json!({"filter": log.filter, "untilUnixSeconds": log.until})),
    }));
    if let Some(live) = admin.live.load().as_ref() {
        extend(in_effect(live));
    }
    document
}

/// As the process was started.
fn configuration(config: &Config) -> Value {
    let (pin, workload_api) = match &config.svid_from {
        SvidFrom::IdentityService { pin, .. } => (Some(pin), None),
        SvidFrom::WorkloadApi(socket) => (None, Some(socket.to_string())),
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "service": config.service.as_str(),
        "trustDomain": config.trust_domain.as_str(),
        "region": config.region.as_ref().map(|region| region.as_str()),
        "zone": config.zone.as_ref().map(|zone| zone.as_str()),
        "app": config.app.as_ref().map(ToString::to_string),
        "appUids": config.app_uids,
        "outbound": config.outbound.to_string(),
        "inbound": config.inbound.to_string(),
        "admin": config.admin.to_string(),
        "advertise": config.advertise.map(|address| address.to_string()),
        "register": config.register,
        "identity": config.identity.to_string(),
        "tcs": config.tcs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tenants": config.tenants.as_str(),
        "tenantCacheBytes": config.tenants.cache_bytes(),
        "policy": config.policy.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "requireSigned": !config.require_signed.is_empty(),
        "trustBundleSha256": pin,
        "workloadApi": workload_api,
        "stateDir": config.state_dir.display().to_string(),
        "workers": config.workers,
        "settleMs": u64::try_from(config.settle.as_millis()).unwrap_or(u64::MAX),
        "drainSeconds": config.drain.as_secs(),
        "memoryLimitBytes": config.memory_limit,
        "accessLog": config.access_log.to_string(),
        "spans": config.spans.as_ref().map(|spans| json!({"otlp": spans.collector, "traceShare": spans.share})),
    })
}

fn membership(admin: &Admin) -> Option<Value> {
    admin.membership.load().as_ref().map(|membership| {
        let standing = membership.standing();
        json!({
            "instance": &**membership.instance(),
            "asapKey": membership.asap_key().borrow().kid().as_str(),
            "asapKeyCreated": standing.asap_key_created,
            "renewalError": standing.renewals.error,
            "confirmationError": standing.confirmations.error,
            "rekeyingError": standing.rekeyings.error,
            "stateError": standing.state_error,
        })
    })
}

/// What there is once the sidecar has joined.
fn in_effect(live: &Live) -> Value {
    let (inbound, gauges) = (live.inbound(), live.limits.gauges());
    let quarantines = live.quarantines().entries();
    // The operator's reasons are not for whoever reaches the listener.
    let quarantines: Vec<_> = quarantines.iter().map(|record| record.message.service.as_str()).collect();
    let (policy, tenants) = live.revisions();
    json!({
        "svid": svid(&live.identity),
        "roots": roots(&live.identity),
        "revisions": {
            "policy": policy.map(|position| position.to_string()),
            "tenants": tenants.map(|position| position.to_string()),
        },
        "allowlist": inbound.policy.as_deref().map(allowlist),
        "routes": routes(live),
        "quarantines": quarantines,
        "limits": {
            "concurrency": gauges.app.limit,
            "concurrencyEnforced": gauges.app.bites,
            "concurrencyInUse": gauges.app.in_use,
            "memoryUsedBytes": gauges.memory.0,
            "memoryLimitBytes": gauges.memory.1,
        },
        "rememberedDecisions": live.decisions.remembered(),
    })
}

fn svid(identity: &Identity) -> Value {
    let svid = identity.svid();
    json!({
        "spiffeId": svid.id().to_string(),
        "serial": svid.serial(),
        "notBefore": svid.not_before(),
        "notAfter": svid.not_after(),
    })
}

/// The trust bundle: what each root can be known by, and the pin of all of them.
fn roots(identity: &Identity) -> Value {
    let bundle = identity.bundle();
    json!({"count": bundle.roots().len(), "sha256": bundle.pin()})
}

/// Who may call this service: in short, since there may be many thousand rules.
fn allowlist(policy: &Policy) -> Value {
    json!({
        "rules": policy.rules().len(),
        "product": policy.product(),
        "residency": residency(policy.residency()),
        "originates": policy.originates(),
        "auditAllowlist": policy.audit_allowlist(),
    })
}

const fn residency(residency: Residency) -> &'static str {
    match residency {
        Residency::Any => "any",
        Residency::Home => "home",
    }
}

/// Every service that can be called, and how many instances of it are known.
fn routes(live: &Live) -> Vec<Value> {
    let state = live.outbound();
    let mut all: Vec<_> = state.destinations.iter().flat_map(|destinations| destinations.iter()).collect();
    all.sort_by_key(|destination| destination.service().as_str());
    let of_one = |destination: &&sidecar_core::outbound::Destination| {
        json!({
            "service": destination.service().as_str(),
            "residency": residency(destination.residency()),
            "instances": destination.endpoints().all().len(),
        })
    };
    all.iter().map(of_one).collect()
}
