//! What the journal `sources` holds, which nobody follows.
//!
//! | key | value |
//! | --- | --- |
//! | `state` | [`State`]: what is in force; whoever changes the policy compares and sets this record |
//! | `files/<id>` | an `ApplyRequest` with files and signatures; the id is its SHA-256 |
//! | `history/<number>` | a `HistoryEntry`, without revision and `kept`, which `state` knows |
//! | `rollout` | of `rollout.rs`: how the last rollout stands |

use bytes::Bytes;
use journal::{Expected, Journal, Position, ReadError, Write};
use mesh_config::SourceFile;
use prost::Message;
use tenon_proto::policy::v1::{ApplyRequest, HistoryEntry, PolicyRevision};

use super::{
    Digest,
    compiled::{digest_of, sha256},
    records::Positions,
};

pub(crate) const STATE: &str = "state";
pub(crate) const ROLLOUT: &str = "rollout";

/// Keys of stores that were written before there was a history.
const OLD_FILES: &str = "files";
const OLD_ORIGIN: &str = "origin";
const OLD_FOLDER: &str = "folder";

/// What is in force, and where it came from.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct State {
    /// Counts the entries of the history: that of the last one.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Id of the files in force.
    #[prost(bytes = "vec", tag = "2")]
    pub files: Vec<u8>,
    /// `metadata.name` of the Mesh document.
    #[prost(string, tag = "3")]
    pub mesh: String,
    /// "folder DIR" or "applied by OPERATOR".
    #[prost(string, tag = "4")]
    pub origin: String,
    /// SHA-256 of the watched folder's content when it was last taken; empty when it never was.
    #[prost(bytes = "vec", tag = "5")]
    pub folder: Vec<u8>,
    /// Position of the kind `allowlist` since which the records are what the files say; absent until they are.
    #[prost(message, optional, tag = "6")]
    pub revision: Option<PolicyRevision>,
    /// What is rolled out in steps at the moment.
    #[prost(message, optional, tag = "7")]
    pub staged: Option<Staged>,
    /// The history, oldest first.
    #[prost(message, repeated, tag = "8")]
    pub past: Vec<Past>,
    /// First number of the last change: it may have made several entries, of one revision.
    #[prost(uint64, tag = "9")]
    pub since: u64,
    /// How large the kept files in force are.
    #[prost(uint64, tag = "10")]
    pub bytes: u64,
    /// SHA-256 of the files in force, as the history tells it.
    #[prost(bytes = "vec", tag = "11")]
    pub digest: Vec<u8>,
    /// Where the records of each kind were complete, in the order of `records::KINDS`; empty until they are.
    #[prost(message, repeated, tag = "12")]
    pub positions: Vec<PolicyRevision>,
}

/// Files that some instances have already.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Staged {
    /// Of the history's entry that began it.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Id of the files.
    #[prost(bytes = "vec", tag = "2")]
    pub files: Vec<u8>,
    /// Names of the sidecars' processes that decide by them.
    #[prost(string, repeated, tag = "3")]
    pub canaries: Vec<String>,
    /// What [`State::origin`] becomes when it is complete.
    #[prost(string, tag = "4")]
    pub origin: String,
    /// What [`State::mesh`] becomes.
    #[prost(string, tag = "5")]
    pub mesh: String,
    /// How large the files are.
    #[prost(uint64, tag = "6")]
    pub bytes: u64,
    /// SHA-256 of the files.
    #[prost(bytes = "vec", tag = "7")]
    pub digest: Vec<u8>,
}

/// What is known of an entry of the history besides what its own record says.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Past {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Absent until the change was complete.
    #[prost(message, optional, tag = "2")]
    pub revision: Option<PolicyRevision>,
    /// Id of the files in force after it.
    #[prost(bytes = "vec", tag = "3")]
    pub files: Vec<u8>,
    /// How large they are.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    /// They are still there.
    #[prost(bool, tag = "5")]
    pub kept: bool,
}

impl State {
    pub fn folder(&self) -> Option<Digest> {
        Digest::try_from(&*self.folder).ok()
    }

    pub fn position(&self) -> Option<Position> {
        self.revision.as_ref().map(to_position)
    }

    /// What the reserved record says: it differs after every change.
    pub fn mark(&self) -> Vec<u8> {
        [&self.number.to_be_bytes(), &*self.files].concat()
    }

