//! What this sidecar answers its own app as authority `tcs.mesh`: `tenon.tcs.v1.TenantContexts`, from the tenants that it
//! holds, which are already no more than the app's service may see. With reflection.
//!
//! Nothing of it passes through the mesh: no header is read or set, and no other service is asked but the TCS, where the
//! sidecar holds tenants on demand.

use std::{sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_config::names::TenantId;
use prost::Message as _;
use sidecar_core::{Lookup, Position, Tenants as _, Wanted};
use tenon_proto::tcs::v1::{
    BatchGetTenantContextsRequest, BatchGetTenantContextsResponse, GetTenantContextRequest, GetTenantContextResponse,
    Revision, TenantContext, TenantKey, TenantResult,
    tenant_contexts_server::{TenantContexts, TenantContextsServer},
    tenant_key::By,
};
use tokio::time::timeout;
use tonic::{Code, Status, codegen::Service as _, service::Routes};

use crate::{
    body::CallBody,
    live::{FRESHNESS_WAIT, Live},
    metrics::Lookups,
    reflection::Reflection,
    tenants::{TenantMap, TenantRef},
};

/// The name under which an app finds it.
const AUTHORITY: &str = "tcs.mesh";
/// The most that is asked for at once.
const MOST_KEYS: usize = 1_000;
/// The longest request: as many hosts as there may be, of the longest.
const LARGEST_REQUEST_BYTES: usize = 512 << 10;
/// The longest host name (RFC 1035, section 2.3.4).
const LONGEST_HOST: usize = 253;
/// The longest that the TCS is asked, whatever happens there.
const ASKING: Duration = Duration::from_secs(3);

/// Whether a call of the app is for the sidecar itself. The port does not matter.
pub fn are_meant(authority: &str) -> bool {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => authority,
    };
    name.eq_ignore_ascii_case(AUTHORITY)
}

/// The service of `tcs.mesh`, ready to be cloned for each call.
pub fn routes(live: &Arc<Live>) -> Routes {
    let counters = Arc::clone(live.metrics.lookups());
    let server = TenantContextsServer::new(Server { tenants: live.tenants.clone(), counters });
    Routes::new(server.max_decoding_message_size(LARGEST_REQUEST_BYTES)).prepare()
}

/// Answers one call.
pub async fn serve(routes: &Routes, request: Request<Incoming>) -> Response<CallBody> {
    static REFLECTION: Reflection = Reflection::of(&["tenon.tcs.v1.TenantContexts"]);
    let mut routes = if Reflection::is_asked(&request) { REFLECTION.routes() } else { routes.clone() };
    let Ok(response) = routes.call(request).await;
    response.map(CallBody::own)
}

struct Server {
    tenants: TenantMap,
    counters: Arc<Lookups>,
}

