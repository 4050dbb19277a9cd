//! How some methods of a destination are called.

use std::{ops::RangeInclusive, time::Duration};

use super::{TIMEOUT, timeout};
use crate::{
    mesh::{Hedge, Retry, RouteMethod, StatusCode, Timeout},
    parse::{
        allowlist::{each, path},
        document::or_default,
        forms::{DURATION, PATH},
    },
    units::{duration, duration_or_word, shown},
    yaml::{
        Form, Map, Node, Reader, Value,
        shape::{optional, required, words},
    },
};

pub(super) static METHOD: Map = Map {
    what: "a method of a Route",
    fields: &[
        required(
            "paths",
            Form::Set(&PATH),
            "An exact method, /package.Service/Method, or all methods of one gRPC service, /package.Service/*.",
        ),
        optional(
            "timeout",
            Form::SomeMap(&TIMEOUT),
            "What it does not say is as for the whole destination; off: no bound, as streams that stay open want it.",
        ),
        optional("idempotent", Form::Boolean, "true: to do it twice is as good as to do it once. Default: false."),
        optional(
            "retry",
            Form::Map(&RETRY),
            "Which failures are tried again. Default: none but what surely did not reach the app.",
        ),
        optional(
            "hedge",
            Form::Map(&HEDGE),
            "A slow attempt gets a second one beside it; the first answer counts. Only with idempotent: true.",
        ),
    ],
};

static RETRY: Map = Map {
    what: "a retry",
    fields: &[
        required(
            "codes",
            Form::Set(&Form::Choice(|| words(StatusCode::ALL))),
            "gRPC status codes that are tried again, before anything of an answer has come.",
        ),
        optional("attempts", Form::Between(2, 5), "With the first one. Default: 3."),
        optional("backoff", DURATION, "Mean of the first pause, doubled by each further one. Default: 25ms."),
        optional("maxBackoff", DURATION, "Bound on the mean of any pause. Default: ten times backoff, and at most 1m."),
    ],
};

static HEDGE: Map = Map {
    what: "a hedge",
    fields: &[
        required(
            "after",
            Form::Either(&[DURATION, Form::Choice(|| vec![P95])]),
            "A duration without an answer; or p95: what 95 of 100 calls of the method take at most.",
        ),
        optional("attempts", Form::Between(2, 3), "With the first one. Default: 2."),
    ],
};

const P95: &str = "p95";

/// Of a pause between attempts, in milliseconds: up to a minute.
const BACKOFF_MS: RangeInclusive<u64> = 1..=60_000;

pub(super) fn read(reader: &mut Reader<'_>, node: &Node, otherwise: Timeout) -> Option<Vec<RouteMethod>> {
    let items = reader.list(node, "methods")?;
    let methods: Vec<RouteMethod> = items.iter().filter_map(|item| method(reader, item, otherwise)).collect();
    (methods.len() == items.len()).then_some(methods)
}

fn method(reader: &mut Reader<'_>, node: &Node, otherwise: Timeout) -> Option<RouteMethod> {
    let fields = reader.fields(node, &METHOD)?;
    let paths = fields
        .required(reader, "paths", "a list of gRPC paths")
        .and_then(|node| each(reader, node, "gRPC paths", path));
    let timeout = or_default(reader, fields, "timeout", otherwise, |reader, node| timeout(reader, node, otherwise));
    let idempotent = or_default(reader, fields, "idempotent", false, |reader, node| reader.boolean(node));
    let retry = or_default(reader, fields, "retry", None, |reader, node| retry(reader, node).map(Some));
    let hedge = or_default(reader, fields, "hedge", None, |reader, node| {
        if idempotent == Some(false) {
            let message =
                "a hedge sends calls twice that are not named idempotent, expected idempotent: true beside it";
            reader.problem(node.at, message);
        }
        hedge(reader, node).map(Some)
    });
    Some(RouteMethod { paths: paths?, timeout: timeout?, idempotent: idempotent?, retry: retry?, hedge: hedge? })
}

fn retry(reader: &mut Reader<'_>, node: &Node) -> Option<Retry> {
    let fields = reader.fields(node, &RETRY)?;
    let codes = fields.required(reader, "codes", "a list of gRPC status codes, as [UNAVAILABLE]");
    let codes = codes.and_then(|node| each(reader, node, "gRPC status codes", code));
    let attempts = or_default(reader, fields, "attempts", 3, |reader, node| reader.number_of(node, 2..=5, ""));
    let backoff = or_default(reader, fields, "backoff", Duration::from_millis(25), |reader, node| {
        duration(reader, node, BACKOFF_MS)
    });
    let max = or_default(reader, fields, "maxBackoff", usual_max(backoff.unwrap_or_default()), |reader, node| {
        let max = duration(reader, node, BACKOFF_MS)?;
        if let Some(backoff) = backoff.filter(|backoff| max < *backoff) {
            let message = format!(
                "a maxBackoff of {}, shorter than the backoff of {}, expected at least that",
                shown(max),
                shown(backoff)
            );
            reader.problem(node.at, message);
        }
        Some(max)
    });
    Some(Retry { codes: codes?, attempts: attempts?, backoff: backoff?, max_backoff: max? })
}

/// Ten times the first one, but no longer than may be written.
fn usual_max(backoff: Duration) -> Duration {
    (backoff * 10).min(Duration::from_millis(*BACKOFF_MS.end()))
}

fn code(reader: &mut Reader<'_>, node: &Node) -> Option<StatusCode> {
    if matches!(&node.value, Value::Text(text) if text == "OK") {
        reader.problem(node.at, "OK is no failure, expected codes of failures alone");
        return None;
    }
    reader.choice(node, StatusCode::ALL)
}

fn hedge(reader: &mut Reader<'_>, node: &Node) -> Option<Hedge> {
    let fields = reader.fields(node, &HEDGE)?;
    let after = fields.required(reader, "after", "p95, or a duration in ms, s or m").and_then(|node| {
        if matches!(&node.value, Value::Text(text) if text == P95) {
            return Some(None);
        }
        duration_or_word(reader, node, BACKOFF_MS, ", or p95").map(Some)
    });
    let attempts = or_default(reader, fields, "attempts", 2, |reader, node| reader.number_of(node, 2..=3, ""));
    Some(Hedge { after: after?, attempts: attempts? })
}
