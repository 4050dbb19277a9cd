//! What was sent more than once, and what was not although it failed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};
use sidecar_core::retry::{Ended, Why};

/// Counters of attempts beyond the first.
#[derive(Debug, Default)]
pub struct Retries {
    sent: [AtomicU64; CAUSES.len()],
    withheld: [AtomicU64; WITHHELD.len()],
    hedges: [AtomicU64; 2],
}

/// Labels of what the attempt before has ended with.
const CAUSES: [&str; 4] = ["unreachable", "unbegun", "no_room", "status"];
/// Labels of what stood against another attempt.
const WITHHELD: [&str; 5] = ["not_kept", "attempts", "pushback", "deadline", "budget"];

/// What became of an attempt beside another.
#[derive(Debug, Clone, Copy)]
pub enum Hedge {
    /// It was sent.
    Sent,
    /// Its answer was the first good one.
    Won,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabel {
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HedgeLabel {
    outcome: &'static str,
}

impl Retries {
    /// A call is sent again after an attempt that has ended so.
    pub fn sent_again(&self, after: Ended) {
        let index = match after {
            Ended::ForGood => return,
            Ended::Unreachable => 0,
            Ended::Unbegun => 1,
            Ended::NoRoom => 2,
            Ended::Failed { .. } => 3,
        };
        self.sent[index].fetch_add(1, Relaxed);
    }

    /// A call is not sent again, although it might have helped.
    pub fn withheld(&self, why: Why) {
        let index = match why {
            Why::NotRetryable => return,
            Why::NotKept => 0,
            Why::Attempts => 1,
            Why::Pushback => 2,
            Why::Deadline => 3,
            Why::Budget => 4,
        };
        self.withheld[index].fetch_add(1, Relaxed);
    }

    /// A call was sent a second time beside an attempt that is slow.
    pub fn hedge(&self, outcome: Hedge) {
        self.hedges[outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Attempts beyond the first, by what the one before ended with";
        let mut sent = encoder.encode_descriptor("tenon_retries", help, None, MetricType::Counter)?;
        for (cause, count) in CAUSES.into_iter().zip(&self.sent) {
            ConstCounter::new(count.load(Relaxed)).encode(sent.encode_family(&CauseLabel { cause })?)?;
        }
        let help = "Failed calls that were not sent again, by what stood against it";
        let mut withheld = encoder.encode_descriptor("tenon_retries_withheld", help, None, MetricType::Counter)?;
        for (why, count) in WITHHELD.into_iter().zip(&self.withheld) {
            ConstCounter::new(count.load(Relaxed)).encode(withheld.encode_family(&WhyLabel { why })?)?;
        }
        let help = "Attempts that were sent beside a slow one, and those of them that answered first";
        let mut hedges = encoder.encode_descriptor("tenon_hedges", help, None, MetricType::Counter)?;
        for (outcome, count) in ["sent", "won"].into_iter().zip(&self.hedges) {
            ConstCounter::new(count.load(Relaxed)).encode(hedges.encode_family(&HedgeLabel { outcome })?)?;
        }
        Ok(())
    }
}
