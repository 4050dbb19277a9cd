//! What the metrics say about certificate, key and identity service.

use std::fmt;

use mesh_identity::join::{Attempts, Standing};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::NO_LABELS;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    what: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, standing: &Standing) -> Result<(), fmt::Error> {
    let mut end = encoder.encode_descriptor(
        "tenon_svid_expiry_timestamp_seconds",
        "When the SVID in use ends, in Unix seconds",
        None,
        MetricType::Gauge,
    )?;
    ConstGauge::new(standing.svid_not_after).encode(end.encode_family(&NO_LABELS)?)?;
    let mut left = encoder.encode_descriptor(
        "tenon_svid_remaining_seconds",
        "Until the SVID in use ends; negative afterwards",
        None,
        MetricType::Gauge,
    )?;
    ConstGauge::new(standing.svid_seconds_left).encode(left.encode_family(&NO_LABELS)?)?;
    let mut created = encoder.encode_descriptor(
        "tenon_asap_key_created_timestamp_seconds",
        "When the ASAP key that signs now was made, in Unix seconds; 0 when unknown",
        None,
        MetricType::Gauge,
    )?;
    ConstGauge::new(standing.asap_key_created).encode(created.encode_family(&NO_LABELS)?)?;
    let mut failing = encoder.encode_descriptor(
        "tenon_state_failing",
        "1 while SVID and trust bundle cannot be written to the state folder",
        None,
        MetricType::Gauge,
    )?;
    ConstGauge::new(u64::from(standing.state_error.is_some())).encode(failing.encode_family(&NO_LABELS)?)?;
    attempts(encoder, standing)
}

fn attempts(encoder: &mut DescriptorEncoder<'_>, standing: &Standing) -> Result<(), fmt::Error> {
    let all: [(&'static str, &Attempts); 3] =
        [("renewal", &standing.renewals), ("confirmation", &standing.confirmations), ("rekeying", &standing.rekeyings)];
    let mut counts = encoder.encode_descriptor(
        "tenon_membership_attempts",
        "Attempts with the identity service to renew the SVID, to confirm this instance and to replace its ASAP key",
        None,
        MetricType::Counter,
    )?;
    for (what, attempts) in all {
        for (outcome, count) in [("done", attempts.done), ("failed", attempts.failed)] {
            ConstCounter::new(count).encode(counts.encode_family(&Labels { what, outcome })?)?;
        }
    }
    let mut ages = encoder.encode_descriptor(
        "tenon_membership_age_seconds",
        "Since each of these last worked; absent before it has",
        None,
        MetricType::Gauge,
    )?;
    for (what, attempts) in all {
        if let Some(age) = attempts.age {
            ConstGauge::new(age.as_secs_f64()).encode(ages.encode_family(&WhatLabel { what })?)?;
        }
    }
    Ok(())
}

/// A standing of which every metric can be seen.
#[cfg(test)]
pub(super) fn everything() -> Standing {
    let attempts = || Attempts { done: 1, age: Some(std::time::Duration::ZERO), ..Attempts::default() };
    Standing { renewals: attempts(), confirmations: attempts(), rekeyings: attempts(), ..Standing::default() }
}
