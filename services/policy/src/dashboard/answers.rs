//! What the pages ask for, as JSON. Everything here is read alone but [`end_rollout`].

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use mesh_config::names::control_plane;
use mesh_identity::{OperatorRole, clock};
use serde::Deserialize;
use serde_json::{Value, json};
use tenon_proto::{
    kind,
    policy::v1::{DescribeResponse, ExplainRequest, FlowTotal, ServicePolicy, flow::Decision},
    replication::v1::{FollowerStatus, KindStatus, Position},
    tcs::v1::{GetRequest, get_request::By},
};

use tonic::Status;

use super::{Answer, Problem, Shared, SignedIn, rates::WINDOW};
use crate::{flows::FlowKey, json, rollout, service::unreadable};

/// Rows of a list that may be long; the pages say where there are more.
const ROWS: usize = 1_000;
/// Entries of the history.
const HISTORY: usize = 50;
/// The kinds of the policy service that sidecars follow.
const KINDS: [&str; 4] = [kind::ALLOWLIST, kind::ROUTE, kind::ENDPOINT, kind::QUARANTINE];

/// The code of a link.
#[derive(Deserialize)]
pub(super) struct Code {
    code: String,
}

/// Makes a code a session.
pub(super) async fn begin(State(dashboard): Shared, Json(Code { code }): Json<Code>) -> Answer {
    let now = clock::unix_seconds();
    let token = dashboard.sessions.redeem(&code, now);
    let found = token.and_then(|token| Some((dashboard.sessions.find(&token, now)?, token)));
    let Some(((peer, until), token)) = found else {
        let text = "this link was used already, or is over: `tenon dashboard` prints another";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, text));
    };
    let signed_in = SignedIn { peer, token, until };
    Ok(Json(json!({"token": signed_in.token, "session": described(&signed_in)})))
}

/// Who is signed in.
pub(super) async fn session(signed_in: SignedIn) -> Answer {
    Ok(Json(described(&signed_in)))
}

fn described(signed_in: &SignedIn) -> Value {
    json!({
        "operator": signed_in.peer.id.to_string(),
        "role": signed_in.role().as_str(),
        "mayAct": signed_in.role() >= OperatorRole::Operator,
        "until": json::moment(i64::try_from(signed_in.until).unwrap_or(0)),
    })
}

/// Signs out.
pub(super) async fn end(State(dashboard): Shared, signed_in: SignedIn) -> Answer {
    dashboard.sessions.end(&signed_in.token);
    Ok(Json(json!({})))
}

/// Calls that passed, were refused, and passed because of audit mode.
#[derive(Clone, Copy, Default)]
pub(super) struct Calls {
    pub allowed: u64,
    pub refused: u64,
    pub audited: u64,
}

impl Calls {
    pub fn add(&mut self, decision: Decision, count: u64) {
        let of = match decision {
            Decision::Allowed => &mut self.allowed,
            Decision::Refused => &mut self.refused,
            Decision::Audited => &mut self.audited,
            Decision::Unspecified => return,
        };
        *of = of.saturating_add(count);
    }

    pub fn json(self) -> Value {
        json!({"allowed": self.allowed, "refused": self.refused, "audited": self.audited})
    }
}

