//! `tenon policy apply`: a folder or a signed bundle becomes the whole policy, unless somebody else changed it meanwhile.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use replica::Position;
use tenon_proto::policy::v1::{
    ApplyRequest, ApplyResponse, Conflict, HistoryEntry, PolicyFile, RecordSignature, RolloutPlan,
};

use super::{
    acks::{self, Outcome, Patience, Whole},
    bundle, client, describe, describe_policy, load, problems_of, rollout,
    words::{action, changes, moment, on_the_wire, position},
};
use crate::{
    cli::{PolicyApply, WaitArgs},
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

/// What to do when it is not known what became of a policy.
const AGAIN: &str =
    "it may have been applied: `tenon policy history` says; applying the same files again changes nothing twice";

/// What is to be applied.
struct Policy {
    files: Vec<PolicyFile>,
    signatures: Vec<RecordSignature>,
    /// What problems name their files below.
    place: PathBuf,
    warning: Option<&'static str>,
}

/// Runs the command.
///
/// # Errors
/// Problems of the files, found here or by the policy service, or somebody else's change: nothing was changed then. No
/// answer: it may have been. Or it was applied, and not every sidecar took it.
pub async fn run(args: PolicyApply) -> Result<Answer, Failure> {
    let policy = read(&args)?;
    let mesh = Mesh::find(&args.mesh.data)?;
    let expected = expected(&mesh, args.expect).await?;
    let plan = args.canary.zip(args.hold).map(|(percent, hold)| RolloutPlan {
        canary_percent: percent.0,
        hold_seconds: u32::try_from(hold.as_secs()).unwrap_or(u32::MAX),
        services: args.services.clone(),
    });
    let in_steps = plan.is_some();
    let request = ApplyRequest {
        files: policy.files,
        expected: Some(on_the_wire(expected)),
        plan,
        signatures: policy.signatures,
        note: args.message,
    };
    let answer = client(mesh.channel(Role::Policy))
        .apply(request)
        .await
        .map_err(|status| mesh.write_failure(Role::Policy, &Work::Apply.not_done(), AGAIN, &status))?
        .into_inner();
    let mut out = Output::stdout(args.output.output);
    judged(&mut out, &answer, &policy.place, expected, Work::Apply)?;
    if let Some(warning) = policy.warning {
        // A closed pipe is not an error.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    if !answer.said.is_empty() {
        let _ = writeln!(io::stderr(), "{}", answer.said);
    }
    // The policy service says it when there is nothing to roll out.
    if in_steps && answer.said.is_empty() {
        return rollout::begun(&mesh, &mut out, &answer, &args.waiting).await;
    }
    settle(&mesh, &mut out, "applied", &answer, &args.waiting).await
}

fn read(args: &PolicyApply) -> Result<Policy, Failure> {
    if let Some(file) = &args.bundle {
        let (files, signatures, parsed) = bundle::open(file)?;
        return Ok(Policy { files, signatures, place: file.clone(), warning: without_instances(&parsed) });
    }
    let folder = args.folder.as_deref().unwrap_or(Path::new("."));
    let warning = without_instances(&load(folder)?);
    let files = mesh_config::read_folder(folder).map_err(|problems| problems_of(folder, &problems))?;
    let files = files.into_iter().map(|file| PolicyFile { path: file.path, text: file.text }).collect();
    Ok(Policy { files, signatures: Vec::new(), place: folder.to_owned(), warning })
}

/// The revision that must still be in force: as was typed, else what is in force now.
pub(super) async fn expected(mesh: &Mesh, typed: Option<crate::cli::Revision>) -> Result<Position, Failure> {
    if let Some(crate::cli::Revision::Whole(position)) = typed {
        return Ok(position);
    }
    let described = describe_policy(mesh).await?;
    let now = Position::new(described.epoch, described.revision);
    Ok(typed.map_or(now, |typed| typed.within(now.epoch)))
}

/// A policy is whole: one that leaves the instances out, as a folder of allowlists alone does, takes them away.
fn without_instances(mesh: &mesh_config::Mesh) -> Option<&'static str> {
    mesh.local().is_none_or(|local| local.instances.is_empty()).then_some(
        "this policy names no instances: every call will be NO_ENDPOINT; add a LocalMesh document and apply again",
    )
}

/// What the policy service was asked to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Apply,
    /// To this revision.
    RollBack(Position),
}

impl Work {
    /// `the policy was not applied`
    pub fn not_done(self) -> String {
        match self {
            Self::Apply => "the policy was not applied".to_owned(),
            Self::RollBack(to) => format!("the policy was not rolled back to {to}"),
        }
    }
}

/// Whether the policy service took it.
pub(super) fn judged(
    out: &mut Output,
    answer: &ApplyResponse,
    place: &Path,
    expected: Position,
    work: Work,
) -> Result<(), Failure> {
    if let Some(conflict) = &answer.conflict {
        if out.is_json() {
            let in_force = position(conflict.in_force.as_ref());
            let since: Vec<_> = conflict.since.iter().map(::policy::json::history_entry).collect();
            out.json(&serde_json::json!({"conflict": {
                "inForce": {"epoch": in_force.epoch, "revision": in_force.revision}, "since": since,
            }}))?;
            out.flush()?;
        }
        return Err(overtaken(conflict, expected, work));
    }
    if answer.problems.is_empty() {
        return Ok(());
    }
    let problems: Vec<_> = answer.problems.iter().map(|problem| describe(place, problem)).collect();
    let next = match work {
        Work::Apply => "correct what is named and apply again: nothing was changed",
        Work::RollBack(_) => "roll back to another revision of `tenon policy history`: nothing was changed",
    };
    Err(Failure::new(format!("{}\n{}", work.not_done(), problems.join("\n"))).next(next))
}

