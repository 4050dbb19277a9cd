//! What is known of the stream of one parent.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tenon_proto::replication::v1::{Change, Heartbeat};

use super::{Break, STALLED};
use crate::{Digest, Position, guard::Now};

/// What is known of the stream of one parent.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) phase: Phase,
    /// What the parent shows on it.
    pub(super) view: Arc<str>,
    /// What was held when it began.
    pub(super) asked: Option<Asked>,
    /// The last heartbeat that was ahead of what is held.
    pub(super) told: Option<Heartbeat>,
    /// It was ahead, and nothing came since: another one means that deltas were lost.
    pub(super) ahead: bool,
    /// When the parent's digest last equalled the one that is held.
    pub(super) agreed: Option<Duration>,
    /// What was held at the last heartbeat, and since when the parent has not been there.
    pub(super) lag: Option<(Position, Duration)>,
    /// This parent showed the view that is held. When it then offers another one, it knows something newer.
    pub(super) knows_view: bool,
    /// What is held differs from what this parent has: the next stream asks for the buckets that differ.
    pub(super) repair: bool,
    /// A partial snapshot did not fit: the next stream asks for everything.
    pub(super) whole: bool,
    /// What the guards refuse of this parent.
    pub(super) alarm: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Closed,
    /// It is not known yet whether the parent resumes or sends a snapshot.
    Opening,
    /// A snapshot is on its way.
    Receiving,
    /// Deltas come.
    Live,
}

/// What was held when a stream began.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) position: Position,
    pub(super) at: Duration,
    /// Whether to resume there was asked for.
    pub(super) resume: bool,
    pub(super) view: Arc<str>,
    /// What the ledger said, and what the parent was told: the table as it is, where that differs.
    pub(super) believed: Digest,
    pub(super) sent: Digest,
}

impl Stream {
    /// Forgets what belongs to one stream only.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closed;
        self.asked = None;
        self.told = None;
        self.ahead = false;
        self.agreed = None;
        self.lag = None;
    }

    /// It asked for what replaces what is held, not long ago.
    pub(super) fn repairs(&self, now: Now) -> bool {
        let lately = |asked: &Asked| now.elapsed.saturating_sub(asked.at) < STALLED;
        self.phase == Phase::Opening && self.asked.as_ref().is_some_and(|asked| !asked.resume && lately(asked))
    }

    /// Something came that follows from what is held: the parent has resumed.
    pub(super) fn resumed(&mut self) {
        if let (Phase::Opening, Some(asked)) = (self.phase, self.asked.as_ref().filter(|asked| asked.resume)) {
            self.phase = Phase::Live;
            self.view = Arc::clone(&asked.view);
        }
    }

    /// Whether the parent shows what is held.
    pub(super) fn shows(&mut self, held: &Arc<str>) -> Result<(), Break> {
        self.knows_view = self.view == *held;
        if self.knows_view {
            return Ok(());
        }
        Err(Break::OtherView { offered: Arc::clone(&self.view), held: Arc::clone(held) })
    }
}

/// Changes that came while a snapshot may be on its way: they are put on top of it when it is older.
#[derive(Debug)]
pub(super) struct Tail {
    /// It has every change after this position of its epoch.
    pub(super) floor: Position,
    changes: VecDeque<Change>,
    bytes: usize,
}

impl Tail {
    /// Beyond either of these bounds it begins anew, and a snapshot of an earlier position is of no use any more.
    const CHANGES: usize = 1 << 17;
    const BYTES: usize = 64 << 20;

    pub(super) const fn after(floor: Position) -> Self {
        Self { floor, changes: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn push(&mut self, change: &Change, position: Position) {
        self.bytes += change.key.len() + change.value.as_ref().map_or(0, bytes::Bytes::len);
        self.changes.push_back(change.clone());
        if self.bytes > Self::BYTES || self.changes.len() > Self::CHANGES {
            *self = Self::after(position);
        }
    }

    /// Takes out what came after `position`, in order.
    pub(super) fn later(&mut self, position: Position) -> impl Iterator<Item = Change> + use<> {
        self.bytes = 0;
        std::mem::take(&mut self.changes).into_iter().filter(move |change| change.revision > position.revision)
    }
}

/// The digest at the last positions, so that a heartbeat can be compared although another parent's deltas came first.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<(Position, [u8; 16], u64)>);

impl History {
    const LENGTH: usize = 64;

    pub(super) fn push(&mut self, position: Position, digest: &Digest) {
        if self.0.len() == Self::LENGTH {
            self.0.pop_front();
        }
        self.0.push_back((position, digest.fold(), digest.records()));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether the map was as `heartbeat` says; absent when it was never at exactly that position, or long ago.
    pub(super) fn agrees(&self, head: Position, heartbeat: &Heartbeat) -> Option<bool> {
        let found = self.0.binary_search_by_key(&head, |(position, ..)| *position).ok()?;
        let (_, digest, records) = &self.0[found];
        Some(heartbeat.records == *records && heartbeat.digest[..] == digest[..])
    }
}
