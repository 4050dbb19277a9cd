//! The following side of the replication protocol (DESIGN §5), with its state on disk.
//!
//! [`Follow`] keeps one kind of record equal to what a control-plane service publishes and hands out a [`Replica`], which
//! readers on the request path use without a lock. The protocol itself is `machine.rs`: it has no socket, no clock and no
//! disk. `follow.rs` gives it a connection and `state.rs` a file.
//!
//! [`FollowOnDemand`] keeps a bounded cache instead, for a kind whose map is too large to hold: [`OnDemand`].
//!
//! Never here: deciding about requests, choosing a parent by content, or writing to the truth.

mod decoded;
mod digest;
mod follow;
mod guard;
mod machine;
mod on_demand;
mod parallel;
mod parent;
mod persist;
mod position;
mod reader;
mod state;
mod table;
mod trust;

pub use decoded::{Decode, Decoded, Raw};
pub use digest::{BUCKETS, Digest, digest};
pub use follow::Follow;
pub use guard::{Guard, Guarding, Now};
pub use on_demand::{Answer, CacheStatus, Cached, Fetched, FollowOnDemand, Name, OnDemand};
pub use parent::{Named, Parent, Responses};
pub use position::{ParsePositionError, Position};
pub use reader::{ParentStatus, Replica, Status};
pub use table::Table;
pub use trust::{BundleRecord, FollowTrust, RevocationRecord, Roots, Trust};

use bytes::Bytes;

/// A record as its readers hold it: decoded once when it arrives, read many times.
///
/// It is a handle (an `Arc` inside), cheap to clone, and what it shows never changes. [`Decoded`] is one for all kinds
/// whose records are few; a kind of a million records brings a smaller one.
pub trait Value: Clone + Send + Sync + 'static {
    /// Decodes the record of `key` as it was at `revision`. `raw` may be a slice of a large message: a value that keeps
    /// bytes of it copies them, or the whole message lives as long as the value.
    ///
    /// # Errors
    /// One line that says what is wrong. The follower then refuses the record (NACK) and keeps the one it had.
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String>;

    /// The key that [`Value::decode`] was given.
    fn key(&self) -> &str;

    /// The revision that [`Value::decode`] was given.
    fn revision(&self) -> u64;

    /// The bytes that [`Value::decode`] was given, unchanged: for the state file and the digest.
    fn raw(&self) -> &[u8];

    /// Other names by which the record is found: see [`Replica::by_alias`].
    fn aliases(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }
}

/// What the observer of a [`Follow`] is told, in order, after the change can be read and before its position is announced.
///
/// It is called on the task that follows: it must not block, nor take long over a large table.
#[derive(Debug)]
pub enum Event<'a, V> {
    /// The whole map was replaced, by the state file at the start or by a snapshot: this is the new one, at this position.
    Replaced(&'a Table<V>, Position),
    /// One record was added (`old` is absent), replaced, or deleted (`new` is absent), at this revision. It may be the last of
    /// `several` changes; then both are absent of a record that came and went.
    Changed { key: &'a str, revision: u64, old: Option<&'a V>, new: Option<&'a V>, several: bool },
    /// The last changes were what differs from a later map, and lack what came and went in between. Its position is announced
    /// after this.
    Compared,
}
