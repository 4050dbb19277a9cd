//! A new process takes the place of one that runs: it is given the listening sockets themselves, so that no connection is
//! refused, and none that waits to be accepted is lost.
//!
//! The running process listens on a Unix socket in its state folder, for its own user alone. Whoever connects is given the
//! sockets at once (`SCM_RIGHTS`) and lets them be until it is ready. Then it accepts, says so, and the first process
//! ends as after SIGTERM, but stays on the list of those that take calls. If the new process ends before it said so,
//! nothing has changed.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{TcpListener, UnixStream},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    config::{Config, LocalAddress},
    listen::{self, AppSocket, Outbound},
};

/// In the state folder.
const SOCKET: &str = "take-over.sock";
/// Of what is said at it.
const VERSION: u32 = 1;
/// Outbound, inbound, admin, and the Workload API if there is one.
const SOCKETS: usize = 4;
/// What the new process says when it accepts.
const SERVING: &[u8] = b"serving\n";
/// An offer is no longer.
const LONGEST: usize = 8 << 10;
/// How long the running process may take to give its sockets away.
const OFFERING: Duration = Duration::from_secs(5);
/// A longer path fits in no socket address.
const LONGEST_PATH: usize = 90;
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_secs(1);

/// What is bound before the sidecar joins, beside the admin listener.
pub struct Listeners {
    pub outbound: Outbound,
    pub inbound: TcpListener,
    pub workload_api: Option<AppSocket>,
    /// Who has the same listeners, and accepts until this process serves.
    pub former: Option<Predecessor>,
}

/// What stands beside the sockets.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    version: u32,
    service: String,
    outbound: String,
    inbound: SocketAddr,
    admin: SocketAddr,
    /// Path of its socket, the last one.
    workload_api: Option<String>,
}

/// The listeners of this process, for the next.
pub struct Heritage {
    offer: Vec<u8>,
    sockets: Vec<OwnedFd>,
    shared: Arc<AtomicBool>,
}

