//! Connections that this side has closed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};

use super::Direction;
use crate::guard::Why;

/// Counted by listener and reason.
#[derive(Debug)]
pub struct Closed([Vec<AtomicU64>; Direction::ALL.len()]);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    listener: &'static str,
    why: &'static str,
}

impl Default for Closed {
    fn default() -> Self {
        Self(Direction::ALL.map(|_| Why::ALL.iter().map(|_| AtomicU64::default()).collect()))
    }
}

impl Closed {
    /// One more.
    pub fn count(&self, direction: Direction, why: Why) {
        self.0[direction as usize][why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut closed = encoder.encode_descriptor(
            "tenon_connections_closed",
            "Accepted connections that this side closed",
            None,
            MetricType::Counter,
        )?;
        for (direction, counts) in Direction::ALL.into_iter().zip(&self.0) {
            for (why, count) in Why::ALL.iter().zip(counts) {
                let labels = Labels { listener: direction.as_str(), why: why.as_str() };
                ConstCounter::new(count.load(Relaxed)).encode(closed.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
