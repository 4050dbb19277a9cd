//! `tenon.tcs.v1.Lifecycle`: what provisioning systems call.
//!
//! The state machine is [`machine`]; what was applied is remembered in the journal, see [`crate::events`].

pub(crate) mod machine;

use std::time::Duration;

use mesh_config::names::{TenantId, control_plane};
use mesh_identity::grpc::{Rpc, Subject, Who};
use mesh_identity::{Peer, Workload, clock};
use pbjson_types::Timestamp;
use replica::{Decoded, Replica};
use tenon_proto::tcs::v1::lifecycle_server::Lifecycle;
use tenon_proto::tcs::v1::{LifecycleEvent, LifecycleResponse};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::events;
use crate::routes::ServiceRoute;
use crate::store::{Store, StoreError};
use crate::writing::{Writing, caller};
use machine::{Event, Refused};

/// Who may call what: the rows of this service in the server's authorization table. The service itself lets through only
/// those services that manage tenants by the policy.
pub(crate) const LIFECYCLE_AUTHORIZATION: &[Rpc] =
    &[Rpc { path: "/tenon.tcs.v1.Lifecycle/Apply", who: Who::ServicesAndOperators }];

/// How often events are looked for that need not be remembered any more.
const FORGETTING: Duration = Duration::from_secs(60);

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LifecycleService {
    writing: Writing,
    routes: Replica<Decoded<ServiceRoute>>,
}

impl LifecycleService {
    pub(crate) fn new(writing: Writing, routes: Replica<Decoded<ServiceRoute>>) -> Self {
        Self { writing, routes }
    }

    /// Operators may, and services of which the policy says so; nobody by being of the control plane.
    fn may_call(&self, peer: Option<&Peer>) -> Result<(), Status> {
        let Some(peer) = peer else {
            return Err(Status::unauthenticated("who calls is not known: call over mTLS"));
        };
        let Workload::Service(service) = peer.id.workload() else { return Ok(()) };
        if !service.as_str().starts_with(control_plane::PREFIX)
            && self.routes.get(service.as_str()).is_some_and(|route| route.manages_tenants)
        {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "{} may not change tenants: its Service in the policy does not say managesTenants: true",
            peer.id
        )))
    }
}

#[tonic::async_trait]
impl Lifecycle for LifecycleService {
    async fn apply(&self, request: Request<LifecycleEvent>) -> Result<Response<LifecycleResponse>, Status> {
        Subject::of(&request).is(&request.get_ref().tenant_id);
        self.may_call(request.extensions().get::<Peer>())?;
        let store = self.writing.store()?;
        let caller = caller(&request);
        let event = request.into_inner();
        let kind = check(&event).map_err(|problems| Status::invalid_argument(problems.join("\n")))?;
        let (id, tenant) = (event.event_id.clone(), event.tenant_id.clone());
        let answer = store.apply(event, now()).await?;
        let LifecycleResponse { epoch, revision, repeated_event } = answer;
        tracing::info!(%caller, event_id = id, event = %kind, tenant, epoch, revision, repeated_event, "lifecycle event");
        Ok(Response::new(answer))
    }
}

/// What can be said of an event without its tenant.
fn check(event: &LifecycleEvent) -> Result<Event, Vec<String>> {
    let LifecycleEvent { event_id, tenant_id, change, .. } = event;
    let mut problems = Vec::new();
    if !events::is_event_id(event_id) {
        problems
            .push("eventId: expected 1 to 128 characters of A-Z, a-z, 0-9, \".\", \"_\", \":\" and \"-\"".to_owned());
    }
    if let Err(error) = TenantId::try_from(tenant_id.as_str()) {
        problems.push(format!("tenantId: {error}"));
    }
    match change {
        Some(change) if problems.is_empty() => Ok(Event::of(change)),
        Some(_) => Err(problems),
        None => {
            problems.push("no change is given: expected one of createTenant, suspendTenant and so on".to_owned());
            Err(problems)
        }
    }
}

/// Forgets events that are older than they need be remembered, a few at a time, until `shutdown`.
pub(crate) async fn forget_old_events(store: Store, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(FORGETTING);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let before = now().seconds - i64::try_from(events::MEMORY.as_secs()).unwrap_or(i64::MAX);
        loop {
            match store.forget_events_before(before).await {
                Ok(0) => break,
                Ok(count) => tracing::debug!(count, "old lifecycle events are forgotten"),
                Err(error) => {
                    tracing::warn!(%error, "old lifecycle events cannot be forgotten");
                    break;
                }
            }
        }
    }
}

/// What a refusal tells a program, beside its message: reason and metadata of a `google.rpc.ErrorInfo`.
pub(crate) fn details(error: &StoreError) -> Option<(&'static str, Vec<(&'static str, String)>)> {
    Some(match error {
        StoreError::Refused(Refused::Illegal { event, tenant, product, legal }) => {
            let legal = legal.iter().map(Event::to_string).collect::<Vec<_>>().join(",");
            let mut metadata = vec![("event", event.to_string()), ("state", tenant.to_string()), ("legal", legal)];
            if let Some((name, state)) = product {
                metadata.extend([("product", name.clone()), ("product_state", state.to_string())]);
            }
            ("ILLEGAL_TRANSITION", metadata)
        }
        StoreError::Refused(Refused::Misfit(_)) => ("DOES_NOT_FIT", Vec::new()),
        StoreError::HostTaken { host, owner } => {
            ("HOST_TAKEN", vec![("host", host.clone()), ("tenant", owner.clone())])
        }
        StoreError::OtherRevision { expected, actual, .. } => (
            "REVISION_MISMATCH",
            vec![("expected_revision", expected.to_string()), ("actual_revision", actual.unwrap_or(0).to_string())],
        ),
        StoreError::EventIdUsed(id) => ("EVENT_ID_USED", vec![("event_id", id.clone())]),
        StoreError::Shrink(_) => ("GUARDED", Vec::new()),
        StoreError::Refused(Refused::Invalid(_))
        | StoreError::Unknown(_)
        | StoreError::HostsTaken(_)
        | StoreError::Nothing
        | StoreError::Damaged { .. }
        | StoreError::Read(_)
        | StoreError::Write(_)
        | StoreError::Contended
        | StoreError::Behind
        | StoreError::Busy => return None,
    })
}

fn now() -> Timestamp {
    let now = clock::since_epoch();
    Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
