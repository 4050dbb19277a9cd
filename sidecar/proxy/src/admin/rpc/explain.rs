//! `Explain`: what would happen to a call at this moment. The decisions are those of calls, from what calls are decided from;
//! nothing is counted, and nobody is called.

use std::sync::LazyLock;

use mesh_config::names::{RegionName, ServiceName, TenantId};
use mesh_identity::clock;
use sidecar_core::{
    Lookup, Named, Peer, Reason, Refusal, Tenants as _, Wanted,
    explain::{self, Call, Explanation, Granted, TransactionToken},
    inbound::{self, Waited},
    limits::rate::Bearer,
    outbound,
    policy::{Policy, Proof, Rule, TenantRequirement},
};
use tenon_proto::admin::v1::{self as proto, Conditions, Direction, ExplainRequest, ExplainResponse, Nearest};
use tokio::time::timeout;
use tonic::Status;

use super::{endpoints::Surroundings, tenants::ASKING};
use crate::{
    live::Live,
    tenants::{Answered, TenantRef},
};

/// Candidates that are told.
const CANDIDATES: usize = 100;
/// The longest path.
const LONGEST_PATH: usize = 8 << 10;

/// # Errors
/// INVALID_ARGUMENT names the field.
pub(super) async fn explain(live: &Live, request: &ExplainRequest) -> Result<ExplainResponse, Status> {
    let direction =
        Direction::try_from(request.direction).map_err(|_| invalid("direction", "expected INBOUND or OUTBOUND"))?;
    let path = request.path.as_str();
    if !path.starts_with('/') || path.len() > LONGEST_PATH || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid("path", "expected /package.Service/Method"));
    }
    let tenant = Some(request.tenant.as_str()).filter(|tenant| !tenant.is_empty());
    if let Some(of_token) = request.transaction.as_deref().filter(|tenant| !tenant.is_empty()) {
        TenantId::try_from(of_token).map_err(|error| invalid("transaction", &error.to_string()))?;
    }
    match direction {
        Direction::Unspecified | Direction::Inbound => incoming(live, request, tenant).await,
        Direction::Outbound => outgoing(live, request, tenant).await,
    }
}

fn invalid(field: &str, problem: &str) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

/// A name that must be this sidecar's own, or is not given.
fn own(field: &str, given: &str, own: &str) -> Result<(), Status> {
    if given.is_empty() || given == own {
        return Ok(());
    }
    Err(invalid(field, &format!("this is a sidecar of {own}, not of {given}: ask one of those, or leave it out")))
}

fn service<'a>(field: &str, name: &'a str) -> Result<&'a str, Status> {
    ServiceName::try_from(name).map_err(|error| invalid(field, &error.to_string()))?;
    Ok(name)
}

async fn incoming(live: &Live, request: &ExplainRequest, tenant: Option<&str>) -> Result<ExplainResponse, Status> {
    let me = live.config.service.as_str();
    let caller = service("caller", &request.caller)?;
    own("service", &request.service, me)?;
    own("region", &request.region, live.config.region.as_ref().map(RegionName::as_str).unwrap_or_default())?;
    let call = Call {
        caller,
        service: me,
        path: without_query(&request.path),
        tenant,
        region: None,
        transaction: request
            .transaction
            .as_deref()
            .map(|of| TransactionToken { tenant: Some(of).filter(|tenant| !tenant.is_empty()) }),
    };
    let mut answer: Option<Lookup<TenantRef>> = None;
    loop {
        // One snapshot a look: no decision mixes two revisions.
        let state = live.inbound_now();
        let tenants = Answered { tenants: &live.tenants, answer: answer.as_ref() };
        let waited = Waited { for_revision: true, for_tenant: answer.is_some() };
        let decided = match connects(live, &state, &call) {
            Ok(peer) => explain::inbound(&state, &tenants, peer, &call, clock::unix_seconds(), waited),
            Err(refused) => return Ok(told(live, &state, *refused)),
        };
        match decided {
            Ok((explanation, Some(granted))) => return Ok(limited(live, &state, caller, explanation, &granted)),
            Ok((explanation, None)) => return Ok(told(live, &state, explanation)),
            Err(inbound::Stop::Resolve(wanted)) if answer.is_none() => answer = Some(resolve(live, &wanted).await),
            // Nothing else is waited for: the call names no revision, and the tenant was asked for.
            Err(inbound::Stop::Resolve(_) | inbound::Stop::WaitFor(_)) => {
                return Err(Status::unavailable("the tenant is not held and cannot be asked for"));
            }
            Err(inbound::Stop::Refused(refusal)) => {
                return Ok(told(live, &state, Explanation::of(policy(&state), refusal)));
            }
        }
    }
}

