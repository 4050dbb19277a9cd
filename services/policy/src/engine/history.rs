//! Who changed the policy, when and what; and how much of that is kept.

use std::collections::HashSet;

use journal::{Journal, Position, ReadError, Write};
use prost::Message as _;
use tenon_proto::policy::v1::HistoryEntry;

use super::{
    Engine,
    stored::{self, Past, State, to_position},
};

/// Changes that the history tells of.
const MAX_ENTRIES: usize = 1000;
/// Of the last changes, those whose files are kept to go back to.
const MAX_KEPT: usize = 100;
/// How large the kept files may be together; those in force are kept in any case.
const MAX_KEPT_BYTES: u64 = 256 << 20;
/// How large the entries of one answer may be together, but for the first: a client takes 4 MiB.
const MAX_ANSWER_BYTES: usize = 3 << 20;
/// Entries that a conflict tells of.
const MAX_SINCE: usize = 100;

impl Engine {
    /// The last changes, latest first.
    pub async fn history(&self, limit: usize) -> Result<Vec<HistoryEntry>, ReadError> {
        let sources = &*self.journals.sources;
        let state = stored::load(sources).await?.state;
        entries(sources, state.past.iter().rev().take(limit)).await
    }
}

/// What others made of the policy after `expected`, latest first.
pub(super) async fn since(
    sources: &dyn Journal,
    state: &State,
    expected: Position,
) -> Result<Vec<HistoryEntry>, ReadError> {
    let later = |past: &&Past| past.revision.as_ref().is_none_or(|revision| to_position(revision) > expected);
    entries(sources, state.past.iter().rev().take_while(later).take(MAX_SINCE)).await
}

async fn entries(sources: &dyn Journal, past: impl Iterator<Item = &Past>) -> Result<Vec<HistoryEntry>, ReadError> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for past in past {
        // It may have gone meanwhile.
        let Some(entry) = stored::entry(sources, past.number).await? else { continue };
        bytes += entry.encoded_len();
        if bytes > MAX_ANSWER_BYTES && !entries.is_empty() {
            break;
        }
        entries.push(HistoryEntry { revision: past.revision, kept: past.kept, ..entry });
    }
    Ok(entries)
}

/// The last change of this revision; of no epoch: of any.
pub(super) fn at(state: &State, to: Position) -> Option<Past> {
    let is = |revision: Position| revision == to || (to.epoch == 0 && revision.revision == to.revision);
    let found = |past: &&Past| past.revision.as_ref().is_some_and(|revision| is(to_position(revision)));
    state.past.iter().rev().find(found).cloned()
}

/// Whether these files are in the store.
pub(super) fn holds(state: &State, id: &[u8]) -> bool {
    ids(state).contains(id)
}

/// Forgets what is too old or too much, in the state, and returns what deletes it. `old` is what is stored.
pub(super) fn prune(old: &State, state: &mut State) -> Vec<Write> {
    prune_to(old, state, MAX_ENTRIES, MAX_KEPT, MAX_KEPT_BYTES)
}

fn prune_to(old: &State, state: &mut State, entries: usize, kept: usize, bytes: u64) -> Vec<Write> {
    let gone = state.past.len().saturating_sub(entries);
    let mut writes: Vec<Write> =
        state.past.drain(..gone).map(|past| Write::delete(stored::history_key(past.number))).collect();
    let mut seen = HashSet::new();
    let mut sum = 0;
    let mut room = true;
    for (age, past) in state.past.iter_mut().rev().enumerate() {
        if seen.insert(past.files.clone()) {
            sum += past.bytes;
        }
        room &= age < kept && (age == 0 || sum <= bytes);
        past.kept &= room;
    }
    let needed = ids(state);
    let unneeded: Vec<&[u8]> = ids(old).difference(&needed).copied().collect();
    writes.extend(unneeded.into_iter().map(|id| Write::delete(stored::files_key(id))));
    writes
}

/// All files that are in the store.
fn ids(state: &State) -> HashSet<&[u8]> {
    let kept = state.past.iter().filter(|past| past.kept).map(|past| &*past.files);
    let staged = state.staged.iter().map(|staged| &*staged.files);
    kept.chain(staged).chain([&*state.files]).filter(|id| !id.is_empty()).collect()
}

#[cfg(test)]
mod tests;
