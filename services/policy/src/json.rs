//! What the policy service tells as JSON, which `tenon … -o json` prints and the dashboard is sent: one form for both.

use serde_json::{Value, json};
use sidecar_core::{
    Reason,
    explain::{Call, Change, Mesh as Model, Proposal},
};
use tenon_proto::policy::v1::{
    DescribeResponse, Flow, FlowTotal, HistoryEntry, RecentDecision, RolloutStatus, TappedCall, flow::Decision,
    tapped_call::Outcome,
};

/// A moment as RFC 3339 in UTC; `null` for 0 and less, which stand for "never".
pub fn moment(unix_seconds: i64) -> Value {
    match jiff::Timestamp::from_second(unix_seconds) {
        Ok(at) if unix_seconds > 0 => at.to_string().into(),
        Ok(_) | Err(_) => Value::Null,
    }
}

/// `ALLOWED`, `REFUSED` or `AUDITED`.
pub fn verdict(flow: &Flow) -> &'static str {
    match flow.decision() {
        Decision::Unspecified => "UNKNOWN",
        Decision::Allowed => "ALLOWED",
        Decision::Refused => "REFUSED",
        Decision::Audited => "AUDITED",
    }
}

/// A flow, as `tenon policy flows` has it.
pub fn flow(flow: &Flow) -> Value {
    json!({
        "caller": flow.caller,
        "service": flow.service,
        "path": flow.path,
        "decision": verdict(flow),
        "reason": flow.reason,
        "count": flow.count,
    })
}

/// The same with the hours of the first and the last call.
pub fn flow_total(total: &FlowTotal) -> Value {
    let mut json = flow(&total.flow.clone().unwrap_or_default());
    json["first"] = moment(total.first_unix_seconds);
    json["last"] = moment(total.last_unix_seconds);
    json
}

/// A change of the policy, as `tenon policy history` has it.
pub fn history_entry(entry: &HistoryEntry) -> Value {
    let revision = entry.revision.unwrap_or_default();
    json!({
        "epoch": revision.epoch,
        "revision": revision.revision,
        "at": moment(entry.at_unix_seconds),
        "by": entry.by,
        "action": entry.action().as_str_name(),
        "changes": entry.changes,
        "note": entry.note,
        "kept": entry.kept,
        "digest": entry.digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
    })
}

/// A rollout, as `tenon policy rollout status` has it.
pub fn rollout(rollout: &RolloutStatus) -> Value {
    let revision = rollout.revision.unwrap_or_default();
    let canaries = rollout.canaries.iter().map(|canary| {
        json!({
            "instance": canary.instance,
            "service": canary.service,
            "acknowledged": canary.acknowledged,
            "nack": some(&canary.nack),
        })
    });
    json!({
        "epoch": revision.epoch,
        "revision": revision.revision,
        "state": rollout.state().as_str_name(),
        "plan": rollout.plan.as_ref().map(|plan| json!({
            "canaryPercent": plan.canary_percent, "holdSeconds": plan.hold_seconds, "services": plan.services,
        })),
        "by": rollout.by,
        "startedAt": moment(rollout.started_unix_seconds),
        "heldSeconds": rollout.held_seconds,
        "canaries": canaries.collect::<Vec<_>>(),
        "touched": rollout.touched,
        "reason": rollout.reason,
        "refused": rollout.refused.iter().map(flow).collect::<Vec<_>>(),
    })
}

/// What sidecars remember of one request, as `tenon explain` has it: the first of `decisions` with everything that belongs
/// to the request. `None` where nobody remembers it.
pub fn explained(
    decisions: &[RecentDecision],
    (asked, answered): (u32, u32),
    proposal: Option<&Proposal>,
) -> Option<Value> {
    let mut json = decision(decisions.first()?);
    json["proposal"] = proposal.map(|proposal| proposal.changes.iter().map(change).collect::<Vec<_>>()).into();
    json["decisions"] = decisions.iter().map(decision).collect();
    json["asked"] = asked.into();
    json["answered"] = answered.into();
    Some(json)
}

/// The order in which decisions on one request are told: that of the callee's sidecar first; each once.
pub fn in_order(decisions: &mut Vec<RecentDecision>) {
    let order =
        |decision: &RecentDecision| (decision.direction != "inbound", decision.at_unix_ms, decision.instance.clone());
    decisions.sort_by_cached_key(order);
    decisions.dedup();
}

