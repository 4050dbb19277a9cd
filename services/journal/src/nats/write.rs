//! How commits are made: of all writes that wait and agree with each other, on what is held, sent until it is known what
//! became of them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::{sync::oneshot, time::Instant};

use super::{
    log::{Log, LogError, Sent},
    replicator::{Batch, Failure, Replicator, now_unix_ms},
    wire::{Change, Changes, Commit},
};
use crate::{
    AppendError, Cause, Expected, Position, Write,
    embedded::{ApplyError, blocking},
};

/// How long a write may take, waiting included. The election of a new leader takes a NATS 2.9 cluster up to nine seconds.
pub(super) const DEADLINE: Duration = Duration::from_millis(9500);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of writes that are put into one commit, unless a single request has more.
const GROUP_BYTES: usize = 256 << 10;
/// Requests that are put into one commit.
const GROUP: usize = 1024;

/// Writes that belong together, and who waits for them.
pub(super) struct Request {
    /// The head that they were decided from, where that matters.
    pub(super) at: Option<Position>,
    pub(super) writes: Vec<Write>,
    pub(super) deadline: Instant,
    pub(super) stage: Arc<Stage>,
    pub(super) reply: oneshot::Sender<Result<Position, AppendError>>,
}

/// How far a request has come, for who waits no longer.
#[derive(Debug, Default)]
pub(super) struct Stage(AtomicU8);

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;
const SENT: u8 = 3;

impl Stage {
    /// Nobody will send it any more; false when that is too late.
    pub(super) fn withdraw(&self) -> bool {
        self.0.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// It may be in the log by now, as far as anybody knows who gets no answer.
    pub(super) fn sent(&self) -> bool {
        self.0.load(Ordering::Acquire) == SENT
    }

    fn send(&self) {
        self.0.store(SENT, Ordering::Release);
    }

    /// It is known not to be in the log.
    fn take_back(&self) {
        self.0.store(TAKEN, Ordering::Release);
    }

    fn take(&self) -> bool {
        self.0.compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire) != Err(WITHDRAWN)
    }
}

impl Request {
    fn bytes(&self) -> usize {
        self.writes.iter().map(|write| write.key.len() + write.value.as_ref().map_or(0, Bytes::len) + 16).sum()
    }

    fn answer(self, result: Result<Position, AppendError>) {
        // Who asked may have gone.
        drop(self.reply.send(result));
    }
}

/// What can be done of the requests that wait.
#[derive(Default)]
struct Plan {
    /// For one commit, each with its last revision.
    accepted: Vec<(Request, u64)>,
    /// Their conditions are not met, by what is held.
    refused: Vec<(Request, AppendError)>,
    /// For later: they depend on those that were accepted, or there are too many.
    deferred: VecDeque<Request>,
}

/// What became of a commit.
enum Outcome {
    Landed,
    /// Others were first: it is void, for ever.
    Superseded,
    Failed(Cause),
    Unconfirmed(Cause),
}

impl Replicator {
    /// Writes what is asked for, and what else waits.
    pub(super) async fn serve(&mut self, first: Request) {
        let mut group = self.gather(first);
        let mut head_known = None;
        while !group.is_empty() {
            let deadline = group.iter().map(|request| request.deadline).min().unwrap_or_else(Instant::now);
            if let Err(cause) = self.make_ready(deadline).await {
                let cause = cause.to_string();
                group.into_iter().for_each(|request| request.answer(Err(AppendError::Failed(cause.clone().into()))));
                return;
            }
            let Plan { accepted, refused, deferred } = match self.plan(group).await {
                Ok(plan) => plan,
                // Answered by being dropped: who waits says that the store could not be read.
                Err(_) => {
                    self.lost = true;
                    return;
                }
            };
            group = deferred;
            if !refused.is_empty() && head_known != Some(self.cursor.sequence) {
                // Somebody else may have made the conditions true: only the log's own end tells.
                match self.reach_the_end(deadline).await {
                    Ok(()) => {
                        head_known = Some(self.cursor.sequence);
                        let again = accepted.into_iter().map(|(request, _)| request);
                        let again: VecDeque<_> = again.chain(refused.into_iter().map(|(request, _)| request)).collect();
                        group = again.into_iter().chain(group).collect();
                        continue;
                    }
                    Err(cause) => {
                        let cause = cause.to_string();
                        for (request, _) in refused {
                            request.answer(Err(AppendError::Failed(cause.clone().into())));
                        }
                    }
                }
            } else {
                refused.into_iter().for_each(|(request, error)| request.answer(Err(error)));
            }
            if accepted.is_empty() {
                continue;
            }
            for request in self.make(accepted, deadline).await.into_iter().rev() {
                group.push_front(request);
            }
        }
    }

