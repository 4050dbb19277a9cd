//! How a destination is called: what its `Route` document says, compiled. A destination without one has the defaults, which
//! give no timeout and send nothing again but what was surely not begun (DESIGN §8).

use std::time::Duration;

use tenon_proto::policy::v1 as proto;

/// How one destination is called.
#[derive(Clone, Debug)]
pub struct Route {
    /// What of a request is kept for sending it again, in bytes; a longer one is sent once. 0: `off`, each is sent once.
    pub replay_bytes: usize,
    /// How many attempts beyond the first there may be.
    pub retry_budget: RetryBudget,
    /// When instances are left out for a while.
    pub outliers: Outliers,
    /// For how long a new instance gets less than its share; zero: none.
    pub slow_start: Duration,
    /// How instances are asked for their health; `None`: they are not.
    pub health_check: Option<HealthCheck>,
    /// What one instance takes on; read by its own sidecar.
    pub limits: Limits,
    /// For methods that have none of their own.
    otherwise: MethodRoute,
    /// The first that has the path decides.
    methods: Box<[(Box<[Pattern]>, MethodRoute)]>,
}

/// How some methods are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MethodRoute {
    /// For calls without `grpc-timeout`, and the bound on all.
    pub timeout: Timeout,
    /// Which failures are tried again; `None`: none but what was surely not begun.
    pub retry: Option<Retry>,
    /// Whether a slow attempt gets a second one beside it.
    pub hedge: Option<Hedge>,
}

/// How long a call may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeout {
    /// Where the call brings none.
    pub default: Option<Duration>,
    /// Whatever the call brings.
    pub max: Option<Duration>,
}

/// Which failures are tried again, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// gRPC status codes, as bits: code 14 is bit 14.
    pub codes: u32,
    /// With the first one.
    pub attempts: u32,
    /// Mean of the first pause.
    pub backoff: Duration,
    /// Bound on the mean of any pause.
    pub max_backoff: Duration,
}

/// When a second attempt is sent beside the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// `None`: after the 95th percentile of what the method takes.
    pub after: Option<Duration>,
    /// With the first one.
    pub attempts: u32,
}

/// How many attempts beyond the first one sidecar makes at one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the calls of the last ten seconds, in percent.
    pub percent: u32,
    /// In any case.
    pub min_per_second: u32,
}

/// When an instance is left out for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outliers {
    /// After so many failures in a row; `None`: never.
    pub consecutive_failures: Option<u32>,
    /// When its success rate is so many standard deviations below the mean; `None`: never.
    pub success_rate_stdev: Option<f64>,
    /// How long the first time.
    pub ejection: Duration,
    /// Of the instances, at most, in percent: 50 or less.
    pub max_ejected_percent: u32,
}

/// How instances are asked for their health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The service named in the request; empty: the server as a whole.
    pub service: Box<str>,
    /// Between two questions to one instance.
    pub interval: Duration,
    /// For the answer.
    pub timeout: Duration,
    /// Bad answers in a row that make it unhealthy.
    pub unhealthy: u32,
    /// Good answers in a row that make it healthy again.
    pub healthy: u32,
}

/// What one instance takes on: the limit that adapts stays between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls at the app at once, at most.
    pub max_concurrent: u32,
    /// Calls at the app at once that are always let in.
    pub min_concurrent: u32,
    /// A tenant that has the instance to itself is refused for them too: so where the document says what they are.
    pub alone: bool,
}

/// A path, or all methods of a gRPC service.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Exact(Box<str>),
    /// With the slash at its end.
    MethodsOf(Box<str>),
}

impl Default for Route {
    fn default() -> Self {
        Self::decode(&proto::RouteSettings::default())
    }
}

