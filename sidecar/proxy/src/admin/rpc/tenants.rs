//! `Tenants/Get`: what this sidecar holds of a tenant, which is what its service may see.

use std::time::Duration;

use mesh_config::names::TenantId;
use sidecar_core::{Lookup, Tenants as _, Wanted};
use tenon_proto::admin::v1::{GetRequest, GetResponse, get_request::By};
use tokio::time::timeout;
use tonic::Status;

use crate::{live::Live, lookups, tenants::TenantMap};

/// The longest that the TCS is asked, whatever happens there.
pub(super) const ASKING: Duration = Duration::from_secs(3);

/// # Errors
/// INVALID_ARGUMENT names the field; NOT_FOUND: nobody has the name; UNAVAILABLE: this sidecar cannot know.
pub(super) async fn get(live: &Live, request: GetRequest) -> Result<GetResponse, Status> {
    let wanted = match &request.by {
        Some(By::TenantId(id)) => wanted_id("tenant_id", id)?,
        Some(By::Host(host)) => lookups::wanted_host(host)?,
        None => return Err(Status::invalid_argument("expected tenant_id or host")),
    };
    let tenants = &live.tenants;
    // Read before the tenant: what is told is then at least this new.
    let position = tenants.position();
    let held = match tenants.look_up(&wanted) {
        Lookup::NotHeld => timeout(ASKING, tenants.resolve(&wanted)).await.unwrap_or(Lookup::NotHeld),
        known @ (Lookup::Found(_) | Lookup::Nobody) => known,
    };
    let reached = || position.map(|position| position.to_string()).unwrap_or_default();
    match held {
        Lookup::Found(tenant) => Ok(GetResponse {
            tenant: Some(lookups::context(&tenant)?),
            replica_revision: reached(),
            as_of_revision: tenants.as_of(&tenant).map(|position| position.to_string()).unwrap_or_default(),
            mode: live.config.tenants.as_str().to_owned(),
        }),
        Lookup::Nobody => Err(Status::not_found(nobody(tenants, &reached()))),
        Lookup::NotHeld => Err(Status::unavailable(
            "this sidecar does not hold the tenant and cannot ask for it: see `missing` and `replicas` in Describe",
        )),
    }
}

/// # Errors
/// INVALID_ARGUMENT names `field`.
pub(super) fn wanted_id(field: &str, id: &str) -> Result<Wanted, Status> {
    let id = TenantId::try_from(id).map_err(|error| Status::invalid_argument(format!("{field}: {error}")))?;
    Ok(Wanted::Id(id))
}

/// How sure it is that there is no such tenant.
fn nobody(tenants: &TenantMap, reached: &str) -> String {
    match tenants {
        TenantMap::Full(_) => format!(
            "no such tenant: this sidecar holds all tenants as of revision {reached}, and none has this name; one that was \
             made later is not here yet"
        ),
        TenantMap::OnDemand(_) => format!(
            "no such tenant: the TCS was asked and nobody has this name, as far as this sidecar has heard (revision {reached})"
        ),
    }
}
