//! `tenon policy`: checking, applying and explaining mesh policy.

mod explain;
mod status;
mod test;

use std::{
    collections::HashSet,
    io::{self, Write as _},
    path::Path,
};

use mesh_config::{Caller, Records};
use serde::Serialize;
use tenon_proto::policy::v1::{
    ApplyRequest, DescribeRequest, DescribeResponse, PolicyFile, Problem, policy_client::PolicyClient,
};
use tonic::transport::Channel;

use crate::{
    cli::{PolicyApply, PolicyCheck},
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

pub use self::{explain::run as explain, status::run as status, test::run as test};

/// Largest message that a client of the policy service reads and writes: policy travels whole.
pub const LARGEST_POLICY: usize = 64 * 1024 * 1024;

/// A problem of a policy file as JSON.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    file: &'a str,
    line: u32,
    column: u32,
    message: &'a str,
}

/// Reads and checks a folder.
///
/// # Errors
/// All of its problems, one a line.
pub fn load(folder: &Path) -> Result<mesh_config::Mesh, Failure> {
    mesh_config::load(folder).map_err(|problems| problems_of(folder, &problems))
}

fn problems_of(folder: &Path, problems: &mesh_config::Problems) -> Failure {
    Failure::new(format!("the policy in {} cannot be used\n{problems}", folder.display()))
        .next("correct what is named; `tenon policy check -f DIR` checks again")
}

/// `tenon policy check`: offline.
///
/// # Errors
/// All problems of the folder, unless they are wanted as JSON: then they are the answer.
pub fn check(args: PolicyCheck) -> Result<Answer, Failure> {
    let mut out = Output::stdout(args.output.output);
    let loaded = mesh_config::load(&args.folder);
    if out.is_json() {
        let problems = loaded.as_ref().err().map(|problems| problems.0.as_slice()).unwrap_or_default();
        let shown: Vec<_> = problems
            .iter()
            .map(|p| Shown { file: &p.file, line: p.line, column: p.column, message: &p.message })
            .collect();
        let warnings = loaded.as_ref().map(unnamed_clients).unwrap_or_default();
        out.json(&serde_json::json!({"valid": loaded.is_ok(), "problems": shown, "warnings": warnings}))?;
        out.flush()?;
        return Ok(loaded.is_ok().into());
    }
    let mesh = loaded.map_err(|problems| problems_of(&args.folder, &problems))?;
    let rules: usize = mesh.allowlists().iter().map(|allowlist| allowlist.rules.len()).sum();
    out.line(&format!(
        "{}: mesh {}, {} services, {rules} rules, {} tests: no problem",
        args.folder.display(),
        mesh.name(),
        mesh.services().len(),
        mesh.tests().len()
    ))?;
    out.flush()?;
    for warning in unnamed_clients(&mesh) {
        // A closed pipe is not an error.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    Ok(Answer::Yes)
}

/// Clients outside of the mesh that cannot connect to anybody. No mistake: a rule may follow.
fn unnamed_clients(mesh: &mesh_config::Mesh) -> Vec<String> {
    let rules = mesh.allowlists().iter().flat_map(|allowlist| &allowlist.rules);
    let named: HashSet<&str> = rules.flat_map(|rule| &rule.callers).map(Caller::as_str).collect();
    let unnamed = mesh.external_clients().keys().filter(|name| !named.contains(name.as_str()));
    unnamed.map(|name| format!("no rule names ExternalClient {name}: it can call nobody")).collect()
}

/// What to do when it is not known what became of a policy.
const AGAIN: &str = "it may have been applied: apply the folder again, which changes nothing twice";

/// `tenon policy apply`: the folder becomes the whole policy.
///
/// # Errors
/// Problems of the folder, found here or by the policy service; nothing was changed then. Or no answer, and it may have been.
pub async fn apply(args: PolicyApply) -> Result<Answer, Failure> {
    let warning = without_instances(&load(&args.folder)?);
    let files = mesh_config::read_folder(&args.folder).map_err(|problems| problems_of(&args.folder, &problems))?;
    let files = files.into_iter().map(|file| PolicyFile { path: file.path, text: file.text }).collect();
    let mesh = Mesh::find(&args.mesh.data)?;
    let answer = client(mesh.channel(Role::Policy))
        .apply(ApplyRequest { files, ..ApplyRequest::default() })
        .await
        .map_err(|status| mesh.write_failure(Role::Policy, "the policy was not applied", AGAIN, &status))?
        .into_inner();
    if !answer.problems.is_empty() {
        let problems: Vec<_> = answer.problems.iter().map(|problem| describe(&args.folder, problem)).collect();
        return Err(Failure::new(format!("the policy was not applied\n{}", problems.join("\n")))
            .next("correct what is named and apply again: nothing was changed"));
    }
    if let Some(warning) = warning {
        // A closed pipe is not an error.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&serde_json::json!({
            "epoch": answer.epoch, "revision": answer.revision, "changes": answer.changes,
        }))?;
    } else {
        out.line(&format!("applied: {} changes, revision {}.{}", answer.changes, answer.epoch, answer.revision))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

/// A policy is whole: one that leaves the instances out, as a folder of allowlists alone does, takes them away.
fn without_instances(mesh: &mesh_config::Mesh) -> Option<&'static str> {
    mesh.local().is_none_or(|local| local.instances.is_empty()).then_some(
        "this policy names no instances: every call will be NO_ENDPOINT; add a LocalMesh document and apply again",
    )
}

/// Whose policy is in force, when it is not that of a watched folder.
pub fn applied_by(described: &DescribeResponse) -> Option<&str> {
    described.source.strip_prefix("applied by ")
}

/// Whether the policy in force says what these records do, whoever applied it.
pub fn says_the_same(described: &DescribeResponse, records: &Records) -> bool {
    fn same<'r, T: PartialEq + 'r>(described: &[T], mut records: impl ExactSizeIterator<Item = &'r T> + Clone) -> bool {
        described.len() == records.len() && records.all(|record| described.contains(record))
    }
    same(&described.services, records.allowlists.values())
        && same(&described.routes, records.routes.values())
        && same(&described.endpoints, records.endpoints.values())
        && same(&described.quarantines, records.quarantines.values())
        && same(&described.attestors, records.attestors.values())
}

/// The policy in force.
///
/// # Errors
/// No answer.
pub async fn describe_policy(mesh: &Mesh) -> Result<DescribeResponse, Failure> {
    let answer = client(mesh.channel(Role::Policy)).describe(DescribeRequest { service: String::new() }).await;
    let answer = answer.map_err(|status| mesh.failure(Role::Policy, "cannot ask for the policy in force", &status))?;
    Ok(answer.into_inner())
}

/// A client of the policy service that takes policies of any size.
pub fn client(channel: Channel) -> PolicyClient<Channel> {
    PolicyClient::new(channel).max_decoding_message_size(LARGEST_POLICY).max_encoding_message_size(LARGEST_POLICY)
}

/// A problem that the policy service found, with its file as the user can open it.
pub fn describe(folder: &Path, problem: &Problem) -> String {
    let Problem { file, line, column, message } = problem;
    let file = folder.join(file);
    format!("{}:{line}:{column}: {message}", file.display())
}
