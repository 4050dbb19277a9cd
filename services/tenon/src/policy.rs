//! `tenon policy`: checking, applying and explaining mesh policy.

mod explain;
mod test;

use std::{
    io::{self, Write as _},
    path::Path,
};

use mesh_config::Records;
use serde::Serialize;
use tenon_proto::policy::v1::{
    ApplyRequest, DescribeRequest, DescribeResponse, PolicyFile, Problem, policy_client::PolicyClient,
};
use tonic::transport::Channel;

use crate::{
    cli::{PolicyApply, PolicyCheck, PolicyStatus},
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

pub use self::{explain::run as explain, test::run as test};

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
        out.json(&serde_json::json!({"valid": loaded.is_ok(), "problems": shown}))?;
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
    Ok(Answer::Yes)
}

/// `tenon policy apply`: the folder becomes the whole policy.
///
/// # Errors
/// Problems of the folder, found here or by the policy service; nothing was changed then.
pub async fn apply(args: PolicyApply) -> Result<Answer, Failure> {
    let warning = without_instances(&load(&args.folder)?);
    let files = mesh_config::read_folder(&args.folder).map_err(|problems| problems_of(&args.folder, &problems))?;
    let files = files.into_iter().map(|file| PolicyFile { path: file.path, text: file.text }).collect();
    let mesh = Mesh::find(&args.mesh.data)?;
    let answer = client(mesh.channel(Role::Policy))
        .apply(ApplyRequest { files })
        .await
        .map_err(|status| mesh.failure(Role::Policy, "the policy was not applied", &status))?
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
}

/// `tenon policy status`. Exits 1 when the watched folder has problems.
///
/// # Errors
/// No mesh, or no answer.
pub async fn status(args: PolicyStatus) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let described = describe_policy(&mesh).await?;
    let mut out = Output::stdout(args.output.output);
    if out.is_json() {
        out.json(&status_json(&described))?;
    } else {
        out.line(&format!(
            "mesh {} ({}), revision {}.{}, from {}",
            described.mesh, described.trust_domain, described.epoch, described.revision, described.source
        ))?;
        out.table(&["service", "rules", "allowlists", "instances", "mode"], &status_rows(&described))?;
        for problem in &described.problems {
            out.line(&format!("not applied: {}", describe(Path::new(""), problem)))?;
        }
    }
    out.flush()?;
    Ok(described.problems.is_empty().into())
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

fn status_json(described: &DescribeResponse) -> serde_json::Value {
    let problems: Vec<_> = described
        .problems
        .iter()
        .map(|p| Shown { file: &p.file, line: p.line, column: p.column, message: &p.message })
        .collect();
    let services: Vec<_> = described
        .services
        .iter()
        .map(|service| {
            serde_json::json!({
                "service": service.service,
                "product": (!service.product.is_empty()).then_some(&service.product),
                "originates": service.originates,
                "rules": service.rules.iter().map(|rule| serde_json::json!({
                    "allowlist": rule.allowlist, "rule": rule.name, "callers": rule.callers, "paths": rule.paths,
                    "audit": rule.audit, "source": rule.source,
                })).collect::<Vec<_>>(),
                "instances": instances(described, &service.service),
                "quarantined": quarantined(described, &service.service),
            })
        })
        .collect();
    serde_json::json!({
        "mesh": described.mesh,
        "trustDomain": described.trust_domain,
        "epoch": described.epoch,
        "revision": described.revision,
        "source": described.source,
        "services": services,
        "problems": problems,
    })
}

fn status_rows(described: &DescribeResponse) -> Vec<Vec<String>> {
    let row = |service: &tenon_proto::policy::v1::ServicePolicy| {
        let mut allowlists: Vec<&str> = service.rules.iter().map(|rule| rule.allowlist.as_str()).collect();
        allowlists.dedup();
        let mode = match (quarantined(described, &service.service), service.audit_allowlist.is_empty()) {
            (true, _) => "quarantined",
            (false, false) => "audit",
            (false, true) => "enforce",
        };
        vec![
            service.service.clone(),
            service.rules.len().to_string(),
            if allowlists.is_empty() { "-".to_owned() } else { allowlists.join(",") },
            instances(described, &service.service).to_string(),
            mode.to_owned(),
        ]
    };
    described.services.iter().map(row).collect()
}

fn instances(described: &DescribeResponse, service: &str) -> usize {
    described.endpoints.iter().filter(|endpoint| endpoint.service == service).count()
}

fn quarantined(described: &DescribeResponse, service: &str) -> bool {
    described.quarantines.iter().any(|quarantine| quarantine.service == service)
}
