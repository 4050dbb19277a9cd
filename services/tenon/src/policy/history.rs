//! `tenon policy history`: who changed the policy, when and what.

use tenon_proto::policy::v1::{HistoryEntry, HistoryRequest};

use super::{
    client,
    words::{action, changes, moment, position},
};
use crate::{
    cli::PolicyHistory,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

/// Runs the command.
///
/// # Errors
/// No mesh, or no answer.
pub async fn run(args: PolicyHistory) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let answer = client(mesh.channel(Role::Policy)).history(HistoryRequest { limit: args.limit }).await;
    let answer = answer.map_err(|status| mesh.failure(Role::Policy, "cannot ask for the history", &status))?;
    let entries = answer.into_inner().entries;
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&entries.iter().map(::policy::json::history_entry).collect::<Vec<_>>())?;
    } else {
        let rows: Vec<_> = entries.iter().map(row).collect();
        out.table(&["revision", "when", "who", "action", "what", "note"], &rows)?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

fn row(entry: &HistoryEntry) -> Vec<String> {
    let kept = if entry.kept { "" } else { " (not kept)" };
    vec![
        format!("{}{kept}", position(entry.revision.as_ref())),
        moment(entry.at_unix_seconds),
        entry.by.clone(),
        action(entry).to_owned(),
        changes(entry),
        entry.note.clone(),
    ]
}
