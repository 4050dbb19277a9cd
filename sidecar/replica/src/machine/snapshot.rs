//! Snapshots, of everything or of the buckets that differ: received, checked as a whole, and then put in place.

use std::sync::Arc;

use tenon_proto::replication::v1::{FollowRequest, Record, SnapshotChunk, SnapshotEnd, SnapshotStart};

use super::{
    Break, Ledger, Machine,
    incoming::{Buckets, Complete, Incoming},
    ledger::apply,
    stream::{Asked, Phase, Stream, Tail},
};
use crate::{BUCKETS, Event, Position, Value, guard::Now};

impl<V: Value, O: FnMut(Event<'_, V>)> Machine<V, O> {
    pub(super) fn snapshot_start(
        &mut self,
        parent: usize,
        start: &SnapshotStart,
        now: Now,
    ) -> Result<Option<FollowRequest>, Break> {
        let position = Position::from(start.position.unwrap_or_default());
        let mut incoming = Incoming::new(parent, position, start.view.as_str().into());
        incoming.heard = now.elapsed;
        if start.partial {
            let asked_for = self.streams[parent].asked.is_some() && !self.streams[parent].whole;
            incoming.partial = Buckets::of(&start.buckets).filter(|_| asked_for);
            if incoming.partial.is_none() {
                let error = format!("the snapshot at {position} is of buckets that were not asked for");
                return Err(Break::Refused { position, error });
            }
        }
        self.admit(&mut incoming, now)?;
        let stream = &mut self.streams[parent];
        stream.phase = Phase::Receiving;
        stream.view = Arc::clone(&incoming.view);
        stream.told = None;
        self.incoming = Some(incoming);
        Ok(None)
    }

    /// Whether what is offered is wanted, from this parent and now.
    fn admit(&mut self, incoming: &mut Incoming<V>, now: Now) -> Result<(), Break> {
        let (parent, position) = (incoming.parent, incoming.position);
        if self.receives_from_another(parent, now) {
            return Err(Break::Outrun);
        }
        let good = self.another_is_good(parent);
        let ledger = self.shared.ledger();
        let Some(held) = ledger.position else { return Ok(()) };
        let stream = &mut self.streams[parent];
        let same_view = incoming.view == ledger.view;
        incoming.elsewhere = !same_view || position.epoch != held.epoch;
        if !same_view && good && !stream.knows_view {
            return Err(Break::OtherView { offered: Arc::clone(&incoming.view), held: Arc::clone(&ledger.view) });
        }
        let asked = stream.asked.as_ref();
        let resumes = asked.is_none_or(|asked| asked.resume);
        let outrun = resumes && asked.is_some_and(|asked| asked.position != held);
        if same_view && outrun && position <= held && position.epoch == held.epoch {
            return Err(Break::Outrun); // Another parent's deltas led further meanwhile.
        }
        let covered = || self.tail.as_ref().is_some_and(|tail| !incoming.elsewhere && tail.floor <= position);
        if position < held && (resumes || !covered()) {
            if good {
                return Err(Break::Behind { position, held });
            }
            let error = format!("the parent offers {position}, older than {held}, which is held");
            return Err(Break::Refused { position, error });
        }
        if let (true, Some(buckets), Some(asked)) = (incoming.elsewhere, &incoming.partial, asked)
            && led_away(&ledger, asked, buckets)
        {
            stream.whole = true; // Deltas of the old history led away from what was asked with.
            return Err(Break::Outrun);
        }
        Ok(())
    }

    pub(super) fn snapshot_chunk(
        &mut self,
        parent: usize,
        chunk: SnapshotChunk,
        now: Now,
    ) -> Result<Option<FollowRequest>, Break> {
        let Some(incoming) = self.incoming.as_mut().filter(|incoming| incoming.parent == parent) else {
            return Err(Break::Gap("a snapshot without its start".into()));
        };
        incoming.heard = now.elapsed;
        let held = self.shared.table.load_full();
        for Record { key, revision, value } in chunk.records {
            if incoming.partial.as_ref().is_some_and(|buckets| !buckets.has(&key)) {
                let error = format!("the snapshot has {key:?}, which is in none of its buckets");
                return Err(Break::Refused { position: incoming.position, error });
            }
            incoming.records.take(&self.accept, key, revision, value, held.as_deref());
        }
        Ok(None)
    }

    pub(super) fn snapshot_end(
        &mut self,
        parent: usize,
        end: &SnapshotEnd,
        now: Now,
    ) -> Result<Option<FollowRequest>, Break> {
        let Some(incoming) = self.incoming.take_if(|incoming| incoming.parent == parent) else {
            return Err(Break::Gap("a snapshot without its start".into()));
        };
        let asked = self.streams[parent].asked.take();
        let (offered, repaired) = (incoming.position, asked.as_ref().is_some_and(|asked| !asked.resume));
        let mut complete = incoming.finish();
        if let Err(error) = complete.check(end, asked.as_ref()) {
            self.streams[parent].whole = complete.partial.is_some();
            return Err(Break::Refused { position: offered, error });
        }
        let checked = self.guard_snapshot(&complete, end.records, now);
        self.guarded(parent, offered, checked)?;
        if let (Some(buckets), Some(asked)) = (&complete.partial, &asked) {
            let ledger = self.shared.ledger();
            // Another parent's deltas touched what this one left out since it is the same at both ends, and did not reach
            // the end.
            if ledger.position < Some(offered) && led_away(&ledger, asked, buckets) {
                return Err(Break::Outrun);
            }
        }
        self.catch_up(&mut complete)?;

        let position = complete.position;
        match (complete.partial.take(), asked) {
            (Some(buckets), Some(asked)) => {
                let fetched = buckets.listed().count() as u64;
                self.merge(complete, &buckets, &asked);
                let mut health = self.shared.health();
                health.status.partial_snapshots += 1;
                health.status.repaired_buckets += if repaired { fetched } else { 0 };
            }
            _ => {
                self.install(complete);
                self.shared.health().status.snapshots += 1;
            }
        }
        let ledger = self.shared.ledger();
        for (other, stream) in self.streams.iter_mut().enumerate() {
            stream.installed(other == parent, &ledger.view);
        }
        drop(ledger);
        Ok(Some(self.answer(position)))
    }

    fn guard_snapshot(&self, complete: &Complete<V>, offered: u64, now: Now) -> Result<(), String> {
        let ledger = self.shared.ledger();
        let table = self.shared.table.load();
        let held = |key: &str| {
            ledger.refused.contains_key(key) || table.as_ref().is_some_and(|table| table.get(key).is_some())
        };
        let has = |key: &str| match &complete.partial {
            Some(buckets) if !buckets.has(key) => held(key),
            _ => complete.has(key),
        };
        self.guarding.snapshot(ledger.digest.records(), offered, now, has)
    }

    /// Puts on top of a snapshot what other parents' deltas brought since.
    fn catch_up(&mut self, complete: &mut Complete<V>) -> Result<(), Break> {
        let held = self.shared.ledger().position;
        let Some(held) = held.filter(|held| *held > complete.position) else { return Ok(()) };
        let Some(tail) = self.tail.as_mut().filter(|tail| !complete.elsewhere && tail.floor <= complete.position)
        else {
            return Err(Break::Outrun);
        };
        for change in tail.later(complete.position) {
            if complete.partial.as_ref().is_none_or(|buckets| buckets.has(&change.key)) {
                let Complete { table, digest, refused, .. } = &mut *complete;
                apply(&self.accept, table, digest, refused, change);
            }
        }
        complete.position = held;
        Ok(())
    }

    /// Puts a complete map in the place of the old one. From here on it may be read; then it is announced.
    pub(super) fn install(&mut self, complete: Complete<V>) {
        let Complete { position, view, table, digest, refused, .. } = complete;
        let table = Arc::new(table);
        let shared = Arc::clone(&self.shared);
        let mut ledger = shared.ledger();
        self.retired.extend(shared.table.swap(Some(Arc::clone(&table))));
        ledger.replace(position, view, digest, refused);
        self.replaced(&ledger, position);
        drop(ledger);
        (self.observer)(Event::Replaced(&table, position));
        self.shared.announce(position);
    }

    /// Puts `buckets` in the place of those that are held, record by record. Readers see each as it was or as it is; when
    /// all are in place, the position is announced.
    fn merge(&mut self, complete: Complete<V>, buckets: &Buckets, asked: &Asked) {
        let shared = Arc::clone(&self.shared);
        let mut ledger = shared.ledger();
        let Some(table) = shared.table.load_full() else { return };
        let Complete { position, view, table: fresh, digest, refused, .. } = complete;
        let compared = ledger.position != Some(position) || ledger.view != view;
        for new in fresh.iter() {
            let old = table.get(new.key());
            if old.as_ref().is_some_and(|old| old.revision() == new.revision() && old.raw() == new.raw()) {
                continue;
            }
            ledger.note(new.key());
            table.insert(new.clone());
            let (key, revision) = (new.key(), new.revision());
            (self.observer)(Event::Changed { key, revision, old: old.as_ref(), new: Some(&new), several: false });
        }
        for bucket in buckets.listed() {
            ledger.digest.replace(bucket, &digest);
            for old in table.bucket(bucket).into_iter().filter(|old| fresh.get(old.key()).is_none()) {
                ledger.note(old.key());
                table.remove(old.key());
                let (key, revision) = (old.key(), position.revision);
                (self.observer)(Event::Changed { key, revision, old: Some(&old), new: None, several: false });
            }
        }
        for bucket in std::mem::take(&mut ledger.damaged) {
            // The account was wrong, not the records: those are as the parent has them.
            if !buckets.holds(bucket) && ledger.digest.buckets()[bucket] == asked.believed.buckets()[bucket] {
                ledger.digest.replace(bucket, &asked.sent);
            }
        }
        ledger.refused.retain(|key, _| !buckets.has(key));
        ledger.refused.extend(refused);
        ledger.position = Some(position);
        ledger.view = view;
        self.replaced(&ledger, position);
        if compared {
            (self.observer)(Event::Compared);
        }
        drop(ledger);
        drop(fresh);
        self.shared.announce(position);
    }

    /// What was known of the old map says nothing of the new one.
    fn replaced(&mut self, ledger: &Ledger, position: Position) {
        self.shared.unsaved().everything();
        self.guarding.replaced();
        self.history.clear();
        self.history.push(position, &ledger.digest);
        self.tail = self.tail.is_some().then(|| Tail::after(position));
    }
}

/// Whether what is held has changed in buckets that are not among `buckets` since a snapshot was asked for.
fn led_away(ledger: &Ledger, asked: &Asked, buckets: &Buckets) -> bool {
    let changed = |bucket: usize| asked.believed.buckets()[bucket] != ledger.digest.buckets()[bucket];
    (0..BUCKETS).any(|bucket| changed(bucket) && !buckets.holds(bucket))
}

impl Stream {
    /// A snapshot was put in place, of this stream or of another one.
    fn installed(&mut self, own: bool, view: &Arc<str>) {
        self.repair = false;
        self.agreed = None;
        if own {
            self.phase = Phase::Live;
            self.whole = false;
        }
        self.knows_view = own || (self.knows_view && self.view == *view);
    }
}
