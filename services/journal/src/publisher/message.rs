//! Messages as they go over the wire: encoded once, whoever they are sent to.
//!
//! Each stands behind the five bytes that gRPC puts before a message (not compressed, its length): so it goes to every
//! follower's connection without a copy.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tenon_proto::replication::v1::{
    FollowResponse, GuardRules, Heartbeat, SnapshotEnd, SnapshotStart, follow_response::Response,
};

use super::ViewName;
use crate::Position;

/// Changes in one delta at most.
pub(super) const DELTA_CHANGES: usize = 1024;
/// Bytes of changes in one delta, unless a single change is larger.
pub(super) const DELTA_BYTES: usize = 1 << 20;
/// Bytes of records in one chunk of a snapshot, unless a single record is larger.
const CHUNK_BYTES: usize = 256 << 10;

/// Length of what gRPC puts before each message.
pub(crate) const FRAME: usize = 5;

/// Field numbers of replication.proto, for the messages that are put together from parts.
mod field {
    pub(super) const RESPONSE_CHUNK: u32 = 2;
    pub(super) const RESPONSE_DELTA: u32 = 4;
    pub(super) const DELTA_EPOCH: u32 = 1;
    pub(super) const DELTA_PREVIOUS_REVISION: u32 = 2;
    pub(super) const DELTA_REVISION: u32 = 3;
    pub(super) const DELTA_CHANGES: u32 = 4;
    pub(super) const CHUNK_RECORDS: u32 = 1;
    // Record and Change agree.
    pub(super) const KEY: u32 = 1;
    pub(super) const REVISION: u32 = 2;
    pub(super) const VALUE: u32 = 3;
    pub(super) const CHANGE_SEVERAL: u32 = 4;
}

/// The changes of a delta.
#[derive(Default)]
pub(super) struct DeltaMessage {
    changes: BytesMut,
    count: usize,
}

impl DeltaMessage {
    pub(super) fn push(&mut self, key: &str, revision: u64, value: Option<&[u8]>, several: bool) {
        put_keyed(field::DELTA_CHANGES, key, revision, value, several, &mut self.changes);
        self.count += 1;
    }

    /// Whether it is no larger than one message should be.
    pub(super) fn fits(&self) -> bool {
        self.count <= DELTA_CHANGES && (self.changes.len() <= DELTA_BYTES || self.count <= 1)
    }

    pub(super) fn finish(self, epoch: u64, previous: u64, revision: u64) -> Bytes {
        let mut numbers = BytesMut::new();
        for (tag, number) in
            [(field::DELTA_EPOCH, epoch), (field::DELTA_PREVIOUS_REVISION, previous), (field::DELTA_REVISION, revision)]
        {
            encode_key(tag, WireType::Varint, &mut numbers);
            encode_varint(number, &mut numbers);
        }
        wrap(field::RESPONSE_DELTA, &numbers, &self.changes)
    }
}

/// The chunks of a snapshot with these records.
#[derive(Default)]
pub(super) struct Chunks {
    done: Vec<Bytes>,
    records: BytesMut,
}

impl Chunks {
    pub(super) fn push(&mut self, key: &str, revision: u64, value: &[u8]) {
        if self.records.len() + key.len() + value.len() > CHUNK_BYTES {
            self.cut();
        }
        put_keyed(field::CHUNK_RECORDS, key, revision, Some(value), false, &mut self.records);
    }

    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.cut();
        self.done
    }

    fn cut(&mut self) {
        if !self.records.is_empty() {
            self.done.push(wrap(field::RESPONSE_CHUNK, &[], &self.records));
            self.records.clear();
        }
    }
}

pub(super) fn snapshot_start(position: Position, view: &ViewName, partial: Option<Vec<u32>>) -> Bytes {
    framed(Response::SnapshotStart(SnapshotStart {
        position: Some(position.into()),
        view: view.as_ref().to_owned(),
        partial: partial.is_some(),
        buckets: partial.unwrap_or_default(),
    }))
}

pub(super) fn snapshot_end(records: u64, digest: [u8; 16]) -> Bytes {
    framed(Response::SnapshotEnd(SnapshotEnd { records, digest: digest.to_vec().into() }))
}

pub(super) fn heartbeat(head: Position, records: u64, digest: [u8; 16]) -> Bytes {
    let head = Some(head.into());
    framed(Response::Heartbeat(Heartbeat { head, digest: digest.to_vec().into(), records }))
}

/// A heartbeat that says no more than that this side lives, for who waits for a snapshot.
pub(super) fn sign_of_life() -> Bytes {
    framed(Response::Heartbeat(Heartbeat::default()))
}

pub(super) fn guard_rules(rules: GuardRules) -> Bytes {
    framed(Response::GuardRules(rules))
}

fn framed(response: Response) -> Bytes {
    let message = FollowResponse { response: Some(response) };
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(FRAME + length);
    put_frame(length, &mut out);
    out.extend_from_slice(&message.encode_to_vec());
    out.freeze()
}

/// `FollowResponse` with one field, a message whose encoded fields are `first` and `rest`.
fn wrap(tag: u32, first: &[u8], rest: &[u8]) -> Bytes {
    let inner = first.len() + rest.len();
    let length = key_len(tag) + encoded_len_varint(inner as u64) + inner;
    let mut out = BytesMut::with_capacity(FRAME + length);
    put_frame(length, &mut out);
    encode_key(tag, WireType::LengthDelimited, &mut out);
    encode_varint(inner as u64, &mut out);
    out.extend_from_slice(first);
    out.extend_from_slice(rest);
    out.freeze()
}

fn put_frame(length: usize, out: &mut BytesMut) {
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("messages are bounded, and a record is far below 4 GiB"));
}

/// A `Record`, or a `Change`, as an element of a repeated field.
fn put_keyed(tag: u32, key: &str, revision: u64, value: Option<&[u8]>, several: bool, out: &mut BytesMut) {
    let text = |length: usize| encoded_len_varint(length as u64) + length;
    let length = key_len(field::KEY)
        + text(key.len())
        + key_len(field::REVISION)
        + encoded_len_varint(revision)
        + value.map_or(0, |value| key_len(field::VALUE) + text(value.len()))
        + if several { key_len(field::CHANGE_SEVERAL) + 1 } else { 0 };
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
    put_bytes(field::KEY, key.as_bytes(), out);
    encode_key(field::REVISION, WireType::Varint, out);
    encode_varint(revision, out);
    if let Some(value) = value {
        put_bytes(field::VALUE, value, out);
    }
    if several {
        encode_key(field::CHANGE_SEVERAL, WireType::Varint, out);
        encode_varint(1, out);
    }
}

fn put_bytes(tag: u32, bytes: &[u8], out: &mut BytesMut) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
