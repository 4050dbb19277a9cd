//! How fast certificates are issued: a token bucket for each service and one over all. Never reads the clock.
//!
//! Generous by purpose: a whole mesh that restarts at once is no attack. They stop a service that asks in a loop from
//! filling the audit log and from taking the signing key's time from the others.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What may be issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub service: Rate,
    /// Over all services.
    pub all: Rate,
}

/// So many at once, and so many a second from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub burst: u32,
    pub per_second: u32,
}

impl Default for Settings {
    /// A service of a thousand instances may restart twice in a minute, and a mesh of ten thousand sidecars once.
    fn default() -> Self {
        Self { service: Rate { burst: 2_000, per_second: 50 }, all: Rate { burst: 20_000, per_second: 500 } }
    }
}

/// Too much was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{whose} asked for too many certificates: try again in {} s", retry_after.as_secs())]
pub(crate) struct Limited {
    whose: &'static str,
    /// When the next one can be had, if nobody else takes it.
    pub retry_after: Duration,
}

/// The buckets.
pub(crate) struct Limits {
    settings: Settings,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    all: Bucket,
    /// Full ones are left out: services that ask now and then cost nothing.
    services: HashMap<String, Bucket>,
    /// When full ones were last looked for, Unix seconds.
    swept: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u32,
    /// Up to when it has been refilled, Unix seconds.
    at: u64,
}

impl Limits {
    pub(crate) fn new(settings: Settings) -> Self {
        let all = Bucket { left: settings.all.burst, at: 0 };
        Self { settings, buckets: Mutex::new(Buckets { all, services: HashMap::new(), swept: 0 }) }
    }

    /// Takes one certificate for `service`, which has proved that it is that; `now` is in Unix seconds. What is refused
    /// takes nothing from anybody.
    ///
    /// # Errors
    /// The service, or all together, had too many.
    pub(crate) fn take(&self, service: &str, now: u64) -> Result<(), Limited> {
        let Settings { service: rate, all: all_rate } = self.settings;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.sweep(rate, now);
        let present = buckets.services.get(service).copied();
        let mut own = present.unwrap_or(Bucket { left: rate.burst, at: now });
        own.refill(rate, now);
        buckets.all.refill(all_rate, now);
        if own.left == 0 {
            return Err(Limited { whose: "this service", retry_after: own.wait(now) });
        }
        if buckets.all.left == 0 {
            return Err(Limited { whose: "the whole mesh", retry_after: buckets.all.wait(now) });
        }
        own.left -= 1;
        buckets.all.left -= 1;
        buckets.services.insert(service.to_owned(), own);
        Ok(())
    }
}

impl Buckets {
    fn sweep(&mut self, rate: Rate, now: u64) {
        const PAUSE: u64 = 60;
        if now.saturating_sub(self.swept) < PAUSE {
            return;
        }
        self.swept = now;
        self.services.retain(|_, bucket| {
            bucket.refill(rate, now);
            bucket.left < rate.burst
        });
    }
}

impl Bucket {
    fn refill(&mut self, rate: Rate, now: u64) {
        let gained = now.saturating_sub(self.at).saturating_mul(rate.per_second.into());
        self.left = u32::try_from(gained).unwrap_or(u32::MAX).saturating_add(self.left).min(rate.burst);
        self.at = self.at.max(now);
    }

    /// An empty bucket gains at the next full second.
    fn wait(&self, now: u64) -> Duration {
        Duration::from_secs((self.at + 1).saturating_sub(now).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn limits() -> Limits {
        Limits::new(Settings { service: Rate { burst: 3, per_second: 2 }, all: Rate { burst: 5, per_second: 1 } })
    }

    #[test]
    fn a_service_has_its_burst_and_then_its_rate_and_takes_nothing_from_others() {
        let limits = limits();
        assert!((0..3).all(|_| limits.take("media", NOW).is_ok()));
        let limited = limits.take("media", NOW).unwrap_err();
        assert_eq!(limited.retry_after, Duration::from_secs(1));
        assert!(limited.to_string().contains("this service"), "{limited}");
        assert!(limits.take("issues", NOW).is_ok());
        assert!(limits.take("media", NOW + 1).is_ok());
        assert!(limits.take("media", NOW + 1).is_ok());
        assert!(limits.take("media", NOW + 1).is_err());
    }

    #[test]
    fn all_together_have_a_bound_and_a_clock_that_went_back_gives_nothing() {
        let limits = limits();
        for service in ["a", "b", "c", "d", "e"] {
            limits.take(service, NOW).unwrap();
        }
        assert!(limits.take("f", NOW).unwrap_err().to_string().contains("the whole mesh"));
        assert!(limits.take("f", NOW - 600).is_err());
        assert!(limits.take("f", NOW + 1).is_ok());
    }

    #[test]
    fn a_mesh_of_ten_thousand_sidecars_restarts_at_once_and_leaves_nothing_behind() {
        let limits = Limits::new(Settings::default());
        for instance in 0..10_800 {
            limits.take(&format!("service-{}", instance % 100), NOW).unwrap();
        }
        limits.take("media", NOW + 3600).unwrap();
        assert_eq!(limits.buckets.lock().unwrap().services.len(), 1);
    }
}
