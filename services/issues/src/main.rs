//! The `issues` binary: see the library of the same name.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use issues::outbound::Outbound;
use media::hosting;

/// Work items of each tenant: a sample product service. Runs behind a sidecar and trusts nobody else.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to listen for the sidecar's calls: plaintext HTTP/2 on loopback.
    #[arg(long, env = "ISSUES_LISTEN", default_value = "127.0.0.1:9001", value_parser = hosting::loopback)]
    listen: SocketAddr,
    /// Folder for databases; made if absent; one process at a time [default: .tenon/issues-<PORT>]
    #[arg(long, env = "ISSUES_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// The outbound listener of this app's own sidecar, for calls to media: ADDRESS:PORT or unix:PATH.
    #[arg(long, env = "ISSUES_OUTBOUND", default_value = "127.0.0.1:15101")]
    outbound: Outbound,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Causes on the same line, and no backtrace: it is for whoever runs the service.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let Args { listen, data, outbound } = args;
    hosting::log_to_stderr();
    let data = data.unwrap_or_else(|| PathBuf::from(format!(".tenon/issues-{}", listen.port())));
    let shutdown = hosting::until_signalled()?;
    let listener = hosting::listen(listen).await?;
    tracing::info!(address = %listener.local_addr()?, data = %data.display(), %outbound, "issues listens");
    issues::serve(listener, data, outbound, shutdown).await?;
    tracing::info!("issues stopped");
    Ok(())
}
