//! Which registrations are right.

use std::net::SocketAddr;

use journal::ReadError;
use mesh_config::names::{RegionName, ZoneName};
use tenon_proto::policy::v1::{Endpoint, Lease, report_request::Register};

use super::Sidecar;
use crate::engine::Engine;

/// What the policy says of services and regions.
#[tonic::async_trait]
pub(crate) trait Places: Send + Sync + 'static {
    /// Whether the mesh has the service.
    async fn has_service(&self, service: &str) -> Result<bool, ReadError>;

    /// The regions of the mesh; `None` where this version cannot say.
    async fn regions(&self) -> Result<Option<Vec<String>>, ReadError>;
}

#[tonic::async_trait]
impl Places for Engine {
    async fn has_service(&self, service: &str) -> Result<bool, ReadError> {
        Ok(self.journals().routes.get(service).await?.is_some())
    }

    async fn regions(&self) -> Result<Option<Vec<String>>, ReadError> {
        Engine::regions(self).await
    }
}

/// Why nothing is written where nobody can say whether it would be right.
pub(super) const UNREAD: &str = "the store of the policy service cannot be read: it is tried again";

/// What is written for a registration, or why nothing is.
pub(super) async fn accept(
    places: &dyn Places,
    sidecar: &Sidecar,
    register: &Register,
    holder: &str,
) -> Result<Endpoint, String> {
    let Register { sequence: _, address, region, zone } = register;
    let address = accept_address(address)?;
    let region = RegionName::try_from(region.as_str())
        .map_err(|error| format!("region {region:?}: {error}: start the sidecar with --region"))?;
    if !zone.is_empty() {
        ZoneName::try_from(zone.as_str()).map_err(|error| format!("zone {zone:?}: {error}"))?;
    }
    let unread = |_| UNREAD.to_owned();
    if !places.has_service(&sidecar.service).await.map_err(unread)? {
        return Err(format!("the policy has no service {}: apply one that does", sidecar.service));
    }
    if let Some(regions) = places.regions().await.map_err(unread)?
        && !regions.iter().any(|known| known == region.as_str())
    {
        return Err(format!("region {region} is none of the mesh, expected one of: {}", regions.join(", ")));
    }
    let lease = Lease { instance: sidecar.instance.as_ref().into(), boot: sidecar.boot, holder: holder.to_owned() };
    Ok(Endpoint {
        service: sidecar.service.as_ref().to_owned(),
        region: region.to_string(),
        zone: zone.clone(),
        address: address.to_string(),
        lease: Some(lease),
    })
}

/// An address that others can connect to. Loopback is one where the whole mesh is on one machine, which nobody here can tell.
fn accept_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| format!("address {text:?}: expected IP:PORT"))?;
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
        return Err(format!(
            "address {address}: others cannot connect to it; start the sidecar with --advertise IP:PORT"
        ));
    }
    Ok(address)
}
