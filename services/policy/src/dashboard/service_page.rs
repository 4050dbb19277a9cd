//! One service: who calls what of it, what each of its rules was used for, and what it calls.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use mesh_identity::clock;
use serde_json::{Value, json};
use sidecar_core::{
    Peer,
    policy::{Match, Policy},
};
use tenon_proto::policy::v1::{
    DescribeResponse, Endpoint, Flow, Proof, Rule, ServicePolicy, TenantRequirement, flow::Decision,
};

use super::{
    Answer, Problem, Shared, SignedIn,
    answers::{Calls, quarantine, sidecars_of, state_of},
    rates::WINDOW,
};
use crate::json;

/// Rows of a table.
const ROWS: usize = 500;

/// Calls of something, and when they were.
#[derive(Clone, Copy, Default)]
struct Used {
    calls: Calls,
    /// Within the last [`WINDOW`].
    recent: u64,
    /// Unix seconds; 0: never.
    last: i64,
}

impl Used {
    fn all(&self) -> u64 {
        self.calls.allowed + self.calls.refused + self.calls.audited
    }

    fn json(&self) -> Value {
        let mut json = self.calls.json();
        json["recent"] = self.recent.into();
        json["last"] = json::moment(self.last);
        json
    }
}

/// Everything about one service.
pub(super) async fn service(State(dashboard): Shared, _: SignedIn, Path(name): Path<String>) -> Answer {
    let described = dashboard.described().await?;
    let policy = described.services.iter().find(|policy| policy.service == name);
    // The whole record: what it calls is recorded by those whom it calls.
    let record = dashboard.record(0).await?;
    let recent = dashboard.rates.recent(clock::unix_seconds());
    let mut flows: Vec<(Flow, Used)> = Vec::new();
    for total in &record.flows {
        let of_it = |flow: &&Flow| flow.service == name || flow.caller == name;
        let Some(flow) = total.flow.as_ref().filter(of_it) else { continue };
        let mut used = Used { last: total.last_unix_seconds, ..Used::default() };
        used.calls.add(flow.decision(), flow.count);
        used.recent = recent.get(&crate::flows::FlowKey::of(flow)).copied().unwrap_or(0);
        flows.push((flow.clone(), used));
    }
    let statuses: Vec<_> = dashboard.publishers.iter().map(journal::Publisher::status).collect();
    let sidecars = sidecars_of(&statuses);
    let mut own = sidecars.iter().filter(|((service, _), _)| *service == name).peekable();
    if policy.is_none() && flows.is_empty() && own.peek().is_none() {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no service {name}, and nobody called one")));
    }
    let to = || flows.iter().filter(|(flow, _)| flow.service == name);
    let from = flows.iter().filter(|(flow, _)| flow.caller == name);
    let refused = to().filter(|(flow, _)| flow.decision() != Decision::Allowed).map(|(flow, used)| {
        let mut json = json::flow(flow);
        json["recent"] = used.recent.into();
        json["last"] = json::moment(used.last);
        json
    });
    Ok(Json(json!({
        "name": name,
        "defined": policy.is_some(),
        "product": policy.map(|policy| &policy.product).filter(|product| !product.is_empty()),
        "originates": policy.is_some_and(|policy| policy.originates),
        "quarantined": quarantine(&described, &name),
        "auditAllowlist": policy.map(|policy| &policy.audit_allowlist).filter(|name| !name.is_empty()),
        "window": WINDOW,
        "record": {"from": json::moment(record.from_unix_seconds), "until": json::moment(record.until_unix_seconds)},
        "rules": policy.map(|policy| rules(policy, to())),
        "callers": grouped(to(), |flow| &flow.caller),
        "methods": grouped(to(), |flow| &flow.path),
        "callees": grouped(from, |flow| &flow.service),
        "refusals": refused.take(ROWS).collect::<Vec<_>>(),
        "sidecars": own.map(|((_, instance), has)| {
            let (state, error) = state_of(has, &statuses);
            json!({"instance": instance, "state": state, "error": error})
        }).collect::<Vec<_>>(),
        "endpoints": endpoints(&described, &name),
    })))
}

/// Calls by what `of` says of them: most often first.
fn grouped<'a>(flows: impl Iterator<Item = &'a (Flow, Used)>, of: impl Fn(&Flow) -> &String) -> Vec<Value> {
    let mut groups: BTreeMap<&str, Used> = BTreeMap::new();
    for (flow, used) in flows {
        let group = groups.entry(of(flow)).or_default();
        group.calls.add(flow.decision(), flow.count);
        group.recent += used.recent;
        group.last = group.last.max(used.last);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, used)| std::cmp::Reverse(used.all()));
    let row = |(name, used): (&str, Used)| {
        let mut json = used.json();
        json["name"] = name.into();
        json
    };
    groups.into_iter().take(ROWS).map(row).collect()
}

