//! The media service over real loopback gRPC, with metadata as a sidecar would hand it over.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::BTreeMap, fs, io::Cursor, net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use image::{ImageFormat, RgbImage};
use prost::Message as _;
use tempfile::TempDir;
use tenon_proto::{
    media::v1::{
        DeleteRequest, DownloadRequest, DownloadThumbnailRequest, GetRequest, ListRequest, ListThumbnailsRequest,
        MediaItem, UploadHeader, UploadRequest, media_client::MediaClient, thumbnails_client::ThumbnailsClient,
        upload_request::Part,
    },
    tcs::v1::{Move, Product, Shard, TenantContext},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

struct Running {
    address: SocketAddr,
    data: TempDir,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), media::ServeError>>,
}

impl Running {
    async fn start() -> Self {
        Self::on(TempDir::new().unwrap()).await
    }

    async fn on(data: TempDir) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let server = tokio::spawn(media::serve(listener, data.path().to_owned(), shutdown.clone()));
        Self { address, data, shutdown, server }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn media(&self) -> MediaClient<Channel> {
        MediaClient::new(self.channel().await)
    }

    /// Waits until everything that was under way has ended.
    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(9), self.server).await.unwrap().unwrap().unwrap();
        self.data
    }
}

/// A request of this tenant; all tenants of the tests share one shard.
fn of<T>(tenant: &str, message: T) -> Request<T> {
    let shard = Shard { cluster: "c1".into(), database: "pool".into(), schema: "public".into() };
    let product = Product { shard: Some(shard), ..Product::default() };
    let context = TenantContext {
        tenant_id: tenant.into(),
        products: BTreeMap::from([("media".to_owned(), product)]),
        ..TenantContext::default()
    };
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-tenant-id", tenant.parse().unwrap());
    let context = MetadataValue::from_bytes(&context.encode_to_vec());
    request.metadata_mut().insert_bin("x-tenant-context-bin", context);
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

fn header(name: &str) -> UploadRequest {
    let header = UploadHeader { name: name.into(), content_type: "image/png".into() };
    UploadRequest { part: Some(Part::Header(header)) }
}

fn data(bytes: &[u8]) -> UploadRequest {
    UploadRequest { part: Some(Part::Data(Bytes::copy_from_slice(bytes))) }
}

async fn upload(media: &mut MediaClient<Channel>, tenant: &str, bytes: &[u8]) -> Result<MediaItem, Status> {
    let parts: Vec<_> = std::iter::once(header("a.png")).chain(bytes.chunks(300_000).map(data)).collect();
    media.upload(of(tenant, stream::iter(parts))).await.map(tonic::Response::into_inner)
}

async fn download(media: &mut MediaClient<Channel>, tenant: &str, id: &str) -> Result<Vec<u8>, Status> {
    let mut chunks = media.download(of(tenant, DownloadRequest { id: id.into() })).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?.data;
        assert!(chunk.len() <= 64 << 10);
        bytes.extend(chunk);
    }
    Ok(bytes)
}

fn files_below(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let below = entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path.display().to_string()] });
    below.collect()
}

fn files_of(running: &Running) -> Vec<String> {
    files_below(&running.data.path().join("c1/pool.files"))
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.unwrap_err().code()
}

