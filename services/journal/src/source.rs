//! What a publisher publishes: the truth itself, or what a relay has followed.

mod relay;

use std::{collections::HashSet, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _};

use crate::{Entry, Journal, Position, ReadError, Snapshot, TailError};

pub use relay::RelaySource;

/// The reading side of a kind, as a [`crate::Publisher`] needs it.
#[tonic::async_trait]
pub trait Source: Send + Sync + 'static {
    /// All records as they were at one position, in any order. Waits where nothing is known yet.
    ///
    /// # Errors
    /// When the source cannot be read.
    async fn snapshot(&self) -> Result<Snapshot, ReadError>;

    /// How far the source has come; absent when nothing is known yet.
    ///
    /// # Errors
    /// When the source cannot be read.
    async fn head(&self) -> Result<Option<Position>, ReadError>;

    /// Every change after `from`, in order, without a gap; then each as it comes. It ends only with an error.
    fn tail(&self, from: Position) -> Batches;

    /// What of its own an operator should look at; empty when all is well.
    fn alarms(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What [`Source::tail`] returns.
pub type Batches = Pin<Box<dyn Stream<Item = Result<Batch, TailError>> + Send>>;

/// The next changes of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In the order of their revisions.
    pub entries: Vec<Entry>,
    /// Of several changes of one key only the last may be among them: what they say is true at `revision`, not before.
    pub coalesced: bool,
    /// Of these keys it is known that their entry stands for several changes.
    pub several: HashSet<String>,
    /// With them everything up to this revision is known. It may be later than that of the last entry.
    pub revision: u64,
}

#[tonic::async_trait]
impl<J: Journal + ?Sized> Source for Arc<J> {
    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        Journal::snapshot(&**self).await
    }

    async fn head(&self) -> Result<Option<Position>, ReadError> {
        Journal::head(&**self).await.map(Some)
    }

    fn tail(&self, from: Position) -> Batches {
        Box::pin(Journal::tail(&**self, from).map(|entries| {
            let entries = entries?;
            let revision = entries.last().map_or(0, |last| last.revision);
            Ok(Batch { entries, revision, ..Batch::default() })
        }))
    }

    fn alarms(&self) -> Vec<String> {
        Journal::alarm(&**self).into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
