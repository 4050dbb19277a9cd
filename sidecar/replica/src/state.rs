//! The state file: what a follower holds, so that it can start while its parent is dead.
//!
//! It is a recording of what parents sent. Magic (8 bytes), then frames: length (u32) and xxh3 checksum (u64, seeded with the
//! frame's number) of a message, little-endian, and the message. First a `Start` with kind, view and position; then
//! `FollowResponse`s: the guards' rules, a snapshot in chunks with its end, and the deltas since, which are appended as they
//! come. A large map is so kept on disk at the cost of its changes; it is written anew when they have become many.
//!
//! Damage before the end of the snapshot makes the file worthless. Behind it stands what was being appended when a process
//! or a machine died: what is whole before the damage counts, and the rest comes by resuming. A key may stand twice in a
//! snapshot: the record that does not decode here comes last, after the one that is served instead.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;
use tenon_proto::replication::v1::{
    FollowResponse, GuardRules, Record, SnapshotChunk, SnapshotEnd, Start, follow_response::Response,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{Digest, Position, Value};

const MAGIC: &[u8; 8] = b"TENONST3";
const FRAME_HEAD_BYTES: usize = 12;
/// How a `FollowResponse` with a `SnapshotChunk` begins: its field, length-delimited.
const CHUNK_KEY: u8 = (2 << 3) | 2;
/// Records of one frame: few enough that writing and reading need little memory.
const CHUNK_RECORDS: usize = 512;
/// The file is written anew when what was appended is larger than this part of the snapshot, ...
const APPENDED_SHARE: u64 = 16;
/// ... but not for less than this: a small one would be written anew all the time.
const APPENDED_BYTES: u64 = 1 << 20;

/// What is to be written to a state file.
pub(crate) struct Saved<V> {
    pub(crate) position: Position,
    pub(crate) view: Arc<str>,
    pub(crate) rules: GuardRules,
    pub(crate) held: Vec<V>,
    pub(crate) refused: Vec<(Arc<str>, u64, Bytes)>,
    /// Of what the parents sent: of `refused`, and of those of `held` that no refused record stands for.
    pub(crate) digest: Digest,
}

/// Why a state file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot be read")]
    Read(#[source] io::Error),
    #[error("is damaged: a checksum is wrong, or its end is missing")]
    Damaged,
    #[error("is not a state file of this kind and version")]
    Foreign,
}

/// Where the state of `kind` stands below `dir`.
pub(crate) fn path(dir: &Path, kind: &str) -> PathBuf {
    dir.join(format!("{kind}.state"))
}

/// A frame with a chunk of the snapshot, not read yet.
pub(crate) struct Chunk {
    number: u64,
    /// Where the message begins.
    at: u64,
    length: usize,
    checksum: u64,
}

/// Reads a state file, a frame at a time.
pub(crate) struct Reader {
    input: BufReader<File>,
    path: PathBuf,
    /// Where the snapshot is.
    pub(crate) position: Position,
    /// Of which view.
    pub(crate) view: String,
    /// Frames read so far, and where the last one ends.
    frames: u64,
    end: u64,
    /// Where the snapshot ends; absent before that is reached.
    snapshot_end: Option<u64>,
    /// Damage was found behind the snapshot.
    cut: bool,
}

impl Reader {
    /// A file that is not there is no error.
    pub(crate) fn open(path: &Path, kind: &str) -> Result<Option<Self>, LoadError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LoadError::Read(error)),
        };
        let mut reader = Self {
            input: BufReader::with_capacity(1 << 18, file),
            path: path.to_owned(),
            position: Position::ZERO,
            view: String::new(),
            frames: 0,
            end: MAGIC.len() as u64,
            snapshot_end: None,
            cut: false,
        };
        let mut magic = Vec::new();
        (&mut reader.input).take(reader.end).read_to_end(&mut magic).map_err(LoadError::Read)?;
        if magic != MAGIC {
            return Err(LoadError::Foreign);
        }
        let start = reader.frame()?.ok_or(LoadError::Damaged)?;
        let start = Start::decode(start).map_err(|_| LoadError::Foreign)?;
        if start.kind != kind {
            return Err(LoadError::Foreign);
        }
        reader.position = start.resume.unwrap_or_default().into();
        reader.view = start.view;
        Ok(Some(reader))
    }

    /// What was recorded next; absent at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Response>, LoadError> {
        if self.cut {
            return Ok(None);
        }
        let response = match self.read() {
            Err(LoadError::Damaged) if self.snapshot_end.is_some() => {
                self.cut = true;
                return Ok(None);
            }
            response => response?,
        };
        if let Some(Response::SnapshotEnd(_)) = response {
            self.snapshot_end = Some(self.end);
        }
        Ok(response)
    }

    /// Where the chunks are that come next, so that several threads can read them.
    pub(crate) fn chunks(&mut self) -> Result<Vec<Chunk>, LoadError> {
        let file = self.input.get_ref();
        let size = file.metadata().map_err(LoadError::Read)?.len();
        let mut chunks = Vec::new();
        loop {
            let mut begin = [0; FRAME_HEAD_BYTES + 1];
            match file.read_exact_at(&mut begin, self.end) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                read => read.map_err(LoadError::Read)?,
            }
            let [a, b, c, d, checksum @ .., key] = begin;
            let (at, length) = (self.end + FRAME_HEAD_BYTES as u64, u32::from_le_bytes([a, b, c, d]));
            let end = at + u64::from(length);
            if key != CHUNK_KEY || end > size {
                break; // It is not for us to say what that is.
            }
            let (number, checksum) = (self.frames, u64::from_le_bytes(checksum));
            chunks.push(Chunk { number, at, length: length as usize, checksum });
            self.frames += 1;
            self.end = end;
        }
        self.input.seek(SeekFrom::Start(self.end)).map_err(LoadError::Read)?;
        Ok(chunks)
    }

    pub(crate) fn chunk(&self, chunk: &Chunk) -> Result<SnapshotChunk, LoadError> {
        let mut frame = vec![0; chunk.length];
        self.input.get_ref().read_exact_at(&mut frame, chunk.at).map_err(LoadError::Read)?;
        if checksum_of(&frame, chunk.number) != chunk.checksum {
            return Err(LoadError::Damaged);
        }
        let response = FollowResponse::decode(Bytes::from(frame)).map_err(|_| LoadError::Damaged)?.response;
        if let Some(Response::SnapshotChunk(chunk)) = response { Ok(chunk) } else { Err(LoadError::Damaged) }
    }

    fn read(&mut self) -> Result<Option<Response>, LoadError> {
        let Some(frame) = self.frame()? else { return Ok(None) };
        let response = FollowResponse::decode(frame).map_err(|_| LoadError::Damaged)?;
        response.response.ok_or(LoadError::Damaged).map(Some)
    }

    fn frame(&mut self) -> Result<Option<Bytes>, LoadError> {
        let mut head = Vec::with_capacity(FRAME_HEAD_BYTES);
        (&mut self.input).take(FRAME_HEAD_BYTES as u64).read_to_end(&mut head).map_err(LoadError::Read)?;
        let Ok(head) = <[u8; FRAME_HEAD_BYTES]>::try_from(head) else {
            let at_the_end = self.input.stream_position().map_err(LoadError::Read)? == self.end;
            return if at_the_end { Ok(None) } else { Err(LoadError::Damaged) };
        };
        let [a, b, c, d, checksum @ ..] = head;
        let length = u32::from_le_bytes([a, b, c, d]);
        // Grows with what is there: a wrong length must not ask for memory.
        let mut frame = Vec::with_capacity(length.min(1 << 20) as usize);
        (&mut self.input).take(length.into()).read_to_end(&mut frame).map_err(LoadError::Read)?;
        if frame.len() != length as usize || checksum_of(&frame, self.frames) != u64::from_le_bytes(checksum) {
            return Err(LoadError::Damaged);
        }
        self.frames += 1;
        self.end += FRAME_HEAD_BYTES as u64 + u64::from(length);
        Ok(Some(frame.into()))
    }

    /// The file, to append to it. Absent where it must be written anew first: it is not as it was written, or there is no
    /// writing to it.
    pub(crate) fn appending(self) -> Option<Recording> {
        if self.cut {
            tracing::warn!(path = %self.path.display(), "the state file is damaged at its end: what is before it is used");
            return None;
        }
        let mut file = File::options().write(true).open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.end)).ok()?;
        Some(Recording { file, frames: self.frames, end: self.end, snapshot_end: self.snapshot_end? })
    }
}

