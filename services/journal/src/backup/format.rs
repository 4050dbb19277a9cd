//! What a backup consists of: [`MAGIC`], then frames, each a message with its length before it.
//!
//! ```text
//! Begin, then for each kind: Section, its records, its changes from the newest to the oldest; End
//! ```
//!
//! A field that is added gets a number of its own; a reader refuses a version that it does not know.

use bytes::Bytes;

/// What a backup begins with.
pub(super) const MAGIC: &[u8; 12] = b"tenon-backup";
/// The version in `Begin`.
pub(super) const VERSION: u32 = 1;
/// No frame is longer: a length that is damaged must not take all memory.
pub(super) const MAX_FRAME: u64 = 64 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Frame {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5")]
    pub body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Body {
    #[prost(message, tag = "1")]
    Begin(Begin),
    #[prost(message, tag = "2")]
    Section(Section),
    #[prost(message, tag = "3")]
    Record(Record),
    #[prost(message, tag = "4")]
    Change(Change),
    #[prost(message, tag = "5")]
    End(End),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Begin {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// When it was begun: Unix milliseconds.
    #[prost(uint64, tag = "2")]
    pub at_unix_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Section {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(uint64, tag = "3")]
    pub head: u64,
    #[prost(uint64, tag = "4")]
    pub floor: u64,
    #[prost(uint64, tag = "5")]
    pub records: u64,
    #[prost(uint64, tag = "6")]
    pub changes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(uint64, tag = "2")]
    pub revision: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Change {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(uint64, tag = "2")]
    pub revision: u64,
    #[prost(uint64, tag = "3")]
    pub at_unix_ms: u64,
    /// Absent: the record went.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub value: Option<Bytes>,
    #[prost(message, optional, tag = "5")]
    pub previous: Option<Previous>,
}

/// The record before, as its difference from the new value.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Previous {
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    #[prost(uint32, tag = "2")]
    pub prefix: u32,
    #[prost(uint32, tag = "3")]
    pub suffix: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub middle: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct End {
    /// SHA-256 of everything before this frame.
    #[prost(bytes = "bytes", tag = "1")]
    pub sha256: Bytes,
}
