//! Writes batches: each once, with the mark that says so in the same write.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};

use journal::{AppendError, Expected, Journal, ReadError, Write};
use mesh_identity::clock;
use prost::Message as _;
use tenon_proto::policy::v1::{Flow, flow::Decision};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    HOUR,
    counts::Counts,
    intake::{Batch, Intake},
    prune,
    stored::{self, HourKey, Mark, MarkKey},
};
use crate::engine::chain;

/// Between two writes, and longer where much is written: so many bytes a second.
const INTERVAL: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(2) };
const BYTES_A_SECOND: u64 = 512 << 10;
/// A sidecar gives a stream up that acknowledges nothing for 30 seconds.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of one write, roughly: a NATS cluster has to take it within seconds.
const WRITE: usize = 2 << 20;
/// How often a write is decided anew at once, because another policy service wrote the same keys.
const TRIES: usize = 5;
/// New sidecars of a service within an hour.
const NEWCOMERS: usize = if cfg!(test) { 20 } else { 5000 };
/// Sidecars of a service that has had so many, whose marks are looked for within one round all the same: they may be old ones.
const SOUGHT: usize = if cfg!(test) { 5 } else { 100 };
/// Refused flows that a mark tells.
const TOLD: usize = 20;
/// Between two looks for what is too old, and before the first one: sidecars that come back find their marks.
const PRUNE_EVERY: Duration = Duration::from_secs(HOUR);
const PRUNE_AFTER: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(600) };

pub(super) struct Recorder {
    journal: Arc<dyn Journal>,
    writer: Arc<str>,
    intake: Arc<Intake>,
    arriving: mpsc::UnboundedReceiver<Batch>,
    /// In the order in which they came.
    pending: Vec<Batch>,
    held: Known,
    /// Marks that were looked for in this round, of each service that has [`NEWCOMERS`].
    sought: HashMap<Arc<str>, usize>,
    /// The store does not take anything at present.
    failing: bool,
    prune_at: Instant,
}

/// What is in the store of the present hour, as far as it was asked for.
#[derive(Default)]
struct Known {
    hour: u64,
    hours: BTreeMap<HourKey, Held<Counts>>,
    marks: BTreeMap<MarkKey, Held<Mark>>,
    /// Sidecars of each service that had no mark before this hour; at most [`NEWCOMERS`].
    newcomers: HashMap<Arc<str>, usize>,
}

/// A record, and the revision that wrote it; empty where there is none.
#[derive(Default)]
struct Held<T> {
    revision: Option<u64>,
    value: T,
}

impl<T> Held<T> {
    fn expected(&self) -> Expected {
        self.revision.map_or(Expected::Absent, Expected::Revision)
    }
}

/// What a write makes of what is held.
#[derive(Default)]
struct Plan {
    hours: BTreeMap<HourKey, Counts>,
    marks: BTreeMap<MarkKey, Mark>,
}