/// Opens the file that will take the place of another. Two processes share a state folder while one takes over from the
/// other: whoever comes second fails, and writes later.
pub(crate) fn begin(fresh: &Path) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(fresh)?;
    file.try_lock()?;
    let (opened, there) = (file.metadata()?, fs::metadata(fresh)?);
    if (opened.dev(), opened.ino()) != (there.dev(), there.ino()) {
        return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process has just written it"));
    }
    file.set_len(0)?;
    Ok(file)
}

/// A state file that is complete, and open for what is appended to it.
#[derive(Debug)]
pub(crate) struct Recording {
    file: File,
    frames: u64,
    /// Where the next frame goes.
    end: u64,
    snapshot_end: u64,
}

impl Recording {
    /// Replaces the file as a whole: after a crash at any point it has the old content or the new one.
    pub(crate) fn write<V: Value>(path: &Path, kind: &str, saved: &Saved<V>) -> io::Result<Self> {
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let fresh = path.with_extension("state.new");
        let begun = begin(&fresh)?;
        let write = |file: File| {
            let mut out = Frames { out: BufWriter::with_capacity(1 << 18, file), frames: 0, end: 0 };
            out.snapshot(kind, saved)?;
            let Frames { out, frames, end } = out;
            let file = out.into_inner()?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            Ok(Self { file, frames, end, snapshot_end: end })
        };
        let written: io::Result<Self> = write(begun);
        if written.is_err() {
            let _ = fs::remove_file(&fresh); // Gives a full disk its room back.
        }
        let written = written?;
        File::open(dir)?.sync_all()?;
        Ok(written)
    }

