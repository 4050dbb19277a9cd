//! What the TCS knows of the policy: which product each service is, and who manages tenants.

use bytes::Bytes;
use mesh_config::names::ProductName;
use prost::Message as _;
use replica::Decode;
use tenon_proto::policy::v1::Route;

/// A route record, of which only this much counts here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServiceRoute {
    /// Absent for platform services, which are no product.
    pub product: Option<ProductName>,
    /// Whether the service may call `tenon.tcs.v1.Lifecycle`.
    pub manages_tenants: bool,
}

impl Decode for ServiceRoute {
    fn decode(key: &str, _: u64, raw: Bytes) -> Result<Self, String> {
        let route = Route::decode(raw).map_err(|error| format!("route {key:?} does not decode: {error}"))?;
        let product = match route.product.as_str() {
            "" => None,
            name => Some(ProductName::try_from(name).map_err(|error| format!("route {key:?}: {error}"))?),
        };
        Ok(Self { product, manages_tenants: route.manages_tenants })
    }
}
