//! The SPIFFE Workload API on both sides of a sidecar: one that takes its identity from a socket as SPIRE's agent has it,
//! and hands it on to its app, whose client is the crate `spiffe`.

use std::{
    fs,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use hyper_util::rt::TokioIo;
use integration::{
    by_hand::{self, Instance},
    calls::{outcome, with_headers},
    guide::{Place, Running},
    mesh::{Mesh, Plan, SOON, eventually},
};
use mesh_identity::{Svid, testing};
use serde_json::json;
use spiffe::WorkloadApiClient;
use tenon_proto::{
    media::v1::{ListRequest, media_client::MediaClient},
    spiffe as proto,
    spiffe::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnixListenerStream, wrappers::WatchStream};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

/// What SPIRE's agent does for one workload, by the published protocol, and nothing of ours.
struct Agent {
    svids: watch::Sender<proto::X509svidResponse>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Api(watch::Receiver<proto::X509svidResponse>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Api {
    type FetchX509SVIDStream = Answers<proto::X509svidResponse>;
    type FetchX509BundlesStream = Answers<proto::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<proto::JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<proto::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        if request.metadata().get("workload.spiffe.io").is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        Ok(Response::new(Box::pin(WatchStream::new(self.0.clone()).map(Ok))))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<proto::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("not part of this test"))
    }

    async fn fetch_jwtsvid(
        &self,
        _: Request<proto::JwtsvidRequest>,
    ) -> Result<Response<proto::JwtsvidResponse>, Status> {
        Err(Status::unimplemented("not part of this test"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<proto::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented("not part of this test"))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<proto::ValidateJwtsvidRequest>,
    ) -> Result<Response<proto::ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("not part of this test"))
    }
}

impl Agent {
    fn start(path: &Path, svid: &Svid, root: &[u8]) -> Self {
        let svids = watch::Sender::new(answer(svid, root));
        let listener = UnixListenerStream::new(UnixListener::bind(path).expect("the agent's socket"));
        let service = SpiffeWorkloadApiServer::new(Api(svids.subscribe()));
        let task = tokio::spawn(async move {
            let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(listener).await;
            served.expect("the agent serves");
        });
        Self { svids, task }
    }

    /// Its open streams end as well.
    fn stop(self) {
        drop(self.svids);
        self.task.abort();
    }
}

fn answer(svid: &Svid, root: &[u8]) -> proto::X509svidResponse {
    let key = pem::parse(svid.key_pem().as_str()).expect("a key");
    let other = proto::X509svid { spiffe_id: "spiffe://test.example/another".into(), ..Default::default() };
    let own = proto::X509svid {
        spiffe_id: svid.id().to_string(),
        x509_svid: svid.chain().iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>().concat().into(),
        x509_svid_key: key.into_contents().into(),
        bundle: root.to_vec().into(),
        hint: String::new(),
    };
    proto::X509svidResponse { svids: vec![other, own], ..Default::default() }
}

