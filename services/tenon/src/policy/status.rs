//! `tenon policy status`: the policy in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use tenon_proto::{
    kind,
    policy::v1::{Attestor, DescribeResponse, Endpoint, RolloutRequest, RolloutStatus, Route, rollout_status},
};
use tonic::Code;

use super::{
    Shown,
    acks::{self, Sidecars, State, Whole},
    client, describe, describe_policy, rollout,
};
use crate::{
    cli::PolicyStatus,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

/// Runs the command. Exits 1 when the watched folder has problems, or a sidecar refused the policy.
///
/// # Errors
/// No mesh, or no answer.
pub async fn run(args: PolicyStatus) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let described = describe_policy(&mesh).await?;
    let told = acks::ask(&mesh).await;
    let told = told.map_err(|status| mesh.failure(Role::Policy, "cannot ask which sidecars are connected", &status))?;
    // Endpoints move as instances come and go: who has not heard of the last one is not late with the policy.
    let positions: Vec<_> =
        described.positions.iter().filter(|position| position.kind != kind::ENDPOINT).cloned().collect();
    let sidecars = acks::judge(&told, &Whole::new(&positions, described.epoch, described.revision));
    let running = running(&mesh).await?;
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        let mut json = status_json(&described);
        json["sidecars"] = sidecars_json(&sidecars);
        json["rollout"] = running.as_ref().map_or(serde_json::Value::Null, ::policy::json::rollout);
        out.json(&json)?;
    } else {
        out.line(&format!(
            "mesh {} ({}), revision {}.{}, from {}",
            described.mesh, described.trust_domain, described.epoch, described.revision, described.source
        ))?;
        out.table(&["service", "rules", "allowlists", "instances", "mode"], &status_rows(&described))?;
        let endpoints = endpoint_rows(&described);
        if !endpoints.is_empty() {
            out.table(&["endpoint", "service", "region", "zone", "from"], &endpoints)?;
        }
        let outside = outside_rows(&described);
        if !outside.is_empty() {
            out.table(&["outside", "name", "issuer", "what for"], &outside)?;
        }
        if !sidecars.is_empty() {
            out.table(&["instance", "service", "policy revision", "state"], &sidecar_rows(&sidecars))?;
        }
        if let Some(running) = &running {
            out.line(&rollout::words(running))?;
        }
        for problem in &described.problems {
            out.line(&format!("not applied: {}", describe(Path::new(""), problem)))?;
        }
    }
    out.flush()?;
    let refused = sidecars.values().any(|has| matches!(has.state, State::Refused(_)));
    Ok((described.problems.is_empty() && !refused).into())
}

