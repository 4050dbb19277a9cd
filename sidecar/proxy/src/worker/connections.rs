//! The connections that a worker serves: from the app, and from other sidecars.

use std::{convert::Infallible, fmt::Display, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_identity::tls::{self, TlsError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Accepted, CONNECTION_WINDOW, STREAM_WINDOW, Shutdown, Worker};
use crate::{
    ahead::Ahead,
    body::CallBody,
    caller::Caller,
    cork::Cork,
    guard::{Act, FIELDS, From, Guard, Guarding, Pulse, TICK, Watch, Why},
    metrics::Direction,
    outbound,
};

/// What the open calls on the connection of a revoked peer are given to be told so.
const FAREWELL: Duration = Duration::from_millis(250);

/// The other end of a connection.
struct Peer<'p> {
    from: From,
    /// As the log names it.
    name: &'p str,
    address: Option<std::net::SocketAddr>,
}

impl Worker {
    /// Serves what was accepted, until it ends.
    pub(super) async fn accept(self: Arc<Self>, connection: Accepted, shutdown: Shutdown) {
        let served = match connection {
            Accepted::Outbound(stream) => self.clone().outbound_tcp(stream, shutdown.outbound).await,
            Accepted::OutboundUnix(stream) => match tokio::net::UnixStream::from_std(stream) {
                Ok(stream) => self.clone().outbound(stream, None, shutdown.outbound).await,
                Err(error) => Err(error.into()),
            },
            Accepted::Inbound(stream) => self.clone().inbound(stream, shutdown.inbound).await,
        };
        if let Err(error) = served {
            debug!(%error, "a connection ended");
        }
    }

    async fn outbound_tcp(self: Arc<Self>, stream: std::net::TcpStream, shutdown: CancellationToken) -> Served {
        stream.set_nodelay(true)?;
        let address = stream.peer_addr().ok();
        self.outbound(tokio::net::TcpStream::from_std(stream)?, address, shutdown).await
    }

    async fn outbound<T>(
        self: Arc<Self>,
        stream: T,
        address: Option<std::net::SocketAddr>,
        shutdown: CancellationToken,
    ) -> Served
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let peer = Peer { from: From::App, name: "app", address };
        let guarding = Arc::clone(&self.guarding);
        let Some(_place) = guarding.place(Direction::Outbound) else {
            peer.closed(&guarding, Why::Crowded);
            return Ok(());
        };
        let _connected = self.live.metrics.calls(Direction::Outbound).connected();
        let serve = move |request| outbound::serve(Arc::clone(&self), request);
        serve_http2(Ahead::new(stream), &peer, &guarding, shutdown, || false, serve).await
    }

    async fn inbound(self: Arc<Self>, stream: std::net::TcpStream, shutdown: CancellationToken) -> Served {
        stream.set_nodelay(true)?;
        let address = stream.peer_addr().ok();
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let (live, closing, guarding) = (Arc::clone(&self.live), shutdown.child_token(), Arc::clone(&self.guarding));
        let nobody = Peer { from: From::Outside, name: "unknown", address };
        let Some(_place) = guarding.place(Direction::Inbound) else {
            nobody.closed(&guarding, Why::Crowded);
            return Ok(());
        };
        let handshake = guarding.handshake(address.map(|address| address.ip()));
        // Also while this sidecar ends: the other side may have sent its first call by now.
        let (stream, client) = tokio::select! {
            () = handshake.pushed_out() => {
                nobody.closed(&guarding, Why::Crowded);
                return Ok(());
            }
            accepted = tls::accept_client(&self.tls, &live.identity, &live.outside.tls, Ahead::new(stream)) => {
                accepted.inspect_err(|error| nobody.closed(&guarding, why_without_handshake(error)))?
            }
        };
        drop(handshake);
        let _connected = live.metrics.calls(Direction::Inbound).connected();
        let caller = self.enter(client, closing.clone());
        let calling = Arc::clone(&caller);
        let from = if caller.is_sidecar() { From::Sidecar } else { From::Outside };
        let peer = Peer { from, name: &caller.name, address };
        let serve = move |request| crate::inbound::serve(Arc::clone(&self), Arc::clone(&calling), request);
        serve_http2(stream, &peer, &guarding, closing, || caller.is_expelled(), serve).await
    }

    /// Remembers the caller of a connection for as long as that is open.
    fn enter(&self, client: tls::Client, connection: CancellationToken) -> Arc<Caller> {
        let caller = Arc::new(Caller::new(client, connection));
        let mut callers = self.callers();
        if callers.len() == callers.capacity() {
            callers.retain(|caller| caller.strong_count() > 0);
        }
        callers.push(Arc::downgrade(&caller));
        drop(callers);
        // What changed since the handshake was over nobody else looks at.
        caller.look_again(&self.live.identity, &self.live.outside.tls);
        caller
    }
}