    fn gather(&mut self, first: Request) -> VecDeque<Request> {
        let mut bytes = first.bytes();
        let mut group = VecDeque::from_iter(Some(first).filter(|request| request.stage.take()));
        while group.len() < GROUP && bytes < GROUP_BYTES {
            let Ok(request) = self.requests.try_recv() else { break };
            if request.stage.take() {
                bytes += request.bytes();
                group.push_back(request);
            }
        }
        group
    }

    /// Commits what was accepted; returns it if others were first.
    async fn make(&mut self, accepted: Vec<(Request, u64)>, deadline: Instant) -> Vec<Request> {
        let changes = accepted.iter().flat_map(|(request, _)| &request.writes);
        let changes = changes.map(|Write { key, value, .. }| Change { key: key.clone(), value: value.clone() });
        let changes: Vec<_> = changes.collect();
        let epoch = self.cursor.epoch;
        accepted.iter().for_each(|(request, _)| request.stage.send());
        let outcome = self.commit(changes, deadline).await;
        if matches!(outcome, Outcome::Superseded) {
            return accepted
                .into_iter()
                .map(|(request, _)| request)
                .inspect(|request| request.stage.take_back())
                .collect();
        }
        for (request, revision) in accepted {
            request.answer(match &outcome {
                Outcome::Landed | Outcome::Superseded => Ok(Position::new(epoch, revision)),
                Outcome::Failed(cause) => Err(AppendError::Failed(cause.to_string().into())),
                Outcome::Unconfirmed(cause) => Err(AppendError::Unconfirmed(cause.to_string().into())),
            });
        }
        Vec::new()
    }

