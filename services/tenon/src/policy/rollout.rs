//! `tenon policy rollout`, and following one that `tenon policy apply` began.

use std::time::Duration;

use ::policy::json;
use indicatif::ProgressBar;
use replica::Position;
use serde_json::{Value, json};
use tenon_proto::policy::v1::{
    ApplyResponse, EndRolloutRequest, RolloutRequest, RolloutStatus, policy_client::PolicyClient, rollout_status::State,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::{Status, transport::Channel};

use super::{
    acks::{Patience, Whole},
    apply, client, describe_policy,
    words::{call, position},
};
use crate::{
    cli::{PolicyRollout, WaitArgs},
    failure::{Answer, Failure},
    operator::{Mesh, Role, reason},
    output::Output,
};

/// How often a rollout is asked for.
const POLL: Duration = Duration::from_secs(1);
/// How long the policy service may be away while a rollout is followed: another process of it takes its place meanwhile.
const AWAY: Duration = Duration::from_secs(60);

/// What to do when it is not known what became of the end of a rollout.
const FIND_OUT: &str = "it may have been made: `tenon policy rollout` shows how the rollout stands";

/// Runs the command.
///
/// # Errors
/// No mesh, no answer, or nothing to end.
pub async fn run(args: PolicyRollout) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let mut policy = client(mesh.channel(Role::Policy));
    let rollout = if args.complete || args.abort {
        let request = EndRolloutRequest { complete: args.complete, note: args.message };
        let not_done = if args.complete { "the rollout was not completed" } else { "the rollout was not given up" };
        let ended = policy.end_rollout(request).await;
        ended.map_err(|status| mesh.write_failure(Role::Policy, not_done, FIND_OUT, &status))?.into_inner().rollout
    } else {
        let asked = policy.rollout(RolloutRequest {}).await;
        asked.map_err(|status| mesh.failure(Role::Policy, "cannot ask for the rollout", &status))?.into_inner().rollout
    };
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&rollout.as_ref().map_or(Value::Null, json::rollout))?;
    } else {
        match &rollout {
            None => out.line("there was no rollout yet")?,
            Some(rollout) => show(&mut out, rollout)?,
        }
    }
    out.flush()?;
    Ok(rollout.is_none_or(|rollout| rollout.state() != State::Halted).into())
}

fn show(out: &mut Output, rollout: &RolloutStatus) -> Result<(), Failure> {
    out.line(&words(rollout))?;
    let rows: Vec<_> = rollout
        .canaries
        .iter()
        .map(|canary| {
            let state = match (canary.nack.as_str(), canary.acknowledged) {
                ("", true) => "acknowledged".to_owned(),
                ("", false) => "waiting".to_owned(),
                (nack, _) => format!("refused: {nack}"),
            };
            vec![canary.instance.clone(), canary.service.clone(), state]
        })
        .collect();
    if !rows.is_empty() {
        out.table(&["canary", "service", "state"], &rows)?;
    }
    refused(rollout).iter().try_for_each(|line| out.line(line))
}

/// Says that a rollout began, and follows it.
///
/// # Errors
/// It was halted or ended; or nobody knows, for the policy service does not answer.
pub(super) async fn begun(
    mesh: &Mesh,
    out: &mut Output,
    answer: &ApplyResponse,
    waiting: &WaitArgs,
) -> Result<Answer, Failure> {
    let revision = Position::new(answer.epoch, answer.revision);
    if !out.is_json() {
        out.line(&format!("rollout begun: revision {revision}"))?;
        out.flush()?;
    }
    let mut shown = json!({"epoch": answer.epoch, "revision": answer.revision, "changes": answer.changes});
    let mut failure = None;
    if !waiting.no_wait {
        let rollout = match follow(mesh, revision).await {
            Ok(rollout) => rollout,
            Err(stopped) => return Err(stopped.failure(revision)),
        };
        shown["rollout"] = json::rollout(&rollout);
        if !out.is_json() {
            out.line(&words(&rollout))?;
        }
        failure = not_completed(&rollout);
        if failure.is_none() {
            let described = describe_policy(mesh).await?;
            let whole = Whole::new(&described.positions, described.epoch, described.revision);
            let (outcome, failed) = apply::acknowledged(mesh, &whole, waiting, "the rollout is completed").await;
            if let Some(outcome) = outcome {
                shown["sidecars"] = outcome.json();
                if !out.is_json() {
                    out.line(&outcome.words())?;
                }
            }
            failure = failed;
        }
    }
    if out.is_json() {
        out.json(&shown)?;
    }
    out.flush()?;
    failure.map_or(Ok(Answer::Yes), Err)
}

/// Why a rollout is no longer followed, though it may run.
enum Stopped {
    Interrupted,
    /// Another one took its place.
    Another(RolloutStatus),
    Silent(Status),
}

impl Stopped {
    fn failure(self, revision: Position) -> Failure {
        let end = "`tenon policy rollout` shows it, and ends it with --complete or --abort";
        match self {
            Self::Interrupted => {
                Failure::new(format!("no longer followed: the rollout of revision {revision} goes on by itself"))
                    .next(end)
            }
            Self::Another(other) => Failure::new(format!(
                "the rollout of revision {revision} is over: one of revision {}, by {}, took its place",
                position(other.revision.as_ref()),
                other.by
            ))
            .next("`tenon policy history` says what became of it"),
            Self::Silent(status) => Failure::new(format!(
                "the policy service no longer says how the rollout of revision {revision} stands, and it may go on: {}",
                reason(&status)
            ))
            .next(end),
        }
    }
}

