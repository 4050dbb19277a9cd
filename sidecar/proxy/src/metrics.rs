//! Every metric of the sidecar. `docs/telemetry.md` lists them, and a test compares the two.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_identity::join::Standing;
use mesh_telemetry::Page;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use sidecar_core::Reason;
use tokio::runtime::RuntimeMetrics;

use crate::limits::LimitGauges;

mod closed;
mod endpoints;
mod flows;
mod limits;
mod lookups;
mod membership;
mod replication;
mod reports;
mod retries;
mod rpcs;
mod spans;
mod tenants;

pub use self::closed::Closed;
pub use self::endpoints::DestinationGauges;
pub use self::flows::has_a_rule;
pub use self::lookups::Lookups;
pub use self::replication::{ParentGauges, ReplicaGauges};
pub use self::reports::Reports;
pub use self::retries::{Hedge, Retries};
pub use self::rpcs::{RpcCounts, Rpcs};
pub use self::spans::Spans;
pub use self::tenants::{Shown, TopTenants};

/// Which listener a call came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the app.
    Outbound,
    /// From another sidecar.
    Inbound,
}

impl Direction {
    /// Both, in the order of the arrays below.
    pub const ALL: [Self; 2] = [Self::Outbound, Self::Inbound];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer of the other side ended, whatever its status.
    Finished,
    /// This sidecar refused it.
    Refused,
    /// The caller went away first.
    Cancelled,
    /// The other side broke off.
    Broken,
}

impl Outcome {
    /// All, in the order of the arrays below.
    pub const ALL: [Self; 4] = [Self::Finished, Self::Refused, Self::Cancelled, Self::Broken];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::Broken => "broken",
        }
    }
}

/// Upper bounds of the latency histogram, in seconds.
const BOUNDS: [f64; 14] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Counters of one direction. Only relaxed atomics: a call pays a nanosecond each, and a scrape stops nobody.
#[derive(Debug)]
pub struct Calls {
    started: AtomicU64,
    ended: [AtomicU64; Outcome::ALL.len()],
    refused: Vec<AtomicU64>,
    audited: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
    connections: AtomicI64,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            started: AtomicU64::default(),
            ended: Default::default(),
            refused: Reason::ALL.iter().map(|_| AtomicU64::default()).collect(),
            audited: AtomicU64::default(),
            buckets: Default::default(),
            nanoseconds: AtomicU64::default(),
            connections: AtomicI64::default(),
        }
    }
}

impl Calls {
    /// A call has come in.
    pub fn started(&self) {
        self.started.fetch_add(1, Relaxed);
    }

