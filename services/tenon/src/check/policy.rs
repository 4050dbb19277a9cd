//! What is wrong with the policy in force, and with what it speaks of.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
};

use futures_util::{StreamExt as _, stream};
use tenon_proto::policy::v1::{DescribeResponse, HistoryRequest, history_entry::Action};

use super::{Finding, catalogue, certificates};
use crate::{
    operator::{Mesh, Role, reason},
    policy::{self, client},
};

/// Endpoints that are tried at once.
const AT_ONCE: usize = 32;

/// Makes the checks of the policy service that was reached.
pub async fn check(mesh: &Mesh) -> Vec<Finding> {
    let described = match policy::describe_policy(mesh).await {
        Ok(described) => described,
        Err(failure) => {
            let said = failure.to_string();
            let said = said.lines().next().unwrap_or_default();
            let next = "make the policy service reachable first";
            return vec![Finding::bad(catalogue::POLICY, Role::Policy.title(), said, next)];
        }
    };
    let mut findings = vec![problems(&described)];
    findings.extend(quarantines(&described));
    findings.push(rollout(mesh).await);
    findings.extend(served(&described));
    findings.extend(endpoints(mesh, &described).await);
    findings
}

fn problems(described: &DescribeResponse) -> Finding {
    let title = Role::Policy.title();
    let [first, rest @ ..] = described.problems.as_slice() else {
        let (epoch, revision, source) = (described.epoch, described.revision, &described.source);
        return Finding::ok(catalogue::POLICY, title, format!("revision {epoch}.{revision} from {source}"));
    };
    let first = policy::describe(Path::new(""), first);
    let found = match rest.len() {
        0 => first,
        more => format!("{first}, and {more} more"),
    };
    let next =
        "the last good policy is enforced meanwhile: correct the files; `tenon policy status` names all problems";
    Finding::bad(catalogue::POLICY, title, found, next)
}

fn quarantines(described: &DescribeResponse) -> Vec<Finding> {
    if described.quarantines.is_empty() {
        return vec![Finding::ok(catalogue::QUARANTINE, Role::Policy.title(), "nobody is cut off")];
    }
    let cut_off = |it: &tenon_proto::policy::v1::Quarantine| {
        let why = if it.reason.is_empty() { "no reason is given" } else { &it.reason };
        let next = "when it may call and be called again, take it out of its Quarantine document";
        Finding::bad(catalogue::QUARANTINE, &it.service, format!("is cut off: {why}"), next)
    };
    described.quarantines.iter().map(cut_off).collect()
}

/// A rollout that was halted is what happened last: whatever is applied after it makes it the past.
async fn rollout(mesh: &Mesh) -> Finding {
    let title = Role::Policy.title();
    match client(mesh.channel(Role::Policy)).history(HistoryRequest { limit: 1 }).await {
        Err(status) => Finding::bad(catalogue::ROLLOUT, title, reason(&status), "see the log of the policy service"),
        Ok(answer) => match answer.into_inner().entries.first() {
            Some(entry) if entry.action() == Action::RolloutHalted => Finding::bad(
                catalogue::ROLLOUT,
                title,
                format!("the last one was halted: {}", entry.note),
                "`tenon policy rollout status` has what the canaries refused: correct the policy and apply it again",
            ),
            Some(_) | None => Finding::ok(catalogue::ROLLOUT, title, "none was halted"),
        },
    }
}

/// Whether whoever may be called is anywhere.
fn served(described: &DescribeResponse) -> Vec<Finding> {
    let anywhere: BTreeSet<&str> = described.endpoints.iter().map(|endpoint| endpoint.service.as_str()).collect();
    let callable: Vec<&str> = described
        .services
        .iter()
        .filter(|policy| !policy.rules.is_empty())
        .map(|policy| policy.service.as_str())
        .collect();
    let nowhere = callable.iter().filter(|service| !anywhere.contains(*service));
    let findings: Vec<_> = nowhere
        .map(|service| {
            let next =
                format!("start an instance of {service}; or correct its name, or take its Service and rules away");
            Finding::bad(catalogue::SERVED, *service, "may be called, and has no instance", next)
        })
        .collect();
    if !findings.is_empty() {
        return findings;
    }
    let told = format!("each of {} services that may be called has an instance", callable.len());
    vec![Finding::ok(catalogue::SERVED, Role::Policy.title(), told)]
}

/// Whether a sidecar of the right service answers wherever calls may go. Those of `mesh.json` are asked for already.
async fn endpoints(mesh: &Mesh, described: &DescribeResponse) -> Vec<Finding> {
    let known: BTreeSet<SocketAddr> = mesh.file().sidecars.iter().map(|sidecar| sidecar.inbound).collect();
    let places: BTreeMap<&str, &str> =
        described.endpoints.iter().map(|endpoint| (endpoint.address.as_str(), endpoint.service.as_str())).collect();
    let others = places.iter().filter(|(address, _)| address.parse().is_ok_and(|address| !known.contains(&address)));
    let asked: Vec<(String, String)> =
        others.map(|(address, service)| ((*address).to_owned(), (*service).to_owned())).collect();
    let count = asked.len();
    let findings: Vec<Finding> = stream::iter(asked)
        .map(|(address, service)| async move {
            let at = address.parse().ok()?;
            let problem = certificates::shown(mesh, at, &service).await.err()?;
            let next = "start its sidecar there, or take the instance out of the policy files; one that registered itself is \
                        let go of within seconds of its end";
            Some(Finding::bad(catalogue::ENDPOINT, format!("{service} at {address}"), problem, next))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(|found| async move { found })
        .collect()
        .await;
    if !findings.is_empty() {
        return findings;
    }
    let told = match count {
        0 => "every endpoint is a sidecar of this mesh file".to_owned(),
        count => format!("each of the {count} endpoints besides those of the mesh file answers"),
    };
    vec![Finding::ok(catalogue::ENDPOINT, Role::Policy.title(), told)]
}

#[cfg(test)]
mod tests {
    use tenon_proto::policy::v1::{Endpoint, Quarantine, Rule, ServicePolicy};

    use super::*;

    #[test]
    fn a_service_that_may_be_called_and_is_nowhere_is_named() {
        let service = |name: &str, rules: usize| ServicePolicy {
            service: name.into(),
            rules: vec![Rule::default(); rules],
            ..ServicePolicy::default()
        };
        let mut described = DescribeResponse {
            services: vec![service("media", 2), service("wiki", 0)],
            endpoints: vec![Endpoint { service: "media".into(), address: "a:1".into(), ..Endpoint::default() }],
            ..DescribeResponse::default()
        };
        let fine = served(&described);
        assert_eq!((fine.len(), fine[0].ok), (1, true), "whom nobody may call needs no instance");
        described.services.push(service("medai", 1));
        let found = served(&described);
        assert_eq!((found.len(), found[0].ok, found[0].subject.as_str()), (1, false, "medai"));
    }

    #[test]
    fn who_is_cut_off_is_named_with_the_reason() {
        let mut described = DescribeResponse::default();
        assert!(quarantines(&described)[0].ok);
        described.quarantines = vec![
            Quarantine { service: "wiki".into(), reason: "INC-7".into() },
            Quarantine { service: "old".into(), reason: String::new() },
        ];
        let found: Vec<_> = quarantines(&described).into_iter().map(|it| (it.ok, it.detail)).collect();
        assert_eq!(
            found,
            [(false, "is cut off: INC-7".to_owned()), (false, "is cut off: no reason is given".to_owned())]
        );
    }
}
