//! An app that does what a test has written down for it, and remembers what it was sent.

use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpListener;

/// What the app does with one request, after it has read all of it.
#[derive(Clone, Copy)]
pub enum Act {
    /// Answers with a message.
    Answer,
    /// Answers with this status alone, and one more header.
    Status(u32, Option<(&'static str, &'static str)>),
    /// The same, after a while.
    Late(Duration, u32),
    /// REFUSED_STREAM.
    Refuse,
    /// Begins an answer, and resets it.
    Break,
    /// Never answers.
    Hang,
}

/// One request as it came.
pub struct Seen {
    pub at: &'static str,
    pub method: String,
    pub headers: HeaderMap,
    pub body: usize,
}

/// What all apps of a test share.
#[derive(Default)]
pub struct Apps {
    /// By app and method; where nothing is left, it answers.
    scripts: Mutex<HashMap<(&'static str, &'static str), VecDeque<Act>>>,
    seen: Mutex<Vec<Seen>>,
    /// Streams that were reset while they hung.
    resets: Mutex<Vec<&'static str>>,
}

impl Apps {
    pub fn script(&self, at: &'static str, method: &'static str, acts: impl IntoIterator<Item = Act>) {
        self.scripts.lock().expect("no panic").insert((at, method), acts.into_iter().collect());
    }

    /// Where the requests of a method came in, and what `read` reads off each.
    pub fn seen<T>(&self, method: &str, read: impl Fn(&Seen) -> T) -> Vec<T> {
        self.seen.lock().expect("no panic").iter().filter(|seen| seen.method == method).map(read).collect()
    }

    pub fn places(&self, method: &str) -> Vec<&'static str> {
        self.seen(method, |seen| seen.at)
    }

    pub fn was_reset(&self, at: &str) -> bool {
        self.resets.lock().expect("no panic").contains(&at)
    }

    pub async fn serve(self: &Arc<Self>, at: &'static str, address: SocketAddr) {
        let listener = TcpListener::bind(address).await.expect("the port is ours");
        let apps = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let apps = Arc::clone(&apps);
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(Arc::clone(&apps).answer(at, request, respond));
                    }
                });
            }
        });
    }

    async fn answer(
        self: Arc<Self>,
        at: &'static str,
        request: Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (head, mut body) = request.into_parts();
        let method = head.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let act = {
            let mut scripts = self.scripts.lock().expect("no panic");
            let script = scripts.iter_mut().find(|((place, named), _)| *place == at && *named == method);
            script.and_then(|(_, acts)| acts.pop_front()).unwrap_or(Act::Answer)
        };
        let mut length = 0;
        while let Some(Ok(data)) = body.data().await {
            length += data.len();
            let _released = body.flow_control().release_capacity(data.len());
        }
        self.seen.lock().expect("no panic").push(Seen { at, method, headers: head.headers, body: length });
        match act {
            Act::Answer => {
                if let Ok(mut stream) = respond.send_response(head_of(None), false) {
                    let _sent = stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), false);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    trailers.insert("x-mesh-unsent", HeaderValue::from_static("1"));
                    let _sent = stream.send_trailers(trailers);
                }
            }
            Act::Status(code, more) => drop(respond.send_response(trailers_only(code, more), true)),
            Act::Late(after, code) => {
                tokio::time::sleep(after).await;
                drop(respond.send_response(trailers_only(code, None), true));
            }
            Act::Refuse => respond.send_reset(Reason::REFUSED_STREAM),
            Act::Break => {
                let mut stream = respond.send_response(head_of(None), false).expect("sent");
                stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), false).expect("sent");
                // What was written must go out before the reset takes it back.
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.send_reset(Reason::INTERNAL_ERROR);
            }
            Act::Hang => {
                let _reset = poll_fn(|cx| respond.poll_reset(cx)).await;
                self.resets.lock().expect("no panic").push(at);
            }
        }
    }
}

fn head_of(status: Option<u32>) -> Response<()> {
    let head = Response::builder().header("content-type", "application/grpc");
    let head = status.into_iter().fold(head, |head, status| head.header("grpc-status", status));
    head.body(()).expect("a head")
}

fn trailers_only(code: u32, more: Option<(&'static str, &'static str)>) -> Response<()> {
    let mut head = head_of(Some(code));
    if let Some((name, value)) = more {
        head.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    head
}
