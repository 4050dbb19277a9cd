//! The stream of one sidecar. It is pulled by the transport: a sidecar that reads nothing is not read either.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use mesh_config::names::control_plane;
use mesh_identity::{Peer, clock};
use prost::Message as _;
use tenon_proto::policy::v1::{
    RecentDecision, ReportRequest, ReportResponse,
    report_request::{FlowBatch, Found, Hello, Register, Request},
    report_response::{Find, FlowsTaken, Registered, Response, Taps as Wanted},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    Often, ReportStream,
    batch::{Accepted, accept},
    sidecars::{Question, Registration, Sidecars},
    taps::Taps,
};
use crate::{
    flows::Intake,
    leases::{self, Leases},
};

/// How long a sidecar may take to say who it is.
const OPENING: Duration = Duration::from_secs(10);
/// Characters of the name of an instance.
const INSTANCE: usize = 256;
/// Batches of a sidecar that wait to be written. It sends one and waits, so these are more than there ever are.
const BATCHES: usize = 4;
/// Questions that a sidecar has not answered. Beyond, the oldest is given up.
const UNANSWERED: usize = 64;
/// Registrations of a sidecar that are not answered.
const REGISTRATIONS: usize = 4;
/// Registrations of a stream within [`A_WHILE`]: an app that comes and goes costs every sidecar of the mesh a change each time.
const OFTEN: u32 = 60;
const A_WHILE: Duration = Duration::from_secs(60);
/// Bytes of one decision.
const DECISION: usize = 16 << 10;

/// What every session needs.
pub(super) struct Front {
    pub intake: Arc<Intake>,
    pub sidecars: Arc<Sidecars>,
    pub taps: Arc<Taps>,
    /// This service ends.
    pub ending: CancellationToken,
    /// Of what sidecars may not say.
    pub refused: Often,
}

/// A sidecar's own stream.
struct Session {
    front: Arc<Front>,
    requests: Streaming<ReportRequest>,
    registration: Registration,
    boot: u64,
    questions: mpsc::Receiver<Question>,
    wanted: watch::Receiver<Wanted>,
    unanswered: VecDeque<Question>,
    /// Batches that wait, in their order.
    taking: FuturesOrdered<BoxFuture<'static, Result<u64, Status>>>,
    /// Where this instance is registered for as long as the session is open; `None` where registrations are not taken.
    lease: Option<leases::Stream>,
    registering: FuturesOrdered<BoxFuture<'static, Registered>>,
    /// How many there were since.
    registrations: (Instant, u32),
}

enum Step {
    Ending,
    Taken(Result<u64, Status>),
    Registered(Registered),
    Asked(Question),
    Wanted,
    Request(Box<Result<ReportRequest, Status>>),
    /// By the sidecar.
    Ended,
}

/// Hears who the sidecar is, and begins its stream.
pub(super) async fn begin(
    front: Arc<Front>,
    leases: Option<&Leases>,
    peer: &Peer,
    mut requests: Streaming<ReportRequest>,
) -> Result<ReportStream, Status> {
    let service =
        peer.id.service_name().map(|name| name.as_str()).filter(|name| !name.starts_with(control_plane::PREFIX));
    let Some(service) = service else {
        return Err(Status::permission_denied(format!("{} has no sidecar that decides about calls", peer.id)));
    };
    let first = match tokio::time::timeout(OPENING, requests.message()).await {
        Ok(first) => first?.and_then(|first| first.request),
        Err(_) => return Err(Status::deadline_exceeded("no hello came")),
    };
    let Some(Request::Hello(Hello { instance, boot })) = first else {
        return Err(Status::invalid_argument("the first request must be hello"));
    };
    if instance.is_empty() || instance.chars().count() > INSTANCE || instance.contains(char::is_control) {
        return Err(Status::invalid_argument(
            "the name of the instance must have 1 to 256 characters, none of control",
        ));
    }
    let (registration, questions) = front.sidecars.register(service.into(), instance.into())?;
    let sidecar = &registration.sidecar;
    let lease = leases.map(|it| it.stream(Arc::clone(&sidecar.service), Arc::clone(&sidecar.instance), boot));
    let wanted = front.taps.wanted();
    let session = Session {
        front,
        wanted,
        requests,
        registration,
        boot,
        questions,
        unanswered: VecDeque::new(),
        taking: FuturesOrdered::new(),
        lease,
        registering: FuturesOrdered::new(),
        registrations: (Instant::now(), 0),
    };
    Ok(Box::pin(futures_util::stream::unfold(Some(session), |session| async move {
        let mut session = session?;
        match session.next().await {
            Ok(response) => Some((Ok(ReportResponse { response: Some(response) }), Some(session))),
            Err(Some(status)) => Some((Err(status), None)),
            Err(None) => None,
        }
    })))
}

