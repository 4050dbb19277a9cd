//! A restored store takes the place of what a cluster holds.

use super::{
    Cursor, Nats,
    checkpoint::{self, CheckpointError},
    log::{self, Log, LogError, Sent},
    replicator::now_unix_ms,
    wire::{Checkpoint, Commit, Manifest, Replaced},
};
use crate::{Cause, Journal, Position};

/// How often the end of the log is looked for, with others who write.
const TRIES: usize = 10;

/// Why the records of a cluster were not replaced.
#[derive(Debug, thiserror::Error)]
#[error("the records of {stream} were not replaced; what is there stays")]
pub struct ReplaceError {
    stream: String,
    #[source]
    source: Cause,
}

impl Nats {
    /// The last position that was written to the log of `kind`, or later; nothing where there is no log. For who is about
    /// to replace it.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub async fn written(&self, kind: &'static str) -> Result<Option<Position>, ReplaceError> {
        let log = self.log(kind)?;
        last(&log).await.map(|(_, position)| position).map_err(|source| failed(&log, source.into()))
    }

    /// The records of `kind` become those of `from`, at their revisions, as the beginning of another history: with a later
    /// epoch, at the head of `from`. Replicas that run take them as they would take a write, those that had refused the log
    /// that was there as well; nobody needs to be down.
    ///
    /// # Errors
    /// The cluster does not answer, or `from` cannot be read.
    pub async fn replace(&self, kind: &'static str, from: &dyn Journal) -> Result<Position, ReplaceError> {
        let log = self.log(kind)?;
        replace(&log, from).await.map_err(|source| failed(&log, source))
    }

    fn log(&self, kind: &'static str) -> Result<Log, ReplaceError> {
        Log::new(&log::context(self.client.clone()), &self.mesh, kind)
            .map_err(|source| ReplaceError { stream: kind.to_owned(), source: source.into() })
    }
}

async fn replace(log: &Log, from: &dyn Journal) -> Result<Position, Cause> {
    log.create().await?;
    let (_, before) = last(log).await?;
    let history = from.history().await?;
    let epoch = now_unix_ms().max(before.map_or(0, |before| before.epoch) + 1).max(history.position.epoch);
    let identity = rand::random_range(1..=u64::MAX);
    // No revision is used twice, whatever was written since `from` was made.
    let head = history.position.revision.max(before.map_or(0, |before| before.revision));
    let cursor = Cursor { log: identity, epoch, sequence: 0, id: rand::random(), head };
    let stored = checkpoint::store(log, cursor, now_unix_ms(), 0, history.parts).await;
    let checkpoint = stored.map_err(|error: CheckpointError| Cause::from(error))?;
    let manifest = named(log, checkpoint).await?;
    for _ in 0..TRIES {
        let after = log.last().await?;
        let commit = Commit {
            log: identity,
            epoch,
            after,
            id: cursor.id,
            first_revision: head + 1,
            at_unix_ms: now_unix_ms(),
            replaced: Some(Replaced { manifest }),
            mesh: log.mesh(),
            ..Commit::default()
        };
        let Sent::At(sequence) = log.commit(after, commit.encode()).await? else { continue };
        if log.nothing_between(after, sequence).await? {
            // What was before is of no use any more, and may be why this was done.
            log.trim(sequence).await?;
            return Ok(Position::new(epoch, head));
        }
    }
    Err("others write to it all the time".into())
}

/// Names `checkpoint` as the last one of a manifest. The log that is there keeps those that it begins with: this may end
/// before the commit.
async fn named(log: &Log, checkpoint: Checkpoint) -> Result<u64, Cause> {
    for _ in 0..TRIES {
        let (last, present) = match log.manifest().await {
            Err(LogError::Damaged { sequence, .. }) => (sequence, Manifest::default()),
            present => present?,
        };
        let manifest = behind(present, checkpoint.clone());
        if let Sent::At(sequence) = log.store_manifest(last, &manifest).await? {
            return Ok(sequence);
        }
    }
    Err("others store checkpoints all the time".into())
}

fn behind(mut present: Manifest, checkpoint: Checkpoint) -> Manifest {
    present.checkpoints.push(checkpoint);
    present
}

/// The last message of the log, and a position that is not before any that counts.
async fn last(log: &Log) -> Result<(u64, Option<Position>), LogError> {
    let info = match log.info().await {
        Err(LogError::NoStream) => return Ok((0, None)),
        other => other?,
    };
    let sequence = log.last().await?;
    if sequence == 0 {
        return Ok((0, None));
    }
    refuse_another_mesh(log, info.state.first_sequence, sequence).await?;
    let commit = log.commit_at(sequence).await?;
    Ok((sequence, Some(Position::new(commit.epoch, log.last_revision(&commit).await?))))
}

/// What is of another mesh is not replaced either.
async fn refuse_another_mesh(log: &Log, first: u64, last: u64) -> Result<(), LogError> {
    if let Some(commit) = log.first_in(first, last).await?
        && (commit.after == 0 || commit.replaced.is_some())
    {
        log.ours(&commit.mesh)?;
    }
    // Where the log was trimmed, its beginning is a checkpoint. One that cannot be read stands in the way of nothing here.
    let Ok((_, manifest)) = log.manifest().await else { return Ok(()) };
    manifest.checkpoints.iter().try_for_each(|kept| log.ours(&kept.mesh))
}

fn failed(log: &Log, source: Cause) -> ReplaceError {
    ReplaceError { stream: log.stream().to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_that_never_commits_takes_no_checkpoint_from_the_log_that_is_there() {
        let of = |log, sequence| Checkpoint { log, sequence, ..Checkpoint::default() };
        let present = Manifest { checkpoints: vec![of(1, 10), of(1, 20)] };
        let named = behind(present.clone(), of(2, 0));
        assert_eq!(named.checkpoints[..2], present.checkpoints);
        assert_eq!(named.checkpoints.last(), Some(&of(2, 0)), "it is the one that the commit means");
    }
}
