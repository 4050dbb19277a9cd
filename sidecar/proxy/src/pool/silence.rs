//! Connections that have fallen silent: a host may vanish without a word, and then nothing ever comes back.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};

/// How often it is looked whether anything was heard.
const LOOK: Duration = Duration::from_millis(500);
/// A connection with open calls from which nothing was heard for so many looks is asked for a sign of life: 1 s,
const ASK: u32 = 2;
/// and, while no call is begun on it and it answers, later each time: 8 s at most. Streams may be open and idle for long.
const ASK_AT_MOST: u32 = 16;
/// It is given so many looks for it: 2 s. With 200 ms of latency a ping is sent a third time by then if it is lost twice, and
/// a moment in which this process itself does not run counts as one look.
const ANSWER: u32 = 4;

/// What is watched of a connection.
#[derive(Debug, Default)]
pub struct Signs {
    /// Something was read since this was looked at last.
    heard: AtomicBool,
    /// Calls that are open on it.
    pub calls: AtomicUsize,
    /// Calls that were begun on it.
    pub begun: AtomicU64,
}

/// Notes each time that something is read.
#[derive(Debug)]
pub struct Heard<T> {
    io: T,
    signs: Arc<Signs>,
}

impl<T> Heard<T> {
    /// Wraps a connection.
    pub fn new(io: T, signs: &Arc<Signs>) -> Self {
        Self { io, signs: Arc::clone(signs) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.signs.heard.store(true, Relaxed);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Ends when a connection with open calls gives no sign of life. Never for one that cannot be asked.
pub async fn silence(pings: Option<PingPong>, signs: &Signs) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    let (mut patience, mut begun) = (ASK, 0);
    loop {
        silent_for(|| patience_with(&mut patience, &mut begun, signs), signs).await;
        tokio::select! {
            // Whatever is there to be read is read first.
            biased;
            answer = pings.ping(Ping::opaque()) => match answer {
                Ok(_) => patience = (patience * 2).min(ASK_AT_MOST),
                // The connection has ended, and says so itself.
                Err(_) => std::future::pending().await,
            },
            () = silent_for(|| ANSWER, signs) => return,
        }
    }
}

/// A call that has just begun is waited for: there is no patience with it.
fn patience_with(patience: &mut u32, begun: &mut u64, signs: &Signs) -> u32 {
    let now = signs.begun.load(Relaxed);
    if std::mem::replace(begun, now) != now {
        *patience = ASK;
    }
    *patience
}

/// Ends when nothing was heard for so many looks in a row, all of them with calls open.
async fn silent_for(mut looks: impl FnMut() -> u32, signs: &Signs) {
    let mut silent = 0;
    loop {
        sleep(LOOK).await;
        let heard = signs.heard.swap(false, Relaxed);
        silent = if heard || signs.calls.load(Relaxed) == 0 { 0 } else { silent + 1 };
        if silent >= looks() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::DuplexStream,
        time::{Instant, timeout},
    };

    use super::*;

    type Server = h2::server::Connection<DuplexStream, bytes::Bytes>;

    /// Both ends of a connection with one call open, as the pool has them.
    async fn connection() -> (Server, impl Future<Output = Option<()>>, Arc<Signs>) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let signs = Arc::new(Signs::default());
        signs.calls.store(1, Relaxed);
        let client = h2::client::handshake(Heard::new(client, &signs));
        let (client, server) = tokio::join!(client, h2::server::handshake(server));
        let ((sender, mut connection), watched) = (client.unwrap(), Arc::clone(&signs));
        let pings = connection.ping_pong();
        let watch = async move {
            let _held_open = sender;
            tokio::select! {
                _ended = connection => None,
                () = silence(pings, &watched) => Some(()),
            }
        };
        (server.unwrap(), watch, signs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_comes_back_is_given_up_within_four_seconds() {
        let (_never_polled, watch, _) = connection().await;
        let began = Instant::now();
        assert_eq!(timeout(Duration::from_secs(10), watch).await, Ok(Some(())));
        let took = began.elapsed();
        assert!((Duration::from_secs(3)..=Duration::from_secs(4)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_pings_is_kept_although_its_calls_are_silent_and_one_without_calls_is_not_asked() {
        let (mut server, watch, _) = connection().await;
        let serve = tokio::spawn(async move { while server.accept().await.is_some() {} });
        assert!(timeout(Duration::from_secs(600), watch).await.is_err());
        serve.abort();
        let (_never_polled, watch, signs) = connection().await;
        signs.calls.store(0, Relaxed);
        assert!(timeout(Duration::from_secs(600), watch).await.is_err());
    }

    #[test]
    fn patience_grows_while_no_call_is_begun() {
        let (signs, mut begun, mut patience) = (Signs::default(), 0, ASK);
        patience *= 4;
        assert_eq!(patience_with(&mut patience, &mut begun, &signs), 8);
        signs.begun.fetch_add(1, Relaxed);
        assert_eq!(patience_with(&mut patience, &mut begun, &signs), ASK);
        patience *= 2;
        assert_eq!(patience_with(&mut patience, &mut begun, &signs), 4);
    }
}
