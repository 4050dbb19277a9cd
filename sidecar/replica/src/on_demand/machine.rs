//! What each message and each answer does to a cache, and what is answered.
//!
//! It has no socket, no clock and no disk, so that tests can put any sequence of messages to it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use tenon_proto::replication::v1::{
    Ack, Change, Delta, FetchRequest, FetchResponse, FollowRequest, FollowResponse, Heartbeat, Mode, Nack, Record,
    Start, follow_request::Request, follow_response::Response,
};

use super::{
    Answer, Cached, Name,
    coverage::{Coverage, Step},
    store::{Store, Writer},
    warm::Warm,
};
use crate::{
    Guard, Position, Value,
    guard::{Guarding, Now},
};

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Break {
    pub(crate) error: String,
    /// To be told to the parent before the stream ends; a refused offer is likely to come again.
    pub(crate) nack: Option<FollowRequest>,
}

/// One cache's side of the protocol.
pub(crate) struct Machine<V> {
    kind: &'static str,
    writer: Writer<V>,
    coverage: Coverage,
    guard: Guarding,
    /// The parent's name for what it shows to this follower.
    view: String,
    streams: Vec<Stream>,
    /// Changes since the oldest question that is not answered yet was put: the answer may be of before them.
    recent: VecDeque<(Position, Box<str>, Option<V>)>,
    /// What had been told when each open question was put.
    open: BTreeMap<u64, Position>,
    /// Of those, the ones about what may have changed unnoticed.
    refreshing: BTreeSet<u64>,
    next_question: u64,
    /// What may have changed unnoticed, and is to be looked at again.
    outdated: VecDeque<Arc<str>>,
    /// Of what the writer let go for want of room: so much is known to the guard.
    let_go: u64,
    pub(crate) gaps: u64,
    pub(crate) guard_refusals: u64,
}

/// One parent's stream, while it is up.
#[derive(Debug, Default)]
struct Stream {
    /// What the stream was asked to go on from.
    resume: Option<Position>,
    /// The view that it was asked to go on with; of what it tells, once it has begun.
    view: String,
    /// This parent has shown the view that is held. When it then offers another one, it knows something newer.
    knows_view: bool,
    /// Position and view of a snapshot that has started.
    snapshot: Option<(Position, String)>,
    begun: bool,
    /// The last heartbeat was ahead and nothing came since: another one means that deltas were lost.
    behind: bool,
}

/// Names that are asked for in one request.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) number: u64,
    pub(crate) names: Vec<Name>,
    /// They are held, and changes were missed.
    pub(crate) refresh: bool,
}

/// What an answer must be for a [`Question`].
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) request: FetchRequest,
    at_least: Option<Position>,
    view: String,
    /// A record that must exist; a parent that does not have it has lost more than that.
    canary: Option<String>,
}

