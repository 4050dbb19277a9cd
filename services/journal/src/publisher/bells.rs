//! How followers are woken: one bell each, whatever it is that has changed.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use slab::Slab;
use tokio::sync::Notify;

/// Followers are woken group by group, and each group has its heartbeats at its own time: thousands do not all want the
/// processor at one instant.
pub(super) const GROUPS: usize = 8;

/// The bells of all followers of one view.
#[derive(Debug, Default)]
pub(super) struct Bells {
    groups: [Group; GROUPS],
    /// Followers so far, who are dealt out to the groups in turn.
    hung: AtomicU64,
}

#[derive(Debug, Default)]
struct Group {
    bells: Mutex<Slab<Arc<Notify>>>,
    /// Heartbeats that were due.
    beats: AtomicU64,
}

impl Bells {
    /// A bell that rings from now on, until it is taken down with what is returned beside it.
    pub(super) fn hang(&self) -> (Arc<Notify>, Place) {
        let hung = self.hung.fetch_add(1, Ordering::Relaxed);
        let group = usize::try_from(hung % GROUPS as u64).unwrap_or(0);
        let bell = Arc::new(Notify::new());
        let index = self.groups[group].bells().insert(Arc::clone(&bell));
        (bell, Place { group, index })
    }

    pub(super) fn take_down(&self, place: Place) {
        self.groups[place.group].bells().try_remove(place.index);
    }

    /// Rings all bells; others may run between the groups.
    pub(super) async fn ring(&self) {
        for group in &self.groups {
            group.ring();
            tokio::task::yield_now().await;
        }
    }

    /// Rings all bells at once.
    pub(super) fn ring_now(&self) {
        self.groups.iter().for_each(Group::ring);
    }

    /// It is time for the heartbeats of one group.
    pub(super) fn beat(&self, group: usize) {
        self.groups[group].beats.fetch_add(1, Ordering::Release);
        self.groups[group].ring();
    }

    /// How many heartbeats have been due at `place`.
    pub(super) fn beats(&self, place: Place) -> u64 {
        self.groups[place.group].beats.load(Ordering::Acquire)
    }
}

impl Group {
    fn ring(&self) {
        self.bells().iter().for_each(|(_, bell)| bell.notify_one());
    }

    fn bells(&self) -> MutexGuard<'_, Slab<Arc<Notify>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a bell hangs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    group: usize,
    index: usize,
}
