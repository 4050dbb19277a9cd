//! Serving the own SVID and the trust bundle to the app beside this process, with every rotation.
//!
//! Whoever may open the socket gets the private key: the socket's mode (0660) and its folder say who that is.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use tenon_proto::spiffe as proto;
use tenon_proto::spiffe::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{SECURITY_HEADER, der};
use crate::{Identity, clock};

/// The owner and its group.
const MODE: u32 = 0o660;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody listens there already.
    #[error("another process serves {}; choose another path, or stop it", .0.display())]
    Taken(PathBuf),
    /// A file that is no socket stands there.
    #[error("{} is no socket; choose another path", .0.display())]
    NoSocket(PathBuf),
    /// The system said no.
    #[error("cannot listen on {}: {source}; check that its folder exists and is writable", path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket that nobody is served at yet. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    path: SocketFile,
}

/// Removes the socket's file when dropped, if no other process has put its own there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn at(path: &Path) -> Option<(u64, u64)> {
        fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::at(&self.path) == self.identity {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket, in the place of one that was left by a process that is gone. Nobody can connect before the mode is
/// set.
///
/// # Errors
/// Somebody else listens there, or the path cannot be used.
pub async fn bind(path: &Path) -> Result<Bound, ServeError> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(ServeError::NoSocket(path.into()));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(ServeError::Taken(path.into()));
        }
    }
    bind_over(path)
}

/// As [`bind`], in the place also of a socket that is in use: whoever connects from now on comes here.
///
/// # Errors
/// The path cannot be used.
pub fn bind_over(path: &Path) -> Result<Bound, ServeError> {
    let attempt = || {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let listener = UnixListener::bind(&beside)?;
        let placed =
            fs::set_permissions(&beside, fs::Permissions::from_mode(MODE)).and_then(|()| fs::rename(&beside, path));
        if let Err(error) = placed {
            let _gone = fs::remove_file(&beside);
            return Err(error);
        }
        Ok(listener)
    };
    match attempt() {
        Ok(listener) => Ok(Bound { listener, path: SocketFile { path: path.into(), identity: SocketFile::at(path) } }),
        Err(source) => Err(ServeError::Io { path: path.into(), source }),
    }
}

/// Serves until `shutdown`, then removes the socket's file.
///
/// # Errors
/// The listener's.
pub async fn serve(bound: Bound, identity: Arc<Identity>, shutdown: CancellationToken) -> io::Result<()> {
    let Bound { listener, path: _removed_at_the_end } = bound;
    tonic::transport::Server::builder()
        .add_service(SpiffeWorkloadApiServer::new(Served { identity, ended: shutdown.clone() }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned())
        .await
        .map_err(io::Error::other)
}

struct Served {
    identity: Arc<Identity>,
    /// Streams end with the server: nobody waits for them.
    ended: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Served {
    /// One answer now and one after each change of the identity.
    fn answers<T: Send + 'static>(
        &self,
        answer: impl Fn(&Identity) -> Result<T, Status> + Send + 'static,
    ) -> Response<Answers<T>> {
        let identity = Arc::clone(&self.identity);
        let changes = WatchStream::new(self.identity.changes());
        let answers = changes.map(move |_| answer(&identity)).take_until(self.ended.clone().cancelled_owned());
        Response::new(Box::pin(answers))
    }
}

/// §3: without the header nobody is answered.
fn deliberate<T>(request: &Request<T>) -> Result<(), Status> {
    let header = request.metadata().get(SECURITY_HEADER);
    if header.is_some_and(|value| value == "true") {
        Ok(())
    } else {
        Err(Status::invalid_argument("the metadata workload.spiffe.io: true is missing"))
    }
}

fn svid(identity: &Identity) -> Result<proto::X509svidResponse, Status> {
    let (svid, bundle) = (identity.svid(), identity.bundle());
    if !svid.is_valid_at(clock::unix_seconds()) {
        // §6.1: no identity now; the client asks again later.
        return Err(Status::permission_denied("no identity issued: the SVID of this sidecar has ended"));
    }
    let svid = proto::X509svid {
        spiffe_id: svid.id().to_string(),
        x509_svid: der::join(svid.chain()).into(),
        x509_svid_key: svid.key_pkcs8().to_vec().into(),
        bundle: der::join(bundle.roots()).into(),
        hint: String::new(),
    };
    Ok(proto::X509svidResponse { svids: vec![svid], ..Default::default() })
}

fn bundles(identity: &Identity) -> proto::X509BundlesResponse {
    let bundle = identity.bundle();
    let id = format!("spiffe://{}", bundle.trust_domain());
    let bundles = [(id, der::join(bundle.roots()).into())].into();
    proto::X509BundlesResponse { bundles, ..Default::default() }
}

fn no_jwt() -> Status {
    Status::unimplemented("no JWT-SVIDs: services of this mesh call each other with ASAP tokens")
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Served {
    type FetchX509SVIDStream = Answers<proto::X509svidResponse>;
    type FetchX509BundlesStream = Answers<proto::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<proto::JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<proto::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        deliberate(&request)?;
        Ok(self.answers(svid))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<proto::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        deliberate(&request)?;
        Ok(self.answers(|identity| Ok(bundles(identity))))
    }

    async fn fetch_jwtsvid(
        &self,
        _: Request<proto::JwtsvidRequest>,
    ) -> Result<Response<proto::JwtsvidResponse>, Status> {
        Err(no_jwt())
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<proto::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(no_jwt())
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<proto::ValidateJwtsvidRequest>,
    ) -> Result<Response<proto::ValidateJwtsvidResponse>, Status> {
        Err(no_jwt())
    }
}