impl Wanted {
    /// Whether the answer can be relied on.
    ///
    /// # Errors
    /// One line that says why not.
    pub(crate) fn check(&self, answer: &FetchResponse) -> Result<(), String> {
        let position = answer.position.map(Position::from).unwrap_or_default();
        if self.at_least.is_some_and(|at_least| position < at_least) {
            return Err(format!("the parent answers as of {position}, which is behind"));
        }
        if !self.view.is_empty() && !answer.view.is_empty() && self.view != answer.view {
            return Err("the parent answers with another view than it streams".to_owned());
        }
        match &self.canary {
            Some(canary) if !answer.records.iter().any(|record| record.key == *canary) => {
                Err(format!("the parent lacks {canary}, which must exist: refused as poisoned"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl<V: Value> Machine<V> {
    pub(crate) fn new(kind: &'static str, parents: usize, capacity: u64) -> Self {
        Self {
            kind,
            writer: Writer::new(capacity),
            coverage: Coverage::new(parents),
            guard: Guarding::of_part(Guard::of(kind)),
            view: String::new(),
            streams: (0..parents).map(|_| Stream::default()).collect(),
            recent: VecDeque::new(),
            open: BTreeMap::new(),
            refreshing: BTreeSet::new(),
            next_question: 0,
            outdated: VecDeque::new(),
            let_go: 0,
            gaps: 0,
            guard_refusals: 0,
        }
    }

    pub(crate) const fn store(&self) -> &Arc<Store<V>> {
        self.writer.store()
    }

    pub(crate) const fn reached(&self) -> Option<Position> {
        self.coverage.reached()
    }

    pub(crate) fn outdated(&self) -> usize {
        self.outdated.len()
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.writer.evicted
    }

    /// Starts from what the last run left, before any stream.
    pub(crate) fn restore(&mut self, state: Warm) {
        self.coverage.restore(state.position);
        self.view = state.view;
        self.guard.told(state.guard_rules, Now::default());
        for record in state.records {
            if let Ok(value) = V::decode(&record.key, record.revision, record.value) {
                self.writer.put(value, state.position, true);
            }
        }
    }

    /// What is to be found after a restart; absent while some of it may be outdated.
    pub(crate) fn saved(&self) -> Option<(Position, String, tenon_proto::replication::v1::GuardRules, Vec<V>)> {
        let position = self.reached().filter(|_| self.outdated.is_empty() && self.refreshing.is_empty())?;
        Some((position, self.view.clone(), self.guard.rules().clone(), self.writer.values()))
    }

    /// Begins a stream: says what to ask for.
    pub(crate) fn begin(&mut self, parent: usize, instance: &str) -> FollowRequest {
        let resume = self.reached();
        let knows_view = self.streams[parent].knows_view;
        self.streams[parent] = Stream { resume, view: self.view.clone(), knows_view, ..Stream::default() };
        FollowRequest {
            request: Some(Request::Start(Start {
                kind: self.kind.to_owned(),
                mode: Mode::OnDemand.into(),
                resume: resume.map(Into::into),
                instance: instance.to_owned(),
                view: self.view.clone(),
                bucket_digests: Bytes::new(),
            })),
        }
    }

    /// The stream has ended.
    pub(crate) fn end(&mut self, parent: usize) {
        self.streams[parent] = Stream { knows_view: self.streams[parent].knows_view, ..Stream::default() };
        let step = self.coverage.ended(parent);
        self.take(step);
    }

    /// Called each second.
    pub(crate) fn look(&mut self) {
        let step = self.coverage.look();
        self.take(step);
    }

    /// Takes one message in and returns what to answer, if anything.
    pub(crate) fn receive(
        &mut self,
        parent: usize,
        response: FollowResponse,
        now: Now,
    ) -> Result<Option<FollowRequest>, Break> {
        match response.response {
            Some(Response::SnapshotStart(start)) => {
                let position = start.position.map(Position::from).unwrap_or_default();
                self.streams[parent].snapshot = Some((position, start.view));
                Ok(None)
            }
            Some(Response::SnapshotEnd(_)) => match self.streams[parent].snapshot.take() {
                Some((position, view)) => self.begun(parent, position, view).map(Some),
                None => Err(gap("a snapshot without its start")),
            },
            Some(Response::Delta(delta)) => self.delta(parent, delta, now),
            Some(Response::Heartbeat(heartbeat)) => self.heartbeat(parent, &heartbeat),
            Some(Response::GuardRules(rules)) => {
                self.guard.told(rules, now);
                Ok(None)
            }
            // Records that nobody asked for: a parent that does not know this mode. And what newer ones may say.
            Some(Response::SnapshotChunk(_)) | None => Ok(None),
        }
    }

    /// A stream tells changes from `position` on.
    ///
    /// There is one view at a time: while another stream tells the one that is held, a parent that never showed that one
    /// is not followed.
    fn begun(&mut self, parent: usize, position: Position, view: String) -> Result<FollowRequest, Break> {
        let same = view == self.view || self.view.is_empty();
        if !same {
            let others = (0..self.streams.len()).filter(|other| *other != parent && self.streams[*other].begun);
            let others: Vec<usize> = others.collect();
            if !others.is_empty() && !self.streams[parent].knows_view {
                return Err(gap(format!(
                    "the parent shows view {view:?}, and another one {:?}, which is held",
                    self.view
                )));
            }
            // What they tell is of another view now: their next message ends them.
            for other in others {
                self.coverage.ended(other);
            }
            self.streams.iter_mut().for_each(|stream| stream.knows_view = false);
            // Of nothing that is held it is known whether it may be seen.
            self.writer.clear();
        }
        let stream = &mut self.streams[parent];
        (stream.begun, stream.knows_view, stream.view) = (true, true, view.clone());
        let step =
            if same { self.coverage.began(parent, position) } else { self.coverage.began_anew(parent, position) };
        self.view = view;
        self.take(step);
        Ok(ack(position))
    }

    /// A message that takes a stream for granted: it goes on from where it was asked to.
    fn resumed(&mut self, parent: usize) -> Result<(), Break> {
        let stream = &mut self.streams[parent];
        if stream.view != self.view && (stream.begun || stream.resume.is_some()) {
            return Err(gap("the view has changed meanwhile"));
        }
        if stream.begun {
            return Ok(());
        }
        let Some(resume) = stream.resume.filter(|_| stream.snapshot.is_none()) else {
            return Err(gap("a delta where a position should be"));
        };
        (stream.begun, stream.knows_view) = (true, true);
        let step = self.coverage.began(parent, resume);
        self.take(step);
        Ok(())
    }

    fn delta(&mut self, parent: usize, delta: Delta, now: Now) -> Result<Option<FollowRequest>, Break> {
        self.resumed(parent)?;
        let position = Position::new(delta.epoch, delta.revision);
        let range = delta.previous_revision.saturating_add(1)..=delta.revision;
        if !delta.changes.iter().all(|change| range.contains(&change.revision)) {
            return Err(refused(position, format!("the delta to {position} has changes of other revisions")));
        }
        let news = self.reached().is_none_or(|reached| position > reached);
        if news || self.reached().is_some_and(|reached| reached.epoch == position.epoch) {
            self.guarded(&delta, now).map_err(|error| refused(position, error))?;
        }
        let step = self.coverage.delta(parent, delta.previous_revision, position).map_err(gap)?;
        self.streams[parent].behind = false;
        let mut undecodable = None;
        for change in delta.changes {
            let (key, revision) = (change.key.clone(), change.revision);
            if !news {
                self.gone(delta.epoch, &change);
            } else if let Err(error) = self.apply(delta.epoch, change) {
                undecodable = Some(format!("record {key} at revision {revision}: {error}"));
            }
        }
        self.take(step);
        Ok(Some(undecodable.map_or_else(|| ack(position), |error| nack(position, error))))
    }

    /// Whether the guard lets pass what the delta deletes of what is held.
    fn guarded(&mut self, delta: &Delta, now: Now) -> Result<(), String> {
        let deletions: Vec<&str> =
            delta.changes.iter().filter(|change| change.value.is_none()).map(|change| change.key.as_str()).collect();
        let held = deletions.iter().filter(|key| self.writer.held(key).is_some()).count() as u64;
        let records = self.store().len() as u64;
        // What had to go for want of room was not lost.
        self.guard.let_go(self.writer.evicted - std::mem::replace(&mut self.let_go, self.writer.evicted));
        let checked = self.guard.delta(records, records.saturating_sub(held), now, deletions.into_iter());
        self.guard_refusals += u64::from(checked.is_err());
        checked
    }

    /// Takes one change in. What is held already is newer, or the same.
    fn apply(&mut self, epoch: u64, change: Change) -> Result<(), String> {
        let Change { key, revision, value, .. } = change;
        let at = Position::new(epoch, revision);
        let held = self.writer.held(&key);
        let older = held
            .as_ref()
            .is_none_or(|(value, as_of)| *as_of < at && (as_of.epoch != epoch || value.revision() < revision));
        let Some(raw) = value else {
            if older && self.writer.remove(&key) && at >= self.coverage.since() {
                self.writer.put_absent(Name::Key(key.as_str().into()), at);
            }
            self.remember(at, key, None);
            return Ok(());
        };
        let mut nobodys = self.writer.present(&Name::Key(key.as_str().into()));
        if nobodys.is_none() && held.is_none() && self.open.is_empty() && !self.writer.has_absent_aliases() {
            return Ok(());
        }
        let value = V::decode(&key, revision, raw)?;
        for alias in value.aliases() {
            nobodys = nobodys.max(self.writer.present(&Name::Alias(alias.into())));
        }
        // It was asked for and nobody had it. What a parent that lags behind tells may have gone since.
        let wanted = nobodys.is_some_and(|as_of| as_of < at);
        if older && (held.is_some() || wanted) {
            let current = at >= self.coverage.since();
            self.writer.put(value.clone(), at, current);
        }
        self.remember(at, key, Some(value));
        Ok(())
    }

    /// Lets go of what a change deletes, although another parent has led further: one that passes on the last of several
    /// changes leaves out that a record came and went.
    fn gone(&mut self, epoch: u64, change: &Change) {
        let (at, key) = (Position::new(epoch, change.revision), change.key.as_str());
        let older = |(value, as_of): &(V, Position)| *as_of < at && value.revision() < change.revision;
        if change.value.is_none() && self.writer.held(key).as_ref().is_some_and(older) {
            self.writer.remove(key);
        }
    }

    fn remember(&mut self, at: Position, key: String, value: Option<V>) {
        if !self.open.is_empty() {
            self.recent.push_back((at, key.into(), value));
        }
    }

    fn heartbeat(&mut self, parent: usize, heartbeat: &Heartbeat) -> Result<Option<FollowRequest>, Break> {
        if self.streams[parent].snapshot.is_some() {
            return Ok(None);
        }
        self.resumed(parent)?;
        let (head, told) = (heartbeat.head.map(Position::from), self.coverage.told(parent));
        if head > told && std::mem::replace(&mut self.streams[parent].behind, true) {
            return Err(gap("the parent is ahead and nothing came"));
        }
        if head <= told {
            self.streams[parent].behind = false;
        }
        Ok(None)
    }

    fn take(&mut self, step: Step) {
        if step == Step::Gap {
            self.outdated = self.writer.gap();
            self.gaps += 1;
        }
    }

    /// The next records that changes were missed for, `limit` at most.
    pub(crate) fn next_outdated(&mut self, limit: usize) -> Vec<Name> {
        let (mut names, since) = (Vec::new(), self.coverage.since());
        while names.len() < limit
            && let Some(key) = self.outdated.pop_front()
        {
            if self.writer.is_outdated(&key, since) {
                names.push(Name::Key((*key).into()));
            }
        }
        names
    }

    /// What could not be asked about is asked about later.
    pub(crate) fn still_outdated(&mut self, names: &[Name]) {
        self.outdated.extend(names.iter().map(|name| Arc::from(name.as_str())));
    }

    /// Puts a question: what of the stream the answer may lack is remembered until it is answered.
    pub(crate) fn ask(&mut self, names: Vec<Name>, refresh: bool, now: Now) -> (Question, Wanted) {
        let number = self.next_question;
        self.next_question += 1;
        // A stream may be ahead of what was reached. What it told then was of no interest: no answer from before that.
        let at_least = self.reached().max(self.coverage.furthest());
        self.open.insert(number, at_least.unwrap_or_default());
        if refresh {
            self.refreshing.insert(number);
        }
        let mut request =
            FetchRequest { kind: self.kind.to_owned(), at_least: at_least.map(Into::into), ..FetchRequest::default() };
        for name in &names {
            match name {
                Name::Key(key) => request.keys.push(key.to_string()),
                Name::Alias(alias) => request.aliases.push(alias.to_string()),
            }
        }
        // Where an operator allows that canaries go, none is asked for.
        let canary = self.guard.rules().canaries.first().filter(|_| self.guard.snapshot(0, 0, now, |_| false).is_err());
        request.keys.extend(canary.filter(|canary| !request.keys.contains(canary)).cloned());
        let wanted = Wanted { request, at_least, view: self.view.clone(), canary: canary.cloned() };
        (Question { number, names, refresh }, wanted)
    }

    /// No parent gave a good answer.
    pub(crate) fn unanswered(&mut self, question: &Question) {
        self.close(question.number);
    }

    /// Takes a good answer in: what it says to each name, in their order. [`Answer::NotHeld`]: the record is of no use.
    ///
    /// # Errors
    /// The guard does not believe it: what is held stays.
    pub(crate) fn answered(
        &mut self,
        question: &Question,
        answer: FetchResponse,
        now: Now,
    ) -> Result<Vec<Answer<V>>, String> {
        let at = answer.position.map(Position::from).unwrap_or_default();
        if ![&answer.view, &self.view].into_iter().any(String::is_empty) && answer.view != self.view {
            self.close(question.number);
            return Err("the view has changed while the parent was asked".to_owned());
        }
        let aliases = answer.aliases;
        let records: HashMap<String, Result<V, String>> = answer.records.into_iter().map(decode).collect();
        let newer: Vec<_> = self.recent.iter().filter(|(changed, ..)| *changed > at).cloned().collect();
        self.close(question.number);
        if question.refresh {
            self.believable(&question.names, &records, now)?;
        }
        for value in records.values().flatten() {
            self.hold(value.clone(), at);
        }
        let answers = question.names.iter().map(|name| settle(name, &records, &aliases, &newer)).collect::<Vec<_>>();
        for (name, answer) in question.names.iter().zip(&answers) {
            if let (Some(None), Name::Key(key)) = (answer, name)
                && self.writer.held(key).is_some_and(|(_, as_of)| as_of <= at)
            {
                self.writer.remove(key);
            }
            if matches!(answer, Some(None)) && at >= self.coverage.since() {
                let as_of = newer.iter().map(|(changed, ..)| *changed).max();
                self.writer.put_absent(name.clone(), at.max(as_of.unwrap_or_default()));
            }
        }
        let found: HashSet<&str> = answers.iter().flatten().flatten().map(V::key).collect();
        for (changed, key, value) in newer {
            self.again(changed, &key, value, found.contains(&*key));
        }
        let as_of = (at < self.coverage.since()).then_some(at);
        Ok(answers
            .into_iter()
            .map(|answer| match answer {
                Some(Some(value)) => Answer::Found(Cached { value, as_of }),
                Some(None) => Answer::Nobody,
                None => Answer::NotHeld,
            })
            .collect())
    }

    /// Whether so many of `names` can be gone.
    fn believable(
        &mut self,
        names: &[Name],
        records: &HashMap<String, Result<V, String>>,
        now: Now,
    ) -> Result<(), String> {
        let there = |key: &str| records.contains_key(key);
        let left = names.iter().filter(|name| there(name.as_str())).count() as u64;
        let lost = |canary: &str| names.iter().any(|name| name.as_str() == canary) && !there(canary);
        let checked = self.guard.snapshot(names.len() as u64, left, now, |canary| !lost(canary));
        self.guard_refusals += u64::from(checked.is_err());
        checked
    }

    /// Holds what was right at `at`, unless something newer is held.
    fn hold(&mut self, value: V, at: Position) {
        if self.writer.held(value.key()).is_none_or(|(_, as_of)| as_of <= at) {
            let current = at >= self.coverage.since();
            if !current {
                // Changes were missed after it: those of the last gap are known already, and this is not among them.
                self.outdated.push_back(value.key().into());
            }
            self.writer.put(value, at, current);
        }
    }

    /// A change that came while the question was open, now that its record may be held.
    ///
    /// `found`: it, or a later one, was what was asked for.
    fn again(&mut self, at: Position, key: &str, value: Option<V>, found: bool) {
        if self.writer.held(key).map_or(!found, |(_, as_of)| as_of >= at) {
            if let Some(value) = &value {
                self.writer.present(&Name::Key(key.into()));
                for alias in value.aliases() {
                    self.writer.present(&Name::Alias(alias.into()));
                }
            }
            return;
        }
        match value {
            Some(value) => {
                let current = at >= self.coverage.since();
                if !current {
                    self.outdated.push_back(key.into());
                }
                self.writer.put(value, at, current);
            }
            None => {
                self.writer.remove(key);
            }
        }
    }

    fn close(&mut self, question: u64) {
        self.open.remove(&question);
        self.refreshing.remove(&question);
        match self.open.values().min() {
            None => self.recent.clear(),
            Some(oldest) => {
                while self.recent.front().is_some_and(|(at, ..)| at <= oldest) {
                    self.recent.pop_front();
                }
            }
        }
    }
}

/// What is known of a name from an answer and from what has changed since. `None`: there is a record, and it does not
/// decode.
fn settle<V: Value>(
    name: &Name,
    records: &HashMap<String, Result<V, String>>,
    aliases: &BTreeMap<String, String>,
    newer: &[(Position, Box<str>, Option<V>)],
) -> Option<Option<V>> {
    let key = match name {
        Name::Key(key) => Some(&**key),
        Name::Alias(alias) => {
            let owns = |value: &V| value.aliases().any(|held| held == &**alias);
            let changed = latest(newer, |_, value| value.as_ref().is_some_and(owns));
            let owner = changed.map(|(_, key, _)| &**key).or_else(|| aliases.get(&**alias).map(String::as_str));
            // It may have lost the name, or be gone.
            let last = owner.and_then(|owner| latest(newer, |key, _| key == owner));
            owner.filter(|_| last.is_none_or(|(.., value)| value.as_ref().is_some_and(owns)))
        }
    };
    let Some(key) = key else { return Some(None) };
    if let Some((.., value)) = latest(newer, |changed, _| changed == key) {
        return Some(value.clone());
    }
    match records.get(key) {
        Some(Ok(value)) => Some(Some(value.clone())),
        Some(Err(_)) => None,
        None => Some(None),
    }
}

/// The latest of some changes. They came in any order: one stream may have been ahead of the other.
fn latest<V>(
    newer: &[(Position, Box<str>, Option<V>)],
    which: impl Fn(&str, &Option<V>) -> bool,
) -> Option<&(Position, Box<str>, Option<V>)> {
    newer.iter().filter(|(_, key, value)| which(key, value)).max_by_key(|(at, ..)| *at)
}

fn decode<V: Value>(record: Record) -> (String, Result<V, String>) {
    let Record { key, revision, value } = record;
    let decoded = V::decode(&key, revision, value);
    (key, decoded)
}

fn gap(error: impl Into<String>) -> Break {
    Break { error: format!("{}: resuming", error.into()), nack: None }
}

fn refused(position: Position, error: String) -> Break {
    Break { nack: Some(nack(position, error.clone())), error }
}

fn ack(position: Position) -> FollowRequest {
    FollowRequest { request: Some(Request::Ack(Ack { position: Some(position.into()) })) }
}

fn nack(position: Position, error: String) -> FollowRequest {
    FollowRequest { request: Some(Request::Nack(Nack { position: Some(position.into()), error })) }
}
