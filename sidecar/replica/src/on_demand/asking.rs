//! The one task of a cache: it takes in what the streams tell, and asks the parents for what is missing.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use mesh_identity::clock;
use tenon_proto::replication::v1::FetchResponse;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Answer, Name, Shared,
    machine::{Machine, Question, Wanted},
    stream::{self, EVENTS, Event, Say, brief},
    warm,
};
use crate::{Parent, Value, guard::Now};

/// How long a parent may take to answer a question.
const ANSWER: Duration = Duration::from_secs(1);
/// What could not be asked for is not asked for again for this long: a dead source is not asked once a call.
const FAILURE: Duration = Duration::from_secs(1);
/// Names of which is remembered that they could not be asked for.
const FAILURES: usize = 16_384;
/// Names in one question; the protocol allows 1,000.
const NAMES: usize = 500;
/// Questions that may be open at once. More names than these hold wait and go together.
const QUESTIONS: usize = 8;
/// Names that may wait for a question. When there are more, further ones are not to be had: parents that are silent while
/// names come in take no memory for it.
const PENDING: usize = 32_768;
/// Of those, the ones that refresh what is held.
const REFRESHING: usize = 2;
/// How long until a refresh that failed, or that was not believed, is tried again.
const REFRESH_AGAIN: Duration = Duration::from_secs(2);
/// How often it is looked whether a stream stands still, and whether something is to be written to disk.
const LOOK: Duration = Duration::from_secs(1);
/// What is held is on disk at least this often while it changes.
const SAVE: Duration = Duration::from_secs(10);
/// Writing takes at most one part in this many of the time.
const COST_SHARE: u32 = 20;

/// Names that somebody waits for.
#[derive(Debug)]
pub(super) struct Ask<V> {
    pub(super) names: Vec<Name>,
    pub(super) reply: oneshot::Sender<Vec<Answer<V>>>,
}

/// An [`Ask`] of which some names are on their way.
struct Waiting<V> {
    answers: Vec<Answer<V>>,
    missing: usize,
    reply: oneshot::Sender<Vec<Answer<V>>>,
}

/// Who waits for a name: number of the ask, and place in it.
type Waiters = Vec<(u64, usize)>;

/// What became of a question.
type Done = (Question, Result<FetchResponse, String>);

pub(super) struct Keeper<P, V> {
    kind: &'static str,
    instance: String,
    parents: Vec<Arc<P>>,
    shared: Arc<Shared<V>>,
    machine: Machine<V>,
    path: Option<PathBuf>,
    started: Instant,
    /// To the streams that are up.
    orders: Vec<Option<mpsc::Sender<Say>>>,
    waiting: HashMap<u64, Waiting<V>>,
    next_ask: u64,
    /// Every name that is on its way, once, whoever waits for it.
    flights: HashMap<Name, Waiters>,
    /// Of those, the ones that no question holds yet.
    pending: VecDeque<Name>,
    failed: HashMap<Name, Instant>,
    questions: JoinSet<Done>,
    refreshing: usize,
    refresh_from: Instant,
    /// Something that belongs on disk has changed since it was written.
    unsaved: bool,
    save_from: Instant,
    saving: Option<tokio::task::JoinHandle<Saved>>,
}

/// How long writing took, and why it failed.
type Saved = (Duration, Option<String>);

