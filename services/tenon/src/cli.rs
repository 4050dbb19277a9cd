//! What can be typed: every command, flag and help text. Nothing here does any work.

mod asap;
mod audit;
mod guard;
mod identity;
mod policy;
mod policy_mesh;
mod roles;
mod rotate;
mod tap;
mod tcs;
mod tenants;
mod top;
mod txn_token;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use journal::Store;

pub use self::asap::{Asap, Inspect, Mint, Verify};
pub use self::audit::{Audit, AuditExport, AuditList, AuditVerify};
pub use self::guard::{AllowShrink, Guard, SetGuard, ShowGuard};
pub use self::identity::{IssueOperator, IssueSvid, Revoke};
pub use self::policy::{Explain, Policy, PolicyCheck, PolicySchema, PolicyTest};
pub use self::policy_mesh::{
    BundleCommand, ExplainRequest, PolicyApply, PolicyBundle, PolicyDiff, PolicyFlows, PolicyHistory, PolicyOnline,
    PolicyRollback, PolicyRollout, PolicyStatus, PolicySuggest, RecordArgs, Revision, VerifyBundle, WaitArgs,
};
pub use self::roles::{IdentityServe, JoinArgs, PastArgs, PolicyServe, RoleArgs, TcsServe};
pub use self::rotate::{Rotate, RotateArgs, RotateRoot};
pub use self::tap::Tap;
pub use self::tcs::{Backup, BackupKey, Restore, VerifyBackup, When};
pub use self::tenants::{GetTenant, LifecycleEventArgs, Watch};
pub use self::top::{By, Top};
pub use self::txn_token::TxnToken;

/// The `tenon` command line.
#[derive(Debug, Parser)]
#[command(
    name = "tenon",
    version,
    about = "Run and operate a Tenon mesh",
    after_help = "Examples:\n  tenon up -f mesh-config/demo              run a whole mesh on this machine\n  tenon tenants import tenants.jsonl        load tenants into it\n  tenon policy explain -f mesh-config/demo --caller wiki --service media --path /media.v1.Media/Get\n  tenon check                               find out what is wrong with it\n\nExit codes: 0 success, 1 the answer is no or the work failed, 2 wrong usage.",
    propagate_version = true,
    max_term_width = 110
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Up(Up),
    /// Read and change the tenants of a running mesh.
    #[command(subcommand)]
    Tenants(Tenants),
    /// Check, apply and explain mesh policy.
    #[command(subcommand)]
    Policy(Policy),
    /// Certificates, join tokens and keys; and the identity service itself.
    #[command(subcommand)]
    Identity(Identity),
    /// The tenant context service.
    #[command(subcommand)]
    Tcs(Tcs),
    /// Make, check and look into ASAP tokens; no mesh is needed.
    #[command(subcommand)]
    Asap(Asap),
    Explain(ExplainRequest),
    Tap(Tap),
    Top(Top),
    Dashboard(Dashboard),
    #[command(subcommand)]
    Audit(Audit),
    Check(Check),
    Sidecars(Sidecars),
    Completions(Completions),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table on a terminal, aligned text in a pipe.
    Table,
    /// JSON, for machines.
    Json,
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// How to print the result.
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub output: Format,
}

/// Where a running mesh is found.
#[derive(Debug, Args)]
pub struct MeshArgs {
    /// Data folder of the mesh, made by `tenon up`: holds its addresses and the operator's credentials.
    #[arg(long, value_name = "DIR", default_value = ".tenon", env = "TENON_DATA")]
    pub data: PathBuf,
}

/// Print a link that opens the dashboard, signed in as you.
///
/// The link can be used once, within two minutes, and by whoever has it. The session may do what you may. It lasts eight
/// hours at most, and no longer than your certificate.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon dashboard\n  xdg-open \"$(tenon dashboard)\"\n\nFrom another machine: ssh -L 15080:127.0.0.1:15080 HOST, then open the link here."
)]
pub struct Dashboard {
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Run a whole mesh on this machine.
///
/// Starts the identity, policy and tenant context services, one sidecar for each instance of the LocalMesh document in
/// the policy folder, and the instances' own commands. Prints `ready` on a line of its own when every sidecar serves.
/// A child that dies is started again. Ctrl-C or SIGTERM ends all of them.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon up -f mesh-config/demo\n  tenon up -f mesh-config/demo --data /var/lib/tenon\n  tenon up -f mesh-config/demo --store nats://127.0.0.1:4222,127.0.0.1:4223\n\nStarted again on the same data folder it keeps the CA, the tenants and all identities."
)]
pub struct Up {
    /// Folder of policy files; exactly one LocalMesh document must be among them.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub folder: PathBuf,
    /// Data folder: CA, stores, state of the sidecars, logs, the operator's credentials.
    #[arg(long, value_name = "DIR", default_value = ".tenon", env = "TENON_DATA")]
    pub data: PathBuf,
    /// Where tenants and policy are kept: `embedded:DIR` [default: below the data folder], or
    /// `nats://HOST:PORT[,HOST:PORT]`. Of several TCS the first one writes, and the others follow it; with NATS each writes.
    #[arg(long, value_name = "STORE", env = "TENON_STORE")]
    pub store: Option<Store>,
    #[command(flatten)]
    pub past: PastArgs,
}

