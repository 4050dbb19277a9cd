//! Connections of anybody: bounded in number, in time and in what they may send.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mesh_identity::tls::HANDSHAKE_DEADLINE;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::answer::answer;
use super::published::Published;

/// Connections at once. Further ones wait in the listener's queue.
const CONNECTIONS: usize = 2_048;
/// Of these, from one address. Further ones are closed: nobody alone can keep the others waiting.
const OF_ONE_ADDRESS: usize = 256;
/// A connection without a request for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// What a request line with its headers may take.
const HEADERS: Duration = Duration::from_secs(10);
/// What the answers that are under way may take when a connection is to end.
const DRAIN: Duration = Duration::from_secs(2);
/// Bytes of a request's headers.
const HEADER_BYTES: u16 = 16 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 64;

/// Accepts until `shutdown`. Each connection is a task of its own.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    published: Arc<Published>,
    shutdown: CancellationToken,
) {
    let (all, addresses) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Addresses::default()));
    loop {
        let permit = Arc::clone(&all).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, remote) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer was gone already: neither is a reason to stop serving.
                    tracing::warn!(%error, "the key repository cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return,
        };
        let Some(place) = addresses.enter(remote.ip()) else { continue };
        let (tls, published, shutdown) = (Arc::clone(&tls), Arc::clone(&published), shutdown.clone());
        tokio::spawn(async move {
            let _places = (permit, place);
            if let Err(error) = connection(stream, tls, published, shutdown).await {
                tracing::debug!(%remote, error, "a connection to the key repository ended");
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    published: Arc<Published>,
    shutdown: CancellationToken,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let stream = timeout(HANDSHAKE_DEADLINE, TlsAcceptor::from(tls).accept(stream));
    let stream = stream.await.map_err(|_| "handshake too slow".to_owned())?.map_err(|error| error.to_string())?;

    let began = Instant::now();
    // Milliseconds from then to the last request.
    let latest = Arc::new(AtomicU64::new(0));
    let service = hyper::service::service_fn(|request| {
        latest.store(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let response = answer(&published, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let server = builder();
    let serving = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    loop {
        let idle_at = began + Duration::from_millis(latest.load(Ordering::Relaxed)) + IDLE;
        tokio::select! {
            ended = serving.as_mut() => return ended.map_err(|error| error.to_string()),
            () = sleep_until(idle_at) => {
                let now_idle_at = began + Duration::from_millis(latest.load(Ordering::Relaxed)) + IDLE;
                if now_idle_at > Instant::now() {
                    continue;
                }
            }
            () = shutdown.cancelled() => {}
        }
        serving.as_mut().graceful_shutdown();
        return timeout(DRAIN, serving).await.unwrap_or(Ok(())).map_err(|error| error.to_string());
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEADER_BYTES.into());
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES.into())
        .keep_alive_interval(IDLE)
        .keep_alive_timeout(HEADERS);
    server
}

/// How many connections each address has.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    /// A place for one more, given back when dropped.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= OF_ONE_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place { addresses: Arc::clone(self), address })
    }
}

struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut addresses = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}
