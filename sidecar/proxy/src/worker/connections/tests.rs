//! One connection from its first byte to its last, under a clock that jumps.

use h2::client::SendRequest;
use tokio::{
    io::{AsyncWriteExt as _, DuplexStream, duplex},
    sync::Notify,
    task::JoinHandle,
};

use super::*;
use crate::metrics::Closed;

/// A server whose calls are answered once `answer` is told, and its other end.
fn served(from: From, answer: &Arc<Notify>) -> (DuplexStream, JoinHandle<bool>) {
    let (near, far) = duplex(1 << 20);
    let (guarding, answer) = (Guarding::new(Arc::new(Closed::default())), Arc::clone(answer));
    let server = tokio::spawn(async move {
        let peer = Peer { from, name: "app", address: None };
        let serve = move |_: Request<Incoming>| {
            let answer = Arc::clone(&answer);
            async move {
                answer.notified().await;
                Response::new(CallBody::empty())
            }
        };
        serve_http2(near, &peer, &guarding, CancellationToken::new(), || false, serve).await.is_ok()
    });
    (far, server)
}

async fn client(io: DuplexStream) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let (sender, connection) = h2::client::handshake(io).await.expect("HTTP/2");
    (sender, tokio::spawn(connection))
}

fn request(fields: usize) -> Request<()> {
    let mut request = Request::post("http://media/media.v1.Media/Get");
    for field in 0..fields {
        request = request.header(format!("x-{field}"), "1");
    }
    request.body(()).expect("a request")
}

#[tokio::test(start_paused = true)]
async fn who_never_says_anything_and_who_stops_in_the_middle_is_closed() {
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x05\x01\0\0\0\0\x01\x83"] {
        let (mut far, server) = served(From::Outside, &Arc::default());
        far.write_all(said).await.expect("written");
        let began = Instant::now();
        timeout(Duration::from_secs(15), server).await.expect("closed").expect("no panic");
        assert!(began.elapsed() >= Duration::from_secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_nothing_is_asked_to_go_and_its_open_call_goes_on() {
    let answer = Arc::new(Notify::new());
    let (far, server) = served(From::App, &answer);
    let (mut sender, connection) = client(far).await;
    let (open, _) = sender.send_request(request(3), true).expect("sent");
    tokio::time::sleep(Duration::from_secs(15 * 60 - 10)).await;
    sender = sender.ready().await.expect("takes calls");
    tokio::time::sleep(Duration::from_secs(15)).await;
    let refused = sender.ready().await.expect_err("takes no calls");
    assert!(refused.is_go_away());
    assert!(!server.is_finished());
    answer.notify_one();
    assert_eq!(open.await.expect("answered").status(), StatusCode::OK);
    assert!(server.await.expect("no panic"));
    connection.await.expect("no panic").expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn a_connection_from_outside_is_asked_to_go_at_its_age_and_one_of_the_app_is_not() {
    for (from, goes) in [(From::Sidecar, true), (From::Outside, true), (From::App, false)] {
        let answer = Arc::new(Notify::new());
        let (far, server) = served(from, &answer);
        let (mut sender, _connection) = client(far).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(70 * 60) && !server.is_finished() {
            let Ok(ready) = sender.clone().ready().await else { break };
            sender = ready;
            answer.notify_one();
            let (answered, _) = sender.send_request(request(3), true).expect("sent");
            // None is lost on the way.
            assert_eq!(answered.await.expect("answered").status(), StatusCode::OK);
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let minutes = began.elapsed().as_secs() / 60;
        assert_eq!((54..=66).contains(&minutes), goes, "{from:?} after {minutes} min");
    }
}

#[tokio::test]
async fn a_head_of_too_many_fields_is_refused_and_the_connection_goes_on() {
    let answer = Arc::new(Notify::new());
    let (far, _server) = served(From::App, &answer);
    let (mut sender, _connection) = client(far).await;
    for (fields, status) in [(201, 431), (200, 200), (3_000, 431), (0, 200)] {
        answer.notify_one();
        sender = sender.ready().await.expect("takes calls");
        let (answered, _) = sender.send_request(request(fields), true).expect("sent");
        assert_eq!(answered.await.expect("answered").status().as_u16(), status, "{fields} fields");
    }
}