impl Session {
    /// The next message, or how the stream ends: with a status, or well.
    async fn next(&mut self) -> Result<Response, Option<Status>> {
        loop {
            let Self { front, requests, questions, wanted, taking, registering, .. } = &mut *self;
            let step = tokio::select! {
                () = front.ending.cancelled() => Step::Ending,
                Some(taken) = taking.next() => Step::Taken(taken),
                Some(registered) = registering.next() => Step::Registered(registered),
                Some(question) = questions.recv() => Step::Asked(question),
                Ok(()) = wanted.changed() => Step::Wanted,
                request = requests.next() => request.map_or(Step::Ended, |request| Step::Request(request.into())),
            };
            match step {
                Step::Ending | Step::Ended => return Err(None),
                Step::Taken(taken) => {
                    let sequence = taken.map_err(Some)?;
                    return Ok(Response::Taken(FlowsTaken { sequence }));
                }
                Step::Registered(registered) => return Ok(Response::Registered(registered)),
                Step::Asked(question) => return Ok(Response::Find(self.ask(question))),
                Step::Wanted => return Ok(Response::Taps(self.wanted.borrow_and_update().clone())),
                Step::Request(request) => match request.map_err(Some)?.request {
                    Some(Request::Flows(batch)) => self.take(batch).map_err(Some)?,
                    Some(Request::Found(found)) => self.answer(found),
                    Some(Request::Hello(_)) => {
                        return Err(Some(Status::invalid_argument("hello comes once, and first")));
                    }
                    Some(Request::Tapped(tapped)) => self.front.taps.told(&self.registration.sidecar, tapped),
                    Some(Request::Register(register)) => self.register(register).map_err(Some)?,
                    // A newer sidecar says something that is not known here.
                    None => {}
                },
            }
        }
    }

    fn take(&mut self, FlowBatch { sequence, flows }: FlowBatch) -> Result<(), Status> {
        if sequence == 0 {
            return Err(Status::invalid_argument("batches are counted from 1 on"));
        }
        if self.taking.len() >= BATCHES {
            return Err(Status::resource_exhausted("too many flows wait to be written: send them again later"));
        }
        let sidecar = &self.registration.sidecar;
        let Accepted { flows, dropped } = accept(&sidecar.service, flows);
        if dropped > 0 {
            self.front.refused.warn(|others| {
                let (service, instance) = (&*sidecar.service, &*sidecar.instance);
                tracing::warn!(service, instance, dropped, others, "a sidecar reported flows that it may not report");
            });
        }
        if flows.is_empty() {
            // Nothing to write and nothing to count twice; acknowledged in its place.
            self.taking.push_back(std::future::ready(Ok(sequence)).boxed());
            return Ok(());
        }
        let at = clock::unix_seconds();
        if flows.iter().any(|flow| flow.service == *sidecar.service) {
            sidecar.was_called(at);
        }
        let from = (&sidecar.service, &sidecar.instance);
        let done = self.front.intake.take(from, (self.boot, sequence), at, flows)?;
        let ending = || Err(Status::unavailable("this policy service ends: send it again"));
        self.taking.push_back(done.map(move |done| done.unwrap_or_else(|_| ending()).map(|()| sequence)).boxed());
        Ok(())
    }

    fn register(&mut self, register: Register) -> Result<(), Status> {
        let Some(lease) = &self.lease else { return Ok(()) };
        if self.registering.len() >= REGISTRATIONS {
            return Err(Status::resource_exhausted("too many registrations wait to be written: register again later"));
        }
        let (since, count) = &mut self.registrations;
        if since.elapsed() > A_WHILE {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        // Who leaves is not kept from it.
        if *count > OFTEN && !register.address.is_empty() {
            let problem = "registered too often within a minute: register again later".to_owned();
            let refused = Registered { sequence: register.sequence, problem, ..Registered::default() };
            self.registering.push_back(std::future::ready(refused).boxed());
        } else {
            self.registering.push_back(lease.register(register).boxed());
        }
        Ok(())
    }

    fn ask(&mut self, question: Question) -> Find {
        self.unanswered.retain(|question| !question.answer.is_closed());
        if self.unanswered.len() >= UNANSWERED {
            self.unanswered.pop_front();
        }
        let find = Find { id: question.id, request_id: question.request_id.as_ref().to_owned() };
        self.unanswered.push_back(question);
        find
    }

    fn answer(&mut self, Found { id, decision }: Found) {
        let place = self.unanswered.iter().position(|question| question.id == id);
        // Too late, or never asked for.
        let Some(question) = place.and_then(|place| self.unanswered.remove(place)) else { return };
        let sidecar = &self.registration.sidecar;
        let known = decision.is_some();
        let decision = decision.filter(|decision| is_own(&sidecar.service, &question.request_id, decision));
        if known && decision.is_none() {
            self.front.refused.warn(|others| {
                let (service, instance) = (&*sidecar.service, &*sidecar.instance);
                tracing::warn!(service, instance, others, "a sidecar told a decision that it cannot have made");
            });
        }
        let instance = sidecar.instance.as_ref().to_owned();
        // Room for it there is; who asked may have gone.
        let _ = question.answer.try_send(decision.map(|decision| RecentDecision { instance, ..decision }));
    }
}

/// Whether a sidecar of `service` can have made that decision, on that request.
fn is_own(service: &str, request_id: &str, decision: &RecentDecision) -> bool {
    let own = match decision.direction.as_str() {
        "inbound" => &decision.service,
        "outbound" => &decision.caller,
        _ => return false,
    };
    own == service && decision.request_id == request_id && decision.encoded_len() <= DECISION
}
