//! From messages of the log to records of the local store.

use std::sync::Arc;

use async_nats::Subscriber;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use prost::Message as _;

use super::{Alarm, Failure, Replicator};
use crate::{
    Entry,
    embedded::{Replicated, blocking},
    nats::{
        Cursor,
        checkpoint::{self, CheckpointError},
        cursor::Verdict,
        log::{self, LogError},
        wire::{Change, Changes, Checkpoint, Commit, Parts, Replaced},
    },
};

/// Messages that are heard and applied at once.
const HEARD_AT_ONCE: usize = 256;
/// Changes that are applied at once while catching up.
const APPLIED_AT_ONCE: usize = 8192;

/// Commits that are applied together.
#[derive(Default)]
pub(in crate::nats) struct Batch {
    pub(in crate::nats) entries: Vec<Entry>,
    /// After the last of them.
    pub(in crate::nats) cursor: Option<Cursor>,
    bytes: u64,
    /// Sequence of the commit that is awaited, where it is one of them and counts.
    landed: Option<u64>,
}

impl Batch {
    pub(in crate::nats) fn add(&mut self, commit: &Commit) {
        for (revision, Change { key, value }) in (commit.first_revision..).zip(&commit.writes) {
            self.bytes += (key.len() + value.as_ref().map_or(0, bytes::Bytes::len)) as u64 + 16;
            let (key, value) = (key.clone(), value.clone());
            self.entries.push(Entry { key, revision, value, at_unix_ms: commit.at_unix_ms });
        }
    }
}

impl Replicator {
    /// Reads the log up to `end`.
    pub(in crate::nats) async fn catch_up(&mut self, end: u64) -> Result<(), Failure> {
        self.find().await?;
        if end <= self.seen {
            return Ok(());
        }
        let log = self.log.clone();
        self.follow(log.read(self.seen + 1, end)).await?;
        self.seen = end.max(self.seen);
        Ok(())
    }

    /// Makes what was read from where the log was read up to.
    pub(super) async fn follow(
        &mut self,
        mut commits: impl Stream<Item = Result<(u64, Commit), LogError>> + Unpin,
    ) -> Result<(), Failure> {
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
        self.apply(batch).await
    }

    /// Takes the next commit of the log into a batch, or what it stands for.
    pub(in crate::nats) async fn take(
        &mut self,
        sequence: u64,
        mut commit: Commit,
        batch: &mut Batch,
    ) -> Result<(), Failure> {
        let cursor = batch.cursor.unwrap_or(self.cursor);
        let mut verdict = cursor.judge(&commit);
        if verdict == Verdict::Gap {
            self.apply(std::mem::take(batch)).await?;
            // Whatever was passed over is looked for again: it may only have been out of sight.
            self.seen = self.cursor.sequence;
            return Err(Alarm::Hole { stream: self.log.stream().to_owned(), held: cursor.sequence }.into());
        }
        if verdict == Verdict::Stray {
            self.apply(std::mem::take(batch)).await?;
            self.recognise().await?;
            tracing::warn!(
                stream = self.log.stream(),
                sequence,
                "a commit is void: its writer held what is not in the log"
            );
            verdict = Verdict::Void;
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
            if self.awaited == Some(commit.id) {
                batch.landed = Some(sequence);
            }
            if cursor.log == 0 {
                self.log.ours(&commit.mesh)?;
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

    async fn fetch_writes(&self, sequence: u64, parts: &Parts) -> Result<Vec<Change>, Failure> {
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
    pub(in crate::nats) async fn apply(&mut self, batch: Batch) -> Result<(), Failure> {
        let Some(cursor) = batch.cursor else { return Ok(()) };
        let Some(held) = self.held.clone() else { return Ok(()) };
        let (bytes, landed, from) = (batch.bytes, batch.landed, self.cursor);
        match blocking(move || held.apply(&batch.entries, from, cursor, false)).await {
            Ok(()) => {
                self.cursor = cursor;
                self.landed = self.landed.or(landed);
                self.seen = self.seen.max(cursor.sequence);
                self.log_bytes += bytes;
                self.dirty = true;
                Ok(())
            }
            Err(error) => {
                self.lost = true;
                self.landed = self.landed.or(landed);
                // Where it cannot be read either, it is asked again before anything else is applied.
                drop(self.find().await);
                Err(error.into())
            }
        }
    }

    /// Takes one of the messages that the servers published once more, and those that wait behind it.
    pub(super) async fn hear(&mut self, message: async_nats::Message, heard: &mut Option<Subscriber>) {
        let mut batch = Batch::default();
        let mut message = Some(message);
        let mut taken = Ok(());
        let mut missed = None;
        for _ in 0..HEARD_AT_ONCE {
            let Some(this) = message.take() else { break };
            if let Some((sequence, before, commit)) = log::heard(&this) {
                let at = batch.cursor.unwrap_or(self.cursor).sequence;
                if self.sure() && !self.lost && before == at && at > 0 {
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
            (Ok(()), Ok(())) => match missed.filter(|_| self.sure()) {
                Some(sequence) => self.catch_up(sequence).await,
                None => Ok(()),
            },
            (Err(failure), _) | (_, Err(failure)) => Err(failure),
        };
        match result {
            Ok(()) => {}
            Err(Failure::Alarm(alarm)) => self.raise(alarm),
            Err(failure) => self.trouble(&failure),
        }
    }

    /// Begins anew with a checkpoint that the retention has kept, since what came before it has gone.
    pub(super) async fn install_oldest(&mut self, first: u64) -> Result<(), Failure> {
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
    pub(super) async fn replace(&mut self, sequence: u64, commit: &Commit, manifest: u64) -> Result<(), Failure> {
        self.log.ours(&commit.mesh)?;
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
            CheckpointError::Log(error) => error.into(),
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
    pub(super) fn switch(&mut self, to: Replicated, cursor: Cursor) {
        let to = Arc::new(to);
        self.held = Some(Arc::clone(&to));
        self.cursor = cursor;
        self.lost = false;
        self.seen = cursor.sequence;
        self.log_bytes = 0;
        self.local.send_replace(Some(to));
    }
}

/// The next message; never where nothing is subscribed.
pub(super) async fn next(heard: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match heard {
        Some(heard) => heard.next().await,
        None => std::future::pending().await,
    }
}
