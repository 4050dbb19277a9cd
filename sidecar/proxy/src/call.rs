//! The one object that accounts for a call.

mod facts;
mod line;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Response};
use mesh_identity::clock::Moment;
use sidecar_core::{
    Position, Reason, Refusal,
    balance::{Ended, Slot, is_own_fault},
    inbound,
};
use tonic::Code;
use tracing::info;

use crate::{
    body::CallBody,
    decisions::{Decision, Ending, Flow, Grounds, Measure, Remembered},
    headers, health,
    in_flight::Serving,
    limits::Admission,
    metrics::{Calls, Direction, Outcome, has_a_rule},
    open::{OpenCall, OpenCalls, Place, Question},
    pool::Lease,
    refuse::{self, Revisions},
    tap::Noted,
    trace::Span,
    worker::Worker,
};

pub use self::{facts::Facts, line::Line};

/// A call that has ended, as those are told who want to know.
pub struct End<'a> {
    /// On which side.
    pub direction: Direction,
    /// What was known of it from its beginning.
    pub facts: &'a Facts,
    /// Its tenant's id, or what else the app named; empty: nothing.
    pub tenant: &'a str,
    /// How.
    pub outcome: Outcome,
    /// The number of the gRPC status, the reason of a refusal, or why it broke.
    pub status: Option<&'a str>,
    /// How long it took.
    pub took: Duration,
}

/// Started, then exactly one of finished, refused, cancelled, broken, by whoever lets go last. Dropping it means
/// cancelled.
pub struct Call {
    direction: Direction,
    /// Which revisions are in force, what is counted, logged and remembered. One reference, of which other threads have none:
    /// a count that two cores change costs each of them more than all else here.
    worker: Arc<Worker>,
    started: Instant,
    /// When the clock was last looked at for it: where it came in, or had to wait.
    looked: Moment,
    /// Shared with the bodies of the call.
    pub line: Arc<Line>,
    /// It was not sent to the app: the caller's sidecar may be told so.
    pub unsent: bool,
    /// When the whole call must be over.
    pub deadline: Option<tokio::time::Instant>,
    /// Held until the call ends: its place among the open calls.
    place: Option<Place>,
    /// Held until the call ends: its tenant is in flight.
    pub serving: Option<Serving>,
    /// Held until the call ends: its seat at the app.
    pub admission: Option<Admission>,
    /// Held until the call ends: its place at the instance it went to.
    pub slot: Option<Slot>,
    /// Held until the call ends: its place on the connection it went over.
    pub lease: Option<Lease>,
    /// Of its head, while somebody watches.
    head: Option<Box<Noted>>,
    /// While its trace is recorded.
    span: Option<Box<Span>>,
    /// Its tenant's id, for those who want to know of the call.
    tenant: Option<Box<str>>,
    /// What it was refused on, or let pass on in audit mode.
    grounds: Option<Box<Grounds>>,
    /// It was decided that it may be made.
    passed: bool,
    /// A rule was found for its path, or its own app chose it: it is none that a stranger has invented.
    known: bool,
    /// Bytes of the messages of its answer so far, without their framing.
    pub answered: u64,
    /// A refusal of it was noted.
    noted: bool,
    ended: bool,
}

impl Call {
    /// Opens the account of a call that came in at `started`, before any decision.
    pub fn start(direction: Direction, worker: &Arc<Worker>, started: Moment, facts: Facts) -> Self {
        worker.live.metrics.calls(direction).started();
        Self {
            direction,
            worker: Arc::clone(worker),
            started: started.instant,
            looked: started,
            line: Arc::new(Line::new(facts)),
            unsent: direction == Direction::Inbound,
            deadline: None,
            place: None,
            serving: None,
            admission: None,
            slot: None,
            lease: None,
            head: None,
            span: None,
            tenant: None,
            grounds: None,
            passed: false,
            known: false,
            answered: 0,
            noted: false,
            ended: false,
        }
    }

    /// What is known of it.
    pub fn facts(&self) -> &Facts {
        &self.line.facts
    }

