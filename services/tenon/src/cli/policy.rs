//! `tenon policy`: its commands, and the arguments of those that need no mesh.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{MeshArgs, OutputArgs, PolicyOnline, PolicyServe};

#[derive(Debug, Subcommand)]
pub enum Policy {
    #[command(flatten)]
    Online(PolicyOnline),
    Check(PolicyCheck),
    Explain(Box<Explain>),
    Test(PolicyTest),
    Schema(PolicySchema),
    Serve(Box<PolicyServe>),
}

/// Check policy files without a mesh.
///
/// Prints every problem as `file:line:column: what is wrong`, all of them at once, and exits 1 when there is one. A folder
/// without problems is looked through for what is most likely not meant: rules that can never match, wildcards that are
/// wider than what is used, and more. Each such finding has an id, a place and a remedy; docs/policy-checks.md has a
/// section on each. Findings alone exit 0, unless their check is denied.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy check -f mesh-config/demo\n  tenon policy check -f mesh-config/demo --deny all --allow TP012      in CI\n  tenon policy check -f mesh-config/demo --flows flows.json           flows.json: tenon policy flows -o json\n  tenon policy check -f mesh-config/demo --reflect                    asks the running apps for their methods\n  tenon policy check --list                                           all checks with their ids"
)]
pub struct PolicyCheck {
    /// Folder of policy files.
    #[arg(short = 'f', long = "folder", value_name = "DIR", required_unless_present = "list")]
    pub folder: Option<PathBuf>,
    /// Exit 1 when this check finds something: an id, a name, or `all`. May be given several times.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub deny: Vec<String>,
    /// Leave out what this check finds: an id, a name, or `all`. May be given several times; goes before `--deny all`.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Record of real calls, as `tenon policy flows -o json` writes it: finds wildcards that are wider than what is used.
    #[arg(long, value_name = "FILE")]
    pub flows: Option<PathBuf>,
    /// FileDescriptorSet of the apps: finds methods that do not exist or that nobody may call. May be given several times.
    #[arg(long, value_name = "FILE")]
    pub descriptors: Vec<PathBuf>,
    /// The same, asking the running apps of the LocalMesh by gRPC reflection, in plaintext; or the app of one service at
    /// an address. May be given several times.
    #[arg(long, value_name = "SERVICE=ADDRESS", num_args = 0..=1, default_missing_value = "")]
    pub reflect: Vec<String>,
    /// File of tenants (JSON Lines): finds tenant conditions that none of them meets.
    #[arg(long, value_name = "FILE")]
    pub tenants: Option<PathBuf>,
    /// Print every check with its id instead of making them.
    #[arg(long, conflicts_with = "folder")]
    pub list: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Say whether a call would be allowed, which rule decides, and what was missing.
///
/// Decides with the code that the sidecars run. With -f the files are read and no mesh is needed; without it the running
/// mesh is asked for its policy and for the tenant. Exits 0 when the call is allowed, 1 when it is not.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy explain --from issues --to media --path /media.v1.Media/Get --tenant acme\n  tenon policy explain -f mesh-config/demo --tenants tenants.jsonl --caller wiki --service media \\\n      --path /media.v1.Media/Upload --tenant acme --region us-east -o json\n  tenon policy explain --caller edge --service media --path /media.v1.Media/Erase --tenant acme \\\n      --transaction acme"
)]
pub struct Explain {
    /// Read the policy from this folder instead of the running mesh.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// The calling service, or a client outside of the mesh by the name of its ExternalClient.
    #[arg(long, visible_alias = "from", value_name = "NAME")]
    pub caller: String,
    /// The called service.
    #[arg(long, visible_alias = "to", value_name = "SERVICE")]
    pub service: String,
    /// The gRPC method: `/package.Service/Method`.
    #[arg(long, value_name = "PATH")]
    pub path: String,
    /// The tenant that the call names.
    #[arg(long, value_name = "ID")]
    pub tenant: Option<String>,
    /// Region of the called instance; without it, the tenant's home.
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// The call carries a valid transaction token, of this tenant or of none.
    #[arg(long, value_name = "TENANT", num_args = 0..=1)]
    pub transaction: Option<Option<String>>,
    /// File of tenants (JSON Lines) to look the tenant up in; needs -f.
    #[arg(long, value_name = "FILE", requires = "folder")]
    pub tenants: Option<PathBuf>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Run the PolicyTest documents of a folder, without a mesh.
///
/// Each call of each test is decided with the code that the sidecars run and compared with what it expects. Calls that do
/// not come out as expected are shown with what refused them, or the rule that let them pass. Exits 1 when there is one.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy test -f mesh-config/demo\n  tenon policy test -f mesh-config/demo --coverage                    rules and paths that no test touches\n  tenon policy test -f mesh-config/demo --min-coverage 80 --junit policy.xml      in CI"
)]
pub struct PolicyTest {
    /// Folder of policy files.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub folder: PathBuf,
    /// Also write the outcome as JUnit XML, which CI systems show.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Show which rules and paths no test touches.
    #[arg(long)]
    pub coverage: bool,
    /// Exit 1 when less than this share of the rules, or of their paths, is touched.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub min_coverage: Option<u8>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Print the JSON Schema of policy files, with which editors complete and check them.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tenon policy schema > policy.schema.json\n\nThen, on top of each policy file:\n  # yaml-language-server: $schema=policy.schema.json"
)]
pub struct PolicySchema {}
