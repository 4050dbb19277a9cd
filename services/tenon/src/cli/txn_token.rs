//! `tenon identity txn-token`: flags and help text.

use clap::Args;

use super::{MeshArgs, OutputArgs};

/// Get a transaction token, to make a call that a rule with `proof: transaction` lets pass.
///
/// For debugging, with grpcurl say. It lives for 5 minutes. The audit log of the identity service says who got it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  grpcurl -plaintext -authority media -H 'x-tenant-id: acme' \\\n      -H \"txn-token: $(tenon identity txn-token --tenant acme --subject ann --scope media.read)\" \\\n      -proto media.proto 127.0.0.1:15001 media.v1.Media/List\n\nThe token is printed alone."
)]
pub struct TxnToken {
    /// The tenant of the transaction.
    #[arg(long, value_name = "ID")]
    pub tenant: String,
    /// Whom the transaction is for: one line of at most 256 bytes.
    #[arg(long, value_name = "NAME")]
    pub subject: String,
    /// Its purpose: words with one space between two.
    #[arg(long, value_name = "WORDS")]
    pub scope: String,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
