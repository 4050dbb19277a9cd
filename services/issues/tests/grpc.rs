//! The issues service over real loopback gRPC, with the real media service behind a stand-in for the sidecars: it hands
//! `media` the tenant context, as the mesh would, and can refuse calls, as the mesh would.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use issues::outbound::Outbound;
use media::{service::MediaService, shards::Shards};
use prost::Message as _;
use tempfile::TempDir;
use tenon_proto::{
    issues::v1::{
        AddCommentRequest, AttachHeader, AttachRequest, Attachment, CreateRequest, GetRequest, Issue,
        ListAttachmentsRequest, ListCommentsRequest, ListRequest, TransitionRequest, attach_request::Part,
        issues_client::IssuesClient,
    },
    media::v1::media_server::MediaServer,
    tcs::v1::{Move, Product, Shard, TenantContext},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code, Request, Status,
    metadata::{MetadataMap, MetadataValue},
    service::Routes,
    transport::{Channel, Server},
};

/// What the stand-in saw and what it is to answer.
#[derive(Clone, Default)]
struct Mesh {
    seen: Arc<Mutex<Vec<MetadataMap>>>,
    refusal: Arc<Mutex<Option<Status>>>,
}

impl Mesh {
    fn pass(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        self.seen.lock().unwrap().push(request.metadata().clone());
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let tenant = request.metadata().get("x-tenant-id").unwrap().to_str().unwrap().to_owned();
        hand_over(request.metadata_mut(), &tenant, "media");
        Ok(request)
    }
}

struct Running {
    address: SocketAddr,
    issues: IssuesClient<Channel>,
    mesh: Mesh,
    data: TempDir,
    uploads: TaskTracker,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), issues::ServeError>>,
}

impl Running {
    async fn start() -> Self {
        Self::with(false).await
    }

    async fn with(unix: bool) -> Self {
        let (data, mesh, uploads) = (TempDir::new().unwrap(), Mesh::default(), TaskTracker::new());
        let shards = Shards::open(&data.path().join("media")).unwrap();
        let pass = mesh.clone();
        let media = MediaService::new(shards, uploads.clone());
        let media = MediaServer::with_interceptor(media, move |request| pass.pass(request));
        let media = Server::builder().add_routes(Routes::new(media));
        let outbound = if unix {
            let path = data.path().join("outbound.sock");
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(media.serve_with_incoming(UnixListenerStream::new(listener)));
            format!("unix:{}", path.display())
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(media.serve_with_incoming(TcpListenerStream::new(listener)));
            address.to_string()
        };
        let (address, issues, shutdown, server) = serve(&data.path().join("issues"), outbound.parse().unwrap()).await;
        Self { address, issues, mesh, data, uploads, shutdown, server }
    }

    /// Files that media holds of this tenant.
    fn files(&self, tenant: &str) -> usize {
        files_below(&self.data.path().join("media/c1/pool.files/public").join(tenant))
    }

    async fn create(&mut self, tenant: &str, project: &str) -> Issue {
        let request = CreateRequest { project: project.into(), summary: "s".into(), description: "d".into() };
        self.issues.create(of(tenant, request)).await.unwrap().into_inner()
    }

    async fn attach(&mut self, tenant: &str, parts: Vec<AttachRequest>) -> Result<Attachment, Status> {
        self.issues.attach(of(tenant, stream::iter(parts))).await.map(tonic::Response::into_inner)
    }

    async fn attachments(&mut self, tenant: &str, key: &str) -> Vec<Attachment> {
        let request = ListAttachmentsRequest { key: key.into() };
        self.issues.list_attachments(of(tenant, request)).await.unwrap().into_inner().attachments
    }
}

async fn serve(
    data: &Path,
    outbound: Outbound,
) -> (SocketAddr, IssuesClient<Channel>, CancellationToken, JoinHandle<Result<(), issues::ServeError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let server = tokio::spawn(issues::serve(listener, data.to_owned(), outbound, shutdown.clone()));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    (address, IssuesClient::new(channel), shutdown, server)
}