    /// Where somebody found the records complete, of each kind.
    pub fn positions(&self) -> Option<Positions> {
        let positions: Vec<Position> = self.positions.iter().map(to_position).collect();
        positions.try_into().ok()
    }

    /// Whether the last change left the files in force as they were, with records that somebody had found complete.
    pub fn only_gave_up(&self) -> bool {
        let before = self.past.iter().rev().find(|past| past.number < self.since);
        self.staged.is_none() && before.is_some_and(|past| past.revision.is_some() && past.files == self.files)
    }

    /// Notes that the records are complete at these positions.
    pub fn complete(&mut self, positions: Positions) {
        self.positions = positions.map(to_revision).to_vec();
        let revision = Some(to_revision(positions[0]));
        for past in self.past.iter_mut().rev().take_while(|past| past.number >= self.since) {
            past.revision = revision;
        }
        self.revision = revision;
    }
}

/// The state as it was read.
#[derive(Clone)]
pub(crate) struct Loaded {
    pub state: State,
    /// Nobody had written the journal since, when it was read.
    pub at: Position,
    /// What a write that was decided from it expects.
    pub expected: Expected,
}

impl Loaded {
    /// Writes another state in its place, if it still stands.
    pub fn put(&self, state: &State) -> Write {
        Write::put(STATE, state.encode_to_vec()).expecting(self.expected)
    }
}

/// Reads the state; before the first policy it is empty.
pub(crate) async fn load(sources: &dyn Journal) -> Result<Loaded, ReadError> {
    let at = sources.head().await?;
    Ok(match sources.get(STATE).await? {
        Some(record) => Loaded {
            state: State::decode(record.value).map_err(|error| ReadError(error.into()))?,
            at,
            expected: Expected::Revision(record.revision),
        },
        None => Loaded { state: State::default(), at, expected: Expected::Absent },
    })
}

/// What makes a store of before there was a history one of today; nothing when it is one.
pub(crate) async fn upgraded(sources: &dyn Journal, loaded: &Loaded) -> Result<Option<Vec<Write>>, ReadError> {
    if loaded.expected != Expected::Absent {
        return Ok(None);
    }
    let Some(files) = sources.get(OLD_FILES).await? else { return Ok(None) };
    let text = |record: Option<journal::Record>| record.map(|record| record.value.to_vec()).unwrap_or_default();
    let state = State {
        files: sha256(&files.value).to_vec(),
        origin: String::from_utf8_lossy(&text(sources.get(OLD_ORIGIN).await?)).into_owned(),
        folder: text(sources.get(OLD_FOLDER).await?),
        bytes: files.value.len() as u64,
        digest: digest_of_kept(&files.value),
        ..State::default()
    };
    let mut writes = vec![loaded.put(&state), Write::put(files_key(&state.files), files.value)];
    writes.extend([OLD_FILES, OLD_ORIGIN, OLD_FOLDER].map(Write::delete));
    Ok(Some(writes))
}

fn digest_of_kept(stored: &[u8]) -> Vec<u8> {
    let files = ApplyRequest::decode(stored).unwrap_or_default().files.into_iter();
    let mut files: Vec<_> = files.map(|file| SourceFile { path: file.path, text: file.text }).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    digest_of(&files).to_vec()
}

/// Files that are kept.
pub(crate) async fn files(sources: &dyn Journal, id: &[u8]) -> Result<Option<(ApplyRequest, Bytes)>, ReadError> {
    let Some(record) = sources.get(&files_key(id)).await? else { return Ok(None) };
    let request = ApplyRequest::decode(record.value.clone()).map_err(|error| ReadError(error.into()))?;
    Ok(Some((request, record.value)))
}

pub(crate) async fn entry(sources: &dyn Journal, number: u64) -> Result<Option<HistoryEntry>, ReadError> {
    // What another version wrote and this one cannot read is left out: the history is for people.
    Ok(sources.get(&history_key(number)).await?.and_then(|record| HistoryEntry::decode(record.value).ok()))
}

pub(crate) fn files_key(id: &[u8]) -> String {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("files/{hex}")
}

pub(crate) fn history_key(number: u64) -> String {
    format!("history/{number:020}")
}

pub(crate) fn to_revision(position: Position) -> PolicyRevision {
    PolicyRevision { epoch: position.epoch, revision: position.revision }
}

pub(crate) fn to_position(revision: &PolicyRevision) -> Position {
    Position::new(revision.epoch, revision.revision)
}
