//! From a checked mesh to the records that are replicated.

mod route;

use std::collections::{BTreeMap, BTreeSet};

use prost::bytes::Bytes;
use tenon_proto::policy::v1 as proto;

use crate::mesh::{
    Attestor, AttestorRule, ExternalClient, Instance, Mesh, Mode, Proof, Residency, Rule, Service, TenantCondition,
    Tenants,
};

/// What the policy service publishes: for each kind, its records by key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Records {
    /// Kind `allowlist`, key: the service. Every defined service has one, if only an empty one.
    pub allowlists: BTreeMap<String, proto::ServicePolicy>,
    /// Kind `route`, key: the service. Every defined service has one.
    pub routes: BTreeMap<String, proto::Route>,
    /// Kind `endpoint`, key: `service/region/address`. One for each instance of the LocalMesh.
    pub endpoints: BTreeMap<String, proto::Endpoint>,
    /// Kind `quarantine`, key: the service, or the client outside of the mesh.
    pub quarantines: BTreeMap<String, proto::Quarantine>,
    /// Kind `attestation`, key: the name of the Attestor.
    pub attestors: BTreeMap<String, proto::Attestor>,
}

/// The records of a mesh. The same mesh always gives the same records.
pub fn compile(mesh: &Mesh) -> Records {
    let mut records = Records::default();
    for service in mesh.services.values() {
        records.allowlists.insert(service.name.to_string(), service_policy(mesh, service));
        records.routes.insert(service.name.to_string(), route(mesh, service));
    }
    for instance in mesh.local.iter().flat_map(|local| &local.instances) {
        let endpoint = endpoint(instance);
        records.endpoints.insert(format!("{}/{}/{}", endpoint.service, endpoint.region, endpoint.address), endpoint);
    }
    for quarantine in &mesh.quarantines {
        for service in &quarantine.services {
            let record = records
                .quarantines
                .entry(service.to_string())
                .or_insert_with(|| proto::Quarantine { service: service.to_string(), reason: String::new() });
            if !record.reason.is_empty() && !quarantine.reason.is_empty() {
                record.reason.push_str("; ");
            }
            record.reason.push_str(&quarantine.reason);
        }
    }
    records.attestors.extend(mesh.attestors.iter().map(|one| (one.name.to_string(), attestor(one))));
    records
}

fn service_policy(mesh: &Mesh, service: &Service) -> proto::ServicePolicy {
    let mut rules = Vec::new();
    let mut audit_allowlist = String::new();
    for allowlist in mesh.allowlists.iter().filter(|allowlist| allowlist.service == service.name) {
        let audit = allowlist.mode == Mode::Audit;
        if audit && audit_allowlist.is_empty() {
            audit_allowlist = allowlist.name.to_string();
        }
        rules.extend(allowlist.rules.iter().map(|rule| compile_rule(rule, allowlist.name.as_str(), audit)));
    }
    let callers: BTreeSet<&str> = rules.iter().flat_map(|rule| &rule.callers).map(String::as_str).collect();
    let outside = callers.into_iter().filter_map(|name| mesh.external_clients.get(name)).map(external_client).collect();
    proto::ServicePolicy {
        service: service.name.to_string(),
        product: product(service),
        residency: residency(service).into(),
        originates: service.originates,
        rules,
        audit_allowlist,
        external_clients: outside,
        canary: None,
        signature: None,
    }
}

fn external_client(client: &ExternalClient) -> proto::ExternalClient {
    proto::ExternalClient {
        name: client.name.to_string(),
        issuer: client.issuer.to_string(),
        ca: certificates(&client.ca),
        certificate_names: client.certificate_names.clone(),
        key_repositories: client.key_repositories.clone(),
        key_repository_ca: certificates(&client.key_repository_ca),
        subjects: client.subjects.clone(),
    }
}

fn attestor(attestor: &Attestor) -> proto::Attestor {
    let rule = |rule: &AttestorRule| proto::AttestorRule {
        claims: rule.claims.clone().into_iter().collect(),
        service: rule.service.to_string(),
    };
    proto::Attestor {
        name: attestor.name.to_string(),
        issuer: attestor.issuer.clone(),
        audience: attestor.audience.clone(),
        jwks_uri: attestor.jwks_uri.clone().unwrap_or_default(),
        ca: certificates(&attestor.ca),
        rules: attestor.rules.iter().map(rule).collect(),
    }
}

fn certificates(ders: &[Vec<u8>]) -> Vec<Bytes> {
    ders.iter().map(|der| Bytes::copy_from_slice(der)).collect()
}

fn compile_rule(rule: &Rule, allowlist: &str, audit: bool) -> proto::Rule {
    let tenant = match rule.tenant {
        TenantCondition::Required => proto::TenantRequirement::Required,
        TenantCondition::Optional => proto::TenantRequirement::Optional,
        TenantCondition::None => proto::TenantRequirement::None,
    };
    let proof = match rule.proof {
        Proof::None => proto::Proof::None,
        Proof::Transaction => proto::Proof::Transaction,
    };
    proto::Rule {
        allowlist: allowlist.to_owned(),
        name: rule.name.to_string(),
        callers: rule.callers.iter().map(|caller| caller.as_str().to_owned()).collect(),
        paths: rule.paths.clone(),
        tenant: tenant.into(),
        proof: proof.into(),
        rate: rule.rate.map(|rate| proto::Rate { count: rate.count, per_seconds: rate.per_seconds, burst: rate.burst }),
        audit,
        source: rule.source.clone(),
        tenants: rule.tenants.as_ref().map(conditions),
    }
}

fn conditions(tenants: &Tenants) -> proto::TenantConditions {
    let Tenants { editions, features, regions, ids } = tenants;
    proto::TenantConditions {
        editions: editions.clone(),
        features: features.clone(),
        regions: regions.iter().map(ToString::to_string).collect(),
        ids: ids.iter().map(ToString::to_string).collect(),
    }
}

fn route(mesh: &Mesh, service: &Service) -> proto::Route {
    proto::Route {
        service: service.name.to_string(),
        product: product(service),
        residency: residency(service).into(),
        requests_transaction_tokens: service.requests_transaction_tokens,
        manages_tenants: service.manages_tenants,
        settings: mesh.routes.get(&service.name).map(route::settings),
    }
}

/// A LocalMesh is one machine: a listener on all its addresses is reached over loopback.
fn endpoint(instance: &Instance) -> proto::Endpoint {
    let mut address = instance.inbound;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    proto::Endpoint {
        service: instance.service.to_string(),
        region: instance.region.to_string(),
        zone: instance.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
        address: address.to_string(),
        lease: None,
    }
}

fn product(service: &Service) -> String {
    service.product.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn residency(service: &Service) -> proto::Residency {
    match service.residency {
        Residency::Any => proto::Residency::Any,
        Residency::Home => proto::Residency::Home,
    }
}
