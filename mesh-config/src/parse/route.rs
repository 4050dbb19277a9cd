//! The kind `Route`: how one destination is called.

mod methods;

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Draft,
    document::{or_default, service_name},
    forms::{DURATION, LABEL, OFF, SIZE},
};
use crate::{
    mesh::{HealthCheck, Limits, Outliers, RetryBudget, Route, Setting, Timeout},
    names::{DocumentName, short},
    path,
    units::{OR_OFF, duration, duration_or_off, or_off, percent, shown, size_or_off},
    yaml::{
        At, Fields, Form, Map, Node, Reader,
        shape::{optional, required},
    },
};

pub(super) static ROUTE: Map = Map {
    what: "the spec of a Route",
    fields: &[
        required("service", LABEL, "The called service. No other Route may name it."),
        optional("timeout", Form::SomeMap(&TIMEOUT), "For methods that have none of their own. Default: no bound."),
        optional(
            "retryBudget",
            Form::SomeMap(&RETRY_BUDGET),
            "How many attempts beyond the first one each sidecar makes, hedges too.",
        ),
        optional(
            "replayBytes",
            OR_SIZE,
            "What of a request is kept for sending it again, up to 16MiB; a longer one is sent once. Default: 64KiB.",
        ),
        optional("outliers", Form::SomeMap(&OUTLIERS), "When callers leave an instance out for a while."),
        optional("slowStart", OR_DURATION, "For how long a new instance gets less than its share. Default: 10s."),
        optional(
            "healthCheck",
            Form::Map(&HEALTH_CHECK),
            "Callers ask each instance by grpc.health.v1.Health. Default: they do not.",
        ),
        optional("limits", Form::SomeMap(&LIMITS), "What one instance takes on; its own sidecar keeps them."),
        optional("methods", Form::List(&Form::Map(&methods::METHOD)), "The first that has the path decides."),
    ],
};

pub(super) static TIMEOUT: Map = Map {
    what: "a timeout",
    fields: &[
        optional("default", OR_DURATION, "Of calls that come without grpc-timeout. Never more than max."),
        optional("max", OR_DURATION, "Of every call, whatever its grpc-timeout."),
    ],
};

static RETRY_BUDGET: Map = Map {
    what: "a retry budget",
    fields: &[
        optional("percent", Form::Between(0, 100), "Of the calls of the last ten seconds. Default: 20."),
        optional("minPerSecond", Form::Between(0, 10_000), "So many are allowed in any case. Default: 10."),
    ],
};

static OUTLIERS: Map = Map {
    what: "what an outlier is",
    fields: &[
        optional(
            "consecutiveFailures",
            Form::Either(&[Form::Between(1, 1_000), OFF]),
            "Failures in a row that eject an instance. Default: 5.",
        ),
        optional(
            "successRate",
            Form::Either(&[Form::Decimal(0.1, 10.0), OFF]),
            "An instance whose success rate lies so many standard deviations below the mean is ejected. Default: 1.9.",
        ),
        optional("ejection", DURATION, "How long the first time; longer with each further one. Default: 10s."),
        optional("maxEjected", Form::Like("^[0-9]+%$"), "Of the instances, at most 50%. Default: 50%."),
    ],
};

