//! Who calls what, and what is decided: from the flow record, so that a call costs nothing more.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter},
};
use sidecar_core::Reason;

use super::NO_LABELS;
use crate::decisions::{Decision, Flow, Flows};

/// Series with a method of their own; as many again without one.
const MOST: usize = 1_000;

/// Counted since the start. Written and read by tasks on no call's way.
#[derive(Debug)]
pub struct FlowCounts(Mutex<Flows>);

impl Default for FlowCounts {
    fn default() -> Self {
        Self(Mutex::new(Flows::new(MOST)))
    }
}

impl FlowCounts {
    /// More of this flow. What a caller invents takes no room: a path before a rule was found for it, a service that nobody
    /// defines.
    pub fn add(&self, flow: Flow<'_>, calls: u64) {
        let flow = match flow.how {
            Decision::Refused(Reason::ServiceUnknown) => Flow { path: "", service: "", ..flow },
            Decision::Audited(reason) | Decision::Refused(reason) if !has_a_rule(reason) => Flow { path: "", ..flow },
            Decision::Allowed | Decision::Audited(_) | Decision::Refused(_) => flow,
        };
        self.lock().add(flow, calls);
    }

    /// So many calls fitted into no flow.
    pub fn lost(&self, calls: u64) {
        self.lock().lose(calls);
    }

    fn lock(&self) -> MutexGuard<'_, Flows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut series = Vec::new();
        let counted = self.lock();
        let more = counted.beyond();
        counted.each(|flow, calls, ()| {
            let decision = match flow.how {
                Decision::Allowed => "allowed",
                Decision::Audited(_) => "audited",
                Decision::Refused(_) => "refused",
            };
            let texts = [flow.caller, flow.service, flow.path].map(|text| if text.is_empty() { "other" } else { text });
            series.push((texts.map(str::to_owned), decision, flow.how.reason(), calls));
        });
        // Nobody waits for what is written to the scraper.
        drop(counted);
        let help = "Calls by who called whom and what, and by what was decided";
        let mut calls = encoder.encode_descriptor("tenon_flow_calls", help, None, MetricType::Counter)?;
        for ([caller, callee, method], decision, reason, count) in &series {
            let labels = [
                ("caller", caller.as_str()),
                ("callee", callee.as_str()),
                ("method", method.as_str()),
                ("decision", decision),
                ("reason", reason),
            ];
            ConstCounter::new(*count).encode(calls.encode_family(&labels)?)?;
        }
        let help = "Calls that tenon_flow_calls lacks, because there were too many different ones";
        let mut rest = encoder.encode_descriptor("tenon_flow_calls_beyond", help, None, MetricType::Counter)?;
        ConstCounter::new(more).encode(rest.encode_family(&NO_LABELS)?)
    }
}

/// Whether a call that is refused for this reason has found its rule before. One that is shed for lack of memory has not.
pub fn has_a_rule(reason: Reason) -> bool {
    matches!(reason.phase(), "transaction" | "freshness" | "tenant") || reason == Reason::TenantRateLimited
}

#[cfg(test)]
mod tests {
    use prometheus_client::{collector::Collector, encoding::text::encode, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Shown(FlowCounts);

    impl Collector for Shown {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode(&mut encoder)
        }
    }

    fn text(counts: FlowCounts) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Shown(counts)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    fn flow<'a>(caller: &'a str, path: &'a str, decision: Decision) -> Flow<'a> {
        Flow { caller, service: "media", path, how: decision }
    }

    #[test]
    fn calls_are_counted_for_good_by_caller_callee_method_and_decision() {
        let counts = FlowCounts::default();
        for _ in 0..3 {
            counts.add(flow("wiki", "/m/Get", Decision::Allowed), 2);
        }
        counts.add(flow("wiki", "/m/Get", Decision::Refused(Reason::TenantSuspended)), 1);
        let text = text(counts);
        let labels = r#"caller="wiki",callee="media",method="/m/Get",decision="allowed",reason="""#;
        assert!(text.contains(&format!("tenon_flow_calls_total{{{labels}}} 6\n")), "{text}");
        assert!(text.contains(r#"decision="refused",reason="TENANT_SUSPENDED"} 1"#), "{text}");
    }

    #[test]
    fn what_callers_invent_makes_no_series() {
        let counts = FlowCounts::default();
        for number in 0..5_000 {
            let path = format!("/invented/{number}");
            for reason in [Reason::PathNotAllowed, Reason::Quarantined, Reason::AsapExpired, Reason::Overloaded] {
                counts.add(flow("wiki", &path, Decision::Refused(reason)), 1);
            }
            counts.add(flow("wiki", &path, Decision::Audited(Reason::PathNotAllowed)), 1);
            let unknown = Flow { service: &path, ..flow("wiki", &path, Decision::Refused(Reason::ServiceUnknown)) };
            counts.add(unknown, 1);
        }
        let text = text(counts);
        assert_eq!(text.matches("tenon_flow_calls_total{").count(), 6, "{text}");
        assert!(text.contains(r#"callee="other",method="other",decision="refused",reason="SERVICE_UNKNOWN"} 5000"#));
    }

    #[test]
    fn however_many_callers_and_methods_there_are_the_series_are_bounded_and_no_call_is_missing() {
        let counts = FlowCounts::default();
        for number in 0..5_000 {
            counts.add(flow(&format!("caller-{number}"), &format!("/m/{number}"), Decision::Allowed), 1);
        }
        counts.lost(7);
        let text = text(counts);
        assert_eq!(text.matches("tenon_flow_calls_total{").count(), 2 * MOST);
        assert!(text.contains(&format!("tenon_flow_calls_beyond_total{{}} {}\n", 5_000 - 2 * MOST + 7)), "the rest");
    }
}
