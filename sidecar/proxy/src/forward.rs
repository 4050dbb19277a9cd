//! Sending a decided request on, and waiting for the head of its answer.

use std::{future::poll_fn, pin::pin, task::Poll};

use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use sidecar_core::{Reason, Refusal, deadline::parse_grpc_timeout};
use tokio::time::Instant;

use crate::{
    body::{RequestBody, deadline_refusal, was_reset},
    call::Call,
    headers::named,
    pool::{self, ConnectError, Target},
    worker::Worker,
};

/// An attempt that gave no answer.
pub enum Failed {
    /// Nobody could be reached, nothing was sent: the request may go elsewhere. The refusal is for when there is no
    /// elsewhere.
    Unreachable(Box<Request<RequestBody>>, Refusal),
    /// The call is over.
    Final(Refusal),
}

/// When a call with this head must be over. A malformed `grpc-timeout` sets none: the app answers for it.
pub fn deadline(headers: &HeaderMap) -> Option<Instant> {
    let sidecar_core::Named::One(text) = named(headers, &http::HeaderName::from_static("grpc-timeout")) else {
        return None;
    };
    parse_grpc_timeout(text).and_then(|timeout| Instant::now().checked_add(timeout))
}

/// How often a request is handed to a connection that turns out to have ended without taking it.
const HAND_OVERS: usize = 3;

/// Sends on an open connection to `target`, opening one first where there is none, until the call's deadline.
pub async fn attempt(
    worker: &Worker,
    target: &Target,
    mut request: Request<RequestBody>,
    call: &Call,
) -> Result<Response<Incoming>, Failed> {
    for _ in 0..HAND_OVERS {
        let connection = match worker.pool.open(target) {
            Some(connection) => connection,
            None => match until_over(call, worker.pool.connect(target)).await {
                Err(refusal) => return Err(Failed::Final(refusal)),
                Ok(Err(error)) => return Err(Failed::Unreachable(Box::new(request), connect_refusal(target, &error))),
                Ok(Ok(connection)) => connection,
            },
        };
        match until_over(call, pool::send(connection, request)).await {
            Err(refusal) => return Err(Failed::Final(refusal)),
            Ok(Ok(response)) => return Ok(response),
            Ok(Err((_, Some(unsent)))) => request = unsent,
            Ok(Err((error, None))) => return Err(Failed::Final(broken_refusal(target, &error))),
        }
    }
    let refusal = Refusal::new(Reason::UpstreamConnect, "connections close before they take the request");
    Err(Failed::Unreachable(Box::new(request), refusal))
}

/// Runs `work` until it ends, the deadline passes, or the call is hung up.
async fn until_over<T>(call: &Call, work: impl Future<Output = T>) -> Result<T, Refusal> {
    let mut work = pin!(work);
    let hung_up_or_done = poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        call.line.poll_response(cx).map(|refusal| Err(refusal.clone()))
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

fn broken_refusal(target: &Target, error: &hyper::Error) -> Refusal {
    let who = match target {
        Target::App(_) => "the app".to_owned(),
        Target::Sidecar(_, service) => format!("service {service}"),
    };
    let what = if was_reset(error) { "reset the call" } else { "ended the connection" };
    Refusal::new(Reason::UpstreamConnect, format!("{who} {what} before it answered"))
}