/// As a call has it asked for.
async fn resolve(live: &Live, wanted: &Wanted) -> Lookup<TenantRef> {
    timeout(ASKING, live.tenants.resolve(wanted)).await.unwrap_or(Lookup::NotHeld)
}

/// Sidecars compare the path without its query.
fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

fn policy(state: &inbound::State) -> &Policy {
    static NOTHING: LazyLock<Policy> = LazyLock::new(Policy::empty);
    state.policy.as_deref().unwrap_or(&NOTHING)
}

/// Who would be at the other end of the connection; or why TLS would end it.
fn connects<'c>(live: &Live, state: &inbound::State, call: &Call<'c>) -> Result<Peer<'c>, Box<Explanation>> {
    if live.identity.revoked().services.contains(call.caller) {
        let message = format!("the identity of {} is revoked: TLS ends its connections", call.caller);
        let refused = Refusal::new(Reason::PathNotAllowed, message);
        return Err(Box::new(Explanation { reason: None, ..Explanation::of(policy(state), refused) }));
    }
    if policy(state).knows_outside(call.caller) {
        return Ok(Peer::Outside(call.caller));
    }
    // Before the services of the mesh are known nobody can be said not to be one.
    if live.is_service(call.caller) || live.outbound().destinations.is_none() {
        return Ok(Peer::Service(call.caller));
    }
    Err(Box::new(Explanation::of(policy(state), explain::stranger(policy(state), call))))
}

/// A call that passes so far, and what the limits would say to one more at this moment.
fn limited(
    live: &Live,
    state: &inbound::State,
    caller: &str,
    explanation: Explanation,
    granted: &Granted<TenantRef>,
) -> ExplainResponse {
    let rule = granted.rule.and_then(|index| Some((policy(state).rule(index)?, index)));
    let party = granted.tenant.as_deref().map_or(Bearer::Caller(caller), |tenant| Bearer::Tenant(tenant.id()));
    let beyond = rule.and_then(|(rule, index)| live.limits.ask_rate(rule, index, party));
    let next = beyond.as_ref().and_then(Refusal::retry_after).unwrap_or_default();
    let limited = explanation.limited;
    let refused = |refusal| Explanation { limited, ..Explanation::of(policy(state), refusal) };
    let explanation = match (beyond, live.limits.ask_memory()) {
        (Some(refusal), _) if rule.is_none_or(|(rule, _)| !rule.audit) => refused(refusal),
        (_, Some(short)) => refused(short),
        (Some(refusal), None) => Explanation { audited: explanation.audited.or(Some(refusal.reason)), ..explanation },
        (None, None) => explanation,
    };
    let mut told = told(live, state, explanation);
    if let Some(rate) = &mut told.rate {
        rate.next_ms = u64::try_from(next.as_millis()).unwrap_or(u64::MAX);
    }
    told
}