impl Heritage {
    /// Of these.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(config: &Config, listeners: &Listeners, admin: &TcpListener) -> io::Result<Self> {
        let Listeners { outbound, inbound, workload_api, former: _ } = listeners;
        let path = config.serve_workload_api.as_ref().and_then(|path| path.to_str());
        let api = workload_api.as_ref().zip(path);
        let offer = Offer {
            version: VERSION,
            service: config.service.to_string(),
            outbound: outbound.address()?.to_string(),
            inbound: inbound.local_addr()?,
            admin: admin.local_addr()?,
            workload_api: api.map(|(_, path)| path.to_owned()),
        };
        let share = |listener: &TcpListener| listener.as_fd().try_clone_to_owned();
        let mut offer = serde_json::to_vec(&offer)?;
        offer.push(b'\n');
        let mut sockets = vec![outbound.share()?, share(inbound)?, share(admin)?];
        sockets.extend(api.map(|(socket, _)| socket.share()).transpose()?);
        Ok(Self { offer, sockets, shared: Arc::default() })
    }

    /// Whether another process has the sockets, too, or might have them: then their files are not this one's to remove.
    pub fn shared(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.shared)
    }

    /// Gives them to whoever of the same user asks for them; comes back when one who did is serving.
    pub async fn pass_on(self, state_dir: &Path) -> Successor {
        let (listener, _file, _folder) = loop {
            match place(state_dir).and_then(|(path, folder)| {
                let (listener, file) = listen::bind_over(&path, listen::OWNER)?;
                Ok((listener, file, folder))
            }) {
                Ok(bound) => break bound,
                Err(error) => warn!(%error, "no other process can take over from this one: its socket cannot be made"),
            }
            sleep(PAUSE * 60).await;
        };
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(_out_of_descriptors) => {
                    sleep(PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = same_user(&stream) {
                warn!(%error, "refused to hand the listeners over");
                continue;
            }
            info!("another process is taking over: the listeners are its, too");
            self.shared.store(true, Ordering::Release);
            match self.offer_to(stream).await {
                Ok(stream) => return Successor(stream),
                Err(error) => warn!(%error, "the process that was taking over is gone; this one goes on as before"),
            }
            self.shared.store(false, Ordering::Release);
        }
    }

    async fn offer_to(&self, mut stream: UnixStream) -> io::Result<UnixStream> {
        let sockets: Vec<_> = self.sockets.iter().map(|socket| socket.as_fd()).collect();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
            let mut rights = SendAncillaryBuffer::new(&mut space);
            if !rights.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let sent = rustix::net::sendmsg(&stream, &[IoSlice::new(&self.offer)], &mut rights, SendFlags::NOSIGNAL)?;
            if sent == self.offer.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        };
        stream.async_io(Interest::WRITABLE, send).await?;
        let mut said = [0; SERVING.len()];
        stream.read_exact(&mut said).await?;
        if said == *SERVING { Ok(stream) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// The process that has taken over. It sees when this one ends.
#[derive(Debug)]
pub struct Successor(#[expect(dead_code, reason = "its end is closed when this is dropped")] UnixStream);

/// What a running process offers, as far as the configuration of this one still names it.
#[derive(Default)]
pub struct Offered {
    pub outbound: Option<Outbound>,
    pub inbound: Option<TcpListener>,
    pub admin: Option<TcpListener>,
    pub workload_api: Option<AppSocket>,
    /// Who offers it; none when no process runs with this state folder.
    pub by: Option<Predecessor>,
}

/// The process that runs until this one serves.
pub struct Predecessor {
    stream: UnixStream,
    /// Files of sockets that this process does not take over.
    unwanted: Vec<PathBuf>,
}

/// Asks the process that runs with the same state folder for its listeners.
///
/// # Errors
/// It does not give them, or is another service's.
pub async fn take_over(config: &Config) -> anyhow::Result<Offered> {
    let (path, _folder) = place(&config.state_dir).with_context(|| config.state_dir.display().to_string())?;
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            info!("no sidecar runs with this state folder: there is nothing to take over");
            return Ok(Offered::default());
        }
        Err(error) => return Err(error).context("--take-over: the process that runs does not answer"),
    };
    same_user(&stream).context("--take-over")?;
    let received = timeout(OFFERING, receive(&stream)).await;
    let (offer, sockets) = received
        .context("--take-over: the process that runs gives nothing away; is another one taking over?")?
        .context("--take-over: the process that runs has ended meanwhile, or gives nothing away")?;
    let Offer { version, service, outbound, inbound, admin, workload_api } = offer;
    ensure!(version == VERSION, "--take-over: the process that runs speaks version {version}, this one {VERSION}");
    ensure!(
        service == config.service.as_str(),
        "--take-over: --state-dir {} is that of a sidecar of {service}, and this is one of {}",
        config.state_dir.display(),
        config.service
    );
    let mut sockets = sockets.into_iter();
    let mut next =
        || sockets.next().context("--take-over: the process that runs gives away fewer sockets than it says");
    let (outbound_socket, inbound_socket, admin_socket) = (next()?, next()?, next()?);
    let mut unwanted = Vec::new();
    let workload_api = match workload_api.map(PathBuf::from) {
        Some(path) if config.serve_workload_api.as_ref() == Some(&path) => Some(AppSocket::adopt(&path, next()?)?),
        Some(path) => {
            unwanted.push(path);
            None
        }
        None => None,
    };
    let outbound: LocalAddress = outbound.parse().map_err(anyhow::Error::msg)?;
    let adopted = |wanted, address, socket| same(wanted, address).then(|| listen::adopt_tcp(socket)).transpose();
    let outbound_wanted = match (&config.outbound, &outbound) {
        (LocalAddress::Tcp(wanted), LocalAddress::Tcp(address)) => same(*wanted, *address),
        (wanted, address) => wanted == address,
    };
    if let (false, LocalAddress::Unix(path)) = (outbound_wanted, &outbound) {
        unwanted.push(path.to_path_buf());
    }
    Ok(Offered {
        outbound: outbound_wanted.then(|| Outbound::adopt(&outbound, outbound_socket)).transpose()?,
        inbound: adopted(config.inbound, inbound, inbound_socket)?,
        admin: adopted(config.admin, admin, admin_socket)?,
        workload_api,
        by: Some(Predecessor { stream, unwanted }),
    })
}

impl Predecessor {
    /// Comes back when it has ended.
    pub async fn gone(&self) {
        let mut byte = [0; 1];
        // It says nothing any more: whatever comes is its end.
        let _ended = self.stream.async_io(Interest::READABLE, || self.stream.try_read(&mut byte)).await;
    }

    /// This process accepts: it is to end, and leaves the files of its sockets to this one.
    pub async fn let_go(mut self) {
        let told = self.stream.write_all(SERVING).await;
        for path in &self.unwanted {
            let _gone = std::fs::remove_file(path);
        }
        if let Err(error) = told {
            info!(%error, "the process that ran before is gone already");
            return;
        }
        info!("took over: the process that ran before ends its calls");
        tokio::spawn(async move {
            self.gone().await;
            info!("the process that ran before has ended");
        });
    }
}

async fn receive(stream: &UnixStream) -> anyhow::Result<(Offer, Vec<OwnedFd>)> {
    let receive = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let (mut rights, mut bytes) = (RecvAncillaryBuffer::new(&mut space), vec![0; LONGEST]);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut rights, flags)?;
        bytes.truncate(got.bytes);
        let sockets: Vec<OwnedFd> = rights
            .drain()
            .filter_map(
                |message| if let RecvAncillaryMessage::ScmRights(sockets) = message { Some(sockets) } else { None },
            )
            .flatten()
            .collect();
        Ok((bytes, sockets))
    };
    let (bytes, sockets) = stream.async_io(Interest::READABLE, receive).await?;
    let Some(offer) = bytes.strip_suffix(b"\n") else { bail!("it said {} bytes and no whole line", bytes.len()) };
    Ok((serde_json::from_slice(offer)?, sockets))
}

/// The address that is bound is the one that is wanted; any port will do where 0 is.
fn same(wanted: SocketAddr, bound: SocketAddr) -> bool {
    wanted == bound || (wanted.port() == 0 && wanted.ip() == bound.ip())
}

/// Whoever may write to the state folder could put a socket there.
fn same_user(stream: &UnixStream) -> io::Result<()> {
    let (peer, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if peer == own {
        return Ok(());
    }
    let message = format!("the process at the other end runs as user {peer}, and this one as {own}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// Path of the socket; where the folder's is too long for a socket address, by way of the folder's descriptor, which must
/// stay open for as long as the path is used.
fn place(state_dir: &Path) -> io::Result<(PathBuf, Option<File>)> {
    let path = state_dir.join(SOCKET);
    if path.as_os_str().len() <= LONGEST_PATH {
        return Ok((path, None));
    }
    let folder = File::open(state_dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd())), Some(folder)))
}
