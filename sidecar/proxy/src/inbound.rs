//! A call from another sidecar, or from outside of the mesh, to the app: one page, the decisions in the order of `docs/life-of-a-call.md`.

use std::sync::Arc;

use h2::RecvStream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use mesh_identity::clock::{self, Moment};
use sidecar_core::{
    Lookup, Reason, Refusal, Token, Transaction,
    inbound::{self, Head, Stop, Verdict, Waited},
};
use tokio::time::timeout;

use crate::{
    body::CallBody,
    call::{Call, Facts},
    caller::Caller,
    forward, headers,
    in_flight::Serving,
    live::FRESHNESS_WAIT,
    metrics::Direction,
    open::Question,
    pool::Target,
    said::{Said, Stale},
    tenants::{Answered, TenantRef},
    worker::Worker,
};

/// Accounts for the call; cannot fail.
pub async fn serve(worker: Arc<Worker>, caller: Arc<Caller>, request: Request<Incoming>) -> Response<CallBody> {
    let (started, said) = (Moment::now(), Said::of(request.headers()));
    // Ids of the mesh's own calls go on; nobody outside chooses what its operators look for.
    let id = if caller.is_outside() { None } else { said.foreign_request_id() };
    let id = id.unwrap_or_else(|| headers::new_request_id(started.since_epoch));
    let facts = Facts::of(&request, &said, (Arc::clone(&worker.service), Arc::clone(&caller.name)), id);
    let mut call = Call::start(Direction::Inbound, &worker, started, facts);
    call.watch(request.headers());
    let answer = match admit(&worker, &caller, &request, &said, &mut call).await {
        Ok(admitted) => send(&worker, &caller, request, admitted, &mut call).await,
        Err(refusal) => Err(refusal),
    };
    match answer {
        Ok(response) => call.follow(response),
        Err(refusal) => call.refuse(&refusal),
    }
}

/// A call that may be made.
struct Admitted {
    /// Whose context the app is handed.
    tenant: Option<TenantRef>,
    /// What its transaction token proved, where a rule looked at it.
    transaction: Option<Transaction>,
    /// What of the head is not for the app.
    stale: Stale,
    /// What held the token is not for it either.
    token: HeaderName,
}

/// `None`: nothing was looked at, and nothing is changed.
async fn admit(
    worker: &Arc<Worker>,
    caller: &Arc<Caller>,
    request: &Request<Incoming>,
    said: &Said<'_>,
    call: &mut Call,
) -> Result<Option<Admitted>, Refusal> {
    forward::refuse_tunnels(request)?;
    if !worker.live.config.checks() {
        return Ok(None);
    }
    caller.check()?;
    let (token, held_by) = said.token(request.headers());
    let verdict = decide(worker, caller, request.uri().path(), said, token, call).await?;
    let tenant = verdict.tenant.as_ref().map(|tenant| tenant.id());
    let limits = &worker.live.limits;
    call.admission =
        Some(limits.admit(&worker.seats, tenant, &caller.name, request.uri().path(), call.now().instant)?);
    call.passes(verdict.audited.as_ref());
    call.deadline = forward::deadline(said);
    let stale = said.stale(tenant);
    Ok(Some(Admitted { tenant: verdict.tenant, transaction: verdict.transaction, stale, token: held_by }))
}

/// To the app.
async fn send(
    worker: &Arc<Worker>,
    caller: &Arc<Caller>,
    mut request: Request<Incoming>,
    admitted: Option<Admitted>,
    call: &mut Call,
) -> Result<Response<RecvStream>, Refusal> {
    if let Some(admitted) = admitted {
        let token = rewrite(worker, request.headers_mut(), caller, &admitted, call);
        let question = Question::Inbound { caller: Arc::clone(caller), transaction: admitted.transaction, token };
        call.enter(&worker.open, question);
    }
    let Some(app) = worker.live.config.app.clone() else {
        return Err(Refusal::new(Reason::UpstreamConnect, format!("service {} has no app to call", worker.service)));
    };
    *request.uri_mut() = headers::redirect(request.uri(), http::uri::Scheme::HTTP, worker.authority.clone());
    let answered = forward::to_app(worker, &Target::App(app), request, call).await;
    if let (Some(admission), Ok(response)) = (&mut call.admission, &answered) {
        admission.answered(response.headers());
    }
    if matches!(&answered, Err(refusal) if refusal.reason == Reason::UpstreamConnect) {
        worker.live.registration.app_was_unreachable();
    }
    answered
}

