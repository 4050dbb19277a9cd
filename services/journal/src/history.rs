//! The present and the past of a journal in one consistent read.

use std::pin::Pin;

use bytes::Bytes;
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

/// What an old value has that the new one has not: a change of one field of a record is a few bytes more, not another
/// record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference<'a> {
    /// How many bytes at the beginning of both are the same.
    pub(crate) prefix: u32,
    /// How many bytes at the end of both are the same, beside those.
    pub(crate) suffix: u32,
    /// What the old value has in between.
    pub(crate) middle: &'a [u8],
}

impl<'a> Difference<'a> {
    pub(crate) fn between(old: &'a [u8], new: &[u8]) -> Self {
        let same = |(old, new): &(&u8, &u8)| old == new;
        let prefix = std::iter::zip(old, new).take_while(same).count();
        let rest = old.len().min(new.len()) - prefix;
        let suffix = std::iter::zip(old.iter().rev(), new.iter().rev()).take(rest).take_while(same).count();
        match (u32::try_from(prefix), u32::try_from(suffix)) {
            (Ok(prefix), Ok(suffix)) => {
                Self { prefix, suffix, middle: &old[prefix as usize..old.len() - suffix as usize] }
            }
            _ => Self { prefix: 0, suffix: 0, middle: old },
        }
    }

    /// The old value; nothing when this is not a difference from `new`.
    pub(crate) fn old(&self, new: &[u8]) -> Option<Bytes> {
        let start = new.get(..self.prefix as usize)?;
        let end = new.get(new.len().checked_sub(self.suffix as usize)?..)?;
        Some([start, self.middle, end].concat().into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_difference_gives_the_old_value_back(old in "[ab]{0,12}", new in "[ab]{0,12}") {
            let difference = Difference::between(old.as_bytes(), new.as_bytes());
            prop_assert_eq!(difference.old(new.as_bytes()), Some(Bytes::from(old)));
        }
    }

    #[test]
    fn a_difference_of_a_few_bytes_is_a_few_bytes() {
        let (old, new) = ([b'x'; 500], [[b'x'; 250].as_slice(), b"y", &[b'x'; 249]].concat());
        assert_eq!(Difference::between(&old, &new), Difference { prefix: 250, suffix: 249, middle: b"x" });
    }

    #[test]
    fn a_difference_from_another_value_is_none() {
        assert_eq!(Difference { prefix: 4, suffix: 0, middle: b"" }.old(b"abc"), None);
        assert_eq!(Difference { prefix: 0, suffix: 4, middle: b"" }.old(b"abc"), None);
    }
}
