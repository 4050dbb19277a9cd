//! Routes of any mix of fields: each becomes a record within its bounds, or problems that say where.

use proptest::prelude::*;

use super::{BASE, file};
use crate::{Problems, compile, parse};

/// What may stand behind a field: what belongs there, and what does not.
fn value() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "off",
        "p95",
        "5s",
        "250ms",
        "1m",
        "0ms",
        "90s",
        "1441m",
        "18446744073709551616m",
        "-1s",
        "1h",
        "1.5s",
        "ms",
        "5",
        "0",
        "-1",
        "3",
        "1000001",
        "1.9",
        ".nan",
        ".inf",
        "1e400",
        "64KiB",
        "16MiB",
        "17MiB",
        "0B",
        "50%",
        "51%",
        "0%",
        "%",
        "true",
        "false",
        "~",
        "''",
        "[]",
        "{}",
        "media",
        "wiki",
        "nobody",
        "media.v1.Media",
        "/a.B/C",
        "[/a.B/C]",
        "[/a.B/*, /a.B/C]",
        "[a]",
        "[UNAVAILABLE]",
        "[UNAVAILABLE, INTERNAL]",
        "[OK]",
        "[UNAVAILABLE, UNAVAILABLE]",
        "[14]",
    ]);
    prop_oneof![8 => word.prop_map(str::to_owned), 1 => "[a-z0-9%.]{0,6}".prop_map(|text| format!("{text:?}"))]
}

/// Some of these fields with these values, as a map on one line.
fn map(fields: &'static [&'static str], value: BoxedStrategy<String>) -> BoxedStrategy<String> {
    let field = (prop::sample::select(fields), value).prop_map(|(name, value)| (name, format!("{name}: {value}")));
    let fields = prop::collection::vec(field, 0..5).prop_map(|mut fields| {
        fields.sort();
        fields.dedup_by_key(|(name, _)| *name);
        fields.into_iter().map(|(_, field)| field).collect::<Vec<_>>().join(", ")
    });
    fields.prop_map(|fields| format!("{{{fields}}}")).boxed()
}

/// Names of every map in a Route, so that they also stand where they do not belong.
const NAMES: &[&str] = &[
    "default",
    "max",
    "percent",
    "minPerSecond",
    "consecutiveFailures",
    "successRate",
    "ejection",
    "maxEjected",
    "service",
    "interval",
    "timeout",
    "unhealthy",
    "healthy",
    "maxConcurrent",
    "minConcurrent",
    "codes",
    "attempts",
    "backoff",
    "maxBackoff",
    "after",
    "paths",
];

const SPEC: &[&str] = &[
    "service",
    "timeout",
    "retryBudget",
    "replayBytes",
    "outliers",
    "slowStart",
    "healthCheck",
    "limits",
    "methods",
    "other",
];

const METHOD: &[&str] = &["paths", "timeout", "idempotent", "retry", "hedge"];

/// One of the maps with its own fields and fitting values more often than not: else hardly one would be taken.
fn fitting() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "timeout: {default: 5s, max: 30s}",
        "timeout: {default: 45s, max: off}",
        "retryBudget: {percent: 100}",
        "replayBytes: off",
        "replayBytes: 16MiB",
        "outliers: {consecutiveFailures: off, successRate: 10}",
        "outliers: {successRate: 0.1, maxEjected: 1%}",
        "slowStart: 60m",
        "healthCheck: {}",
        "healthCheck: {interval: 100ms}",
        "limits: {maxConcurrent: 1}",
        "methods: [{paths: [/a.B/*], timeout: {max: 1ms}, retry: {codes: [ABORTED], backoff: 60s}}]",
        "methods: [{paths: [/a.B/C], timeout: {default: 40s}, idempotent: true, hedge: {after: p95, attempts: 3}}]",
    ])
    .prop_map(str::to_owned)
}

fn spec() -> impl Strategy<Value = String> {
    let inner = prop_oneof![2 => value(), 3 => map(NAMES, value().boxed())].boxed();
    let method = map(METHOD, inner.clone());
    let methods = prop::collection::vec(method, 0..3).prop_map(|methods| format!("methods: [{}]", methods.join(", ")));
    let mixed = (prop::sample::select(SPEC), inner).prop_map(|(name, value)| format!("{name}: {value}"));
    let field = prop_oneof![6 => fitting(), 2 => mixed, 1 => methods];
    (prop::collection::vec(field, 0..6), any::<bool>()).prop_map(|(mut fields, service)| {
        if service {
            fields.insert(0, "service: media".to_owned());
        }
        let name = |field: &String| field.split(':').next().map(str::to_owned);
        fields.sort_by_key(name);
        fields.dedup_by_key(|field| name(field));
        format!("{{{}}}", fields.join(", "))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_mix_of_fields_is_a_record_within_bounds_or_problems_with_a_place(spec in spec()) {
        let text = format!("apiVersion: tenon.dev/v1\nkind: Route\nmetadata: {{name: r}}\nspec: {spec}\n");
        match parse(&[file("base.yaml", BASE), file("r.yaml", &text)]) {
            Err(Problems(problems)) => {
                prop_assert!(!problems.is_empty());
                for problem in problems {
                    let at = (problem.file.as_str(), problem.line);
                    prop_assert_eq!(at, ("r.yaml", 4), "{}", problem);
                    let column = problem.column as usize;
                    prop_assert!((1..=6 + spec.chars().count()).contains(&column), "{}", problem);
                    prop_assert!(problem.message.contains(", expected "), "{}", problem);
                }
            }
            Ok(mesh) => {
                let records = compile(&mesh);
                let of = |service: &str| records.routes[service].settings.clone();
                let settings = of("media").or_else(|| of("wiki")).unwrap();
                for timeout in settings.methods.iter().filter_map(|method| method.timeout).chain(settings.timeout) {
                    prop_assert!(timeout.max_ms == 0 || timeout.default_ms <= timeout.max_ms);
                    prop_assert!(timeout.max_ms.max(timeout.default_ms) <= 86_400_000);
                }
                prop_assert!(settings.replay_bytes <= 16 << 20);
                for method in settings.methods {
                    prop_assert!(!method.paths.is_empty());
                    if let Some(retry) = method.retry {
                        prop_assert!((2..=5).contains(&retry.attempts) && !retry.codes.contains(&0));
                        prop_assert!(retry.backoff_ms >= 1 && (retry.backoff_ms..=60_000).contains(&retry.max_backoff_ms));
                    }
                    prop_assert!(method.hedge.is_none_or(|hedge| (2..=3).contains(&hedge.attempts)));
                }
                if let Some(limits) = settings.limits {
                    prop_assert!(limits.min_concurrent >= Some(1) && limits.min_concurrent <= limits.max_concurrent);
                }
                if let Some(check) = settings.health_check {
                    prop_assert!(check.timeout_ms <= check.interval_ms && check.unhealthy >= 1 && check.healthy >= 1);
                }
            }
        }
    }
}