/// A sidecar of wiki beside the one that `tenon up` runs: no join token, no pin, all from the Workload API. By the command of
/// the document.
fn start_sidecar(mesh: &Mesh, api: &Path) -> (PathBuf, PathBuf, Running) {
    let (outbound, serving) = (mesh.scratch().join("wiki-out.sock"), mesh.scratch().join("wiki-api.sock"));
    let place = Place::of(mesh, &[]).expect("a place").with("--service media", "--service wiki");
    let place = place.with("/run/spire/agent.sock", &api.to_string_lossy());
    let variables = [
        ("TENON_SERVE_WORKLOAD_API", serving.to_string_lossy().into_owned()),
        ("TENON_REGION", "us-east".to_owned()),
        ("TENON_OUTBOUND", format!("unix:{}", outbound.display())),
        ("TENON_INBOUND", "127.0.0.1:0".to_owned()),
        ("TENON_ADMIN", "127.0.0.1:0".to_owned()),
    ];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let command = place.shell("docs/workload-api.md", "--workload-api unix:").expect("the command of the document");
    let running = command.start(place.folder(), &variables).expect("a sidecar by hand");
    (outbound, serving, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_finds_the_workload_api_where_the_document_says() {
    let mesh = Plan::new()
        .expect("a plan")
        .file("policy.yaml", by_hand::POLICY)
        .caller("wiki", "us-east")
        .start()
        .expect("the mesh starts");
    let instance = Instance::plan(&mesh, "media", "guide").expect("a plan");
    let (socket, config) = (mesh.scratch().join("spiffe.sock"), instance.config().expect("a file"));
    let place = Place::of(&mesh, &[(9002, instance.app())]).expect("a place");
    let place = place.with("/etc/tenon/media.yaml", &config.to_string_lossy());
    let place = place.with("/run/media/spiffe.sock", &socket.to_string_lossy());
    let commands = place.shell("docs/workload-api.md", "--serve-workload-api").expect("the commands of the document");
    let running = commands.start(place.folder(), &[]).expect("they start");
    let end = tokio::time::Instant::now() + SOON;
    let svid = loop {
        if let Ok(api) = WorkloadApiClient::connect_to(format!("unix://{}", socket.display())).await
            && let Ok(svid) = api.fetch_x509_svid().await
        {
            break svid;
        }
        assert!(tokio::time::Instant::now() < end, "{}", running.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://test.example/svc/media");
    instance.registered().await.expect("its app listens");
}

fn over(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://media").connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

async fn list(channel: &Channel) -> String {
    let request = with_headers(&[("x-tenant-id", "acme")], ListRequest::default());
    outcome(&MediaClient::new(channel.clone()).list(request).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_lives_on_a_workload_api_and_serves_one_to_its_app() {
    let mut mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let tenant = json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east",
        "products": {"media": {"state": "ACTIVE", "shard": {"cluster": "c1", "database": "media-1", "schema": "main"}}}
    });
    mesh.import(&[tenant]).expect("imported");
    let read = |name: &str| fs::read_to_string(mesh.data_dir().join("ca").join(name)).expect("the CA's files");
    let root = pem::parse(read("root.pem")).expect("the root").into_contents();
    let ca = testing::Ca::from_parts("test.example", root.clone().into(), &read("root.key"));

    let api = mesh.scratch().join("spire.sock");
    let first = ca.svid("wiki");
    let agent = Agent::start(&api, &first, &root);
    let (outbound, serving, _running) = start_sidecar(&mesh, &api);
    let channel = over(&outbound);
    let passes = async |what: &str| {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let got = list(&channel).await;
            if got == "ALLOWED" {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {got}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    passes("a first call").await;

    let app = WorkloadApiClient::connect_to(format!("unix://{}", serving.display())).await.expect("the app's API");
    let svid = app.fetch_x509_svid().await.expect("an SVID");
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://test.example/svc/wiki");
    assert_eq!(svid.cert_chain()[0].as_bytes(), first.chain()[0].as_ref());

    let second = ca.svid("wiki");
    let mut updates = app.stream_x509_svids().await.expect("a stream");
    agent.svids.send_replace(answer(&second, &root));
    let renewed = async {
        while let Some(svid) = updates.next().await {
            if svid.expect("an SVID").cert_chain()[0].as_bytes() == second.chain()[0].as_ref() {
                return;
            }
        }
        panic!("the stream has ended");
    };
    tokio::time::timeout(SOON, renewed).await.expect("the app gets the renewed SVID");
    assert_eq!(list(&channel).await, "ALLOWED");

    agent.stop();
    fs::remove_file(&api).expect("the agent's socket");
    assert_eq!(list(&channel).await, "ALLOWED", "what is held serves on while the agent is gone");
    let third = ca.svid("wiki");
    let agent = Agent::start(&api, &third, &root);
    let app = Arc::new(app);
    eventually(SOON, "the SVID of the agent that came back", || {
        let app = Arc::clone(&app);
        let got = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async move { app.fetch_x509_svid().await })
        })?;
        Ok(got.cert_chain()[0].as_bytes() == third.chain()[0].as_ref())
    })
    .expect("followed again");
    assert_eq!(list(&channel).await, "ALLOWED");
    agent.stop();
    mesh.down().expect("the mesh ends");
}
