//! `tenon tcs guard`: what no replica of the map of tenants loses by accident.

use std::time::Duration;

use tenon_proto::tcs::v1::{GetGuardRequest, Guard, GuardOverride, operations_client::OperationsClient};
use tonic::{Status, transport::Channel};

use crate::{
    cli::{self, AllowShrink, OutputArgs, SetGuard},
    failure::{Answer, Failure},
    operator::{Mesh, Role},
    output::{Output, rfc3339},
};

/// Where nothing is set.
const DEFAULT_PERCENT: u32 = 50;
/// What a canary that is gone means.
const GONE: &str =
    "unless it may shrink, no snapshot is taken without them; create them again, or take them off the list";

/// Runs one of the commands.
///
/// # Errors
/// No mesh, no answer, or a guard that the TCS refuses; the text says what to do.
pub async fn run(command: cli::Guard) -> Result<Answer, Failure> {
    match command {
        cli::Guard::Show(args) => {
            let mesh = Mesh::find(&args.mesh.data)?;
            let guard = get(&mesh).await?;
            print(&args.output, &guard)
        }
        cli::Guard::Set(args) => {
            let mesh = Mesh::find(&args.mesh.data)?;
            let guard = changed(get(&mesh).await?, &args);
            print(&args.output, &set(&mesh, guard).await?)
        }
        cli::Guard::AllowShrink(args) => {
            let mesh = Mesh::find(&args.mesh.data)?;
            let guard = allowing(get(&mesh).await?, &args, mesh_identity::clock::since_epoch());
            print(&args.output, &set(&mesh, guard).await?)
        }
    }
}

fn client(mesh: &Mesh) -> OperationsClient<Channel> {
    OperationsClient::new(mesh.tcs())
}

async fn get(mesh: &Mesh) -> Result<Guard, Failure> {
    let failed = |status: Status| mesh.tcs_failure("cannot read the guard", &status);
    Ok(client(mesh).get_guard(GetGuardRequest {}).await.map_err(failed)?.into_inner())
}

async fn set(mesh: &Mesh, guard: Guard) -> Result<Guard, Failure> {
    let find_out = "it may have been set: `tenon tcs guard show` tells";
    let failed = |status: Status| mesh.write_failure(Role::Tcs, "the guard is as it was", find_out, &status);
    Ok(client(mesh).set_guard(guard).await.map_err(failed)?.into_inner())
}

fn changed(mut guard: Guard, args: &SetGuard) -> Guard {
    if let Some(percent) = args.largest_shrink {
        guard.largest_shrink_percent = percent;
    }
    if args.no_canaries || !args.canary.is_empty() {
        guard.canaries.clone_from(&args.canary);
    }
    if args.end_override {
        guard.r#override = None;
    }
    guard
}

fn allowing(guard: Guard, args: &AllowShrink, now: Duration) -> Guard {
    let seconds = i64::try_from((now + args.lasting).as_secs()).unwrap_or(i64::MAX);
    let until = Some(pbjson_types::Timestamp { seconds, nanos: 0 });
    let allowed = GuardOverride { smallest_records: args.to, until, reason: args.reason.clone() };
    Guard { r#override: Some(allowed), ..guard }
}

fn print(args: &OutputArgs, guard: &Guard) -> Result<Answer, Failure> {
    let mut out = Output::stdout(args.output);
    if out.is_json() {
        out.json(guard)?;
    } else {
        out.table(&["guard", "value"], &rows(guard))?;
    }
    out.flush()?;
    Ok(Answer::Yes)
}

fn rows(guard: &Guard) -> Vec<Vec<String>> {
    let percent = match guard.largest_shrink_percent {
        0 => format!("{DEFAULT_PERCENT} % (default)"),
        percent => format!("{percent} %"),
    };
    let canaries = if guard.canaries.is_empty() { "none".to_owned() } else { guard.canaries.join(" ") };
    let mut rows =
        vec![vec!["largest shrink within a minute".to_owned(), percent], vec!["canaries".to_owned(), canaries]];
    if !guard.missing_canaries.is_empty() {
        let gone = guard.missing_canaries.join(" ");
        rows.push(vec!["canaries that are gone".to_owned(), format!("{gone}: {GONE}")]);
    }
    if let Some(allowed) = &guard.r#override {
        let until = allowed.until.as_ref().and_then(|until| u64::try_from(until.seconds).ok()).map(rfc3339);
        let until = until.unwrap_or_default();
        rows.push(vec!["may shrink to".to_owned(), format!("{} tenants until {until}", allowed.smallest_records)]);
        rows.push(vec!["why".to_owned(), allowed.reason.clone()]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command, Tcs};

    fn parse(line: &[&str]) -> cli::Guard {
        let words = ["tenon", "tcs", "guard"].iter().chain(line);
        let Command::Tcs(Tcs::Guard(command)) = Cli::try_parse_from(words).unwrap().command else { panic!("another") };
        command
    }

    #[test]
    fn what_is_not_named_stays_as_it_is() {
        let held = Guard { largest_shrink_percent: 10, canaries: vec!["acme".into()], ..Guard::default() };
        let set = |line: &[&str]| match parse(line) {
            cli::Guard::Set(args) => changed(held.clone(), &args),
            cli::Guard::AllowShrink(args) => allowing(held.clone(), &args, Duration::from_secs(1_000)),
            cli::Guard::Show(_) => panic!("another command"),
        };
        assert_eq!(set(&["set"]), held);
        assert_eq!(set(&["set", "--largest-shrink", "0"]).largest_shrink_percent, 0);
        assert_eq!(set(&["set", "--canary", "a", "--canary", "b"]).canaries, ["a", "b"]);
        assert!(set(&["set", "--no-canaries"]).canaries.is_empty());
        let allowed = set(&["allow-shrink", "--to", "7", "--for", "10m", "--reason", "why"]);
        assert_eq!((allowed.largest_shrink_percent, allowed.canaries.len()), (10, 1));
        let text: Vec<String> = rows(&allowed).into_iter().map(|row| row.join("=")).collect();
        assert_eq!(
            text,
            [
                "largest shrink within a minute=10 %",
                "canaries=acme",
                "may shrink to=7 tenants until 1970-01-01T00:26:40Z",
                "why=why"
            ]
        );
        assert_eq!(rows(&Guard::default())[0][1], "50 % (default)");
        let gone = Guard { missing_canaries: vec!["acme".into()], ..held };
        assert_eq!(rows(&gone)[2], ["canaries that are gone".to_owned(), format!("acme: {GONE}")]);
    }
}