#[derive(Debug, Subcommand)]
pub enum Tenants {
    Import(Import),
    Apply(Import),
    Get(GetTenant),
    List(ListTenants),
    Watch(Watch),
    Event(LifecycleEventArgs),
    /// Suspend a tenant: its calls are refused everywhere with TENANT_SUSPENDED. Prints the revision.
    #[command(after_help = "Example:\n  tenon tenants suspend acme")]
    Suspend(TenantId),
    /// Let a suspended tenant back in. Prints the revision.
    #[command(after_help = "Example:\n  tenon tenants unsuspend acme")]
    Unsuspend(TenantId),
    /// Delete a tenant: its calls are refused everywhere with TENANT_UNKNOWN. Prints the revision.
    #[command(after_help = "Example:\n  tenon tenants delete acme")]
    Delete(TenantId),
}

/// Write the tenants of a file: JSON Lines, one whole tenant context a line.
///
/// Tenants that exist are replaced, others are left untouched. All of the file is applied or nothing. The same file can
/// be applied again.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tenants import tenants.jsonl\n  head -1 tenants.jsonl | tenon tenants apply -\n\nA line of the file:\n{\"tenantId\":\"acme\",\"status\":\"ACTIVE\",\"region\":\"us-east\",\"products\":{\"media\":{\"state\":\"ACTIVE\"}}}"
)]
pub struct Import {
    /// File of tenants; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// List tenants in the order of their ids.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tenants list\n  tenon tenants list --region eu-west -o json     a JSON array of whole tenant contexts"
)]
pub struct ListTenants {
    /// Only tenants whose home region is this one.
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct TenantId {
    /// The tenant's id.
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub enum Identity {
    JoinToken(JoinToken),
    Keys(Keys),
    Revoke(Revoke),
    #[command(subcommand)]
    Rotate(Rotate),
    Svid(IssueSvid),
    Operator(IssueOperator),
    TxnToken(TxnToken),
    CaInit(CaInit),
    Serve(IdentityServe),
}

/// Make a token with which one process of a service gets its first certificate, once.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon identity join-token --service media\n  tenon identity join-token --service media --ttl-seconds 3600 > join-token\n\nThe token is printed alone. Pass it to the sidecar in a file:\n`tenon-sidecar --join-token-file PATH`."
)]
pub struct JoinToken {
    /// The service that the token attests.
    #[arg(long, value_name = "SERVICE")]
    pub service: String,
    /// How long the token can be used.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub ttl_seconds: u32,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// List the public ASAP keys of the mesh.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon identity keys -o json")]
pub struct Keys {
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Make a certificate authority: root certificate and private key as PEM files that only you can read.
///
/// The key is encrypted when TENON_CA_PASSPHRASE is set. `tenon up` makes one in its data folder by itself.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon identity ca-init --out ca --trust-domain demo.example")]
pub struct CaInit {
    /// Folder to write root.pem and root.key to; must not hold a CA yet.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Trust domain that the root is for; a mesh refuses a CA of another one.
    #[arg(long, value_name = "NAME", default_value = "mesh.internal", env = "TENON_TRUST_DOMAIN")]
    pub trust_domain: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub enum Tcs {
    Serve(Box<TcsServe>),
    Backup(Backup),
    BackupKey(BackupKey),
    Restore(Restore),
    VerifyBackup(VerifyBackup),
    #[command(subcommand)]
    Guard(Guard),
}

/// Check the running mesh and say what to do about each thing that is wrong. Exits 1 when something is.
///
/// Each check has an id, with a section in docs/check.md.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon check\n  tenon check --watch              again every 5 s, until Ctrl-C\n  tenon check -o json | jq '.checks[] | select(.ok | not)'\n  tenon check --list               all checks with their ids"
)]
pub struct Check {
    /// Check again after so many seconds, until Ctrl-C; with -o json each round is one line.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,
    /// Print every check with its id instead of making them.
    #[arg(long, conflicts_with = "watch")]
    pub list: bool,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// List the sidecars of the running mesh, their listeners and whether they serve.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon sidecars -o json      with the command line of each, to start one by hand")]
pub struct Sidecars {
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon completions bash > ~/.local/share/bash-completion/completions/tenon")]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Run PROG so that it ends when its parent does. What `tenon up` starts its children with; stands in no help text.
#[derive(Debug, Parser)]
#[command(name = "tenon spawn-child")]
pub struct SpawnChild {
    /// Process that must be the parent.
    #[arg(long, value_name = "PID")]
    pub parent: u32,
    /// Signal that PROG gets when the parent dies.
    #[arg(long, value_enum)]
    pub signal: DeathSignal,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "PROG")]
    pub program: Vec<std::ffi::OsString>,
}

/// What a child gets when its parent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeathSignal {
    #[value(name = "TERM")]
    Term,
    #[value(name = "KILL")]
    Kill,
}

#[cfg(test)]
mod tests;
