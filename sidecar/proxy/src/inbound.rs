//! A call from another sidecar to the app: one page, the decisions in the order of `docs/life-of-a-call.md`.

use std::sync::Arc;

use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use mesh_identity::{Peer, clock};
use sidecar_core::{
    Reason, Refusal,
    inbound::{self, Head, Stop, Verdict},
};
use tokio::time::timeout;

use crate::{
    body::CallBody,
    call::{Call, Facts},
    forward::{self, Failed},
    headers::{self, named},
    in_flight::Serving,
    live::FRESHNESS_WAIT,
    metrics::Direction,
    open::{OpenCall, Question},
    pool::Target,
    tenants::TenantRef,
    worker::Worker,
};

/// Whoever is at the other end of one accepted connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The peer's service; an operator is no service, and no token can be bound to it.
    pub service: Arc<str>,
    /// The same as a header value.
    pub header: HeaderValue,
}

impl Caller {
    /// Names the peer of a connection.
    #[must_use]
    pub fn new(peer: &Peer) -> Self {
        let service: Arc<str> = match (peer.id.service_name(), peer.id.operator_name()) {
            (Some(name), _) => name.as_str().into(),
            (None, name) => format!("operator/{}", name.unwrap_or_default()).into(),
        };
        let header = HeaderValue::from_str(&service).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { service, header }
    }

    fn peer(&self) -> sidecar_core::Peer<'_> {
        sidecar_core::Peer::Service(&self.service)
    }
}

/// Accounts for the call; cannot fail.
pub async fn serve(worker: Arc<Worker>, caller: Caller, request: Request<Incoming>) -> Response<CallBody> {
    let id = headers::foreign_request_id(request.headers()).unwrap_or_else(headers::new_request_id);
    let mut facts = Facts::of(&request, Arc::clone(&worker.service), Arc::clone(&caller.service), id);
    facts.tenant = request.headers().get(&headers::TENANT_ID).cloned();
    let mut call = Call::start(Direction::Inbound, &worker.live, facts);
    match handle(&worker, &caller, request, &mut call).await {
        Ok(response) => call.follow(response),
        Err(refusal) => call.refuse(&refusal),
    }
}

async fn handle(
    worker: &Arc<Worker>,
    caller: &Caller,
    mut request: Request<Incoming>,
    call: &mut Call,
) -> Result<Response<RecvStream>, Refusal> {
    forward::refuse_tunnels(&request)?;
    let verdict = decide(worker, caller, &request, call).await?;
    if let Some(refusal) = &verdict.audited {
        call.audited(refusal);
    }
    call.deadline = forward::deadline(request.headers());
    call.place = Some(worker.open.enter(OpenCall {
        line: Arc::clone(&call.line),
        deadline: call.deadline,
        question: question(caller, call, &verdict),
    }));
    call.serving = serving(worker, &verdict);
    rewrite(request.headers_mut(), caller, &verdict, call);
    let Some(app) = worker.live.config.app else {
        return Err(Refusal::new(Reason::UpstreamConnect, format!("service {} has no app to call", worker.service)));
    };
    *request.uri_mut() = headers::redirect(request.uri(), http::uri::Scheme::HTTP, worker.authority.clone());
    match forward::attempt(worker, &Target::App(app), request, call).await {
        Ok(response) => Ok(response),
        Err(Failed::Final(refusal) | Failed::Unreachable(_, refusal)) => Err(refusal),
    }
}

/// Decides, and where the replica is behind what the caller has seen, waits for it once.
async fn decide(
    worker: &Worker,
    caller: &Caller,
    request: &Request<Incoming>,
    call: &mut Call,
) -> Result<Verdict<TenantRef>, Refusal> {
    let (token, held_by) = headers::token(request.headers());
    call.token_header = Some(held_by);
    let head = Head {
        path: request.uri().path(),
        token,
        tenant: named(request.headers(), &headers::TENANT_ID),
        tenant_revision: revision(request.headers()),
        txn_token: named(request.headers(), &headers::TXN_TOKEN),
    };
    match ask(worker, caller, &head, false) {
        Ok(verdict) => Ok(verdict),
        Err(Stop::Refused(refusal)) => Err(refusal),
        Err(Stop::WaitFor(position)) => {
            let position = replica::Position { epoch: position.epoch, revision: position.revision };
            let _late = timeout(FRESHNESS_WAIT, worker.live.tenants.replica().wait_for(position)).await;
            match ask(worker, caller, &head, true) {
                Ok(verdict) => Ok(verdict),
                Err(Stop::Refused(refusal)) => Err(refusal),
                Err(Stop::WaitFor(position)) => {
                    Err(Refusal::new(Reason::TenantStale, format!("this replica has not reached {position}")))
                }
            }
        }
    }
}

fn ask(worker: &Worker, caller: &Caller, head: &Head<'_>, waited: bool) -> Result<Verdict<TenantRef>, Stop> {
    let state = worker.live.inbound();
    let now = clock::unix_seconds();
    inbound::decide(&state, &worker.live.tenants, &mut *worker.credentials(), caller.peer(), head, now, waited)
}

/// What the app is handed instead of what came over the wire (DESIGN §3).
fn rewrite(headers: &mut HeaderMap, caller: &Caller, verdict: &Verdict<TenantRef>, call: &mut Call) {
    if let Some(held_the_token) = call.token_header.take() {
        headers.remove(held_the_token);
    }
    headers::strip_reserved(headers);
    // `:authority` is the callee's name; another one in `host` is nobody's.
    headers.remove(http::header::HOST);
    if let Some(tenant) = &verdict.tenant {
        if let Ok(id) = HeaderValue::from_str(tenant.id()) {
            headers.insert(headers::TENANT_ID, id);
        }
        if let Some(context) = headers::binary(tenant.context()) {
            headers.insert(headers::TENANT_CONTEXT, context);
        }
    }
    headers.insert(headers::CALLER, caller.header.clone());
    headers.insert(headers::REQUEST_ID, call.facts.request_id.clone());
}

/// Only services that may not originate calls pay for the count.
fn serving(worker: &Worker, verdict: &Verdict<TenantRef>) -> Option<Serving> {
    let tenant = verdict.tenant.as_ref()?;
    let originates = worker.live.inbound().policy.as_ref().is_some_and(|policy| policy.originates());
    (!originates).then(|| worker.live.in_flight.enter(tenant.id()))
}

fn question(caller: &Caller, call: &Call, verdict: &Verdict<TenantRef>) -> Question {
    Question::Inbound {
        caller: Arc::clone(&caller.service),
        uri: call.facts.uri.clone(),
        tenant: call.facts.tenant.clone(),
        transaction: verdict.transaction,
    }
}

/// `Some("")` where it stands several times or is not text: that is no revision, and refused as such.
fn revision(headers: &HeaderMap) -> Option<&str> {
    match named(headers, &headers::TENANT_REVISION) {
        sidecar_core::Named::None => None,
        sidecar_core::Named::One(revision) => Some(revision),
        sidecar_core::Named::Many => Some(""),
    }
}
