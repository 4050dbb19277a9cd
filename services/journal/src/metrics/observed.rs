//! A journal whose writes are timed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use mesh_telemetry::Histogram;

use crate::{AppendError, History, Journal, Position, ReadError, Record, Snapshot, Tail, Write};

/// Upper bounds, in seconds: from a local disk to a cluster in trouble.
const SECONDS: &[f64] = &[0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Why a write was not made, or is not known to have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A condition was not met: what concurrent writers expect to happen.
    Conflict,
    /// No room on the disk.
    Full,
    Failed,
    Unconfirmed,
}

impl Failure {
    /// In the order of the counters.
    pub const ALL: [Self; 4] = [Self::Conflict, Self::Full, Self::Failed, Self::Unconfirmed];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Full => "full",
            Self::Failed => "failed",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    const fn of(error: &AppendError) -> Self {
        match error {
            AppendError::Conflict { .. } | AppendError::Moved { .. } => Self::Conflict,
            AppendError::Full(_) => Self::Full,
            AppendError::Failed(_) => Self::Failed,
            AppendError::Unconfirmed(_) => Self::Unconfirmed,
        }
    }
}

/// The writes of one kind.
#[derive(Debug)]
pub(super) struct Writes {
    /// Of those that were made.
    pub took: Histogram,
    failed: [AtomicU64; Failure::ALL.len()],
}

impl Default for Writes {
    fn default() -> Self {
        Self { took: Histogram::of_seconds(SECONDS), failed: Default::default() }
    }
}

impl Writes {
    pub(super) fn failed(&self, failure: Failure) -> u64 {
        self.failed[failure as usize].load(Relaxed)
    }

    /// Writing nothing asks for the head, and is no write.
    fn ended(&self, began: Instant, writes: usize, outcome: &Result<Position, AppendError>) {
        match outcome {
            Ok(_) if writes == 0 => {}
            Ok(_) => self.took.took(began.elapsed()),
            Err(error) => {
                self.failed[Failure::of(error) as usize].fetch_add(1, Relaxed);
            }
        }
    }
}

pub(super) struct ObservedJournal {
    pub journal: Arc<dyn Journal>,
    pub writes: Arc<Writes>,
}

#[tonic::async_trait]
impl Journal for ObservedJournal {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        let (began, count) = (Instant::now(), writes.len());
        let outcome = self.journal.append(writes).await;
        self.writes.ended(began, count, &outcome);
        outcome
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        let (began, count) = (Instant::now(), writes.len());
        let outcome = self.journal.append_at(head, writes).await;
        self.writes.ended(began, count, &outcome);
        outcome
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.journal.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.journal.snapshot().await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        self.journal.head().await
    }

    async fn count(&self) -> Result<u64, ReadError> {
        self.journal.count().await
    }

    async fn history(&self) -> Result<History, ReadError> {
        self.journal.history().await
    }

    fn tail(&self, from: Position) -> Tail {
        self.journal.tail(from)
    }

    fn alarm(&self) -> Option<String> {
        self.journal.alarm()
    }
}
