//! The services that an app can call, and their instances.

use std::{net::SocketAddr, sync::Arc};

use ahash::{AHashMap, RandomState};
use mesh_config::names::{RegionName, ServiceName, ZoneName};
use tenon_proto::policy::v1 as proto;

use crate::{
    balance::{Endpoint, Endpoints, Load},
    policy::Residency,
};

/// One service that can be called.
#[derive(Debug)]
pub struct Destination {
    service: ServiceName,
    residency: Residency,
    endpoints: Endpoints,
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
    /// about an endpoint (latency, back-off, calls in flight) is taken over from `previous` by service and address.
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
        let mut instances: AHashMap<&str, Vec<Endpoint>> = AHashMap::new();
        for record in endpoints {
            let known = previous.and_then(|previous| previous.get(&record.service));
            match endpoint(record, known) {
                Ok(endpoint) => instances.entry(&record.service).or_default().push(endpoint),
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
                    let instances = instances.remove(service.as_str()).unwrap_or_default();
                    let endpoints = Endpoints::new(instances, region, zone, seeds.hash_one(service.as_str()));
                    all.insert(service.as_str().into(), Destination { service, residency, endpoints });
                }
                Err(problem) => problems.push(format!("route of {:?}: {problem}", record.service)),
            }
        }
        (Destinations(all), problems)
    }
}

fn endpoint(record: &proto::Endpoint, known: Option<&Destination>) -> Result<Endpoint, String> {
    let address: SocketAddr = record.address.parse().map_err(|_| "expected IP:PORT".to_owned())?;
    let region = RegionName::try_from(record.region.as_str()).map_err(|error| error.to_string())?;
    let zone = match record.zone.as_str() {
        "" => None,
        zone => Some(ZoneName::try_from(zone).map_err(|error| error.to_string())?),
    };
    let before = known.and_then(|known| known.endpoints.all().iter().find(|before| before.address == address));
    let load = before.map_or_else(|| Arc::new(Load::default()), |before| Arc::clone(&before.load));
    Ok(Endpoint { address, region, zone, load })
}
