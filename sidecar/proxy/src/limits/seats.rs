//! For how long a call counts as being at the app.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue};
use sidecar_core::limits::{concurrency::Party, rate::Bearer};

use super::{FORGOTTEN, Limits};
use crate::headers;

/// A call whose answer has begun counts for so long more: a stream that is open for hours keeps no server of the app busy.
const AFTER_HEAD: Duration = Duration::from_secs(1);
/// A call that is not answered counts for so long, as an upload that is open for hours does.
const WITHOUT_HEAD: Duration = Duration::from_secs(30);

/// Parties that a worker remembers; another one in the same place takes it.
const PLACES: usize = 256;

/// The calls of one worker that are at the app. The locks are the worker's own: its calls and the task that looks after them
/// run on one thread.
pub struct Seats {
    /// Held here: a count of references that both this worker's calls and those of others change costs each of them.
    limits: Arc<Limits>,
    /// Which one this is.
    worker: usize,
    slots: Mutex<Slots>,
    known: Mutex<Box<[Option<Known>]>>,
}

/// A party by its name.
#[derive(Clone, Debug)]
struct Known {
    is_tenant: bool,
    name: Box<str>,
    party: Arc<OwnParty>,
}

/// A party as one worker holds it, for the same reason.
#[derive(Debug)]
pub(super) struct OwnParty(Arc<Party>);

impl Deref for OwnParty {
    type Target = Party;

    fn deref(&self) -> &Party {
        &self.0
    }
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) seats: Vec<Seat>,
    pub(super) free: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Seat {
    /// `None`: nobody sits here, or whoever does counts no more.
    party: Option<Arc<OwnParty>>,
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
    /// When the call ended, where somebody knows.
    ended: Option<Instant>,
}

impl Seats {
    /// Of a worker that has no calls yet.
    #[must_use]
    pub fn new(limits: Arc<Limits>, worker: usize) -> Self {
        let known = Mutex::new(vec![None; PLACES].into());
        Self { limits, worker, slots: Mutex::default(), known }
    }

    /// Who that is: one that came lately is found here, without a word to other workers.
    #[expect(clippy::cast_possible_truncation, reason = "one of a few places")]
    pub(super) fn party(&self, who: Bearer<'_>) -> Arc<OwnParty> {
        let (is_tenant, name) = match who {
            Bearer::Tenant(tenant) => (true, tenant),
            Bearer::Caller(caller) => (false, caller),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut known[self.limits.hashes.hash_one(name) as usize % PLACES];
        // Whoever has not come for long may be forgotten, and then be there anew.
        let here = |known: &&Known| known.is_tenant == is_tenant && *known.name == *name;
        let here = place.as_ref().filter(here).filter(|it| self.limits.app.knows(&it.party, FORGOTTEN / 2));
        if let Some(known) = here {
            return Arc::clone(&known.party);
        }
        let (party, alone) = self.limits.party(who);
        let party = Arc::new(OwnParty(party));
        if alone {
            *place = Some(Known { is_tenant, name: name.into(), party: Arc::clone(&party) });
        }
        party
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

    fn take(&self, party: Arc<OwnParty>, since: Instant) -> usize {
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
    /// Of a call that was let in at `since`.
    pub(super) fn new(seats: &Arc<Seats>, party: Arc<OwnParty>, class: usize, since: Instant) -> Self {
        let index = seats.take(party, since);
        Self { seats: Arc::clone(seats), index, since, class, answered: false, ended: None }
    }

    /// The head of the app's answer is here. A failure that needs no body was quick for another reason.
    pub fn answered(&mut self, head: &HeaderMap) {
        let now = Instant::now();
        self.answered = true;
        if head.get(headers::GRPC_STATUS).is_none_or(|status| status == HeaderValue::from_static("0")) {
            self.took(now);
        }
        self.seats.slots().seats[self.index].until = now + AFTER_HEAD;
    }

    /// The call ended at `now`. Where it is `overdue`, its time was over before it was answered: the app takes at least as
    /// long.
    pub fn end(mut self, now: Instant, overdue: bool) {
        if overdue && !self.answered {
            self.took(now);
        }
        self.ended = Some(now);
    }

    fn took(&self, now: Instant) {
        let (seats, took) = (&self.seats, now.duration_since(self.since));
        seats.limits.app.answered(seats.worker, self.class, took);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let now = self.ended.unwrap_or_else(Instant::now);
        let mut slots = self.seats.slots();
        slots.seats[self.index].clear(&self.seats.limits, now);
        slots.free.push(self.index);
    }
}
