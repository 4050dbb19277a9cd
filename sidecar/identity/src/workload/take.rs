//! Taking the identity of this process from a Workload API, and following its rotations.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_config::names::{ServiceName, TrustDomain};
use tenon_proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tenon_proto::spiffe::{X509svidRequest, X509svidResponse};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use zeroize::Zeroizing;

use super::{SECURITY_HEADER, Socket, der};
use crate::{Identity, SpiffeId, Svid, TrustBundle, clock, tls};

/// What connecting and the first answer may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Between two attempts to follow: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Where an identity comes from, and whose it must be.
#[derive(Clone, Debug)]
pub struct Source {
    /// The Workload API.
    pub socket: Socket,
    /// The SPIFFE id must be `spiffe://<trust_domain>/svc/<service>`; other SVIDs of the same answer are left alone.
    pub service: ServiceName,
    /// See `service`.
    pub trust_domain: TrustDomain,
}

/// Why there is no identity. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Nobody listens, or not in time.
    #[error(
        "the Workload API at {socket} does not answer: {problem}; check that its agent runs and that this process may use the socket"
    )]
    Unreachable {
        /// Where.
        socket: Socket,
        /// What the transport said.
        problem: String,
    },
    /// This process is not registered there.
    #[error("the Workload API at {socket} has no identity for this process: {problem}; register it there as {wanted}")]
    Denied {
        /// Where.
        socket: Socket,
        /// What it said.
        problem: String,
        /// Who this process is.
        wanted: SpiffeId,
    },
    /// It gave identities, but not ours.
    #[error(
        "the Workload API at {socket} has no SVID of {wanted}, but of {got}; register this process there as {wanted}"
    )]
    Other {
        /// Where.
        socket: Socket,
        /// Who this process is.
        wanted: SpiffeId,
        /// What it gave, with commas.
        got: String,
    },
    /// What it gave cannot be used.
    #[error("the Workload API at {socket} gave something of no use: {problem}")]
    Unusable {
        /// Where.
        socket: Socket,
        /// Why.
        problem: String,
    },
}

/// What one message says about this process.
struct Update {
    svid: Svid,
    bundle: TrustBundle,
}

/// The identity that the Workload API has for this process now; [`follow`] keeps it current.
///
/// # Errors
/// See [`TakeError`]. Nothing is kept on disk: the agent beside this process is the one that keeps it.
pub async fn take(source: &Source) -> Result<Arc<Identity>, TakeError> {
    // As in `join`: nothing was judged by the clock yet.
    clock::look_again();
    let mut stream = open(source).await?;
    let Update { svid, bundle } = next(source, &mut stream).await?;
    tracing::info!(
        id = %svid.id(), serial = svid.serial(), not_after = svid.not_after(), socket = %source.socket, "SVID taken"
    );
    Ok(Identity::new(svid, bundle))
}

/// Follows the Workload API until `shutdown`: each SVID and bundle it gives is in use from the next handshake on. What
/// cannot be used is logged, and what was there stays; so it does while nobody answers.
pub fn follow(source: Source, identity: Arc<Identity>, shutdown: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = keep(&source, &identity) => {}
        }
    })
}