#[tokio::test]
async fn a_file_comes_back_as_it_went_in() {
    let running = Running::start().await;
    let mut media = running.media().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let item = upload(&mut media, "acme", &bytes).await.unwrap();
    assert_eq!((item.name.as_str(), item.content_type.as_str(), item.size), ("a.png", "image/png", 3_000_000));
    let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    assert_eq!(item.sha256, sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    assert_eq!(download(&mut media, "acme", &item.id).await.unwrap(), bytes);
    assert_eq!(media.get(of("acme", GetRequest { id: item.id.clone() })).await.unwrap().into_inner(), item);
    let empty = upload(&mut media, "acme", b"").await.unwrap();
    assert_eq!(download(&mut media, "acme", &empty.id).await.unwrap(), b"");

    // It is still there after a restart, for which no idle connection has to be closed, and gone after it was deleted.
    let running = Running::on(running.stop().await).await;
    let mut media = running.media().await;
    let listed = media.list(of("acme", ListRequest {})).await.unwrap().into_inner().items;
    assert_eq!(listed, [item.clone(), empty]);
    media.delete(of("acme", DeleteRequest { id: item.id.clone() })).await.unwrap();
    assert_eq!(code(download(&mut media, "acme", &item.id).await), Code::NotFound);
    assert_eq!(code(media.delete(of("acme", DeleteRequest { id: item.id })).await), Code::NotFound);
    assert_eq!(files_of(&running).len(), 1);
}

#[tokio::test]
async fn a_tenant_that_moves_is_read_and_takes_no_writes() {
    let running = Running::start().await;
    let mut media = running.media().await;
    let id = upload(&mut media, "acme", b"one").await.unwrap().id;
    let refused = media.upload(moving(of("acme", stream::iter([header("a.png")])))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().starts_with("tenant acme moves to eu-west"), "{refused}");
    let delete = DeleteRequest { id: id.clone() };
    assert_eq!(code(media.delete(moving(of("acme", delete))).await), Code::FailedPrecondition);
    assert_eq!(media.list(moving(of("acme", ListRequest {}))).await.unwrap().into_inner().items.len(), 1);
    media.get(moving(of("acme", GetRequest { id: id.clone() }))).await.unwrap();
    media.delete(of("acme", DeleteRequest { id })).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn tenants_that_share_a_shard_cannot_reach_each_others_files() {
    let running = Running::start().await;
    let mut media = running.media().await;
    let mut thumbnails = ThumbnailsClient::new(running.channel().await);
    let id = upload(&mut media, "acme", b"secret").await.unwrap().id;
    assert_eq!(media.list(of("evil", ListRequest {})).await.unwrap().into_inner().items, []);
    assert_eq!(code(media.get(of("evil", GetRequest { id: id.clone() })).await), Code::NotFound);
    assert_eq!(code(download(&mut media, "evil", &id).await), Code::NotFound);
    assert_eq!(code(media.delete(of("evil", DeleteRequest { id: id.clone() })).await), Code::NotFound);
    let request = ListThumbnailsRequest { media_id: id.clone() };
    assert_eq!(code(thumbnails.list(of("evil", request)).await), Code::NotFound);
    assert_eq!(download(&mut media, "acme", &id).await.unwrap(), b"secret");
}

#[tokio::test]
async fn every_rpc_refuses_a_request_without_tenant_context() {
    let running = Running::start().await;
    let (mut media, mut thumbnails) = (running.media().await, ThumbnailsClient::new(running.channel().await));
    let id = upload(&mut media, "acme", b"x").await.unwrap().id;
    let refused = [
        media.upload(stream::iter([header("a")])).await.unwrap_err(),
        media.get(GetRequest { id: id.clone() }).await.unwrap_err(),
        media.list(ListRequest {}).await.unwrap_err(),
        media.download(DownloadRequest { id: id.clone() }).await.map(drop).unwrap_err(),
        media.delete(DeleteRequest { id: id.clone() }).await.unwrap_err(),
        thumbnails.list(ListThumbnailsRequest { media_id: id.clone() }).await.unwrap_err(),
        thumbnails.download(DownloadThumbnailRequest { media_id: id, edge: 64 }).await.map(drop).unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("through its sidecar"), "{}", status.message());
    }
}

#[tokio::test]
async fn pictures_have_thumbnails_and_other_files_have_none() {
    let running = Running::start().await;
    let (mut media, mut thumbnails) = (running.media().await, ThumbnailsClient::new(running.channel().await));
    let mut png = Cursor::new(Vec::new());
    RgbImage::new(100, 300).write_to(&mut png, ImageFormat::Png).unwrap();
    let id = upload(&mut media, "acme", png.get_ref()).await.unwrap().id;
    let request = ListThumbnailsRequest { media_id: id.clone() };
    let made = thumbnails.list(of("acme", request)).await.unwrap().into_inner().thumbnails;
    assert_eq!(made.iter().map(|t| (t.edge, t.width, t.height)).collect::<Vec<_>>(), [(64, 21, 64), (256, 85, 256)]);
    let request = DownloadThumbnailRequest { media_id: id.clone(), edge: 64 };
    let mut chunks = thumbnails.download(of("acme", request)).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        bytes.extend(chunk.data);
    }
    assert_eq!(image::load_from_memory(&bytes).unwrap().height(), 64);
    let request = DownloadThumbnailRequest { media_id: id, edge: 1024 };
    assert_eq!(code(thumbnails.download(of("acme", request)).await.map(drop)), Code::NotFound);

    let text = upload(&mut media, "acme", b"text").await.unwrap().id;
    let none = thumbnails.list(of("acme", ListThumbnailsRequest { media_id: text })).await.unwrap().into_inner();
    assert_eq!(none.thumbnails, []);
}

