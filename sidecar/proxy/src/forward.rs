//! Sending a decided request on, and waiting for the head of its answer.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use h2::{RecvStream, client::ResponseFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, request};
use hyper::body::Incoming;
use sidecar_core::{
    Named, Reason, Refusal,
    deadline::{self, GrpcTimeout, parse_grpc_timeout},
    route::Timeout,
};
use tokio::time::Instant;

use crate::{
    body::deadline_refusal,
    call::{Call, Line},
    headers::named,
    pool::{ConnectError, Lease, Target},
    pump::{self, Pump},
    replay::Upload,
    said::Said,
    worker::Worker,
};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// An attempt that gave no answer. The refusal is for when there is no other.
pub enum Failed {
    /// Nobody could be reached, nothing was sent.
    Unreachable(Refusal),
    /// The other side has not begun with it, and never will, since the connection ends.
    Unbegun(Refusal),
    /// The other side has not begun with it, and refuses to.
    Refused(Refusal),
    /// It was sent and nobody knows how far it came.
    Broken(Refusal),
    /// The call was over before there was a stream for it: nothing was sent.
    Waiting(Refusal),
    /// The call is over, whatever the other side does.
    Over(Refusal),
}

impl Failed {
    /// Of the call, should there be no other attempt.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::Unreachable(refusal)
            | Self::Unbegun(refusal)
            | Self::Refused(refusal)
            | Self::Broken(refusal)
            | Self::Waiting(refusal)
            | Self::Over(refusal) => refusal,
        }
    }
}

/// A request that can be sent more than once.
pub struct Outgoing {
    head: request::Parts,
    /// Its body, and what of that is kept.
    pub upload: Upload<Incoming>,
}

/// A request under way on a connection. Dropped, its stream is reset.
pub struct Attempt {
    answer: ResponseFuture,
    pump: Pump,
    lease: Lease,
}

/// The head of an answer; nothing of it is handed on yet. Dropped, its stream is reset.
pub struct Answer {
    /// Of which the body is still to come.
    pub response: Response<RecvStream>,
    pump: Pump,
    lease: Lease,
}

/// CONNECT has no path that a rule could allow.
pub fn refuse_tunnels<B>(request: &Request<B>) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::new(Reason::PathNotAllowed, "CONNECT is not carried"));
    }
    Ok(())
}

/// When a call with this head must be over. A malformed `grpc-timeout` sets none: the app answers for it.
pub fn deadline(said: &Said<'_>) -> Option<Instant> {
    brought(said).and_then(|timeout| Instant::now().checked_add(timeout))
}

/// The same, where the destination's `Route` has a word in it, and counted from the call's beginning.
pub fn deadline_within(said: &Said<'_>, timeout: Timeout, call: &Call) -> Option<Instant> {
    deadline::bounded(brought(said), timeout).and_then(|timeout| call.started().checked_add(timeout))
}

fn brought(said: &Said<'_>) -> Option<std::time::Duration> {
    match said.grpc_timeout.named() {
        Named::One(text) => parse_grpc_timeout(text),
        Named::None | Named::Many => None,
    }
}

/// What `work` says, unless `deadline` passes first.
pub async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Result<T, Refusal> {
    match deadline {
        None => Ok(work.await),
        Some(at) => tokio::time::timeout_at(at, work).await.map_err(|_| deadline_refusal()),
    }
}

impl Outgoing {
    /// Of whose body `room` bytes may be kept for another attempt.
    pub fn new(request: Request<Incoming>, room: usize) -> Self {
        let (head, body) = request.into_parts();
        Self { head, upload: Upload::new(body, room) }
    }

    /// The head of the next attempt: with the time that is left, and how many attempts there were.
    pub fn head(&self, deadline: Option<Instant>, previous: u32) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.version_mut() = self.head.version;
        *request.headers_mut() = self.head.headers.clone();
        if let Some(deadline) = deadline {
            say_what_is_left(request.headers_mut(), deadline);
        }
        if previous > 0 {
            // The app's own attempts are attempts too.
            let before = match named(request.headers(), &PREVIOUS_ATTEMPTS) {
                Named::One(text) => text.parse().unwrap_or(0_u32),
                Named::None | Named::Many => 0,
            };
            request.headers_mut().insert(PREVIOUS_ATTEMPTS, HeaderValue::from(before.saturating_add(previous)));
        }
        request
    }
}

