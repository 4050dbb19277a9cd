//! A backup is written.

use std::{collections::VecDeque, pin::Pin};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt as _, stream};
use prost::Message as _;

use super::format::{Begin, Body, Change, End, Frame, MAGIC, Previous, Record, Section, VERSION};
use crate::{History, Journal, Part, ReadError, embedded::now_unix_ms, history};

/// Bytes of one piece, at most.
const PIECE: usize = 256 << 10;

/// A backup as it is written.
pub struct Backup {
    /// Records and changes that it will have: for a progress bar.
    pub parts: u64,
    /// Its bytes, in pieces of at most 256 KiB. It is whole when the stream ends without an error.
    pub bytes: Pin<Box<dyn Stream<Item = Result<Bytes, ReadError>> + Send>>,
}

/// A backup of these kinds, each as it is now, while they go on being written.
///
/// As long as it lives the store keeps what it reads: drop it rather than let it wait for long.
///
/// # Errors
/// When the store cannot be read.
pub async fn stream(kinds: &[(&'static str, &dyn Journal)]) -> Result<Backup, ReadError> {
    let at_unix_ms = now_unix_ms();
    let mut sections = VecDeque::new();
    let mut parts = 0;
    for (kind, journal) in kinds {
        let history = journal.history().await?;
        parts += history.records + history.changes;
        sections.push_back((*kind, history));
    }
    let mut writing = Writing { sections, parts: None, out: Out::default(), ended: false };
    writing.out.bytes.extend_from_slice(MAGIC);
    writing.out.frame(Body::Begin(Begin { version: VERSION, at_unix_ms }));
    let bytes = stream::try_unfold(writing, async |mut writing| {
        let piece = writing.next().await?;
        Ok(piece.map(|piece| (piece, writing)))
    });
    Ok(Backup { parts, bytes: Box::pin(bytes) })
}

struct Writing {
    /// Not begun yet.
    sections: VecDeque<(&'static str, History)>,
    /// What is left of the section that is being written.
    parts: Option<history::Parts>,
    out: Out,
    ended: bool,
}

impl Writing {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        while self.out.bytes.len() < PIECE && !self.ended {
            if let Some(parts) = &mut self.parts {
                match parts.try_next().await? {
                    Some(parts) => parts.into_iter().for_each(|part| self.out.frame(body(part))),
                    None => self.parts = None,
                }
            } else if let Some((kind, History { position, records, changes, floor, parts })) = self.sections.pop_front()
            {
                let (kind, epoch, head) = (kind.to_owned(), position.epoch, position.revision);
                self.out.frame(Body::Section(Section { kind, epoch, head, floor, records, changes }));
                self.parts = Some(parts);
            } else {
                self.out.end();
                self.ended = true;
            }
        }
        let piece = self.out.bytes.split_to(self.out.bytes.len().min(PIECE)).freeze();
        self.out.hash(&piece);
        Ok((!piece.is_empty()).then_some(piece))
    }
}

/// Bytes on their way out.
struct Out {
    bytes: BytesMut,
    /// Of all that has left `bytes`.
    sha256: Context,
    ended: bool,
}

impl Default for Out {
    fn default() -> Self {
        Self { bytes: BytesMut::new(), sha256: Context::new(&SHA256), ended: false }
    }
}

impl Out {
    fn frame(&mut self, body: Body) {
        Frame { body: Some(body) }
            .encode_length_delimited(&mut self.bytes)
            .expect("a BytesMut grows as long as there is memory");
    }

    fn hash(&mut self, piece: &[u8]) {
        if !self.ended {
            self.sha256.update(piece);
        }
    }

    fn end(&mut self) {
        self.sha256.update(&self.bytes);
        self.ended = true;
        let sha256 = self.sha256.clone().finish();
        self.frame(Body::End(End { sha256: Bytes::copy_from_slice(sha256.as_ref()) }));
    }
}

fn body(part: Part) -> Body {
    match part {
        Part::Record(crate::Record { key, revision, value }) => Body::Record(Record { key, revision, value }),
        Part::Change(crate::Change { entry, previous }) => {
            let previous = previous.map(|previous| {
                let new = entry.value.as_deref().unwrap_or_default();
                let difference = history::Difference::between(&previous.value, new);
                let middle = previous.value.slice_ref(difference.middle);
                let history::Difference { prefix, suffix, .. } = difference;
                Previous { revision: previous.revision, prefix, suffix, middle }
            });
            let crate::Entry { key, revision, value, at_unix_ms } = entry;
            Body::Change(Change { key, revision, at_unix_ms, value, previous })
        }
    }
}
