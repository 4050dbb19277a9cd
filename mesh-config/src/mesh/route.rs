//! How a destination is called: what its Route document says.

use std::time::Duration;

use crate::names::{DocumentName, ServiceName};

/// A document of kind `Route`. What is absent has the default of the sidecars.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// `metadata.name`.
    pub name: DocumentName,
    /// The destination. No other Route has it.
    pub service: ServiceName,
    /// For methods that have none of their own.
    pub timeout: Timeout,
    /// How many attempts beyond the first one there may be.
    pub retry_budget: Option<RetryBudget>,
    /// What of a request is kept for sending it again, in bytes.
    pub replay_bytes: Option<Setting<u64>>,
    /// When instances are left out for a while.
    pub outliers: Outliers,
    /// For how long a new instance gets less than its share.
    pub slow_start: Option<Setting<Duration>>,
    /// `None`: instances are not asked.
    pub health_check: Option<HealthCheck>,
    /// What one instance takes on.
    pub limits: Option<Limits>,
    /// The first that has the path decides.
    pub methods: Vec<RouteMethod>,
    /// Where it stands: `media.yaml:12`.
    pub source: String,
}

/// A setting that may be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting<T> {
    /// `off`
    Off,
    /// So much.
    On(T),
}

/// How long calls may take; the default is never more than the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeout {
    /// Of calls that come without `grpc-timeout`; `None`: no bound.
    pub default: Option<Duration>,
    /// Of every call; `None`: no bound.
    pub max: Option<Duration>,
}

/// How some methods of a destination are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMethod {
    /// `/package.Service/Method` or `/package.Service/*`; never empty.
    pub paths: Vec<String>,
    /// What it does not say itself is the destination's.
    pub timeout: Timeout,
    /// To do it twice is as good as to do it once.
    pub idempotent: bool,
    /// `None`: only what was surely not begun is sent again.
    pub retry: Option<Retry>,
    /// Only beside `idempotent`.
    pub hedge: Option<Hedge>,
}

/// Which failures are tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Never empty.
    pub codes: Vec<StatusCode>,
    /// With the first one: 2 to 5.
    pub attempts: u32,
    /// Mean of the first pause, doubled by each further one.
    pub backoff: Duration,
    /// Bound on the mean of any pause; never less than `backoff`.
    pub max_backoff: Duration,
}

/// When a second attempt is sent beside the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hedge {
    /// `None`: after the 95th percentile of what the method takes.
    pub after: Option<Duration>,
    /// With the first one: 2 or 3.
    pub attempts: u32,
}

/// How many attempts beyond the first one sidecar makes at one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the calls of the last ten seconds.
    pub percent: u32,
    /// In any case.
    pub min_per_second: u32,
}

/// When instances are left out for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outliers {
    /// After so many failures in a row.
    pub consecutive_failures: Option<Setting<u32>>,
    /// Whose success rate is so many hundredths of a standard deviation below the mean.
    pub success_rate_hundredths: Option<Setting<u32>>,
    /// How long the first time.
    pub ejection: Option<Duration>,
    /// Of the instances, at most: 1 to 50.
    pub max_ejected_percent: Option<u32>,
}

/// How instances are asked for their health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Named in the request; empty: the server as a whole.
    pub service: String,
    /// Between two questions to one instance.
    pub interval: Duration,
    /// For the answer; never more than `interval`.
    pub timeout: Duration,
    /// Bad answers in a row that make it unhealthy.
    pub unhealthy: u32,
    /// Good answers in a row that make it healthy again.
    pub healthy: u32,
}

/// What one instance takes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At most.
    pub max_concurrent: u32,
    /// In any case; never more than `max_concurrent`.
    pub min_concurrent: u32,
}

/// A failure, as gRPC calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are gRPC's own")]
pub enum StatusCode {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl StatusCode {
    /// As it stands in files, of each one.
    pub(crate) const ALL: &[(&str, Self)] = &[
        ("CANCELLED", Self::Cancelled),
        ("UNKNOWN", Self::Unknown),
        ("INVALID_ARGUMENT", Self::InvalidArgument),
        ("DEADLINE_EXCEEDED", Self::DeadlineExceeded),
        ("NOT_FOUND", Self::NotFound),
        ("ALREADY_EXISTS", Self::AlreadyExists),
        ("PERMISSION_DENIED", Self::PermissionDenied),
        ("RESOURCE_EXHAUSTED", Self::ResourceExhausted),
        ("FAILED_PRECONDITION", Self::FailedPrecondition),
        ("ABORTED", Self::Aborted),
        ("OUT_OF_RANGE", Self::OutOfRange),
        ("UNIMPLEMENTED", Self::Unimplemented),
        ("INTERNAL", Self::Internal),
        ("UNAVAILABLE", Self::Unavailable),
        ("DATA_LOSS", Self::DataLoss),
        ("UNAUTHENTICATED", Self::Unauthenticated),
    ];

    /// As it stands in files: `UNAVAILABLE`.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, code)| *code == self).map_or("UNKNOWN", |(name, _)| name)
    }
}
