//! Every metric of the sidecar. `docs/telemetry.md` lists them, and a test compares the two.

use std::{fmt::Write as _, sync::Arc};

use mesh_identity::join::Standing;
use mesh_telemetry::Page;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text::encode},
    registry::Registry,
};
use tokio::runtime::RuntimeMetrics;

use crate::limits::LimitGauges;

mod calls;
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

pub use self::calls::{Calls, Connected};
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

type NoLabels = [(&'static str, &'static str); 0];
const NO_LABELS: NoLabels = [];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        calls::show(&self.metrics, &mut Page::new(&mut encoder))?;
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
        let build = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauge("tenon_build_info", "Version of this binary", [(build, 1u64)])?;
        page.gauge("tenon_ready", "1 when /ready answers 200", [(NO_LABELS, u64::from(self.gauges.ready))])?;
        if let Some(standing) = &self.gauges.standing {
            membership::encode(&mut encoder, standing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            r#"tenon_tenant_calls_total{tenant="acme",outcome="finished"} 1"#.to_owned(),
            r#"tenon_tenant_calls_total{tenant="_other",outcome="finished"} 3"#.to_owned(),
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
}
