//! The one task that reads the log of a kind into the local store, and writes to it.
//!
//! It hears of commits as they are stored, and asks each second what it may have missed. Commits are made one after the other,
//! of all the writes that wait.

mod alarm;
mod reading;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Client, jetstream::stream::Info};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

use super::{
    Cursor, checkpoint,
    log::{Log, LogError},
    wire::{Commit, Replaced},
    write::Request,
};
use crate::{
    Cause, Journal as _, Options,
    embedded::{Replicated, blocking},
};

pub(super) use alarm::{Alarm, Failure, mind};
pub(super) use reading::Batch;
use reading::next;

/// How often what may have been missed is asked for.
const POLL: Duration = Duration::from_secs(1);
/// For how long a log may be shorter than what is held before that is believed: a server that has just come back may say so.
const SHORTER: Duration = Duration::from_secs(2);
/// For how long a message may be missing before that is believed: a new leader may be behind for a moment.
const MISSING: Duration = Duration::from_secs(10);

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
    /// The local store may be elsewhere than at `cursor`, after an error: nothing is applied until it was asked.
    pub(super) lost: bool,
    /// Up to where the stream was read: everything of the log up to here is in `cursor`.
    pub(super) seen: u64,
    /// Id of our own commit of which it is not known yet what became of it.
    pub(super) awaited: Option<u64>,
    /// Where that one is in what is held; absent unless it counted.
    pub(super) landed: Option<u64>,
    /// When the stream was made that `cursor` was found in; absent before the first look, and after each reason to doubt.
    pub(super) verified: Option<String>,
    /// How often there was a connection by then. A cluster that was out of reach may have lost what it had, and grown again.
    connects: u64,
    /// Since when the log is shorter than what is held, at each look.
    shorter: Option<Instant>,
    /// Since when messages of the log are missing, at each look.
    missing: Option<Instant>,
    /// Bytes of the log since the last checkpoint.
    log_bytes: u64,
    /// Something was applied that a crash would undo.
    dirty: bool,
    /// A checkpoint that is being stored.
    checkpointing: Option<JoinHandle<()>>,
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
            lost: false,
            seen: cursor.sequence,
            awaited: None,
            landed: None,
            verified: None,
            connects: 0,
            shorter: None,
            missing: None,
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
            Ok(()) => {
                self.missing = None;
                self.all_well();
            }
            Err(Failure::Alarm(alarm)) => {
                self.missing = None;
                self.raise(alarm);
            }
            Err(Failure::Log(LogError::Missing(sequence))) if self.long_missing() => {
                let alarm = self.damage(sequence, &"it is missing");
                self.raise(alarm);
            }
            Err(Failure::Log(LogError::CheckpointMissing(sequence))) if self.long_missing() => {
                let alarm = self.damage(sequence, &"it is missing from the checkpoints");
                self.raise(alarm);
            }
            Err(failure) => {
                // Nobody looked meanwhile: what is there may be another matter by now.
                if !matches!(failure, Failure::Log(LogError::Missing(_) | LogError::CheckpointMissing(_))) {
                    (self.missing, self.shorter) = (None, None);
                }
                self.trouble(&failure);
            }
        }
    }

    /// Whether what could not be read has been missing for long enough to believe it.
    fn long_missing(&mut self) -> bool {
        self.missing.get_or_insert_with(Instant::now).elapsed() >= MISSING
    }

    async fn examine(&mut self) -> Result<(), Failure> {
        let connects = self.connected();
        self.find().await?;
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
            self.verified = None;
        }
        let begins_anew = self.refused() || end < self.cursor.sequence || first > self.seen + 1;
        if begins_anew && self.take_restored(first).await? {
            self.verified = None;
        }
        if end < self.cursor.sequence {
            let since = *self.shorter.get_or_insert_with(Instant::now);
            let stream = self.log.stream().to_owned();
            let alarm = Alarm::Shorter { stream, end, held: self.cursor.sequence };
            return if since.elapsed() >= SHORTER || self.refused() { Err(alarm.into()) } else { Ok(()) };
        }
        self.shorter = None;
        let mut found = true;
        if !self.sure() || self.verified.as_ref() != Some(&info.created.to_string()) {
            found = self.verify(&info, connects).await?;
        }
        if end == 0 {
            self.begin().await?;
            return self.catch_up(self.log.last().await?).await;
        }
        if first > self.seen + 1 || !found {
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

    /// Asks the log whether what is held is what it has.
    pub(super) async fn recognise(&mut self) -> Result<(), Failure> {
        self.verified = None;
        let connects = self.connected();
        let info = self.log.info().await?;
        if self.verify(&info, connects).await? {
            return Ok(());
        }
        Err(LogError::Missing(self.cursor.sequence).into())
    }

    /// False where the log begins after what is held: nothing tells whether that was in it, and the next look begins anew.
    async fn verify(&mut self, info: &Info, connects: u64) -> Result<bool, Failure> {
        self.verified = None;
        let found = self.cursor.log == 0 || self.find_in_log(info.state.first_sequence).await?;
        self.verified = found.then(|| info.created.to_string());
        self.connects = connects;
        Ok(found)
    }

    /// Finds what is held in the log; false where it has gone with the retention.
    async fn find_in_log(&self, first: u64) -> Result<bool, Failure> {
        let another = || Failure::from(Alarm::Another(self.log.stream().to_owned()));
        match self.log.commit_at(self.cursor.sequence).await {
            Ok(commit) if commit.id == self.cursor.id => Ok(true),
            Ok(_) | Err(LogError::Damaged { .. }) => Err(another()),
            Err(LogError::Missing(_)) if first > self.cursor.sequence => {
                let (_, manifest) = self.log.manifest().await?;
                let ours = manifest.checkpoints.iter().any(|kept| kept.log == self.cursor.log);
                if ours { Ok(false) } else { Err(another()) }
            }
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
            if let Err(error) = blocking(move || written.apply(&[], cursor, cursor, true)).await {
                self.lost = true;
                self.trouble(&error.into());
                return;
            }
        }
        let idle = self.checkpointing.as_ref().is_none_or(JoinHandle::is_finished);
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
        if self.lost {
            return Err(Cause::from("what is held locally cannot be read"));
        }
        if self.sure() && self.held.is_some() {
            return Ok(());
        }
        Err(Cause::from("the NATS cluster has not answered yet: a majority of its nodes must be up, and reachable"))
    }

    /// What is held was found in the log, and there was no reason to doubt it since.
    pub(super) fn sure(&self) -> bool {
        self.verified.is_some() && self.connects == self.connected()
    }

    fn connected(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Something must be seen to before anything is written.
    pub(super) fn refused(&self) -> bool {
        self.alarm.borrow().is_some()
    }

    fn damaged(&self, sequence: u64, why: &dyn std::fmt::Display) -> Failure {
        self.damage(sequence, why).into()
    }

    fn damage(&self, sequence: u64, why: &dyn std::fmt::Display) -> Alarm {
        Alarm::Damaged { stream: self.log.stream().to_owned(), why: format!("message {sequence}: {why}") }
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

    /// Asks the local store where it is, after an error: it was opened again, and may have forgotten what no durable
    /// write followed.
    pub(super) async fn find(&mut self) -> Result<(), Failure> {
        let Some(held) = self.held.clone().filter(|_| self.lost) else { return Ok(()) };
        self.cursor = blocking(move || held.cursor()).await?;
        self.seen = self.cursor.sequence;
        self.landed = self.landed.filter(|landed| *landed <= self.seen);
        (self.lost, self.dirty) = (false, true);
        Ok(())
    }

    fn trouble(&mut self, failure: &Failure) {
        tracing::debug!(stream = self.log.stream(), error = %failure, "the log of the journal cannot be read on");
        if matches!(failure, Failure::Log(LogError::Unavailable(_) | LogError::Silent(_))) {
            self.verified = None;
        }
    }
}

pub(super) fn now_unix_ms() -> u64 {
    u64::try_from(mesh_identity::clock::since_epoch().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
