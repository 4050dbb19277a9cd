//! The registered endpoints as the journal has them: read once, and then change by change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use journal::{Entry, Expected, Journal, Position, ReadError, Tail, TailError};
use prost::Message as _;
use tenon_proto::policy::v1::{Endpoint, Lease};
use tokio::time::timeout;

use super::{LEASED, is_leased};

/// How long changes that are written may take to come.
const LATE: Duration = Duration::from_secs(5);

/// One registered endpoint.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// That wrote it.
    pub revision: u64,
    /// As it is written.
    pub value: Bytes,
    pub service: Box<str>,
    pub lease: Lease,
}

/// All registered endpoints by key, whoever holds them.
pub(super) struct Mirror {
    journal: Arc<dyn Journal>,
    /// What is known; `None` before it was first read, and when changes were missed.
    known: Option<(Position, Tail)>,
    pub records: BTreeMap<String, Held>,
}

impl Mirror {
    pub fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, known: None, records: BTreeMap::new() }
    }

    /// Takes in all that is written by now. Returns where that is.
    pub async fn catch_up(&mut self) -> Result<Position, ReadError> {
        let late = |_| ReadError("what is written does not come: the store is slow, or cut off".into());
        timeout(LATE, self.follow()).await.unwrap_or_else(|elapsed| {
            self.known = None;
            Err(late(elapsed))
        })
    }

    async fn follow(&mut self) -> Result<Position, ReadError> {
        loop {
            let head = self.journal.head().await?;
            let Some((at, tail)) = &mut self.known else {
                let snapshot = self.journal.snapshot().await?;
                self.records.clear();
                for record in snapshot.records {
                    self.records
                        .extend(held(&record.key, record.revision, record.value).map(|held| (record.key, held)));
                }
                self.known = Some((snapshot.position, self.journal.tail(snapshot.position)));
                continue;
            };
            if *at == head || (at.epoch == head.epoch && at.revision > head.revision) {
                return Ok(*at);
            }
            let entries = match tail.next().await {
                Some(Ok(entries)) if at.epoch == head.epoch => entries,
                // Of another history, or too old to be kept: read anew.
                Some(Ok(_) | Err(TailError::Compacted)) | None => {
                    self.known = None;
                    continue;
                }
                Some(Err(TailError::Read(error))) => {
                    self.known = None;
                    return Err(error);
                }
            };
            for Entry { key, revision, value, at_unix_ms: _ } in entries {
                at.revision = revision;
                match value.and_then(|value| held(&key, revision, value)) {
                    Some(held) => drop(self.records.insert(key, held)),
                    None => drop(self.records.remove(&key)),
                }
            }
        }
    }

    /// Those of one service.
    pub fn of<'m>(&'m self, service: &str) -> impl Iterator<Item = (&'m String, &'m Held)> {
        // "0" comes next to "/".
        let (from, to) = (format!("{service}/{LEASED}/"), format!("{service}/{LEASED}0"));
        self.records.range(from..to)
    }

    /// What a write must find of `key` to change what was read.
    pub fn expected(&self, key: &str) -> Expected {
        self.records.get(key).map_or(Expected::Absent, |held| Expected::Revision(held.revision))
    }
}

/// `None`: a record of the policy files, or of another version, which nobody here touches.
fn held(key: &str, revision: u64, value: Bytes) -> Option<Held> {
    if !is_leased(key) {
        return None;
    }
    let Endpoint { service, lease, .. } = Endpoint::decode(value.clone()).ok()?;
    Some(Held { revision, value, service: service.into(), lease: lease? })
}