async fn keep(source: &Source, identity: &Identity) {
    let (mut pause, longest) = PAUSE;
    loop {
        let error = match open(source).await {
            Ok(mut stream) => loop {
                match next_whenever(source, &mut stream).await {
                    Ok(update) => {
                        pause = PAUSE.0;
                        apply(update, identity);
                    }
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        tracing::warn!(%error, not_after = identity.svid().not_after(), "the identity in use stays");
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(longest);
    }
}

/// The bundle first: peers with new certificates must be known before the own one changes.
fn apply(Update { svid, bundle }: Update, identity: &Identity) {
    let renewed = svid.serial() != identity.svid().serial();
    // How far rotations are comes by replication; an API knows roots alone.
    let bundle = bundle.with_rotation(identity.bundle().rotation().clone());
    let taken = identity.set_bundle(bundle).and_then(|()| identity.set_svid(svid));
    match taken {
        Ok(()) if renewed => {
            let svid = identity.svid();
            tracing::info!(serial = svid.serial(), not_after = svid.not_after(), "SVID renewed");
        }
        Ok(()) => {}
        Err(error) => tracing::warn!(%error, "the identity in use stays"),
    }
}

async fn open(source: &Source) -> Result<Streaming<X509svidResponse>, TakeError> {
    let path = source.socket.path().to_owned();
    let unreachable = |problem: String| TakeError::Unreachable { socket: source.socket.clone(), problem };
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The authority is not looked at: the connector decides where to go.
    let endpoint = Endpoint::from_static("http://workload.invalid");
    let channel = tokio::time::timeout(DEADLINE, endpoint.connect_with_connector(connector))
        .await
        .map_err(|_| unreachable("no connection within 10 s".to_owned()))?
        .map_err(|error| unreachable(root_cause(&error)))?;
    let mut request = tonic::Request::new(X509svidRequest {});
    request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    let answer = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await;
    Ok(answer.map_err(|status| failed(source, &status))?.into_inner())
}

/// The first message, which a Workload API sends at once.
async fn next(source: &Source, stream: &mut Streaming<X509svidResponse>) -> Result<Update, TakeError> {
    match tokio::time::timeout(DEADLINE, next_whenever(source, stream)).await {
        Ok(update) => update,
        Err(_) => {
            Err(TakeError::Unreachable { socket: source.socket.clone(), problem: "no answer within 10 s".to_owned() })
        }
    }
}

async fn next_whenever(source: &Source, stream: &mut Streaming<X509svidResponse>) -> Result<Update, TakeError> {
    match stream.message().await {
        Ok(Some(response)) => read(source, response),
        Ok(None) => {
            Err(TakeError::Unreachable { socket: source.socket.clone(), problem: "the stream has ended".to_owned() })
        }
        Err(status) => Err(failed(source, &status)),
    }
}

fn failed(source: &Source, status: &Status) -> TakeError {
    let (socket, problem) = (source.socket.clone(), status.message().to_owned());
    if status.code() == Code::PermissionDenied {
        return TakeError::Denied { socket, problem, wanted: wanted(source) };
    }
    let problem = if problem.is_empty() { format!("{:?}", status.code()) } else { problem };
    TakeError::Unreachable { socket, problem }
}

fn wanted(source: &Source) -> SpiffeId {
    SpiffeId::service(source.trust_domain.clone(), source.service.clone())
}

/// Holds what came to everything that a peer of the mesh will hold it to.
fn read(source: &Source, response: X509svidResponse) -> Result<Update, TakeError> {
    let unusable = |problem: String| TakeError::Unusable { socket: source.socket.clone(), problem };
    let wanted = wanted(source);
    let name = wanted.to_string();
    let got = || {
        let got: Vec<&str> = response.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
        got.join(", ")
    };
    let Some(found) = response.svids.iter().find(|svid| svid.spiffe_id == name) else {
        return Err(TakeError::Other { socket: source.socket.clone(), wanted, got: got() });
    };
    let chain = der::split(&found.x509_svid).ok_or_else(|| unusable("a chain that is not X.509".to_owned()))?;
    let key = Zeroizing::new(found.x509_svid_key.to_vec());
    let svid = Svid::from_der(chain, key).map_err(|error| unusable(error.to_string()))?;
    if *svid.id() != wanted {
        return Err(unusable(format!("a certificate of {} under the name {name}", svid.id())));
    }
    let roots = der::split(&found.bundle).ok_or_else(|| unusable("a bundle that is not X.509".to_owned()))?;
    let bundle = TrustBundle::new(source.trust_domain.clone(), roots).map_err(|error| unusable(error.to_string()))?;
    tls::check_own(&svid, &bundle).map_err(|error| unusable(error.to_string()))?;
    if !svid.is_valid_at(clock::unix_seconds()) {
        return Err(unusable("a certificate that is not valid now; check the clocks".to_owned()));
    }
    Ok(Update { svid, bundle })
}

fn root_cause(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string).unwrap_or_default()
}