impl Route {
    /// From the record of a destination. Whatever is out of bounds is brought into them: one strange number must not take a
    /// destination away.
    pub fn decode(record: &proto::RouteSettings) -> Self {
        let otherwise = MethodRoute { timeout: timeout(record.timeout.as_ref()), retry: None, hedge: None };
        let methods = record.methods.iter().map(|method| method_route(method, otherwise.timeout)).collect();
        let budget = record.retry_budget.unwrap_or(proto::RetryBudget { percent: 20, min_per_second: 10 });
        let outliers = record.outliers.unwrap_or_default();
        let (limits, alone) = (record.limits.unwrap_or_default(), record.limits.is_some());
        let min_concurrent = limits.min_concurrent.unwrap_or(4).max(1);
        Self {
            replay_bytes: match record.replay_bytes {
                _ if record.replay_off => 0,
                0 => 64 << 10,
                bytes => usize::try_from(bytes.min(16 << 20)).unwrap_or(16 << 20),
            },
            retry_budget: RetryBudget { percent: budget.percent.min(100), min_per_second: budget.min_per_second },
            outliers: Outliers {
                consecutive_failures: some(outliers.consecutive_failures.unwrap_or(5)),
                success_rate_stdev: some(outliers.success_rate_stdev_hundredths.unwrap_or(190))
                    .map(|hundredths| f64::from(hundredths) / 100.0),
                ejection: Duration::from_millis(outliers.ejection_ms.unwrap_or(10_000).max(1).into()),
                max_ejected_percent: outliers.max_ejected_percent.unwrap_or(50).min(50),
            },
            slow_start: Duration::from_millis(record.slow_start_ms.unwrap_or(10_000).into()),
            health_check: record.health_check.as_ref().map(health_check),
            limits: Limits {
                max_concurrent: limits.max_concurrent.unwrap_or(1_000).max(min_concurrent),
                min_concurrent,
                alone,
            },
            otherwise,
            methods,
        }
    }

    /// How a path is called. No allocation.
    pub fn method(&self, path: &str) -> &MethodRoute {
        let found = self.methods.iter().find(|(patterns, _)| patterns.iter().any(|pattern| pattern.has(path)));
        found.map_or(&self.otherwise, |(_, method)| method)
    }
}

impl Pattern {
    fn has(&self, path: &str) -> bool {
        match self {
            Pattern::Exact(exact) => **exact == *path,
            Pattern::MethodsOf(service) => {
                path.strip_prefix(&**service).is_some_and(|method| !method.is_empty() && !method.contains('/'))
            }
        }
    }
}

impl Retry {
    /// Whether a gRPC status code is tried again.
    pub fn covers(&self, code: u32) -> bool {
        code < u32::BITS && self.codes & (1 << code) != 0
    }
}

fn method_route(record: &proto::MethodRoute, otherwise: Timeout) -> (Box<[Pattern]>, MethodRoute) {
    let patterns = record.paths.iter().map(|path| match path.strip_suffix('*') {
        Some(service) => Pattern::MethodsOf(service.into()),
        None => Pattern::Exact(path.as_str().into()),
    });
    let retry = record.retry.as_ref().map(|retry| Retry {
        // OK is no failure.
        codes: retry.codes.iter().filter(|code| (1..u32::BITS).contains(code)).fold(0, |all, code| all | 1 << code),
        attempts: retry.attempts.clamp(2, 5),
        backoff: Duration::from_millis(retry.backoff_ms.into()),
        max_backoff: Duration::from_millis(retry.max_backoff_ms.max(retry.backoff_ms).into()),
    });
    let hedge = record.hedge.as_ref().map(|hedge| Hedge {
        after: some(hedge.after_ms).map(|ms| Duration::from_millis(ms.into())),
        attempts: hedge.attempts.clamp(2, 3),
    });
    let timeout = record.timeout.as_ref().map_or(otherwise, |own| timeout(Some(own)));
    (patterns.collect(), MethodRoute { timeout, retry, hedge })
}

fn timeout(record: Option<&proto::Timeout>) -> Timeout {
    let duration = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
    let record = record.copied().unwrap_or_default();
    Timeout { default: duration(record.default_ms), max: duration(record.max_ms) }
}

fn health_check(record: &proto::HealthCheck) -> HealthCheck {
    let at_least = |ms: u32, least: u64| Duration::from_millis(u64::from(ms).max(least));
    HealthCheck {
        service: record.service.as_str().into(),
        interval: at_least(record.interval_ms, 100),
        timeout: at_least(record.timeout_ms, 10),
        unhealthy: record.unhealthy.max(1),
        healthy: record.healthy.max(1),
    }
}

