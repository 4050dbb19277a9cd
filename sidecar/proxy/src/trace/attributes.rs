//! What a span says: names of OpenTelemetry's RPC conventions where there are any, and `tenon.` for the rest.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Status, status::StatusCode},
};

use super::Span;
use crate::{
    call::End,
    metrics::{Direction, Outcome},
};

/// Longest value, in bytes: what somebody else wrote may be of any length.
const LONGEST: usize = 1_024;

/// Text as the value of an attribute.
pub fn text(key: &str, value: &str) -> KeyValue {
    let until = (0..=LONGEST.min(value.len())).rev().find(|end| value.is_char_boundary(*end)).unwrap_or_default();
    attribute(key, Value::StringValue(value[..until].to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Of a span whose call has ended so. Never a header's value but the tenant's id and the request id.
pub(super) fn of(span: &Span, end: &End<'_>) -> Vec<KeyValue> {
    let facts = end.facts;
    let mut attributes = vec![
        text("rpc.system", "grpc"),
        text("tenon.direction", end.direction.as_str()),
        text("tenon.caller", &facts.caller),
        text("tenon.service", &facts.service),
        text("tenon.request_id", facts.request_id()),
        text("tenon.decision", decision(span, end)),
    ];
    if let Some((service, method)) = facts.uri.path().trim_start_matches('/').rsplit_once('/') {
        attributes.extend([text("rpc.service", service), text("rpc.method", method)]);
    }
    if !end.tenant.is_empty() {
        attributes.push(text("tenon.tenant", end.tenant));
    }
    if let Some((allowlist, rule)) = &span.rule {
        attributes.extend([text("tenon.allowlist", allowlist), text("tenon.rule", rule)]);
    }
    match end.outcome {
        Outcome::Refused => attributes.push(text("tenon.reason", end.status.unwrap_or_default())),
        Outcome::Finished => {
            if let Some(code) = code(end) {
                attributes.push(attribute("rpc.grpc.status_code", Value::IntValue(code)));
            }
        }
        Outcome::Cancelled | Outcome::Broken => {}
    }
    attributes
}

fn decision(span: &Span, end: &End<'_>) -> &'static str {
    match end.outcome {
        Outcome::Refused => "refused",
        Outcome::Finished | Outcome::Cancelled | Outcome::Broken if span.audited => "audited",
        Outcome::Finished | Outcome::Cancelled | Outcome::Broken => "allowed",
    }
}

fn code(end: &End<'_>) -> Option<i64> {
    end.status.and_then(|status| status.parse().ok())
}

/// By OpenTelemetry's conventions for gRPC: every failure is an error to who calls; to the callee those are that are its own.
pub(super) fn status(end: &End<'_>) -> Status {
    // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
    const OF_THE_SERVER: [i64; 6] = [2, 4, 12, 13, 14, 15];
    let failed = match (end.outcome, code(end)) {
        (Outcome::Refused | Outcome::Broken, _) => true,
        (Outcome::Finished, Some(code)) => match end.direction {
            Direction::Outbound => code != 0,
            Direction::Inbound => OF_THE_SERVER.contains(&code),
        },
        (Outcome::Finished, None) | (Outcome::Cancelled, _) => false,
    };
    let message = match end.outcome {
        Outcome::Refused | Outcome::Broken => end.status.unwrap_or_default().to_owned(),
        Outcome::Finished | Outcome::Cancelled => String::new(),
    };
    let code = if failed { StatusCode::Error } else { StatusCode::Unset };
    Status { message, code: code.into() }
}
