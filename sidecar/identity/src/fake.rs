//! An identity service for the tests of this crate: signs whatever it is asked for, counts what it was asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_config::names::control_plane;
use tenon_proto::identity::v1 as proto;
use tenon_proto::identity::v1::identity_server::{Identity as Service, IdentityServer};
use tenon_proto::identity::v1::{
    AttestRequest, CreateJoinTokenRequest, CreateJoinTokenResponse, GetTrustBundleRequest, IssueResponse,
    ListKeysRequest, ListKeysResponse, RenewRequest, TrustBundle,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::grpc::{Rpc, Server, Who};
use crate::testing::{Ca, Leaf};
use crate::tls::Clients;
use crate::{Identity, Peer, clock};

pub(crate) const JOIN_TOKEN: &str = "good";

pub(crate) const TABLE: &[Rpc] = &[
    Rpc { path: "/tenon.identity.v1.Identity/GetTrustBundle", who: Who::Anyone },
    Rpc { path: "/tenon.identity.v1.Identity/Attest", who: Who::Anyone },
    Rpc { path: "/tenon.identity.v1.Identity/Renew", who: Who::Services },
    Rpc { path: "/tenon.identity.v1.Identity/CreateJoinToken", who: Who::Only(&["media"]) },
    Rpc { path: "/tenon.identity.v1.Identity/ListKeys", who: Who::Operators },
];

/// What it was asked.
#[derive(Default)]
pub(crate) struct Counts {
    pub attested: AtomicU32,
    pub renewed: AtomicU32,
}

/// Signs with `ca`, shows `bundle` to whoever bootstraps.
pub(crate) struct Fake {
    pub ca: Arc<Ca>,
    pub bundle: crate::TrustBundle,
    /// How long ago its certificates became valid, in seconds.
    pub backdate: u64,
    /// Whom its certificates name, if not who asked.
    pub names: Option<&'static str>,
    /// Who signs them, if not `ca`.
    pub signer: Option<Arc<Ca>>,
    pub counts: Arc<Counts>,
}

/// It, running.
pub(crate) struct Running {
    pub address: std::net::SocketAddr,
    pub identity: Arc<Identity>,
    pub counts: Arc<Counts>,
    shutdown: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Fake {
    pub(crate) fn new(ca: &Arc<Ca>) -> Self {
        Self {
            ca: Arc::clone(ca),
            bundle: ca.bundle(),
            backdate: 60,
            names: None,
            signer: None,
            counts: Arc::default(),
        }
    }

    pub(crate) async fn start(self) -> Running {
        self.start_as(None, TABLE).await
    }

    /// Where another one was before.
    pub(crate) async fn start_at(self, address: std::net::SocketAddr) -> Running {
        self.start_on(TcpListener::bind(address).await.unwrap(), None, TABLE)
    }

    /// With another identity than the one that `ca` gives it, or another table.
    pub(crate) async fn start_as(self, identity: Option<Arc<Identity>>, table: &'static [Rpc]) -> Running {
        self.start_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), identity, table)
    }

    fn start_on(self, listener: TcpListener, identity: Option<Arc<Identity>>, table: &'static [Rpc]) -> Running {
        let identity = identity.unwrap_or_else(|| self.ca.identity(control_plane::IDENTITY));
        let (address, counts) = (listener.local_addr().unwrap(), Arc::clone(&self.counts));
        let shutdown = CancellationToken::new();
        let server = Server {
            listener,
            identity: Arc::clone(&identity),
            clients: Clients::Optional,
            authorization: table,
            routes: Routes::new(IdentityServer::new(self)),
        };
        let task = tokio::spawn(server.run(shutdown.clone()));
        Running { address, identity, counts, shutdown, task }
    }

    fn issue(&self, csr: &[u8], service: &str) -> Response<IssueResponse> {
        let now = clock::unix_seconds();
        let leaf = Leaf {
            not_before: now - self.backdate,
            ..Leaf::uri(&self.ca.id(self.names.unwrap_or(service)).to_string())
        };
        let chain =
            self.signer.as_ref().unwrap_or(&self.ca).sign(csr, &leaf).iter().map(|der| der.to_vec().into()).collect();
        let trust_bundle = Some(self.ca.bundle().to_proto());
        Response::new(IssueResponse { chain, trust_bundle, key_epoch: 7, key_revision: 11 })
    }
}

impl Running {
    /// Ends it and waits until it has ended.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tonic::async_trait]
impl Service for Fake {
    async fn get_trust_bundle(&self, _: Request<GetTrustBundleRequest>) -> Result<Response<TrustBundle>, Status> {
        Ok(Response::new(self.bundle.to_proto()))
    }

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<IssueResponse>, Status> {
        self.counts.attested.fetch_add(1, Ordering::Relaxed);
        let request = request.into_inner();
        if request.join_token != JOIN_TOKEN {
            return Err(Status::unauthenticated("no such join token"));
        }
        let kid = request.asap_key.unwrap().kid;
        let (service, _) = kid.split_once('/').unwrap();
        Ok(self.issue(&request.csr, service))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<IssueResponse>, Status> {
        self.counts.renewed.fetch_add(1, Ordering::Relaxed);
        let peer = request.extensions().get::<Peer>().unwrap().clone();
        Ok(self.issue(&request.get_ref().csr, peer.id.service_name().unwrap().as_str()))
    }

    async fn create_join_token(
        &self,
        _: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        Ok(Response::new(CreateJoinTokenResponse::default()))
    }

    async fn list_keys(&self, _: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        Ok(Response::new(ListKeysResponse::default()))
    }

    async fn confirm(&self, _: Request<proto::ConfirmRequest>) -> Result<Response<proto::ConfirmResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }

    async fn revoke(&self, _: Request<proto::RevokeRequest>) -> Result<Response<proto::RevokeResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }

    async fn lift_revocation(
        &self,
        _: Request<proto::LiftRevocationRequest>,
    ) -> Result<Response<proto::RevokeResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }

    async fn list_revocations(
        &self,
        _: Request<proto::ListRevocationsRequest>,
    ) -> Result<Response<proto::ListRevocationsResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }

    async fn rotate(&self, _: Request<proto::RotateRequest>) -> Result<Response<proto::RotateResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }

    async fn issue_svid(&self, _: Request<proto::IssueSvidRequest>) -> Result<Response<proto::IssueResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }

    async fn issue_transaction_token(
        &self,
        _: Request<proto::IssueTransactionTokenRequest>,
    ) -> Result<Response<proto::IssueTransactionTokenResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }
}