    /// Adds what came since. After an error the file is as it was before, or ends in the middle of a frame, which is
    /// written over the next time.
    pub(crate) fn append(&mut self, responses: &[Response]) -> io::Result<()> {
        let mut out = Frames { out: Vec::new(), frames: self.frames, end: self.end };
        for response in responses {
            out.response(response.clone())?;
        }
        self.file.seek(SeekFrom::Start(self.end))?;
        let written = self.file.write_all(&out.out).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let _ = self.file.set_len(self.end); // Gives a full disk its room back.
            return Err(error);
        }
        (self.frames, self.end) = (out.frames, out.end);
        Ok(())
    }

    /// Whether it is still what stands at `path`: nobody has taken the file away.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (own, there) = (self.file.metadata().map(identity), fs::metadata(path).map(identity));
        matches!((own, there), (Ok(own), Ok(there)) if own == there)
    }

    /// Whether so much was appended that the file should be written anew.
    pub(crate) fn is_long(&self) -> bool {
        self.end - self.snapshot_end > APPENDED_BYTES.max(self.snapshot_end / APPENDED_SHARE)
    }
}

struct Frames<W> {
    out: W,
    frames: u64,
    end: u64,
}

impl<W: Write> Frames<W> {
    fn snapshot<V: Value>(&mut self, kind: &str, saved: &Saved<V>) -> io::Result<()> {
        self.out.write_all(MAGIC)?;
        self.end += MAGIC.len() as u64;
        let (view, resume) = (saved.view.as_ref().to_owned(), Some(saved.position.into()));
        self.frame(&Start { kind: kind.to_owned(), view, resume, ..Start::default() })?;
        self.response(Response::GuardRules(saved.rules.clone()))?;
        for values in saved.held.chunks(CHUNK_RECORDS) {
            let record = |value: &V| Record {
                key: value.key().to_owned(),
                revision: value.revision(),
                value: Bytes::copy_from_slice(value.raw()),
            };
            self.response(Response::SnapshotChunk(SnapshotChunk { records: values.iter().map(record).collect() }))?;
        }
        let refused = saved.refused.iter().map(|(key, revision, raw)| {
            let (key, revision, value) = (key.as_ref().to_owned(), *revision, raw.clone());
            Record { key, revision, value }
        });
        self.response(Response::SnapshotChunk(SnapshotChunk { records: refused.collect() }))?;
        let (records, digest) = (saved.digest.records(), saved.digest.fold().to_vec().into());
        self.response(Response::SnapshotEnd(SnapshotEnd { records, digest }))
    }

    fn response(&mut self, response: Response) -> io::Result<()> {
        self.frame(&FollowResponse { response: Some(response) })
    }

    fn frame(&mut self, message: &impl prost::Message) -> io::Result<()> {
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&checksum_of(&message, self.frames).to_le_bytes())?;
        self.out.write_all(&message)?;
        self.frames += 1;
        self.end += FRAME_HEAD_BYTES as u64 + u64::from(length);
        Ok(())
    }
}

/// A frame that stands in another one's place is damage as well.
fn checksum_of(frame: &[u8], number: u64) -> u64 {
    xxh3_64_with_seed(frame, number)
}

#[cfg(test)]
mod tests;
