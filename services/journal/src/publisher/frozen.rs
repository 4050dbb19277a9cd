//! A snapshot of a view on its way: projected and encoded while it is sent, a few buckets at a time.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use replica::{BUCKETS, Digest};
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit},
    task::JoinHandle,
};

use super::{
    ViewName, Views,
    base::FrozenBase,
    message::{self, Chunks},
};
use crate::Position;

/// Buckets are put together until they have so many records.
const UNIT_RECORDS: usize = 1024;
/// Fewer records than this are encoded where they are wanted.
const INLINE_RECORDS: usize = 64;

/// All records of a view at one position. Followers that are sent the same part at the same time share its encoding.
pub(super) struct Frozen {
    base: FrozenBase,
    view: ViewName,
    digest: Digest,
    units: Mutex<HashMap<Range<usize>, Weak<Unit>>>,
}

/// The chunks of some adjacent buckets.
type Unit = OnceCell<Vec<Bytes>>;

impl Frozen {
    pub(super) fn new(base: FrozenBase, view: ViewName, digest: Digest) -> Self {
        Self { base, view, digest, units: Mutex::default() }
    }

    pub(super) const fn position(&self) -> Position {
        self.base.position
    }

    /// Adjacent buckets that are encoded together: of `wanted`, which are in order, or of all.
    fn plan(&self, wanted: Option<&[u32]>) -> VecDeque<Range<usize>> {
        let wanted: Vec<usize> = match wanted {
            None => (0..BUCKETS).collect(),
            Some(wanted) => wanted.iter().filter_map(|bucket| usize::try_from(*bucket).ok()).collect(),
        };
        let mut plan: VecDeque<Range<usize>> = VecDeque::new();
        for bucket in wanted {
            match plan.back_mut() {
                Some(last) if last.end == bucket && self.records(last) < UNIT_RECORDS => last.end += 1,
                Some(_) | None => plan.push_back(bucket..bucket + 1),
            }
        }
        plan.retain(|range| self.records(range) > 0);
        plan
    }

    fn records(&self, range: &Range<usize>) -> usize {
        self.base.buckets[range.clone()].iter().map(|bucket| bucket.len()).sum()
    }

    fn encode(&self, range: Range<usize>, views: &dyn Views) -> Vec<Bytes> {
        let mut chunks = Chunks::default();
        for (key, held) in self.base.buckets[range].iter().flat_map(|bucket| bucket.iter()) {
            if let Some(value) = views.project(&self.view, key, &held.value) {
                chunks.push(key, held.revision, &value);
            }
        }
        chunks.finish()
    }

    /// The encoding of `range`, made by one for all who want it now.
    async fn unit(self: Arc<Self>, range: Range<usize>, views: Arc<dyn Views>) -> Arc<Unit> {
        let unit = {
            let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
            let made = units.get(&range).and_then(Weak::upgrade);
            made.unwrap_or_else(|| {
                let fresh = Arc::new(Unit::new());
                units.insert(range.clone(), Arc::downgrade(&fresh));
                fresh
            })
        };
        let frozen = Arc::clone(&self);
        let encode = || async move {
            if frozen.records(&range) < INLINE_RECORDS {
                return frozen.encode(range, &*views);
            }
            // It panics only where a view does: then there is no more of this snapshot, and its count tells.
            tokio::task::spawn_blocking(move || frozen.encode(range, &*views)).await.unwrap_or_default()
        };
        unit.get_or_init(encode).await;
        unit
    }
}

/// A snapshot on its way to one follower. It holds the one part that it sends and the one that comes next.
pub(super) struct Transfer {
    frozen: Arc<Frozen>,
    views: Arc<dyn Views>,
    start: Option<Bytes>,
    /// What is still to be encoded.
    plan: VecDeque<Range<usize>>,
    /// What is being sent, and its next chunk.
    sending: Option<(Arc<Unit>, usize)>,
    ahead: Option<JoinHandle<Arc<Unit>>>,
    _permit: OwnedSemaphorePermit,
}

impl Transfer {
    /// Of those buckets alone in which the follower's `bucket_digests` differ, if they are any.
    pub(super) fn new(
        frozen: Arc<Frozen>,
        views: Arc<dyn Views>,
        bucket_digests: &[u8],
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let wanted = frozen.digest.differing(bucket_digests);
        let plan = frozen.plan(wanted.as_deref());
        let start = Some(message::snapshot_start(frozen.position(), &frozen.view, wanted));
        Self { frozen, views, start, plan, sending: None, ahead: None, _permit: permit }
    }

    pub(super) fn position(&self) -> Position {
        self.frozen.position()
    }

    /// The next message and whether it is the last. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> (Bytes, bool) {
        if let Some(start) = self.start.take() {
            self.look_ahead();
            return (start, false);
        }
        loop {
            if let Some((unit, next)) = &mut self.sending {
                if let Some(chunk) = unit.get().and_then(|chunks| chunks.get(*next)) {
                    *next += 1;
                    return (chunk.clone(), false);
                }
                self.sending = None;
            }
            let Some(ahead) = &mut self.ahead else {
                let digest = &self.frozen.digest;
                return (message::snapshot_end(digest.records(), digest.fold()), true);
            };
            let unit = ahead.await;
            self.ahead = None;
            self.sending = unit.ok().map(|unit| (unit, 0));
            self.look_ahead();
        }
    }

    fn look_ahead(&mut self) {
        if let Some(range) = self.plan.pop_front() {
            self.ahead = Some(tokio::spawn(Arc::clone(&self.frozen).unit(range, Arc::clone(&self.views))));
        }
    }
}