/// Until the rollout that began with `revision` is over, or Ctrl-C.
async fn follow(mesh: &Mesh, revision: Position) -> Result<RolloutStatus, Stopped> {
    let progress = Patience::new(AWAY).progress;
    let outcome = tokio::select! {
        outcome = poll(client(mesh.channel(Role::Policy)), revision, &progress) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Stopped::Interrupted),
    };
    progress.finish_and_clear();
    outcome
}

async fn poll(
    mut policy: PolicyClient<Channel>,
    revision: Position,
    progress: &ProgressBar,
) -> Result<RolloutStatus, Stopped> {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        ticks.tick().await;
        match policy.rollout(RolloutRequest {}).await {
            Ok(answer) => {
                heard = Instant::now();
                // None, or an earlier one: this process of the policy service does not know of it yet.
                let Some(rollout) = answer.into_inner().rollout else { continue };
                let of = position(rollout.revision.as_ref());
                if of > revision {
                    return Err(Stopped::Another(rollout));
                }
                if of == revision {
                    progress.set_message(words(&rollout));
                    if rollout.state() != State::Running {
                        return Ok(rollout);
                    }
                }
            }
            Err(status) if heard.elapsed() > AWAY => return Err(Stopped::Silent(status)),
            Err(_) => {}
        }
    }
}

/// Nothing when it was completed.
fn not_completed(rollout: &RolloutStatus) -> Option<Failure> {
    let why = if rollout.reason.is_empty() { "no reason is given" } else { &rollout.reason };
    let lines: String = refused(rollout).into_iter().map(|line| format!("\n{line}")).collect();
    match rollout.state() {
        State::Completed => None,
        State::Halted => Some(
            Failure::new(format!("the rollout was halted, and the policy from before is in force everywhere: {why}{lines}"))
                .next("correct the policy and apply it again; `tenon policy diff -f DIR` names the calls that it would refuse"),
        ),
        State::Unspecified | State::Running | State::Ended => Some(
            Failure::new(format!("the rollout was ended: {why}{lines}"))
                .next("`tenon policy history` says by whom, and what is in force now"),
        ),
    }
}

/// What canaries refused that passed before, one a line.
fn refused(rollout: &RolloutStatus) -> Vec<String> {
    let line = |flow: &tenon_proto::policy::v1::Flow| {
        let call = call(&flow.caller, &flow.service, &flow.path);
        format!("{call}: {} {} {} times", json::verdict(flow), flow.reason, flow.count)
    };
    rollout.refused.iter().map(line).collect()
}

/// `rollout of 5.12: canaries acknowledged 2 of 2 (of 40 sidecars), held 3m of 10m`.
pub(super) fn words(rollout: &RolloutStatus) -> String {
    let revision = position(rollout.revision.as_ref());
    let acknowledged = rollout.canaries.iter().filter(|canary| canary.acknowledged).count();
    let hold = rollout.plan.as_ref().map_or(0, |plan| plan.hold_seconds);
    let state = match rollout.state() {
        State::Unspecified | State::Running => "running",
        State::Completed => "completed",
        State::Halted => "halted",
        State::Ended => "ended",
    };
    let why = if rollout.reason.is_empty() { String::new() } else { format!(": {}", rollout.reason) };
    format!(
        "rollout of {revision} by {}, {state}{why}; canaries acknowledged: {acknowledged} of {} (touches {} sidecars), held {} of {}",
        rollout.by,
        rollout.canaries.len(),
        rollout.touched,
        short(rollout.held_seconds),
        short(hold),
    )
}

/// `10m`, `1h30m`, `45s`.
fn short(seconds: u32) -> String {
    let parts = [(seconds / 3_600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let text: String = parts.iter().filter(|part| part.0 > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use tenon_proto::policy::v1::{CanaryStatus, Flow, PolicyRevision, RolloutPlan, flow::Decision};

    use super::*;

    fn rollout(state: State) -> RolloutStatus {
        let canary = |instance: &str, acknowledged| CanaryStatus {
            instance: instance.into(),
            service: "media".into(),
            acknowledged,
            nack: String::new(),
        };
        RolloutStatus {
            revision: Some(PolicyRevision { epoch: 5, revision: 12 }),
            state: state.into(),
            plan: Some(RolloutPlan { canary_percent: 5.0, hold_seconds: 600, services: Vec::new() }),
            by: "operator ann".into(),
            held_seconds: 185,
            canaries: vec![canary("m1", true), canary("m2", false)],
            touched: 40,
            ..Default::default()
        }
    }

    #[test]
    fn a_rollout_that_runs_says_how_far_it_is() {
        let expected = "rollout of 5.12 by operator ann, running; canaries acknowledged: 1 of 2 (touches 40 sidecars), held 3m5s of 10m";
        assert_eq!(words(&rollout(State::Running)), expected);
        assert_eq!((short(0), short(5_400)), ("0s".to_owned(), "1h30m".to_owned()));
    }

    #[test]
    fn one_that_was_halted_names_the_calls_that_it_refused() {
        assert_eq!(not_completed(&rollout(State::Completed)), None);
        let flow = Flow {
            caller: "wiki".into(),
            service: "media".into(),
            path: "/media.v1.Media/Get".into(),
            decision: Decision::Refused.into(),
            reason: "PATH_NOT_ALLOWED".into(),
            count: 3,
        };
        let reason = "canaries refuse calls that passed before".to_owned();
        let halted = RolloutStatus { refused: vec![flow], reason, ..rollout(State::Halted) };
        let failure = not_completed(&halted).unwrap().to_string();
        assert!(failure.contains("everywhere: canaries refuse calls that passed before\nwiki -> media /media.v1.Media/Get: REFUSED PATH_NOT_ALLOWED 3 times"), "{failure}");
        assert_eq!(json::rollout(&halted)["refused"][0]["count"], 3);
    }
}
