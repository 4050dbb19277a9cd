//! A call of the app to another service: one page, the decisions in the order of `docs/life-of-a-call.md`; and one for the
//! attempts.

mod hedge;
mod tried;

use std::sync::Arc;

use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use mesh_identity::clock::Moment;
use sidecar_core::{
    Named, Reason, Refusal,
    balance::Endpoint,
    outbound::{self, CallFor, Head, Stop, Verdict},
    retry::{Ended, Next, Retries, Why},
};

use self::tried::Tried;
use crate::{
    body::CallBody,
    call::{Call, Facts},
    forward::{self, Outgoing},
    headers,
    health::{now, ns},
    lookups,
    metrics::Direction,
    open::Question,
    pool::Target,
    said::{Said, Stale},
    tenants::{Answered, TenantRef},
    worker::Worker,
};

/// Accounts for the call; cannot fail. What is for this sidecar itself is no call of the mesh.
pub async fn serve(worker: Arc<Worker>, request: Request<Incoming>) -> Response<CallBody> {
    if lookups::are_meant(authority(&request)) {
        return lookups::serve(&worker.lookups, request).await;
    }
    let (started, said) = (Moment::now(), Said::of(request.headers()));
    let parties = (service_named(&request), Arc::clone(&worker.service));
    let mut facts = Facts::of(&request, &said, parties, headers::new_request_id(started.since_epoch));
    facts.tenant = facts.tenant.or_else(|| said.tenant_host.first().cloned());
    let mut call = Call::start(Direction::Outbound, &worker, started, facts);
    call.watch(request.headers());
    let state = worker.live.outbound();
    let answer = match admit(&worker, &state, &request, &said, &mut call).await {
        Ok(admitted) => handle(&worker, request, admitted, &mut call).await,
        Err(refusal) => Err(refusal),
    };
    match answer {
        Ok(response) => call.follow(response),
        Err(refusal) => call.refuse(&refusal),
    }
}

/// A call that may be made.
struct Admitted<'s> {
    verdict: Verdict<'s, TenantRef>,
    retries: Retries<'s>,
    /// What of the head is the app's and not to be believed.
    stale: Stale,
}

async fn admit<'s>(
    worker: &Arc<Worker>,
    state: &'s outbound::State,
    request: &Request<Incoming>,
    said: &Said<'_>,
    call: &mut Call,
) -> Result<Admitted<'s>, Refusal> {
    forward::refuse_tunnels(request)?;
    let verdict = decide(worker, state, authority(request), said, call).await?;
    call.is_of(verdict.tenant.id());
    worker.live.limits.spare_memory()?;
    call.passes(None);
    let (route, memory) = (verdict.destination.route(), verdict.destination.memory());
    let retries = Retries::new(route, memory, request.uri().path(), ns(call.now()));
    call.deadline = forward::deadline_within(said, retries.method().timeout, call);
    call.enter(&worker.open, Question::Outbound);
    let stale = said.stale(verdict.tenant.id());
    Ok(Admitted { verdict, retries, stale })
}

async fn handle(
    worker: &Arc<Worker>,
    request: Request<Incoming>,
    admitted: Admitted<'_>,
    call: &mut Call,
) -> Result<Response<RecvStream>, Refusal> {
    let Admitted { verdict, retries, stale } = admitted;
    let outgoing =
        Outgoing::new(prepare(worker, &verdict, request, stale, call)?, verdict.destination.route().replay_bytes);
    send(worker, verdict, retries, outgoing, call).await.map_err(|refusal| own_fault(worker, refusal))
}

/// To one instance after the other, until there is an answer to hand on, or nothing more may be tried.
async fn send(
    worker: &Worker,
    mut verdict: Verdict<'_, TenantRef>,
    mut retries: Retries<'_>,
    mut outgoing: Outgoing,
    call: &mut Call,
) -> Result<Response<RecvStream>, Refusal> {
    let nobody = || Refusal::new(Reason::NoEndpoint, "no instance is left to try");
    let mut endpoint = verdict.candidates.next(ns(call.now())).ok_or_else(nobody)?;
    loop {
        let tried = attempt(worker, &mut verdict, endpoint, &mut outgoing, &mut retries, call).await;
        let next = next(worker, &tried, &outgoing, &mut retries, call);
        let another = match next {
            Next::Stop(_) => None,
            Next::Elsewhere => verdict.candidates.next(now()),
            Next::After(_) => verdict.candidates.next(now()).or(Some(endpoint)),
        };
        endpoint = match another {
            Some(another) => another,
            None => return tried.hand_on(outgoing, call),
        };
        worker.live.metrics.retries().sent_again(tried.ended);
        // What has failed is reset before it is waited.
        drop(tried);
        if let Next::After(pause) = next {
            forward::until_over(call, tokio::time::sleep(pause)).await?;
        }
        call.has_waited();
    }
}

/// At one instance, and where the `Route` says so at others beside it.
async fn attempt(
    worker: &Worker,
    verdict: &mut Verdict<'_, TenantRef>,
    endpoint: &Endpoint,
    outgoing: &mut Outgoing,
    retries: &mut Retries<'_>,
    call: &Call,
) -> Tried {
    let service = verdict.destination.service();
    if let Some(after) = retries.hedge_after(call.facts().uri.path()) {
        // Boxed: it is rare, and every call's future would otherwise have room for it.
        let to = (worker, service);
        return Box::pin(hedge::race(to, endpoint, &mut verdict.candidates, outgoing, retries, after, call)).await;
    }
    let target = Target::Sidecar(endpoint.address, service.clone());
    tried::attempt(worker, endpoint, &target, outgoing, retries, call).await
}

