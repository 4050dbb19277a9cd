//! Serving the own SVID and the trust bundle to the app beside this process, with every rotation.
//!
//! Whoever may open the socket gets the private key: the socket's mode and its folder say who that is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use tenon_proto::spiffe as proto;
use tenon_proto::spiffe::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{SECURITY_HEADER, der};
use crate::{Identity, clock};

/// Serves those who connect to `listener` until `over`: who connects later waits in the socket for another process that has
/// it, too. Who is connected by then is served until `end`.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: UnixListener,
    identity: Arc<Identity>,
    over: CancellationToken,
    end: CancellationToken,
) -> io::Result<()> {
    let connections = UnixListenerStream::new(listener).take_until(over.cancelled_owned()).chain(stream::pending());
    tonic::transport::Server::builder()
        .add_service(SpiffeWorkloadApiServer::new(Served { identity, ended: end.clone() }))
        .serve_with_incoming_shutdown(connections, end.cancelled_owned())
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
    /// One answer now, also to who asks at the end, and one after each change of the identity.
    fn answers<T: Send + 'static>(
        &self,
        answer: impl Fn(&Identity) -> Result<T, Status> + Send + 'static,
    ) -> Response<Answers<T>> {
        let identity = Arc::clone(&self.identity);
        // It is of before the answer: a change between the two is answered once more.
        let changes = WatchStream::from_changes(self.identity.changes());
        let later = changes.take_until(self.ended.clone().cancelled_owned());
        Response::new(Box::pin(stream::once(async {}).chain(later.map(drop)).map(move |()| answer(&identity))))
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
