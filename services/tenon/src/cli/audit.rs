use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{MeshArgs, OutputArgs, policy_mesh::span};

/// What operators did and asked: list it, see that nobody tampered with it, take it elsewhere. For admins.
#[derive(Debug, Subcommand)]
pub enum Audit {
    List(AuditList),
    Verify(AuditVerify),
    Export(AuditExport),
}

/// List what operators changed and asked, oldest first. That it was listed is recorded too.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon audit list --since 1d\n  tenon audit list --by ann --action Tenants/Suspend\n  tenon audit list --service tcs -o json"
)]
pub struct AuditList {
    /// Only of the last so long: 30m, 12h, 7d.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub since: Option<Duration>,
    /// Only what this one did: a SPIFFE id, or what follows its last slash.
    #[arg(long, value_name = "WHO", default_value = "")]
    pub by: String,
    /// Only this: Tenants/Suspend.
    #[arg(long, value_name = "ACTION", default_value = "")]
    pub action: String,
    /// Only of this service: identity, policy or tcs.
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// See that no record was changed, removed, reordered or made up. Exits 1 when one was, and names it.
///
/// What is printed as the head is what to keep elsewhere: given as --expect later, it tells whether the end was cut off or all
/// of it made anew meanwhile.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon audit verify\n  tenon audit verify --expect tcs:1042:9f2c…   as an earlier run printed it\n  tenon audit verify --file audit.jsonl        an export, without a mesh"
)]
pub struct AuditVerify {
    /// An export instead of the running mesh.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A head of an earlier time, PROCESS:SEQUENCE:HASH; may be given several times.
    #[arg(long, value_name = "HEAD")]
    pub expect: Vec<String>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Write all records to a file, a line of JSON each, which `tenon audit verify --file` reads.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon audit export --out audit.jsonl")]
pub struct AuditExport {
    /// The file; it must not exist.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub mesh: MeshArgs,
}
