//! A call from another sidecar, or from outside of the mesh, to the app: one page, the decisions in the order of `docs/life-of-a-call.md`.

use std::sync::Arc;

use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use mesh_identity::clock;
use sidecar_core::{
    Lookup, Reason, Refusal, Token,
    inbound::{self, Head, Stop, Verdict, Waited},
};
use tokio::time::timeout;

use crate::{
    body::CallBody,
    call::{Call, Facts},
    caller::Caller,
    forward::{self, Failed},
    headers::{self, named},
    in_flight::Serving,
    live::FRESHNESS_WAIT,
    metrics::Direction,
    open::{OpenCall, Question},
    pool::Target,
    tenants::{Answered, TenantRef},
    worker::Worker,
};

/// Accounts for the call; cannot fail.
pub async fn serve(worker: Arc<Worker>, caller: Arc<Caller>, request: Request<Incoming>) -> Response<CallBody> {
    // Ids of the mesh's own calls go on; nobody outside chooses what its operators look for.
    let id = if caller.is_outside() { None } else { headers::foreign_request_id(request.headers()) };
    let id = id.unwrap_or_else(headers::new_request_id);
    let mut facts = Facts::of(&request, Arc::clone(&worker.service), Arc::clone(&caller.name), id);
    facts.tenant = request.headers().get(&headers::TENANT_ID).cloned();
    let mut call = Call::start(Direction::Inbound, &worker, facts);
    match handle(&worker, &caller, request, &mut call).await {
        Ok(response) => call.follow(response),
        Err(refusal) => call.refuse(&refusal),
    }
}

async fn handle(
    worker: &Arc<Worker>,
    caller: &Arc<Caller>,
    mut request: Request<Incoming>,
    call: &mut Call,
) -> Result<Response<RecvStream>, Refusal> {
    forward::refuse_tunnels(&request)?;
    caller.check()?;
    let verdict = decide(worker, caller, &request, call).await?;
    call.passes(verdict.audited.as_ref());
    call.deadline = forward::deadline(request.headers());
    let token = call.token_header.take().and_then(|held_the_token| request.headers_mut().remove(held_the_token));
    call.place = Some(worker.open.enter(OpenCall {
        line: Arc::clone(&call.line),
        deadline: call.deadline,
        question: question(caller, call, &verdict, token),
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
    if caller.is_outside() {
        have_key(worker, caller, request.headers(), token).await?;
    }
    let head = Head {
        path: request.uri().path(),
        token,
        tenant: named(request.headers(), &headers::TENANT_ID),
        // Of what another sidecar saw; whoever is outside has no replica, and waits for none.
        tenant_revision: if caller.is_outside() { None } else { revision(request.headers()) },
        txn_token: named(request.headers(), &headers::TXN_TOKEN),
    };
    let (mut waited, mut answer) = (Waited::default(), None);
    // Each thing is waited for once. Boxed: it is rare, and every call's future would otherwise have room for it.
    loop {
        match ask(worker, caller, &head, waited, answer.as_ref(), call) {
            Ok(verdict) => return Ok(verdict),
            Err(Stop::Refused(refusal)) => return Err(refusal),
            Err(Stop::WaitFor(position)) => {
                waited.for_revision = true;
                let _late = Box::pin(timeout(FRESHNESS_WAIT, worker.live.tenants.wait_for(position))).await;
            }
            Err(Stop::Resolve(wanted)) => {
                waited.for_tenant = true;
                let resolved = Box::pin(worker.live.tenants.resolve(&wanted));
                answer = Some(forward::before(forward::deadline(request.headers()), resolved).await?);
            }
        }
    }
}

/// A caller from outside whose key is not known waits for its key repository, no longer than its deadline. Whatever comes
/// of it, the decision follows.
async fn have_key(worker: &Worker, caller: &Caller, headers: &HeaderMap, token: Token<'_>) -> Result<(), Refusal> {
    let (Token::One(token), Some(client), now) = (token, worker.live.outside.get(&caller.name), clock::unix_seconds())
    else {
        return Ok(());
    };
    if worker.credentials().remembers(&caller.name, token, now) {
        return Ok(());
    }
    // Boxed: it is rare, and every call's future would otherwise have room for it.
    let known = Box::pin(client.wait_for_key(&worker.live.identity, token, now));
    forward::before(forward::deadline(headers), known).await
}

fn ask(
    worker: &Worker,
    caller: &Caller,
    head: &Head<'_>,
    waited: Waited,
    answer: Option<&Lookup<TenantRef>>,
    call: &mut Call,
) -> Result<Verdict<TenantRef>, Stop> {
    let (state, now) = (worker.live.inbound(), clock::unix_seconds());
    let tenants = Answered { tenants: &worker.live.tenants, answer };
    let decision = inbound::decide(&state, &tenants, &mut *worker.credentials(), caller.peer(), head, now, waited);
    call.decided_on(&state, &decision);
    decision
}

/// What the app is handed instead of what came over the wire (DESIGN §3).
fn rewrite(headers: &mut HeaderMap, caller: &Caller, verdict: &Verdict<TenantRef>, call: &Call) {
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

fn question(caller: &Arc<Caller>, call: &Call, verdict: &Verdict<TenantRef>, token: Option<HeaderValue>) -> Question {
    Question::Inbound {
        caller: Arc::clone(caller),
        uri: call.facts.uri.clone(),
        tenant: call.facts.tenant.clone(),
        transaction: verdict.transaction,
        token,
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
