//! The following side of the replication protocol (DESIGN §5), with its state on disk.
//!
//! [`Follow`] keeps one kind of record equal to what a control-plane service publishes and hands out a [`Replica`], which
//! readers on the request path use without a lock. The protocol itself is `machine.rs`: it has no socket, no clock and no
//! disk. `follow.rs` gives it a connection and `state.rs` a file.
//!
//! Never here: deciding about requests, choosing a parent by content, or writing to the truth.

mod digest;
mod follow;
mod guard;
mod machine;
mod parent;
mod persist;
mod position;
mod reader;
mod state;
mod trust;

pub use digest::{BUCKETS, Digest, digest};
pub use follow::Follow;
pub use guard::Guard;
pub use parent::{Parent, Responses};
pub use position::{ParsePositionError, Position};
pub use reader::{Replica, Status};
pub use trust::{BundleRecord, FollowTrust, RevocationRecord, Roots, Trust};

use std::sync::Arc;

use bytes::Bytes;

/// What a follower makes of a record: decoded once when it arrives, read many times.
pub trait Value: Send + Sync + Sized + 'static {
    /// Decodes the record of `key` as it was at `revision`.
    ///
    /// # Errors
    /// One line that says what is wrong. The follower then refuses the record (NACK) and keeps the one it had.
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String>;

    /// The bytes that [`Value::decode`] was given, unchanged: for the state file and the digest.
    fn raw(&self) -> Bytes;
}

/// What the observer of a [`Follow`] is told, in order, after the change can be read and before its position is announced.
///
/// It is called on the task that follows: it must not block.
#[derive(Debug)]
pub enum Event<'a, V> {
    /// The whole map was replaced: by the state file at the start, or by a snapshot.
    Replaced(&'a [(Arc<str>, Arc<V>)]),
    /// One record was added (`old` is absent), replaced, or deleted (`new` is absent).
    Changed { key: &'a str, old: Option<&'a Arc<V>>, new: Option<&'a Arc<V>> },
}