    /// Looks at its head where somebody watches, or wants spans.
    pub fn watch(&mut self, head: &HeaderMap) {
        self.head = self.worker.live.taps.note(head);
        self.span = self.worker.live.tracer.as_ref().and_then(|tracer| tracer.begin(head));
    }

    /// Tells the next hop which span calls, where one does.
    pub fn continue_trace(&self, head: &mut HeaderMap) {
        if let Some(span) = &self.span {
            span.continue_in(head);
        }
    }

    /// Whose call it has turned out to be, for whoever wants to know.
    pub fn is_of(&mut self, tenant: Option<&str>) {
        let live = &self.worker.live;
        let asked =
            self.head.is_some() || self.span.is_some() || live.access_log.is_some() || live.config.tenant_metrics > 0;
        if let Some(tenant) = tenant.filter(|_| asked) {
            self.tenant = Some(tenant.into());
        }
    }

    /// Takes a place among the open calls.
    pub fn enter(&mut self, calls: &Arc<OpenCalls>, question: Question) {
        let call = OpenCall { line: Arc::clone(&self.line), deadline: self.deadline, question };
        self.place = Some(calls.enter(call));
    }

    fn counters(&self) -> &Calls {
        self.worker.live.metrics.calls(self.direction)
    }

    /// When it came in.
    #[must_use]
    pub fn started(&self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.started)
    }

    /// What time it is for it, which has not waited since.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.looked
    }

    /// It has waited for something.
    pub fn has_waited(&mut self) {
        self.looked = Moment::now();
    }

    /// Hands the account over to the answer's body.
    pub fn follow(self, response: Response<RecvStream>) -> Response<CallBody> {
        CallBody::follow(response, self)
    }

    /// Makes the refusal the answer: the only place a status is made before an answer has begun.
    pub fn refuse(mut self, refusal: &Refusal) -> Response<CallBody> {
        let revisions = self.note(refusal);
        let mut response = refuse::response(refusal, self.facts(), &revisions);
        if self.unsent && matches!(refusal.reason, Reason::UpstreamConnect | Reason::Overloaded) {
            response.headers_mut().insert(headers::UNSENT, HeaderValue::from_static("1"));
        }
        if self.direction == Direction::Inbound {
            response.headers_mut().insert(headers::REFUSED, HeaderValue::from_static(refusal.reason.as_str()));
        }
        self.end_refused(refusal.reason);
        response
    }

    /// Makes the refusal the trailers of an answer that has begun.
    pub fn refuse_open(&mut self, refusal: &Refusal) -> HeaderMap {
        let revisions = self.note(refusal);
        let trailers = refuse::trailers(refusal, self.facts(), &revisions);
        self.end_refused(refusal.reason);
        trailers
    }

    /// Keeps what an inbound decision was made from, where somebody may ask about it.
    pub fn decided_on<R>(&mut self, state: &inbound::State, decision: &Result<inbound::Verdict<R>, inbound::Stop>) {
        if let (Some(span), Ok(verdict)) = (&mut self.span, decision) {
            let rule = verdict.rule.and_then(|index| state.policy.as_ref()?.rule(index));
            span.passed(rule.map(|rule| (rule.allowlist(), rule.name())), verdict.audited.is_some());
        }
        self.grounds = match decision {
            Err(inbound::Stop::Refused(refusal)) => Some(Grounds::of(state, refusal, false)),
            Ok(inbound::Verdict { audited: Some(refusal), .. }) => Some(Grounds::of(state, refusal, true)),
            Ok(_) | Err(inbound::Stop::WaitFor(_) | inbound::Stop::Resolve(_)) => None,
        };
    }

    /// It was decided that the call may be made; in audit mode, in spite of what `audited` says.
    pub fn passes(&mut self, audited: Option<&Refusal>) {
        self.passed = true;
        self.known = audited.is_none_or(|refusal| has_a_rule(refusal.reason));
        if self.direction == Direction::Inbound {
            self.count(audited.map_or(Decision::Allowed, |refusal| Decision::Audited(refusal.reason)));
        }
        if let Some(refusal) = audited {
            self.audited(refusal);
        }
    }

    fn audited(&self, refusal: &Refusal) {
        self.counters().audited();
        self.remember(Decision::Audited(refusal.reason), refusal, self.grounds.as_deref());
        let Some(unlogged) = self.worker.live.refusal_lines.take(mesh_identity::clock::unix_seconds()) else { return };
        info!(
            target: "tenon::audit",
            direction = self.direction.as_str(),
            reason = refusal.reason.as_str(),
            service = &*self.facts().service,
            caller = &*self.facts().caller,
            path = self.facts().uri.path(),
            request_id = self.facts().request_id(),
            unlogged,
            "passed in audit mode"
        );
    }

    /// The reader of the answer was given more of it, or waits for more.
    pub fn handed_on(&self, more: bool) {
        let tick = if more { self.worker.live.limits.memory.tick() } else { 0 };
        self.line.unread.store(tick, Ordering::Relaxed);
    }

    /// The answer came to its end.
    pub fn finish(&mut self, status: Option<&HeaderValue>) {
        let code = status.map_or(Code::Unknown, |status| Code::from_bytes(status.as_bytes()));
        self.end(Outcome::Finished, code, status.and_then(|value| value.to_str().ok()));
    }

    /// The other side broke off in the middle.
    pub fn broken(&mut self, error: &dyn std::fmt::Display) {
        self.end(Outcome::Broken, Code::Unavailable, Some(&error.to_string()));
    }

    fn end_refused(&mut self, reason: Reason) {
        self.end(Outcome::Refused, Code::from_i32(reason.code() as i32), Some(reason.as_str()));
    }

    fn note(&mut self, refusal: &Refusal) -> Revisions {
        self.counters().refused(refusal.reason);
        let (policy, tenants) = self.decided_against(refusal);
        let text = |position: Option<Position>| position.map(|held| held.to_string()).unwrap_or_default();
        let (policy, tenants) = (text(policy), text(tenants));
        let Some(unlogged) = self.worker.live.refusal_lines.take(mesh_identity::clock::unix_seconds()) else {
            return Revisions { policy, tenants };
        };
        info!(
            target: "tenon::refusal",
            direction = self.direction.as_str(),
            reason = refusal.reason.as_str(),
            message = %refusal.message,
            service = &*self.facts().service,
            caller = &*self.facts().caller,
            path = self.facts().uri.path(),
            request_id = self.facts().request_id(),
            policy_revision = %policy,
            tenant_revision = %tenants,
            nearest = refusal.nearest.as_ref().map(tracing::field::display),
            unlogged,
        );
        Revisions { policy, tenants }
    }

    /// What fails after the call has passed is remembered, but it is no decision about the flow, and neither is that its
    /// time is over.
    fn decided_against(&mut self, refusal: &Refusal) -> (Option<Position>, Option<Position>) {
        self.noted = true;
        if refusal.reason != Reason::Deadline && (!self.passed || self.line.is_hung_up()) {
            self.count(Decision::Refused(refusal.reason));
        }
        let on_the_line = self.line.refusal.get().and_then(|(_, grounds)| grounds.as_deref());
        // What it passed on in audit mode is not why it failed afterwards.
        let at_the_start = self.grounds.as_deref().filter(|_| !self.passed);
        self.remember(Decision::Refused(refusal.reason), refusal, on_the_line.or(at_the_start))
    }

    fn count(&self, decision: Decision) {
        let service = match self.direction {
            Direction::Inbound => &self.facts().service,
            // What the app wrote is a service only when there is one.
            Direction::Outbound if self.worker.live.is_service(&self.facts().service) => &self.facts().service,
            Direction::Outbound => "",
        };
        self.worker.ledger.count(Flow {
            caller: &self.facts().caller,
            service,
            path: self.facts().uri.path(),
            how: decision,
        });
    }

    /// Comes back with the revisions that are in force.
    fn remember(
        &self,
        decision: Decision,
        refusal: &Refusal,
        grounds: Option<&Grounds>,
    ) -> (Option<Position>, Option<Position>) {
        let (policy, tenants) = self.worker.live.revisions();
        let at = mesh_identity::clock::since_epoch().as_millis();
        self.worker.ledger.remember(Remembered {
            at_unix_ms: i64::try_from(at).unwrap_or(i64::MAX),
            direction: self.direction,
            decision,
            request_id: self.facts().request_id().into(),
            caller: Arc::clone(&self.facts().caller),
            service: (*self.facts().service).into(),
            path: self.facts().uri.path().into(),
            tenant: self.facts().tenant().into(),
            message: (*refusal.message).into(),
            nearest: refusal.nearest.as_ref().map(ToString::to_string).unwrap_or_default().into(),
            grounds: grounds.cloned().unwrap_or(Grounds { policy, ..Grounds::default() }),
            tenants,
        });
        (policy, tenants)
    }

    fn end(&mut self, outcome: Outcome, code: Code, status: Option<&str>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // It was refused while nobody read its answer: the caller was not told, the flow record is.
        if let (false, Some((refusal, _))) = (self.noted, self.line.refusal.get()) {
            let refusal = refusal.clone();
            self.decided_against(&refusal);
        }
        let ended = Moment::now();
        let took = ended.instant.duration_since(self.started);
        self.counters().ended(outcome, took);
        self.measure(outcome, code, took);
        if let Some(slot) = &self.slot {
            slot.ended(shown_at_the_end(outcome, status), health::ns(ended));
        }
        self.tell(outcome, status, took);
        self.line.end(outcome != Outcome::Finished);
        if let Some(admission) = self.admission.take() {
            let overdue = outcome == Outcome::Refused && status == Some(Reason::Deadline.as_str());
            admission.end(ended.instant, overdue);
        }
        (self.place, self.serving, self.slot, self.lease) = (None, None, None, None);
    }

    /// For metrics of calls by method, and of tenants.
    fn measure(&self, outcome: Outcome, code: Code, took: Duration) {
        let (facts, direction, ledger) = (self.facts(), self.direction, &self.worker.ledger);
        if facts.grpc {
            // What anybody may have invented makes no series: a path, and whom the app wants to call.
            let path = if self.known && code != Code::Unimplemented { facts.uri.path() } else { "" };
            let service = if self.passed || direction == Direction::Inbound { &*facts.service } else { "" };
            let code = u8::try_from(code as i32).unwrap_or_default();
            let flow = Flow { caller: &facts.caller, service, path, how: Ending { direction, code } };
            let traced = self.span.as_ref().map(|span| (span.trace(), mesh_identity::clock::since_epoch()));
            let request = self.line.received.load(Ordering::Relaxed);
            ledger.ended(flow, &Measure { took, request, response: self.answered, traced });
        }
        // What the app names is passed on where nobody has it: the callee decides.
        let counts = direction == Direction::Inbound && self.worker.live.config.tenant_metrics > 0;
        if let Some(tenant) = self.tenant.as_deref().filter(|_| counts) {
            ledger.ended_for(tenant, outcome);
        }
    }

    /// To whoever wants to know.
    fn tell(&self, outcome: Outcome, status: Option<&str>, took: Duration) {
        let live = &self.worker.live;
        if !live.taps.watched() && self.span.is_none() && live.access_log.is_none() {
            return;
        }
        let (direction, facts) = (self.direction, self.facts());
        let tenant = self.tenant.as_deref().unwrap_or_else(|| facts.tenant());
        let end = End { direction, facts, tenant, outcome, status, took };
        live.taps.ended(&end, self.head.as_deref());
        if let (Some(span), Some(tracer)) = (&self.span, &live.tracer) {
            tracer.ended(span, &end);
        }
        if let Some(log) = &live.access_log {
            log.ended(&end, self.span.as_deref());
        }
    }
}

/// What the end of a call says of the instance that answered it.
fn shown_at_the_end(outcome: Outcome, status: Option<&str>) -> Ended {
    match outcome {
        Outcome::Finished => match status.and_then(|code| code.parse().ok()) {
            Some(code) if is_own_fault(code) => Ended::Failed,
            Some(_) | None => Ended::Well,
        },
        Outcome::Broken => Ended::Failed,
        Outcome::Refused | Outcome::Cancelled => Ended::Unknown,
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled, Code::Cancelled, None);
    }
}
