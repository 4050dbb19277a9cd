//! `tenon policy`: the arguments of the commands that talk to a running mesh, and of `tenon explain`.

mod values;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

pub(super) use self::values::span;
pub use self::values::{Percent, Revision};
use self::values::{note, percent};
use super::{MeshArgs, OutputArgs};

#[derive(Debug, Subcommand)]
pub enum PolicyOnline {
    Apply(Box<PolicyApply>),
    Status(PolicyStatus),
    Rollout(PolicyRollout),
    History(PolicyHistory),
    Rollback(PolicyRollback),
    Flows(PolicyFlows),
    Diff(PolicyDiff),
    Suggest(PolicySuggest),
    Bundle(PolicyBundle),
}

/// How long the sidecars are waited for.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// How long to wait until every connected sidecar has acknowledged the policy.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span)]
    pub wait: Duration,
    /// Do not wait for the sidecars, nor follow a rollout: say what the policy service answers.
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
}

/// Make a folder the whole policy of the running mesh.
///
/// What is no longer in the folder is gone. Nothing is changed when any file has a problem, or when somebody else changed
/// the policy meanwhile. Then waits until every connected sidecar has acknowledged it. With --canary the new policy is
/// what some sidecars decide by at first; when they did well for as long as --hold says it becomes everybody's, and when a
/// canary refuses the policy, or calls that passed before, it becomes nobody's. Exits 1 when the policy was not applied,
/// when a sidecar refused it or has not acknowledged it in time, and when its rollout was halted.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy apply -f mesh-config/demo -m \"wiki reads media\"\n  tenon policy apply -f mesh-config/demo --expect 1761302400000.42     only if nobody changed it since\n  tenon policy apply -f mesh-config/demo --canary 5% --hold 10m --services media,issues\n  tenon policy apply --bundle policy.bundle      what `tenon policy bundle` signed"
)]
pub struct PolicyApply {
    /// Folder of policy files.
    #[arg(short = 'f', long = "folder", value_name = "DIR", required_unless_present = "bundle")]
    pub folder: Option<PathBuf>,
    /// Apply a signed bundle instead of a folder.
    #[arg(long, value_name = "FILE", conflicts_with = "folder")]
    pub bundle: Option<PathBuf>,
    /// Only if this is still in force: the revision that the files were made for. Without it, what is in force now.
    #[arg(long, value_name = "REV")]
    pub expect: Option<Revision>,
    /// Why, for the history.
    #[arg(short = 'm', long, value_name = "NOTE", default_value = "", hide_default_value = true, value_parser = note)]
    pub message: String,
    /// Roll out in steps: this share of the sidecars whose policy changes goes first, one of them at least.
    #[arg(long, value_name = "PERCENT", requires = "hold", value_parser = percent)]
    pub canary: Option<Percent>,
    /// How long the canaries must do well before all others follow.
    #[arg(long, value_name = "TIME", requires = "canary", value_parser = span)]
    pub hold: Option<Duration>,
    /// Canaries are sidecars of these services alone.
    #[arg(long, value_name = "SERVICE", requires = "canary", value_delimiter = ',')]
    pub services: Vec<String>,
    #[command(flatten)]
    pub waiting: WaitArgs,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Show the policy in force, where it came from, and what each sidecar has of it.
///
/// Also what of the watched folder could not be applied, and the rollout that runs. Exits 1 when the folder has problems
/// or a sidecar refused the policy.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy status\n  tenon policy status -o json | jq '.sidecars[] | select(.state != \"ok\")'"
)]
pub struct PolicyStatus {
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Show the rollout that runs, or the last one; or end it.
///
/// Exits 1 when it was halted.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy rollout\n  tenon policy rollout --complete -m \"looks good\"      everybody's now, without waiting\n  tenon policy rollout --abort                        nobody's"
)]
pub struct PolicyRollout {
    /// Make the new policy everybody's now.
    #[arg(long, conflicts_with = "abort")]
    pub complete: bool,
    /// Give the rollout up: the canaries go back to the policy of all others.
    #[arg(long)]
    pub abort: bool,
    /// Why, for the history.
    #[arg(short = 'm', long, value_name = "NOTE", default_value = "", hide_default_value = true, value_parser = note)]
    pub message: String,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Show who changed the policy, when and what, latest first.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy history\n  tenon policy history --limit 1 -o json      every change of the last step"
)]
pub struct PolicyHistory {
    /// Show this many entries at most.
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Make an earlier policy the policy again.
///
/// A rollout that runs is ended by it. Waits for the sidecars as `apply` does.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy rollback 41 -m \"media lost its readers\"\n  tenon policy rollback 1761302400000.41      as `tenon policy history` shows it"
)]
pub struct PolicyRollback {
    /// The revision to go back to, EPOCH.REVISION, or the revision alone for the present epoch.
    #[arg(value_name = "REV")]
    pub to: Revision,
    /// Only if this is still in force. Without it, what is in force now.
    #[arg(long, value_name = "REV")]
    pub expect: Option<Revision>,
    /// Why, for the history.
    #[arg(short = 'm', long, value_name = "NOTE", default_value = "", hide_default_value = true, value_parser = note)]
    pub message: String,
    #[command(flatten)]
    pub waiting: WaitArgs,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Show who called what, and what was decided.
///
/// The policy service keeps 30 days by the hour, without tenants.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy flows --since 7d --service media\n  tenon policy flows -o json > flows.json      for `policy diff --flows` and `policy suggest --flows`"
)]
pub struct PolicyFlows {
    /// Only the hours since so long ago: 7d, 12h.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub since: Option<Duration>,
    /// Only calls to this service.
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Where recorded flows are taken from.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// Only flows since so long ago: 30d, 12h. Without it, all that are kept.
    #[arg(long, value_name = "TIME", value_parser = span, conflicts_with = "flows")]
    pub since: Option<Duration>,
    /// Read the flows from what `tenon policy flows -o json` wrote, instead of the policy service.
    #[arg(long, value_name = "FILE")]
    pub flows: Option<PathBuf>,
}

