//! Sending a decided request on, and waiting for the head of its answer.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use sidecar_core::{Reason, Refusal, deadline::parse_grpc_timeout};
use tokio::time::Instant;

use crate::{
    body::deadline_refusal,
    call::Call,
    headers::named,
    pool::{ConnectError, Target},
    pump::pump,
    worker::Worker,
};

/// An attempt that gave no answer.
pub enum Failed {
    /// Nobody could be reached, nothing was sent: the request may go elsewhere. The refusal is for when there is no
    /// elsewhere.
    Unreachable(Box<Request<Incoming>>, Refusal),
    /// The call is over.
    Final(Refusal),
}

/// CONNECT has no path that a rule could allow.
pub fn refuse_tunnels<B>(request: &Request<B>) -> Result<(), Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::new(Reason::PathNotAllowed, "CONNECT is not carried"));
    }
    Ok(())
}

/// When a call with this head must be over. A malformed `grpc-timeout` sets none: the app answers for it.
pub fn deadline(headers: &HeaderMap) -> Option<Instant> {
    let sidecar_core::Named::One(text) = named(headers, &http::HeaderName::from_static("grpc-timeout")) else {
        return None;
    };
    parse_grpc_timeout(text).and_then(|timeout| Instant::now().checked_add(timeout))
}

/// What `work` says, unless `deadline` passes first.
pub async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Result<T, Refusal> {
    match deadline {
        None => Ok(work.await),
        Some(at) => tokio::time::timeout_at(at, work).await.map_err(|_| deadline_refusal()),
    }
}

/// How many connections are tried that turn out to take no new streams.
const HAND_OVERS: usize = 3;

/// Sends on an open connection to `target`, opening one first where there is none, until the call's deadline.
pub async fn attempt(
    worker: &Worker,
    target: &Target,
    request: Request<Incoming>,
    call: &mut Call,
) -> Result<Response<RecvStream>, Failed> {
    let mut why = String::new();
    for _ in 0..HAND_OVERS {
        let (mut connection, lease) = match worker.pool.open(target) {
            Some(leased) => leased,
            None => match until_over(call, worker.pool.connect(target)).await {
                Err(refusal) => return Err(Failed::Final(refusal)),
                Ok(Err(error)) => return Err(Failed::Unreachable(Box::new(request), connect_refusal(target, &error))),
                Ok(Ok(leased)) => leased,
            },
        };
        match until_over(call, poll_fn(|cx| connection.poll_ready(cx))).await {
            Err(refusal) => return Err(Failed::Final(refusal)),
            // It ended a moment ago, or the other side is about to: nothing was sent.
            Ok(Err(error)) => {
                why = error.to_string();
                worker.pool.discard(target, &lease);
            }
            Ok(Ok(())) => {
                call.lease = Some(lease);
                return send(connection, target, request, call).await.map_err(Failed::Final);
            }
        }
    }
    let message = format!("connections close before they take the request: {why}");
    let refusal = Refusal::new(Reason::UpstreamConnect, message);
    Err(Failed::Unreachable(Box::new(request), refusal))
}

async fn send(
    mut connection: SendRequest<Bytes>,
    target: &Target,
    request: Request<Incoming>,
    call: &Call,
) -> Result<Response<RecvStream>, Refusal> {
    let (head, body) = request.into_parts();
    let without_body = body.is_end_stream();
    let (answer, stream) = connection
        .send_request(Request::from_parts(head, ()), without_body)
        .map_err(|error| broken_refusal(target, &error, call))?;
    if without_body {
        call.line.sent(stream);
    } else {
        // The whole of a small request is sent at once; only what has to wait gets a task.
        let mut pumping = Box::pin(pump(body, stream, Arc::clone(&call.line)));
        if poll_fn(|cx| Poll::Ready(pumping.as_mut().poll(cx))).await.is_pending() {
            tokio::spawn(pumping);
        }
    }
    match until_over(call, answer).await? {
        Ok(answer) => Ok(answer),
        Err(error) => Err(broken_refusal(target, &error, call)),
    }
}

/// Runs `work` until it ends, the deadline passes, or the call is hung up.
async fn until_over<T>(call: &Call, work: impl Future<Output = T>) -> Result<T, Refusal> {
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

fn broken_refusal(target: &Target, error: &h2::Error, call: &Call) -> Refusal {
    if let Some(refusal) = revoked_refusal(call) {
        return refusal;
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
    call.lease.as_ref().filter(|lease| lease.is_revoked()).map(|_| {
        let message = format!("the identity of service {} is revoked, or that of its instance", call.facts.service);
        Refusal::new(Reason::UpstreamConnect, message)
    })
}
