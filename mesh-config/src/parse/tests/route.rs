//! Documents of kind Route that are taken, and what becomes of them.

use tenon_proto::policy::v1 as proto;

use super::{file, with_base};
use crate::{compile, parse};

fn route(spec: &str) -> String {
    format!("apiVersion: tenon.dev/v1\nkind: Route\nmetadata: {{name: to-media}}\nspec:\n  service: media\n{spec}")
}

fn settings(spec: &str) -> proto::RouteSettings {
    let mesh = with_base(&route(spec)).unwrap_or_else(|problems| panic!("{problems}"));
    compile(&mesh).routes["media"].settings.clone().unwrap()
}

/// The settings of the only method there.
fn method(of: &str, spec: &str) -> proto::MethodRoute {
    let mut settings = settings(&format!("{of}  methods:\n    - paths: [/media.v1.Media/Get]\n{spec}"));
    settings.methods.remove(0)
}

#[test]
fn a_whole_route_becomes_part_of_the_record_of_its_service() {
    let came = settings(
        "  timeout: {default: 5s, max: 2m}
  retryBudget: {percent: 0, minPerSecond: 3}
  replayBytes: 16MiB
  outliers: {consecutiveFailures: 7, successRate: 2.25, ejection: 1500ms, maxEjected: 30%}
  slowStart: 1m
  healthCheck: {service: media.v1.Media, interval: 2s, timeout: 250ms, unhealthy: 4, healthy: 2}
  limits: {maxConcurrent: 200, minConcurrent: 10}
  methods:
    - paths: [/media.v1.Media/Get, /media.v1.Thumbnails/*]
      timeout: {default: 1s, max: 2s}
      idempotent: true
      retry: {codes: [UNAVAILABLE, ABORTED], attempts: 4, backoff: 10ms, maxBackoff: 1s}
      hedge: {after: 50ms, attempts: 3}
",
    );
    let timeout = |default_ms, max_ms| Some(proto::Timeout { default_ms, max_ms });
    let expected = proto::RouteSettings {
        name: "to-media".to_owned(),
        source: "m.yaml:5".to_owned(),
        timeout: timeout(5_000, 120_000),
        retry_budget: Some(proto::RetryBudget { percent: 0, min_per_second: 3 }),
        replay_bytes: 16 << 20,
        replay_off: false,
        outliers: Some(proto::Outliers {
            consecutive_failures: Some(7),
            success_rate_stdev_hundredths: Some(225),
            ejection_ms: Some(1_500),
            max_ejected_percent: Some(30),
        }),
        slow_start_ms: Some(60_000),
        health_check: Some(proto::HealthCheck {
            service: "media.v1.Media".to_owned(),
            interval_ms: 2_000,
            timeout_ms: 250,
            unhealthy: 4,
            healthy: 2,
        }),
        limits: Some(proto::Limits { max_concurrent: Some(200), min_concurrent: Some(10) }),
        methods: vec![proto::MethodRoute {
            paths: vec!["/media.v1.Media/Get".to_owned(), "/media.v1.Thumbnails/*".to_owned()],
            timeout: timeout(1_000, 2_000),
            retry: Some(proto::Retry { codes: vec![14, 10], attempts: 4, backoff_ms: 10, max_backoff_ms: 1_000 }),
            hedge: Some(proto::Hedge { after_ms: 50, attempts: 3 }),
        }],
    };
    assert_eq!(came, expected);
}

#[test]
fn what_a_route_does_not_say_stays_out_of_the_record_and_another_service_has_none() {
    let records = compile(&with_base(&route("")).unwrap());
    let bare = proto::RouteSettings {
        name: "to-media".to_owned(),
        source: "m.yaml:5".to_owned(),
        ..proto::RouteSettings::default()
    };
    assert_eq!(records.routes["media"].settings, Some(bare));
    assert_eq!(records.routes["wiki"].settings, None);
}

#[test]
fn what_is_off_is_told_apart_from_what_is_not_said() {
    let off =
        settings("  replayBytes: off\n  slowStart: off\n  outliers: {consecutiveFailures: off, successRate: off}\n");
    assert!(off.replay_off && off.replay_bytes == 0);
    assert_eq!(off.slow_start_ms, Some(0));
    let outliers = off.outliers.unwrap();
    assert_eq!((outliers.consecutive_failures, outliers.success_rate_stdev_hundredths), (Some(0), Some(0)));
    assert_eq!((outliers.ejection_ms, outliers.max_ejected_percent), (None, None));
    assert_eq!(settings("  timeout: {default: off}\n").timeout, None);
}

#[test]
fn what_is_said_in_part_has_the_documented_rest() {
    let came = settings("  retryBudget: {percent: 5}\n  healthCheck: {}\n  limits: {maxConcurrent: 2}\n");
    assert_eq!(came.retry_budget, Some(proto::RetryBudget { percent: 5, min_per_second: 10 }));
    let usual =
        proto::HealthCheck { service: String::new(), interval_ms: 5_000, timeout_ms: 1_000, unhealthy: 3, healthy: 1 };
    assert_eq!(came.health_check, Some(usual));
    assert_eq!(came.limits, Some(proto::Limits { max_concurrent: Some(2), min_concurrent: Some(2) }));
    let often = settings("  healthCheck: {interval: 300ms}\n").health_check.unwrap();
    assert_eq!(often.timeout_ms, 300, "never longer than the interval");
    let retry = method("", "      retry: {codes: [UNAVAILABLE]}\n").retry.unwrap();
    assert_eq!((retry.attempts, retry.backoff_ms, retry.max_backoff_ms), (3, 25, 250));
    let slow = method("", "      retry: {codes: [UNAVAILABLE], backoff: 30s}\n").retry.unwrap();
    assert_eq!(slow.max_backoff_ms, 60_000);
    let hedge = method("", "      idempotent: true\n      hedge: {after: p95}\n").hedge.unwrap();
    assert_eq!((hedge.after_ms, hedge.attempts), (0, 2));
}

#[test]
fn a_method_has_what_its_timeout_does_not_say_of_the_service() {
    let of = "  timeout: {default: 5s, max: 30s}\n";
    let timeout = |spec: &str| {
        let timeout = method(of, spec).timeout.map(|timeout| (timeout.default_ms, timeout.max_ms));
        timeout.unwrap_or((5_000, 30_000))
    };
    assert_eq!(timeout(""), (5_000, 30_000));
    assert_eq!(timeout("      timeout: {default: 1s}\n"), (1_000, 30_000));
    assert_eq!(timeout("      timeout: {max: 60s}\n"), (5_000, 60_000));
    assert_eq!(timeout("      timeout: {max: 2s}\n"), (2_000, 2_000), "the service's default gives way");
    assert_eq!(timeout("      timeout: {max: off}\n"), (5_000, 0));
    assert_eq!(timeout("      timeout: {default: off, max: off}\n"), (0, 0), "streams that stay open");
}

#[test]
fn a_route_may_stand_before_its_service() {
    let files = [file("a.yaml", &route("")), file("z.yaml", super::BASE)];
    assert!(parse(&files).is_ok());
}
