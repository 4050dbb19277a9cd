//! `tenon policy schema`: the JSON Schema of policy files.

use crate::{
    cli::Format,
    failure::{Answer, Failure},
    output::Output,
};

/// Runs the command.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run() -> Result<Answer, Failure> {
    let mut out = Output::stdout(Format::Json);
    out.json(&mesh_config::schema())?;
    out.flush()?;
    Ok(Answer::Yes)
}
