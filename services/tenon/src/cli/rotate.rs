//! `tenon identity rotate`: flags and help texts.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{MeshArgs, OutputArgs};

/// Replace roots, issuing CAs and ASAP keys of a running mesh, without a failed call.
///
/// A root is replaced in three steps, and each is refused (exit code 1, with the instances that are waited for) before
/// every live instance has acknowledged the one before it.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  tenon identity rotate root --prepare --wait 60s\n  tenon identity rotate root --activate --wait 60s\n  tenon identity rotate root --retire\n  tenon identity rotate issuing --wait 60s\n  tenon identity rotate keys --wait 10m\n  tenon identity rotate status -o json"
)]
pub enum Rotate {
    Root(RotateRoot),
    Issuing(RotateIssuing),
    Keys(RotateKeys),
    Status(RotateStatus),
}

/// Replace the root certificate: prepare, activate, retire.
///
/// --prepare makes a new root, and everybody comes to trust both; --activate has it sign, and everybody renews; --retire
/// ends the trust in the old one and deletes its key. --abandon takes back a root that was not activated.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon identity rotate root --prepare --wait 60s\n  tenon identity rotate root --activate --wait 60s\n  tenon identity rotate root --retire"
)]
#[group(id = "step", required = true, multiple = false, args = ["prepare", "activate", "retire", "abandon"])]
pub struct RotateRoot {
    /// Make a new root that is trusted beside the present one.
    #[arg(long)]
    pub prepare: bool,
    /// Have the new root sign.
    #[arg(long)]
    pub activate: bool,
    /// End the trust in the old root.
    #[arg(long)]
    pub retire: bool,
    /// Take the prepared root back.
    #[arg(long)]
    pub abandon: bool,
    #[command(flatten)]
    pub common: RotateArgs,
}

/// Replace the issuing CA below the present root, and with it every certificate. Done by itself every 15 days.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon identity rotate issuing --wait 60s")]
pub struct RotateIssuing {
    #[command(flatten)]
    pub common: RotateArgs,
}

/// Have every service make a new ASAP key. Each signs with its new key once everybody knows it; the old ones stay known
/// until their last token has ended.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon identity rotate keys --wait 10m")]
pub struct RotateKeys {
    #[command(flatten)]
    pub common: RotateArgs,
}

/// Tell how rotations stand, and which live instances do not hold what they should yet. Exit code 1 when there are any.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon identity rotate status -o json")]
pub struct RotateStatus {
    #[command(flatten)]
    pub common: RotateArgs,
}

/// What all rotations have in common.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// How long to wait for live instances: before a step that needs them, and after it until all have followed.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub wait: Duration,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `500ms`, `60s`, `10m`.
fn duration(text: &str) -> Result<Duration, String> {
    let duration: jiff::SignedDuration =
        text.parse().map_err(|_| "not a duration with its unit, like 60s or 10m".to_owned())?;
    Duration::try_from(duration).map_err(|_| "a duration is not negative".to_owned())
}
