//! An identity service for the tests of this crate: signs whatever it is asked for, counts what it was asked, and can be
//! told to behave otherwise while it runs.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

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
use crate::{Identity, OperatorRole, Peer, clock};

pub(crate) const JOIN_TOKEN: &str = "good";
/// Attests the service "media" alone.
pub(crate) const OIDC_TOKEN: &str = "platform";
/// Good for one public key.
pub(crate) const SINGLE_USE: &str = "once";

pub(crate) const TABLE: &[Rpc] = &[
    Rpc { path: "/tenon.identity.v1.Identity/GetTrustBundle", who: Who::Anyone },
    Rpc { path: "/tenon.identity.v1.Identity/Attest", who: Who::Anyone },
    Rpc { path: "/tenon.identity.v1.Identity/Renew", who: Who::Services },
    Rpc { path: "/tenon.identity.v1.Identity/Confirm", who: Who::Services },
    Rpc { path: "/tenon.identity.v1.Identity/CreateJoinToken", who: Who::Only(&["media"]) },
    Rpc { path: "/tenon.identity.v1.Identity/ListKeys", who: Who::Operators(OperatorRole::Viewer) },
];

/// What it was asked.
#[derive(Default)]
pub(crate) struct Counts {
    pub attested: AtomicU32,
    pub renewed: AtomicU32,
    pub confirmed: AtomicU32,
    /// The public key that [`SINGLE_USE`] attested.
    used_by: Mutex<Option<Vec<u8>>>,
}

/// How it behaves from now on.
pub(crate) struct Behaviour {
    /// Who signs, and whose roots are announced, if not the first CA.
    pub ca: Option<Arc<Ca>>,
    /// What stands beside the roots.
    pub rotation: crate::Rotation,
    /// How many instances have not acknowledged a key that is confirmed.
    pub behind: u32,
    /// The life of its certificates, in seconds from now.
    pub life: u64,
    /// Confirmations so far: instance, kid, issuing authority.
    pub confirmations: Vec<(String, String, Vec<u8>)>,
    /// Instances that were named by Attest and Renew.
    pub instances: Vec<String>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            ca: None,
            rotation: crate::Rotation::default(),
            behind: 0,
            life: 3600,
            confirmations: Vec::new(),
            instances: Vec::new(),
        }
    }
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
    /// Attests, and dies before it answers, this often.
    pub dies: AtomicU64,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub counts: Arc<Counts>,
}

/// It, running.
pub(crate) struct Running {
    pub address: std::net::SocketAddr,
    pub identity: Arc<Identity>,
    pub counts: Arc<Counts>,
    behaviour: Arc<Mutex<Behaviour>>,
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
            dies: AtomicU64::new(0),
            behaviour: Arc::default(),
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
        let behaviour = Arc::clone(&self.behaviour);
        let shutdown = CancellationToken::new();
        let server = Server {
            listener,
            identity: Arc::clone(&identity),
            clients: Clients::Optional,
            authorization: table,
            routes: Routes::new(IdentityServer::new(self)),
            recorder: None,
        };
        let task = tokio::spawn(server.run(shutdown.clone()));
        Running { address, identity, counts, behaviour, shutdown, task }
    }

    fn issue(&self, csr: &[u8], service: &str) -> Response<IssueResponse> {
        let behaviour = self.behaviour.lock().unwrap();
        let ca = behaviour.ca.as_ref().unwrap_or(&self.ca);
        let now = clock::unix_seconds();
        let leaf = Leaf {
            not_before: now - self.backdate,
            not_after: now + behaviour.life,
            ..Leaf::uri(&ca.id(self.names.unwrap_or(service)).to_string())
        };
        let chain = self.signer.as_ref().unwrap_or(ca).sign(csr, &leaf);
        let chain = chain.iter().map(|der| der.to_vec().into()).collect();
        let trust_bundle = Some(ca.bundle().with_rotation(behaviour.rotation.clone()).to_proto());
        Response::new(IssueResponse { chain, trust_bundle, key_epoch: 7, key_revision: 11 })
    }
}

impl Running {
    /// Changes how it behaves.
    pub(crate) fn behave(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }

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
        let kid = request.asap_key.unwrap_or_default().kid;
        let service = kid.split_once('/').map_or("", |(service, _)| service);
        let attested = match (request.join_token.as_str(), request.oidc_token.as_str()) {
            (JOIN_TOKEN, "") => true,
            (SINGLE_USE, "") => {
                let key =
                    rcgen::CertificateSigningRequestParams::from_der(&request.csr.to_vec().into()).unwrap().public_key;
                let key = rcgen::PublicKeyData::der_bytes(&key).to_vec();
                *self.counts.used_by.lock().unwrap().get_or_insert_with(|| key.clone()) == key
            }
            ("", OIDC_TOKEN) => service == "media",
            _ => false,
        };
        if !attested {
            return Err(Status::unauthenticated("no such join token"));
        }
        self.behaviour.lock().unwrap().instances.push(request.instance);
        let issued = self.issue(&request.csr, service);
        if self.dies.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(Status::unavailable("killed between attesting and answering"));
        }
        Ok(issued)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<IssueResponse>, Status> {
        self.counts.renewed.fetch_add(1, Ordering::Relaxed);
        let peer = request.extensions().get::<Peer>().unwrap().clone();
        self.behaviour.lock().unwrap().instances.push(request.get_ref().instance.clone());
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

    async fn confirm(
        &self,
        request: Request<proto::ConfirmRequest>,
    ) -> Result<Response<proto::ConfirmResponse>, Status> {
        self.counts.confirmed.fetch_add(1, Ordering::Relaxed);
        let request = request.into_inner();
        let mut behaviour = self.behaviour.lock().unwrap();
        let kid = request.asap_key.unwrap().kid;
        behaviour.confirmations.push((request.instance, kid, request.issuing_authority.to_vec()));
        let behind = behaviour.behind;
        Ok(Response::new(proto::ConfirmResponse { key_epoch: 7, key_revision: 12, behind }))
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

    async fn issue_operator(
        &self,
        _: Request<proto::IssueOperatorRequest>,
    ) -> Result<Response<proto::IssueResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }

    async fn issue_transaction_token(
        &self,
        _: Request<proto::IssueTransactionTokenRequest>,
    ) -> Result<Response<proto::IssueTransactionTokenResponse>, Status> {
        Err(Status::unimplemented("not served"))
    }
}