fn files_below(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

fn hand_over(metadata: &mut MetadataMap, tenant: &str, product: &str) {
    let shard = Shard { cluster: "c1".into(), database: "pool".into(), schema: "public".into() };
    let products = BTreeMap::from([(product.to_owned(), Product { shard: Some(shard), ..Product::default() })]);
    let context = TenantContext { tenant_id: tenant.into(), products, ..TenantContext::default() };
    metadata.insert("x-tenant-id", tenant.parse().unwrap());
    metadata.insert_bin("x-tenant-context-bin", MetadataValue::from_bytes(&context.encode_to_vec()));
}

fn of<T>(tenant: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    hand_over(request.metadata_mut(), tenant, "issues");
    request
}

/// The same request while its tenant moves to another region.
fn moving<T>(mut request: Request<T>) -> Request<T> {
    let context = request.metadata().get_bin("x-tenant-context-bin").unwrap().to_bytes().unwrap();
    let to = Move { to_region: "eu-west".into(), ..Move::default() };
    let context = TenantContext { r#move: Some(to), ..TenantContext::decode(context).unwrap() };
    let context = MetadataValue::from_bytes(&context.encode_to_vec());
    request.metadata_mut().insert_bin("x-tenant-context-bin", context);
    request
}

fn header(key: &str, name: &str) -> AttachRequest {
    let header = AttachHeader { key: key.into(), name: name.into(), content_type: "text/plain".into() };
    AttachRequest { part: Some(Part::Header(header)) }
}

fn data(bytes: usize) -> AttachRequest {
    AttachRequest { part: Some(Part::Data(Bytes::from(vec![3; bytes]))) }
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.unwrap_err().code()
}

async fn keys(running: &mut Running, tenant: &str, project: &str) -> Vec<String> {
    let request = of(tenant, ListRequest { project: project.into() });
    let mut issues = running.issues.list(request).await.unwrap().into_inner();
    let mut keys = Vec::new();
    while let Some(issue) = issues.message().await.unwrap() {
        keys.push(issue.key);
    }
    keys
}

#[tokio::test]
async fn an_issue_is_created_read_moved_and_commented_on() {
    let mut running = Running::start().await;
    let issue = running.create("acme", "DEMO").await;
    assert_eq!((issue.key.as_str(), issue.project.as_str(), issue.state.as_str()), ("DEMO-1", "DEMO", "open"));
    let get = GetRequest { key: "DEMO-1".into() };
    assert_eq!(running.issues.get(of("acme", get)).await.unwrap().into_inner(), issue);
    let moved = TransitionRequest { key: "DEMO-1".into(), state: "in-progress".into() };
    assert_eq!(running.issues.transition(of("acme", moved)).await.unwrap().into_inner().state, "in-progress");
    for number in 1..=2 {
        let comment = AddCommentRequest { key: "DEMO-1".into(), text: format!("text {number}") };
        assert_eq!(running.issues.add_comment(of("acme", comment)).await.unwrap().into_inner().number, number);
    }
    let list = ListCommentsRequest { key: "DEMO-1".into() };
    let comments = running.issues.list_comments(of("acme", list)).await.unwrap().into_inner().comments;
    assert_eq!(comments.iter().map(|comment| comment.text.as_str()).collect::<Vec<_>>(), ["text 1", "text 2"]);
}

#[tokio::test]
async fn a_tenant_that_moves_is_read_and_takes_no_writes() {
    let mut running = Running::start().await;
    let key = running.create("acme", "WEB").await.key;
    let create = CreateRequest { project: "WEB".into(), summary: "s".into(), description: "d".into() };
    let refused = running.issues.create(moving(of("acme", create))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().starts_with("tenant acme moves to eu-west"), "{refused}");
    let transition = TransitionRequest { key: key.clone(), state: "done".into() };
    assert_eq!(code(running.issues.transition(moving(of("acme", transition))).await), Code::FailedPrecondition);
    let comment = AddCommentRequest { key: key.clone(), text: "t".into() };
    assert_eq!(code(running.issues.add_comment(moving(of("acme", comment))).await), Code::FailedPrecondition);
    let attach = stream::iter([header(&key, "a.txt")]);
    assert_eq!(code(running.issues.attach(moving(of("acme", attach))).await), Code::FailedPrecondition);
    let get = GetRequest { key: key.clone() };
    assert_eq!(running.issues.get(moving(of("acme", get))).await.unwrap().into_inner().key, key);
}

#[tokio::test]
async fn tenants_that_share_a_shard_count_for_themselves_and_see_only_their_own() {
    let mut running = Running::start().await;
    for tenant in ["acme", "evil", "acme"] {
        running.create(tenant, "DEMO").await;
    }
    assert_eq!(keys(&mut running, "acme", "").await, ["DEMO-1", "DEMO-2"]);
    assert_eq!(keys(&mut running, "evil", "DEMO").await, ["DEMO-1"]);
    assert_eq!(code(running.issues.get(of("evil", GetRequest { key: "DEMO-2".into() })).await), Code::NotFound);
    let attachment = running.attach("acme", vec![header("DEMO-1", "mine"), data(10)]).await.unwrap();
    assert_eq!(running.attachments("acme", "DEMO-1").await, [attachment]);
    assert_eq!(running.attachments("evil", "DEMO-1").await, []);
    assert_eq!((running.files("acme"), running.files("evil")), (1, 0));
}

#[tokio::test]
async fn issues_of_a_project_are_listed_in_the_order_of_numbers_over_many_pages() {
    let mut running = Running::start().await;
    running.create("acme", "A2").await;
    let mut numbers = Vec::new();
    for _ in 0..300 {
        numbers.push(running.create("acme", "A").await.key);
    }
    assert_eq!(keys(&mut running, "acme", "A").await, numbers);
    assert_eq!(keys(&mut running, "acme", "").await.len(), 301);
    assert_eq!(keys(&mut running, "acme", "B").await, Vec::<String>::new());
}

#[tokio::test]
async fn bad_input_is_invalid_and_what_is_not_there_is_not_found() {
    let mut running = Running::start().await;
    running.create("acme", "DEMO").await;
    for (project, summary) in [("", "s"), ("1", "s"), ("a-b", "s"), ("DEMO", ""), ("DEMO", &"s".repeat(501))] {
        let request = CreateRequest { project: project.into(), summary: summary.into(), description: String::new() };
        assert_eq!(code(running.issues.create(of("acme", request)).await), Code::InvalidArgument, "{project:?}");
    }
    for (key, state, expected) in [
        ("DEMO-1", "closed", Code::InvalidArgument),
        ("DEMO1", "done", Code::InvalidArgument),
        ("DEMO-2", "done", Code::NotFound),
        ("OTHER-1", "done", Code::NotFound),
    ] {
        let request = TransitionRequest { key: key.into(), state: state.into() };
        assert_eq!(code(running.issues.transition(of("acme", request)).await), expected, "{key} {state}");
    }
    let comment = AddCommentRequest { key: "DEMO-1".into(), text: String::new() };
    assert_eq!(code(running.issues.add_comment(of("acme", comment)).await), Code::InvalidArgument);
    let comments = ListCommentsRequest { key: "DEMO-9".into() };
    assert_eq!(code(running.issues.list_comments(of("acme", comments)).await), Code::NotFound);
    for (parts, expected) in [
        (vec![], Code::InvalidArgument),
        (vec![data(1)], Code::InvalidArgument),
        (vec![header("DEMO-9", "a"), data(1)], Code::NotFound),
        (vec![header("DEMO-1", ""), data(1)], Code::InvalidArgument),
        (vec![header("DEMO-1", "a"), data(1), header("DEMO-1", "a")], Code::InvalidArgument),
    ] {
        assert_eq!(code(running.attach("acme", parts).await), expected);
    }
    assert_eq!((running.attachments("acme", "DEMO-1").await, running.files("acme")), (vec![], 0));
}

#[tokio::test]
async fn every_rpc_refuses_a_request_without_tenant_context() {
    let Running { mut issues, data: _data, .. } = Running::start().await;
    let key = || "DEMO-1".to_owned();
    let refused = [
        issues.create(CreateRequest::default()).await.unwrap_err(),
        issues.get(GetRequest { key: key() }).await.unwrap_err(),
        issues.list(ListRequest::default()).await.map(drop).unwrap_err(),
        issues.transition(TransitionRequest { key: key(), state: "done".into() }).await.unwrap_err(),
        issues.add_comment(AddCommentRequest { key: key(), text: "t".into() }).await.unwrap_err(),
        issues.list_comments(ListCommentsRequest { key: key() }).await.unwrap_err(),
        issues.attach(stream::iter([header("DEMO-1", "a")])).await.unwrap_err(),
        issues.list_attachments(ListAttachmentsRequest { key: key() }).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("through its sidecar"), "{}", status.message());
    }
}

#[tokio::test]
async fn an_attachment_is_stored_by_media_and_carries_the_request_on() {
    for unix in [false, true] {
        let mut running = Running::with(unix).await;
        let key = running.create("acme", "DEMO").await.key;
        let parts: Vec<_> = std::iter::once(header(&key, "big.bin")).chain((0..20).map(|_| data(1 << 20))).collect();
        let mut request = of("acme", stream::iter(parts));
        for (name, value) in [("traceparent", "00-1-2-01"), ("tracestate", "a=b"), ("txn-token", "t"), ("cookie", "c")]
        {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        request.set_timeout(Duration::from_secs(60));
        let attachment = running.issues.attach(request).await.unwrap().into_inner();
        assert_eq!((attachment.name.as_str(), attachment.size), ("big.bin", 20 << 20));
        assert_eq!(running.files("acme"), 1);
        let seen = running.mesh.seen.lock().unwrap().pop().unwrap();
        assert_eq!(seen.get("x-tenant-id").unwrap(), "acme");
        assert_eq!(seen.get("traceparent").unwrap(), "00-1-2-01");
        assert_eq!(seen.get("tracestate").unwrap(), "a=b");
        assert_eq!(seen.get("txn-token").unwrap(), "t");
        assert!(seen.get("grpc-timeout").is_some() && seen.get("cookie").is_none());
        assert!(seen.get("x-tenant-context-bin").is_none());
    }
}

#[tokio::test]
async fn a_refusal_of_the_mesh_is_passed_on_as_it_came() {
    let mut running = Running::start().await;
    let key = running.create("acme", "DEMO").await.key;
    let message = "PATH_NOT_ALLOWED: issues may not call /media.v1.Media/Upload";
    let refusal = Status::with_details(Code::PermissionDenied, message, Bytes::from_static(b"\x01details\xff"));
    *running.mesh.refusal.lock().unwrap() = Some(refusal);
    let status = running.attach("acme", vec![header(&key, "a"), data(1)]).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, message));
    assert_eq!(status.details(), b"\x01details\xff");
    assert_eq!(running.attachments("acme", &key).await, []);
}

