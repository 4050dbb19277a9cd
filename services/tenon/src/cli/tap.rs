use std::time::Duration;

use clap::Args;
use tenon_proto::policy::v1::TapFilter;

use super::{MeshArgs, OutputArgs, policy_mesh::span};

/// Watch calls of the running mesh as they end.
///
/// Each call is told once, by the sidecar of its callee; one that the caller's sidecar refused, by that. Headers are told by
/// name and length; values only of those that belong to the protocol. Bodies are never told. For operators; the log of the
/// policy service says who watched what. Ends with Ctrl-C.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tap                                        every call, 100 a second at most\n  tenon tap --tenant acme --refused                what acme is refused, and why\n  tenon tap --service media --path '/media.v1.*'   with quotes, or the shell takes the star\n  tenon tap --service media --count 1 --for 10s    exits 1 when no call comes within 10 s\n  tenon tap -o json | jq .headers                  an object a line\n\n`tenon explain REQUEST_ID` says more about one that was refused."
)]
pub struct Tap {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Also as the caller's sidecar sees them: then most calls are told twice.
    #[arg(long)]
    pub both_sides: bool,
    /// Print the request's headers too.
    #[arg(long)]
    pub headers: bool,
    /// Print the headers, with the value of this one; may be given several times. For admins; never of a credential.
    #[arg(long = "header", value_name = "NAME")]
    pub header: Vec<String>,
    /// Calls a second that are told, up to 1000; the others are counted.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rate: u32,
    /// End after so many calls.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so long: 30s, 5m, 1h. With --count, exits 1 when fewer calls came.
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    pub time: Option<Duration>,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which calls are looked at.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// Only calls of this service, by its name.
    #[arg(long, value_name = "CALLEE")]
    pub service: Option<String>,
    /// Only calls by this service.
    #[arg(long, value_name = "CALLER")]
    pub caller: Option<String>,
    /// Only calls for this tenant, by its id.
    #[arg(long, value_name = "ID")]
    pub tenant: Option<String>,
    /// Only calls of this path; with `*` at its end, of all that begin so.
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Only calls that a sidecar refused.
    #[arg(long)]
    pub refused: bool,
}

impl FilterArgs {
    /// As the policy service is told.
    pub fn filter(&self, both_sides: bool) -> TapFilter {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        TapFilter {
            service: text(&self.service),
            caller: text(&self.caller),
            tenant: text(&self.tenant),
            path: text(&self.path),
            refused: self.refused,
            both_sides,
        }
    }
}
