//! Look-ups of the app itself, at `tcs.mesh`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};
use tonic::Code;

const METHODS: [&str; 2] = ["Get", "BatchGet"];
/// What they answer with; anything else is an accident, and counted as `other`.
const CODES: [(Option<Code>, &str); 5] = [
    (Some(Code::Ok), "ok"),
    (Some(Code::NotFound), "not_found"),
    (Some(Code::InvalidArgument), "invalid_argument"),
    (Some(Code::Unavailable), "unavailable"),
    (None, "other"),
];

/// Counters of the app's look-ups.
#[derive(Debug, Default)]
pub struct Lookups([[AtomicU64; CODES.len()]; METHODS.len()]);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    code: &'static str,
}

impl Lookups {
    /// A call of `method` was answered with `code`.
    pub fn count(&self, method: &str, code: Code) {
        let Some(row) = METHODS.iter().position(|known| *known == method) else { return };
        let column = CODES.iter().position(|(known, _)| *known == Some(code)).unwrap_or(CODES.len() - 1);
        self.0[row][column].fetch_add(1, Relaxed);
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Look-ups of the app at tcs.mesh, by what they were answered with";
        let mut family = encoder.encode_descriptor("tenon_tenant_context_requests", help, None, MetricType::Counter)?;
        for (method, counts) in METHODS.iter().zip(&self.0) {
            for ((_, code), count) in CODES.iter().zip(counts) {
                let labels = Labels { method, code };
                ConstCounter::new(count.load(Relaxed)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
