//! The metrics of what is taken on: `limits.rs`.

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::limits::{LimitGauges, Why};

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, gauges: &LimitGauges) -> Result<(), std::fmt::Error> {
    let LimitGauges { app, refused, memory: (used, budget), shed } = gauges;
    let gauge = |encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64| {
        let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    };
    let limit = u64::from(app.limit);
    gauge(encoder, "tenon_concurrency_limit", "Calls that the app gets at once", limit)?;
    let bites = u64::from(app.bites);
    gauge(encoder, "tenon_concurrency_limit_enforced", "1 where calls above the limit are refused", bites)?;
    gauge(encoder, "tenon_concurrency_in_use", "Calls that are at the app", u64::from(app.in_use))?;
    gauge(encoder, "tenon_memory_used_bytes", "Memory that is allocated", *used)?;
    gauge(encoder, "tenon_memory_limit_bytes", "Memory above which calls are refused", *budget)?;
    let help = "Calls that a limit refused, by which";
    let mut limited = encoder.encode_descriptor("tenon_limited_calls", help, None, MetricType::Counter)?;
    for (why, count) in Why::ALL.iter().zip(refused) {
        ConstCounter::new(*count).encode(limited.encode_family(&[("limit", why.as_str())])?)?;
    }
    let help = "Open calls that were ended for lack of memory";
    let ended = encoder.encode_descriptor("tenon_memory_shed_calls", help, None, MetricType::Counter)?;
    ConstCounter::new(*shed).encode(ended)
}