    /// The call is over.
    pub fn ended(&self, outcome: Outcome, took: Duration) {
        self.ended[outcome as usize].fetch_add(1, Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// A refusal was made, at the start of a call or in the middle of a stream.
    pub fn refused(&self, reason: Reason) {
        if let Some(index) = Reason::ALL.iter().position(|other| *other == reason) {
            self.refused[index].fetch_add(1, Relaxed);
        }
    }

    /// Audit mode let a call pass that enforcement would have refused.
    pub fn audited(&self) {
        self.audited.fetch_add(1, Relaxed);
    }

    /// A connection was accepted; it is counted as open until the guard is dropped.
    pub fn connected(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Relaxed);
        Connected(Arc::clone(self))
    }

    /// Accepted connections that are open.
    #[must_use]
    pub fn connections(&self) -> i64 {
        self.connections.load(Relaxed)
    }

    /// Calls that have started and not ended. Zero once all is quiet: tests hold on to that.
    #[must_use]
    pub fn in_flight(&self) -> i64 {
        let started = self.started.load(Relaxed);
        let ended: u64 = self.ended.iter().map(|count| count.load(Relaxed)).sum();
        i64::try_from(started).unwrap_or(i64::MAX) - i64::try_from(ended).unwrap_or(i64::MAX)
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Connected(Arc<Calls>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// What a scrape asks of the rest of the sidecar.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// One entry a kind.
    pub replicas: Vec<ReplicaGauges>,
    /// One entry a destination that was called.
    #[serde(skip)]
    pub destinations: Vec<DestinationGauges>,
    /// Of the cache of tenants, where there is one instead of the whole map.
    #[serde(skip)]
    pub cache: Option<replica::CacheStatus>,
    /// How the sidecar stands with the identity service; absent before it has joined.
    #[serde(skip)]
    pub standing: Option<Standing>,
    /// What is taken on.
    #[serde(skip)]
    pub limits: LimitGauges,
    /// Lines of the access log that nobody read in time.
    pub access_log_lost: u64,
    /// Refused and audited calls that are remembered.
    #[serde(skip)]
    pub remembered: usize,
    /// Calls by method.
    #[serde(skip)]
    pub rpcs: Rpcs,
    /// Calls by tenant.
    #[serde(skip)]
    pub tenants: Shown,
    /// Of the workers and of all else.
    #[serde(skip)]
    pub runtimes: Vec<RuntimeMetrics>,
    /// Whether `/ready` says yes.
    pub ready: bool,
}

/// All counters of the process.
#[derive(Debug, Default)]
pub struct Metrics {
    outbound: Arc<Calls>,
    inbound: Arc<Calls>,
    lookups: Arc<Lookups>,
    reports: Arc<Reports>,
    spans: Arc<Spans>,
    retries: Retries,
    closed: Arc<Closed>,
    rpcs: RpcCounts,
    tenants: TopTenants,
}

impl Metrics {
    /// The counters of one direction: resolve once, then count.
    #[must_use]
    pub fn calls(&self, direction: Direction) -> &Arc<Calls> {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }

    /// The counters of the app's own look-ups of tenants.
    #[must_use]
    pub fn lookups(&self) -> &Arc<Lookups> {
        &self.lookups
    }

    /// The counters of what became of spans.
    #[must_use]
    pub fn spans(&self) -> &Arc<Spans> {
        &self.spans
    }

    /// The counters of what is reported to the policy service.
    #[must_use]
    pub fn reports(&self) -> &Arc<Reports> {
        &self.reports
    }

    /// The counters of connections that this side closed.
    #[must_use]
    pub fn closed(&self) -> &Arc<Closed> {
        &self.closed
    }

    /// The counters of attempts beyond the first.
    #[must_use]
    pub fn retries(&self) -> &Retries {
        &self.retries
    }

    /// The counters of calls by method.
    #[must_use]
    pub fn rpcs(&self) -> &RpcCounts {
        &self.rpcs
    }

    /// The counters of calls by tenant.
    #[must_use]
    pub fn tenants(&self) -> &TopTenants {
        &self.tenants
    }

    /// The OpenMetrics text of all metrics.
    #[must_use]
    pub fn text(self: &Arc<Self>, gauges: Snapshot) -> String {
        let mut registry = Registry::default();
        let gauges = Arc::new(gauges);
        registry.register_collector(Box::new(Scrape { metrics: Arc::clone(self), gauges: Arc::clone(&gauges) }));
        let mut text = String::new();
        if encode(&mut text, &registry).is_err() {
            text.clear();
            let _infallible = write!(text, "# encoding failed\n# EOF\n");
        }
        gauges.rpcs.with_exemplars(text)
    }
}

#[derive(Debug)]
struct Scrape {
    metrics: Arc<Metrics>,
    gauges: Arc<Snapshot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    direction: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    direction: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

type NoLabels = [(&'static str, &'static str); 0];
const NO_LABELS: NoLabels = [];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.counts(&mut encoder)?;
        self.refusals(&mut encoder)?;
        self.durations(&mut encoder)?;
        self.metrics.closed.encode(&mut encoder)?;
        self.metrics.retries.encode(&mut encoder)?;
        endpoints::encode(&mut encoder, &self.gauges.destinations)?;
        limits::encode(&mut encoder, &self.gauges.limits)?;
        self.metrics.lookups.encode(&mut encoder)?;
        self.metrics.spans.encode(&mut encoder, self.gauges.access_log_lost)?;
        self.metrics.reports.encode(&mut encoder, self.gauges.remembered)?;
        replication::encode(&mut encoder, &self.gauges.replicas)?;
        if let Some(cache) = &self.gauges.cache {
            replication::encode_cache(&mut encoder, cache)?;
        }
        let page = &mut Page::new(&mut encoder);
        self.gauges.rpcs.show(page)?;
        self.gauges.tenants.show(page)?;
        mesh_telemetry::process(page)?;
        mesh_telemetry::runtime(page, &self.gauges.runtimes)?;
        let build = BuildLabels { version: env!("CARGO_PKG_VERSION") };
        let mut info =
            encoder.encode_descriptor("tenon_build_info", "Version of this binary", None, MetricType::Gauge)?;
        ConstGauge::new(1u64).encode(info.encode_family(&build)?)?;
        let mut ready =
            encoder.encode_descriptor("tenon_ready", "1 when /ready answers 200", None, MetricType::Gauge)?;
        ConstGauge::new(u64::from(self.gauges.ready)).encode(ready.encode_family(&NO_LABELS)?)?;
        if let Some(standing) = &self.gauges.standing {
            membership::encode(&mut encoder, standing)?;
        }
        Ok(())
    }
}

impl Scrape {
    fn each(&self) -> impl Iterator<Item = (&'static str, &Arc<Calls>)> {
        Direction::ALL.into_iter().map(|direction| (direction.as_str(), self.metrics.calls(direction)))
    }

    fn counts(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut started =
            encoder.encode_descriptor("tenon_calls_started", "Calls that came in", None, MetricType::Counter)?;
        for (direction, calls) in self.each() {
            ConstCounter::new(calls.started.load(Relaxed))
                .encode(started.encode_family(&DirectionLabel { direction })?)?;
        }
        let mut ended =
            encoder.encode_descriptor("tenon_calls_ended", "Calls that ended, by how", None, MetricType::Counter)?;
        for (direction, calls) in self.each() {
            for outcome in Outcome::ALL {
                let labels = OutcomeLabels { direction, outcome: outcome.as_str() };
                ConstCounter::new(calls.ended[outcome as usize].load(Relaxed)).encode(ended.encode_family(&labels)?)?;
            }
        }
        let mut connections =
            encoder.encode_descriptor("tenon_connections", "Open accepted connections", None, MetricType::Gauge)?;
        for (direction, calls) in self.each() {
            let open = calls.connections.load(Relaxed);
            ConstGauge::new(open).encode(connections.encode_family(&DirectionLabel { direction })?)?;
        }
        Ok(())
    }

    fn refusals(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut refusals =
            encoder.encode_descriptor("tenon_refusals", "Refusals, by reason", None, MetricType::Counter)?;
        for (direction, calls) in self.each() {
            for (reason, count) in Reason::ALL.iter().zip(&calls.refused) {
                let labels = ReasonLabels { direction, reason: reason.as_str() };
                ConstCounter::new(count.load(Relaxed)).encode(refusals.encode_family(&labels)?)?;
            }
        }
        let mut audited = encoder.encode_descriptor(
            "tenon_audited_calls",
            "Calls that audit mode let pass and enforcement would have refused",
            None,
            MetricType::Counter,
        )?;
        for (direction, calls) in self.each() {
            ConstCounter::new(calls.audited.load(Relaxed))
                .encode(audited.encode_family(&DirectionLabel { direction })?)?;
        }
        Ok(())
    }

    fn durations(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut duration = encoder.encode_descriptor(
            "tenon_call_duration_seconds",
            "From the request's headers to the end of the answer",
            None,
            MetricType::Histogram,
        )?;
        for (direction, calls) in self.each() {
            let buckets: Vec<(f64, u64)> = BOUNDS
                .iter()
                .copied()
                .chain([f64::INFINITY])
                .zip(&calls.buckets)
                .map(|(bound, count)| (bound, count.load(Relaxed)))
                .collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            #[expect(clippy::cast_precision_loss, reason = "a sum of seconds for people")]
            let sum = calls.nanoseconds.load(Relaxed) as f64 / 1e9;
            let label = DirectionLabel { direction };
            let mut family = duration.encode_family(&label)?;
            family.encode_histogram::<NoLabels>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mesh_telemetry::documented;

    use super::*;
    use crate::decisions::{Ending, Flow, Ledgers, Measure};

    /// What a scrape shows after these calls, each by direction, path and tenant.
    fn scraped(metrics: &Metrics, calls: &[(Direction, &str, &str, Measure)]) -> Snapshot {
        let ledgers = Ledgers::new(2);
        for (worker, (direction, path, tenant, call)) in calls.iter().enumerate() {
            let ending = Ending { direction: *direction, code: 0 };
            ledgers.of(worker).ended(Flow { caller: "wiki", service: "media", path, how: ending }, call);
            ledgers.of(worker).ended_for(tenant, Outcome::Finished);
        }
        let (rpcs, tenants) = (metrics.rpcs().take(&ledgers), metrics.tenants().take(&ledgers, 1));
        Snapshot { rpcs, tenants, ..Snapshot::default() }
    }

    fn call(milliseconds: u64, traced: bool) -> Measure {
        let traced = traced.then_some(([0x5a; 16], Duration::from_secs(1_700_000_000)));
        Measure { took: Duration::from_millis(milliseconds), request: 100, response: 2_000, traced }
    }

    #[test]
    fn calls_are_shown_by_who_called_what_on_each_side_with_a_trace_to_look_at() {
        let metrics = Arc::new(Metrics::default());
        let first = [
            (Direction::Inbound, "/m.M/Get", "acme", call(3, true)),
            (Direction::Inbound, "/m.M/Get", "acme", call(30, false)),
            (Direction::Outbound, "", "globex", call(1, false)),
        ];
        let _before = metrics.text(scraped(&metrics, &first));
        let text = metrics.text(scraped(&metrics, &first[..1]));
        let labels = r#"caller="wiki",callee="media",grpc_method="m.M/Get",grpc_status="OK""#;
        for line in [
            format!("grpc_server_call_duration_seconds_count{{{labels}}} 3"),
            format!("grpc_server_call_duration_seconds_sum{{{labels}}} 0.036"),
            format!(
                "grpc_server_call_duration_seconds_bucket{{le=\"0.005\",{labels}}} 2 # {{trace_id=\"{}\"}} 0.003 1700000000.000",
                "5a".repeat(16)
            ),
            format!("grpc_server_call_sent_total_compressed_message_size_bytes_sum{{{labels}}} 6000.0"),
            format!("grpc_server_call_rcvd_total_compressed_message_size_bytes_sum{{{labels}}} 300.0"),
            format!("grpc_client_call_sent_total_compressed_message_size_bytes_sum{{{labels}}} 100.0")
                .replace("m.M/Get", "other"),
            r#"tenon_tenant_calls_total{tenant="acme",outcome="finished"} 3"#.to_owned(),
            r#"tenon_tenant_calls_total{tenant="_other",outcome="finished"} 1"#.to_owned(),
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in\n{text}");
        }
        assert_eq!(text.matches("trace_id").count(), 1);
        let nobody = metrics.text(Snapshot { tenants: Shown::default(), ..scraped(&metrics, &[]) });
        assert!(!nobody.contains("tenon_tenant_calls_total"), "nobody asked for tenants");
    }

    #[tokio::test]
    async fn docs_telemetry_lists_exactly_these_metrics() {
        let metrics = Arc::new(Metrics::default());
        let parent = ParentGauges { parent: "10.0.0.1:15020".into(), connected: true, position: None, error: None };
        let gauges = Snapshot {
            replicas: vec![ReplicaGauges { kind: "tenant", parents: vec![parent], ..ReplicaGauges::default() }],
            cache: Some(replica::CacheStatus::default()),
            standing: Some(membership::everything()),
            destinations: vec![DestinationGauges::default()],
            limits: LimitGauges::default(),
            access_log_lost: 1,
            remembered: 1,
            runtimes: vec![tokio::runtime::Handle::current().metrics()],
            ready: true,
            ..scraped(&metrics, &[(Direction::Inbound, "/m.M/Get", "acme", call(1, false))])
        };
        let text = metrics.text(gauges);
        let docs = include_str!("../../../docs/telemetry.md");
        let (emitted, listed) = (documented::emitted(&text), documented::listed(docs, &["Sidecar", "Every process"]));
        assert_eq!(emitted, listed);
    }

    #[test]
    fn what_started_and_ended_is_no_longer_in_flight() {
        let calls = Calls::default();
        calls.started();
        calls.started();
        calls.ended(Outcome::Finished, Duration::from_millis(3));
        assert_eq!(calls.in_flight(), 1);
        calls.ended(Outcome::Cancelled, Duration::from_secs(30));
        assert_eq!(calls.in_flight(), 0);
    }
}
