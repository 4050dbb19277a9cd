use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{MeshArgs, OutputArgs, policy_mesh::span, tap::FilterArgs};

/// Show who calls most: rates, refusals and times of the running mesh, in a table that is drawn anew all the time.
///
/// Counted from calls as they end (`tenon tap`), each once, over the last 10 seconds. Up to 1,000 calls a second are looked at for
/// each policy service; where there are more, rates are estimated from those, and the first line says so. For operators; the
/// audit record says who watched. Ends with Ctrl-C.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon top                              services, the busiest first\n  tenon top --by tenant --service media   for whom media works\n  tenon top --by method --refused         what is refused most\n  tenon top --by tenant --rounds 1 -o json"
)]
pub struct Top {
    /// What a line of the table is.
    #[arg(long, value_enum, default_value = "service")]
    pub by: By,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Lines at most.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    pub lines: u16,
    /// How often the table is drawn, 1s at least.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = span)]
    pub every: Duration,
    /// End after so many tables.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What a line of the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    Service,
    Method,
    Tenant,
    Caller,
}
