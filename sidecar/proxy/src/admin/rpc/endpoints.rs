//! `Endpoints`: the instances that calls may go to, as this sidecar sees them. Also the candidates of `Explain`.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use mesh_identity::clock;
use sidecar_core::{
    balance::{self, Tier},
    outbound::Destination,
};
use tenon_proto::admin::v1::{Endpoint, EndpointsRequest, EndpointsResponse};
use tonic::Status;

use crate::{health, live::Live};

/// So many are told where nobody says how many; and at most. One takes some 150 bytes.
const USUAL: u32 = 500;
const MOST: u32 = 2_000;

/// What is not known of an instance by its load alone.
pub(super) struct Surroundings {
    /// Registered by their own sidecars, by service and address as recorded.
    registered: HashSet<(String, String)>,
    connections: HashMap<SocketAddr, u32>,
    /// Monotonic ns, and the same moment in Unix milliseconds.
    now: u64,
    unix_ms: u64,
}

/// # Errors
/// INVALID_ARGUMENT names the field.
pub(super) fn endpoints(live: &Live, request: &EndpointsRequest) -> Result<EndpointsResponse, Status> {
    let EndpointsRequest { services, limit, page_token } = request;
    if *limit > MOST {
        return Err(Status::invalid_argument(format!("limit: expected {MOST} at most")));
    }
    let most = if *limit == 0 { USUAL } else { *limit } as usize;
    let state = live.outbound();
    let known = state.destinations.as_ref();
    let unknown = |service: &&String| known.is_some_and(|known| known.get(service).is_none());
    if let Some(service) = services.iter().find(unknown) {
        return Err(Status::invalid_argument(format!("services: nobody defines {service:?}")));
    }
    let after = place(page_token)?;
    let mut all: Vec<&Destination> = known.into_iter().flat_map(|known| known.iter()).collect();
    let wanted: HashSet<&str> = services.iter().map(String::as_str).collect();
    all.retain(|one| wanted.is_empty() || wanted.contains(one.service().as_str()));
    all.sort_by_key(|one| one.service().as_str());
    let places = all.into_iter().flat_map(|destination| {
        let candidates = destination.endpoints().candidates(None);
        let in_order: Vec<_> = candidates.in_order().enumerate().collect();
        in_order.into_iter().map(move |(index, one)| (destination.service().as_str(), index, one))
    });
    let mut rest = places.skip_while(|(service, index, _)| (*service, *index) < after);
    let around = Surroundings::of(live);
    let endpoints =
        rest.by_ref().take(most).map(|(service, _, (tier, one))| around.shown(service, tier, one)).collect();
    let next_page_token = rest.next().map(|(service, index, _)| format!("{service}/{index}")).unwrap_or_default();
    Ok(EndpointsResponse { endpoints, next_page_token })
}

/// The service and the index of the first that is told.
fn place(token: &str) -> Result<(&str, usize), Status> {
    if token.is_empty() {
        return Ok(("", 0));
    }
    let place = token.rsplit_once('/').and_then(|(service, index)| Some((service, index.parse().ok()?)));
    place.ok_or_else(|| Status::invalid_argument("page_token: expected the next_page_token of an earlier answer"))
}

impl Surroundings {
    pub(super) fn of(live: &Live) -> Self {
        let records = live.endpoints().entries();
        let leased = records.iter().filter(|record| record.message.lease.is_some());
        Self {
            registered: leased.map(|record| (record.message.service.clone(), record.message.address.clone())).collect(),
            connections: live.pools.open(),
            now: health::now(),
            unix_ms: clock::unix_seconds().saturating_mul(1_000),
        }
    }

    /// One instance, as seen from here.
    pub(super) fn shown(&self, service: &str, tier: Tier, endpoint: &balance::Endpoint) -> Endpoint {
        let (load, address) = (&endpoint.load, endpoint.address.to_string());
        let ejected = load.ejected();
        let until = ejected.map(|(until, _)| self.unix_ms.saturating_add(until.saturating_sub(self.now) / 1_000_000));
        let registered = self.registered.contains(&(service.to_owned(), address.clone()));
        Endpoint {
            service: service.to_owned(),
            address,
            region: endpoint.region.to_string(),
            zone: endpoint.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
            tier: tier.as_str().to_owned(),
            source: if registered { "registered" } else { "static" }.to_owned(),
            state: load.state(self.now).as_str().to_owned(),
            latency_ms: load.latency(self.now).as_secs_f64() * 1_000.0,
            in_flight: load.in_flight(),
            connections: self.connections.get(&endpoint.address).copied().unwrap_or_default(),
            failures: load.failures(),
            failed_connects: load.failed_connects(),
            ejected_until_unix_ms: until.and_then(|until| i64::try_from(until).ok()).unwrap_or_default(),
            cause: ejected.map(|(_, cause)| cause.as_str().to_owned()).unwrap_or_default(),
        }
    }
}
