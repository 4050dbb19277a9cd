//! `tenon policy`: its commands, and the arguments of those that need no mesh.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{MeshArgs, OutputArgs, PolicyApply, PolicyServe, PolicyStatus};

#[derive(Debug, Subcommand)]
pub enum Policy {
    Check(PolicyCheck),
    Apply(PolicyApply),
    Status(PolicyStatus),
    Explain(Box<Explain>),
    Test(PolicyTest),
    Serve(Box<PolicyServe>),
}

/// Check policy files without a mesh.
///
/// Prints every problem as `file:line:column: what is wrong`, all of them at once, and exits 1 when there is one.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon policy check -f mesh-config/demo")]
pub struct PolicyCheck {
    /// Folder of policy files.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub folder: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Say whether a call would be allowed, which rule decides, and what was missing.
///
/// Decides with the code that the sidecars run. With -f the files are read and no mesh is needed; without it the running
/// mesh is asked for its policy and for the tenant. Exits 0 when the call is allowed, 1 when it is not.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon policy explain --caller issues --service media --path /media.v1.Media/Get --tenant acme\n  tenon policy explain -f mesh-config/demo --tenants tenants.jsonl --caller wiki --service media \\\n      --path /media.v1.Media/Upload --tenant acme --region us-east -o json\n  tenon policy explain --caller edge --service media --path /media.v1.Media/Erase --tenant acme \\\n      --transaction acme"
)]
pub struct Explain {
    /// Read the policy from this folder instead of the running mesh.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// The calling service, or a client outside of the mesh by the name of its ExternalClient.
    #[arg(long, value_name = "NAME")]
    pub caller: String,
    /// The called service.
    #[arg(long, value_name = "SERVICE")]
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
/// Each call of each test is decided with the code that the sidecars run and compared with what it expects. Exits 1 when
/// one does not come out as expected.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon policy test -f mesh-config/demo")]
pub struct PolicyTest {
    /// Folder of policy files.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    pub folder: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}
