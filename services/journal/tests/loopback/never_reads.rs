//! Followers that open a stream and never read it: they cost what their windows hold, and nobody else anything.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::AtomicUsize,
    task::{Context, Poll, ready},
};

use h2::RecvStream;
use prost::Message as _;
use tenon_proto::replication::v1::FollowResponse;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::*;

/// What a follower lets the server send before it has read anything.
const WINDOW: u32 = 16 << 10;
/// Frames that are no data: settings, pings, heads.
const BESIDES: usize = 4 << 10;

/// A connection that counts what has come.
struct Counted {
    stream: TcpStream,
    received: Arc<AtomicUsize>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.received.fetch_add(buf.filled().len() - before, SeqCst);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A follower whose connection is alive and whose stream is not read.
struct Silent {
    received: Arc<AtomicUsize>,
    /// The answers; nothing of them has been read.
    body: RecvStream,
    /// Its end would end the answers.
    _requests: h2::SendStream<Bytes>,
    connection: JoinHandle<()>,
}

impl Silent {
    async fn follow(parent: &Parent, instance: &str, resume: Option<Position>) -> Self {
        let received = Arc::new(AtomicUsize::new(0));
        let stream = TcpStream::connect(parent.server.address).await.unwrap();
        let stream = Counted { stream, received: Arc::clone(&received) };
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(1 << 20);
        let (client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        let uri = format!("http://{}/tenon.replication.v1.Replication/Follow", parent.server.address);
        let request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        let (response, mut requests) =
            client.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
        let resume = resume.map(Into::into);
        let start = Start { instance: instance.to_owned(), resume, ..start("tenant", Mode::Full) };
        let start = FollowRequest { request: Some(Following::Start(start)) }.encode_to_vec();
        let length = u32::try_from(start.len()).unwrap().to_be_bytes();
        requests.send_data([&[0], &length[..], &start].concat().into(), false).unwrap();
        let response = timeout(SOON, response).await.unwrap().unwrap();
        Self { received, body: response.into_body(), _requests: requests, connection }
    }

    fn received(&self) -> usize {
        self.received.load(SeqCst)
    }

    /// Waits until as much has come as may.
    async fn until_full(&self) {
        let full = async {
            while self.received() < WINDOW as usize {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, full).await.unwrap();
    }

    /// Reads at last, until something of `wanted` came or the stream ended; the bytes of it all, and how it ended.
    async fn read(&mut self, wanted: u64) -> (usize, Option<String>) {
        let (mut bytes, mut frames, mut of_snapshot) = (0, Vec::new(), 0);
        loop {
            let data = timeout(SOON, poll_fn(|cx| self.body.poll_data(cx))).await.unwrap();
            let Some(data) = data else {
                let trailers = timeout(SOON, poll_fn(|cx| self.body.poll_trailers(cx))).await.unwrap().unwrap();
                let told = trailers.and_then(|trailers| Some(trailers.get("grpc-message")?.to_str().ok()?.to_owned()));
                return (bytes, Some(told.unwrap_or_default()));
            };
            let data = data.unwrap();
            bytes += data.len();
            self.body.flow_control().release_capacity(data.len()).unwrap();
            frames.extend_from_slice(&data);
            while let Some(length) =
                frames.first_chunk::<5>().map(|[_, length @ ..]| u32::from_be_bytes(*length) as usize)
                && frames.len() >= 5 + length
            {
                let message = FollowResponse::decode(&frames[5..5 + length]).unwrap();
                frames.drain(..5 + length);
                let reached = match message.response {
                    Some(Followed::SnapshotStart(start)) => {
                        of_snapshot = start.position.unwrap_or_default().revision;
                        0
                    }
                    Some(Followed::SnapshotEnd(_)) => of_snapshot,
                    Some(Followed::Delta(delta)) => delta.revision,
                    _ => 0,
                };
                if reached >= wanted {
                    return (bytes, None);
                }
            }
        }
    }

    async fn go(self) {
        self.connection.abort();
        let _aborted = self.connection.await;
    }
}

/// So many records of 4 KiB.
fn batch(records: u32, round: u8) -> Vec<Write> {
    (0..records).map(|number| Write::put(format!("t-{number}"), vec![round; 4096])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_that_never_read_get_what_their_windows_hold_and_hold_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { ring_changes: 200, ..Settings::default() };
    let parent = Parent::start(&dir.path().join("s"), None, settings, Arc::new(Everything)).await;
    let first = parent.put("first", "x").await;
    let (quick, ..) = follow("tenant", parent.channel(), None);
    reaches(&quick, first).await;
    let mut silent = Vec::new();
    for number in 0..20 {
        silent.push(Silent::follow(&parent, &format!("silent/{number}"), Some(first)).await);
    }
    let mut head = first;
    for round in 0..60 {
        head = parent.journal.append(batch(40, round)).await.unwrap();
        // Each change is there before the next is made.
        reaches(&quick, head).await;
    }
    let changed = 60 * 40 * 4096;
    for one in &silent {
        one.until_full().await;
    }
    parent.follower_when(|it| it.instance == "media/test" && it.acknowledged == Some(head.into())).await;
    for one in &silent {
        let received = one.received();
        assert!(received <= WINDOW as usize + BESIDES, "{received} bytes came through a window of {WINDOW}");
    }
    let status = parent.publishers[0].status();
    let behind: Vec<_> = status.followers.iter().filter(|it| it.instance.starts_with("silent/")).collect();
    assert_eq!(behind.len(), silent.len());
    for one in behind {
        // What it said itself, and not what it was sent.
        assert_eq!((one.acknowledged, one.nack.as_str()), (Some(first.into()), ""), "{}", one.instance);
        assert_ne!(one.connected_unix_seconds, 0);
    }
    // Nothing was kept for it: what it gets when it reads is what the window and one message hold, and a snapshot.
    let late = parent.put("late", "x").await;
    let mut one = silent.pop().unwrap();
    let (bytes, ended) = timeout(SOON, one.read(late.revision)).await.unwrap();
    assert!(ended.is_none() && bytes < changed / 8, "{bytes} of {changed} bytes had been kept: {ended:?}");
    for one in silent.into_iter().chain([one]) {
        one.go().await;
    }
    let gone = async {
        while parent.publishers[0].status().followers.len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, gone).await.expect("those that went are still listed");
    parent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_its_snapshot_loses_its_turn_and_its_stream() {
    let dir = tempfile::tempdir().unwrap();
    let stalled = Duration::from_millis(200);
    let settings = Settings { snapshots: 2, stalled, ..Settings::default() };
    let parent = Parent::start(&dir.path().join("s"), None, settings, Arc::new(Everything)).await;
    let head = parent.journal.append(batch(400, 1)).await.unwrap();
    let mut silent = Vec::new();
    for number in 0..6 {
        silent.push(Silent::follow(&parent, &format!("silent/{number}"), None).await);
    }
    // More of them than there are turns, and all before this one.
    let (quick, ..) = follow("tenant", parent.channel(), None);
    reaches(&quick, head).await;
    for one in &silent {
        one.until_full().await;
        assert!(one.received() <= WINDOW as usize + BESIDES, "{} bytes came", one.received());
    }
    // All six have begun, and only two at a time have a turn: four have lost theirs, whenever the last ones began.
    let mut gave_up = 0;
    for mut one in silent {
        let (_, ended) = timeout(SOON, one.read(head.revision)).await.unwrap();
        if let Some(told) = ended {
            assert!(told.contains("not%20read"), "{told}");
            gave_up += 1;
        }
        one.go().await;
    }
    assert!(gave_up >= 4, "{gave_up} lost their turn");
    parent.stop().await;
}