/// The mesh in one look: its services, and who calls whom now.
pub(super) async fn mesh(State(dashboard): Shared, _: SignedIn) -> Answer {
    let described = dashboard.described().await?;
    let recent = dashboard.rates.recent(clock::unix_seconds());
    let mut edges: BTreeMap<(&str, &str), Calls> = BTreeMap::new();
    let mut to: BTreeMap<&str, Calls> = BTreeMap::new();
    for (FlowKey { caller, service, decision, .. }, count) in &recent {
        edges.entry((caller, service)).or_default().add(*decision, *count);
        to.entry(service).or_default().add(*decision, *count);
    }
    let statuses: Vec<_> = dashboard.publishers.iter().map(journal::Publisher::status).collect();
    let sidecars = sidecars_of(&statuses);
    let states: Vec<_> = sidecars.values().map(|has| state_of(has, &statuses).0).collect();
    let state = |wanted: &str| states.iter().filter(|state| **state == wanted).count();
    let rollout = dashboard.rollouts.status().await.map_err(|error| unreadable(&error))?;
    let edge = |((caller, service), calls): (&(&str, &str), &Calls)| {
        let mut json = calls.json();
        json["caller"] = (*caller).into();
        json["service"] = (*service).into();
        json
    };
    let called = edges.keys().flat_map(|(caller, service)| [*caller, *service]);
    let services = Services::of(&described, called, &sidecars);
    Ok(Json(json!({
        "mesh": described.mesh,
        "trustDomain": described.trust_domain,
        "revision": format!("{}.{}", described.epoch, described.revision),
        "source": described.source,
        "problems": described.problems.iter().map(|problem| json!({
            "file": problem.file, "line": problem.line, "column": problem.column, "message": problem.message,
        })).collect::<Vec<_>>(),
        "window": WINDOW,
        "recording": dashboard.fleet.is_recording(),
        "sidecars": {"connected": sidecars.len(), "late": state("late"), "refused": state("refused")},
        "rollout": rollout.as_ref().map(json::rollout),
        "services": services.0.iter().map(|(name, it)| json!({
            "name": name,
            "defined": it.policy.is_some(),
            "product": it.policy.map(|policy| &policy.product).filter(|product| !product.is_empty()),
            "rules": it.policy.map_or(0, |policy| policy.rules.len()),
            "audit": it.policy.is_some_and(|policy| !policy.audit_allowlist.is_empty()),
            "quarantined": it.quarantined,
            "sidecars": it.sidecars,
            "endpoints": it.addresses.len(),
            "calls": to.get(name).copied().unwrap_or_default().json(),
        })).collect::<Vec<_>>(),
        "edges": edges.iter().map(edge).collect::<Vec<_>>(),
    })))
}

/// The services of the policy, and whoever calls or is called without being in it, by name.
struct Services<'a>(BTreeMap<&'a str, OneService<'a>>);

#[derive(Default)]
struct OneService<'a> {
    policy: Option<&'a ServicePolicy>,
    /// The reason, where it is.
    quarantined: Option<&'a str>,
    sidecars: usize,
    /// Of its endpoints: one that stands in the policy files and is registered as well is one.
    addresses: BTreeSet<&'a str>,
}

impl<'a> Services<'a> {
    fn of(described: &'a DescribeResponse, called: impl Iterator<Item = &'a str>, sidecars: &Sidecars<'a>) -> Self {
        let mut all: BTreeMap<&str, OneService<'_>> =
            called.filter(|name| !name.is_empty()).map(|name| (name, OneService::default())).collect();
        for policy in &described.services {
            all.entry(&policy.service).or_default().policy = Some(policy);
        }
        let quarantines = described.quarantines.iter().map(|it| (it.service.as_str(), it.reason.as_str()));
        for (service, reason) in quarantines {
            all.entry(service).or_default().quarantined = Some(reason);
        }
        for (service, _) in sidecars.keys() {
            all.entry(service).or_default().sidecars += 1;
        }
        for endpoint in &described.endpoints {
            all.entry(&endpoint.service).or_default().addresses.insert(&endpoint.address);
        }
        Self(all)
    }
}

pub(super) fn quarantine<'a>(described: &'a DescribeResponse, service: &str) -> Option<&'a str> {
    described.quarantines.iter().find(|it| it.service == service).map(|it| it.reason.as_str())
}

/// What each connected sidecar has of each kind, by service and instance.
pub(super) type Sidecars<'a> = BTreeMap<(&'a str, &'a str), BTreeMap<&'a str, &'a FollowerStatus>>;

