//! `tenon-sidecar`: the data plane beside one instance of a service.

use std::{future::pending, process::ExitCode};

use clap::{Parser, Subcommand};
use tenon_sidecar::{app::Sidecar, config::Config, config::Flags, log_filter, wait::Wait};
use tokio::signal::unix::{SignalKind, signal};
use tracing_appender::non_blocking::NonBlockingBuilder;

/// 30 % less CPU a call than with glibc's malloc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Log lines that may wait to be written.
const LOG_LINES: usize = 2_048;

/// Without a command it is the sidecar.
#[derive(Parser)]
#[command(
    name = "tenon-sidecar",
    version,
    about = "The data plane of Tenon: one process beside each instance of a service",
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  tenon-sidecar --service media --trust-domain demo.example --region us-east --app 127.0.0.1:9002 \\\n    \
                  --identity 127.0.0.1:15010 --tcs 127.0.0.1:15020 --policy 127.0.0.1:15030 \\\n    \
                  --trust-bundle-sha256 \"$PIN\" --join-token-file join-token --state-dir state\n\n\
                  `tenon identity join-token --service media` prints a join token; the pin is\n\
                  trustBundleSha256 in mesh.json in the data folder of the mesh. Where the platform attests its\n\
                  processes, its token does instead, once an Attestor document accepts it:\n  \
                  --oidc-token-file /var/run/secrets/tokens/tenon\n\n\
                  Two replicas of the TCS in two zones, and only those tenants in memory that are asked for:\n  \
                  --tcs a=10.0.0.1:15020 --tcs b=10.0.1.1:15020 --tenants on-demand --tenant-cache-bytes 64MiB\n\n\
                  A new binary in the place of one that runs, without a refused connection: the same command line with --take-over\n\n\
                  A flag wins over its TENON_* variable, and a variable over the file."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    sidecar: Flags,
}

#[derive(Subcommand)]
enum Command {
    /// Wait until the sidecar beside is ready, to start the app after it; exits 1 when it is not in time
    #[command(
        after_help = "Example:\n  tenon-sidecar wait --timeout 60s && exec /usr/bin/media --listen 127.0.0.1:9002"
    )]
    Wait(Wait),
}

fn main() -> ExitCode {
    let CommandLine { command, sidecar } = CommandLine::parse();
    // Gives back what the start took: without it a thread gives back only when it allocates, and idle ones do not.
    let _goes_without = tikv_jemalloc_ctl::background_thread::write(true);
    // Replication and admin have this runtime to themselves; each worker brings its own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed("cannot start", &error),
    };
    if let Some(Command::Wait(wait)) = command {
        return match runtime.block_on(wait.run()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => failed("wait", &why),
        };
    }
    // Whoever reads standard error may stop reading: lines are then dropped, and calls go on.
    let (writer, _flushed_at_the_end) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES).finish(std::io::stderr());
    log_filter::begin(writer);
    let config = match sidecar.into_config() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tenon-sidecar: the configuration cannot be used:\n{error}\nsee `tenon-sidecar --help`");
            return ExitCode::from(2);
        }
    };
    let ended = runtime.block_on(run(config));
    // Nothing is left to wait for: either all of it has ended, or nobody wants to wait for it.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tenon-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("tenon-sidecar {what}: {why}");
    ExitCode::FAILURE
}

/// The first signal asks it to end well, the second ends it.
async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let sidecar = Sidecar::start(config).await?;
    let shutdown = sidecar.shutdown_token();
    let signalled_twice = async {
        for again in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if again {
                return;
            }
            shutdown.cancel();
        }
        pending().await
    };
    tokio::select! {
        ended = sidecar.ended() => ended,
        () = signalled_twice => anyhow::bail!("ended at once by a second signal: calls that were open are cut"),
    }
}
