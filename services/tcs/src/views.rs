//! Who sees what of a tenant context: a service sees its own product's part.

use bytes::Bytes;
use journal::{ViewName, Views};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Peer, Workload};
use prost::Message as _;
use replica::{Decoded, Replica};
use tenon_proto::tcs::v1::TenantContext;
use tonic::Status;

use crate::routes::ServiceRoute;

/// Name of the view of operators and of the control plane. No product is called so.
const WHOLE: &str = "*";
/// Name of the view of platform services. No product is called so.
const NO_PRODUCT: &str = "";

/// Where a service's route is looked up. Absent before the first policy has arrived.
pub(crate) trait Routes: Send + Sync + 'static {
    fn known(&self) -> bool;
    fn get(&self, service: &str) -> Option<Decoded<ServiceRoute>>;
}

impl Routes for Replica<Decoded<ServiceRoute>> {
    fn known(&self) -> bool {
        self.position().is_some()
    }

    fn get(&self, service: &str) -> Option<Decoded<ServiceRoute>> {
        Self::get(self, service)
    }
}

/// One view a product, one without any product, and the whole.
///
/// What a name shows never changes; which name a service has changes with its route. Then
/// [`journal::Publisher::refresh_views`] must be called.
pub(crate) struct ProductViews<R> {
    routes: R,
}

impl<R: Routes> ProductViews<R> {
    pub(crate) fn new(routes: R) -> Self {
        Self { routes }
    }

    fn of_service(&self, service: &ServiceName) -> Result<ViewName, Status> {
        if service.as_str().starts_with(control_plane::PREFIX) {
            return Ok(WHOLE.into());
        }
        match self.routes.get(service.as_str()) {
            Some(route) => Ok(route.product.as_ref().map_or(NO_PRODUCT, |product| product.as_str()).into()),
            None if self.routes.known() => Err(Status::unavailable(format!("{service} is not in the policy"))),
            None => Err(Status::unavailable(format!("{service} is not in the policy: no policy has arrived here yet"))),
        }
    }
}

impl<R: Routes> Views for ProductViews<R> {
    fn view(&self, peer: &Peer) -> Result<ViewName, Status> {
        match peer.id.workload() {
            Workload::Operator(_) => Ok(WHOLE.into()),
            Workload::Service(service) => self.of_service(service),
        }
    }

    fn project(&self, view: &ViewName, key: &str, value: &Bytes) -> Option<Bytes> {
        if &**view == WHOLE {
            return Some(value.clone());
        }
        let Ok(mut tenant) = TenantContext::decode(value.clone()) else {
            tracing::error!(tenant = key, "a stored tenant does not decode and is shown to nobody");
            return None;
        };
        tenant.products.retain(|product, _| **product == **view);
        Some(tenant.encode_to_vec().into())
    }
}

#[cfg(test)]
mod tests;