/// Nothing for zero.
fn some(number: u32) -> Option<u32> {
    (number > 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_document_nothing_has_a_timeout_and_nothing_that_may_have_begun_is_sent_again() {
        assert_eq!(*Route::default().method("/media.v1.Media/Get"), MethodRoute::default());
    }

    #[test]
    fn the_first_method_that_has_the_path_decides() {
        let method = |path: &str, default_ms| proto::MethodRoute {
            paths: vec![path.to_owned()],
            timeout: Some(proto::Timeout { default_ms, max_ms: 0 }),
            ..proto::MethodRoute::default()
        };
        let route = Route::decode(&proto::RouteSettings {
            timeout: Some(proto::Timeout { default_ms: 3, max_ms: 4 }),
            methods: vec![method("/a.B/Get", 1), method("/a.B/*", 2)],
            ..proto::RouteSettings::default()
        });
        let default = |path: &str| route.method(path).timeout.default.map(|timeout| timeout.as_millis());
        let found = ["/a.B/Get", "/a.B/List", "/a.B/", "/a.B/x/y", "/a.C/Get"].map(default);
        assert_eq!(found, [Some(1), Some(2), Some(3), Some(3), Some(3)]);
    }

    fn of_file(spec: &str) -> Route {
        let text = format!(
            "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {{name: m}}\nspec: {{trustDomain: a.example, regions: [r]}}\n\
             ---\napiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: media}}\nspec: {{}}\n\
             ---\napiVersion: tenon.dev/v1\nkind: Route\nmetadata: {{name: media}}\nspec:\n  service: media\n{spec}"
        );
        let file = mesh_config::SourceFile { path: "m.yaml".to_owned(), text };
        let mesh = mesh_config::parse(&[file]).unwrap_or_else(|problems| panic!("{problems}"));
        let records = mesh_config::compile(&mesh);
        Route::decode(records.routes["media"].settings.as_ref().unwrap())
    }

    #[test]
    fn what_a_file_says_is_what_a_sidecar_does() {
        let route = of_file(
            "  timeout: {default: 5s, max: 30s}
  retryBudget: {percent: 0, minPerSecond: 0}
  replayBytes: 16MiB
  outliers: {consecutiveFailures: off, successRate: 2.5, ejection: 1s, maxEjected: 10%}
  slowStart: off
  healthCheck: {service: media.v1.Media, interval: 2s, timeout: 500ms, unhealthy: 2, healthy: 4}
  limits: {maxConcurrent: 2}
  methods:
    - paths: [/a.B/*]
      timeout: {default: off}
      idempotent: true
      retry: {codes: [UNAVAILABLE, ABORTED], attempts: 5, backoff: 10ms}
      hedge: {after: p95, attempts: 3}
",
        );
        let (ms, nothing) = (Duration::from_millis, route.method("/a.C/Get"));
        assert_eq!(nothing.timeout, Timeout { default: Some(ms(5_000)), max: Some(ms(30_000)) });
        assert_eq!((nothing.retry, nothing.hedge), (None, None));
        let method = route.method("/a.B/Get");
        assert_eq!(method.timeout, Timeout { default: None, max: Some(ms(30_000)) });
        let retry = Retry { codes: 1 << 14 | 1 << 10, attempts: 5, backoff: ms(10), max_backoff: ms(100) };
        assert_eq!(method.retry, Some(retry));
        assert_eq!(method.hedge, Some(Hedge { after: None, attempts: 3 }));
        assert_eq!(route.retry_budget, RetryBudget { percent: 0, min_per_second: 0 });
        assert_eq!((route.replay_bytes, route.slow_start), (16 << 20, Duration::ZERO));
        let outliers = Outliers {
            consecutive_failures: None,
            success_rate_stdev: Some(2.5),
            ejection: ms(1_000),
            max_ejected_percent: 10,
        };
        assert_eq!(route.outliers, outliers);
        let check = HealthCheck {
            service: "media.v1.Media".into(),
            interval: ms(2_000),
            timeout: ms(500),
            unhealthy: 2,
            healthy: 4,
        };
        assert_eq!(route.health_check, Some(check));
        assert_eq!((route.limits.max_concurrent, route.limits.min_concurrent), (2, 2));
        assert_eq!(of_file("  replayBytes: off\n").replay_bytes, 0);
    }

    #[test]
    fn a_document_that_says_nothing_changes_nothing() {
        let (bare, none) = (of_file(""), Route::default());
        assert_eq!(format!("{bare:?}"), format!("{none:?}"));
    }
}
