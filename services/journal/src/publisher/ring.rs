//! The latest changes of a publisher, shared by all of its views.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Settings,
    base::{Before, Change},
    message::{DELTA_BYTES, DELTA_CHANGES},
};

/// Every change after `floor`, in order of revision.
#[derive(Debug)]
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    bytes: usize,
    /// Who holds less than this revision cannot be served from here.
    floor: u64,
}

#[derive(Debug)]
struct Slot {
    change: Arc<Change>,
    /// A delta that has this change leads at least to here: earlier changes up to here may be missing, since a later one
    /// of the same key took their place.
    until: u64,
}

/// What leads a follower on.
pub(super) struct Stretch {
    /// The last change of each key, in order of revision, each with the first of its key.
    pub(super) changes: Vec<(Arc<Change>, Arc<Change>)>,
    /// It leads to this revision.
    pub(super) revision: u64,
}

impl Ring {
    pub(super) const fn new(floor: u64) -> Self {
        Self { slots: VecDeque::new(), bytes: 0, floor }
    }

    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn changes(&self) -> usize {
        self.slots.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, change: Arc<Change>, until: u64) {
        self.bytes += size(&change);
        self.slots.push_back(Slot { change, until });
    }

    pub(super) fn trim(&mut self, settings: Settings) {
        while self.slots.len() > settings.ring_changes || (self.bytes > settings.ring_bytes && self.slots.len() > 1) {
            let Some(oldest) = self.slots.pop_front() else { return };
            self.bytes -= size(&oldest.change);
            self.floor = oldest.change.revision;
        }
    }

    /// What comes after `cursor`, at most up to `head`, bounded as a delta is. None when it does not go back that far.
    pub(super) fn after(&self, cursor: u64, head: u64) -> Option<Stretch> {
        if cursor < self.floor {
            return None;
        }
        let begin = self.slots.partition_point(|slot| slot.change.revision <= cursor);
        let mut latest: HashMap<&str, (&Arc<Change>, &Arc<Change>)> = HashMap::new();
        let mut bytes = 0;
        let mut revision = cursor;
        let mut whole = true;
        for Slot { change, until } in self.slots.range(begin..).take_while(|slot| slot.change.revision <= head) {
            let full = latest.len() >= DELTA_CHANGES || (bytes + length(change) > DELTA_BYTES && !latest.is_empty());
            if full && change.revision > revision {
                whole = false;
                break;
            }
            revision = *until;
            bytes += length(change);
            let first = latest.get(&*change.key).map_or(change, |(first, _)| first);
            latest.insert(&change.key, (first, change));
        }
        let mut changes: Vec<_> =
            latest.into_values().map(|(first, last)| (Arc::clone(first), Arc::clone(last))).collect();
        changes.sort_unstable_by_key(|(_, last)| last.revision);
        // What came after the last change concerned nobody.
        Some(Stretch { changes, revision: if whole { head } else { revision } })
    }
}

/// Bytes that a change adds to a delta, roughly.
fn length(change: &Change) -> usize {
    change.key.len() + change.new.as_ref().map_or(0, Bytes::len)
}

/// Bytes that a change keeps alive.
fn size(change: &Change) -> usize {
    let old = match &change.before {
        Before::Held(held) => held.value.len(),
        Before::Absent | Before::Unknown => 0,
    };
    length(change) + old
}
