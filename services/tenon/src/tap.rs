//! `tenon tap`: calls of the mesh as they end, until somebody has seen enough.

pub mod feed;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use mesh_telemetry::code_name;
use policy::json;
use tenon_proto::policy::v1::{TapRequest, TappedCall, tapped_call::Outcome};
use tokio::time::{Instant, sleep_until};

use self::feed::{Feed, Heard};
use crate::{
    cli::Tap,
    failure::{Answer, Failure},
    operator::Mesh,
    output::{Output, Tone},
};

/// Until somebody ends it.
pub const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Runs the command until Ctrl-C, until the time is over or all calls that were wanted are told, or until nobody reads its
/// output any more.
///
/// # Errors
/// No mesh, no policy service that answers to begin with, or a filter that it does not take.
pub async fn run(args: Tap) -> Result<Answer, Failure> {
    let over = Instant::now() + args.time.unwrap_or(FOR_EVER);
    let mut left = args.count;
    let shown = Shown { headers: args.headers || !args.header.is_empty(), out: Output::stdout(args.output.output) };
    let filter = args.filter.filter(args.both_sides);
    let request = TapRequest { filter: Some(filter), rate: args.rate, headers: args.header.clone() };
    let mut feed = Feed::begin(Mesh::find(&args.mesh.data)?, &request);
    let mut sidecars = None;
    loop {
        let heard = tokio::select! {
            heard = feed.next() => heard?,
            () = sleep_until(over) => break,
            _ = tokio::signal::ctrl_c() => break,
        };
        let mut err = io::stderr();
        match heard {
            Heard::Call(call) => match shown.show(&call) {
                Ok(()) => left = left.map(|left| left - 1),
                // Whoever reads has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Answer::Yes),
                Err(error) => return Err(Failure::new(format!("cannot write to standard output: {error}"))),
            },
            Heard::State { sidecars: now, left_out } => {
                if sidecars.replace(now) != Some(now) {
                    let _ = writeln!(err, "watching {now} sidecars, Ctrl-C ends");
                }
                if left_out > 0 {
                    let _ = writeln!(err, "{left_out} calls left out: narrow the filter, or raise --rate");
                }
            }
            Heard::Away(what) => drop(writeln!(err, "{what}")),
        }
        if left == Some(0) {
            break;
        }
    }
    Ok(left.is_none_or(|left| left == 0).into())
}

/// How calls are printed.
struct Shown {
    headers: bool,
    out: Output,
}

impl Shown {
    fn show(&self, call: &TappedCall) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.out.is_json() {
            writeln!(out, "{}", json::tapped(call))?;
        } else {
            writeln!(out, "{}", self.words(call))?;
            for header in call.headers.iter().filter(|_| self.headers) {
                let hidden = || format!("({} bytes)", header.length);
                writeln!(out, "    {}: {}", header.name, header.value.clone().unwrap_or_else(hidden))?;
            }
        }
        out.flush()
    }

    fn words(&self, call: &TappedCall) -> String {
        let at = jiff::Timestamp::from_millisecond(call.at_unix_ms);
        let at = at.map(|at| at.strftime("%H:%M:%S%.3f").to_string()).unwrap_or_default();
        let tenant = if call.tenant.is_empty() { String::new() } else { format!(" tenant {}", call.tenant) };
        let side = if call.direction == "outbound" { " (caller's side)" } else { "" };
        let TappedCall { caller, service, path, request_id, .. } = call;
        let outcome = self.out.toned(tone(call), &ended(call));
        format!("{at} {caller} -> {service} {path}{tenant}{side}: {outcome}, {} {request_id}", took(call.microseconds))
    }
}

/// OK, or what else.
fn ended(call: &TappedCall) -> String {
    match call.outcome() {
        Outcome::Finished => match call.status.parse() {
            Ok(code) => code_name(code).map_or_else(|| format!("status {code}"), str::to_owned),
            Err(_) => "ended".to_owned(),
        },
        Outcome::Refused => format!("refused {}", call.status),
        Outcome::Cancelled => "cancelled".to_owned(),
        Outcome::Broken => "broken off".to_owned(),
        Outcome::Unspecified => "ended somehow".to_owned(),
    }
}

fn tone(call: &TappedCall) -> Tone {
    match call.outcome() {
        Outcome::Finished if call.status == "0" || call.status.is_empty() => Tone::Good,
        Outcome::Finished | Outcome::Cancelled | Outcome::Unspecified => Tone::Doubtful,
        Outcome::Refused | Outcome::Broken => Tone::Bad,
    }
}

pub fn took(microseconds: u64) -> String {
    match Duration::from_micros(microseconds) {
        took if took < Duration::from_millis(1) => format!("{microseconds} µs"),
        took if took < Duration::from_secs(1) => format!("{:.1} ms", took.as_secs_f64() * 1e3),
        took => format!("{:.1} s", took.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_words() {
        let call = |outcome: Outcome, status: &str| TappedCall {
            outcome: outcome.into(),
            status: status.to_owned(),
            ..TappedCall::default()
        };
        for (outcome, status, words) in [
            (Outcome::Finished, "0", "OK"),
            (Outcome::Finished, "14", "UNAVAILABLE"),
            (Outcome::Finished, "99", "status 99"),
            (Outcome::Finished, "", "ended"),
            (Outcome::Refused, "PATH_NOT_ALLOWED", "refused PATH_NOT_ALLOWED"),
            (Outcome::Cancelled, "", "cancelled"),
        ] {
            assert_eq!(ended(&call(outcome, status)), words);
        }
        assert_eq!(json::tapped(&call(Outcome::Refused, "TENANT_UNKNOWN"))["reason"], "TENANT_UNKNOWN");
        assert_eq!(json::tapped(&call(Outcome::Finished, "14"))["grpcStatus"], 14);
    }

    #[test]
    fn how_long_it_took_is_told_in_three_figures() {
        assert_eq!((took(12), took(3_240), took(71_000_000)), ("12 µs".into(), "3.2 ms".into(), "71.0 s".into()));
    }
}
