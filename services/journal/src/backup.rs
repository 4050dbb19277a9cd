//! Backups: the present and the past of some kinds as a stream of bytes, and a store from it again.
//!
//! [`stream`] writes one while the store goes on serving; [`Reader`] reads it, piece by piece as it comes; [`Restore`] makes
//! an embedded store from it, as it was at any moment that it reaches back to; [`compare`] tells whether the two are the same. None of them
//! holds more than some megabytes.
//!
//! The bytes are plain: whoever keeps them encrypts them.

mod compare;
mod format;
mod read;
mod restore;
mod write;

pub use compare::{Differences, compare, parts, records};
pub use read::{FormatError, Item, Reader, Section};
pub use restore::{Moment, Replaced, Restore, RestoreError, Restored};
pub use write::{Backup, stream};

#[cfg(test)]
mod tests;
