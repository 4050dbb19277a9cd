//! What the policy service is told of decisions.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{NO_LABELS, flows::FlowCounts};

/// Counters of the reporter.
#[derive(Debug, Default)]
pub struct Reports {
    connections: AtomicI64,
    reported: AtomicU64,
    lost: AtomicU64,
    waiting: AtomicU64,
    registered: AtomicBool,
    flows: FlowCounts,
}

impl Reports {
    /// A stream to the policy service is open, until the guard is dropped.
    pub fn connected(self: &Arc<Self>) -> Reporting {
        self.connections.fetch_add(1, Relaxed);
        Reporting(Arc::clone(self))
    }

    /// So many flows were acknowledged.
    pub fn reported(&self, flows: usize) {
        self.reported.fetch_add(u64::try_from(flows).unwrap_or(u64::MAX), Relaxed);
    }

    /// Who calls what.
    pub const fn flows(&self) -> &FlowCounts {
        &self.flows
    }

    /// So many calls fitted into no flow that is reported.
    pub fn lost(&self, calls: u64) {
        self.lost.fetch_add(calls, Relaxed);
    }

    /// So many batches are not acknowledged.
    pub fn waiting(&self, batches: usize) {
        self.waiting.store(u64::try_from(batches).unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether this instance is registered.
    pub fn registered(&self, registered: bool) {
        self.registered.store(registered, Relaxed);
    }

    /// As it was told last.
    pub fn is_registered(&self) -> bool {
        self.registered.load(Relaxed)
    }

    /// Whether a stream is open.
    pub fn is_connected(&self) -> bool {
        self.connections.load(Relaxed) > 0
    }

    /// Batches that are not acknowledged.
    pub fn waiting_now(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>, remembered: usize) -> fmt::Result {
        self.flows.encode(encoder)?;
        let help = "1 while flows are reported to a policy service";
        let mut connected = encoder.encode_descriptor("tenon_flow_reports_connected", help, None, MetricType::Gauge)?;
        ConstGauge::new(u64::from(self.is_connected())).encode(connected.encode_family(&NO_LABELS)?)?;
        let help = "1 while a policy service has confirmed where this instance takes calls";
        let mut registered = encoder.encode_descriptor("tenon_registered", help, None, MetricType::Gauge)?;
        ConstGauge::new(u64::from(self.is_registered())).encode(registered.encode_family(&NO_LABELS)?)?;
        let help = "Batches of flows that the policy service has not acknowledged";
        let mut waiting = encoder.encode_descriptor("tenon_flow_batches_waiting", help, None, MetricType::Gauge)?;
        ConstGauge::new(self.waiting_now()).encode(waiting.encode_family(&NO_LABELS)?)?;
        let help = "Flows that the policy service has acknowledged";
        let mut reported = encoder.encode_descriptor("tenon_flows_reported", help, None, MetricType::Counter)?;
        ConstCounter::new(self.reported.load(Relaxed)).encode(reported.encode_family(&NO_LABELS)?)?;
        let help = "Calls that the flow record lacks, because there were too many different ones";
        let mut lost = encoder.encode_descriptor("tenon_flow_calls_lost", help, None, MetricType::Counter)?;
        ConstCounter::new(self.lost.load(Relaxed)).encode(lost.encode_family(&NO_LABELS)?)?;
        let help = "Refused and audited calls that are remembered for `tenon explain`";
        let mut held = encoder.encode_descriptor("tenon_recent_decisions", help, None, MetricType::Gauge)?;
        let remembered = u64::try_from(remembered).unwrap_or(u64::MAX);
        ConstGauge::new(remembered).encode(held.encode_family(&NO_LABELS)?)
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Reporting(Arc<Reports>);

impl Drop for Reporting {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}