/// Decides, and where the replica is behind what the caller has seen, waits for it once.
async fn decide(
    worker: &Worker,
    caller: &Caller,
    path: &str,
    said: &Said<'_>,
    token: Token<'_>,
    call: &mut Call,
) -> Result<Verdict<TenantRef>, Refusal> {
    if caller.is_outside() {
        have_key(worker, caller, said, token).await?;
        call.has_waited();
    }
    let head = Head {
        path,
        token,
        tenant: said.tenant_id.named(),
        // Of what another sidecar saw; whoever is outside has no replica, and waits for none.
        tenant_revision: if caller.is_outside() { None } else { said.revision() },
        txn_token: said.txn_token.named(),
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
                call.has_waited();
            }
            Err(Stop::Resolve(wanted)) => {
                waited.for_tenant = true;
                let resolved = Box::pin(worker.live.tenants.resolve(&wanted));
                answer = Some(forward::before(forward::deadline(said), resolved).await?);
                call.has_waited();
            }
        }
    }
}

/// A caller from outside whose key is not known waits for its key repository, no longer than its deadline. Whatever comes
/// of it, the decision follows.
async fn have_key(worker: &Worker, caller: &Caller, said: &Said<'_>, token: Token<'_>) -> Result<(), Refusal> {
    let (Token::One(token), Some(client), now) = (token, worker.live.outside.get(&caller.name), clock::unix_seconds())
    else {
        return Ok(());
    };
    if worker.credentials().remembers(&caller.name, token, now) {
        return Ok(());
    }
    let Ok(token) = std::str::from_utf8(token) else { return Ok(()) };
    // Boxed: it is rare, and every call's future would otherwise have room for it.
    let known = Box::pin(client.wait_for_key(&worker.live.identity, token, now));
    forward::before(forward::deadline(said), known).await
}

fn ask(
    worker: &Worker,
    caller: &Caller,
    head: &Head<'_>,
    waited: Waited,
    answer: Option<&Lookup<TenantRef>>,
    call: &mut Call,
) -> Result<Verdict<TenantRef>, Stop> {
    let (state, now) = (worker.live.inbound(), call.now().unix_seconds());
    let tenants = Answered { tenants: &worker.live.tenants, answer };
    let decision = inbound::decide(&state, &tenants, &mut *worker.credentials(), caller.peer(), head, now, waited);
    if let Ok(Verdict { tenant: Some(tenant), .. }) = &decision {
        call.is_of(Some(tenant.id()));
    }
    let decision = decision.and_then(|verdict| worker.live.limits.rate(&state, &caller.name, verdict));
    call.decided_on(&state, &decision);
    call.serving = decision.as_ref().ok().and_then(|verdict| serving(worker, &state, verdict));
    decision
}

/// What the app is handed instead of what came over the wire (DESIGN §3). Comes back with what held the token.
fn rewrite(
    worker: &Worker,
    headers: &mut HeaderMap,
    caller: &Caller,
    admitted: &Admitted,
    call: &Call,
) -> Option<HeaderValue> {
    let token = headers.remove(&admitted.token);
    admitted.stale.strip_with_host(headers);
    if let Some(tenant) = &admitted.tenant {
        if let (false, Ok(id)) = (admitted.stale.keeps_tenant(), HeaderValue::from_str(tenant.id())) {
            headers.insert(headers::TENANT_ID, id);
        }
        if let Some(context) = worker.ready.context(tenant) {
            headers.insert(headers::TENANT_CONTEXT, context);
        }
    }
    headers.insert(headers::CALLER, caller.header.clone());
    headers.insert(headers::REQUEST_ID, call.facts().request_id.clone());
    call.continue_trace(headers);
    token
}

/// Only services that may not originate calls pay for the count.
fn serving(worker: &Worker, state: &inbound::State, verdict: &Verdict<TenantRef>) -> Option<Serving> {
    let tenant = verdict.tenant.as_ref()?;
    let originates = state.policy.as_ref().is_some_and(|policy| policy.originates());
    (!originates).then(|| worker.live.in_flight.enter(tenant.id()))
}