#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("flows cannot be read from the store")]
    Read(#[from] ReadError),
    #[error("flows cannot be written to the store")]
    Append(#[from] AppendError),
}

impl Recorder {
    pub fn new(
        journal: Arc<dyn Journal>,
        writer: Arc<str>,
        intake: Arc<Intake>,
        arriving: mpsc::UnboundedReceiver<Batch>,
    ) -> Self {
        let (pending, held, sought) = (Vec::new(), Known::default(), HashMap::new());
        let prune_at = Instant::now() + PRUNE_AFTER;
        Self { journal, writer, intake, arriving, pending, held, sought, failing: false, prune_at }
    }

    /// Writes until `stop`, and then once more.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut due = Instant::now();
        loop {
            let last = self.wait(due, &stop).await;
            let started = Instant::now();
            let bytes = self.write_all(clock::unix_seconds()).await;
            if last {
                return;
            }
            due = started + Duration::from_secs(bytes / BYTES_A_SECOND).clamp(INTERVAL, LONGEST_INTERVAL);
        }
    }

    /// Until there is something to write and it is time for it. True: it is the last time.
    async fn wait(&mut self, due: Instant, stop: &CancellationToken) -> bool {
        let Self { arriving, pending, .. } = self;
        let something = async {
            if pending.is_empty() {
                // Never none: the recorder itself holds the intake.
                pending.extend(arriving.recv().await);
            }
            tokio::time::sleep_until(due).await;
        };
        let last = stop.run_until_cancelled(something).await.is_none();
        while let Ok(batch) = self.arriving.try_recv() {
            self.pending.push(batch);
        }
        last
    }

    /// Returns how many bytes were written, roughly. What cannot be written waits for the next time.
    async fn write_all(&mut self, now: u64) -> u64 {
        if mem::replace(&mut self.held.hour, now / HOUR) != now / HOUR {
            self.held = Known { hour: now / HOUR, ..Known::default() };
        }
        self.sought.clear();
        if self.failing {
            self.drop_copies();
        }
        // Together what goes into the same record; batches of one sidecar stay in their order.
        self.pending.sort_by(|a, b| a.from.service.cmp(&b.from.service));
        let mut written = 0;
        while !self.pending.is_empty() {
            let mut group = self.next_group();
            match self.write(&mut group, now).await {
                Ok(bytes) => {
                    group.into_iter().for_each(|batch| batch.end(Ok(())));
                    written += bytes;
                    if mem::take(&mut self.failing) {
                        self.intake.set_failing(false);
                        tracing::info!("flows are written to the store again");
                    }
                }
                Err(error) => {
                    self.pending.splice(..0, group);
                    if !mem::replace(&mut self.failing, true) {
                        self.intake.set_failing(true);
                        let error = chain(&error);
                        tracing::warn!(
                            error,
                            "flows cannot be recorded: sidecars keep counting, and it is tried again"
                        );
                    }
                    return written as u64;
                }
            }
        }
        if written > 0 {
            self.prune(now).await;
        }
        written as u64
    }

    /// What waits for long comes again, on another stream: the copy that nobody waits for any more goes. The last words of a
    /// sidecar that has ended stay.
    fn drop_copies(&mut self) {
        // Whether it was announced, for each batch; and whether a copy was seen that came later.
        let mut known: HashMap<(MarkKey, u64, u64), (bool, bool)> = HashMap::new();
        for batch in &self.pending {
            known.entry(batch.key()).or_default().0 |= batch.announced;
        }
        let mut kept = Vec::with_capacity(self.pending.len());
        for mut batch in self.pending.drain(..).rev() {
            let (announced, later) = known.entry(batch.key()).or_default();
            batch.announced |= *announced;
            if !mem::replace(later, true) || !batch.is_abandoned() {
                kept.push(batch);
            }
        }
        kept.reverse();
        self.pending = kept;
    }

    fn next_group(&mut self) -> Vec<Batch> {
        let (mut bytes, mut count) = (0, 0);
        let mut last: Option<&HourKey> = None;
        for batch in &self.pending {
            let key = HourKey {
                hour: batch.at / HOUR,
                service: Arc::clone(&batch.from.service),
                writer: Arc::clone(&self.writer),
            };
            let held = self.held.hours.get_key_value(&key);
            bytes += batch.flows.len() * 64 + 128;
            if held.map(|(key, _)| key) != last {
                bytes += held.map_or(0, |(_, held)| held.value.bytes());
                last = held.map(|(key, _)| key);
            }
            if count > 0 && bytes > WRITE {
                break;
            }
            count += 1;
        }
        self.pending.drain(..count).collect()
    }

    /// Writes what is not written yet. On an error all of it may have been, which the marks then tell.
    async fn write(&mut self, group: &mut Vec<Batch>, now: u64) -> Result<usize, RecordError> {
        let mut tried = 0;
        loop {
            let too_many = self.look_up(group).await?;
            refuse_newcomers(group, &too_many);
            self.announce(group);
            let plan = self.plan(group, now);
            let writes = self.writes(&plan, now);
            if writes.is_empty() {
                return Ok(0);
            }
            let bytes = writes.iter().map(|write| write.value.as_ref().map_or(0, bytes::Bytes::len) + 64).sum();
            let first = writes.len() as u64 - 1;
            match self.journal.append(writes).await {
                Ok(last) => {
                    self.held.take(plan, last.revision - first);
                    return Ok(bytes);
                }
                // Another policy service had it from the same sidecar, or counts under the same name.
                Err(AppendError::Conflict { .. }) if tried < TRIES => self.forget(group),
                Err(error) => {
                    self.forget(group);
                    return Err(error.into());
                }
            }
            tried += 1;
        }
    }

    /// Reads what is in the store of what the group touches. Comes back with the sidecars that nobody has heard of and that
    /// are too many: they take room, and nothing of them is kept here.
    async fn look_up(&mut self, group: &[Batch]) -> Result<HashSet<MarkKey>, ReadError> {
        let mut too_many = HashSet::new();
        for batch in group {
            if too_many.contains(&batch.from) {
                continue;
            }
            if !self.held.marks.contains_key(&batch.from) {
                if self.held.is_crowded(&batch.from.service) && !self.may_seek(&batch.from.service) {
                    too_many.insert(batch.from.clone());
                    continue;
                }
                let found = self.journal.get(&batch.from.text()).await?;
                let held = found.map(|record| Held {
                    revision: Some(record.revision),
                    value: Mark::decode(record.value).unwrap_or_default(),
                });
                if !self.held.learn(&batch.from, held) {
                    too_many.insert(batch.from.clone());
                    continue;
                }
            }
            let key = self.hour_key(batch);
            if !self.held.hours.contains_key(&key) {
                let found = self.journal.get(&key.text()).await?;
                let held = found
                    .map(|record| Held { revision: Some(record.revision), value: stored::decode(&record.value).0 });
                self.held.hours.insert(key, held.unwrap_or_default());
            }
        }
        Ok(too_many)
    }

    /// Everybody waits for each read.
    fn may_seek(&mut self, service: &Arc<str>) -> bool {
        let sought = self.sought.entry(Arc::clone(service)).or_default();
        *sought += 1;
        *sought <= SOUGHT
    }

    fn announce(&self, group: &mut [Batch]) {
        for batch in group.iter_mut().filter(|batch| !batch.announced) {
            batch.announced = true;
            if self.held.marks.get(&batch.from).is_some_and(|mark| mark.value.covers(batch.boot, batch.sequence)) {
                continue;
            }
            {
                let mut passed = self.intake.passed();
                batch.keys().for_each(|(flow, _)| passed.note(&flow, batch.at));
            }
            self.intake.announce(&batch.from, Arc::clone(&batch.flows));
        }
    }

    fn plan(&self, group: &[Batch], now: u64) -> Plan {
        let mut plan = Plan::default();
        for batch in group {
            let held = || self.held.marks.get(&batch.from).map(|held| &held.value);
            let mark = plan.marks.get(&batch.from).or_else(held);
            if mark.is_some_and(|mark| mark.covers(batch.boot, batch.sequence)) {
                continue;
            }
            let mut refused = plan.marks.remove(&batch.from).map(|mark| mark.refused).unwrap_or_default();
            let is_refused = |flow: &&Flow| flow.decision() == Decision::Refused;
            let room = TOLD.saturating_sub(refused.len());
            refused.extend(batch.flows.iter().filter(is_refused).take(room).cloned());
            let mark = Mark {
                boot: batch.boot,
                sequence: batch.sequence,
                at_unix_seconds: now,
                writer: self.writer.as_ref().to_owned(),
                refused,
            };
            plan.marks.insert(batch.from.clone(), mark);
            let key = self.hour_key(batch);
            let held = || self.held.hours.get(&key).map(|held| held.value.clone()).unwrap_or_default();
            let counts = plan.hours.entry(key.clone()).or_insert_with(held);
            batch.keys().for_each(|(flow, count)| counts.add(&batch.from.service, flow, count));
        }
        plan
    }

    /// In the order in which [`Known::take`] counts revisions.
    fn writes(&self, plan: &Plan, now: u64) -> Vec<Write> {
        let hours = plan.hours.iter().map(|(key, counts)| {
            let expected = self.held.hours.get(key).map_or(Expected::Absent, Held::expected);
            Write::put(key.text(), stored::encode(counts, now)).expecting(expected)
        });
        let marks = plan.marks.iter().map(|(key, mark)| {
            let expected = self.held.marks.get(key).map_or(Expected::Absent, Held::expected);
            Write::put(key.text(), mark.encode_to_vec()).expecting(expected)
        });
        hours.chain(marks).collect()
    }

    /// What is known of the keys of a group is read again.
    fn forget(&mut self, group: &[Batch]) {
        for batch in group {
            self.held.forget(&batch.from);
            let key = self.hour_key(batch);
            self.held.hours.remove(&key);
        }
    }

    fn hour_key(&self, batch: &Batch) -> HourKey {
        let (service, writer) = (Arc::clone(&batch.from.service), Arc::clone(&self.writer));
        HourKey { hour: batch.at / HOUR, service, writer }
    }

    /// Only after something was written: a clock so wrong that no sidecar's certificate is valid lets go of nothing.
    async fn prune(&mut self, now: u64) {
        if Instant::now() < self.prune_at {
            return;
        }
        match prune::prune(&*self.journal, now).await {
            Ok(prune::Pruned { whole: true, .. }) => self.prune_at = Instant::now() + PRUNE_EVERY,
            // The rest with the next write.
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), "old flows cannot be let go of: trying again in an hour");
                self.prune_at = Instant::now() + PRUNE_EVERY;
            }
        }
        self.intake.passed().forget(prune::kept_since(now));
    }
}

