//! Unix sockets: their files, and who connects.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use crate::{
    guard::Why,
    metrics::{Direction, Metrics},
};

#[cfg(test)]
mod tests;

/// Mode of a socket that the app opens.
const OWNER_AND_GROUP: u32 = 0o660;
/// Mode of a socket for this user alone.
pub const OWNER: u32 = 0o600;
/// Refused users are logged no more often.
const QUIET: Duration = Duration::from_secs(10);

/// The file of a socket: removed when dropped, if it is still the one that was put there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode; none once another process has the socket.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// The one that stands at `path` now.
    fn at(path: &Path) -> Self {
        Self { path: path.into(), identity: Self::identity(path) }
    }

    fn identity(path: &Path) -> Option<(u64, u64)> {
        fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Another process has put it there, and keeps it until this one [owns](Self::own) it.
    fn of_another(path: &Path) -> Self {
        Self { path: path.into(), identity: None }
    }

    /// It goes with this process, whoever has put it there.
    pub fn own(&mut self) {
        self.identity = Self::identity(&self.path);
    }

    /// Moves it to `path`, over whatever stands there.
    ///
    /// # Errors
    /// The system's.
    pub fn place(&mut self, path: &Path) -> io::Result<()> {
        if self.path != path {
            fs::rename(&self.path, path)?;
            self.path = path.into();
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It stays: another process has the socket.
    pub fn keep(mut self) {
        self.identity = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && Self::identity(&self.path) == self.identity {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// A socket that the app opens, by its file.
#[derive(Debug)]
pub struct AppSocket {
    pub listener: UnixListener,
    pub file: SocketFile,
}

impl AppSocket {
    /// Binds it, for the owner and the group of the file.
    ///
    /// # Errors
    /// Somebody listens there, or the path cannot be used.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        let (listener, file) = bind(path, OWNER_AND_GROUP).await?;
        Ok(Self { listener, file })
    }

    /// Binds it where nobody finds it before its file is placed at `path`.
    ///
    /// # Errors
    /// The path cannot be used.
    pub fn beside(path: &Path) -> io::Result<Self> {
        let (listener, file) = bind_beside(path, OWNER_AND_GROUP)?;
        Ok(Self { listener, file })
    }

    /// What another process has bound at `path`.
    ///
    /// # Errors
    /// It is no listener.
    pub fn adopt(path: &Path, socket: OwnedFd) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, file: SocketFile::of_another(path) })
    }

    /// The same socket once more, for another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }
}

/// Binds a socket, in the place of one that was left by a process that is gone. Nobody can connect before the mode is set.
///
/// # Errors
/// Somebody listens there, or the path cannot be used.
async fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    refuse_to_replace(path).await?;
    bind_over(path, mode)
}

/// As [`bind`], in the place also of one that is in use: who connects from now on comes here.
///
/// # Errors
/// The path cannot be used.
pub fn bind_over(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let (listener, mut file) = bind_beside(path, mode)?;
    file.place(path)?;
    Ok((listener, file))
}

/// A socket that nobody finds at `path` before its file is [placed](SocketFile::place) there.
fn bind_beside(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let _left_by_a_namesake = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    let file = SocketFile::at(&beside);
    fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
    Ok((listener, file))
}

/// A socket file that nobody answers at was left by a process that is gone; anything else is not ours to replace.
async fn refuse_to_replace(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket stands there"));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        Err(_) => Ok(()),
    }
}

/// Who may connect, as the kernel tells it (`SO_PEERCRED`).
pub struct Users {
    /// Empty: everybody.
    allowed: Vec<u32>,
    metrics: Arc<Metrics>,
    said: Option<Instant>,
}

impl Users {
    pub fn new(allowed: Vec<u32>, metrics: Arc<Metrics>) -> Self {
        Self { allowed, metrics, said: None }
    }

    /// Whether whoever opened this connection may; who may not is counted.
    pub fn may_connect(&mut self, stream: &UnixStream) -> bool {
        if self.allowed.is_empty() {
            return true;
        }
        let user = stream.peer_cred().map(|peer| peer.uid());
        if matches!(&user, Ok(uid) if self.allowed.contains(uid)) {
            return true;
        }
        self.metrics.closed().count(Direction::Outbound, Why::User);
        if self.said.is_none_or(|said| said.elapsed() > QUIET) {
            self.said = Some(Instant::now());
            warn!(uid = user.ok(), "refused a connection to the outbound socket: --app-uid does not name its user");
        }
        false
    }
}
