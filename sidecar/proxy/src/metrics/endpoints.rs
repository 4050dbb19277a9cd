//! How the instances do that this sidecar calls, as it sees them.

use std::{collections::HashMap, fmt, net::SocketAddr};

use mesh_telemetry::Page;
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use sidecar_core::{
    balance::{Cause, State},
    outbound::{self, Destination},
};

/// One destination.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationGauges {
    /// Its name.
    pub service: String,
    /// Its instances, nearest first.
    pub instances: Vec<InstanceGauges>,
    /// Connections to them that are open.
    pub connections: u64,
    /// Ejections, in the order of [`Cause::ALL`].
    #[serde(skip)]
    pub ejections: [u64; Cause::ALL.len()],
    #[serde(skip)]
    states: [u64; State::ALL.len()],
}

/// One instance.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceGauges {
    /// Its inbound listener.
    pub address: String,
    /// Where it runs.
    pub region: String,
    /// Where it runs within the region.
    pub zone: Option<String>,
    /// [`State::as_str`].
    pub state: &'static str,
    /// Peak-EWMA of what answers take, as it counts now.
    pub latency_microseconds: u64,
    /// Calls of this sidecar that it has now.
    pub in_flight: u32,
}

impl DestinationGauges {
    /// Those that were called; a mesh may have many more.
    pub fn of(state: &outbound::State, open: &HashMap<SocketAddr, u32>, now: u64) -> Vec<Self> {
        let destinations = state.destinations.iter().flat_map(outbound::Destinations::iter);
        let called = destinations.filter(|destination| destination.endpoints().group().is_used());
        let mut all: Vec<Self> = called.map(|destination| Self::of_one(destination, open, now)).collect();
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all
    }

    fn of_one(destination: &Destination, open: &HashMap<SocketAddr, u32>, now: u64) -> Self {
        let endpoints = destination.endpoints();
        let mut states = [0; State::ALL.len()];
        let connections = endpoints.all().iter().filter_map(|endpoint| open.get(&endpoint.address));
        let connections = connections.copied().map(u64::from).sum();
        let instances = endpoints.all().iter().map(|endpoint| {
            let state = endpoint.load.state(now);
            states[state as usize] += 1;
            InstanceGauges {
                address: endpoint.address.to_string(),
                region: endpoint.region.to_string(),
                zone: endpoint.zone.as_ref().map(ToString::to_string),
                state: state.as_str(),
                latency_microseconds: u64::try_from(endpoint.load.latency(now).as_micros()).unwrap_or(u64::MAX),
                in_flight: endpoint.load.in_flight(),
            }
        });
        let instances = instances.collect();
        let ejections = Cause::ALL.map(|cause| endpoints.group().ejections(cause));
        Self { service: destination.service().to_string(), instances, connections, ejections, states }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    service: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    service: String,
    cause: &'static str,
}

pub fn encode(encoder: &mut DescriptorEncoder<'_>, destinations: &[DestinationGauges]) -> fmt::Result {
    let help = "Instances of the services that were called, by how they stand";
    let mut endpoints = encoder.encode_descriptor("tenon_endpoints", help, None, MetricType::Gauge)?;
    for destination in destinations {
        for (state, count) in State::ALL.into_iter().zip(destination.states) {
            let labels = StateLabels { service: destination.service.clone(), state: state.as_str() };
            ConstGauge::new(count).encode(endpoints.encode_family(&labels)?)?;
        }
    }
    let page = &mut Page::new(encoder);
    let of = |destination: &DestinationGauges| [("service", destination.service.clone())];
    let open = destinations.iter().map(|destination| (of(destination), destination.connections));
    page.gauge(
        "tenon_upstream_connections",
        "Open connections to the instances of the services that were called",
        open,
    )?;
    let calls =
        |destination: &DestinationGauges| destination.instances.iter().map(|it| u64::from(it.in_flight)).sum::<u64>();
    let calls = destinations.iter().map(|destination| (of(destination), calls(destination)));
    page.gauge("tenon_upstream_in_flight", "Calls that the instances of the services have now", calls)?;
    let help = "Times that an instance was left out because its calls failed, by why";
    let mut ejections = encoder.encode_descriptor("tenon_endpoint_ejections", help, None, MetricType::Counter)?;
    for destination in destinations {
        for (cause, count) in Cause::ALL.into_iter().zip(destination.ejections) {
            let labels = CauseLabels { service: destination.service.clone(), cause: cause.as_str() };
            ConstCounter::new(count).encode(ejections.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