#[tonic::async_trait]
impl TenantContexts for Server {
    async fn get(
        &self,
        request: tonic::Request<GetTenantContextRequest>,
    ) -> Result<tonic::Response<GetTenantContextResponse>, Status> {
        let GetTenantContextRequest { key, at_least } = request.into_inner();
        let answer = self.look_up(&[key.unwrap_or_default()], at_least).await.and_then(|(mut found, replica)| {
            let tenant = found.pop().flatten().ok_or_else(|| Status::not_found("no such tenant"))?;
            Ok(GetTenantContextResponse { tenant: Some(tenant), replica: Some(replica) })
        });
        self.counters.count("Get", answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
        answer.map(tonic::Response::new)
    }

    async fn batch_get(
        &self,
        request: tonic::Request<BatchGetTenantContextsRequest>,
    ) -> Result<tonic::Response<BatchGetTenantContextsResponse>, Status> {
        let BatchGetTenantContextsRequest { keys, at_least } = request.into_inner();
        let answer = self.look_up(&keys, at_least).await.map(|(found, replica)| {
            let results = found.into_iter().map(|tenant| TenantResult { tenant }).collect();
            BatchGetTenantContextsResponse { results, replica: Some(replica) }
        });
        self.counters.count("BatchGet", answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
        answer.map(tonic::Response::new)
    }
}

impl Server {
    /// What there is of each key, in their order, and what had been reached before it was looked up.
    async fn look_up(
        &self,
        keys: &[TenantKey],
        at_least: Option<Revision>,
    ) -> Result<(Vec<Option<TenantContext>>, Revision), Status> {
        if keys.len() > MOST_KEYS {
            return Err(Status::invalid_argument(format!("expected {MOST_KEYS} keys at most, not {}", keys.len())));
        }
        let wanted = keys.iter().map(wanted).collect::<Result<Vec<_>, Status>>()?;
        let at_least = at_least.map(|Revision { epoch, revision }| Position { epoch, revision });
        let replica = self.reached(at_least).await?;
        let mut answers: Vec<_> = wanted.iter().map(|wanted| self.tenants.look_up(wanted)).collect();
        let lacking = |answer: &Lookup<TenantRef>| match answer {
            Lookup::Found(tenant) => self.is_older(tenant, at_least),
            Lookup::Nobody => false,
            Lookup::NotHeld => true,
        };
        let missing: Vec<usize> = (0..answers.len()).filter(|index| lacking(&answers[*index])).collect();
        if !missing.is_empty() {
            let asked: Vec<_> = missing.iter().map(|index| wanted[*index].clone()).collect();
            let told = timeout(ASKING, self.tenants.resolve_all(&asked)).await.map_err(|_| unavailable())?;
            for (index, answer) in missing.into_iter().zip(told) {
                if lacking(&answer) {
                    return Err(unavailable());
                }
                answers[index] = answer;
            }
        }
        let found = answers.into_iter().map(|answer| answer.found().map(|tenant| context(&tenant)).transpose());
        Ok((found.collect::<Result<_, Status>>()?, replica))
    }

    /// What has been reached, once that is `at_least` what the app has seen.
    async fn reached(&self, at_least: Option<Position>) -> Result<Revision, Status> {
        if at_least > self.tenants.position()
            && let Some(at_least) = at_least
        {
            let _late = timeout(FRESHNESS_WAIT, self.tenants.wait_for(at_least)).await;
        }
        match self.tenants.position() {
            Some(reached) if Some(reached) >= at_least => {
                Ok(Revision { epoch: reached.epoch, revision: reached.revision })
            }
            Some(reached) => Err(Status::unavailable(format!(
                "TENANT_STALE: this sidecar has {reached}, and not what was asked for"
            ))),
            None => Err(unavailable()),
        }
    }

    fn is_older(&self, tenant: &TenantRef, at_least: Option<Position>) -> bool {
        at_least.is_some_and(|at_least| self.tenants.as_of(tenant).is_some_and(|as_of| as_of < at_least))
    }
}

fn unavailable() -> Status {
    Status::unavailable("TCS_UNAVAILABLE: this sidecar does not hold the tenant and cannot ask for it")
}

fn wanted(key: &TenantKey) -> Result<Wanted, Status> {
    match &key.by {
        Some(By::TenantId(id)) => {
            let id = TenantId::try_from(id.as_str());
            id.map(Wanted::Id).map_err(|error| Status::invalid_argument(format!("tenant_id: {error}")))
        }
        Some(By::Host(host)) => wanted_host(host),
        None => Err(Status::invalid_argument("expected tenant_id or host")),
    }
}

/// # Errors
/// INVALID_ARGUMENT: it is not the name of any host.
pub fn wanted_host(host: &str) -> Result<Wanted, Status> {
    if !(1..=LONGEST_HOST).contains(&host.len()) {
        return Err(Status::invalid_argument("host: expected a host name"));
    }
    Ok(Wanted::Host(host.to_ascii_lowercase().into()))
}

/// The context as the TCS shows it to this service, with the revision of its record.
pub fn context(tenant: &TenantRef) -> Result<TenantContext, Status> {
    let context = TenantContext::decode(tenant.context());
    let context = context.map_err(|_| Status::internal("what is held of the tenant does not decode"))?;
    Ok(TenantContext { revision: tenant.revision(), ..context })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_name_means_the_sidecar_with_any_port() {
        for own in ["tcs.mesh", "tcs.mesh:80", "TCS.Mesh", "tcs.mesh:"] {
            assert!(are_meant(own), "{own}");
        }
        for other in ["", "tcs", "tcs.mesh.example", "media", "tcs.mesh:grpc", "app@tcs.mesh", "tcs.eu-west"] {
            assert!(!are_meant(other), "{other}");
        }
    }

    #[test]
    fn a_key_is_a_tenant_id_or_a_host_in_any_case() {
        let key = |by| wanted(&TenantKey { by });
        assert_eq!(key(Some(By::Host("ACME.Example".into()))).expect("a host"), Wanted::Host("acme.example".into()));
        assert!(key(Some(By::TenantId("acme".into()))).is_ok());
        let long = "a".repeat(254);
        for bad in [None, Some(By::TenantId("Acme".into())), Some(By::Host(String::new())), Some(By::Host(long))] {
            assert_eq!(key(bad).expect_err("refused").code(), Code::InvalidArgument);
        }
    }
}
