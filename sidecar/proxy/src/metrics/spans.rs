//! What became of the spans of calls, and of the lines of the access log.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

use super::NO_LABELS;

/// Counters of the exporter.
#[derive(Debug, Default)]
pub struct Spans {
    exported: AtomicU64,
    lost: AtomicU64,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabel {
    outcome: &'static str,
}

impl Spans {
    /// The collector has so many more.
    pub fn exported(&self, spans: usize) {
        self.exported.fetch_add(u64::try_from(spans).unwrap_or(u64::MAX), Relaxed);
    }

    /// So many were too many, or the collector did not take them.
    pub fn lost(&self, spans: usize) {
        self.lost.fetch_add(u64::try_from(spans).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>, lines_lost: u64) -> fmt::Result {
        let help = "Spans of calls, by what became of them";
        let mut spans = encoder.encode_descriptor("tenon_spans", help, None, MetricType::Counter)?;
        for (outcome, count) in [("exported", &self.exported), ("lost", &self.lost)] {
            ConstCounter::new(count.load(Relaxed)).encode(spans.encode_family(&OutcomeLabel { outcome })?)?;
        }
        let help = "Lines of the access log that were lost, since nobody read them";
        let mut lines = encoder.encode_descriptor("tenon_access_log_lines_lost", help, None, MetricType::Counter)?;
        ConstCounter::new(lines_lost).encode(lines.encode_family(&NO_LABELS)?)
    }
}