fn overtaken(conflict: &Conflict, expected: Position, work: Work) -> Failure {
    let in_force = position(conflict.in_force.as_ref());
    let line = |entry: &HistoryEntry| {
        let HistoryEntry { by, note, at_unix_seconds, revision, .. } = entry;
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        let (revision, at) = (position(revision.as_ref()), moment(*at_unix_seconds));
        format!("\n{revision} {at} {by} {}: {}{note}", action(entry), changes(entry))
    };
    let since: String = conflict.since.iter().map(line).collect();
    let next = match work {
        Work::Apply => format!(
            "take these changes into your files, see with `tenon policy diff -f DIR` what is left, and apply again with --expect {in_force}"
        ),
        Work::RollBack(to) => {
            format!(
                "see whether it is still meant, and roll back again: `tenon policy rollback {to} --expect {in_force}`"
            )
        }
    };
    Failure::new(format!(
        "{}: somebody else changed it meanwhile, from {expected} to {in_force}{since}",
        work.not_done()
    ))
    .next(next)
}

/// Says what was done, and waits for the sidecars. `done`: "applied".
pub(super) async fn settle(
    mesh: &Mesh,
    out: &mut Output,
    done: &str,
    answer: &ApplyResponse,
    waiting: &WaitArgs,
) -> Result<Answer, Failure> {
    let revision = Position::new(answer.epoch, answer.revision);
    let mut json = serde_json::json!({
        "epoch": answer.epoch, "revision": answer.revision, "changes": answer.changes,
    });
    if !out.is_json() {
        out.line(&format!("{done}: {} changes, revision {revision}", answer.changes))?;
        out.flush()?;
    }
    let mut failure = None;
    if !waiting.no_wait {
        let whole = Whole::new(&answer.positions, answer.epoch, answer.revision);
        let waited = acknowledged(mesh, &whole, waiting, &format!("the policy is {done}, revision {revision}")).await;
        let (outcome, failed) = waited;
        json["sidecars"] = outcome.as_ref().map_or(serde_json::Value::Null, Outcome::json);
        if let (Some(outcome), false) = (&outcome, out.is_json()) {
            out.line(&outcome.words())?;
        }
        failure = failed;
    }
    if out.is_json() {
        out.json(&json)?;
    }
    out.flush()?;
    failure.map_or(Ok(Answer::Yes), Err)
}

/// Waits for the sidecars; what came of it, and why it is a failure if it is one. `done` stands in front of that.
pub(super) async fn acknowledged(
    mesh: &Mesh,
    whole: &Whole,
    waiting: &WaitArgs,
    done: &str,
) -> (Option<Outcome>, Option<Failure>) {
    let patience = Patience::new(waiting.wait);
    match acks::wait(mesh, whole, &patience).await {
        Ok(sidecars) => {
            let outcome = Outcome::from(sidecars);
            let failure = outcome.failure(done, waiting.wait);
            (Some(outcome), failure)
        }
        Err(status) => {
            let failure = mesh.failure(Role::Policy, "cannot ask who acknowledged it", &status);
            (None, Some(failure.of(&format!("{done}, but"))))
        }
    }
}

#[cfg(test)]
mod tests {
    use tenon_proto::policy::v1::history_entry::Action;

    use super::*;

    #[test]
    fn who_was_overtaken_learns_who_when_and_what() {
        let entry = HistoryEntry {
            revision: Some(on_the_wire(Position::new(5, 12))),
            at_unix_seconds: 1_700_000_000,
            by: "operator bob".into(),
            action: Action::Applied.into(),
            changes: vec!["service media: rules read changed".into(), "route wiki added".into()],
            note: "night shift".into(),
            ..Default::default()
        };
        let conflict = Conflict { in_force: entry.revision, since: vec![entry] };
        let failure = overtaken(&conflict, Position::new(5, 10), Work::Apply).to_string();
        let expected = "the policy was not applied: somebody else changed it meanwhile, from 5.10 to 5.12\n\
                        5.12 2023-11-14T22:13:20Z operator bob applied: service media: rules read changed and 1 more (night shift)\n";
        assert!(failure.starts_with(expected), "{failure}");
        assert!(failure.contains("apply again with --expect 5.12"), "{failure}");
        let failure = overtaken(&conflict, Position::new(5, 10), Work::RollBack(Position::new(5, 3))).to_string();
        assert!(failure.starts_with(&expected.replace("not applied", "not rolled back to 5.3")), "{failure}");
        assert!(failure.contains("roll back again: `tenon policy rollback 5.3 --expect 5.12`"), "{failure}");
        assert!(!failure.contains("apply again"), "{failure}");
    }
}
