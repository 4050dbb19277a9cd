//! Binding the data-path listeners, and handing what they accept to the workers in turn.

use std::{io, net::SocketAddr, os::unix::fs::FileTypeExt as _, path::Path, time::Duration};

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    config::OutboundAddress,
    worker::{Accepted, Handle},
};

/// Pause after a failed accept: out of descriptors, say.
const PAUSE: Duration = Duration::from_millis(50);

/// The outbound listener.
pub enum Outbound {
    /// On loopback.
    Tcp(TcpListener),
    /// On a Unix socket, whose file is removed when it is dropped.
    Unix(UnixListener, SocketFile),
}

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub struct SocketFile(std::path::PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

impl Outbound {
    /// Binds what the configuration says.
    ///
    /// # Errors
    /// The address is taken, or the path cannot be used.
    pub async fn bind(address: &OutboundAddress) -> io::Result<Self> {
        match address {
            OutboundAddress::Tcp(address) => Ok(Self::Tcp(tcp(*address).await?)),
            OutboundAddress::Unix(path) => {
                remove_stale(path).await?;
                Ok(Self::Unix(UnixListener::bind(path)?, SocketFile(path.clone())))
            }
        }
    }

    /// Where it listens: the port that was given for port 0.
    pub fn address(&self) -> io::Result<OutboundAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(OutboundAddress::Tcp),
            Self::Unix(_, SocketFile(path)) => Ok(OutboundAddress::Unix(path.clone())),
        }
    }
}

/// A TCP listener.
pub async fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// A socket file that nobody answers at was left by a process that is gone; anything else is not ours to remove.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket stands there"));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        Err(_) => std::fs::remove_file(path),
    }
}

/// Accepts the app's connections until `shutdown`.
pub async fn accept_outbound(listener: Outbound, workers: Vec<Handle>, shutdown: CancellationToken) {
    let mut turn = workers.iter().cycle();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = async {
                match &listener {
                    Outbound::Tcp(listener) => listener.accept().await.and_then(|(stream, _)| stream.into_std()).map(Accepted::Outbound),
                    Outbound::Unix(listener, _) => {
                        listener.accept().await.and_then(|(stream, _)| stream.into_std()).map(Accepted::OutboundUnix)
                    }
                }
            } => accepted,
        };
        hand_over(accepted, turn.next()).await;
    }
}

/// Accepts other sidecars' connections until `shutdown`.
pub async fn accept_inbound(listener: TcpListener, workers: Vec<Handle>, shutdown: CancellationToken) {
    let mut turn = workers.iter().cycle();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted.and_then(|(stream, _)| stream.into_std()).map(Accepted::Inbound),
        };
        hand_over(accepted, turn.next()).await;
    }
}

async fn hand_over(accepted: io::Result<Accepted>, worker: Option<&Handle>) {
    match (accepted, worker) {
        (Ok(connection), Some(worker)) => worker.give(connection),
        (Ok(_), None) => {}
        (Err(error), _) => {
            warn!(%error, "cannot accept a connection: raise the limit of open files if this stays");
            tokio::time::sleep(PAUSE).await;
        }
    }
}
