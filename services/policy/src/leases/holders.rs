//! Which policy services live that hold leases: each writes a record of its own again and again, and the others look whether
//! it changes.
//!
//! No clock of another machine decides anything, and no time in which the store could not be used counts: what is counted is
//! how often this policy service wrote its own record while another one did not.

use std::{collections::HashMap, sync::Arc, time::Duration};

use journal::{Expected, Journal, Write};
use tokio::time::timeout;

use crate::engine::StoreError;

/// Between two.
pub(super) const BEAT: Duration = Duration::from_secs(4);
/// So many without one of the other's, and it is gone.
pub(super) const MISSED: u64 = 4;
/// So many, and its record goes as well: an hour.
const FORGOTTEN: u64 = 900;
/// How long one may take.
const LATE: Duration = Duration::from_secs(3);

pub(super) struct Holders {
    /// `None`: there are no others.
    journal: Option<Arc<dyn Journal>>,
    me: Arc<str>,
    /// That were made.
    beats: u64,
    /// Revision of each other's record, and how many beats were made when it was first seen.
    seen: HashMap<String, (u64, u64)>,
    /// Holders without a record, and how many beats were made when they were first asked for: theirs may be on its way.
    unknown: HashMap<String, u64>,
}

impl Holders {
    pub fn new(journal: Option<Arc<dyn Journal>>, me: Arc<str>) -> Self {
        Self { journal, me, beats: 0, seen: HashMap::new(), unknown: HashMap::new() }
    }

    /// Says that this policy service lives, and looks who else does.
    pub async fn beat(&mut self) -> Result<(), StoreError> {
        let Some(journal) = self.journal.clone() else {
            self.beats += 1;
            return Ok(());
        };
        let records = timeout(LATE, async {
            journal.append(vec![Write::put(&*self.me, (self.beats + 1).to_be_bytes().to_vec())]).await?;
            Ok::<_, StoreError>(journal.snapshot().await?.records)
        });
        let records = records.await.map_err(|_| StoreError::Busy)??;
        self.beats += 1;
        self.seen.retain(|holder, _| records.iter().any(|record| record.key == *holder));
        let mut forgotten = Vec::new();
        for record in records.into_iter().filter(|record| *record.key != *self.me) {
            let (revision, since) = self.seen.entry(record.key.clone()).or_insert((record.revision, self.beats));
            if *revision != record.revision {
                (*revision, *since) = (record.revision, self.beats);
            } else if self.beats - *since >= FORGOTTEN {
                forgotten.push(Write::delete(record.key).expecting(Expected::Revision(record.revision)));
            }
        }
        if !forgotten.is_empty() {
            // Another one may be faster.
            let _ = timeout(LATE, journal.append(forgotten)).await;
        }
        Ok(())
    }

    /// Whether that policy service is not known to be gone.
    pub fn lives(&mut self, holder: &str) -> bool {
        let since = match self.seen.get(holder) {
            Some((_, since)) => {
                self.unknown.remove(holder);
                *since
            }
            None => match self.unknown.get(holder) {
                Some(since) => *since,
                None => *self.unknown.entry(holder.to_owned()).or_insert(self.beats),
            },
        };
        self.beats - since < MISSED
    }
}
