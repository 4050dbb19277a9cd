//! Checkpoints: all records at one message of the log, so that the log before it can go.

use std::path::Path;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use replica::Digest;

use super::{
    Cursor,
    log::{Log, LogError, Sent},
    wire::{Checkpoint, Records, Row},
};
use crate::{
    Cause, OpenError, Options, Part, Parts, Record,
    embedded::{ApplyError, Replicated, blocking},
};

/// Bytes of records in one chunk, unless a single record is larger.
const CHUNK_BYTES: usize = 384 << 10;
/// A checkpoint is due once the log has grown by this many times the last one.
const GROWTH: u64 = 2;

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckpointError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the records cannot be read")]
    Read(#[source] Cause),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the records cannot be written")]
    Write(#[from] ApplyError),
    #[error("the checkpoint at revision {revision} does not add up: {found} records of {expected}, or other ones")]
    Differs { revision: u64, found: u64, expected: u64 },
}

/// Whether the log has grown enough since `last` was taken, at least by `least` bytes.
pub(super) fn due(log_bytes: u64, least: u64, last: Option<&Checkpoint>) -> bool {
    log_bytes >= least.max(GROWTH * last.map_or(0, |last| last.bytes))
}

/// Stores records as a checkpoint that no manifest names yet. `records` ends with the first change.
pub(super) async fn store(
    log: &Log,
    cursor: Cursor,
    at_unix_ms: u64,
    log_bytes: u64,
    mut records: Parts,
) -> Result<Checkpoint, CheckpointError> {
    let mut digest = Digest::new();
    let mut checkpoint = Checkpoint {
        log: cursor.log,
        epoch: cursor.epoch,
        sequence: cursor.sequence,
        id: cursor.id,
        revision: cursor.head,
        at_unix_ms,
        log_bytes,
        mesh: log.mesh(),
        ..Checkpoint::default()
    };
    let (mut chunk, mut bytes) = (Records::default(), 0);
    'parts: while let Some(parts) = records.next().await {
        for part in parts.map_err(|error| CheckpointError::Read(error.into()))? {
            let Part::Record(Record { key, revision, value }) = part else { break 'parts };
            if bytes + key.len() + value.len() > CHUNK_BYTES && !chunk.records.is_empty() {
                add(log, &mut checkpoint, std::mem::take(&mut chunk)).await?;
                bytes = 0;
            }
            bytes += key.len() + value.len();
            digest.add(&key, revision, &value);
            chunk.records.push(Row { key, revision, value });
        }
    }
    if !chunk.records.is_empty() {
        add(log, &mut checkpoint, chunk).await?;
    }
    checkpoint.records = digest.records();
    checkpoint.digest = Bytes::copy_from_slice(&digest.fold());
    Ok(checkpoint)
}

async fn add(log: &Log, checkpoint: &mut Checkpoint, chunk: Records) -> Result<(), LogError> {
    let encoded = Bytes::from(chunk.encode_to_vec());
    checkpoint.bytes += encoded.len() as u64;
    checkpoint.chunks.push(log.stage_chunk(&encoded).await?);
    Ok(())
}

/// Names `checkpoint` in a manifest, and lets go of what the retention no longer wants. Returns the manifest's sequence;
/// nothing where somebody else was first.
pub(super) async fn publish(
    log: &Log,
    checkpoint: Checkpoint,
    options: &Options,
) -> Result<Option<u64>, CheckpointError> {
    let (last, mut manifest) = log.manifest().await?;
    manifest.checkpoints.retain(|kept| kept.log == checkpoint.log && kept.epoch == checkpoint.epoch);
    if manifest.checkpoints.last().is_some_and(|kept| kept.sequence >= checkpoint.sequence) {
        return Ok(None);
    }
    let now = checkpoint.at_unix_ms;
    manifest.checkpoints.push(checkpoint);
    let first = first_kept(&manifest.checkpoints, options, now);
    manifest.checkpoints.drain(..first);
    let Sent::At(sequence) = log.store_manifest(last, &manifest).await? else { return Ok(None) };
    let oldest = manifest.checkpoints.first();
    if let Some(oldest) = oldest.filter(|_| first > 0) {
        log.trim(oldest.sequence).await?;
        let first = oldest.chunks.first().and_then(|chunk| chunk.sequences.first());
        log.trim_checkpoints(first.copied().unwrap_or(sequence)).await?;
    }
    Ok(Some(sequence))
}

/// The newest checkpoint that everything the retention wants comes after; the first one when there is none.
fn first_kept(checkpoints: &[Checkpoint], options: &Options, now_unix_ms: u64) -> usize {
    let retention = u64::try_from(options.retention.as_millis()).unwrap_or(u64::MAX);
    let head = checkpoints.last().map_or(0, |last| last.revision);
    let mut bytes = 0;
    for (index, checkpoint) in checkpoints.iter().enumerate().rev() {
        let old = checkpoint.at_unix_ms.saturating_add(retention) < now_unix_ms;
        if old
            || bytes >= options.retained_bytes
            || head.saturating_sub(checkpoint.revision) >= options.retained_changes
        {
            return index;
        }
        bytes += checkpoint.log_bytes;
    }
    0
}

/// Materialises a checkpoint in a new file.
pub(super) async fn load(
    log: &Log,
    checkpoint: &Checkpoint,
    path: &Path,
    kind: &'static str,
    options: Options,
    cursor: Cursor,
) -> Result<Replicated, CheckpointError> {
    log.ours(&checkpoint.mesh)?;
    let file = path.to_owned();
    let replicated = blocking(move || Replicated::create(&file, kind, options, cursor)).await?;
    let mut chunks = log.chunks(checkpoint.chunks.clone());
    let mut digest = Digest::new();
    while let Some(chunk) = chunks.try_next().await? {
        let rows = Records::decode(chunk).map_err(|error| CheckpointError::Read(error.into()))?.records;
        let records: Vec<_> =
            rows.into_iter().map(|Row { key, revision, value }| Record { key, revision, value }).collect();
        records.iter().for_each(|record| digest.add(&record.key, record.revision, &record.value));
        let replicated = replicated.clone();
        blocking(move || replicated.load(&records)).await?;
    }
    if digest.fold()[..] != checkpoint.digest[..] || digest.records() != checkpoint.records {
        let (found, expected) = (digest.records(), checkpoint.records);
        return Err(CheckpointError::Differs { revision: checkpoint.revision, found, expected });
    }
    let loaded = replicated.clone();
    let records = checkpoint.records;
    blocking(move || loaded.loaded(records, cursor)).await?;
    Ok(replicated)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn checkpoint(at_unix_ms: u64, revision: u64, log_bytes: u64) -> Checkpoint {
        Checkpoint { at_unix_ms, revision, log_bytes, ..Checkpoint::default() }
    }

    #[test]
    fn checkpoints_are_kept_as_far_back_as_the_retention_goes() {
        let options =
            Options { retention: Duration::from_millis(100), retained_changes: 1000, retained_bytes: 1 << 20 };
        let kept = [checkpoint(10, 10, 5), checkpoint(50, 20, 5), checkpoint(120, 30, 5), checkpoint(200, 40, 5)];
        for (now, options, first) in [
            (100, options, 0),
            (111, options, 0),
            (151, options, 1),
            (221, options, 2),
            (1000, options, 3),
            (100, Options { retained_bytes: 5, ..options }, 2),
            (100, Options { retained_changes: 20, ..options }, 1),
        ] {
            assert_eq!(first_kept(&kept, &options, now), first, "at {now}, {options:?}");
        }
    }

    #[test]
    fn a_checkpoint_is_due_when_the_log_has_outgrown_the_last_one() {
        let last = Checkpoint { bytes: 100 << 20, ..Checkpoint::default() };
        for (log_bytes, last, is_due) in [
            (15 << 20, None, false),
            (16 << 20, None, true),
            (199 << 20, Some(&last), false),
            (200 << 20, Some(&last), true),
        ] {
            assert_eq!(due(log_bytes, 16 << 20, last), is_due, "{log_bytes}");
        }
    }
}