/// Of one service there are not without end new ones.
fn refuse_newcomers(group: &mut Vec<Batch>, too_many: &HashSet<MarkKey>) {
    for batch in group.extract_if(.., |batch| too_many.contains(&batch.from)) {
        let why = "too many new instances of this service within the hour: send it again later";
        batch.end(Err(Status::resource_exhausted(why)));
    }
}

impl Known {
    fn is_crowded(&self, service: &str) -> bool {
        self.newcomers.get(service).is_some_and(|count| *count >= NEWCOMERS)
    }

    /// Holds what is in the store of a sidecar. False: nothing is, and there are too many of those.
    fn learn(&mut self, from: &MarkKey, mark: Option<Held<Mark>>) -> bool {
        if mark.is_none() {
            if self.is_crowded(&from.service) {
                return false;
            }
            *self.newcomers.entry(Arc::clone(&from.service)).or_default() += 1;
        }
        self.marks.insert(from.clone(), mark.unwrap_or_default());
        true
    }

    /// What is in the store of a sidecar is not known any more.
    fn forget(&mut self, from: &MarkKey) {
        if self.marks.remove(from).is_some_and(|mark| mark.revision.is_none())
            && let Some(count) = self.newcomers.get_mut(&from.service)
        {
            *count -= 1;
        }
    }

    /// Takes over what was written, the first of it at `revision`.
    fn take(&mut self, plan: Plan, mut revision: u64) {
        for (key, value) in plan.hours {
            self.hours.insert(key, Held { revision: Some(revision), value });
            revision += 1;
        }
        for (key, value) in plan.marks {
            self.marks.insert(key, Held { revision: Some(revision), value });
            revision += 1;
        }
    }
}

#[cfg(test)]
mod tests;
