//! `tenon policy`: the arguments of the commands that talk to a running mesh.

use std::path::PathBuf;

use clap::Args;

use super::{MeshArgs, OutputArgs};

/// Make a folder the whole policy of the running mesh.
///
/// What is no longer in the folder is gone. Nothing is changed when any file has a problem.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon policy apply -f mesh-config/demo")]
pub struct PolicyApply {
    /// Folder of policy files.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub folder: PathBuf,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Show the policy in force, where it came from, and what of the watched folder could not be applied.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon policy status")]
pub struct PolicyStatus {
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
