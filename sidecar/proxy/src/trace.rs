//! Spans of calls, where a trace is recorded: made here, exported by [`export`] over OTLP.
//!
//! A call that comes with a W3C trace context whose caller records it (`traceparent` with the flag `sampled`) gets a span on each
//! side, and the next hop is told that this span calls. One that comes with none begins a trace, as often as `--trace-share`
//! says. All others pass with the context they came with, and cost a look-up of one header; without `--otlp` nothing at all.

mod attributes;
pub mod export;

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_identity::clock;
use opentelemetry_proto::tonic::trace::v1::{Span as WireSpan, span::SpanKind};
use sidecar_core::trace_context::TraceContext;
use tokio::sync::mpsc;

use crate::{
    call::End,
    headers,
    metrics::{Direction, Spans},
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Of whoever made a context that is not continued.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Spans that wait to be exported; those above are counted.
const WAITING: usize = 2_048;

/// Begins and takes spans.
pub struct Tracer {
    spans: mpsc::Sender<WireSpan>,
    /// Of 2^32 calls without a trace context so many begin a trace.
    share: u64,
    counts: Arc<Spans>,
}

/// The span of one call on one side.
pub struct Span {
    /// As the next hop is told.
    own: TraceContext,
    /// The span that called; `None`: the trace begins here.
    parent: Option<[u8; 8]>,
    state: Option<HeaderValue>,
    /// The rule that let it pass, and its allowlist.
    rule: Option<(Box<str>, Box<str>)>,
    audited: bool,
}

impl Tracer {
    /// With the end that [`export::run`] takes spans from. `share`, from 0 to 1, is of calls that come without a trace.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 2^32")]
    pub fn new(share: f64, counts: Arc<Spans>) -> (Self, mpsc::Receiver<WireSpan>) {
        let (spans, waiting) = mpsc::channel(WAITING);
        let share = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)).ceil() as u64;
        (Self { spans, share, counts }, waiting)
    }

    /// The span of a call with this head; `None` where its trace is not recorded.
    #[must_use]
    pub fn begin(&self, head: &HeaderMap) -> Option<Box<Span>> {
        let mut values = head.get_all(TRACEPARENT).iter();
        let parent = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => TraceContext::parse(value.as_bytes()),
            // Several are none: the Recommendation has the trace begin anew.
            (Some(_), Some(_)) => None,
        };
        let (own, parent) = match parent {
            Some(parent) if parent.sampled => (parent.continued_by(headers::random())?, Some(parent.span)),
            Some(_) => return None,
            None => {
                let drawn = u64::from(u32::from_ne_bytes(headers::random()));
                if drawn >= self.share {
                    return None;
                }
                (TraceContext::new(headers::random(), headers::random(), true)?, None)
            }
        };
        let state = parent.and_then(|_| head.get(TRACESTATE).cloned());
        Some(Box::new(Span { own, parent, state, rule: None, audited: false }))
    }

    /// Takes the span of a call that has ended.
    pub fn ended(&self, span: &Span, end: &End<'_>) {
        if self.spans.try_send(span.to_wire(end)).is_err() {
            self.counts.lost(1);
        }
    }
}

impl Span {
    /// Tells the next hop who calls.
    pub fn continue_in(&self, head: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.own.to_string()) {
            head.insert(TRACEPARENT, headers::never_indexed(value));
        }
        if self.parent.is_none() {
            head.remove(TRACESTATE);
        }
    }

    /// It was decided that the call may be made: by which rule of which allowlist, or in audit mode in spite of all.
    pub fn passed(&mut self, rule: Option<(&str, &str)>, audited: bool) {
        self.rule = rule.map(|(allowlist, rule)| (allowlist.into(), rule.into()));
        self.audited = audited;
    }

    /// Of its trace.
    pub fn trace(&self) -> [u8; 16] {
        self.own.trace
    }

    /// The same in hexadecimal.
    pub fn trace_id(&self) -> String {
        self.own.trace_id()
    }

    fn to_wire(&self, end: &End<'_>) -> WireSpan {
        let now = clock::since_epoch();
        let nanoseconds = |moment: Duration| u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX);
        let kind = match end.direction {
            Direction::Outbound => SpanKind::Client,
            Direction::Inbound => SpanKind::Server,
        };
        WireSpan {
            trace_id: self.own.trace.to_vec(),
            span_id: self.own.span.to_vec(),
            trace_state: self.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default().to_owned(),
            parent_span_id: self.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
            flags: 1,
            name: end.facts.uri.path().trim_start_matches('/').to_owned(),
            kind: kind.into(),
            start_time_unix_nano: nanoseconds(now.saturating_sub(end.took)),
            end_time_unix_nano: nanoseconds(now),
            attributes: attributes::of(self, end),
            status: Some(attributes::status(end)),
            ..WireSpan::default()
        }
    }
}

#[cfg(test)]
mod tests;
