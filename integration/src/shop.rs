//! An app of a test's own, which answers every call, holds answers back or says how it does as it is told, and counts; and who
//! calls it. On `h2` alone: a debug build makes more calls so than with tonic.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use h2::{client::SendRequest, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What a call carries, and what is answered: an empty message.
const MESSAGE: &[u8] = &[0; 5];
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// What an app says to `grpc.health.v1.Health/Check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has no health service.
    Unserved,
    Serving,
    NotServing,
    /// It never answers.
    Silent,
}

/// The app.
pub struct Shop {
    health: watch::Sender<Health>,
    /// Calls are answered.
    answers: watch::Sender<bool>,
    calls: AtomicU32,
    waiting: AtomicU32,
    asked: AtomicU32,
    /// Of the last call.
    head: Mutex<HeaderMap>,
}

impl Shop {
    /// Serves until the test ends.
    ///
    /// # Errors
    /// The address is in use.
    pub async fn serve(address: SocketAddr) -> anyhow::Result<Arc<Self>> {
        let listener = TcpListener::bind(address).await?;
        let shop = Arc::new(Self {
            health: watch::Sender::new(Health::Unserved),
            answers: watch::Sender::new(true),
            calls: AtomicU32::default(),
            waiting: AtomicU32::default(),
            asked: AtomicU32::default(),
            head: Mutex::default(),
        });
        let served = Arc::clone(&shop);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&served).connection(stream));
            }
        });
        Ok(shop)
    }

    /// From now on.
    pub fn says(&self, health: Health) {
        self.health.send_replace(health);
    }

    /// Whether calls are answered from now on, those that wait as well.
    pub fn answers(&self, whether: bool) {
        self.answers.send_replace(whether);
    }

    /// Calls that have reached it.
    pub fn calls(&self) -> u32 {
        self.calls.load(Relaxed)
    }

    /// The headers of the last call that has reached it.
    pub fn head(&self) -> HeaderMap {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls that wait for their answer now.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// Questions about its health that have reached it.
    pub fn asked(&self) -> u32 {
        self.asked.load(Relaxed)
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        // Some connections only ask whether somebody listens.
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(Arc::clone(&self).answer(request, respond));
        }
    }

    async fn answer(self: Arc<Self>, request: Request<h2::RecvStream>, respond: SendResponse<Bytes>) {
        let answer: &[u8] = if request.uri().path() == HEALTH {
            self.asked.fetch_add(1, Relaxed);
            let health = *self.health.borrow();
            match health {
                Health::Unserved => return refuse(respond),
                Health::Serving => &[0, 0, 0, 0, 2, 8, 1],
                Health::NotServing => &[0, 0, 0, 0, 2, 8, 2],
                // Whoever asks gives up and resets the stream.
                Health::Silent => return std::future::pending().await,
            }
        } else {
            self.head.lock().unwrap_or_else(PoisonError::into_inner).clone_from(request.headers());
            self.calls.fetch_add(1, Relaxed);
            self.waiting.fetch_add(1, Relaxed);
            let mut answers = self.answers.subscribe();
            let _held_back = answers.wait_for(|answers| *answers).await;
            self.waiting.fetch_sub(1, Relaxed);
            MESSAGE
        };
        let _caller_gone = send(respond, answer);
    }
}

fn send(mut respond: SendResponse<Bytes>, message: &'static [u8]) -> Result<(), h2::Error> {
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let mut body = respond.send_response(head, false)?;
    body.send_data(Bytes::from_static(message), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    body.send_trailers(trailers)
}

fn refuse(mut respond: SendResponse<Bytes>) {
    let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "12");
    let _caller_gone = respond.send_response(head.body(()).expect("a head"), true);
}

/// A connection to the outbound listener of a sidecar.
///
/// # Errors
/// It does not answer.
pub async fn connect(outbound: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(outbound).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(sender.ready().await?)
}

/// One call of `/shop.v1.Shop/METHOD`, with these headers.
///
/// # Errors
/// The answer is another one than the app's: what came.
pub async fn call(
    sender: SendRequest<Bytes>,
    service: &str,
    method: &str,
    headers: &[(&'static str, &'static str)],
) -> Result<(), String> {
    let told = |error: h2::Error| error.to_string();
    let request = Request::post(format!("http://{service}/shop.v1.Shop/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let mut sender = sender.ready().await.map_err(told)?;
    let (answer, mut body) = sender.send_request(request.body(()).expect("a request"), false).map_err(told)?;
    // The app answers without reading: the stream may be over by now, and the answer says how.
    let _over = body.send_data(Bytes::from_static(MESSAGE), true);
    let (head, mut body) = answer.await.map_err(told)?.into_parts();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(told)?;
        message.extend_from_slice(&data);
        let _ended = body.flow_control().release_capacity(data.len());
    }
    let trailers = body.trailers().await.map_err(told)?.unwrap_or_default();
    let said = |name| trailers.get(name).or(head.headers.get(name)).and_then(|value: &HeaderValue| value.to_str().ok());
    if head.status == 200 && said("grpc-status") == Some("0") && message == MESSAGE {
        return Ok(());
    }
    let (status, message) = (said("grpc-status").unwrap_or("none"), said("grpc-message").unwrap_or_default());
    Err(format!("HTTP {}, grpc-status {status}: {message}", head.status.as_u16()))
}