fn why_without_handshake(error: &TlsError) -> Why {
    match error {
        TlsError::Deadline(_) => Why::SlowHandshake,
        TlsError::Io(_) | TlsError::Handshake(_) | TlsError::NoH2 => Why::Handshake,
    }
}

impl Peer<'_> {
    fn direction(&self) -> Direction {
        match self.from {
            From::App => Direction::Outbound,
            From::Sidecar | From::Outside => Direction::Inbound,
        }
    }

    fn closed(&self, guarding: &Guarding, why: Why) {
        let address = self.address.as_ref().map(|address| address as &dyn Display);
        guarding.closed(self.direction(), why, self.name, address);
    }
}

type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Serves one connection until it ends; after `shutdown` it takes no new call and ends with its last open one. Where
/// `expelled` says so by then, that is given [`FAREWELL`] and no more.
///
/// Windows and limits: `docs/adr/0002-hyper-for-the-data-path.md`, and `docs/limits.md`. h2's own limits on resets are
/// above those of the guard, which counts them with a rate and says who it was.
async fn serve_http2<T, S, F>(
    io: T,
    peer: &Peer<'_>,
    guarding: &Arc<Guarding>,
    shutdown: CancellationToken,
    expelled: impl Fn() -> bool,
    serve: S,
) -> Served
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<CallBody>> + Send + 'static,
{
    // Boxed: hyper and tokio move this future several times before they poll it, and it is some kilobytes.
    let (pulse, limits) = (Arc::new(Pulse::default()), peer.from.limits());
    let service = service_fn(|request: Request<Incoming>| {
        let fields = request.headers().len();
        let answer: BoxFuture<'static, _> = if fields > FIELDS {
            guarding.too_many_fields(peer.direction(), peer.name, fields);
            Box::pin(async move { Ok::<_, Infallible>(too_many_fields(fields)) })
        } else {
            answered(serve(request), pulse.is_wary())
        };
        answer
    });
    let io = Guard::new(Cork::new(io), peer.from, guarding, &pulse);
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        .max_pending_accept_reset_streams(1 << 20)
        .max_local_error_reset_streams(None)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let (mut watch, mut stopping, mut tick) = (Watch::new(peer.from != From::App), false, ticks());
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                pulse.why().into_iter().for_each(|why| peer.closed(guarding, why));
                return Ok(ended?);
            }
            () = shutdown.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
                if expelled() {
                    // Time for the reason to reach those who read; whoever does not goes without.
                    return Ok(timeout(FAREWELL, connection).await.unwrap_or(Ok(()))?);
                }
            }
            _ = tick.tick() => match watch.look(&pulse) {
                None => {}
                Some(Act::Finish(why)) => {
                    peer.closed(guarding, why);
                    connection.as_mut().graceful_shutdown();
                }
                Some(Act::Close(why)) => {
                    peer.closed(guarding, why);
                    return Ok(());
                }
            },
        }
    }
}

/// Not awaited in a block of its own, which would have room for it twice. Inlined, so that a call's future, some kilobytes, is
/// not moved to get here.
#[inline]
fn answered<F>(answer: F, wary: bool) -> BoxFuture<'static, Result<Response<CallBody>, Infallible>>
where
    F: Future<Output = Response<CallBody>> + Send + 'static,
{
    let answer = answer.map(Ok);
    if wary {
        // hyper looks whether a call is reset when it has to wait for its answer, and not before.
        return Box::pin(async move {
            tokio::task::yield_now().await;
            answer.await
        });
    }
    Box::pin(answer)
}

/// When a connection is looked at.
fn ticks() -> Interval {
    let mut ticks = interval_at(Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// As h2 answers to a head that is too large in bytes.
fn too_many_fields(fields: usize) -> Response<CallBody> {
    let text = format!("{fields} header fields, and {FIELDS} at most are taken\n");
    let mut response = Response::new(CallBody::text(Bytes::from(text)));
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests;