/// The rollout that runs; a policy service of an older version knows of none.
async fn running(mesh: &Mesh) -> Result<Option<RolloutStatus>, Failure> {
    match client(mesh.channel(Role::Policy)).rollout(RolloutRequest {}).await {
        Ok(answer) => {
            Ok(answer.into_inner().rollout.filter(|rollout| rollout.state() == rollout_status::State::Running))
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(mesh.failure(Role::Policy, "cannot ask for the rollout", &status)),
    }
}

/// `ok`, `late` or `refused`, and the error.
fn shown(state: &State) -> (&'static str, Option<&str>) {
    match state {
        State::Acknowledged => ("ok", None),
        State::Late => ("late", None),
        State::Refused(error) => ("refused", Some(error)),
    }
}

fn sidecar_rows(sidecars: &Sidecars) -> Vec<Vec<String>> {
    let row = |(name, has): (&acks::Name, &acks::Has)| {
        let (state, error) = shown(&has.state);
        let state = error.map_or_else(|| state.to_owned(), |error| format!("{state}: {error}"));
        vec![name.instance.clone(), name.service.clone(), has.revision.to_string(), state]
    };
    sidecars.iter().map(row).collect()
}

fn sidecars_json(sidecars: &Sidecars) -> serde_json::Value {
    let sidecar = |(name, has): (&acks::Name, &acks::Has)| {
        let (state, error) = shown(&has.state);
        serde_json::json!({
            "instance": name.instance, "service": name.service,
            "epoch": has.revision.epoch, "revision": has.revision.revision, "state": state, "error": error,
        })
    };
    sidecars.iter().map(sidecar).collect()
}

fn status_json(described: &DescribeResponse) -> serde_json::Value {
    let problems: Vec<_> = described
        .problems
        .iter()
        .map(|p| Shown { file: &p.file, line: p.line, column: p.column, message: &p.message })
        .collect();
    let services: Vec<_> = described
        .services
        .iter()
        .map(|service| {
            serde_json::json!({
                "service": service.service,
                "product": (!service.product.is_empty()).then_some(&service.product),
                "originates": service.originates,
                "requestsTransactionTokens": says(described, &service.service, |route| route.requests_transaction_tokens),
                "managesTenants": says(described, &service.service, |route| route.manages_tenants),
                "rules": service.rules.iter().map(|rule| serde_json::json!({
                    "allowlist": rule.allowlist, "rule": rule.name, "callers": rule.callers, "paths": rule.paths,
                    "audit": rule.audit, "source": rule.source,
                })).collect::<Vec<_>>(),
                "externalClients": service.external_clients.iter().map(|client| serde_json::json!({
                    "name": client.name, "issuer": client.issuer, "certificateNames": client.certificate_names,
                    "keyRepositories": client.key_repositories,
                })).collect::<Vec<_>>(),
                "instances": instances(described, &service.service),
                "quarantined": quarantined(described, &service.service),
            })
        })
        .collect();
    let attestors: Vec<_> = described
        .attestors
        .iter()
        .map(|attestor| {
            serde_json::json!({
                "name": attestor.name,
                "issuer": attestor.issuer,
                "audience": attestor.audience,
                "jwksUri": (!attestor.jwks_uri.is_empty()).then_some(&attestor.jwks_uri),
                "rules": attestor.rules.iter().map(|rule| serde_json::json!({
                    "claims": rule.claims, "service": rule.service,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    serde_json::json!({
        "mesh": described.mesh,
        "trustDomain": described.trust_domain,
        "epoch": described.epoch,
        "revision": described.revision,
        "source": described.source,
        "services": services,
        "endpoints": endpoints_json(described),
        "attestors": attestors,
        "problems": problems,
    })
}

/// What a service's route says in the policy in force.
fn says(described: &DescribeResponse, service: &str, what: impl Fn(&Route) -> bool) -> bool {
    described.routes.iter().any(|route| route.service == service && what(route))
}

/// Who comes from outside: clients with the services whose rules name them, and attestors with the services they attest.
fn outside_rows(described: &DescribeResponse) -> Vec<Vec<String>> {
    let mut clients: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for service in &described.services {
        for client in &service.external_clients {
            clients.entry((&client.name, &client.issuer)).or_default().push(&service.service);
        }
    }
    let client = |((name, issuer), services): ((&str, &str), Vec<&str>)| {
        vec!["client".to_owned(), name.to_owned(), issuer.to_owned(), format!("may call {}", services.join(","))]
    };
    let attestor = |attestor: &Attestor| {
        let services: BTreeSet<&str> = attestor.rules.iter().map(|rule| rule.service.as_str()).collect();
        let services = services.into_iter().collect::<Vec<_>>().join(",");
        vec!["attestor".to_owned(), attestor.name.clone(), attestor.issuer.clone(), format!("attests {services}")]
    };
    clients.into_iter().map(client).chain(described.attestors.iter().map(attestor)).collect()
}

fn status_rows(described: &DescribeResponse) -> Vec<Vec<String>> {
    let row = |service: &tenon_proto::policy::v1::ServicePolicy| {
        let mut allowlists: Vec<&str> = service.rules.iter().map(|rule| rule.allowlist.as_str()).collect();
        allowlists.dedup();
        let mode = match (quarantined(described, &service.service), service.audit_allowlist.is_empty()) {
            (true, _) => "quarantined",
            (false, false) => "audit",
            (false, true) => "enforce",
        };
        vec![
            service.service.clone(),
            service.rules.len().to_string(),
            if allowlists.is_empty() { "-".to_owned() } else { allowlists.join(",") },
            instances(described, &service.service).to_string(),
            mode.to_owned(),
        ]
    };
    described.services.iter().map(row).collect()
}

/// One that is registered and stands in the policy files is one.
fn instances(described: &DescribeResponse, service: &str) -> usize {
    let own = described.endpoints.iter().filter(|endpoint| endpoint.service == service);
    own.map(|endpoint| &endpoint.address).collect::<BTreeSet<_>>().len()
}

/// Whose word an endpoint is, of which there may be two.
fn endpoint_rows(described: &DescribeResponse) -> Vec<Vec<String>> {
    let row = |endpoint: &Endpoint| {
        let zone = if endpoint.zone.is_empty() { "-" } else { &endpoint.zone };
        let from = match &endpoint.lease {
            Some(lease) => format!("registered by {}", lease.instance),
            None => "policy files".to_owned(),
        };
        vec![endpoint.address.clone(), endpoint.service.clone(), endpoint.region.clone(), zone.to_owned(), from]
    };
    described.endpoints.iter().map(row).collect()
}

fn endpoints_json(described: &DescribeResponse) -> serde_json::Value {
    let endpoint = |endpoint: &Endpoint| {
        serde_json::json!({
            "service": endpoint.service,
            "region": endpoint.region,
            "zone": (!endpoint.zone.is_empty()).then_some(&endpoint.zone),
            "address": endpoint.address,
            "registered": endpoint.lease.is_some(),
            "instance": endpoint.lease.as_ref().map(|lease| &lease.instance),
            "holder": endpoint.lease.as_ref().map(|lease| &lease.holder),
        })
    };
    described.endpoints.iter().map(endpoint).collect()
}

fn quarantined(described: &DescribeResponse, service: &str) -> bool {
    described.quarantines.iter().any(|quarantine| quarantine.service == service)
}

#[cfg(test)]
mod tests {
    use tenon_proto::policy::v1::{AttestorRule, ExternalClient, ServicePolicy};

    use super::*;

    #[test]
    fn who_comes_from_outside_is_shown_with_what_for() {
        let partner = ExternalClient {
            name: "partner".into(),
            issuer: "partner/billing".into(),
            certificate_names: vec!["dns:billing.partner.example".into()],
            ..Default::default()
        };
        let service = |name: &str| ServicePolicy {
            service: name.into(),
            external_clients: vec![partner.clone()],
            ..Default::default()
        };
        let rule = |service: &str| AttestorRule { service: service.into(), ..Default::default() };
        let described = DescribeResponse {
            services: vec![service("issues"), service("media")],
            routes: vec![
                Route { service: "media".into(), requests_transaction_tokens: true, ..Default::default() },
                Route { service: "issues".into(), manages_tenants: true, ..Default::default() },
            ],
            attestors: vec![Attestor {
                name: "kubernetes".into(),
                issuer: "https://k8s.example".into(),
                rules: ["wiki", "media", "wiki"].map(rule).into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(
            outside_rows(&described),
            [
                ["client", "partner", "partner/billing", "may call issues,media"],
                ["attestor", "kubernetes", "https://k8s.example", "attests media,wiki"]
            ]
        );
        let json = status_json(&described);
        let requests = |index: usize| json["services"][index]["requestsTransactionTokens"].as_bool();
        assert_eq!((requests(0), requests(1)), (Some(false), Some(true)));
        let manages = |index: usize| json["services"][index]["managesTenants"].as_bool();
        assert_eq!((manages(0), manages(1)), (Some(true), Some(false)));
        assert_eq!(json["services"][0]["externalClients"][0]["issuer"], "partner/billing");
        assert_eq!(json["attestors"][0]["rules"][1]["service"], "media");
        assert_eq!(json["attestors"][0]["jwksUri"], serde_json::Value::Null);
    }
}