/// The control plane follows some kinds too; its processes are no sidecars.
pub(super) fn sidecars_of(statuses: &[KindStatus]) -> Sidecars<'_> {
    let mut sidecars = Sidecars::new();
    for status in statuses.iter().filter(|status| KINDS.contains(&status.kind.as_str())) {
        for follower in status.followers.iter().filter(|follower| follower.connected_unix_seconds != 0) {
            let service = follower.spiffe_id.split_once("/svc/").map(|(_, service)| service);
            if let Some(service) = service.filter(|service| !service.starts_with(control_plane::PREFIX)) {
                let kinds = sidecars.entry((service, &follower.instance)).or_default();
                kinds.insert(&status.kind, follower);
            }
        }
    }
    sidecars
}

/// `ok`, `late` or `refused`, and what it refuses. Endpoints come and go: who has not heard of the last is not late.
pub(super) fn state_of(
    has: &BTreeMap<&str, &FollowerStatus>,
    statuses: &[KindStatus],
) -> (&'static str, Option<String>) {
    let refused = has.iter().find(|(_, follower)| !follower.nack.is_empty());
    if let Some((kind, follower)) = refused {
        return ("refused", Some(format!("{kind}: {}", follower.nack)));
    }
    let place = |position: Option<Position>| position.map_or((0, 0), |it| (it.epoch, it.revision));
    let late = statuses.iter().filter(|status| KINDS.contains(&status.kind.as_str()) && status.kind != kind::ENDPOINT);
    let late = late.filter(|status| {
        let acknowledged = has.get(status.kind.as_str()).and_then(|follower| follower.acknowledged);
        place(acknowledged) < place(status.head)
    });
    (if late.count() > 0 { "late" } else { "ok" }, None)
}

/// Every connected sidecar, with what it has of the policy.
pub(super) async fn sidecars(State(dashboard): Shared, _: SignedIn) -> Answer {
    let statuses: Vec<_> = dashboard.publishers.iter().map(journal::Publisher::status).collect();
    let reporting: BTreeSet<_> = dashboard.fleet.connected().into_iter().collect();
    let heads = statuses.iter().filter(|status| KINDS.contains(&status.kind.as_str()));
    Ok(Json(json!({
        "heads": heads.map(|status| (status.kind.clone(), revision(status.head).into())).collect::<serde_json::Map<_, _>>(),
        "alarms": statuses.iter().flat_map(|status| {
            status.alarms.iter().map(|alarm| json!({"kind": status.kind, "alarm": alarm}))
        }).collect::<Vec<_>>(),
        "sidecars": sidecars_of(&statuses).iter().map(|((service, instance), has)| {
            let (state, error) = state_of(has, &statuses);
            let since = has.values().map(|follower| follower.connected_unix_seconds).min().unwrap_or(0);
            let acknowledged = has.iter().map(|(kind, it)| ((*kind).to_owned(), revision(it.acknowledged).into()));
            json!({
                "service": service,
                "instance": instance,
                "state": state,
                "error": error,
                "connected": json::moment(i64::try_from(since).unwrap_or(0)),
                "reports": reporting.contains(&((*instance).into(), (*service).into())),
                "acknowledged": acknowledged.collect::<serde_json::Map<_, _>>(),
            })
        }).collect::<Vec<_>>(),
    })))
}

fn revision(position: Option<Position>) -> Option<String> {
    position.map(|position| format!("{}.{}", position.epoch, position.revision))
}

/// Of which time.
#[derive(Deserialize)]
pub(super) struct Since {
    #[serde(default)]
    hours: u32,
}

/// What was refused, or passed because of audit mode alone: most often first.
pub(super) async fn refusals(State(dashboard): Shared, _: SignedIn, Query(Since { hours }): Query<Since>) -> Answer {
    let answer = dashboard.record(hours).await?;
    let not_allowed = |total: &&FlowTotal| total.flow.as_ref().is_some_and(|flow| flow.decision() != Decision::Allowed);
    let mut totals: Vec<_> = answer.flows.iter().filter(not_allowed).collect();
    totals.sort_by_key(|total| std::cmp::Reverse(total.flow.as_ref().map_or(0, |flow| flow.count)));
    let now = dashboard.rates.recent(clock::unix_seconds());
    let row = |total: &&FlowTotal| {
        let mut json = json::flow_total(total);
        let recent = total.flow.as_ref().and_then(|flow| now.get(&FlowKey::of(flow)));
        json["recent"] = recent.copied().unwrap_or(0).into();
        json
    };
    Ok(Json(json!({
        "from": json::moment(answer.from_unix_seconds),
        "until": json::moment(answer.until_unix_seconds),
        "window": WINDOW,
        "total": totals.len(),
        "refusals": totals.iter().take(ROWS).map(row).collect::<Vec<_>>(),
    })))
}

