//! `tenon-sidecar`: the data plane beside one instance of a service.

use std::process::ExitCode;

use clap::Parser as _;
use tenon_sidecar::{app::Sidecar, config::Flags};
use tokio::signal::unix::{SignalKind, signal};
use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::EnvFilter;

/// 30 % less CPU a call than with glibc's malloc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Log lines that may wait to be written.
const LOG_LINES: usize = 8_192;

fn main() -> ExitCode {
    let flags = Flags::parse();
    let filter = EnvFilter::try_from_env("TENON_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Whoever reads standard error may stop reading: lines are then dropped, and calls go on.
    let (writer, _flushed_at_the_end) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES).finish(std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false).init();
    let config = match flags.into_config() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tenon-sidecar: the configuration cannot be used:\n{error}\nsee `tenon-sidecar --help`");
            return ExitCode::from(2);
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tenon-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Replication and admin have this runtime to themselves; each worker brings its own.
#[tokio::main(flavor = "current_thread")]
async fn run(config: tenon_sidecar::config::Config) -> anyhow::Result<()> {
    let sidecar = Sidecar::start(config).await?;
    let shutdown = sidecar.shutdown_token();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    sidecar.ended().await
}
