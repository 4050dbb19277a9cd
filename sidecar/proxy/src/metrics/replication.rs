//! What is held of the control plane's state, and how it is kept.

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use replica::{CacheStatus, Status};

use crate::config::ReplicaAddress;

/// What of a replica a scrape shows.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaGauges {
    /// The replicated kind.
    pub kind: &'static str,
    /// Revision reached; 0 before the first snapshot.
    pub revision: u64,
    /// The same with its epoch, for `/config`.
    pub position: Option<String>,
    /// Records held.
    pub records: u64,
    /// Whether any stream to the control plane is up.
    pub connected: bool,
    /// Each parent, where there is more than one to tell apart.
    pub parents: Vec<ParentGauges>,
    /// Seconds since a source was last heard; grows while all are gone.
    pub age_seconds: f64,
    /// Updates that were refused so far.
    pub nacks: u64,
    /// Updates that a guard refused so far.
    pub guard_refusals: u64,
    /// Buckets that differed from the source's and were fetched again.
    pub repaired_buckets: u64,
    /// Buckets that had changed in memory.
    pub scrub_differences: u64,
    /// What is wrong now, for `/config`.
    pub error: Option<String>,
    /// What the guards refuse now, for `/config`.
    pub alarms: Vec<String>,
}

/// One parent.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentGauges {
    /// Its address, as configured.
    pub parent: String,
    /// Whether its stream is up.
    pub connected: bool,
    /// How far it said that it is, for `/config`.
    pub position: Option<String>,
    /// What is wrong with it now, for `/config`.
    pub error: Option<String>,
}

impl ReplicaGauges {
    /// Of a whole map.
    pub fn of(kind: &'static str, status: Status) -> Self {
        let parents = status.parents.into_iter().filter(|parent| !parent.name.is_empty()).map(|parent| ParentGauges {
            parent: parent.name,
            connected: parent.connected,
            position: parent.position.map(|position| position.to_string()),
            error: parent.last_error,
        });
        Self {
            kind,
            revision: status.position.map_or(0, |position| position.revision),
            position: status.position.map(|position| position.to_string()),
            records: status.records as u64,
            connected: status.connected,
            parents: parents.collect(),
            age_seconds: status.last_heartbeat_age.map_or(0.0, |age| age.as_secs_f64()),
            nacks: status.nacks,
            guard_refusals: status.guard_refusals,
            repaired_buckets: status.repaired_buckets,
            scrub_differences: status.scrub_differences,
            error: status.last_error.or(status.state_error),
            alarms: status.alarms,
        }
    }

    /// Of a cache, whose parents are `parents` in this order.
    pub fn of_cache(kind: &'static str, status: &CacheStatus, parents: &[ReplicaAddress]) -> Self {
        let parents = parents.iter().zip(&status.connected).map(|(parent, connected)| ParentGauges {
            parent: parent.to_string(),
            connected: *connected,
            position: None,
            error: None,
        });
        Self {
            kind,
            revision: status.position.map_or(0, |position| position.revision),
            position: status.position.map(|position| position.to_string()),
            records: status.records as u64,
            connected: status.connected.contains(&true),
            parents: parents.collect(),
            age_seconds: status.last_heartbeat_age.map_or(0.0, |age| age.as_secs_f64()),
            nacks: status.nacks,
            guard_refusals: status.guard_refusals,
            error: status.last_error.clone().or_else(|| status.state_error.clone()),
            ..Self::default()
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ParentLabels {
    kind: &'static str,
    parent: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What every kind has.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, replicas: &[ReplicaGauges]) -> Result<(), std::fmt::Error> {
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&ReplicaGauges) -> f64| {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for replica in replicas {
            ConstGauge::new(value(replica)).encode(family.encode_family(&KindLabel { kind: replica.kind })?)?;
        }
        Ok(())
    };
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats on the wire")]
    {
        gauge("tenon_replica_revision", "Revision reached, by kind", &|replica| replica.revision as f64)?;
        gauge("tenon_replica_records", "Records held, by kind", &|replica| replica.records as f64)?;
        gauge("tenon_replica_nacks", "Updates refused so far, by kind", &|replica| replica.nacks as f64)?;
    }
    gauge("tenon_replica_connected", "1 while a source is connected, by kind", &|replica| {
        f64::from(u8::from(replica.connected))
    })?;
    gauge("tenon_replica_age_seconds", "Seconds since a source was last heard, by kind", &|replica| {
        replica.age_seconds
    })?;
    let help = "1 while this parent is connected";
    let mut family = encoder.encode_descriptor("tenon_replica_parent_connected", help, None, MetricType::Gauge)?;
    for replica in replicas {
        for parent in &replica.parents {
            let labels = ParentLabels { kind: replica.kind, parent: parent.parent.clone() };
            ConstGauge::new(u64::from(parent.connected)).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut counter = |name: &str, help: &str, value: &dyn Fn(&ReplicaGauges) -> u64| {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for replica in replicas {
            ConstCounter::new(value(replica)).encode(family.encode_family(&KindLabel { kind: replica.kind })?)?;
        }
        Ok(())
    };
    counter("tenon_replica_guard_refusals", "Updates that a guard refused", &|replica| replica.guard_refusals)?;
    let help = "Buckets that differed from the source's and were fetched again";
    counter("tenon_replica_repaired_buckets", help, &|replica| replica.repaired_buckets)?;
    let help = "Buckets that had changed in memory";
    counter("tenon_replica_scrub_differences", help, &|replica| replica.scrub_differences)
}

/// What a cache of tenants has besides.
pub(super) fn encode_cache(encoder: &mut DescriptorEncoder<'_>, cache: &CacheStatus) -> Result<(), std::fmt::Error> {
    let gauges = [
        ("tenon_tenant_cache_bytes", "Memory that the cache of tenants takes, as it is counted", cache.bytes),
        ("tenon_tenant_cache_absent", "Names of which is held that no tenant has them", cache.absent as u64),
        (
            "tenon_tenant_cache_outdated",
            "Tenants that changes were missed for and that were not looked at again yet",
            cache.outdated as u64,
        ),
    ];
    for (name, help, value) in gauges {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family.encode_family(&super::NO_LABELS)?)?;
    }
    let counters = [
        ("tenon_tenant_cache_evictions", "Tenants that had to go for others", cache.evicted),
        ("tenon_tenant_cache_gaps", "Times that changes were missed", cache.gaps),
    ];
    for (name, help, value) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family.encode_family(&super::NO_LABELS)?)?;
    }
    let outcomes = [("hit", cache.hits), ("miss", cache.misses)];
    each(encoder, "tenon_tenant_cache_lookups", "Look-ups of tenants, by whether memory answered", &outcomes)?;
    let fetched = cache.fetched;
    let outcomes = [("found", fetched.found), ("nobody", fetched.nobody), ("failed", fetched.failed)];
    each(encoder, "tenon_tenant_cache_fetches", "Names that the TCS was asked for, by what came of it", &outcomes)
}

fn each(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    outcomes: &[(&'static str, u64)],
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (outcome, count) in outcomes {
        ConstCounter::new(*count).encode(family.encode_family(&OutcomeLabel { outcome })?)?;
    }
    Ok(())
}
