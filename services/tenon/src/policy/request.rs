//! `tenon explain`: why one request was refused, as the sidecars remember it.

use ::policy::json;
use futures_util::future::join_all;
use tenon_proto::policy::v1::{ExplainRequest, ExplainResponse, RecentDecision, flow::Decision};
use tonic::Status;

use super::{client, describe_policy};
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
            out.json(&serde_json::json!({
                "requestId": args.request_id, "reason": null, "nearest": null,
                "message": "no connected sidecar remembers this request",
                "decisions": [], "asked": found.asked, "answered": found.answered,
            }))?;
            out.flush()?;
        }
        return Err(unknown(&args.request_id, &found));
    };
    let proposal = match describe_policy(&mesh).await {
        Ok(described) => json::proposal(&described, decision),
        Err(_) => None,
    };
    if out.is_json() {
        out.json(&json::explained(&found.decisions, (found.asked, found.answered), proposal.as_ref()))?;
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
    json::in_order(&mut found.decisions);
    found
}

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
    line("what to do:", json::what_to_do(reason));
    line("policy revision", &decision.policy_revision);
    line("tenant revision", &decision.tenant_revision);
    lines
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
        let json = json::explained(&found.decisions, (4, 2), None).unwrap();
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
        assert!(json::decision(&limited)["next"].as_str().is_some_and(|next| next.contains("RetryInfo")));
        let overloaded = RecentDecision { reason: "OVERLOADED".into(), rule: String::new(), ..limited };
        let text = words(&overloaded).join("\n");
        assert!(text.contains("start more instances"), "{text}");
        assert_eq!(json::decision(&decision("inbound", 1))["next"], serde_json::Value::Null);
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
