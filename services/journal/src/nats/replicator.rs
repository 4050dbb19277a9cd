//! The one task that reads the log of a kind into the local store, and writes to it.
//!
//! It hears of commits as they are stored, and asks each second what it may have missed. Commits are made one after the other,
//! of all the writes that wait.

mod reading;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::Client;
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

use super::{
    Cursor, checkpoint,
    log::{Log, LogError},
    wire::{Commit, Replaced},
    write::Request,
};
use crate::{
    Cause, Journal as _, OpenError, Options,
    embedded::{Replicated, blocking},
};

pub(super) use reading::Batch;
use reading::next;

/// How often what may have been missed is asked for.
const POLL: Duration = Duration::from_secs(1);
/// Looks at a log that is shorter than what is held, before that is believed: a server that has just come back may say so.
const LOOKS: u32 = 3;

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
    #[error(
        "stream {stream} is the log of the mesh {found:?}, and this is {own}: nothing of it is read or written; delete it, \
         and restore a backup of {own} into the cluster"
    )]
    AnotherMesh { stream: String, found: String, own: String },
    #[error("stream {stream} is damaged: {why}; restore a backup into the cluster")]
    Damaged { stream: String, why: String },
}

/// Why the log could not be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Log(LogError),
    #[error("the local store cannot be written")]
    Local(#[from] redb::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Alarm(#[from] Alarm),
    #[error("the checkpoint cannot be read")]
    Checkpoint(#[source] Cause),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        match error {
            LogError::AnotherMesh { stream, found, own } => Alarm::AnotherMesh { stream, found, own }.into(),
            other @ (LogError::Unavailable(_)
            | LogError::Silent(_)
            | LogError::Missing(_)
            | LogError::NoStream
            | LogError::Refused(_)
            | LogError::Damaged { .. }) => Self::Log(other),
        }
    }
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
        let begins_anew = self.refused() || end < self.cursor.sequence || first > self.seen + 1;
        if begins_anew && self.take_restored(first).await? {
            self.verified = None;
        }
        if end < self.cursor.sequence {
            self.shorter += 1;
            let stream = self.log.stream().to_owned();
            let alarm = Alarm::Shorter { stream, end, held: self.cursor.sequence };
            return if self.shorter >= LOOKS || self.refused() { Err(alarm.into()) } else { Ok(()) };
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

    /// Takes what was restored into the cluster, where the log begins with that.
    async fn take_restored(&mut self, first: u64) -> Result<bool, Failure> {
        let commit = match self.log.commit_at(first).await {
            Ok(commit) => commit,
            Err(LogError::Missing(_) | LogError::Damaged { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let Some(Replaced { manifest }) = commit.replaced.clone() else { return Ok(false) };
        if commit.epoch <= self.cursor.epoch {
            return Ok(false);
        }
        self.replace(first, &commit, manifest).await?;
        Ok(true)
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
            mesh: self.log.mesh(),
            ..Commit::default()
        };
        self.log.commit(0, commit.encode()).await?;
        Ok(())
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

pub(super) fn now_unix_ms() -> u64 {
    u64::try_from(mesh_identity::clock::since_epoch().as_millis()).unwrap_or(u64::MAX)
}