/// What the core says of another attempt. Nothing is asked where there is an answer.
fn next(worker: &Worker, tried: &Tried, outgoing: &Outgoing, retries: &mut Retries<'_>, call: &Call) -> Next {
    if tried.ended == Ended::ForGood {
        return Next::Stop(Why::NotRetryable);
    }
    let left = call.deadline.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
    let next = retries.next(tried.ended, outgoing.upload.is_kept(), left, now(), rand::random());
    if let Next::Stop(why) = next {
        worker.live.metrics.retries().withheld(why);
    }
    next
}

/// Nobody takes calls of a service that is revoked: then that is what its app has to know, and not who refused.
fn own_fault(worker: &Worker, refusal: Refusal) -> Refusal {
    let (revoked, svid) = (worker.live.identity.revoked(), worker.live.identity.svid());
    let own = revoked.services.contains(&*worker.service) || revoked.serials.contains(svid.serial());
    if own && refusal.reason == Reason::UpstreamConnect {
        let message = format!("the identity of service {} itself is revoked: nobody takes its calls", worker.service);
        return Refusal::new(Reason::UpstreamConnect, message);
    }
    refusal
}

/// Decides, waits once where the tenant is not held, and decides again.
async fn decide<'s>(
    worker: &Worker,
    state: &'s outbound::State,
    authority: &str,
    said: &Said<'_>,
    call: &mut Call,
) -> Result<Verdict<'s, TenantRef>, Refusal> {
    let unchecked = !worker.live.config.checks();
    let ids = if unchecked { Named::None } else { said.tenant_id.named() };
    let head = Head { authority, tenant_ids: ids, tenant_hosts: said.tenant_host.named() };
    let (tenants, serving) = (&worker.live.tenants, |tenant: &str| worker.live.in_flight.contains(tenant));
    match outbound::decide(state, tenants, &head, serving, false) {
        Ok(verdict) => Ok(verdict),
        Err(Stop::Refused(refusal)) => Err(refusal),
        Err(Stop::Resolve(wanted)) => {
            // Boxed: it is rare, and every call's future would otherwise have room for it.
            let resolved = Box::pin(tenants.resolve(&wanted));
            let answer = forward::before(forward::deadline(said), resolved).await?;
            call.has_waited();
            Ok(outbound::decide(state, &Answered { tenants, answer: Some(&answer) }, &head, serving, true)?)
        }
    }
}

/// The request as the callee's sidecar wants it: nothing of the app's that belongs to the mesh, a token, the tenant.
fn prepare(
    worker: &Worker,
    verdict: &Verdict<'_, TenantRef>,
    mut request: Request<Incoming>,
    stale: Stale,
    call: &Call,
) -> Result<Request<Incoming>, Refusal> {
    let service = verdict.destination.service();
    if worker.live.config.checks() {
        let own = |token: &HeaderValue| worker.ready.token(token);
        let token = worker.live.minting.look_at(service.as_str(), call.now().unix_seconds(), own);
        let headers = request.headers_mut();
        stale.strip(headers);
        name_tenant(worker, headers, stale, &verdict.tenant);
        headers.insert(headers::ASAP_TOKEN, token);
        headers.insert(headers::REQUEST_ID, call.facts().request_id.clone());
        call.continue_trace(headers);
    }
    // What the app wrote, mostly: then nothing is made anew.
    let authority = match request.uri().authority().filter(|authority| *authority == service.as_str()) {
        Some(authority) => authority.clone(),
        None => http::uri::Authority::from_maybe_shared(service.to_string())
            .map_err(|_| Refusal::new(Reason::ServiceUnknown, "the destination's name is no authority"))?,
    };
    *request.uri_mut() = headers::redirect(request.uri(), http::uri::Scheme::HTTPS, authority);
    Ok(request)
}

/// Whose call it is; where the app named the tenant by its id, that is there already.
fn name_tenant(worker: &Worker, headers: &mut HeaderMap, stale: Stale, tenant: &CallFor<TenantRef>) {
    if stale.keeps_tenant() {
        if let Some(id) = headers.get_mut(&headers::TENANT_ID) {
            id.set_sensitive(true);
        }
    } else if let Some(Ok(id)) = tenant.id().map(HeaderValue::from_str) {
        headers.insert(headers::TENANT_ID, headers::never_indexed(id));
    }
    if let CallFor::Tenant(tenant, position) = tenant
        && let Some(revision) = worker.ready.revision(tenant, *position)
    {
        headers.insert(headers::TENANT_REVISION, revision);
    }
}

/// `:authority`; hyper keeps it in the URI, and in `host` where a client sent that instead.
fn authority(request: &Request<Incoming>) -> &str {
    let host = || request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
    request.uri().authority().map(http::uri::Authority::as_str).or_else(host).unwrap_or_default()
}

/// The service as the app named it, for refusals before it is found.
fn service_named(request: &Request<Incoming>) -> Arc<str> {
    let authority = authority(request);
    authority.split(['.', ':']).next().unwrap_or_default().into()
}
