//! `tenon explain`: why one request was refused, as the sidecars remember it.

use futures_util::future::join_all;
use serde_json::{Value, json};
use sidecar_core::{
    Reason,
    explain::{Call, Mesh as Model, Proposal},
};
use tenon_proto::policy::v1::{DescribeResponse, ExplainRequest, ExplainResponse, RecentDecision, flow::Decision};
use tonic::Status;

use super::{client, describe_policy, explain::change};
use crate::{
    cli,
    failure::{Answer, Failure},
    operator::{Mesh, Role, reason},
    output::Output,
};

/// Runs the command. Exits 1 when no sidecar remembers the request.
///
/// # Errors
/// No mesh, or no policy service that answers.
pub async fn run(args: cli::ExplainRequest) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let found = ask(&mesh, &args.request_id).await?;
    let mut out = Output::stdout(args.output.output);
    let Some(decision) = found.decisions.first() else {
        if out.is_json() {
            out.json(&json!({
                "requestId": args.request_id, "reason": null, "nearest": null,
                "message": "no connected sidecar remembers this request",
                "decisions": [], "asked": found.asked, "answered": found.answered,
            }))?;
            out.flush()?;
        }
        return Err(unknown(&args.request_id, &found));
    };
    let proposal = match describe_policy(&mesh).await {
        Ok(described) => propose(&described, decision),
        Err(_) => None,
    };
    if out.is_json() {
        out.json(&json(&found, decision, proposal.as_ref()))?;
    } else {
        for decision in &found.decisions {
            words(decision).iter().try_for_each(|line| out.line(line))?;
        }
        if let Some(proposal) = &proposal {
            let when = if decision.decision() == Decision::Audited { " when enforced" } else { "" };
            out.line(&format!("  to allow it{when}: {proposal}"))?;
        }
        for problem in &found.problems {
            out.line(&format!("  not asked: {problem}"))?;
        }
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// What all processes of the policy service found together.
#[derive(Debug, Default)]
struct Found {
    /// That of the callee's sidecar first.
    decisions: Vec<RecentDecision>,
    asked: u32,
    answered: u32,
    /// Processes that did not answer, and why.
    problems: Vec<String>,
}

/// Each process knows its own sidecars alone.
async fn ask(mesh: &Mesh, request_id: &str) -> Result<Found, Failure> {
    let processes = mesh.processes().into_iter().filter(|process| process.role == Role::Policy);
    let asked = processes.map(|process| async move {
        let request = ExplainRequest { request_id: request_id.to_owned() };
        let answer = client(mesh.channel_to(&process)).explain(request).await;
        (process.title, answer.map(tonic::Response::into_inner))
    });
    let mut answers = join_all(asked).await;
    if answers.iter().all(|(_, answer)| answer.is_err())
        && let Some((_, Err(status))) = answers.pop()
    {
        return Err(mesh.failure(Role::Policy, "cannot ask the sidecars", &status));
    }
    Ok(together(answers))
}

fn together(answers: Vec<(String, Result<ExplainResponse, Status>)>) -> Found {
    let mut found = Found::default();
    for (title, answer) in answers {
        match answer {
            Ok(answer) => {
                found.decisions.extend(answer.decisions);
                found.asked += answer.asked;
                found.answered += answer.answered;
            }
            Err(status) => found.problems.push(format!("{title}: {}", reason(&status))),
        }
    }
    let order =
        |decision: &RecentDecision| (decision.direction != INBOUND, decision.at_unix_ms, decision.instance.clone());
    found.decisions.sort_by_cached_key(order);
    found.decisions.dedup();
    found
}

const INBOUND: &str = "inbound";

fn unknown(request_id: &str, found: &Found) -> Failure {
    let Found { asked, answered, problems, .. } = found;
    let problems: String = problems.iter().map(|problem| format!("\nnot asked: {problem}")).collect();
    let silent =
        if answered < asked { format!(", {} of them did not answer", asked - answered) } else { String::new() };
    Failure::new(format!(
        "no sidecar remembers request {request_id}: {asked} were asked{silent}{problems}"
    ))
    .next(
        "sidecars remember only their last calls that were refused, or that audit mode let pass, and forget them when they \
         restart: check the id (`request_id` of the refusal and of the access log); `tenon policy explain --caller ... \
         --service ... --path ...` decides a call anew",
    )
}

/// The smallest change of the policy in force that would let the same call pass.
fn propose(described: &DescribeResponse, decision: &RecentDecision) -> Option<Proposal> {
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

fn words(decision: &RecentDecision) -> Vec<String> {
    let RecentDecision { caller, service, path, reason, message, .. } = decision;
    let verdict = match decision.decision() {
        Decision::Audited => format!("passed in audit mode, enforced it would be refused: {reason}: {message}"),
        Decision::Unspecified | Decision::Allowed | Decision::Refused => format!("refused: {reason}: {message}"),
    };
    let at = jiff::Timestamp::from_millisecond(decision.at_unix_ms).map(|at| format!("{at:.3}")).unwrap_or_default();
    let mut lines = vec![
        format!("{caller} -> {service} {path}: {verdict}"),
        format!("  decided {at} by {}, {}", decision.instance, decision.direction),
    ];
    let mut line = |what: &str, text: &str| {
        if !text.is_empty() {
            lines.push(format!("  {what} {text}"));
        }
    };
    line("tenant", &decision.tenant);
    if !decision.rule.is_empty() {
        let at = if decision.source.is_empty() { String::new() } else { format!(" at {}", decision.source) };
        line("decided by", &format!("rule {} of allowlist {}{at}", decision.rule, decision.allowlist));
    }
    line("nearest:", &decision.nearest);
    line("what to do:", what_to_do(reason));
    line("policy revision", &decision.policy_revision);
    line("tenant revision", &decision.tenant_revision);
    lines
}

/// Of refusals that no rule would lift by allowing more: the call was allowed, and one too many.
fn what_to_do(reason: &str) -> &'static str {
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

fn json(found: &Found, decision: &RecentDecision, proposal: Option<&Proposal>) -> Value {
    let mut json = decision_json(decision);
    json["proposal"] = proposal.map(|proposal| proposal.changes.iter().map(change).collect::<Vec<_>>()).into();
    json["decisions"] = found.decisions.iter().map(decision_json).collect();
    json["asked"] = found.asked.into();
    json["answered"] = found.answered.into();
    json
}

fn decision_json(decision: &RecentDecision) -> Value {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(direction: &str, at: i64) -> RecentDecision {
        RecentDecision {
            request_id: "r1".into(),
            at_unix_ms: at,
            instance: format!("{direction}-1"),
            direction: direction.into(),
            caller: "wiki".into(),
            service: "media".into(),
            path: "/media.v1.Media/Erase".into(),
            decision: Decision::Refused.into(),
            reason: "PATH_NOT_ALLOWED".into(),
            message: "no rule allows it".into(),
            nearest: "rule read of media (media.yaml:7) missed by method: it allows /media.v1.Media/Get".into(),
            policy_revision: "5.12".into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_the_callee_decided_comes_first_and_once() {
        let answer = |decisions| ExplainResponse { decisions, asked: 2, answered: 1 };
        let found = together(vec![
            ("one".into(), Ok(answer(vec![decision("outbound", 1), decision("inbound", 2)]))),
            ("two".into(), Ok(answer(vec![decision("inbound", 2)]))),
            ("three".into(), Err(Status::unavailable("gone"))),
        ]);
        let directions: Vec<_> = found.decisions.iter().map(|decision| decision.direction.as_str()).collect();
        assert_eq!((directions, found.asked, found.answered), (vec!["inbound", "outbound"], 4, 2));
        assert_eq!(found.problems, ["three: gone"]);
        let json = json(&found, &found.decisions[0], None);
        assert_eq!(
            (&json["requestId"], &json["reason"], &json["instance"]),
            (&"r1".into(), &"PATH_NOT_ALLOWED".into(), &"inbound-1".into())
        );
        assert!(json["nearest"].as_str().unwrap().contains("missed by method"), "{json}");
    }

    #[test]
    fn a_decision_is_told_with_who_made_it_and_from_what() {
        let lines = words(&decision("inbound", 1_700_000_000_250)).join("\n");
        let expected = "wiki -> media /media.v1.Media/Erase: refused: PATH_NOT_ALLOWED: no rule allows it\n  \
                        decided 2023-11-14T22:13:20.250Z by inbound-1, inbound\n  \
                        nearest: rule read of media (media.yaml:7) missed by method: it allows /media.v1.Media/Get\n  \
                        policy revision 5.12";
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_call_that_was_one_too_many_is_told_with_what_to_do() {
        let limited = RecentDecision {
            reason: "TENANT_RATE_LIMITED".into(),
            message: "tenant acme has used up the rate of rule read: 5 calls in 60 s".into(),
            allowlist: "media".into(),
            rule: "read".into(),
            source: "media.yaml:7".into(),
            nearest: String::new(),
            ..decision("inbound", 1_700_000_000_250)
        };
        let text = words(&limited).join("\n");
        for part in ["rate of rule read: 5 calls in 60 s", "decided by rule read of allowlist media at media.yaml:7"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.contains("what to do:") && text.contains("raise the rule's `rate`"), "{text}");
        assert!(decision_json(&limited)["next"].as_str().is_some_and(|next| next.contains("RetryInfo")));
        let overloaded = RecentDecision { reason: "OVERLOADED".into(), rule: String::new(), ..limited };
        let text = words(&overloaded).join("\n");
        assert!(text.contains("start more instances"), "{text}");
        assert_eq!(decision_json(&decision("inbound", 1))["next"], Value::Null);
    }

    #[test]
    fn an_unknown_request_says_how_many_were_asked() {
        let found = Found { asked: 3, answered: 2, ..Found::default() };
        let failure = unknown("r9", &found).to_string();
        assert!(
            failure.starts_with("no sidecar remembers request r9: 3 were asked, 1 of them did not answer\n"),
            "{failure}"
        );
    }
}