/// `grpc-timeout` for the other side: the call's minus what was spent. One that nobody can read stays as it is.
fn say_what_is_left(headers: &mut HeaderMap, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let stays = match named(headers, &GRPC_TIMEOUT) {
        Named::None => false,
        Named::One(text) => parse_grpc_timeout(text).is_none_or(|brought| deadline::still_says(brought, left)),
        Named::Many => true,
    };
    if !stays && let Ok(value) = HeaderValue::try_from(GrpcTimeout::from(left).to_string()) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

/// How many connections are tried that turn out to take no new streams.
const HAND_OVERS: usize = 3;

/// Sends a head on an open connection to `target`, opening one first where there is none, until the call's deadline.
pub async fn begin(
    worker: &Worker,
    target: &Target,
    mut head: Request<()>,
    without_body: bool,
    call: &Call,
) -> Result<Attempt, Failed> {
    let mut why = String::new();
    for _ in 0..HAND_OVERS {
        let (mut connection, lease) = match worker.pool.open(target, call.started().into_std()) {
            Some(leased) => leased,
            None => match until_over(call, worker.pool.connect(target)).await {
                Err(refusal) => return Err(Failed::Waiting(refusal)),
                Ok(Err(error)) => return Err(Failed::Unreachable(connect_refusal(target, &error))),
                Ok(Ok(leased)) => leased,
            },
        };
        match until_over(call, poll_fn(|cx| connection.poll_ready(cx))).await {
            Err(refusal) => return Err(Failed::Waiting(refusal)),
            // It ended a moment ago, or the other side is about to: nothing was sent.
            Ok(Err(error)) => {
                why = error.to_string();
                worker.pool.discard(target, &lease);
            }
            Ok(Ok(())) => {
                if lease.indexes_all(call.started().into_std()) {
                    head.headers_mut().values_mut().for_each(|value| value.set_sensitive(false));
                }
                return match connection.send_request(head, without_body) {
                    Ok((answer, stream)) => Ok(Attempt { answer, pump: Pump::new(stream, without_body), lease }),
                    Err(error) => {
                        let refusal = broken_refusal(target, &error, &lease, call);
                        // The connection's end; else it is the head that cannot be sent, wherever.
                        let ended = error.is_io() || error.is_go_away();
                        Err(if ended { Failed::Unbegun(refusal) } else { Failed::Over(refusal) })
                    }
                };
            }
        }
    }
    let message = format!("connections close before they take the request: {why}");
    Err(Failed::Unreachable(Refusal::new(Reason::UpstreamConnect, message)))
}

/// Sends a request to `target`, with as much of its body as is wanted, until the head of the answer is there.
pub async fn attempt(
    worker: &Worker,
    target: &Target,
    outgoing: &mut Outgoing,
    previous: u32,
    call: &Call,
) -> Result<Answer, Failed> {
    let head = outgoing.head(call.deadline, previous);
    let mut attempt = begin(worker, target, head, outgoing.upload.is_empty(), call).await?;
    let ended = until_over(call, poll_fn(|cx| attempt.poll(cx, &mut outgoing.upload, &call.line))).await;
    attempt.ended(ended.map_err(Failed::Over)?, worker, target, call)
}

/// To the app of this sidecar: once more where it was about to close the connection. What it refuses to begin is the
/// caller's sidecar's to send again, which has a budget for that.
pub async fn to_app(
    worker: &Worker,
    target: &Target,
    request: Request<Incoming>,
    call: &mut Call,
) -> Result<Response<RecvStream>, Refusal> {
    let mut outgoing = Outgoing::new(request, KEPT_FOR_THE_APP);
    let mut again = true;
    loop {
        call.unsent = false;
        match attempt(worker, target, &mut outgoing, 0, call).await {
            Ok(answer) => return Ok(answer.hand_on(outgoing, call)),
            Err(Failed::Unbegun(_)) if again && outgoing.upload.is_kept() => again = false,
            Err(Failed::Unbegun(refusal) | Failed::Refused(refusal) | Failed::Unreachable(refusal)) => {
                call.unsent = true;
                return Err(refusal);
            }
            Err(Failed::Broken(refusal) | Failed::Waiting(refusal) | Failed::Over(refusal)) => return Err(refusal),
        }
    }
}

/// Of a request that an app may refuse before it begins: what sidecars keep of theirs where nobody says otherwise.
const KEPT_FOR_THE_APP: usize = 64 << 10;

impl Attempt {
    /// Sends on what there is of the request, and waits for the head of the answer.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Upload<Incoming>,
        line: &Line,
    ) -> Poll<Result<Response<RecvStream>, h2::Error>> {
        let _all_of_it_is_sent = self.pump.poll(cx, upload, line);
        Pin::new(&mut self.answer).poll(cx)
    }

    /// What it has come to.
    pub fn ended(
        self,
        answer: Result<Response<RecvStream>, h2::Error>,
        worker: &Worker,
        target: &Target,
        call: &Call,
    ) -> Result<Answer, Failed> {
        let Self { pump, lease, .. } = self;
        match answer {
            Ok(response) => Ok(Answer { response, pump, lease }),
            Err(error) => {
                let refusal = broken_refusal(target, &error, &lease, call);
                if error.is_go_away() {
                    worker.pool.discard(target, &lease);
                }
                Err(unanswered(&error)(refusal))
            }
        }
    }
}

