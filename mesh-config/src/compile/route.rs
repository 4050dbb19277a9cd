//! What callers are told of a Route document. What the document leaves out stays out: sidecars have the defaults.

use std::time::Duration;

use tenon_proto::policy::v1 as proto;

use crate::mesh::{Hedge, Outliers, Retry, Route, RouteMethod, Setting, StatusCode, Timeout};

pub(super) fn settings(route: &Route) -> proto::RouteSettings {
    proto::RouteSettings {
        name: route.name.to_string(),
        source: route.source.clone(),
        timeout: (route.timeout != Timeout::default()).then(|| timeout(route.timeout)),
        methods: route.methods.iter().map(|one| method(one, route.timeout)).collect(),
        retry_budget: route
            .retry_budget
            .map(|budget| proto::RetryBudget { percent: budget.percent, min_per_second: budget.min_per_second }),
        replay_bytes: match route.replay_bytes {
            Some(Setting::On(bytes)) => bytes,
            Some(Setting::Off) | None => 0,
        },
        replay_off: route.replay_bytes == Some(Setting::Off),
        outliers: (route.outliers != Outliers::default()).then(|| outliers(route.outliers)),
        slow_start_ms: route.slow_start.map(|slow_start| or_zero(slow_start, short_ms)),
        health_check: route.health_check.as_ref().map(|check| proto::HealthCheck {
            service: check.service.clone(),
            interval_ms: short_ms(check.interval),
            timeout_ms: short_ms(check.timeout),
            unhealthy: check.unhealthy,
            healthy: check.healthy,
        }),
        limits: route.limits.map(|limits| proto::Limits {
            max_concurrent: Some(limits.max_concurrent),
            min_concurrent: Some(limits.min_concurrent),
        }),
    }
}

fn method(method: &RouteMethod, otherwise: Timeout) -> proto::MethodRoute {
    proto::MethodRoute {
        paths: method.paths.clone(),
        timeout: (method.timeout != otherwise).then(|| timeout(method.timeout)),
        retry: method.retry.as_ref().map(retry),
        hedge: method
            .hedge
            .map(|Hedge { after, attempts }| proto::Hedge { after_ms: after.map_or(0, short_ms), attempts }),
    }
}

fn retry(retry: &Retry) -> proto::Retry {
    let number = |code: &StatusCode| *code as u32;
    proto::Retry {
        codes: retry.codes.iter().map(number).collect(),
        attempts: retry.attempts,
        backoff_ms: short_ms(retry.backoff),
        max_backoff_ms: short_ms(retry.max_backoff),
    }
}

fn outliers(outliers: Outliers) -> proto::Outliers {
    proto::Outliers {
        consecutive_failures: outliers.consecutive_failures.map(|failures| or_zero(failures, |failures| failures)),
        success_rate_stdev_hundredths: outliers.success_rate_hundredths.map(|rate| or_zero(rate, |rate| rate)),
        ejection_ms: outliers.ejection.map(short_ms),
        max_ejected_percent: outliers.max_ejected_percent,
    }
}

fn timeout(timeout: Timeout) -> proto::Timeout {
    proto::Timeout { default_ms: timeout.default.map_or(0, ms), max_ms: timeout.max.map_or(0, ms) }
}

fn or_zero<T>(setting: Setting<T>, number: impl FnOnce(T) -> u32) -> u32 {
    match setting {
        Setting::Off => 0,
        Setting::On(value) => number(value),
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Of what is an hour at most.
fn short_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
