//! What the identity service knows of the mesh policy: who attests, and who may ask for transaction tokens.
//!
//! It follows the policy service as sidecars do, from its own disk when that is down. The policy service needs a
//! certificate of this one to start, so the connection is made when there is somebody to connect to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Identity, grpc};
use prost::Message as _;
use replica::{Decode, Decoded, Event, Follow, Replica, Value};
use tenon_proto::kind;
use tenon_proto::policy::v1 as proto;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::oidc::Attestor;

/// The replicas of the policy that this process reads.
#[derive(Clone)]
pub(crate) struct PolicyFollower {
    /// Kind "attestation", by the names of the Attestors.
    pub attestors: Replica<Decoded<Attestor>>,
    /// Kind "route", by service.
    routes: Replica<Decoded<Requester>>,
}

/// What a route says of a service as a requester of transaction tokens.
#[derive(Debug)]
struct Requester {
    transaction_tokens: bool,
}

impl PolicyFollower {
    /// Starts from `state_dir` and follows `policy` until `shutdown`. Each task ends when its last state is on disk.
    pub(crate) fn start(
        policy: &[SocketAddr],
        identity: &Arc<Identity>,
        state_dir: PathBuf,
        shutdown: &CancellationToken,
    ) -> (Self, [JoinHandle<()>; 2]) {
        let (attestors, following_attestors) =
            follow::<Decoded<Attestor>>(kind::ATTESTATION, policy, identity, state_dir.clone(), shutdown);
        let (routes, following_routes) =
            follow::<Decoded<Requester>>(kind::ROUTE, policy, identity, state_dir, shutdown);
        (Self { attestors, routes }, [following_attestors, following_routes])
    }

    /// Whether a service may ask for transaction tokens; None before the first routes have ever arrived.
    pub(crate) fn may_ask(&self, service: &ServiceName) -> Option<bool> {
        self.routes.position()?;
        Some(self.routes.get(service.as_str()).is_some_and(|route| route.transaction_tokens))
    }
}

fn follow<V: Value>(
    kind: &'static str,
    policy: &[SocketAddr],
    identity: &Arc<Identity>,
    state_dir: PathBuf,
    shutdown: &CancellationToken,
) -> (Replica<V>, JoinHandle<()>) {
    let expected = ServiceName::try_from(control_plane::POLICY).expect("a constant that is a service name");
    let follow = Follow {
        kind,
        instance: control_plane::IDENTITY.to_owned(),
        parents: policy.iter().map(|address| grpc::channel(address, identity, &expected)).collect(),
        state_dir: Some(state_dir),
    };
    follow.start(|_: Event<'_, V>| {}, shutdown.clone())
}

impl Decode for Requester {
    fn decode(key: &str, _: u64, raw: Bytes) -> Result<Self, String> {
        let route = proto::Route::decode(raw).map_err(|error| format!("route {key:?} does not decode: {error}"))?;
        Ok(Self { transaction_tokens: route.requests_transaction_tokens })
    }
}