fn told(live: &Live, state: &inbound::State, explanation: Explanation) -> ExplainResponse {
    let rule = explanation.rule_of(policy(state));
    let mut assumed = explanation.assumed;
    assumed.push("the caller's certificate and its tokens are good".to_owned());
    ExplainResponse {
        allowed: Some(explanation.allowed),
        reason: explanation.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        conditions: rule.map(conditions),
        message: explanation.message.unwrap_or_default(),
        nearest: explanation.nearest.map(|nearest| Nearest {
            allowlist: nearest.allowlist,
            rule: nearest.rule,
            source: nearest.source,
            missed: nearest.missed.as_str().to_owned(),
            allows: nearest.allows,
        }),
        condition: explanation.condition.map(|condition| condition.as_str().to_owned()).unwrap_or_default(),
        audited: explanation.audited.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        rate: explanation.limited.map(|limited| proto::Rate {
            calls: limited.rate.count,
            seconds: limited.rate.per.as_secs(),
            burst: limited.rate.burst,
            of: if limited.of_the_tenant { "tenant" } else { "caller" }.to_owned(),
            audit: limited.audit,
            next_ms: 0,
        }),
        allowlist: explanation.allowlist.unwrap_or_default(),
        rule: explanation.rule.unwrap_or_default(),
        source: explanation.source.unwrap_or_default(),
        policy_revision: state.policy_position.map(|position| position.to_string()).unwrap_or_default(),
        tenant_revision: live.tenants.position().map(|position| position.to_string()).unwrap_or_default(),
        candidates: Vec::new(),
        more_candidates: 0,
        assumed,
    }
}

fn conditions(rule: &Rule) -> Conditions {
    let tenant = match rule.tenant {
        TenantRequirement::Required => "required",
        TenantRequirement::Optional => "optional",
        TenantRequirement::None => "none",
    };
    let proof = match rule.proof {
        Proof::None => "none",
        Proof::Transaction => "transaction",
    };
    Conditions { tenant: tenant.to_owned(), proof: proof.to_owned(), audit: rule.audit }
}

async fn outgoing(live: &Live, request: &ExplainRequest, tenant: Option<&str>) -> Result<ExplainResponse, Status> {
    own("caller", &request.caller, live.config.service.as_str())?;
    let called = service("service", &request.service)?;
    let authority = match request.region.as_str() {
        "" => called.to_owned(),
        region => {
            RegionName::try_from(region).map_err(|error| invalid("region", &error.to_string()))?;
            format!("{called}.{region}")
        }
    };
    let tenant_ids = tenant.map_or(Named::None, Named::One);
    let head = outbound::Head { authority: &authority, tenant_ids, tenant_hosts: Named::None };
    let state = live.outbound();
    let serving = |tenant: &str| live.in_flight.contains(tenant);
    let decided = match outbound::decide(&state, &live.tenants, &head, serving, false) {
        Err(outbound::Stop::Resolve(wanted)) => {
            let answer = resolve(live, &wanted).await;
            let tenants = Answered { tenants: &live.tenants, answer: Some(&answer) };
            outbound::decide(&state, &tenants, &head, serving, true).map_err(Refusal::from)
        }
        decided => decided.map_err(Refusal::from),
    };
    let decided = decided.and_then(|verdict| live.limits.ask_memory().map_or(Ok(verdict), Err));
    let (policy, tenants) = live.revisions();
    let mut told = ExplainResponse {
        allowed: Some(decided.is_ok()),
        policy_revision: policy.map(|position| position.to_string()).unwrap_or_default(),
        tenant_revision: tenants.map(|position| position.to_string()).unwrap_or_default(),
        assumed: vec!["what the callee's own sidecar decides is not asked for".to_owned()],
        ..ExplainResponse::default()
    };
    match decided {
        Ok(verdict) => {
            let around = Surroundings::of(live);
            let (candidates, name) = (verdict.candidates.in_order(), verdict.destination.service().as_str());
            told.candidates =
                candidates.take(CANDIDATES).map(|(tier, endpoint)| around.shown(name, tier, endpoint)).collect();
            let more = verdict.candidates.len().saturating_sub(CANDIDATES);
            told.more_candidates = u32::try_from(more).unwrap_or(u32::MAX);
        }
        Err(refusal) => {
            (told.reason, told.message) = (refusal.reason.as_str().to_owned(), refusal.message);
        }
    }
    Ok(told)
}