    async fn make_ready(&mut self, deadline: Instant) -> Result<(), Cause> {
        loop {
            let Err(cause) = self.ready() else { return Ok(()) };
            self.look().await;
            if self.ready().is_ok() {
                return Ok(());
            }
            if Instant::now() + PAUSE >= deadline || self.refused() {
                return Err(self.ready().err().unwrap_or(cause));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Catches up with the log's end as its leader knows it.
    async fn reach_the_end(&mut self, deadline: Instant) -> Result<(), Cause> {
        loop {
            let failure = match self.log.last().await {
                Ok(end) => match self.catch_up(end).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                },
                Err(error) => error.into(),
            };
            if Instant::now() + PAUSE >= deadline {
                return Err(failure.into());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn plan(&self, group: VecDeque<Request>) -> Result<Plan, ApplyError> {
        let Some(held) = self.held.clone() else { return Ok(Plan { deferred: group, ..Plan::default() }) };
        let cursor = self.cursor;
        blocking(move || {
            let conditional = group.iter().flat_map(|request| &request.writes);
            let conditional = conditional.filter(|write| write.expected != Expected::Any);
            let revisions = held.revisions(cursor, conditional.map(|write| write.key.as_str()))?;
            Ok(plan(group, cursor.position(), &revisions))
        })
        .await
    }

    /// Makes a commit, and remembers it until it is known what became of it.
    async fn commit(&mut self, writes: Vec<Change>, deadline: Instant) -> Outcome {
        let after = self.cursor.sequence;
        let mut commit = Commit {
            log: self.cursor.log,
            epoch: self.cursor.epoch,
            after,
            after_id: Some(self.cursor.id),
            id: rand::random(),
            first_revision: self.cursor.head + 1,
            at_unix_ms: now_unix_ms(),
            writes,
            ..Commit::default()
        };
        let mut encoded = commit.encode();
        if !Log::fits(encoded.len()) {
            let writes = std::mem::take(&mut commit.writes);
            let whole = Changes { writes }.encode_to_vec().into();
            match self.log.stage(&whole).await {
                Ok(parts) => commit.parts = Some(parts),
                Err(error) => return Outcome::Failed(error.into()),
            }
            encoded = commit.encode();
        }
        (self.awaited, self.landed) = (Some(commit.id), None);
        let outcome = self.send(&commit, &encoded, deadline).await;
        (self.awaited, self.landed) = (None, None);
        outcome
    }

    /// Sends a commit until it is known what became of it.
    async fn send(&mut self, commit: &Commit, encoded: &Bytes, deadline: Instant) -> Outcome {
        let mut doubtful = false;
        loop {
            let failure = self.send_once(commit, encoded, &mut doubtful).await.err();
            if let Some(outcome) = self.settled(commit.after) {
                return outcome;
            }
            if let Some(Failure::Alarm(alarm)) = &failure {
                self.raise(alarm.clone());
            }
            let hopeless = matches!(&failure, Some(Failure::Alarm(_) | Failure::Log(LogError::Refused(_))));
            if hopeless || Instant::now() + PAUSE >= deadline {
                let cause = failure.map_or_else(|| Cause::from("the log stands still"), described);
                return if doubtful { Outcome::Unconfirmed(cause) } else { Outcome::Failed(cause) };
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends a commit and reads what became of it. `doubtful` becomes true where it may have been stored without that being
    /// read.
    async fn send_once(&mut self, commit: &Commit, encoded: &Bytes, doubtful: &mut bool) -> Result<(), Failure> {
        if !self.sure() {
            // Who did not answer may have lost what the commit follows on, and others have written since.
            self.recognise().await?;
        }
        match self.log.commit(commit.after, encoded.clone()).await {
            Ok(Sent::At(sequence)) => {
                *doubtful = true;
                self.read_up_to(sequence, commit).await
            }
            Ok(Sent::Late) => {
                let end = self.log.last().await?;
                self.catch_up(end).await
            }
            Err(error) => {
                *doubtful |= matches!(error, LogError::Silent(_));
                self.verified = None;
                Err(error.into())
            }
        }
    }

    /// What became of the commit that is awaited, which follows on `after`; nothing as long as what follows on that was not
    /// read. It counts if it comes first there, whatever comes after it.
    fn settled(&self, after: u64) -> Option<Outcome> {
        if self.lost {
            return None;
        }
        if self.landed.is_some() {
            return Some(Outcome::Landed);
        }
        (self.cursor.sequence > after).then_some(Outcome::Superseded)
    }

    /// Reads the log up to a commit of our own.
    async fn read_up_to(&mut self, sequence: u64, commit: &Commit) -> Result<(), Failure> {
        if !self.lost && sequence == self.seen + 1 && commit.parts.is_none() {
            let mut batch = Batch::default();
            self.take(sequence, commit.clone(), &mut batch).await?;
            return self.apply(batch).await;
        }
        self.catch_up(sequence).await
    }
}

/// What can be done of `group` where nothing but `revisions` is there at `head`.
fn plan(group: VecDeque<Request>, head: Position, revisions: &HashMap<String, u64>) -> Plan {
    let mut plan = Plan::default();
    let (mut revision, mut bytes) = (head.revision, 0);
    let mut written: HashMap<String, Option<u64>> = HashMap::new();
    for request in group {
        let full = bytes + request.bytes() > GROUP_BYTES && !plan.accepted.is_empty();
        if full || (request.at.is_some() && !plan.accepted.is_empty()) {
            plan.deferred.push_back(request);
            continue;
        }
        if request.at.is_some_and(|at| at != head) {
            plan.refused.push((request, AppendError::Moved { actual: head }));
            continue;
        }
        let mut own: HashMap<String, Option<u64>> = HashMap::new();
        let mut next = revision;
        let mut against = None;
        for Write { key, value, expected } in &request.writes {
            let others = written.get(key);
            let actual = own.get(key).or(others).copied().unwrap_or_else(|| revisions.get(key).copied());
            let met = match expected {
                Expected::Any => true,
                Expected::Absent => actual.is_none(),
                Expected::Revision(expected) => actual == Some(*expected),
            };
            if !met {
                let error = AppendError::Conflict { key: key.clone(), expected: *expected, actual };
                against = Some((error, others.is_some()));
                break;
            }
            next += 1;
            own.insert(key.clone(), value.as_ref().map(|_| next));
        }
        match against {
            // By those before it, which may yet fail.
            Some((_, true)) => plan.deferred.push_back(request),
            Some((error, false)) => plan.refused.push((request, error)),
            None => {
                bytes += request.bytes();
                written.extend(own);
                revision = next;
                plan.accepted.push((request, revision));
            }
        }
    }
    plan
}

fn described(failure: Failure) -> Cause {
    let mut text = failure.to_string();
    let mut source = std::error::Error::source(&failure);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.into()
}

#[cfg(test)]
mod tests;
