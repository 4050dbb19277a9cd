//! `tenon tenants`: watching, and lifecycle events.

use std::path::PathBuf;

use clap::Args;
use replica::Position;

use super::{MeshArgs, OutputArgs};

/// Show one tenant.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tenants get acme\n  tenon tenants get --host acme.example.com -o json\n  tenon tenants get acme --at-least 1761302400000.42      what a write answered, or later"
)]
pub struct GetTenant {
    /// The tenant's id.
    #[arg(value_name = "ID", required_unless_present = "host", conflicts_with = "host")]
    pub id: Option<String>,
    /// Find the tenant by one of its site host names instead.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Never as it was before this revision, which a write has printed: the TCS waits for it, 2 s at most.
    #[arg(long, value_name = "EPOCH.REVISION")]
    pub at_least: Option<Position>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Show changes of tenants as they are made, until Ctrl-C.
///
/// A line each on a terminal: when, which revision, which tenant, what of it. JSON Lines in a pipe, or with -o json: the
/// whole tenant after the change. Goes on where it was when the TCS was away meanwhile. A new epoch, which a restore
/// begins, ends it with exit code 1, and so do changes that are no longer kept: a TCS that follows others keeps the last
/// 10,000, one with a store those that --retention says.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tenants watch\n  tenon tenants watch acme -o json\n  tenon tenants watch --from 1761302400000.42      and what changed since that revision"
)]
pub struct Watch {
    /// Only this tenant.
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// Begin with the change after this revision, instead of with the next one: EPOCH.REVISION, as a write prints it.
    #[arg(long, value_name = "EPOCH.REVISION")]
    pub from: Option<Position>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Apply one lifecycle event, as a provisioning system would.
///
/// An event is applied once, however often it is sent. What is illegal in the state that the tenant is in is refused with
/// what would be legal. Prints the revision.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tenon tenants event event.json\n\nA file:\n{\"eventId\":\"crm-4711\",\"tenantId\":\"acme\",\"createProduct\":{\"product\":\"media\",\"seats\":50}}"
)]
pub struct LifecycleEventArgs {
    /// File with the event in proto3 JSON (tenon.tcs.v1.LifecycleEvent); `-` is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}
