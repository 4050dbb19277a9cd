//! `tenon policy`: checking, applying and explaining mesh policy.

mod acks;
mod apply;
mod bundle;
mod check;
mod decide;
mod diff;
mod explain;
mod flows;
mod history;
mod junit;
mod lint;
mod request;
mod rollback;
mod rollout;
mod schema;
mod status;
mod suggest;
mod test;
mod words;

use std::path::Path;

use mesh_config::Records;
use serde::Serialize;
use tenon_proto::policy::v1::{DescribeRequest, DescribeResponse, Problem, policy_client::PolicyClient};
use tonic::transport::Channel;

use crate::{
    cli::PolicyOnline,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
};

pub use self::{
    check::run as check, explain::run as explain, request::run as explain_request, schema::run as schema,
    test::run as test,
};

/// The commands that talk to a running mesh, and what they apply.
///
/// # Errors
/// Each command's own.
pub async fn online(command: PolicyOnline) -> Result<Answer, Failure> {
    match command {
        PolicyOnline::Apply(args) => apply::run(*args).await,
        PolicyOnline::Status(args) => status::run(args).await,
        PolicyOnline::Rollout(args) => rollout::run(args).await,
        PolicyOnline::History(args) => history::run(args).await,
        PolicyOnline::Rollback(args) => rollback::run(args).await,
        PolicyOnline::Flows(args) => flows::run(args).await,
        PolicyOnline::Diff(args) => diff::run(args).await,
        PolicyOnline::Suggest(args) => suggest::run(args).await,
        PolicyOnline::Bundle(args) => bundle::run(args),
    }
}

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

/// Whose policy is in force, when it is not that of a watched folder.
pub fn applied_by(described: &DescribeResponse) -> Option<&str> {
    described.source.strip_prefix("applied by ")
}

/// Whether the policy in force says what these records do, whoever applied it.
pub fn says_the_same(described: &DescribeResponse, records: &Records) -> bool {
    // Those that sidecars have registered are no part of a policy.
    let of_files: Vec<_> = described.endpoints.iter().filter(|endpoint| endpoint.lease.is_none()).cloned().collect();
    same(&described.services, records.allowlists.values())
        && same(&described.routes, records.routes.values())
        && same(&of_files, records.endpoints.values())
        && same(&described.quarantines, records.quarantines.values())
        && same(&described.attestors, records.attestors.values())
}

/// Whether the records of one kind are these.
fn same<'r, T: PartialEq + 'r>(described: &[T], mut records: impl ExactSizeIterator<Item = &'r T>) -> bool {
    described.len() == records.len() && records.all(|record| described.contains(record))
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
