//! The truth behind each replicated kind, and the publishing side of replication (DESIGN §5).
//!
//! A [`Journal`] keeps the records of one kind and the order in which they changed; [`Embedded`] keeps it in one file. A
//! [`Publisher`] turns a journal into views and serves each view to its followers; [`ReplicationService`] is the gRPC service
//! over all publishers of a process.
//!
//! Never here: what records mean. Keys are text, values are bytes; [`Views`] tells who may see which.

pub mod audit;
pub mod backup;
mod embedded;
mod history;
pub mod metrics;
mod nats;
mod publisher;
mod service;
mod source;
mod store;

pub use embedded::{Embedded, LoadError, OpenError, Options};
pub use history::{Change, History, Part, Parts};
pub use nats::{Nats, ReplaceError};
pub use publisher::{Everything, FollowStream, Publisher, Settings, ViewName, Views};
pub use replica::Position;
pub use service::{REPLICATION_AUTHORIZATION, ReplicationServer, ReplicationService};
pub use source::{Batch, Batches, RelaySource, Source};
pub use store::{Journals, Servers, Store, StoreError, open};

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

/// The records of one kind, and the order in which they changed. One history an epoch, one sequence of revisions a kind.
#[tonic::async_trait]
pub trait Journal: Send + Sync + 'static {
    /// Writes all of `writes` or none, each at a revision of its own, in order. When it returns, they are durable; when its
    /// future is dropped, they may be.
    ///
    /// Returns the position of the last write; of the head when there are none.
    ///
    /// # Errors
    /// [`AppendError`]; then nothing has changed, but for [`AppendError::Unconfirmed`].
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError>;

    /// As [`Journal::append`], and only if nothing at all has been written since `head`: the first write has the revision
    /// after it. For what was decided from all records, with other writers about.
    ///
    /// # Errors
    /// As [`Journal::append`]; [`AppendError::Moved`] when the head is another one.
    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError>;

    /// The present record of `key`.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError>;

    /// All records as they were at one position, in the byte order of their keys.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn snapshot(&self) -> Result<Snapshot, ReadError>;

    /// Records whose keys come after `after` in byte order, the first `most` of them.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn records_after(&self, after: &str, most: usize) -> Result<Vec<Record>, ReadError> {
        let records = self.snapshot().await?.records.into_iter();
        Ok(records.filter(|record| record.key.as_str() > after).take(most).collect())
    }

    /// The position of the last write.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn head(&self) -> Result<Position, ReadError>;

    /// Number of records.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn count(&self) -> Result<u64, ReadError>;

    /// The present and what is kept of the past, in one consistent read.
    ///
    /// # Errors
    /// When the store cannot be read.
    async fn history(&self) -> Result<History, ReadError>;

    /// Every change after `from`, in order, without a gap, a few at a time; then each as it is written. It ends only with
    /// an error.
    fn tail(&self, from: Position) -> Tail;

    /// Why nothing new is read or written until somebody sees to it, and what to do; what is held is served meanwhile.
    fn alarm(&self) -> Option<String> {
        None
    }
}

/// What [`Journal::tail`] returns: never an empty list.
pub type Tail = Pin<Box<dyn Stream<Item = Result<Vec<Entry>, TailError>> + Send>>;

/// One change that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    /// Absent: the record goes. Deleting what is not there is a change as well.
    pub value: Option<Bytes>,
    pub expected: Expected,
}

impl Write {
    /// Sets `key`, whatever it was.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: Some(value.into()), expected: Expected::Any }
    }

    /// Deletes `key`, whatever it was.
    pub fn delete(key: impl Into<String>) -> Self {
        Self { key: key.into(), value: None, expected: Expected::Any }
    }

    /// The same write, under a condition.
    #[must_use]
    pub fn expecting(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }
}

/// What must be true of a key for its write to be made. Earlier writes of the same batch count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Any,
    /// There is no record.
    Absent,
    /// There is a record, and this revision wrote it.
    Revision(u64),
}

/// A record as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: String,
    /// The revision that wrote it.
    pub revision: u64,
    pub value: Bytes,
}

/// All records at one position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub position: Position,
    pub records: Vec<Record>,
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub revision: u64,
    /// Absent: the record went.
    pub value: Option<Bytes>,
    /// When it was written, by the clock of who wrote it, which may have been wrong: Unix milliseconds. 0: not known.
    pub at_unix_ms: u64,
}

/// What a store's own library says went wrong.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// A condition was not met.
    #[error("{key} is at {}, not at {expected:?}: read it again and decide anew", at(*actual))]
    Conflict {
        key: String,
        expected: Expected,
        /// The revision that wrote the present record, if there is one.
        actual: Option<u64>,
    },
    /// Somebody else has written since the head that the writes were decided from.
    #[error("the journal has come to {actual}: catch up with it and decide anew; nothing has changed")]
    Moved { actual: Position },
    #[error("no room left on the disk of the store: free some, then write again; nothing has changed")]
    Full(#[source] Cause),
    #[error("the store cannot be written; nothing has changed")]
    Failed(#[source] Cause),
    /// The store was asked to write and did not answer, or its disk did not confirm what it has taken.
    #[error("the store did not confirm the write, which may have been made: read before you write again")]
    Unconfirmed(#[source] Cause),
}

/// The store cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the store cannot be read")]
pub struct ReadError(#[source] pub Cause);

impl From<redb::Error> for ReadError {
    fn from(error: redb::Error) -> Self {
        Self(error.into())
    }
}

/// Why a tail ended.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// Changes after the asked position are no longer kept, or it is of another history: take a snapshot.
    #[error("the changes after the asked position are no longer kept")]
    Compacted,
    #[error(transparent)]
    Read(#[from] ReadError),
}

fn at(revision: Option<u64>) -> String {
    revision.map_or_else(|| "no record".to_owned(), |revision| format!("revision {revision}"))
}
