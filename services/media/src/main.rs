//! The `media` binary: see the library of the same name.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use media::hosting;

/// Files of each tenant, with thumbnails: a sample product service. Runs behind a sidecar and trusts nobody else.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where to listen for the sidecar's calls: plaintext HTTP/2 on loopback.
    #[arg(long, env = "MEDIA_LISTEN", default_value = "127.0.0.1:9002", value_parser = hosting::loopback)]
    listen: SocketAddr,
    /// Folder for databases and files; made if absent; one process at a time [default: .tenon/media-<PORT>]
    #[arg(long, env = "MEDIA_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
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
    let Args { listen, data } = args;
    hosting::log_to_stderr();
    let data = data.unwrap_or_else(|| PathBuf::from(format!(".tenon/media-{}", listen.port())));
    let shutdown = hosting::until_signalled()?;
    let listener = hosting::listen(listen).await?;
    tracing::info!(address = %listener.local_addr()?, data = %data.display(), "media listens");
    media::serve(listener, data, shutdown).await?;
    tracing::info!("media stopped");
    Ok(())
}