impl<P: Parent, V: Value> Keeper<P, V> {
    pub(super) fn new(
        kind: &'static str,
        instance: String,
        parents: Vec<P>,
        shared: Arc<Shared<V>>,
        machine: Machine<V>,
        path: Option<PathBuf>,
    ) -> Self {
        let parents: Vec<_> = parents.into_iter().map(Arc::new).collect();
        let now = Instant::now();
        Self {
            kind,
            instance,
            orders: parents.iter().map(|_| None).collect(),
            parents,
            shared,
            machine,
            path,
            started: now,
            waiting: HashMap::new(),
            next_ask: 0,
            flights: HashMap::new(),
            pending: VecDeque::new(),
            failed: HashMap::new(),
            questions: JoinSet::new(),
            refreshing: 0,
            refresh_from: now,
            unsaved: false,
            save_from: now,
            saving: None,
        }
    }

    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask<V>>, shutdown: CancellationToken) {
        let (events, mut happened) = mpsc::channel(EVENTS);
        let mut streams = JoinSet::new();
        for (number, parent) in self.parents.iter().enumerate() {
            let wanted = self.shared.wanted.clone();
            streams.spawn(stream::run(Arc::clone(parent), number, events.clone(), wanted));
        }
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some((parent, event)) = happened.recv() => self.happened(parent, event),
                Some(ask) = asks.recv() => {
                    self.asked(ask);
                    // Those who ask at the same moment share a question.
                    while let Ok(ask) = asks.try_recv() {
                        self.asked(ask);
                    }
                }
                Some(Ok(done)) = self.questions.join_next(), if !self.questions.is_empty() => self.done(done),
                _ = look.tick() => self.look().await,
            }
            self.put_questions();
        }
        streams.abort_all();
        self.save().await;
        if let Some(saving) = self.saving.take() {
            let _stopped = saving.await;
        }
    }

    fn now(&self) -> Now {
        let unix_seconds = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
        Now { elapsed: self.started.elapsed(), unix_seconds }
    }

    fn happened(&mut self, parent: usize, event: Event) {
        match event {
            Event::Opening(start) => {
                let (orders, taken) = mpsc::channel(EVENTS);
                self.orders[parent] = Some(orders);
                let _gone = start.send((self.machine.begin(parent, &self.instance), taken));
            }
            Event::Message(message) => {
                self.heard(parent);
                let now = self.now();
                let before = (self.machine.reached(), self.machine.gaps);
                let order = match self.machine.receive(parent, *message, now) {
                    Ok(None) => None,
                    Ok(Some(answer)) => Some(Say::Answer(answer)),
                    Err(broken) => {
                        let mut health = self.shared.health();
                        health.status.nacks += u64::from(broken.nack.is_some());
                        health.status.guard_refusals = self.machine.guard_refusals;
                        drop(health);
                        self.trouble(broken.error);
                        Some(Say::End(broken.nack))
                    }
                };
                if let (Some(order), Some(orders)) = (order, &self.orders[parent]) {
                    let _full = orders.try_send(order);
                }
                if (self.machine.reached(), self.machine.gaps) != before {
                    self.changed();
                }
            }
            Event::Ended(error) => {
                self.orders[parent] = None;
                let gaps = self.machine.gaps;
                self.machine.end(parent);
                self.shared.health().status.connected[parent] = false;
                self.trouble(error);
                if self.machine.gaps != gaps {
                    self.changed();
                }
            }
        }
    }

    fn heard(&self, parent: usize) {
        let mut health = self.shared.health();
        health.heard = Some(Instant::now());
        if !std::mem::replace(&mut health.status.connected[parent], true) {
            health.status.last_error = None;
            tracing::info!(kind = self.kind, parent, "the parent is heard");
        }
    }

    fn trouble(&self, error: String) {
        let mut health = self.shared.health();
        // Once per cause, not once per attempt.
        if health.status.last_error.as_ref() != Some(&error) {
            tracing::warn!(kind = self.kind, %error, "not following: what is held stays in use");
            health.status.last_error = Some(error);
        }
    }

    /// Readers may see something else than before.
    fn changed(&mut self) {
        self.unsaved = true;
        let mut health = self.shared.health();
        health.status.gaps = self.machine.gaps;
        health.status.outdated = self.machine.outdated();
        health.status.evicted = self.machine.evicted();
        health.status.guard_refusals = self.machine.guard_refusals;
        drop(health);
        self.shared.announce(&self.machine);
    }

    fn asked(&mut self, ask: Ask<V>) {
        let number = self.next_ask;
        self.next_ask += 1;
        let mut waiting = Waiting { answers: Vec::with_capacity(ask.names.len()), missing: 0, reply: ask.reply };
        for (place, name) in ask.names.into_iter().enumerate() {
            let held = self.machine.store().peek(&name);
            let settled = match &held {
                Answer::Found(cached) => cached.as_of.is_none(),
                Answer::Nobody => true,
                Answer::NotHeld => false,
            };
            waiting.answers.push(held);
            if settled || self.failed.get(&name).is_some_and(|at| at.elapsed() < FAILURE) {
                continue;
            }
            if self.pending.len() >= PENDING && !self.flights.contains_key(&name) {
                continue;
            }
            waiting.missing += 1;
            let waiters = self.flights.entry(name.clone()).or_default();
            if waiters.is_empty() {
                self.pending.push_back(name);
            }
            waiters.push((number, place));
        }
        if waiting.missing == 0 {
            let _gone = waiting.reply.send(waiting.answers);
        } else {
            self.waiting.insert(number, waiting);
        }
    }

    fn put_questions(&mut self) {
        while self.questions.len() < QUESTIONS && !self.pending.is_empty() {
            let mut names = Vec::new();
            while names.len() < NAMES
                && let Some(name) = self.pending.pop_front()
            {
                if self.is_waited_for(&name) {
                    names.push(name);
                } else {
                    self.land(&name, &Answer::NotHeld);
                }
            }
            if !names.is_empty() {
                self.put(names, false);
            }
        }
        while self.refreshing < REFRESHING
            && self.machine.outdated() > 0
            && self.refresh_from <= Instant::now()
            && self.shared.health().status.connected.contains(&true)
        {
            let names = self.machine.next_outdated(NAMES);
            if !names.is_empty() {
                self.refreshing += 1;
                self.put(names, true);
            }
        }
    }

    /// Whether anyone who asked for it is still there.
    fn is_waited_for(&self, name: &Name) -> bool {
        let waiters = self.flights.get(name).into_iter().flatten();
        waiters.filter_map(|(number, _)| self.waiting.get(number)).any(|waiting| !waiting.reply.is_closed())
    }

    fn put(&mut self, names: Vec<Name>, refresh: bool) {
        let (question, wanted) = self.machine.ask(names, refresh, self.now());
        let parents = self.parents.clone();
        self.questions.spawn(async move { (question, ask_all(&parents, &wanted).await) });
    }

    fn done(&mut self, (question, outcome): Done) {
        let now = self.now();
        self.refreshing -= usize::from(question.refresh);
        let answers = match outcome {
            Ok(answer) => self.machine.answered(&question, answer, now),
            Err(error) => {
                self.machine.unanswered(&question);
                Err(error)
            }
        };
        match answers {
            Ok(answers) => {
                let (names, refresh) = (question.names, question.refresh);
                for (name, answer) in names.into_iter().zip(answers) {
                    self.count(&answer);
                    self.land(&name, &answer);
                }
                self.unsaved = true;
                if refresh {
                    self.changed();
                }
            }
            Err(error) if question.refresh => {
                self.machine.still_outdated(&question.names);
                self.refresh_from = Instant::now() + REFRESH_AGAIN;
                self.shared.health().status.guard_refusals = self.machine.guard_refusals;
                self.trouble(format!("what is held cannot be looked at again: {error}"));
            }
            Err(error) => {
                self.trouble(format!("no parent gives a good answer: {error}"));
                for name in question.names {
                    self.fail(name);
                }
            }
        }
        self.shared.health().status.evicted = self.machine.evicted();
    }

    fn count(&self, answer: &Answer<V>) {
        let fetched = &mut self.shared.health().status.fetched;
        match answer {
            Answer::Found(_) => fetched.found += 1,
            Answer::Nobody => fetched.nobody += 1,
            Answer::NotHeld => fetched.failed += 1,
        }
    }

    /// What is held, if anything, has to do.
    fn fail(&mut self, name: Name) {
        self.count(&Answer::NotHeld);
        let held = self.machine.store().peek(&name);
        self.land(&name, &held);
        if self.failed.len() >= FAILURES {
            self.failed.retain(|_, at| at.elapsed() < FAILURE);
        }
        if self.failed.len() < FAILURES {
            self.failed.insert(name, Instant::now());
        }
    }

    /// Gives those who wait for `name` its answer.
    fn land(&mut self, name: &Name, answer: &Answer<V>) {
        for (number, place) in self.flights.remove(name).unwrap_or_default() {
            let Some(waiting) = self.waiting.get_mut(&number) else { continue };
            waiting.answers[place] = answer.clone();
            waiting.missing -= 1;
            if waiting.missing == 0
                && let Some(waiting) = self.waiting.remove(&number)
            {
                let _gone = waiting.reply.send(waiting.answers);
            }
        }
    }

    async fn look(&mut self) {
        let before = self.machine.gaps;
        self.machine.look();
        if self.machine.gaps != before {
            self.changed();
        }
        if self.failed.len() > FAILURES / 2 {
            self.failed.retain(|_, at| at.elapsed() < FAILURE);
        }
        let idle = self.saving.as_ref().is_none_or(tokio::task::JoinHandle::is_finished);
        if self.unsaved && idle && self.save_from <= Instant::now() {
            self.save().await;
        }
    }

    /// Writes what is held, in the background; waits for the last write first, which is over.
    async fn save(&mut self) {
        if let Some(saving) = self.saving.take()
            && let Ok((took, error)) = saving.await
        {
            self.save_from = Instant::now() + SAVE.max(took * COST_SHARE);
            self.unsaved |= error.is_some();
            let before = std::mem::replace(&mut self.shared.health().status.state_error, error.clone());
            if let (Some(error), None) = (error, before) {
                tracing::warn!(kind = self.kind, %error, "what is held cannot be written: serving from memory");
            }
        }
        let (Some(path), true) = (self.path.clone(), self.unsaved) else { return };
        let Some((position, view, rules, values)) = self.machine.saved() else { return };
        self.unsaved = false;
        self.save_from = Instant::now() + SAVE;
        let kind = self.kind;
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let began = std::time::Instant::now();
            let bytes = warm::encode(kind, position, view, &rules, &values);
            let written = warm::save(&path, &bytes);
            (began.elapsed(), written.err().map(|error| error.to_string()))
        }));
    }
}

/// Asks all parents at once and takes the first answer that is good: one that is silent costs nothing while another one
/// answers.
async fn ask_all<P: Parent>(parents: &[Arc<P>], wanted: &Wanted) -> Result<FetchResponse, String> {
    let mut asking: FuturesUnordered<_> =
        parents.iter().map(|parent| timeout(ANSWER, parent.fetch(wanted.request.clone()))).collect();
    let mut errors = Vec::new();
    while let Some(answer) = asking.next().await {
        let problem = match answer {
            Ok(Ok(answer)) => match wanted.check(&answer) {
                Ok(()) => return Ok(answer),
                Err(problem) => problem,
            },
            Ok(Err(status)) => brief(&status),
            Err(_) => "the parent does not answer".to_owned(),
        };
        errors.push(problem);
    }
    Err(errors.join("; "))
}