#[tokio::test]
async fn a_malformed_upload_is_refused_and_leaves_nothing() {
    let running = Running::start().await;
    let mut media = running.media().await;
    let no_part = UploadRequest { part: None };
    let cases = [
        vec![],
        vec![data(b"x")],
        vec![no_part.clone()],
        vec![header("")],
        vec![header("a\nb")],
        vec![header(&"n".repeat(256))],
        vec![header("a"), data(b"x"), header("a")],
        vec![header("a"), data(b"x"), no_part],
    ];
    for parts in cases {
        let answer = media.upload(of("acme", stream::iter(parts.clone()))).await;
        assert_eq!(code(answer), Code::InvalidArgument, "{parts:?}");
    }
    assert_eq!(code(media.get(of("acme", GetRequest { id: String::new() })).await), Code::InvalidArgument);
    assert_eq!(code(media.get(of("acme", GetRequest { id: "../../etc".into() })).await), Code::NotFound);
    assert_eq!(files_of(&running), Vec::<String>::new());
    assert_eq!(media.list(of("acme", ListRequest {})).await.unwrap().into_inner().items, []);
}

#[tokio::test]
async fn an_upload_whose_caller_goes_away_leaves_nothing() {
    let running = Running::start().await;
    let (parts, messages) = mpsc::channel(1);
    // The caller has a runtime of its own, so that it can go away with its connection, as a process that is killed.
    let caller = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = format!("http://{}", running.address);
    caller.spawn(async move {
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        MediaClient::new(channel).upload(of("acme", ReceiverStream::new(messages))).await
    });
    parts.send(header("a")).await.unwrap();
    parts.send(data(&[7; 100_000])).await.unwrap();
    // Bytes are on the disk before the caller goes.
    while files_of(&running).is_empty() {
        tokio::task::yield_now().await;
    }
    caller.shutdown_background();
    let data = running.stop().await;
    drop(parts);
    assert_eq!(files_below(&data.path().join("c1/pool.files")), Vec::<String>::new());
}

#[tokio::test]
async fn health_and_both_reflections_are_served() {
    use tonic_reflection::pb::{
        v1::{self, server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest},
        v1alpha,
    };
    let running = Running::start().await;
    let channel = running.channel().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    for service in ["", "media.v1.Media", "media.v1.Thumbnails"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1, "{service:?}");
    }
    let list = MessageRequest::ListServices(String::new());
    let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let answers = ServerReflectionClient::new(channel.clone()).server_reflection_info(stream::iter([request])).await;
    let answer = format!("{:?}", answers.unwrap().into_inner().message().await.unwrap().unwrap());
    assert!(answer.contains("media.v1.Media") && !answer.contains("tenon."), "{answer}");
    let list = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol("media.v1.Thumbnails".into());
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let answer = format!("{:?}", answers.message().await.unwrap().unwrap());
    assert!(answer.contains("FileDescriptorResponse"), "{answer}");
}
