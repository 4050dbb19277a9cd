//! Who sees what of a tenant context: a service sees its own product's part.

mod wire;

use bytes::Bytes;
use journal::{ViewName, Views};
use mesh_config::names::{ServiceName, control_plane};
use mesh_identity::{Peer, Workload};
use replica::{Decoded, Replica};
use tonic::Status;

use crate::routes::ServiceRoute;

/// Name of the view of operators and of the control plane. No product is called so.
const WHOLE: &str = "*";
/// Name of the view of platform services. No product is called so.
const NO_PRODUCT: &str = "";

/// What a product's view shows of a tenant that cannot be read: nothing of it, and nothing that decodes. Followers refuse it,
/// tell so, and keep what they had; had it gone they would refuse the tenant's calls.
const DAMAGED: &[u8] = b"\xff";

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
        if self.hides(key) {
            return None;
        }
        if &**view == WHOLE {
            return Some(value.clone());
        }
        Some(wire::with_product(value, view).unwrap_or_else(|wire::Damaged| {
            tracing::error!(tenant = key, "a stored tenant does not decode: who has an earlier one keeps it");
            Bytes::from_static(DAMAGED)
        }))
    }

    fn hides(&self, key: &str) -> bool {
        key.contains('/')
    }

    fn aliases<'v>(&self, value: &'v [u8]) -> Vec<&'v str> {
        wire::hosts(value)
    }
}

#[cfg(test)]
mod tests;