/// Show which real calls a new policy would newly let pass or refuse, and which sidecars it touches.
///
/// Decides each recorded flow by the policy in force and by the folder. The record has no tenants: where a new policy
/// only adds conditions to the rule that decides, the flow is one that may be refused; where it no longer asks what calls
/// were refused for, one that may be newly allowed. Exits 1 when a flow that passed would newly be refused.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy diff -f mesh-config/demo\n  tenon policy diff -f mesh-config/demo --since 7d -o json\n\nExits 0 also when flows may be refused by a condition, or newly allowed: read the list."
)]
pub struct PolicyDiff {
    /// Folder of the new policy.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub folder: PathBuf,
    #[command(flatten)]
    pub record: RecordArgs,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Write the tightest allowlists that the recorded calls need.
///
/// One Allowlist for each service that was called, with exact callers and exact paths. What a rule of today asks of
/// tenant, proof and rate is asked by the suggestion too. Calls that were refused are left out.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy suggest --service media --since 30d\n  tenon policy suggest --out suggested.yaml      then compare: `tenon policy diff -f DIR`"
)]
pub struct PolicySuggest {
    /// Only for this service.
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    #[command(flatten)]
    pub record: RecordArgs,
    /// Write the YAML to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub mesh: MeshArgs,
}

/// Sign a policy folder: one file that `tenon policy apply --bundle` applies.
///
/// Needs no mesh. The same folder, key and serial always give the same bytes.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  openssl genpkey -algorithm ed25519 -out policy.key\n  openssl pkey -in policy.key -pubout -out policy.pub\n  tenon policy bundle -f mesh-config/demo --sign policy.key --out policy.bundle\n  tenon policy bundle verify policy.bundle --key policy.pub\n  tenon policy apply --bundle policy.bundle"
)]
pub struct PolicyBundle {
    #[command(subcommand)]
    pub command: Option<BundleCommand>,
    /// Folder of policy files.
    #[arg(short = 'f', long = "folder", value_name = "DIR", required = true)]
    pub folder: Option<PathBuf>,
    /// Private key to sign with: Ed25519 in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.
    #[arg(long, value_name = "KEY.pem", required = true)]
    pub sign: Option<PathBuf>,
    /// Write the bundle to this file.
    #[arg(long, value_name = "FILE", required = true)]
    pub out: Option<PathBuf>,
    /// Unix seconds that the signatures carry; sidecars take none that is older than what they have. Without it, now.
    #[arg(long, value_name = "SECONDS")]
    pub serial: Option<u64>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    Verify(VerifyBundle),
}

/// Check that a bundle is whole, that its policy has no problem, and that the owner of the key signed all of it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon policy bundle verify policy.bundle --key policy.pub")]
pub struct VerifyBundle {
    /// The bundle.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Public key: Ed25519 in PEM, as `openssl pkey -pubout` writes it.
    #[arg(long, value_name = "PUB.pem")]
    pub key: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Say why a call was refused, by its request id.
///
/// Asks every connected sidecar what it decided on the request, tells the rule or the nearest one, what it missed by, and
/// the smallest change that would allow it. Sidecars remember the last calls that they refused or that audit mode let
/// pass. Exits 1 when nobody remembers the request.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon explain 0193a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b      `request_id` of the refusal or of the access log\n  tenon explain 0193a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b -o json"
)]
pub struct ExplainRequest {
    /// The request's id.
    #[arg(value_name = "REQUEST_ID")]
    pub request_id: String,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
