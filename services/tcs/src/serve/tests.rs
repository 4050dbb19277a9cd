use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use journal::{Embedded, Everything, Journal, Write};
use mesh_identity::grpc::uncovered;
use mesh_identity::{testing, tls};
use prost::Message as _;
use replica::{Decode, Decoded};
use tenon_proto::policy::v1::Route;
use tenon_proto::tcs::v1::get_request::By;
use tenon_proto::tcs::v1::tenant_context::Status as TenantStatus;
use tenon_proto::tcs::v1::tenants_client::TenantsClient;
use tenon_proto::tcs::v1::{
    DeleteRequest, GetRequest, ImportRequest, ListRequest, Product, SuspendRequest, TenantContext, UnsuspendRequest,
};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::*;

mod backup;
mod guard;
mod lifecycle;
mod relay;
mod watching;

const DEADLINE: Duration = Duration::from_secs(20);

/// A TCS and the policy service that it follows, over mTLS.
struct Mesh {
    ca: testing::Ca,
    /// Of the TCS.
    address: SocketAddr,
    policy: SocketAddr,
    /// What the policy service publishes.
    routes: Arc<dyn Journal>,
    shutdown: CancellationToken,
    /// Ends the TCS that was started last, alone.
    serving: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl Mesh {
    async fn start() -> Self {
        let ca = testing::Ca::new("demo.example");
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let (policy, routes, serving) = policy_service(&ca, dir.path(), &shutdown).await;
        let tasks = vec![serving];
        let serving = shutdown.child_token();
        let mut mesh = Self { address: policy, policy, ca, routes, shutdown, serving, tasks, dir };
        mesh.route("media", "media").await;
        mesh.route("issues", "issues").await;
        mesh.route("audit", "").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        mesh.address = listener.local_addr().unwrap();
        let store = journal::Store::Embedded(mesh.dir.path().join("tcs/store.redb"));
        mesh.serve(listener, Role::Leader { store, past: PAST }, "tcs/state");
        mesh
    }

    /// Starts a relay of the TCS that was called so far; from now on the relay is.
    async fn relay(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let leader = std::mem::replace(&mut self.address, listener.local_addr().unwrap());
        self.serve(listener, Role::Relay { parents: vec![leader] }, "relay/state");
    }

    fn serve(&mut self, listener: TcpListener, role: Role, state: &str) {
        let config = Config {
            listener,
            role,
            state_dir: self.dir.path().join(state),
            identity: self.ca.identity(control_plane::TCS),
            instance: format!("tenon-tcs-{}", state.len()).into(),
            policy: vec![self.policy],
        };
        let shutdown = self.shutdown.child_token();
        self.serving = shutdown.clone();
        self.tasks.push(tokio::spawn(async move { serve(config, shutdown).await.unwrap() }));
    }

    /// Ends the TCS that was started last; returns a listener in its place.
    async fn stop_serving(&mut self) -> TcpListener {
        self.serving.cancel();
        self.tasks.pop().unwrap().await.unwrap();
        TcpListener::bind(self.address).await.unwrap()
    }

    async fn route(&self, service: &str, product: &str) {
        let product = product.to_owned();
        self.publish(Route { service: service.to_owned(), product, residency: 1, ..Route::default() }).await;
    }

    async fn publish(&self, route: Route) {
        let service = route.service.clone();
        self.routes.append(vec![Write::put(service, route.encode_to_vec())]).await.unwrap();
    }

    fn channel(&self, identity: &Arc<Identity>) -> Channel {
        grpc::channel(self.address, identity, &testing::service(control_plane::TCS))
    }

    fn operator(&self) -> TenantsClient<Channel> {
        TenantsClient::new(self.channel(&self.ca.operator_identity("ada")))
    }

    async fn import(&self, tenants: Vec<TenantContext>) -> Result<replica::Position, Status> {
        let requests = tokio_stream::iter(tenants.into_iter().map(|tenant| ImportRequest { tenants: vec![tenant] }));
        let answer = self.operator().import(requests).await?.into_inner();
        Ok(replica::Position::new(answer.epoch, answer.revision))
    }

    /// A replica of the tenants as `identity` sees them.
    fn follow(&self, identity: &Arc<Identity>) -> Replica<Decoded<Seen>> {
        let follow = Follow {
            kind: kind::TENANT,
            instance: "test".to_owned(),
            parents: vec![self.channel(identity)],
            state_dir: None,
        };
        follow.start(|_| {}, self.shutdown.clone()).0
    }

    async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

async fn policy_service(
    ca: &testing::Ca,
    dir: &Path,
    shutdown: &CancellationToken,
) -> (SocketAddr, Arc<dyn Journal>, JoinHandle<()>) {
    let journal = Embedded::open(&dir.join("policy.redb")).unwrap().kind(kind::ROUTE).unwrap();
    let publisher = Publisher::start(kind::ROUTE, Arc::clone(&journal), Arc::new(Everything), shutdown.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server {
        listener,
        identity: ca.identity(control_plane::POLICY),
        clients: Clients::Required,
        authorization: REPLICATION_AUTHORIZATION,
        routes: Routes::new(ReplicationService::new(vec![publisher]).into_server()),
        recorder: None,
    };
    let serving = server.run(shutdown.clone());
    (address, journal, tokio::spawn(async move { serving.await.unwrap() }))
}

/// A tenant as a follower sees it.
#[derive(Debug)]
struct Seen(TenantContext);

impl Decode for Seen {
    fn decode(_: &str, _: u64, raw: Bytes) -> Result<Self, String> {
        Ok(Self(TenantContext::decode(raw).map_err(|error| error.to_string())?))
    }
}

/// The tenant once it can be read there and is as wanted.
async fn seen(replica: &Replica<Decoded<Seen>>, id: &str, wanted: impl Fn(&TenantContext) -> bool) -> TenantContext {
    let mut positions = replica.subscribe();
    let wait = async {
        loop {
            positions.borrow_and_update();
            if let Some(found) = replica.get(id).filter(|found| wanted(&found.0)) {
                return found.0.clone();
            }
            positions.changed().await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the tenant never came to be as wanted")
}

fn acme() -> TenantContext {
    TenantContext {
        tenant_id: "acme".to_owned(),
        status: 1,
        hosts: vec!["acme.example".to_owned()],
        region: "us-east".to_owned(),
        products: ["issues", "media"].map(|name| (name.to_owned(), Product { state: 1, ..Product::default() })).into(),
        settings: [("theme".to_owned(), "dark".to_owned())].into(),
        ..TenantContext::default()
    }
}

fn products(tenant: &TenantContext) -> Vec<&str> {
    tenant.products.keys().map(String::as_str).collect()
}

fn by_id(id: &str) -> GetRequest {
    GetRequest { by: Some(By::TenantId(id.to_owned())), at_least: None }
}

#[test]
fn every_rpc_of_every_service_stands_in_the_table() {
    let tcs = ["tenon.tcs.v1.Tenants", "tenon.tcs.v1.Lifecycle", "tenon.tcs.v1.Operations"];
    let services = [&tcs[..], &["tenon.replication.v1.Replication", "tenon.audit.v1.Audit"]].concat();
    assert_eq!(uncovered(&services, &AUTHORIZATION), Vec::<String>::new());
}

/// One empty message to any RPC, whatever its shape; the status that ends it.
async fn call(channel: &Channel, path: &'static str) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone());
    if let Err(error) = client.ready().await {
        return Status::unknown(error.to_string());
    }
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = path.parse().unwrap();
    match client.server_streaming(tonic::Request::new(()), path, codec).await {
        Err(status) => status,
        Ok(answer) => answer.into_inner().message().await.err().unwrap_or_else(|| Status::ok("")),
    }
}

/// Without a certificate.
fn anonymous(address: SocketAddr) -> Channel {
    let config = testing::client_config(None, &[b"h2"]);
    Endpoint::from_static("https://tenon-tcs").connect_with_connector_lazy(tower::service_fn(move |_| {
        let config = Arc::clone(&config);
        async move { tls::connect(&config, TcpStream::connect(address).await.unwrap()).await.map(TokioIo::new) }
    }))
}

#[tokio::test]
async fn each_rpc_lets_through_whom_its_row_names_and_nobody_else() {
    let mut mesh = Mesh::start().await;
    nobody_else_comes_through(&mesh).await;
    mesh.relay().await;
    nobody_else_comes_through(&mesh).await;
    mesh.stop().await;
}

/// Of the TCS that is called at the moment.
async fn nobody_else_comes_through(mesh: &Mesh) {
    let callers = [
        ("anonymous", anonymous(mesh.address)),
        ("service", mesh.channel(&mesh.ca.identity("media"))),
        ("control plane", mesh.channel(&mesh.ca.identity(control_plane::POLICY))),
        ("operator", mesh.channel(&mesh.ca.operator_identity("ada"))),
    ];
    for rpc in AUTHORIZATION.iter() {
        let admitted: &[&str] = match rpc.path {
            "/tenon.replication.v1.Replication/Follow" | "/tenon.replication.v1.Replication/Fetch" => {
                &["service", "control plane", "operator"]
            }
            // The dashboard, which the policy service serves, looks tenants up.
            "/tenon.tcs.v1.Tenants/Get" => &["control plane", "operator"],
            _ => &["operator"],
        };
        for (name, channel) in &callers {
            let status = call(channel, rpc.path).await;
            let through = match *name {
                // The handshake fails; nothing of gRPC is ever said.
                "anonymous" => status.code() != Code::Unknown && status.code() != Code::Unavailable,
                _ => !matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::Unknown),
            };
            assert_eq!(through, admitted.contains(name), "{name} to {}: {status}", rpc.path);
        }
    }
}

#[tokio::test]
async fn operators_write_and_read_tenants() {
    let mesh = Mesh::start().await;
    let mut operator = mesh.operator();
    let globex =
        TenantContext { tenant_id: "globex".to_owned(), region: "eu-west".to_owned(), hosts: vec![], ..acme() };
    let imported = mesh.import(vec![acme(), globex]).await.unwrap();
    assert_eq!(imported.revision, 2);

    let found = operator.get(by_id("acme")).await.unwrap().into_inner();
    assert_eq!(found, TenantContext { revision: 1, ..acme() });
    let by_host = GetRequest { by: Some(By::Host("Acme.EXAMPLE".to_owned())), at_least: None };
    assert_eq!(operator.get(by_host).await.unwrap().into_inner(), found);

    let mut listed = operator.list(ListRequest { region: "eu-west".to_owned() }).await.unwrap().into_inner();
    assert_eq!(listed.message().await.unwrap().unwrap().tenant_id, "globex");
    assert!(listed.message().await.unwrap().is_none());

    let tenant_id = "acme".to_owned();
    let suspended = operator.suspend(SuspendRequest { tenant_id: tenant_id.clone() }).await.unwrap().into_inner();
    assert_eq!((suspended.epoch, suspended.revision), (imported.epoch, 3));
    assert_eq!(operator.get(by_id("acme")).await.unwrap().into_inner().status(), TenantStatus::Suspended);
    let back = operator.unsuspend(UnsuspendRequest { tenant_id: tenant_id.clone() }).await.unwrap().into_inner();
    assert_eq!(back.revision, 4);
    let deleted = operator.delete(DeleteRequest { tenant_id: tenant_id.clone() }).await.unwrap().into_inner();
    assert_eq!(deleted.revision, 5);

    for status in [
        operator.get(by_id("acme")).await.unwrap_err(),
        operator.get(GetRequest { by: Some(By::Host("acme.example".to_owned())), at_least: None }).await.unwrap_err(),
        operator.suspend(SuspendRequest { tenant_id: tenant_id.clone() }).await.unwrap_err(),
        operator.unsuspend(UnsuspendRequest { tenant_id: tenant_id.clone() }).await.unwrap_err(),
        operator.delete(DeleteRequest { tenant_id }).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound, "{status}");
    }
    let unnamed = operator.get(GetRequest { by: None, at_least: None }).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::InvalidArgument);
    mesh.stop().await;
}

#[tokio::test]
async fn a_refused_import_names_its_records_and_changes_nothing() {
    let mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let new = |id: &str, host: &str| TenantContext { tenant_id: id.to_owned(), hosts: vec![host.to_owned()], ..acme() };
    let taken = mesh.import(vec![new("a", "a.example"), new("b", "acme.example")]).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert_eq!(taken.message(), "record 2: tenant b: host acme.example is that of tenant acme");

    let wrong = mesh.import(vec![new("a", "a.example"), new("B", "b.example"), new("c", "C")]).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().starts_with("record 2: "), "{wrong}");
    assert!(wrong.message().contains("\nrecord 3: tenant c: "), "{wrong}");

    assert_eq!(mesh.operator().get(by_id("a")).await.unwrap_err().code(), Code::NotFound);
    mesh.stop().await;
}

#[tokio::test]
async fn each_follower_sees_the_part_of_its_own_product() {
    let mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    for (identity, expected) in [
        (mesh.ca.identity("media"), &["media"][..]),
        (mesh.ca.identity("issues"), &["issues"]),
        (mesh.ca.identity("audit"), &[]),
        (mesh.ca.identity("tenon-egress"), &["issues", "media"]),
        (mesh.ca.operator_identity("ada"), &["issues", "media"]),
    ] {
        let found = seen(&mesh.follow(&identity), "acme", |_| true).await;
        assert_eq!(products(&found), expected, "{}", identity.id());
        assert_eq!((found.revision, found.settings.len()), (1, 1));
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_suspension_reaches_followers() {
    let mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let media = mesh.follow(&mesh.ca.identity("media"));
    seen(&media, "acme", |_| true).await;
    mesh.operator().suspend(SuspendRequest { tenant_id: "acme".to_owned() }).await.unwrap();
    let found = seen(&media, "acme", |tenant| tenant.status() == TenantStatus::Suspended).await;
    assert_eq!(found.revision, 2);
    mesh.stop().await;
}

#[tokio::test]
async fn a_follower_whose_product_changes_sees_the_new_one_and_no_longer_the_old() {
    let mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let media = mesh.follow(&mesh.ca.identity("media"));
    seen(&media, "acme", |tenant| products(tenant) == ["media"]).await;
    mesh.route("media", "issues").await;
    seen(&media, "acme", |tenant| products(tenant) == ["issues"]).await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_service_that_the_policy_does_not_know_follows_once_it_does() {
    let mesh = Mesh::start().await;
    mesh.import(vec![acme()]).await.unwrap();
    let status = call(&mesh.channel(&mesh.ca.identity("wiki")), "/tenon.tcs.v1.Tenants/List").await;
    assert_eq!(status.code(), Code::PermissionDenied);
    let wiki = mesh.follow(&mesh.ca.identity("wiki"));
    let refused = async {
        while !wiki.status().last_error.is_some_and(|error| error.contains("wiki is not in the policy")) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, refused).await.expect("it was never refused");
    assert!(wiki.position().is_none());
    mesh.route("wiki", "media").await;
    seen(&wiki, "acme", |tenant| products(tenant) == ["media"]).await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_store_that_is_in_use_is_named() {
    let mesh = Mesh::start().await;
    mesh.import(vec![]).await.unwrap();
    let config = Config {
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        role: Role::Leader { store: journal::Store::Embedded(mesh.dir.path().join("tcs/store.redb")), past: PAST },
        state_dir: mesh.dir.path().join("other"),
        identity: mesh.ca.identity(control_plane::TCS),
        instance: "tenon-tcs-0123456789abcdef".into(),
        policy: vec![mesh.address],
    };
    let error = serve(config, CancellationToken::new()).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("store.redb is in use by another process"), "{source}");
    mesh.stop().await;
}
