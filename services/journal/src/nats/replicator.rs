//! The one task that reads the log of a kind into the local store, and writes to it.
//!
//! It hears of commits as they are stored, and asks each second what it may have missed. Commits are made one after the other,
//! of all the writes that wait.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{Client, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

use super::{
    Cursor, checkpoint,
    checkpoint::CheckpointError,
    cursor::Verdict,
    log::{self, Log, LogError},
    wire::{Change, Changes, Checkpoint, Commit, Replaced},
    write::Request,
};
use crate::{
    Cause, Entry, Journal as _, OpenError, Options,
    embedded::{Replicated, blocking},
};

/// How often what may have been missed is asked for.
const POLL: Duration = Duration::from_secs(1);
/// Looks at a log that is shorter than what is held, before that is believed: a server that has just come back may say so.
const LOOKS: u32 = 3;
/// Messages that are heard and applied at once.
const HEARD_AT_ONCE: usize = 256;
/// Changes that are applied at once while catching up.
const APPLIED_AT_ONCE: usize = 8192;

/// Why nothing is read any more, until somebody sees to it. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Alarm {
    #[error("stream {0} is gone: what is held of it is served, nothing is written; restore a backup into the cluster")]
    Gone(String),
    #[error(
        "stream {stream} ends at {end}, and {held} of it is held: it was cut short or lost data; what is held is served, \
         nothing is written; restore a backup into the cluster"
    )]
    Shorter { stream: String, end: u64, held: u64 },
    #[error(
        "stream {0} is not the one that is held: it was made anew; what is held is served, nothing is written; restore a \
         backup into the cluster, or delete this process's local store to take what the cluster has"
    )]
    Another(String),
    #[error("stream {stream} has lost what came after {held}, and there is no checkpoint of it; restore a backup")]
    Hole { stream: String, held: u64 },
    #[error("stream {stream} is damaged: {why}; restore a backup into the cluster")]
    Damaged { stream: String, why: String },
}

/// Why the log could not be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the local store cannot be written")]
    Local(#[from] redb::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Alarm(#[from] Alarm),
    #[error("the checkpoint cannot be read")]
    Checkpoint(#[source] Cause),
}

/// What a replicator is made of.
pub(super) struct Parts {
    pub(super) kind: &'static str,
    pub(super) client: Client,
    pub(super) log: Log,
    /// The local store's file.
    pub(super) path: PathBuf,
    pub(super) options: Options,
    /// Bytes of the log below which no checkpoint is worth its room.
    pub(super) checkpoint_bytes: u64,
    pub(super) held: Option<(Replicated, Cursor)>,
    pub(super) local: watch::Sender<Option<Arc<Replicated>>>,
    pub(super) alarm: watch::Sender<Option<Alarm>>,
    pub(super) requests: mpsc::Receiver<Request>,
}

/// The task's state.
pub(super) struct Replicator {
    kind: &'static str,
    client: Client,
    pub(super) log: Log,
    path: PathBuf,
    options: Options,
    checkpoint_bytes: u64,
    /// What readers see.
    local: watch::Sender<Option<Arc<Replicated>>>,
    alarm: watch::Sender<Option<Alarm>>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) held: Option<Arc<Replicated>>,
    pub(super) cursor: Cursor,
    /// Up to where the stream was read: everything of the log up to here is in `cursor`.
    pub(super) seen: u64,
    /// Id of the last commit that counted.
    pub(super) landed: Option<u64>,
    /// When the stream was made that `cursor` was found in; absent before the first look, and after each reason to doubt.
    verified: Option<String>,
    /// Looks in a row at which the log was shorter than what is held.
    shorter: u32,
    /// Bytes of the log since the last checkpoint.
    log_bytes: u64,
    /// Something was applied that a crash would undo.
    dirty: bool,
    /// A checkpoint that is being stored.
    checkpointing: Option<tokio::task::JoinHandle<()>>,
}

