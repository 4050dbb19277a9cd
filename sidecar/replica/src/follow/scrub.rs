//! Compares the map with what the parents sent, all the time and without haste.

use std::time::Duration;

use super::Follower;
use crate::{BUCKETS, Event, Value, machine::Scrubbed};

/// A pass over the whole map takes this long, at least.
const PASS: Duration = Duration::from_secs(60);
/// Records that are read without letting others run: well below a millisecond's work.
const SLICE: usize = 512;
/// Records that are read in a row, about; then it rests.
const ROW: usize = 2048;

impl<V: Value, O: FnMut(Event<'_, V>) + Send + 'static> Follower<V, O> {
    pub(super) async fn scrub(&self) {
        loop {
            let records = self.shared.table.load().as_ref().map_or(0, |table| table.len());
            let row = (BUCKETS * ROW / records.max(1)).clamp(1, BUCKETS);
            let rows = BUCKETS.div_ceil(row);
            for first in (0..BUCKETS).step_by(row) {
                tokio::time::sleep(PASS / u32::try_from(rows).unwrap_or(1)).await;
                for bucket in first..BUCKETS.min(first + row) {
                    self.scrub_bucket(bucket).await;
                }
            }
            if records > 0 {
                self.shared.health().status.scrub_passes += 1;
            }
        }
    }

    async fn scrub_bucket(&self, bucket: usize) {
        // One that changes again and again is looked at in the next pass.
        for _ in 0..3 {
            let Some(mut scrubbing) = self.machine.lock().await.scrub(bucket) else { return };
            while scrubbing.advance(SLICE) {
                tokio::task::yield_now().await;
            }
            match self.machine.lock().await.scrubbed(&scrubbing) {
                Scrubbed::Same => return,
                Scrubbed::Meanwhile => {}
                Scrubbed::Differs => {
                    let kind = self.kind;
                    return tracing::warn!(kind, bucket, "records changed in memory: they are fetched again");
                }
            }
        }
    }
}