#[tokio::test]
async fn a_sidecar_that_is_not_there_is_named() {
    let data = TempDir::new().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (_, mut issues, _shutdown, _server) = serve(data.path(), nobody.to_string().parse().unwrap()).await;
    let request = CreateRequest { project: "DEMO".into(), summary: "s".into(), description: String::new() };
    issues.create(of("acme", request)).await.unwrap();
    let status = issues.attach(of("acme", stream::iter([header("DEMO-1", "a")]))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&format!("the sidecar at {nobody}")), "{}", status.message());
}

#[tokio::test]
async fn an_attachment_whose_caller_goes_away_is_not_taken_for_a_complete_one() {
    let mut running = Running::start().await;
    let key = running.create("acme", "DEMO").await.key;
    let (parts, messages) = mpsc::channel(1);
    // The caller has a runtime of its own, so that it can go away with its connection, as a process that is killed.
    let caller = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = format!("http://{}", running.address);
    caller.spawn(async move {
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        IssuesClient::new(channel).attach(of("acme", ReceiverStream::new(messages))).await
    });
    parts.send(header(&key, "a")).await.unwrap();
    parts.send(data(100_000)).await.unwrap();
    while running.files("acme") == 0 {
        tokio::task::yield_now().await;
    }
    caller.shutdown_background();
    running.uploads.close();
    tokio::time::timeout(Duration::from_secs(30), running.uploads.wait()).await.unwrap();
    drop(parts);
    assert_eq!(running.files("acme"), 0);
    assert_eq!(running.attachments("acme", &key).await, []);
    running.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(9), running.server).await.unwrap().unwrap().unwrap();
}
