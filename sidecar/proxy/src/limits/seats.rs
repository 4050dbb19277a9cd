//! For how long a call counts as being at the app.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue};
use sidecar_core::limits::concurrency::Party;

use super::Limits;

/// A call whose answer has begun counts for so long more: a stream that is open for hours keeps no server of the app busy.
const AFTER_HEAD: Duration = Duration::from_secs(1);
/// A call that is not answered counts for so long, as an upload that is open for hours does.
const WITHOUT_HEAD: Duration = Duration::from_secs(30);

/// The calls of one worker that are at the app. The lock is the worker's own: its calls and the task that looks after them
/// run on one thread.
pub struct Seats {
    /// Held here: a count of references that both this worker's calls and those of others change costs each of them.
    limits: Arc<Limits>,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) seats: Vec<Seat>,
    pub(super) free: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Seat {
    /// `None`: nobody sits here, or whoever does counts no more.
    party: Option<Arc<Party>>,
    /// When it was let in.
    since: Instant,
    /// When it counts no more.
    pub(super) until: Instant,
}

/// One call at the app; it gives its seat back when dropped.
pub struct Admission {
    seats: Arc<Seats>,
    index: usize,
    since: Instant,
    class: usize,
    answered: bool,
}

impl Seats {
    /// Of a worker that has no calls yet.
    #[must_use]
    pub fn new(limits: Arc<Limits>) -> Self {
        Self { limits, slots: Mutex::default() }
    }

    /// Calls that have been there for long count no more.
    pub fn sweep(&self) {
        let now = Instant::now();
        for seat in &mut self.slots().seats {
            if now >= seat.until {
                seat.clear(&self.limits, now);
            }
        }
    }

    fn take(&self, party: Arc<Party>, since: Instant) -> usize {
        let seat = Seat { party: Some(party), since, until: since + WITHOUT_HEAD };
        let mut slots = self.slots();
        if let Some(index) = slots.free.pop() {
            slots.seats[index] = seat;
            return index;
        }
        slots.seats.push(seat);
        slots.seats.len() - 1
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn clear(&mut self, limits: &Limits, now: Instant) {
        if let Some(party) = self.party.take() {
            limits.app.leave(&party, now.duration_since(self.since));
        }
    }
}

impl Admission {
    /// Of a call that was let in.
    pub(super) fn new(seats: &Arc<Seats>, party: Arc<Party>, class: usize) -> Self {
        let since = Instant::now();
        let index = seats.take(party, since);
        Self { seats: Arc::clone(seats), index, since, class, answered: false }
    }

    /// The head of the app's answer is here. A failure that needs no body was quick for another reason.
    pub fn answered(&mut self, head: &HeaderMap) {
        let now = Instant::now();
        self.answered = true;
        if head.get("grpc-status").is_none_or(|status| status == HeaderValue::from_static("0")) {
            self.seats.limits.app.answered(self.class, now.duration_since(self.since));
        }
        self.seats.slots().seats[self.index].until = now + AFTER_HEAD;
    }

    /// The time of the call was over before it was answered: the app takes at least as long.
    pub fn overdue(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            self.seats.limits.app.answered(self.class, self.since.elapsed());
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut slots = self.seats.slots();
        slots.seats[self.index].clear(&self.seats.limits, now);
        slots.free.push(self.index);
    }
}
