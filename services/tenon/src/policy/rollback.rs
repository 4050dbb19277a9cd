//! `tenon policy rollback`: an earlier policy becomes the policy again.

use std::path::Path;

use tenon_proto::policy::v1::RollbackRequest;

use super::{
    apply::{self, Work},
    client,
    words::on_the_wire,
};
use crate::{
    cli::PolicyRollback,
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::Output,
};

/// What to do when it is not known what became of it.
const FIND_OUT: &str = "it may have been made: `tenon policy history` says";

/// Runs the command.
///
/// # Errors
/// The revision is not kept, somebody else changed the policy meanwhile, or no answer. Or it is done, and not every sidecar
/// took it.
pub async fn run(args: PolicyRollback) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let expected = apply::expected(&mesh, args.expect).await?;
    let to = args.to.within(expected.epoch);
    let request =
        RollbackRequest { to: Some(on_the_wire(to)), expected: Some(on_the_wire(expected)), note: args.message };
    let answer = client(mesh.channel(Role::Policy)).rollback(request).await;
    let work = Work::RollBack(to);
    let answer =
        answer.map_err(|status| mesh.write_failure(Role::Policy, &work.not_done(), FIND_OUT, &status))?.into_inner();
    let mut out = Output::stdout(args.output.output);
    apply::judged(&mut out, &answer, Path::new(""), expected, work)?;
    apply::settle(&mesh, &mut out, &format!("rolled back to {to}"), &answer, &args.waiting).await
}
