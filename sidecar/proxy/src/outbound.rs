//! A call of the app to another service: one page, the decisions in the order of `docs/life-of-a-call.md`.

use std::sync::Arc;

use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use mesh_identity::clock;
use sidecar_core::{
    Reason, Refusal,
    outbound::{self, CallFor, Head, Stop, Verdict},
};

use crate::{
    body::CallBody,
    call::{Call, Facts},
    forward::{self, Failed},
    headers::{self, named},
    lookups,
    metrics::Direction,
    open::{OpenCall, Question},
    pool::Target,
    tenants::{Answered, TenantRef},
    worker::Worker,
};

/// Accounts for the call; cannot fail. What is for this sidecar itself is no call of the mesh.
pub async fn serve(worker: Arc<Worker>, request: Request<Incoming>) -> Response<CallBody> {
    if lookups::are_meant(authority(&request)) {
        return lookups::serve(worker.lookups.clone(), request).await;
    }
    let named = service_named(&request);
    let mut facts = Facts::of(&request, named, Arc::clone(&worker.service), headers::new_request_id());
    let tenant = request.headers().get(&headers::TENANT_ID).or_else(|| request.headers().get(&headers::TENANT_HOST));
    facts.tenant = tenant.cloned();
    let mut call = Call::start(Direction::Outbound, &worker, facts);
    match handle(&worker, request, &mut call).await {
        Ok(response) => call.follow(response),
        Err(refusal) => call.refuse(&refusal),
    }
}

async fn handle(
    worker: &Arc<Worker>,
    request: Request<Incoming>,
    call: &mut Call,
) -> Result<Response<RecvStream>, Refusal> {
    forward::refuse_tunnels(&request)?;
    let state = worker.live.outbound();
    let mut verdict = decide(worker, &state, &request).await?;
    call.passes(None);
    call.deadline = forward::deadline(request.headers());
    let question = Question::Outbound { service: Arc::clone(&call.facts.service) };
    call.place = Some(worker.open.enter(OpenCall { line: Arc::clone(&call.line), deadline: call.deadline, question }));
    let mut request = prepare(worker, &verdict, request, call)?;
    let mut unreachable = Refusal::new(Reason::NoEndpoint, "no instance is left to try");
    // Nothing was sent whenever this goes round: another instance may still answer.
    while let Some(endpoint) = verdict.candidates.next(now()) {
        let target = Target::Sidecar(endpoint.address, verdict.destination.service().clone());
        let (slot, began) = (endpoint.load.start(), now());
        match forward::attempt(worker, &target, request, call).await {
            Ok(response) => {
                endpoint.load.connected();
                endpoint.load.observe(now().saturating_sub(began), now());
                call.slot = Some(slot);
                return Ok(response);
            }
            Err(Failed::Final(refusal)) => return Err(own_fault(worker, refusal)),
            Err(Failed::Unreachable(unsent, refusal)) => {
                endpoint.load.connect_failed(now());
                (request, unreachable) = (*unsent, refusal);
            }
        }
    }
    Err(own_fault(worker, unreachable))
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
    request: &Request<Incoming>,
) -> Result<Verdict<'s, TenantRef>, Refusal> {
    let head = Head {
        authority: authority(request),
        tenant_ids: named(request.headers(), &headers::TENANT_ID),
        tenant_hosts: named(request.headers(), &headers::TENANT_HOST),
    };
    let (tenants, serving) = (&worker.live.tenants, |tenant: &str| worker.live.in_flight.contains(tenant));
    match outbound::decide(state, tenants, &head, serving, false) {
        Ok(verdict) => Ok(verdict),
        Err(Stop::Refused(refusal)) => Err(refusal),
        Err(Stop::Resolve(wanted)) => {
            // Boxed: it is rare, and every call's future would otherwise have room for it.
            let resolved = Box::pin(tenants.resolve(&wanted));
            let answer = forward::before(forward::deadline(request.headers()), resolved).await?;
            Ok(outbound::decide(state, &Answered { tenants, answer: Some(&answer) }, &head, serving, true)?)
        }
    }
}

/// The request as the callee's sidecar wants it: nothing of the app's that belongs to the mesh, a token, the tenant.
fn prepare(
    worker: &Worker,
    verdict: &Verdict<'_, TenantRef>,
    mut request: Request<Incoming>,
    call: &Call,
) -> Result<Request<Incoming>, Refusal> {
    let service = verdict.destination.service();
    let token = worker.live.minting.header(service.as_str(), clock::unix_seconds());
    let headers = request.headers_mut();
    headers::strip_reserved(headers);
    headers.insert(headers::ASAP_TOKEN, token);
    name_tenant(headers, &verdict.tenant);
    headers.insert(headers::REQUEST_ID, call.facts.request_id.clone());
    let authority = http::uri::Authority::from_maybe_shared(service.to_string())
        .map_err(|_| Refusal::new(Reason::ServiceUnknown, "the destination's name is no authority"))?;
    *request.uri_mut() = headers::redirect(request.uri(), http::uri::Scheme::HTTPS, authority);
    Ok(request)
}

fn name_tenant(headers: &mut HeaderMap, tenant: &CallFor<TenantRef>) {
    if let Some(Ok(id)) = tenant.id().map(HeaderValue::from_str) {
        headers.insert(headers::TENANT_ID, id);
    }
    if let Some(position) = tenant.position()
        && let Ok(revision) = HeaderValue::try_from(position.to_string())
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

fn now() -> u64 {
    u64::try_from(clock::since_epoch().as_nanos()).unwrap_or(u64::MAX)
}
