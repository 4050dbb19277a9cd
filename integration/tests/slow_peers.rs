//! Callers that do not read and apps that do not read: they hurt nobody but themselves, and their calls end.

use std::{future::poll_fn, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{Reason, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use integration::mesh::{Mesh, Plan};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: slow}
spec: {product: slow}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: good}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: slow}
spec:
  service: slow
  rules: [{name: all, callers: ['*'], paths: [/slow.v1.Slow/*]}]
";

/// How soon an app must learn that a call is over.
const SOON: Duration = Duration::from_secs(3);

fn mesh() -> Mesh {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY);
    let plan = plan.app_elsewhere("slow", "us-east").caller("wiki", "us-east").caller("good", "us-east");
    let mesh = plan.start().expect("the mesh starts");
    let tenant = json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"slow": {"state": "ACTIVE"}}
    });
    mesh.import(&[tenant]).expect("imported");
    mesh
}

fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("a head")
}

/// An app that tells of each of its streams that is reset.
async fn app(address: SocketAddr) -> mpsc::UnboundedReceiver<Reason> {
    let listener = TcpListener::bind(address).await.expect("the port is ours");
    let (resets, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let resets = resets.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond, resets.clone()));
                }
            });
        }
    });
    receiver
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    resets: mpsc::UnboundedSender<Reason>,
) {
    let mut stream = respond.send_response(head(), false).expect("sent");
    match request.uri().path() {
        "/slow.v1.Slow/Unary" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).expect("sent");
        }
        "/slow.v1.Slow/NeverRead" => {
            let _unread = request.into_body();
            if let Ok(reason) = poll_fn(|cx| stream.poll_reset(cx)).await {
                let _the_test_is_over = resets.send(reason);
            }
        }
        "/slow.v1.Slow/Flood" => {
            if let Some(reason) = flood(&mut stream).await {
                let _the_test_is_over = resets.send(reason);
            }
        }
        path => panic!("nothing at {path}"),
    }
}

/// Sends as much as it is let, until it is told to stop.
async fn flood(stream: &mut SendStream<Bytes>) -> Option<Reason> {
    loop {
        stream.reserve_capacity(16 << 10);
        let room = poll_fn(|cx| {
            if let std::task::Poll::Ready(reset) = stream.poll_reset(cx) {
                return std::task::Poll::Ready(Err(reset.ok()));
            }
            stream.poll_capacity(cx).map(|room| room.and_then(Result::ok).ok_or(Some(Reason::CANCEL)))
        });
        match room.await {
            Ok(room) => stream.send_data(Bytes::from(vec![0; room]), false).ok()?,
            Err(reason) => return reason,
        }
    }
}

async fn connect(outbound: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(outbound).await.expect("the sidecar listens");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

struct Open {
    answer: Response<h2::RecvStream>,
    request: SendStream<Bytes>,
}

async fn call(sender: &SendRequest<Bytes>, path: &str, timeout: Option<&str>, body: Option<Bytes>) -> Open {
    let mut request = Request::post(format!("http://slow/slow.v1.Slow/{path}"))
        .header("content-type", "application/grpc")
        .header("x-tenant-id", "acme");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let mut sender = sender.clone().ready().await.expect("ready");
    let without_body = body.is_none();
    let (answer, mut stream) = sender.send_request(request.body(()).expect("a request"), without_body).expect("sent");
    if let Some(body) = body {
        // The stream may be over by now, and the answer says how.
        let _over = stream.send_data(body, false);
    }
    let answer =
        tokio::time::timeout(Duration::from_secs(10), answer).await.expect("answered in time").expect("an answer");
    Open { answer, request: stream }
}

/// Calls pass once the tenant has arrived everywhere.
async fn until_allowed(sender: &SendRequest<Bytes>) {
    for _ in 0..1_000 {
        let answer = call(sender, "Unary", None, None).await.answer;
        if !answer.headers().contains_key("grpc-status") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("calls never pass");
}

/// Named after what it guards: an upload that nobody reads was never reset, and sixteen of them stopped the path for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_app_never_reads_is_reset_whichever_way_its_call_ends() {
    let mesh = mesh();
    let mut resets = app(mesh.app("slow", "us-east")).await;
    let outbound = mesh.outbound("wiki", "us-east");
    let sender = connect(outbound).await;
    until_allowed(&sender).await;
    let megabytes = || Some(Bytes::from(vec![1; 4 << 20]));

    let mut cancelled = call(&sender, "NeverRead", None, megabytes()).await;
    cancelled.request.send_reset(Reason::CANCEL);
    timeout(SOON, resets.recv()).await.expect("the app is told that the caller has cancelled");

    let gone = connect(outbound).await;
    let open = call(&gone, "NeverRead", None, megabytes()).await;
    drop((open, gone));
    timeout(SOON, resets.recv()).await.expect("the app is told that the caller has gone");

    let late = call(&sender, "NeverRead", Some("1S"), megabytes()).await;
    timeout(SOON, resets.recv()).await.expect("the app is told that the deadline has passed");
    drop(late);

    let suspended = call(&sender, "NeverRead", None, megabytes()).await;
    mesh.tenon_ok(&["tenants", "suspend", "acme"]).expect("written");
    timeout(SOON, resets.recv()).await.expect("the app is told that the tenant is suspended");
    drop(suspended);
}

/// Named after what it guards: nine streams that nobody read stopped all calls of all callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_nobody_reads_stop_nobody_else_and_keep_their_deadline() {
    let mesh = mesh();
    let mut resets = app(mesh.app("slow", "us-east")).await;
    let wiki = connect(mesh.outbound("wiki", "us-east")).await;
    let good = connect(mesh.outbound("good", "us-east")).await;
    until_allowed(&wiki).await;
    until_allowed(&good).await;
    let slow = connect(mesh.outbound("wiki", "us-east")).await;
    let mut unread = Vec::new();
    for _ in 0..40 {
        unread.push(call(&slow, "Flood", Some("4S"), None).await);
    }
    for _ in 0..50 {
        for caller in [&wiki, &good] {
            let answer = timeout(Duration::from_secs(2), call(caller, "Unary", None, None))
                .await
                .expect("is not stopped")
                .answer;
            assert!(!answer.headers().contains_key("grpc-status"), "{:?}", answer.headers());
        }
    }
    for _ in &unread {
        timeout(Duration::from_secs(8), resets.recv()).await.expect("the deadline holds although nobody reads");
    }
}
