//! The one object that accounts for a call.

use std::{
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Instant,
};

use futures_util::task::AtomicWaker;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use sidecar_core::{Refusal, balance::Slot};
use tracing::info;

use crate::{
    body::CallBody,
    in_flight::Serving,
    live::Live,
    metrics::{Calls, Direction, Outcome},
    open::Place,
    refuse::{self, Revisions},
};

/// What both bodies of a call and whoever re-decides open calls share.
///
/// A call is hung up at most once: by its deadline, or because what it was allowed by has changed.
#[derive(Debug, Default)]
pub struct Line {
    refusal: OnceLock<Refusal>,
    request: AtomicWaker,
    response: AtomicWaker,
}

impl Line {
    /// Ends the call with `refusal`: both bodies stop at their next poll.
    pub fn hang_up(&self, refusal: Refusal) {
        if self.refusal.set(refusal).is_ok() {
            self.request.wake();
            self.response.wake();
        }
    }

    /// Ready once the call was hung up. For the side that pumps the request.
    pub fn poll_request(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.request.register(cx.waker());
        if self.refusal.get().is_some() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ready once the call was hung up. For the side that waits for and pumps the answer.
    pub fn poll_response(&self, cx: &mut Context<'_>) -> Poll<&Refusal> {
        if self.refusal.get().is_none() {
            self.response.register(cx.waker());
        }
        self.refusal.get().map_or(Poll::Pending, Poll::Ready)
    }
}

/// What refusals and log lines tell about a call. Cloned out of the request by reference count: nothing is copied.
#[derive(Debug)]
pub struct Facts {
    /// The callee: this service (inbound), or the destination as named (outbound).
    pub service: Arc<str>,
    /// Who calls: the peer (inbound), or this service (outbound).
    pub caller: Arc<str>,
    /// Path of the request.
    pub uri: Uri,
    /// The tenant as it was named by id or host.
    pub tenant: Option<HeaderValue>,
    /// `x-mesh-request-id`.
    pub request_id: HeaderValue,
    /// Whether the answer must be a gRPC one.
    pub grpc: bool,
    /// For the log, and for HEAD, whose refusals have no body.
    pub method: Method,
}

impl Facts {
    /// Reads what can be read without deciding anything.
    pub fn of<B>(request: &Request<B>, service: Arc<str>, caller: Arc<str>, request_id: HeaderValue) -> Self {
        let grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        Self {
            service,
            caller,
            uri: request.uri().clone(),
            tenant: None,
            request_id,
            grpc,
            method: request.method().clone(),
        }
    }

    /// The request id as text.
    #[must_use]
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The tenant as text; what is not printable ASCII is not repeated.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.tenant.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Started, then exactly one of finished, refused, cancelled, broken, by whoever lets go last. Dropping it means
/// cancelled.
pub struct Call {
    direction: Direction,
    counters: Arc<Calls>,
    /// Which revisions are in force, and what is logged.
    live: Arc<Live>,
    started: Instant,
    /// For refusals and the log.
    pub facts: Facts,
    /// Shared with the bodies of the call.
    pub line: Arc<Line>,
    /// When the whole call must be over.
    pub deadline: Option<tokio::time::Instant>,
    /// Held until the call ends: its place among the open calls.
    pub place: Option<Place>,
    /// Held until the call ends: its tenant is in flight.
    pub serving: Option<Serving>,
    /// Held until the call ends: its place at the instance it went to.
    pub slot: Option<Slot>,
    /// Which header held the ASAP token, from the decision to the rewriting of the head.
    pub token_header: Option<HeaderName>,
    ended: bool,
}

impl Call {
    /// Opens the account, before any decision.
    pub fn start(direction: Direction, live: &Arc<Live>, facts: Facts) -> Self {
        let counters = live.metrics.calls(direction);
        counters.started();
        Self {
            direction,
            counters: Arc::clone(counters),
            live: Arc::clone(live),
            started: Instant::now(),
            facts,
            line: Arc::new(Line::default()),
            deadline: None,
            place: None,
            serving: None,
            slot: None,
            token_header: None,
            ended: false,
        }
    }

    /// Hands the account over to the answer's body.
    pub fn follow(self, response: Response<hyper::body::Incoming>) -> Response<CallBody> {
        CallBody::follow(response, self)
    }

    /// Makes the refusal the answer: the only place a status is made before an answer has begun.
    pub fn refuse(mut self, refusal: &Refusal) -> Response<CallBody> {
        let revisions = self.note(refusal);
        let response = refuse::response(refusal, &self.facts, &revisions);
        self.end(Outcome::Refused, Some(refusal.reason.as_str()));
        response
    }

    /// Makes the refusal the trailers of an answer that has begun.
    pub fn refuse_open(&mut self, refusal: &Refusal) -> http::HeaderMap {
        let revisions = self.note(refusal);
        let trailers = refuse::trailers(refusal, &self.facts, &revisions);
        self.end(Outcome::Refused, Some(refusal.reason.as_str()));
        trailers
    }

    /// Audit mode let pass what `refusal` says.
    pub fn audited(&self, refusal: &Refusal) {
        self.counters.audited();
        let Some(unlogged) = self.live.refusal_lines.take(mesh_identity::clock::unix_seconds()) else { return };
        info!(
            target: "tenon::audit",
            direction = self.direction.as_str(),
            reason = refusal.reason.as_str(),
            service = &*self.facts.service,
            caller = &*self.facts.caller,
            path = self.facts.uri.path(),
            request_id = self.facts.request_id(),
            unlogged,
            "passed in audit mode"
        );
    }

    /// The answer came to its end.
    pub fn finish(&mut self, status: Option<&HeaderValue>) {
        let status = status.and_then(|value| value.to_str().ok()).map(str::to_owned);
        self.end(Outcome::Finished, status.as_deref());
    }

    /// The other side broke off in the middle.
    pub fn broken(&mut self, error: &dyn std::fmt::Display) {
        self.end(Outcome::Broken, Some(&error.to_string()));
    }

    fn note(&self, refusal: &Refusal) -> Revisions {
        let (policy, tenants) = self.live.revisions();
        self.counters.refused(refusal.reason);
        let Some(unlogged) = self.live.refusal_lines.take(mesh_identity::clock::unix_seconds()) else {
            return Revisions { policy, tenants };
        };
        info!(
            target: "tenon::refusal",
            direction = self.direction.as_str(),
            reason = refusal.reason.as_str(),
            message = %refusal.message,
            service = &*self.facts.service,
            caller = &*self.facts.caller,
            path = self.facts.uri.path(),
            request_id = self.facts.request_id(),
            policy_revision = %policy,
            tenant_revision = %tenants,
            nearest = refusal.nearest.as_ref().map(tracing::field::display),
            unlogged,
        );
        Revisions { policy, tenants }
    }

    fn end(&mut self, outcome: Outcome, status: Option<&str>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let took = self.started.elapsed();
        self.counters.ended(outcome, took);
        if self.live.config.access_log {
            info!(
                target: "tenon::access",
                direction = self.direction.as_str(),
                ?outcome,
                status,
                method = %self.facts.method,
                service = &*self.facts.service,
                caller = &*self.facts.caller,
                path = self.facts.uri.path(),
                request_id = self.facts.request_id(),
                microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            );
        }
        (self.place, self.serving, self.slot) = (None, None, None);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled, None);
    }
}
