//! The control plane's roles, the operator's commands and `tenon up`.
//!
//! Commands of the operator never decide anything themselves: they ask the running mesh, or run the same code that the
//! sidecars run. Standard output has the result and nothing else; standard error has what went wrong and what to do.

mod asap;
mod audit;
mod check;
pub mod cli;
mod config_file;
mod dashboard;
pub mod data;
pub mod failure;
mod guard;
mod identity;
pub mod mesh_file;
mod operator;
pub mod output;
mod policy;
mod probe;
mod roles;
mod sidecars;
mod spawn_child;
mod tap;
mod tcs;
mod tenants;
mod top;
mod up;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser as _};

use crate::{
    cli::{Cli, Command, SpawnChild},
    failure::{Answer, Failure},
};

/// Not for people, so not among the commands: [`SpawnChild`].
const SPAWN_CHILD: &str = "spawn-child";

/// Runs a command line. Exit code 0: success; 1: the answer is no or the work failed; 2: wrong usage.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let outcome = if args.get(1).is_some_and(|word| word == SPAWN_CHILD) {
        SpawnChild::try_parse_from(args.iter().skip(1)).map(|args| spawn_child::exec(&args).map(|never| match never {}))
    } else {
        match config_file::command(&args) {
            Ok(command) => parse(command, &args).map(|cli| run(cli.command)),
            Err(failure) => Ok(Err(failure)),
        }
    };
    match outcome {
        Ok(Ok(answer)) => answer.into(),
        Ok(Err(failure)) => failed(&failure),
        Err(error) => {
            // Help and version are errors to clap, with exit code 0.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

fn parse(command: clap::Command, args: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

fn failed(failure: &Failure) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {failure}");
    failure.exit_code()
}

fn run(command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Up(args) => up::run(args),
        Command::Tenants(command) => block_on(tenants::run(command)),
        Command::Policy(cli::Policy::Check(args)) => block_on(policy::check(args)),
        Command::Policy(cli::Policy::Online(command)) => block_on(policy::online(command)),
        Command::Policy(cli::Policy::Explain(args)) => block_on(policy::explain(*args)),
        Command::Policy(cli::Policy::Test(args)) => policy::test(args),
        Command::Policy(cli::Policy::Schema(_)) => policy::schema(),
        Command::Policy(cli::Policy::Serve(args)) => roles::policy(*args),
        Command::Identity(cli::Identity::JoinToken(args)) => block_on(identity::join_token(args)),
        Command::Identity(cli::Identity::Keys(args)) => block_on(identity::keys(args)),
        Command::Identity(cli::Identity::Revoke(args)) => block_on(identity::revoke::run(args)),
        Command::Identity(cli::Identity::Rotate(args)) => block_on(identity::rotate::run(args)),
        Command::Identity(cli::Identity::Svid(args)) => block_on(identity::svid::run(args)),
        Command::Identity(cli::Identity::Operator(args)) => block_on(identity::operator::run(args)),
        Command::Identity(cli::Identity::TxnToken(args)) => block_on(identity::txn_token::run(args)),
        Command::Identity(cli::Identity::CaInit(args)) => identity::ca_init(&args),
        Command::Identity(cli::Identity::Serve(args)) => roles::identity(args),
        Command::Tcs(cli::Tcs::Serve(args)) => roles::tcs(*args),
        Command::Tcs(cli::Tcs::Backup(args)) => block_on(tcs::backup(args)),
        Command::Tcs(cli::Tcs::BackupKey(args)) => tcs::backup_key(&args),
        Command::Tcs(cli::Tcs::Restore(args)) => block_on(tcs::restore(args)),
        Command::Tcs(cli::Tcs::VerifyBackup(args)) => block_on(tcs::verify(args)),
        Command::Tcs(cli::Tcs::Guard(command)) => block_on(guard::run(command)),
        Command::Asap(command) => block_on(asap::run(command)),
        Command::Explain(args) => block_on(policy::explain_request(args)),
        Command::Tap(args) => block_on(tap::run(args)),
        Command::Top(args) => block_on(top::run(args)),
        Command::Dashboard(args) => block_on(dashboard::run(args)),
        Command::Audit(command) => block_on(audit::run(command)),
        Command::Check(args) => block_on(check::run(args)),
        Command::Sidecars(args) => block_on(sidecars::run(args)),
        Command::Completions(args) => Ok(completions(args.shell)),
    }
}

/// Runs a command of the operator on this thread.
fn block_on(work: impl Future<Output = Result<Answer, Failure>>) -> Result<Answer, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")).next("free some memory and file descriptors"))?
        .block_on(work)
}

fn completions(shell: clap_complete::Shell) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tenon", &mut script);
    // A closed pipe is not an error.
    let _ = io::stdout().write_all(&script);
    Answer::Yes
}