/// Each rule, with the recorded calls that it decides in the policy of now: by caller and path, whatever their tenants were.
fn rules<'a>(policy: &ServicePolicy, flows: impl Iterator<Item = &'a (Flow, Used)>) -> Vec<Value> {
    let mut used: BTreeMap<u32, Used> = BTreeMap::new();
    // What this version cannot read has no use that could be told.
    if let Ok(compiled) = Policy::try_from(policy) {
        for (flow, calls) in flows.filter(|(flow, _)| flow.decision() != Decision::Refused && !flow.path.is_empty()) {
            let outside = compiled.knows_outside(&flow.caller);
            let peer = if outside { Peer::Outside(&flow.caller) } else { Peer::Service(&flow.caller) };
            if let Match::Rule(index, _) = compiled.authorize(peer, &flow.path) {
                let of = used.entry(index).or_default();
                of.calls.add(flow.decision(), flow.count);
                of.recent += calls.recent;
                of.last = of.last.max(calls.last);
            }
        }
    }
    let row = |(index, rule): (u32, &Rule)| {
        let mut json = used.get(&index).copied().unwrap_or_default().json();
        json["rule"] = rule.name.as_str().into();
        json["allowlist"] = rule.allowlist.as_str().into();
        json["source"] = rule.source.as_str().into();
        json["callers"] = rule.callers.clone().into();
        json["paths"] = rule.paths.clone().into();
        json["audit"] = rule.audit.into();
        json["demands"] = demands(rule).into();
        json
    };
    (0..).zip(&policy.rules).map(row).collect()
}

/// What a rule wants beside caller and path, in words.
fn demands(rule: &Rule) -> Vec<String> {
    let mut demands = Vec::new();
    match rule.tenant() {
        TenantRequirement::Required => demands.push("a tenant".to_owned()),
        TenantRequirement::Optional => demands.push("a tenant that may be served, where one is named".to_owned()),
        TenantRequirement::None | TenantRequirement::Unspecified => {}
    }
    if let Some(conditions) = &rule.tenants {
        let lists = [
            ("edition", &conditions.editions),
            ("feature", &conditions.features),
            ("region", &conditions.regions),
            ("id", &conditions.ids),
        ];
        let told = lists.into_iter().filter(|(_, list)| !list.is_empty());
        demands.extend(told.map(|(name, list)| format!("its {name}: {}", list.join(", "))));
    }
    if rule.proof() == Proof::Transaction {
        demands.push("a transaction token".to_owned());
    }
    if let Some(rate) = &rule.rate {
        demands.push(format!("at most {} calls in {} s of one tenant", rate.count, rate.per_seconds));
    }
    demands
}

fn endpoints(described: &DescribeResponse, service: &str) -> Vec<Value> {
    let mut places: BTreeMap<&str, &Endpoint> = BTreeMap::new();
    // One that stands in the policy files and is registered as well is one.
    for endpoint in described.endpoints.iter().filter(|endpoint| endpoint.service == service) {
        let known = places.entry(&endpoint.address).or_insert(endpoint);
        if endpoint.lease.is_some() {
            *known = endpoint;
        }
    }
    let endpoint = |endpoint: &Endpoint| {
        json!({
            "address": endpoint.address, "region": endpoint.region, "zone": endpoint.zone,
            "instance": endpoint.lease.as_ref().map(|lease| &lease.instance),
        })
    };
    places.into_values().map(endpoint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, caller: &str, path: &str) -> Rule {
        Rule {
            allowlist: "media".into(),
            name: name.into(),
            callers: vec![caller.into()],
            paths: vec![path.into()],
            tenant: TenantRequirement::None.into(),
            proof: Proof::None.into(),
            ..Rule::default()
        }
    }

    fn flow(caller: &str, path: &str, decision: Decision, count: u64) -> (Flow, Used) {
        let flow = Flow {
            caller: caller.into(),
            service: "media".into(),
            path: path.into(),
            decision: decision.into(),
            reason: String::new(),
            count,
        };
        (flow, Used { last: 3_600, recent: 2, ..Used::default() })
    }

    #[test]
    fn the_use_of_a_rule_is_what_the_first_that_matches_would_decide() {
        let policy = ServicePolicy {
            service: "media".into(),
            rules: vec![
                rule("all", "wiki", "/m.M/*"),
                rule("get", "wiki", "/m.M/Get"),
                rule("other", "issues", "/m.M/Get"),
            ],
            ..ServicePolicy::default()
        };
        let flows = [
            flow("wiki", "/m.M/Get", Decision::Allowed, 3),
            flow("wiki", "/m.M/Put", Decision::Audited, 4),
            flow("wiki", "/m.M/Put", Decision::Refused, 100),
            flow("wiki", "", Decision::Allowed, 100),
            flow("nobody", "/m.M/Get", Decision::Allowed, 100),
        ];
        let told = rules(&policy, flows.iter());
        let use_of = |index: usize| {
            (&told[index]["rule"], &told[index]["allowed"], &told[index]["audited"], &told[index]["recent"])
        };
        assert_eq!(use_of(0), (&json!("all"), &json!(3), &json!(4), &json!(4)));
        assert_eq!(use_of(1), (&json!("get"), &json!(0), &json!(0), &json!(0)));
        assert_eq!(
            (use_of(2).1, &told[2]["last"], &told[0]["last"]),
            (&json!(0), &Value::Null, &json!("1970-01-01T01:00:00Z"))
        );
    }

    #[test]
    fn what_a_rule_demands_is_told_in_words() {
        use tenon_proto::policy::v1::{Rate, TenantConditions};

        let demanding = Rule {
            tenant: TenantRequirement::Required.into(),
            tenants: Some(TenantConditions {
                editions: vec!["premium".into(), "free".into()],
                ..TenantConditions::default()
            }),
            proof: Proof::Transaction.into(),
            rate: Some(Rate { count: 5, per_seconds: 60, burst: 5 }),
            ..rule("all", "wiki", "/m.M/*")
        };
        let expected =
            ["a tenant", "its edition: premium, free", "a transaction token", "at most 5 calls in 60 s of one tenant"];
        assert_eq!(demands(&demanding), expected);
        assert!(demands(&rule("all", "wiki", "/m.M/*")).is_empty());
    }
}
