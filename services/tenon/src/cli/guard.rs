//! `tenon tcs guard`: what no replica of the map of tenants loses by accident.

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::SignedDuration;

use super::{MeshArgs, OutputArgs};

/// An override lasts no longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What no replica of the map of tenants loses by accident.
#[derive(Debug, Subcommand)]
pub enum Guard {
    Show(ShowGuard),
    Set(SetGuard),
    AllowShrink(AllowShrink),
}

/// Show the guard in force.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon tcs guard show -o json")]
pub struct ShowGuard {
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Change the guard. What is not named stays as it is.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tcs guard set --largest-shrink 10 --canary acme --canary globex\n  tenon tcs guard set --no-canaries      (while `allow-shrink` is in force)\n  tenon tcs guard set --end-override"
)]
pub struct SetGuard {
    /// Share of the tenants, in percent, that may go within a minute; 0 stands for the default, 50.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub largest_shrink: Option<u32>,
    /// A tenant that must always exist; once for each. They replace those that were named before.
    #[arg(long, value_name = "ID", conflicts_with = "no_canaries")]
    pub canary: Vec<String>,
    /// No tenant must always exist. Refused unless `allow-shrink` is in force: no replica believes an emptied list by itself.
    #[arg(long)]
    pub no_canaries: bool,
    /// End what `allow-shrink` allows, now.
    #[arg(long)]
    pub end_override: bool,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Let the map shrink, and canaries go, for a while. It stands in the log of the TCS who allowed it, and why.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tenon tcs guard allow-shrink --to 900000 --for 10m --reason \"leaving the free tier, ticket 4711\""
)]
pub struct AllowShrink {
    /// To how many tenants it may shrink.
    #[arg(long, value_name = "TENANTS")]
    pub to: u64,
    /// For how long, at most a day.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub lasting: Duration,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration =
        text.parse().map_err(|_| "not a duration with its unit, like 10m or 1h30m".to_owned())?;
    match Duration::try_from(duration) {
        Ok(duration) if duration > LONGEST => Err("an override lasts a day at most".to_owned()),
        Ok(duration) if duration >= Duration::from_secs(1) => Ok(duration),
        Ok(_) | Err(_) => Err("expected a second or more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_lasts_between_a_second_and_a_day() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for bad in ["10", "0s", "25h", "-1m", "x"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
