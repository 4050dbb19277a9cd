//! Lets go of what is older than the record goes back.

use futures_util::StreamExt as _;
use journal::{AppendError, Expected, Journal, Part, ReadError, Record, Write};
use prost::Message as _;

use super::{
    HOUR, KEPT_HOURS,
    stored::{HourKey, Mark, MarkKey},
};

/// Records that go at once, and in one write.
const AT_ONCE: usize = 10_000;
const WRITE: usize = 500;
/// For how long the mark of a sidecar that reports nothing is kept. A batch that was counted and comes again after more
/// than that is counted twice.
const MARK_KEPT: u64 = 24 * HOUR;

/// What was done.
#[derive(Debug)]
pub(super) struct Pruned {
    /// Nothing that is too old is left.
    pub whole: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PruneError {
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    #[error("the store cannot be written")]
    Append(#[from] AppendError),
}

/// The beginning of the first hour that is kept, in Unix seconds.
pub(super) const fn kept_since(now: u64) -> u64 {
    (now / HOUR).saturating_sub(KEPT_HOURS) * HOUR
}

/// Deletes hours before [`kept_since`], whoever wrote them, and old marks.
pub(super) async fn prune(journal: &dyn Journal, now: u64) -> Result<Pruned, PruneError> {
    let mut writes = Vec::new();
    let mut parts = journal.history().await?.parts;
    'read: while let Some(read) = parts.next().await {
        for part in read? {
            // In the order of their keys: marks, then hours, the oldest first.
            let Part::Record(record) = part else { break 'read };
            match is_old(&record, now) {
                Some(true) => {
                    writes.push(Write::delete(record.key).expecting(Expected::Revision(record.revision)));
                }
                Some(false) => {}
                None => break 'read,
            }
            if writes.len() >= AT_ONCE {
                break 'read;
            }
        }
    }
    drop(parts);
    let whole = writes.len() < AT_ONCE;
    while !writes.is_empty() {
        let rest = writes.split_off(writes.len().min(WRITE));
        match journal.append(std::mem::replace(&mut writes, rest)).await {
            Ok(_) => {}
            // Another policy service was faster, or the sidecar is back.
            Err(AppendError::Conflict { .. }) => return Ok(Pruned { whole: false }),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Pruned { whole })
}

/// None: neither it nor what comes after it.
fn is_old(record: &Record, now: u64) -> Option<bool> {
    if let Some(HourKey { hour, .. }) = HourKey::parse(&record.key) {
        return (hour * HOUR < kept_since(now)).then_some(true);
    }
    let mark = MarkKey::parse(&record.key).and_then(|_| Mark::decode(record.value.clone()).ok());
    Some(mark.is_some_and(|mark| mark.at_unix_seconds + MARK_KEPT < now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_days_are_kept_beside_the_present_hour_and_the_marks_of_a_day() {
        let now = 1000 * HOUR + 17;
        assert_eq!((kept_since(now), kept_since(5)), (280 * HOUR, 0));
        let record = |key: &str, value: Vec<u8>| Record { key: key.to_owned(), revision: 1, value: value.into() };
        let mark = |at_unix_seconds| Mark { at_unix_seconds, ..Mark::default() }.encode_to_vec();
        for (record, old) in [
            (record("hour/0000000279/media/a", vec![]), Some(true)),
            (record("hour/0000000280/media/a", vec![]), None),
            (record("hour/0000001001/media/a", vec![]), None),
            (record("batch/media/media-1", mark(now - MARK_KEPT - 1)), Some(true)),
            (record("batch/media/media-1", mark(now - MARK_KEPT)), Some(false)),
            (record("batch/media/media-1", mark(now + 1)), Some(false)),
            (record("batch/media/media-1", b"\xff damaged".to_vec()), Some(false)),
            (record("another", vec![]), Some(false)),
        ] {
            assert_eq!(is_old(&record, now), old, "{record:?}");
        }
    }
}
