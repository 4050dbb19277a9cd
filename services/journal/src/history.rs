//! The present and the past of a journal in one consistent read.

use std::pin::Pin;

use futures_util::Stream;

use crate::{Entry, Position, ReadError, Record};

/// All records of a journal at one position, and the changes that led there, the newest first.
///
/// Memory is bounded by its parts, a few hundred kilobytes. While it lives the store keeps what it reads from, however
/// much is written meanwhile: read it to its end, or drop it.
pub struct History {
    /// The position that the records are of.
    pub position: Position,
    /// How many records there are: for a progress bar.
    pub records: u64,
    /// How many changes there are.
    pub changes: u64,
    /// The last revision whose change is no longer kept: states from this revision on can be told.
    pub floor: u64,
    /// All records in the byte order of their keys, then all changes from the newest to the oldest, several at once. It
    /// ends after the last one, or with an error.
    pub parts: Parts,
}

/// What [`History::parts`] is: never an empty list.
pub type Parts = Pin<Box<dyn Stream<Item = Result<Vec<Part>, ReadError>> + Send>>;

/// One record, or one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Record(Record),
    Change(Change),
}

/// A change, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub entry: Entry,
    /// The record that the change replaced or deleted; absent when there was none.
    pub previous: Option<Record>,
}
