//! `tenon identity revoke` and `svid`: flags and help texts.

use std::path::PathBuf;

use clap::Args;
use mesh_identity::OperatorRole;

use super::{MeshArgs, OutputArgs};

/// End the trust in a service, an operator, a key or a certificate, everywhere, within a second.
///
/// Open connections of a revoked service, operator or certificate are closed, calls with a revoked key are refused, and
/// nothing of it is issued or registered again until the revocation is lifted. Returns when it is durable and prints its
/// revision.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon identity revoke --service wiki --reason 'host was stolen'\n  tenon identity revoke --operator ann --reason 'laptop was stolen'\n  tenon identity revoke --kid wiki/0198a3\n  tenon identity revoke --serial \"$(openssl x509 -in svid.pem -noout -serial)\"\n  tenon identity revoke --lift --service wiki\n  tenon identity revoke --list -o json"
)]
#[group(id = "what", required = true, multiple = false, args = ["service", "operator", "kid", "serial", "list"])]
pub struct Revoke {
    /// Every certificate and key of this service.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Every certificate of this operator, also those that were renewed: the name at the end of the SPIFFE id.
    #[arg(long, value_name = "NAME")]
    pub operator: Option<String>,
    /// This ASAP key, as `tenon identity keys` lists it.
    #[arg(long, value_name = "KID")]
    pub kid: Option<String>,
    /// This certificate: its serial in hexadecimal, as `openssl x509 -serial` prints it.
    #[arg(long, value_name = "HEX")]
    pub serial: Option<String>,
    /// Why: for the list and the audit log.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["lift", "list"])]
    pub reason: Option<String>,
    /// Take the revocation back.
    #[arg(long, conflicts_with = "list")]
    pub lift: bool,
    /// List what is revoked.
    #[arg(long)]
    pub list: bool,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Get a certificate and an ASAP key of a service, to call others as that service would.
///
/// For debugging, with grpcurl say. Private keys are made here and stay here. The audit log of the identity service says
/// who got it. Writes svid.pem, key.pem, bundle.pem, asap.key and asap.env.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tenon identity svid --service wiki --out wiki\n  (. wiki/asap.env; grpcurl -cacert wiki/bundle.pem -cert wiki/svid.pem -key wiki/key.pem \\\n      -authority media.svc.demo.example -H \"x-asap-token: $(tenon asap mint --audience media)\" \\\n      -H 'x-tenant-id: acme' -proto media.proto 127.0.0.1:15206 media.v1.Media/List)"
)]
pub struct IssueSvid {
    /// The service to be.
    #[arg(long, value_name = "SERVICE")]
    pub service: String,
    /// Folder for the files; made when it is not there. Files of an earlier call are replaced.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How long the certificate lives, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = clap::value_parser!(u32).range(60..=3_600))]
    pub ttl: u32,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Make somebody an operator: a certificate with a role, and a data folder to use it with.
///
/// A viewer reads; an operator also changes policy, tenants and revocations; an admin also gives others an identity,
/// rotates, sets guards and takes backups. The private key is made here and stays here. For admins; the audit log says who did it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tenon identity operator --name ann --role viewer --out ann\n  tenon policy status --data ann"
)]
pub struct IssueOperator {
    /// The name at the end of the SPIFFE id.
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// viewer, operator or admin.
    #[arg(long, value_name = "ROLE")]
    pub role: OperatorRole,
    /// Data folder to make. Credentials of an earlier call are replaced.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How long the certificate lives, in seconds: from a minute to 30 days.
    #[arg(long, value_name = "SECONDS", default_value = "86400", value_parser = clap::value_parser!(u32).range(60..=2_592_000))]
    pub ttl: u32,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
