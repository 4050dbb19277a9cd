//! An HTTP/2 client that sends whatever it is told.

use std::{net::SocketAddr, time::Duration};

use mesh_identity::{
    testing::{self, Certificate},
    tls,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ENHANCE_YOUR_CALM: u32 = 11;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How soon a flooded sidecar must have closed the connection, in a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// More than any flood may take.
const MOST: usize = 64 << 20;

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where a client connects, and as whom.
pub enum To {
    Outbound(SocketAddr),
    Inbound(SocketAddr, Box<dyn Fn() -> Certificate + Send + Sync>),
}

impl To {
    pub async fn connect(&self) -> Box<dyn Stream> {
        match self {
            Self::Outbound(address) => Box::new(TcpStream::connect(address).await.expect("the sidecar listens")),
            Self::Inbound(address, _) => {
                let tcp = TcpStream::connect(address).await.expect("the sidecar listens");
                self.connect_over(tcp).await
            }
        }
    }

    /// On a connection that is open already.
    pub async fn connect_over(&self, tcp: TcpStream) -> Box<dyn Stream> {
        match self {
            Self::Outbound(_) => Box::new(tcp),
            Self::Inbound(_, certificate) => {
                let connector = TlsConnector::from(testing::client_config(Some(certificate()), &[b"h2"]));
                Box::new(connector.connect(tls::server_name(), tcp).await.expect("the handshake"))
            }
        }
    }
}

/// One frame (RFC 9113 §4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HEADERS of a call for tenant acme, each field without compression (RFC 7541 §6.2.2), and these beside them.
pub fn call(stream: u32, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(path, more))
}

pub fn block(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    // `:method: POST` and `:scheme: http` have an index.
    let mut block = vec![0x83, 0x86];
    let usual =
        [(":path", path), (":authority", "slow"), ("content-type", "application/grpc"), ("x-tenant-id", "acme")];
    for (name, value) in usual.iter().chain(more) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short text"));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// What became of a flood.
#[derive(Debug)]
pub struct Ended {
    /// Bytes that could be sent before the connection was closed.
    pub sent: usize,
    /// The text of GOAWAY with ENHANCE_YOUR_CALM.
    pub told: Option<String>,
}

/// Sends the preface, `first`, and then what `next` makes of 0, 1, 2 and so on, until the connection is closed; reads
/// whatever comes.
pub async fn flood(to: &To, first: Vec<u8>, next: impl Fn(u32) -> Vec<u8>) -> Ended {
    let (reader, writer) = split(to.connect().await);
    let reading = tokio::spawn(read(reader));
    let sent = timeout(SOON, write(writer, first, next)).await.expect("the sidecar closes the connection");
    let told = timeout(SOON, reading).await.expect("the connection ends").expect("no panic");
    Ended { sent, told }
}

async fn write(mut writer: WriteHalf<Box<dyn Stream>>, first: Vec<u8>, next: impl Fn(u32) -> Vec<u8>) -> usize {
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &first].concat();
    let (mut batch, mut sent, mut number) = (begin, 0, 0);
    while writer.write_all(&batch).await.is_ok() && writer.flush().await.is_ok() {
        sent += batch.len();
        assert!(sent < MOST, "nothing ends it");
        batch.clear();
        while batch.len() < 16_000 {
            batch.extend(next(number));
            number += 1;
        }
    }
    sent
}

async fn read(mut reader: ReadHalf<Box<dyn Stream>>) -> Option<String> {
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        reader.read_exact(&mut payload).await.ok()?;
        if head[3] == GOAWAY && payload[4..8] == ENHANCE_YOUR_CALM.to_be_bytes() {
            return Some(String::from_utf8_lossy(&payload[8..]).into_owned());
        }
    }
}

/// The answers to `requests`, by their `:status` as h2 puts it on the wire: the first byte of each HEADERS.
pub async fn statuses(to: &To, requests: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = to.connect().await;
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &requests.concat()].concat();
    stream.write_all(&hello).await.expect("written");
    stream.flush().await.expect("written");
    let mut statuses = Vec::new();
    while statuses.len() < requests.len() {
        let mut head = [0; 9];
        timeout(SOON, stream.read_exact(&mut head)).await.expect("in time").expect("a frame");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.expect("a payload");
        if head[3] == HEADERS {
            statuses.push(payload[0]);
        }
    }
    statuses
}

/// Whether the other side closes a connection within this time on which nothing is sent.
pub async fn closes(mut stream: TcpStream, within: Duration) -> bool {
    let mut read = Vec::new();
    timeout(within, stream.read_to_end(&mut read)).await.is_ok()
}
