//! The time of day that does not step: read once from the system, then carried on by the monotonic clock.
//!
//! A step of the system's clock makes nothing expire early and brings nothing back to life (design §10). For the
//! engines; the deciding crates take `now` as an argument.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

/// Time since 1970-01-01 UTC.
pub fn since_epoch() -> Duration {
    static FIRST_LOOK: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (instant, time) =
        FIRST_LOOK.get_or_init(|| (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()));
    *time + instant.elapsed()
}

/// Whole seconds since 1970-01-01 UTC.
pub fn unix_seconds() -> u64 {
    since_epoch().as_secs()
}

/// What every TLS configuration of this crate asks for the time.
#[derive(Debug)]
pub(crate) struct Steady;

impl rustls::time_provider::TimeProvider for Steady {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(since_epoch()))
    }
}
