//! The app at the end of every call, in a process of its own.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};

/// How often the app answers with what it was sent; once where this header is absent.
pub const MESSAGES: &str = "x-messages";

/// A started app; ends with this.
pub struct App {
    child: Child,
    pub address: SocketAddr,
}

impl App {
    /// Starts this program again as the app.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start() -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(std::env::current_exe()?).args(["app", &address.to_string()]).spawn()?;
        let app = Self { child, address };
        listening(address)?;
        Ok(app)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gRPC message of so many bytes.
pub fn message(bytes: usize) -> Bytes {
    let length = u32::try_from(bytes).expect("messages are small").to_be_bytes();
    [&[0], length.as_slice(), &vec![b'x'; bytes]].concat().into()
}

/// Waits until somebody listens.
///
/// # Errors
/// Nobody does within 20 s.
pub fn listening(address: SocketAddr) -> anyhow::Result<()> {
    for _ in 0..200 {
        if std::net::TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    anyhow::bail!("nobody listens on {address}")
}

/// In the child: answers every call with what it was sent, until the process is killed.
///
/// # Errors
/// The listener cannot be made.
pub fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(10_000).initial_window_size(1 << 20);
                builder.initial_connection_window_size(64 << 20);
                let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    })
}

async fn answer(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let messages = request.headers().get(MESSAGES).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(1);
    let (mut body, mut sent) = (request.into_body(), BytesMut::new());
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        sent.extend_from_slice(&data);
    }
    let head = Response::builder().header("content-type", "application/grpc").body(());
    let Ok(mut answer) = respond.send_response(head.expect("a good head"), false) else { return };
    let sent = sent.freeze();
    for _ in 0..messages {
        let _ = answer.send_data(sent.clone(), false);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = answer.send_trailers(trailers);
}