/// What the sidecars remember of one request: what `tenon explain REQUEST_ID -o json` prints.
pub(super) async fn explain(State(dashboard): Shared, signed_in: SignedIn, Path(id): Path<String>) -> Answer {
    dashboard.audit.record(signed_in.does("Policy/Explain", &id)).await.map_err(Status::from)?;
    let mut found = dashboard.fleet.explain(ExplainRequest { request_id: id.clone() }).await?;
    json::in_order(&mut found.decisions);
    let described = dashboard.described().await.ok();
    let proposal = described.zip(found.decisions.first()).and_then(|(policy, first)| json::proposal(&policy, first));
    let told = json::explained(&found.decisions, (found.asked, found.answered), proposal.as_ref());
    told.map(Json).ok_or_else(|| {
        let (asked, answered) = (found.asked, found.answered);
        Problem::new(
            StatusCode::NOT_FOUND,
            format!(
                "no sidecar remembers request {id}: {asked} were asked and {answered} answered. They remember only their last \
                 calls that were refused or that audit mode let pass, and forget them when they restart"
            ),
        )
    })
}

/// One tenant, by its id or by a host of it, as the TCS has it.
pub(super) async fn tenant(State(dashboard): Shared, signed_in: SignedIn, Path(name): Path<String>) -> Answer {
    dashboard.audit.record(signed_in.does("Tenants/Get", &name)).await.map_err(Status::from)?;
    let Some(mut tcs) = dashboard.tcs.clone() else {
        let text = "this policy service does not know where the TCS is: start it with --tcs HOST:PORT";
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, text));
    };
    // Ids have no dots, and of the hosts nearly all do.
    let by = if name.contains('.') { By::Host(name) } else { By::TenantId(name) };
    let mut request = tonic::Request::new(GetRequest { by: Some(by), at_least: None });
    request.set_timeout(std::time::Duration::from_secs(5));
    let tenant = tcs.get(request).await?.into_inner();
    let tenant = serde_json::to_value(&tenant);
    tenant.map(Json).map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// The rollout that runs or ran last, and what was changed before.
pub(super) async fn rollouts(State(dashboard): Shared, _: SignedIn) -> Answer {
    let rollout = dashboard.rollouts.status().await.map_err(|error| unreadable(&error))?;
    let history = dashboard.engine.history(HISTORY).await.map_err(|error| unreadable(&error))?;
    Ok(Json(json!({
        "rollout": rollout.as_ref().map(json::rollout),
        "history": history.iter().map(json::history_entry).collect::<Vec<_>>(),
    })))
}

/// How a rollout is to end.
#[derive(Deserialize)]
pub(super) struct End {
    /// The new policy becomes everybody's; else nobody's.
    complete: bool,
    #[serde(default)]
    note: String,
}

/// Completes the rollout that runs, or gives it up: what `tenon policy rollout promote` and `abort` do.
pub(super) async fn end_rollout(
    State(dashboard): Shared,
    signed_in: SignedIn,
    Json(End { complete, note }): Json<End>,
) -> Answer {
    signed_in.must_be(OperatorRole::Operator)?;
    crate::service::check_note(&note)?;
    let what = if complete { "complete" } else { "give up" };
    let begun = dashboard.audit.begin_anyway(signed_in.does("Policy/EndRollout", what)).await;
    let by = signed_in.peer.id.to_string();
    let ended = rollout::service::end(dashboard.rollouts.clone(), complete, by, note).await;
    begun.end_with(&ended, |_, event| event);
    let ended = ended?;
    Ok(Json(json!({"rollout": ended.rollout.as_ref().map(json::rollout)})))
}
