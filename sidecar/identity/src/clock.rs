//! The time of day that does not step: read once from the system, then carried on by the monotonic clock.
//!
//! A step of the system's clock makes nothing expire early and brings nothing back to life (design §10). For the
//! engines; the deciding crates take `now` as an argument.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

static CLOCK: LazyLock<Clock> = LazyLock::new(|| Clock::new(system()));

/// Time since 1970-01-01 UTC.
pub fn since_epoch() -> Duration {
    CLOCK.now()
}

/// One look at the clock, for all that wants to know the time: looking costs more than most that it is looked at for.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For measuring.
    pub instant: Instant,
    /// Time since 1970-01-01 UTC, as [`since_epoch`] tells it.
    pub since_epoch: Duration,
}

impl Moment {
    /// This one.
    pub fn now() -> Self {
        let instant = Instant::now();
        Self { instant, since_epoch: CLOCK.at(instant) }
    }

    /// As [`unix_seconds`].
    pub fn unix_seconds(self) -> u64 {
        self.since_epoch.as_secs()
    }
}

/// Whole seconds since 1970-01-01 UTC.
pub fn unix_seconds() -> u64 {
    since_epoch().as_secs()
}

/// Takes over what the system's clock says now. Only for a process that is not in the mesh yet, and so has judged nothing
/// by its clock: one that was started before its machine knew the time gets in once it does.
pub(crate) fn look_again() {
    CLOCK.look(system());
}

fn system() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A time of day and the moment it was read.
struct Clock {
    started: Instant,
    /// What the time of day was at `started`, in nanoseconds: enough until the year 2554.
    time_at_start: AtomicU64,
}

impl Clock {
    fn new(time: Duration) -> Self {
        let clock = Self { started: Instant::now(), time_at_start: AtomicU64::new(0) };
        clock.look(time);
        clock
    }

    fn look(&self, time: Duration) {
        let at_start = time.saturating_sub(self.started.elapsed());
        self.time_at_start.store(u64::try_from(at_start.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn now(&self) -> Duration {
        self.at(Instant::now())
    }

    fn at(&self, moment: Instant) -> Duration {
        Duration::from_nanos(self.time_at_start.load(Ordering::Relaxed)) + moment.duration_since(self.started)
    }
}

/// What every TLS configuration of this crate asks for the time.
#[derive(Debug)]
pub(crate) struct Steady;

impl rustls::time_provider::TimeProvider for Steady {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(since_epoch()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_MINUTES: Duration = Duration::from_secs(600);

    #[test]
    fn time_goes_on_from_the_first_look_whatever_the_system_says_afterwards() {
        let clock = Clock::new(Duration::from_secs(1_800_000_000));
        let (first, started) = (clock.now(), Instant::now());
        let later = clock.now();
        assert!(later >= first && later - first <= started.elapsed() + Duration::from_millis(1));
        // The system's clock is no part of it: there is nothing here that could step.
        assert!(first >= Duration::from_secs(1_800_000_000) && first < Duration::from_secs(1_800_000_001));
    }

    #[test]
    fn who_is_not_in_the_mesh_yet_looks_again_and_takes_the_clock_as_it_then_is() {
        let now = Duration::from_secs(1_800_000_000);
        let clock = Clock::new(now);
        for time in [now - TEN_MINUTES, now + TEN_MINUTES] {
            clock.look(time);
            assert!(clock.now() >= time && clock.now() < time + Duration::from_secs(1));
        }
    }

    #[test]
    fn the_clock_of_the_process_says_what_the_system_says() {
        assert!(since_epoch().abs_diff(system()) < Duration::from_secs(5));
        assert!(unix_seconds().abs_diff(system().as_secs()) <= 5);
    }
}