/// The smallest change of the policy in force that would let the same call pass.
pub fn proposal(described: &DescribeResponse, decision: &RecentDecision) -> Option<Proposal> {
    let model = Model::new(&described.services, &described.routes, &described.quarantines, None).ok()?;
    let call = Call {
        caller: &decision.caller,
        service: &decision.service,
        path: &decision.path,
        tenant: Some(decision.tenant.as_str()).filter(|tenant| !tenant.is_empty()),
        region: None,
        transaction: None,
    };
    model.explain(&call, mesh_identity::clock::unix_seconds()).ok()?.proposal
}

/// What one sidecar remembers of one request.
pub fn decision(decision: &RecentDecision) -> Value {
    let at = jiff::Timestamp::from_millisecond(decision.at_unix_ms).map(|at| at.to_string()).ok();
    json!({
        "requestId": decision.request_id,
        "allowed": decision.decision() == Decision::Audited,
        "reason": some(&decision.reason),
        "nearest": some(&decision.nearest),
        "message": decision.message,
        "next": some(what_to_do(&decision.reason)),
        "at": at,
        "instance": decision.instance,
        "direction": decision.direction,
        "caller": decision.caller,
        "service": decision.service,
        "path": decision.path,
        "tenant": some(&decision.tenant),
        "allowlist": some(&decision.allowlist),
        "rule": some(&decision.rule),
        "source": some(&decision.source),
        "policyRevision": some(&decision.policy_revision),
        "tenantRevision": some(&decision.tenant_revision),
    })
}

/// Of refusals that no rule would lift by allowing more: the call was allowed, and one too many. Else empty.
pub fn what_to_do(reason: &str) -> &'static str {
    match reason.parse() {
        Ok(Reason::TenantRateLimited) => {
            "nothing, where that much was not meant: the caller may call again after the time in the refusal's RetryInfo; \
             else raise the rule's `rate`, which each instance counts for itself (docs/overload.md)"
        }
        Ok(Reason::Overloaded) => {
            "the caller may call again, its sidecar tries other instances first; where it stays so, start more instances of \
             the service, or raise `limits` in its Route (docs/overload.md)"
        }
        Ok(_) | Err(_) => "",
    }
}

/// One step of a proposal: its kind, the same in words, and what of it a program can use.
pub fn change(change: &Change) -> Value {
    let mut json = match change {
        Change::Add { rule, field, value } => json!({
            "allowlist": rule.allowlist, "rule": rule.rule, "source": rule.source,
            "field": field, "value": value,
        }),
        Change::Remove { rule, field, value } => json!({
            "allowlist": rule.allowlist, "rule": rule.rule, "source": rule.source, "field": field, "value": value,
        }),
        Change::NewRule { service, allowlist, name, caller, path, tenant } => json!({
            "service": service, "allowlist": allowlist, "rule": name, "caller": caller, "path": path, "tenant": tenant,
        }),
        Change::Define { name } => json!({"name": name}),
        Change::Release { service } => json!({"service": service}),
        Change::Elsewhere { .. } => json!({}),
    };
    json["change"] = change.as_str().into();
    json["message"] = change.to_string().into();
    json
}

/// A call that ended, as `tenon tap` has it.
pub fn tapped(call: &TappedCall) -> Value {
    let at = jiff::Timestamp::from_millisecond(call.at_unix_ms).map(|at| at.to_string()).ok();
    let (mut code, mut why) = (None, None);
    match call.outcome() {
        Outcome::Finished => code = call.status.parse::<i32>().ok(),
        Outcome::Refused => why = some(&call.status),
        Outcome::Cancelled | Outcome::Broken | Outcome::Unspecified => {}
    }
    let headers = call.headers.iter();
    let headers = headers.map(|it| json!({"name": it.name, "value": it.value, "length": it.length}));
    json!({
        "requestId": call.request_id,
        "at": at,
        "instance": call.instance,
        "direction": call.direction,
        "caller": call.caller,
        "service": call.service,
        "path": call.path,
        "tenant": some(&call.tenant),
        "outcome": call.outcome().as_str_name().to_ascii_lowercase(),
        "grpcStatus": code,
        "reason": why,
        "microseconds": call.microseconds,
        "headers": headers.collect::<Vec<_>>(),
    })
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}
