//! The services that an app can call, and their instances.

use std::{net::SocketAddr, sync::Arc};

use ahash::{AHashMap, RandomState};
use mesh_config::names::{RegionName, ServiceName, ZoneName};
use tenon_proto::policy::v1 as proto;

use crate::{
    balance::{Endpoint, Endpoints},
    policy::Residency,
    retry,
    route::Route,
};

/// One service that can be called.
#[derive(Debug)]
pub struct Destination {
    service: ServiceName,
    residency: Residency,
    route: Arc<Route>,
    endpoints: Endpoints,
    /// What its calls have shown; shared with the same destination of earlier and later states.
    memory: Arc<retry::Memory>,
}

/// Every service of the mesh by name.
#[derive(Debug, Default)]
pub struct Destinations(AHashMap<Box<str>, Destination>);

impl Destination {
    /// Its name: the audience of the ASAP token, and what its server certificate must say.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Which tenants its instances serve.
    pub fn residency(&self) -> Residency {
        self.residency
    }

    /// How it is called.
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// What its calls have shown: the budget of retries.
    pub fn memory(&self) -> &retry::Memory {
        &self.memory
    }

    /// Its instances.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }
}

impl Destinations {
    /// The service of this name.
    pub fn get(&self, service: &str) -> Option<&Destination> {
        self.0.get(service)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Destination> {
        self.0.values()
    }

    /// Builds them from `route` and `endpoint` records, as a sidecar in `region` and `zone` sees them. What was learned
    /// about an endpoint (latency, back-off, ejection, calls in flight) is taken over from `previous` by service and address;
    /// endpoints of `previous` that are none any more are told so.
    ///
    /// A record that cannot be used is left out and described in the second value, for a warning: one bad endpoint must
    /// not take the others away. An endpoint whose service has no route is left out silently: the two kinds arrive
    /// independently.
    pub fn build<'r>(
        routes: impl IntoIterator<Item = &'r proto::Route>,
        endpoints: impl IntoIterator<Item = &'r proto::Endpoint>,
        (region, zone): (Option<&RegionName>, Option<&ZoneName>),
        previous: Option<&Destinations>,
    ) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        // By address: one instance is one candidate, also where it is registered and the policy files name it as well. It
        // knows best where it is.
        let mut instances: AHashMap<&str, AHashMap<SocketAddr, Endpoint>> = AHashMap::new();
        for record in endpoints {
            match endpoint(record) {
                Ok(endpoint) => {
                    let of_service = instances.entry(&record.service).or_default();
                    if record.lease.is_some() || !of_service.contains_key(&endpoint.address) {
                        of_service.insert(endpoint.address, endpoint);
                    }
                }
                Err(problem) => {
                    problems.push(format!("endpoint {:?} of {:?}: {problem}", record.address, record.service))
                }
            }
        }
        let seeds = RandomState::new();
        let mut all = AHashMap::new();
        for record in routes {
            let parsed = ServiceName::try_from(record.service.as_str()).map_err(|error| error.to_string());
            match parsed.and_then(|service| Ok((service, Residency::decode(record.residency)?))) {
                Ok((service, residency)) => {
                    let instances = instances.remove(service.as_str()).unwrap_or_default().into_values().collect();
                    let route = Arc::new(record.settings.as_ref().map(Route::decode).unwrap_or_default());
                    let before = previous.and_then(|previous| previous.get(service.as_str()));
                    let endpoints = Endpoints::new(instances, region, zone, seeds.hash_one(service.as_str()))
                        .succeed(before.map(Destination::endpoints), &route);
                    let known = previous.and_then(|previous| previous.get(service.as_str()));
                    let memory = known.map_or_else(Arc::default, |known| Arc::clone(&known.memory));
                    all.insert(service.as_str().into(), Destination { service, residency, route, endpoints, memory });
                }
                Err(problem) => problems.push(format!("route of {:?}: {problem}", record.service)),
            }
        }
        (Destinations(all), problems)
    }
}

/// Its load is set by [`Endpoints::succeed`].
fn endpoint(record: &proto::Endpoint) -> Result<Endpoint, String> {
    let address: SocketAddr = record.address.parse().map_err(|_| "expected IP:PORT".to_owned())?;
    let region = RegionName::try_from(record.region.as_str()).map_err(|error| error.to_string())?;
    let zone = match record.zone.as_str() {
        "" => None,
        zone => Some(ZoneName::try_from(zone).map_err(|error| error.to_string())?),
    };
    Ok(Endpoint { address, region, zone, load: Arc::default() })
}
