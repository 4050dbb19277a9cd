//! Binding the listeners, and handing what they accept to the workers in turn.

mod unix;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::unix::Users;
pub use self::unix::{AppSocket, OWNER, bind_over};
use crate::{
    config::LocalAddress,
    metrics::Metrics,
    worker::{Accepted, Handle},
};

/// Pause after a failed accept: out of descriptors, say.
const PAUSE: Duration = Duration::from_millis(50);

/// The outbound listener.
#[derive(Debug)]
pub enum Outbound {
    /// On loopback.
    Tcp(TcpListener),
    /// On a Unix socket, whose file is removed when it is dropped.
    Unix(AppSocket),
}

impl Outbound {
    /// Binds what the configuration says.
    ///
    /// # Errors
    /// The address is taken, or the path cannot be used.
    pub async fn bind(address: &LocalAddress) -> io::Result<Self> {
        match address {
            LocalAddress::Tcp(address) => Ok(Self::Tcp(tcp(*address).await?)),
            LocalAddress::Unix(path) => AppSocket::bind(path).await.map(Self::Unix),
        }
    }

    /// What another process has bound, at the address where it did.
    ///
    /// # Errors
    /// It is no listener of this kind.
    pub fn adopt(address: &LocalAddress, socket: OwnedFd) -> io::Result<Self> {
        match address {
            LocalAddress::Tcp(_) => adopt_tcp(socket).map(Self::Tcp),
            LocalAddress::Unix(path) => AppSocket::adopt(path, socket).map(Self::Unix),
        }
    }

    /// Where it listens: the port that was given for port 0.
    pub fn address(&self) -> io::Result<LocalAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(LocalAddress::Tcp),
            Self::Unix(socket) => Ok(LocalAddress::Unix(socket.file.path().into())),
        }
    }

    /// The same socket once more, for another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Self::Unix(socket) => socket.share(),
        }
    }
}

/// A TCP listener.
pub async fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// A TCP listener that another process has bound.
///
/// # Errors
/// It is none.
pub fn adopt_tcp(socket: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// How the app's connections are accepted.
pub struct Accepting {
    /// Who may connect to a Unix socket; empty: whoever may open its file.
    pub users: Vec<u32>,
    /// Where those are counted who may not.
    pub metrics: Arc<Metrics>,
    /// Ends it.
    pub shutdown: CancellationToken,
    /// Another process has the listener, too: its file stays.
    pub shared: Arc<AtomicBool>,
}

/// Accepts the app's connections until it is told to end.
pub async fn accept_outbound(mut listener: Outbound, workers: Vec<Handle>, how: Accepting) {
    let mut turn = workers.iter().cycle();
    let mut users = Users::new(how.users, how.metrics);
    if let Outbound::Unix(socket) = &mut listener {
        socket.file.own();
    }
    loop {
        let accepted = tokio::select! {
            () = how.shutdown.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        match accepted {
            Ok(App::Unix(stream)) if !users.may_connect(&stream) => {}
            Ok(App::Unix(stream)) => hand_over(stream.into_std().map(Accepted::OutboundUnix), turn.next()).await,
            Ok(App::Tcp(stream)) => hand_over(stream.into_std().map(Accepted::Outbound), turn.next()).await,
            Err(error) => hand_over(Err(error), None).await,
        }
    }
    if let Outbound::Unix(socket) = listener
        && how.shared.load(Ordering::Acquire)
    {
        socket.file.keep();
    }
}

enum App {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn accept(listener: &Outbound) -> io::Result<App> {
    match listener {
        Outbound::Tcp(listener) => listener.accept().await.map(|(stream, _)| App::Tcp(stream)),
        Outbound::Unix(socket) => socket.listener.accept().await.map(|(stream, _)| App::Unix(stream)),
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
