//! `tenon tap`: calls of the mesh as they end, until somebody has seen enough.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use mesh_telemetry::code_name;
use policy::json;
use tenon_proto::policy::v1::{
    TapFilter, TapRequest, TapResponse, TapState, TappedCall, policy_client::PolicyClient, tap_response::Response,
    tapped_call::Outcome,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tonic::{Code, Status};

use crate::{
    cli::Tap,
    failure::{Answer, Failure},
    operator::{Mesh, Process, Role, reason},
    output::{Output, Tone},
};

/// The wait before a policy service that went away is asked again; it doubles.
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Calls that wait to be printed.
const WAITING: usize = 256;

/// Runs the command until Ctrl-C, until the time is over or all calls that were wanted are told, or until nobody reads its
/// output any more.
///
/// # Errors
/// No mesh, no policy service that answers to begin with, or a filter that it does not take.
pub async fn run(args: Tap) -> Result<Answer, Failure> {
    let mesh = Mesh::find(&args.mesh.data)?;
    let (sender, mut news) = mpsc::channel(WAITING);
    // Each knows its own sidecars alone.
    let processes: Vec<_> = mesh.processes().into_iter().filter(|process| process.role == Role::Policy).collect();
    let mut watching = Watching {
        states: vec![None; processes.len()],
        away: vec![false; processes.len()],
        begun: false,
        left: args.count,
        headers: args.headers || !args.header.is_empty(),
        out: Output::stdout(args.output.output),
    };
    let of_each = request(&args);
    for (index, process) in processes.into_iter().enumerate() {
        let client = PolicyClient::new(mesh.channel_to(&process));
        tokio::spawn(watch(client, of_each.clone(), index, process, sender.clone()));
    }
    drop(sender);
    let over = Instant::now() + args.time.unwrap_or(Duration::from_secs(100 * 365 * 86_400));
    loop {
        let told = tokio::select! {
            Some(told) = news.recv() => told,
            () = sleep_until(over) => break,
            _ = tokio::signal::ctrl_c() => break,
        };
        match told {
            News::Response(index, response) => {
                if !watching.hear(index, response)? {
                    return Ok(Answer::Yes);
                }
            }
            News::Away(index, process, status) => watching.gone(&mesh, index, &process, &status)?,
        }
    }
    Ok(watching.left.is_none_or(|left| left == 0).into())
}

fn request(args: &Tap) -> TapRequest {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let filter = TapFilter {
        service: text(&args.service),
        caller: text(&args.caller),
        tenant: text(&args.tenant),
        path: text(&args.path),
        refused: args.refused,
        both_sides: args.both_sides,
    };
    TapRequest { filter: Some(filter), rate: args.rate, headers: args.header.clone() }
}

/// What comes of one of the policy services.
enum News {
    Response(usize, Response),
    /// It does not answer, or does no more.
    Away(usize, Process, Status),
}

/// Watches through one policy service for as long as anybody wants to know.
async fn watch(
    mut client: PolicyClient<tonic::transport::Channel>,
    request: TapRequest,
    index: usize,
    process: Process,
    news: mpsc::Sender<News>,
) {
    let mut wait = SHORTEST_WAIT;
    loop {
        let status = match client.tap(request.clone()).await {
            Err(status) => status,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(TapResponse { response: Some(response) })) => {
                            wait = SHORTEST_WAIT;
                            if news.send(News::Response(index, response)).await.is_err() {
                                return;
                            }
                        }
                        // Something newer than this program.
                        Ok(Some(TapResponse { response: None })) => {}
                        Ok(None) => break Status::unavailable("it ended"),
                        Err(status) => break status,
                    }
                }
            }
        };
        if news.send(News::Away(index, process.clone(), status)).await.is_err() {
            return;
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

struct Watching {
    /// Of each policy service, as it was told last.
    states: Vec<Option<TapState>>,
    /// One of them has answered.
    begun: bool,
    /// Of each, whether it has failed to answer.
    away: Vec<bool>,
    /// Calls that are still wanted; `None`: all.
    left: Option<u64>,
    headers: bool,
    out: Output,
}

impl Watching {
    /// Whether there is more to be told.
    fn hear(&mut self, index: usize, response: Response) -> Result<bool, Failure> {
        match response {
            Response::State(state) => {
                self.say(index, state);
                Ok(true)
            }
            Response::Call(call) => match self.show(&call) {
                Ok(()) => {
                    self.left = self.left.map(|left| left - 1);
                    Ok(self.left != Some(0))
                }
                // Whoever reads has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
                Err(error) => Err(Failure::new(format!("cannot write to standard output: {error}"))),
            },
        }
    }

    /// A filter that is not taken is nobody's fault but the operator's; who is away may come back.
    fn gone(&mut self, mesh: &Mesh, index: usize, process: &Process, status: &Status) -> Result<(), Failure> {
        let refused = matches!(
            status.code(),
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::ResourceExhausted
                | Code::Unimplemented
        );
        if refused || self.nobody_answers(index) {
            return Err(mesh.failure(Role::Policy, "cannot watch calls", status));
        }
        let _ = writeln!(io::stderr(), "{} is away, trying again: {}", process.title, reason(status));
        Ok(())
    }

    /// Whether none is left to begin with, when this one does not answer.
    fn nobody_answers(&mut self, index: usize) -> bool {
        self.away[index] = true;
        !self.begun && self.away.iter().all(|away| *away)
    }

    /// To the standard error: how many sidecars tell, and what they cannot.
    fn say(&mut self, index: usize, state: TapState) {
        self.begun = true;
        let before = self.states[index].replace(state);
        let sidecars: u32 = self.states.iter().flatten().map(|state| state.sidecars).sum();
        let mut err = io::stderr();
        if before.map(|before| before.sidecars) != Some(state.sidecars) {
            let _ = writeln!(err, "watching {sidecars} sidecars, Ctrl-C ends");
        }
        let more = state.left_out.saturating_sub(before.map_or(0, |before| before.left_out));
        if more > 0 {
            let _ = writeln!(err, "{more} calls left out: narrow the filter, or raise --rate");
        }
    }

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

fn took(microseconds: u64) -> String {
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
    fn one_of_two_policy_services_that_fails_twice_is_not_both_of_them() {
        let mut watching = Watching {
            states: vec![None; 2],
            away: vec![false; 2],
            begun: false,
            left: None,
            headers: false,
            out: Output::piped(crate::cli::Format::Json, io::sink()),
        };
        assert!(!watching.nobody_answers(0) && !watching.nobody_answers(0));
        assert!(watching.nobody_answers(1));
        watching.begun = true;
        assert!(!watching.nobody_answers(1), "who was there comes back");
    }

    #[test]
    fn how_long_it_took_is_told_in_three_figures() {
        assert_eq!((took(12), took(3_240), took(71_000_000)), ("12 µs".into(), "3.2 ms".into(), "71.0 s".into()));
    }
}