static HEALTH_CHECK: Map = Map {
    what: "a health check",
    fields: &[
        optional(
            "service",
            Form::Like(r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"),
            "The gRPC service that is asked for. Default: the server as a whole.",
        ),
        optional("interval", DURATION, "Between two questions to one instance. Default: 5s."),
        optional("timeout", DURATION, "For the answer, never more than interval. Default: 1s."),
        optional("unhealthy", Form::Between(1, 100), "Bad answers in a row that make it unhealthy. Default: 3."),
        optional("healthy", Form::Between(1, 100), "Good answers in a row that make it healthy again. Default: 1."),
    ],
};

static LIMITS: Map = Map {
    what: "limits",
    fields: &[
        optional(
            "maxConcurrent",
            Form::Between(1, 1_000_000),
            "Calls at the app at once, at most; the limit adapts below it. Default: 1000.",
        ),
        optional(
            "minConcurrent",
            Form::Between(1, 1_000_000),
            "Calls at the app at once that are always let in. Default: 4, or maxConcurrent where that is less.",
        ),
    ],
};

const OR_DURATION: Form = Form::Either(&[DURATION, OFF]);
const OR_SIZE: Form = Form::Either(&[SIZE, OFF]);

/// Of a call, in milliseconds: up to a day.
const CALL_MS: RangeInclusive<u64> = 1..=86_400_000;
/// Of everything between calls, in milliseconds: up to an hour.
const PAUSE_MS: RangeInclusive<u64> = 100..=3_600_000;
const MOST_REPLAY_BYTES: u64 = 16 << 20;

pub(super) fn read(reader: &mut Reader<'_>, name: DocumentName, spec: &Node, draft: &mut Draft) -> Option<Route> {
    let fields = reader.fields(spec, &ROUTE)?;
    let service = fields.required(reader, "service", "the name of the called service").and_then(|node| {
        let service = service_name(reader, node, draft)?;
        draft.define(reader, &format!("Route of service {service}"), "", node.at);
        Some(service)
    });
    let timeout = or_default(reader, fields, "timeout", Timeout::default(), |reader, node| {
        timeout(reader, node, Timeout::default())
    });
    let retry_budget = or_default(reader, fields, "retryBudget", None, |reader, node| budget(reader, node).map(Some));
    let replay_bytes = or_default(reader, fields, "replayBytes", None, |reader, node| {
        size_or_off(reader, node, 1..=MOST_REPLAY_BYTES).map(Some)
    });
    let outliers = or_default(reader, fields, "outliers", Outliers::default(), outliers);
    let slow_start =
        or_default(reader, fields, "slowStart", None, |reader, node| duration_or_off(reader, node, PAUSE_MS).map(Some));
    let health_check =
        or_default(reader, fields, "healthCheck", None, |reader, node| health_check(reader, node).map(Some));
    let limits = or_default(reader, fields, "limits", None, |reader, node| limits(reader, node).map(Some));
    let methods = or_default(reader, fields, "methods", Vec::new(), |reader, node| {
        methods::read(reader, node, timeout.unwrap_or_default())
    });
    let source = format!("{}:{}", reader.file(), spec_line(fields, spec));
    Some(Route {
        name,
        service: service?,
        timeout: timeout?,
        retry_budget: retry_budget?,
        replay_bytes: replay_bytes?,
        outliers: outliers?,
        slow_start: slow_start?,
        health_check: health_check?,
        limits: limits?,
        methods: methods?,
        source,
    })
}

/// What is not said is as in `otherwise`, and a default that comes from there gives way to a bound that does not.
fn timeout(reader: &mut Reader<'_>, node: &Node, otherwise: Timeout) -> Option<Timeout> {
    let fields = reader.some_fields(node, &TIMEOUT)?;
    let mut read = |name: &str, otherwise: Option<Duration>| match fields.optional(name) {
        None => Some((otherwise, None)),
        Some(node) => Some((on(duration_or_off(reader, node, CALL_MS)?), Some(node.at))),
    };
    let (default, max) = (read("default", otherwise.default), read("max", otherwise.max));
    let ((mut default, default_at), (max, _)) = (default?, max?);
    if let (Some(longer), Some(bound)) = (default, max)
        && longer > bound
    {
        match default_at {
            None => default = max,
            Some(at) => {
                let message = format!(
                    "a default of {}, longer than the max of {}, expected at most that",
                    shown(longer),
                    shown(bound)
                );
                reader.problem(at, message);
                return None;
            }
        }
    }
    Some(Timeout { default, max })
}

fn on<T>(setting: Setting<T>) -> Option<T> {
    match setting {
        Setting::On(value) => Some(value),
        Setting::Off => None,
    }
}

fn budget(reader: &mut Reader<'_>, node: &Node) -> Option<RetryBudget> {
    let fields = reader.some_fields(node, &RETRY_BUDGET)?;
    let percent = or_default(reader, fields, "percent", 20, |reader, node| reader.number_of(node, 0..=100, ""));
    let least = or_default(reader, fields, "minPerSecond", 10, |reader, node| reader.number_of(node, 0..=10_000, ""));
    Some(RetryBudget { percent: percent?, min_per_second: least? })
}

fn outliers(reader: &mut Reader<'_>, node: &Node) -> Option<Outliers> {
    let fields = reader.some_fields(node, &OUTLIERS)?;
    let failures = or_default(reader, fields, "consecutiveFailures", None, |reader, node| {
        or_off(reader, node, |reader, node| reader.number_of(node, 1..=1_000, OR_OFF)).map(Some)
    });
    let success_rate = or_default(reader, fields, "successRate", None, |reader, node| {
        or_off(reader, node, |reader, node| reader.decimal_of(node, 0.1..=10.0, OR_OFF).map(hundredths)).map(Some)
    });
    let ejection =
        or_default(reader, fields, "ejection", None, |reader, node| duration(reader, node, PAUSE_MS).map(Some));
    let ejected = or_default(reader, fields, "maxEjected", None, |reader, node| percent(reader, node, 50).map(Some));
    Some(Outliers {
        consecutive_failures: failures?,
        success_rate_hundredths: success_rate?,
        ejection: ejection?,
        max_ejected_percent: ejected?,
    })
}

/// Of a number from 0.1 to 10.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 10 to 1,000")]
fn hundredths(number: f64) -> u32 {
    (number * 100.0).round() as u32
}

fn health_check(reader: &mut Reader<'_>, node: &Node) -> Option<HealthCheck> {
    let fields = reader.fields(node, &HEALTH_CHECK)?;
    let service = or_default(reader, fields, "service", String::new(), grpc_service);
    let interval =
        or_default(reader, fields, "interval", Duration::from_secs(5), |reader, node| duration(reader, node, PAUSE_MS));
    let usual = interval.unwrap_or_default().min(Duration::from_secs(1));
    let timeout = or_default(reader, fields, "timeout", usual, |reader, node| {
        let timeout = duration(reader, node, 10..=*PAUSE_MS.end())?;
        if let Some(interval) = interval.filter(|interval| timeout > *interval) {
            let message = format!(
                "a timeout of {}, longer than the interval of {}, expected at most that",
                shown(timeout),
                shown(interval)
            );
            reader.problem(node.at, message);
        }
        Some(timeout)
    });
    let mut in_a_row =
        |name, usual| or_default(reader, fields, name, usual, |reader, node| reader.number_of(node, 1..=100, ""));
    let (unhealthy, healthy) = (in_a_row("unhealthy", 3), in_a_row("healthy", 1));
    Some(HealthCheck {
        service: service?,
        interval: interval?,
        timeout: timeout?,
        unhealthy: unhealthy?,
        healthy: healthy?,
    })
}

fn grpc_service(reader: &mut Reader<'_>, node: &Node) -> Option<String> {
    let expected = "the name of a gRPC service, as media.v1.Media";
    let text = reader.form(node, expected)?;
    if path::is_service(text) {
        return Some(text.to_owned());
    }
    reader.problem(node.at, format!("found text {:?}, expected {expected}", short(text)));
    None
}

fn limits(reader: &mut Reader<'_>, node: &Node) -> Option<Limits> {
    let fields = reader.some_fields(node, &LIMITS)?;
    let max =
        or_default(reader, fields, "maxConcurrent", 1_000, |reader, node| reader.number_of(node, 1..=1_000_000, ""));
    let min = or_default(reader, fields, "minConcurrent", 4.min(max.unwrap_or(4)), |reader, node| {
        let min = reader.number_of(node, 1..=1_000_000, "")?;
        if let Some(max) = max.filter(|max| min > *max) {
            let message =
                format!("a minConcurrent of {min}, more than the maxConcurrent of {max}, expected at most that");
            reader.problem(node.at, message);
        }
        Some(min)
    });
    Some(Limits { max_concurrent: max?, min_concurrent: min? })
}

/// Rules stand where they begin, and so does a Route: at its service.
fn spec_line(fields: Fields<'_>, spec: &Node) -> u32 {
    let At { line, .. } = fields.optional("service").map_or(spec.at, |node| node.at);
    line
}
