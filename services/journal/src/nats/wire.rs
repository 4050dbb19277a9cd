//! What the messages of the log and of checkpoints say. Field numbers are never used again.

use bytes::Bytes;
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_128;

/// One message of the log: a commit. It counts only where it follows on the message that its writer had last seen; the
/// others are void, for every reader alike.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Commit {
    /// Which log this is: a random number, made with the first message.
    #[prost(fixed64, tag = "1")]
    pub(super) log: u64,
    #[prost(uint64, tag = "2")]
    pub(super) epoch: u64,
    /// Sequence of the message of the log that this one follows on, void ones too. 0: it is the first of the stream.
    #[prost(uint64, tag = "3")]
    pub(super) after: u64,
    /// A random number, by which its writer finds it again.
    #[prost(fixed64, tag = "4")]
    pub(super) id: u64,
    /// The revision of the first write; the others follow on.
    #[prost(uint64, tag = "5")]
    pub(super) first_revision: u64,
    /// By the clock of who wrote it.
    #[prost(uint64, tag = "6")]
    pub(super) at_unix_ms: u64,
    #[prost(message, repeated, tag = "7")]
    pub(super) writes: Vec<Change>,
    /// Where the writes did not fit in here.
    #[prost(message, optional, tag = "8")]
    pub(super) parts: Option<Parts>,
    /// The records are replaced by those of a checkpoint, at which another epoch begins.
    #[prost(message, optional, tag = "9")]
    pub(super) replaced: Option<Replaced>,
    /// Trust domain of the mesh whose log this is: in the first message, and in those that replace everything.
    #[prost(string, tag = "10")]
    pub(super) mesh: String,
    /// Id of the message that this one follows on; absent where it does not matter, and in commits from before there was
    /// this field.
    #[prost(fixed64, optional, tag = "11")]
    pub(super) after_id: Option<u64>,
}

/// One write of a commit.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Change {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    /// Absent: the record goes.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) value: Option<Bytes>,
}

/// Writes by themselves.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Changes {
    #[prost(message, repeated, tag = "1")]
    pub(super) writes: Vec<Change>,
}

/// Where the parts of something larger lie.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Parts {
    /// In their order.
    #[prost(uint64, repeated, tag = "1")]
    pub(super) sequences: Vec<u64>,
    /// XXH3 of all of them together.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) digest: Bytes,
}

/// The checkpoint that stands in for all that was before.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Replaced {
    /// Of its manifest.
    #[prost(uint64, tag = "1")]
    pub(super) manifest: u64,
}

/// What a checkpoint consists of, and which others there are.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Manifest {
    /// The kept checkpoints, the oldest first; the last one is the one that this manifest was written for.
    #[prost(message, repeated, tag = "1")]
    pub(super) checkpoints: Vec<Checkpoint>,
}

/// All records at one message of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Checkpoint {
    #[prost(fixed64, tag = "1")]
    pub(super) log: u64,
    #[prost(uint64, tag = "2")]
    pub(super) epoch: u64,
    /// The message of the log after which it was taken, and that one's id.
    #[prost(uint64, tag = "3")]
    pub(super) sequence: u64,
    #[prost(fixed64, tag = "4")]
    pub(super) id: u64,
    /// The head.
    #[prost(uint64, tag = "5")]
    pub(super) revision: u64,
    #[prost(uint64, tag = "6")]
    pub(super) at_unix_ms: u64,
    /// Its chunks, in the stream of checkpoints: [`Records`] each.
    #[prost(message, repeated, tag = "7")]
    pub(super) chunks: Vec<Parts>,
    #[prost(uint64, tag = "8")]
    pub(super) records: u64,
    /// As followers of the replication protocol compute it: `replica::Digest`.
    #[prost(bytes = "bytes", tag = "9")]
    pub(super) digest: Bytes,
    /// Bytes of all chunks.
    #[prost(uint64, tag = "10")]
    pub(super) bytes: u64,
    /// Bytes of the log between the checkpoint before and this one.
    #[prost(uint64, tag = "11")]
    pub(super) log_bytes: u64,
    /// Trust domain of the mesh whose records these are.
    #[prost(string, tag = "12")]
    pub(super) mesh: String,
}

/// One chunk of a checkpoint.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Records {
    #[prost(message, repeated, tag = "1")]
    pub(super) records: Vec<Row>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Row {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(uint64, tag = "2")]
    pub(super) revision: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) value: Bytes,
}

impl Commit {
    pub(super) fn encode(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// The revision of the last write; the one before the first when there are none.
    pub(super) const fn last_revision(&self) -> u64 {
        self.first_revision.saturating_add(self.writes.len() as u64).saturating_sub(1)
    }
}

/// Cuts what is too large for one message.
pub(super) fn cut(whole: &Bytes, most: usize) -> Vec<Bytes> {
    (0..whole.len()).step_by(most).map(|from| whole.slice(from..whole.len().min(from + most))).collect()
}

pub(super) fn digest(whole: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&xxh3_128(whole).to_be_bytes())
}