/// Whether the other side is sure not to have begun with the request of a stream that ended so (RFC 9113, section 8.7). h2
/// tells a GOAWAY of the other side only to the streams above the last one that it names.
fn unanswered(error: &h2::Error) -> fn(Refusal) -> Failed {
    match error.reason() {
        _ if !error.is_remote() => Failed::Broken,
        _ if error.is_go_away() => Failed::Unbegun,
        Some(h2::Reason::REFUSED_STREAM) => Failed::Refused,
        Some(_) | None => Failed::Broken,
    }
}

impl Answer {
    /// Commits the call to this answer: what is left of the request goes on beside it.
    pub fn hand_on(self, mut outgoing: Outgoing, call: &mut Call) -> Response<RecvStream> {
        call.lease = Some(self.lease);
        if self.pump.is_done() {
            call.line.sent(self.pump.into_stream());
        } else {
            outgoing.upload.commit();
            pump::spawn(self.pump, outgoing.upload, Arc::clone(&call.line));
        }
        self.response
    }
}

/// Runs `work` until it ends, the deadline passes, or the call is hung up.
pub async fn until_over<T>(call: &Call, work: impl Future<Output = T>) -> Result<T, Refusal> {
    let mut work = pin!(work);
    let hung_up_or_done = poll_fn(|cx| {
        // First: whoever hangs up also resets the stream, and `work` would tell of that alone.
        if let Poll::Ready(refusal) = call.line.poll_response(cx) {
            return Poll::Ready(Err(refusal.clone()));
        }
        work.as_mut().poll(cx).map(Ok)
    });
    match call.deadline {
        None => hung_up_or_done.await,
        Some(at) => tokio::time::timeout_at(at, hung_up_or_done).await.unwrap_or_else(|_| {
            let refusal = deadline_refusal();
            call.line.hang_up(refusal.clone());
            Err(refusal)
        }),
    }
}

/// A dead app is `UPSTREAM_CONNECT`; a sidecar that nobody can reach is no live instance; one that is not who it should
/// be is `UPSTREAM_CONNECT` again.
fn connect_refusal(target: &Target, error: &ConnectError) -> Refusal {
    match (target, error) {
        (Target::App(address), _) => {
            Refusal::new(Reason::UpstreamConnect, format!("cannot connect to the app at {address}: is it running?"))
        }
        (Target::Sidecar(_, service), ConnectError::Tcp(..) | ConnectError::TimedOut(_)) => {
            Refusal::new(Reason::NoEndpoint, format!("service {service} has no live instance: {error}"))
        }
        (Target::Sidecar(_, service), ConnectError::Tls(..)) => {
            Refusal::new(Reason::UpstreamConnect, format!("cannot connect to service {service}: {error}"))
        }
    }
}

fn broken_refusal(target: &Target, error: &h2::Error, lease: &Lease, call: &Call) -> Refusal {
    if lease.is_revoked() {
        return revoked(call);
    }
    let who = match target {
        Target::App(_) => "the app".to_owned(),
        Target::Sidecar(_, service) => format!("service {service}"),
    };
    let what = if error.is_reset() { "reset the call" } else { "ended the connection" };
    // In TLS 1.3 a client learns only now that its certificate was refused; the alert says why.
    let why = error.get_io().map(|error| format!(": {error}")).unwrap_or_default();
    Refusal::new(Reason::UpstreamConnect, format!("{who} {what} before it answered{why}"))
}

/// The connection of the call was closed because its other end is revoked.
pub fn revoked_refusal(call: &Call) -> Option<Refusal> {
    call.lease.as_ref().filter(|lease| lease.is_revoked()).map(|_| revoked(call))
}

fn revoked(call: &Call) -> Refusal {
    let message = format!("the identity of service {} is revoked, or that of its instance", call.facts().service);
    Refusal::new(Reason::UpstreamConnect, message)
}