impl Replicator {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { kind, client, log, path, options, checkpoint_bytes, held, local, alarm, requests } = parts;
        let cursor = held.as_ref().map_or_else(Cursor::default, |(_, cursor)| *cursor);
        let held = held.map(|(held, _)| Arc::new(held));
        local.send_replace(held.clone());
        Self {
            kind,
            client,
            log,
            path,
            options,
            checkpoint_bytes,
            local,
            alarm,
            requests,
            held,
            cursor,
            seen: cursor.sequence,
            landed: None,
            verified: None,
            shorter: 0,
            log_bytes: 0,
            dirty: false,
            checkpointing: None,
        }
    }

    /// Runs until nobody can ask for a write any more.
    pub(super) async fn run(mut self) {
        let mut heard = None;
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if heard.is_none() {
                heard = self.log.subscribe(&self.client).await.ok();
            }
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => break,
                },
                message = next(&mut heard) => match message {
                    Some(message) => self.hear(message, &mut heard).await,
                    None => heard = None,
                },
                _ = poll.tick() => {
                    self.look().await;
                    self.settle().await;
                }
            }
        }
        self.settle().await;
        if let Some(checkpointing) = self.checkpointing.take() {
            checkpointing.abort();
        }
    }

    /// Asks what there is, and catches up with it.
    pub(super) async fn look(&mut self) {
        let looked = self.examine().await;
        match looked {
            Ok(()) => self.all_well(),
            Err(Failure::Alarm(alarm)) => self.raise(alarm),
            Err(failure) => self.trouble(&failure).await,
        }
    }

    async fn examine(&mut self) -> Result<(), Failure> {
        let info = match self.log.info().await {
            Err(LogError::NoStream) if self.cursor.log == 0 => {
                self.log.create().await?;
                self.log.info().await?
            }
            Err(LogError::NoStream) => {
                self.verified = None;
                return Err(Alarm::Gone(self.log.stream().to_owned()).into());
            }
            other => other?,
        };
        let (first, end) = (info.state.first_sequence, info.state.last_sequence);
        if end < self.cursor.sequence {
            self.shorter += 1;
            let stream = self.log.stream().to_owned();
            let alarm = Alarm::Shorter { stream, end, held: self.cursor.sequence };
            return if self.shorter >= LOOKS || self.alarm.borrow().is_some() { Err(alarm.into()) } else { Ok(()) };
        }
        self.shorter = 0;
        let made = info.created.to_string();
        if self.verified.as_ref() != Some(&made) {
            self.verify(first).await?;
            self.verified = Some(made);
        }
        if end == 0 {
            self.begin().await?;
            return self.catch_up(self.log.last().await?).await;
        }
        if first > self.seen + 1 && self.log_goes_on_after(first).await? {
            self.install_oldest(first).await?;
        }
        self.catch_up(end).await
    }

    /// Finds what is held in the log, or that it has gone with the retention.
    async fn verify(&mut self, first: u64) -> Result<(), Failure> {
        if self.cursor.log == 0 {
            return Ok(());
        }
        let another = || Failure::from(Alarm::Another(self.log.stream().to_owned()));
        match self.log.commit_at(self.cursor.sequence).await {
            Ok(commit) if commit.id == self.cursor.id => Ok(()),
            Ok(_) | Err(LogError::Damaged { .. }) => Err(another()),
            Err(LogError::Missing(_)) if first > self.cursor.sequence => {
                let (_, manifest) = self.log.manifest().await?;
                let ours = manifest.checkpoints.iter().any(|kept| kept.log == self.cursor.log);
                if ours { Ok(()) } else { Err(another()) }
            }
            Err(LogError::Missing(_)) => Err(another()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether commits may have been trimmed that were not read: not where the log begins with what follows.
    async fn log_goes_on_after(&self, first: u64) -> Result<bool, Failure> {
        if self.cursor.log == 0 {
            return Ok(first > 1);
        }
        match self.log.commit_at(first).await {
            Ok(commit) => Ok(commit.after > self.cursor.sequence),
            Err(LogError::Damaged { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the first message of a new log. Others may do so at the same time: the first one counts.
    async fn begin(&mut self) -> Result<(), Failure> {
        let commit = Commit {
            log: rand::random_range(1..=u64::MAX),
            epoch: now_unix_ms(),
            id: rand::random(),
            first_revision: 1,
            at_unix_ms: now_unix_ms(),
            ..Commit::default()
        };
        self.log.commit(0, commit.encode()).await?;
        Ok(())
    }

    /// Reads the log up to `end`.
    pub(super) async fn catch_up(&mut self, end: u64) -> Result<(), Failure> {
        if end <= self.seen {
            return Ok(());
        }
        let log = self.log.clone();
        let mut commits = log.read(self.seen + 1, end);
        let mut batch = Batch::default();
        while let Some(commit) = commits.next().await {
            let (sequence, commit) = match commit {
                Err(LogError::Damaged { sequence, source }) => return Err(self.damaged(sequence, &source)),
                other => other?,
            };
            self.take(sequence, commit, &mut batch).await?;
            if batch.entries.len() >= APPLIED_AT_ONCE {
                self.apply(std::mem::take(&mut batch)).await?;
            }
        }
        self.apply(batch).await?;
        self.seen = end.max(self.seen);
        Ok(())
    }

    /// Takes the next commit of the log into a batch, or what it stands for.
    pub(super) async fn take(&mut self, sequence: u64, mut commit: Commit, batch: &mut Batch) -> Result<(), Failure> {
        let cursor = batch.cursor.unwrap_or(self.cursor);
        let verdict = cursor.judge(&commit);
        if verdict == Verdict::Gap {
            self.apply(std::mem::take(batch)).await?;
            return Err(Alarm::Hole { stream: self.log.stream().to_owned(), held: cursor.sequence }.into());
        }
        if let (Verdict::Replaces, Some(Replaced { manifest })) = (verdict, &commit.replaced) {
            self.apply(std::mem::take(batch)).await?;
            return self.replace(sequence, &commit, *manifest).await;
        }
        if let (Verdict::Counts, Some(parts)) = (verdict, commit.parts.take()) {
            commit.writes = self.fetch_writes(sequence, &parts).await?;
        }
        let next = cursor.after(sequence, &commit, verdict);
        if verdict == Verdict::Counts {
            batch.add(&commit);
            batch.landed = Some(commit.id);
            if cursor.log == 0 {
                self.apply(std::mem::take(batch)).await?;
                let (path, kind, options) = (self.path.clone(), self.kind, self.options);
                let made = blocking(move || Replicated::create(&path, kind, options, next)).await?;
                self.switch(made, next);
                return Ok(());
            }
        }
        batch.cursor = Some(next);
        Ok(())
    }

    async fn fetch_writes(&self, sequence: u64, parts: &super::wire::Parts) -> Result<Vec<Change>, Failure> {
        use prost::Message as _;
        let whole = match self.log.parts(parts).await {
            Err(LogError::Damaged { source, .. }) => return Err(self.damaged(sequence, &source)),
            Err(LogError::Missing(part)) => {
                return Err(self.damaged(sequence, &format!("its part at {part} is missing")));
            }
            other => other?,
        };
        Ok(Changes::decode(whole).map_err(|error| self.damaged(sequence, &error))?.writes)
    }

    /// Makes what a batch says, locally.
    pub(super) async fn apply(&mut self, batch: Batch) -> Result<(), Failure> {
        let Some(cursor) = batch.cursor else { return Ok(()) };
        let Some(held) = self.held.clone() else { return Ok(()) };
        let (bytes, landed) = (batch.bytes, batch.landed);
        let (cursor_before, held_too) = (self.cursor, Arc::clone(&held));
        match blocking(move || held.apply(&batch.entries, cursor, false)).await {
            Ok(()) => {
                self.cursor = cursor;
                self.landed = landed.or(self.landed);
                self.seen = self.seen.max(cursor.sequence);
                self.log_bytes += bytes;
                self.dirty = true;
                Ok(())
            }
            Err(error) => {
                // The store was opened again, and may have forgotten what no durable write followed.
                self.cursor = blocking(move || held_too.cursor()).await.unwrap_or(cursor_before);
                self.seen = self.cursor.sequence;
                Err(error.into())
            }
        }
    }

    /// Takes one of the messages that the servers published once more, and those that wait behind it.
    async fn hear(&mut self, message: async_nats::Message, heard: &mut Option<Subscriber>) {
        let mut batch = Batch::default();
        let mut message = Some(message);
        let mut taken = Ok(());
        let mut missed = None;
        for _ in 0..HEARD_AT_ONCE {
            let Some(this) = message.take() else { break };
            if let Some((sequence, before, commit)) = log::heard(&this) {
                let at = batch.cursor.unwrap_or(self.cursor).sequence;
                if self.verified.is_some() && before == at && at > 0 {
                    taken = self.take(sequence, commit, &mut batch).await;
                } else if sequence > at {
                    missed = Some(sequence);
                }
            }
            if taken.is_err() {
                break;
            }
            message = next(heard).now_or_never().flatten();
        }
        let result = match (taken, self.apply(batch).await) {
            (Ok(()), Ok(())) => match missed.filter(|_| self.verified.is_some()) {
                Some(sequence) => self.catch_up(sequence).await,
                None => Ok(()),
            },
            (Err(failure), _) | (_, Err(failure)) => Err(failure),
        };
        match result {
            Ok(()) => {}
            Err(Failure::Alarm(alarm)) => self.raise(alarm),
            Err(failure) => self.trouble(&failure).await,
        }
    }

    /// Begins anew with a checkpoint that the retention has kept, since what came before it has gone.
    async fn install_oldest(&mut self, first: u64) -> Result<(), Failure> {
        let (_, manifest) = self.log.manifest().await?;
        let wanted = |kept: &&Checkpoint| {
            let ours = self.cursor.log == 0 || kept.log == self.cursor.log;
            ours && kept.sequence + 1 >= first && kept.sequence >= self.cursor.sequence
        };
        let Some(checkpoint) = manifest.checkpoints.iter().find(wanted) else {
            return Err(Alarm::Hole { stream: self.log.stream().to_owned(), held: self.cursor.sequence }.into());
        };
        let Checkpoint { log, epoch, sequence, id, revision, .. } = *checkpoint;
        self.install(checkpoint, Cursor { log, epoch, sequence, id, head: revision }).await
    }

    /// All records are replaced, and another epoch begins.
    async fn replace(&mut self, sequence: u64, commit: &Commit, manifest: u64) -> Result<(), Failure> {
        let manifest = self.log.manifest_at(manifest).await?;
        let Some(checkpoint) = manifest.checkpoints.last() else {
            return Err(self.damaged(sequence, &"its manifest is empty"));
        };
        let cursor =
            Cursor { log: commit.log, epoch: commit.epoch, sequence, id: commit.id, head: checkpoint.revision };
        self.install(checkpoint, cursor).await
    }

    async fn install(&mut self, checkpoint: &Checkpoint, cursor: Cursor) -> Result<(), Failure> {
        let incoming = self.path.with_extension("incoming");
        let loaded = checkpoint::load(&self.log, checkpoint, &incoming, self.kind, self.options, cursor).await;
        let loaded = loaded.map_err(|error| match error {
            CheckpointError::Log(error) => Failure::Log(error),
            CheckpointError::Differs { .. } => self.damaged(checkpoint.sequence, &error),
            CheckpointError::Read(_) | CheckpointError::Open(_) | CheckpointError::Write(_) => {
                Failure::Checkpoint(error.into())
            }
        })?;
        std::fs::rename(&incoming, &self.path).map_err(|error| Failure::Local(redb::Error::Io(error)))?;
        self.switch(loaded, cursor);
        Ok(())
    }

    /// From now on, readers see another store.
    fn switch(&mut self, to: Replicated, cursor: Cursor) {
        let to = Arc::new(to);
        self.held = Some(Arc::clone(&to));
        self.cursor = cursor;
        self.seen = cursor.sequence;
        self.log_bytes = 0;
        self.local.send_replace(Some(to));
    }

    /// What is done now and then: what was applied is made durable, and a checkpoint stored where one is due.
    async fn settle(&mut self) {
        let Some(held) = self.held.clone() else { return };
        if std::mem::take(&mut self.dirty) {
            let (cursor, written) = (self.cursor, Arc::clone(&held));
            if let Err(error) = blocking(move || written.apply(&[], cursor, true)).await {
                self.trouble(&error.into()).await;
                return;
            }
        }
        let idle = self.checkpointing.as_ref().is_none_or(tokio::task::JoinHandle::is_finished);
        if !idle || self.verified.is_none() || !checkpoint::due(self.log_bytes, self.checkpoint_bytes, None) {
            return;
        }
        let Ok((_, manifest)) = self.log.manifest().await else { return };
        let last = manifest.checkpoints.last().filter(|last| last.log == self.cursor.log);
        if !checkpoint::due(self.log_bytes, self.checkpoint_bytes, last) {
            return;
        }
        let (log, cursor, options) = (self.log.clone(), self.cursor, self.options);
        let log_bytes = std::mem::take(&mut self.log_bytes);
        if last.is_some_and(|last| last.sequence > cursor.sequence.saturating_sub(1)) {
            return;
        }
        // Read here, where nothing is applied meanwhile.
        let Ok(history) = held.journal().history().await else { return };
        self.checkpointing = Some(tokio::spawn(async move {
            let stored = checkpoint::store(&log, cursor, now_unix_ms(), log_bytes, history.parts).await;
            let result = match stored {
                Ok(checkpoint) => checkpoint::publish(&log, checkpoint, &options).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(_) => tracing::info!(stream = log.stream(), revision = cursor.head, "checkpoint stored"),
                Err(error) => tracing::warn!(stream = log.stream(), %error, "no checkpoint could be stored"),
            }
        }));
    }

    /// Nothing is known against writing.
    pub(super) fn ready(&self) -> Result<(), Cause> {
        if let Some(alarm) = &*self.alarm.borrow() {
            return Err(alarm.clone().into());
        }
        if self.verified.is_some() && self.held.is_some() {
            return Ok(());
        }
        Err(Cause::from("the NATS cluster has not answered yet: a majority of its nodes must be up, and reachable"))
    }

    /// Something must be seen to before anything is written.
    pub(super) fn refused(&self) -> bool {
        self.alarm.borrow().is_some()
    }

    fn damaged(&self, sequence: u64, why: &dyn std::fmt::Display) -> Failure {
        Alarm::Damaged { stream: self.log.stream().to_owned(), why: format!("message {sequence}: {why}") }.into()
    }

    pub(super) fn raise(&mut self, alarm: Alarm) {
        self.verified = None;
        self.alarm.send_if_modified(|raised| {
            let new = raised.as_ref() != Some(&alarm);
            if new {
                tracing::error!(%alarm, "the log of the journal is refused");
                *raised = Some(alarm);
            }
            new
        });
    }

    fn all_well(&mut self) {
        self.alarm.send_if_modified(|raised| {
            let was = raised.take();
            if let Some(alarm) = &was {
                tracing::info!(%alarm, "the log of the journal is well again");
            }
            was.is_some()
        });
    }

    async fn trouble(&mut self, failure: &Failure) {
        tracing::debug!(stream = self.log.stream(), error = %failure, "the log of the journal cannot be read on");
        if let (Failure::Local(_), Some(held)) = (failure, self.held.clone())
            && let Ok(cursor) = blocking(move || held.cursor()).await
        {
            self.cursor = cursor;
            self.seen = cursor.sequence;
        }
    }
}

/// Commits that are applied together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    /// After the last of them.
    pub(super) cursor: Option<Cursor>,
    bytes: u64,
    /// Id of the last one that counts.
    landed: Option<u64>,
}

impl Batch {
    pub(super) fn add(&mut self, commit: &Commit) {
        for (revision, Change { key, value }) in (commit.first_revision..).zip(&commit.writes) {
            self.bytes += (key.len() + value.as_ref().map_or(0, bytes::Bytes::len)) as u64 + 16;
            let (key, value) = (key.clone(), value.clone());
            self.entries.push(Entry { key, revision, value, at_unix_ms: commit.at_unix_ms });
        }
    }
}

async fn next(heard: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match heard {
        Some(heard) => heard.next().await,
        None => std::future::pending().await,
    }
}

pub(super) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
