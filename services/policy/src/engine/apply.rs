//! Changing the policy: one compare-and-set write, and the records that follow from it.

use journal::{AppendError, Position, Write};
use mesh_config::{Records, SourceFile};
use prost::Message as _;
use tenon_proto::policy::v1::{HistoryEntry, RecordSignature, history_entry::Action};

use super::{
    Applied, ApplyError, Completed, Digest, Engine, StoreError, TRIES, changes,
    compiled::Checked,
    history, kind_positions, lock,
    records::{Held, Wanted},
    staging,
    stored::{self, Past, Staged, State},
};

/// Where files came from.
pub(crate) enum Origin {
    /// The watched folder with this content.
    Folder { dir: String, digest: Digest },
    /// This operator's `Apply`: the SPIFFE id.
    Operator(String),
}

/// Who changes the policy, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Author {
    /// For the history: "operator alice", "folder DIR", or "rollout" for what a rollout does by itself.
    pub by: String,
    /// For `Describe`: "applied by spiffe://...", "folder DIR".
    pub origin: String,
    pub note: String,
    /// The policy must be at this revision; `None`: wherever it is.
    pub expected: Option<Position>,
}

impl Author {
    /// An operator, by SPIFFE id.
    pub fn operator(id: &str, note: String, expected: Option<Position>) -> Self {
        let name = id.rsplit('/').next().unwrap_or(id);
        Self { by: format!("operator {name}"), origin: format!("applied by {id}"), note, expected }
    }

    /// What a rollout does by itself.
    pub fn rollout(note: String) -> Self {
        Self { by: "rollout".to_owned(), note, ..Self::default() }
    }
}

/// What is changed.
pub(crate) enum Step<'a> {
    /// These files become the policy everywhere. A rollout that runs is ended by it.
    Files {
        checked: &'a Checked,
        /// They are the content of the watched folder.
        folder: Option<Digest>,
        /// They were in force at this revision.
        back_to: Option<Position>,
    },
    /// These instances decide by the files already. A rollout that runs is ended by it.
    Stage { checked: &'a Checked, canaries: &'a [String] },
    /// What was staged by the entry of this number becomes the policy everywhere.
    Promote { of: u64 },
    /// What was staged by the entry of this number is given up.
    Unstage { of: u64, action: Action },
}

/// Makes the value of the record `rollout` from the number of the entry that is written with it.
pub(crate) type RolloutRecord<'a> = &'a (dyn Fn(u64) -> Vec<u8> + Send + Sync);

impl Engine {
    /// Makes `files` the whole policy.
    pub async fn apply(
        &self,
        files: Vec<SourceFile>,
        signatures: Vec<RecordSignature>,
        origin: Origin,
        note: String,
        expected: Option<Position>,
    ) -> Result<Applied, ApplyError> {
        let checked = self.check(files, signatures).await?;
        let (author, folder) = match origin {
            Origin::Folder { dir, digest } => {
                let by = format!("folder {dir}");
                (Author { origin: by.clone(), by, note, expected }, Some(digest))
            }
            Origin::Operator(id) => (Author::operator(&id, note, expected), None),
        };
        self.commit(&author, &Step::Files { checked: &checked, folder, back_to: None }, None).await
    }

    /// Makes the files that were in force at `to` the whole policy again. `to` of no epoch is of any, the latest first.
    pub async fn rollback(&self, to: Position, author: &Author) -> Result<Applied, ApplyError> {
        let read = |error| ApplyError::Store(StoreError::Read(error));
        let sources = &*self.journals.sources;
        let state = stored::load(sources).await.map_err(read)?.state;
        let past = history::at(&state, to).ok_or(ApplyError::Unknown(to))?;
        let kept = if past.kept { stored::files(sources, &past.files).await.map_err(read)? } else { None };
        let (kept, _) = kept.ok_or(ApplyError::NotKept(to))?;
        let files = kept.files.into_iter().map(|file| SourceFile { path: file.path, text: file.text }).collect();
        let checked = self.check(files, kept.signatures).await?;
        let back_to = past.revision.as_ref().map(stored::to_position);
        self.commit(author, &Step::Files { checked: &checked, folder: None, back_to }, None).await
    }

    /// Files that may become the policy.
    pub(super) async fn check(
        &self,
        files: Vec<SourceFile>,
        signatures: Vec<RecordSignature>,
    ) -> Result<Checked, ApplyError> {
        let checked = self.judge.check(files, signatures).await.map_err(ApplyError::Problems)?;
        self.remember(&checked.id, &checked.compiled);
        Ok(checked)
    }

    /// Makes one change, or none at all. Where others commit at the same time it begins anew from what they made, unless the
    /// author expects something else. `rollout` is written in the same batch.
    pub(super) async fn commit(
        &self,
        author: &Author,
        step: &Step<'_>,
        rollout: Option<RolloutRecord<'_>>,
    ) -> Result<Applied, ApplyError> {
        let _alone = self.writing.lock().await;
        for _ in 0..TRIES {
            let before = self.complete().await.map_err(ApplyError::Store)?;
            let state = &before.loaded.state;
            let in_force = before.position();
            if let Some(expected) = author.expected.filter(|expected| *expected != in_force) {
                let since = history::since(&*self.journals.sources, state, expected).await;
                return Err(ApplyError::Conflict {
                    in_force,
                    since: since.map_err(|error| ApplyError::Store(error.into()))?,
                });
            }
            let (writes, made) = match self.draft(&before, author, step, rollout).await? {
                Draft::Nothing => return Ok(before.unchanged()),
                Draft::Note(write) => (vec![write], None),
                Draft::Change(change) => (change.writes, Some(change.made)),
            };
            match self.journals.sources.append(writes).await {
                Ok(_) => {}
                Err(AppendError::Conflict { .. }) => continue,
                Err(error @ AppendError::Unconfirmed(_)) => {
                    self.unsettled();
                    return Err(ApplyError::Unconfirmed(error));
                }
                Err(error @ (AppendError::Moved { .. } | AppendError::Full(_) | AppendError::Failed(_))) => {
                    return Err(ApplyError::Store(error.into()));
                }
            }
            return match made {
                Some(made) => self.follow(author, made).await,
                None => {
                    self.unsettled();
                    Ok(before.unchanged())
                }
            };
        }
        Err(ApplyError::Store(StoreError::Busy))
    }

    /// Writes the records of a change that is committed.
    async fn follow(&self, author: &Author, made: Made) -> Result<Applied, ApplyError> {
        let Made { state, action, changes, lines } = made;
        self.unsettled();
        self.know(&state);
        tracing::info!(
            target: "tenon::audit", by = author.by, action = action.as_str_name(), note = author.note,
            number = state.number, lines = ?lines, "the policy was changed"
        );
        let done = self.complete().await.map_err(ApplyError::Unsettled)?;
        let past = done.loaded.state.past.iter().find(|past| past.number == state.number);
        let position = past.and_then(|past| past.revision.as_ref()).map_or(done.positions[0], stored::to_position);
        tracing::info!(origin = state.origin, mesh = state.mesh, changes, %position, "policy in force");
        Ok(Applied { position, changes, positions: kind_positions(done.positions) })
    }

    fn unsettled(&self) {
        self.unsettled.store(true, std::sync::atomic::Ordering::Release);
        lock(&self.looks).head = None;
    }

    async fn draft(
        &self,
        before: &Completed,
        author: &Author,
        step: &Step<'_>,
        rollout: Option<RolloutRecord<'_>>,
    ) -> Result<Draft, ApplyError> {
        let old = &before.loaded.state;
        if let Step::Files { checked, folder, back_to: _ } = step {
            // What was taken once is not taken again: it would undo what an operator has applied since.
            if folder.is_some() && *folder == old.folder() {
                return Ok(Draft::Nothing);
            }
            if old.files == checked.id && old.staged.is_none() {
                let Some(digest) = folder else { return Ok(Draft::Nothing) };
                let state = State { folder: digest.to_vec(), ..old.clone() };
                return Ok(Draft::Note(before.loaded.put(&state)));
            }
        }
        let unreadable = |error| ApplyError::Store(StoreError::Read(error));
        let mut work = Work::on(old, author);
        self.take(&mut work, step).await?;
        let Work { mut state, mut entries, files, author: _ } = work;

        // The journals say what is in force, also where this version cannot read the files any more.
        let held = Held::read(&self.journals).await.map_err(unreadable)?;
        let mut changed = 0;
        if let Some((_, records)) = self.target(&state).await.map_err(unreadable)? {
            changed = held.differences(&Wanted::new(&records, state.mark()));
        }
        let mut lines = Vec::new();
        if let Some(records) = self.meant(old, step).await? {
            lines = changes::between(&held.records(), &records);
            if lines.is_empty() {
                lines.push("the files alone: what they say is the same".to_owned());
            }
        }
        if let Step::Files { back_to: Some(to), .. } = step {
            lines.insert(0, format!("back to revision {to}"));
            lines.truncate(changes::MAX_LINES);
        }
        if let Some(last) = entries.last_mut() {
            last.changes.clone_from(&lines);
        }

        let mut writes = Vec::new();
        if let Some(checked) = files.filter(|checked| !history::holds(old, &checked.id)) {
            writes.push(Write::put(stored::files_key(&checked.id), checked.stored.clone()));
        }
        let first = state.since;
        for (number, entry) in (first..).zip(&entries) {
            writes.push(Write::put(stored::history_key(number), entry.encode_to_vec()));
        }
        let value = match rollout {
            Some(record) => Some(record(state.number)),
            None if old.staged.is_some() => {
                staging::ended(&*self.journals.sources, step, author).await.map_err(unreadable)?
            }
            None => None,
        };
        writes.extend(value.map(|value| Write::put(stored::ROLLOUT, value)));
        writes.extend(history::prune(old, &mut state));
        // The condition on the state is what makes this a change of what was read.
        writes.push(before.loaded.put(&state));
        let action = entries.last().map_or(Action::Unspecified, HistoryEntry::action);
        Ok(Draft::Change(Box::new(Change { writes, made: Made { state, action, changes: changed, lines } })))
    }

    /// Takes the step in the state, with the entries that tell of it.
    async fn take<'a>(&self, work: &mut Work<'a>, step: &Step<'a>) -> Result<(), ApplyError> {
        match step {
            Step::Files { checked, folder, back_to } => {
                work.end_rollout();
                work.state.files = checked.id.to_vec();
                work.state.digest = checked.digest.to_vec();
                work.state.bytes = checked.stored.len() as u64;
                work.state.mesh.clone_from(&checked.compiled.mesh);
                work.state.origin.clone_from(&work.author.origin);
                if let Some(digest) = folder {
                    work.state.folder = digest.to_vec();
                }
                work.files = Some(checked);
                let action = if back_to.is_some() { Action::RolledBack } else { Action::Applied };
                work.enter(action);
            }
            Step::Stage { checked, canaries } => {
                work.end_rollout();
                work.files = Some(checked);
                work.enter(Action::RolloutStarted);
                work.state.staged = Some(Staged {
                    number: work.state.number,
                    files: checked.id.to_vec(),
                    digest: checked.digest.to_vec(),
                    bytes: checked.stored.len() as u64,
                    canaries: canaries.to_vec(),
                    origin: work.author.origin.clone(),
                    mesh: checked.compiled.mesh.clone(),
                });
            }
            Step::Promote { of } => {
                let staged = work.staged(*of)?;
                let Staged { number: _, files, digest, bytes, canaries: _, origin, mesh } = staged;
                work.state = State { files, digest, bytes, origin, mesh, ..std::mem::take(&mut work.state) };
                work.enter(Action::RolloutCompleted);
            }
            Step::Unstage { of, action } => {
                work.staged(*of)?;
                work.enter(*action);
            }
        }
        Ok(())
    }

    /// The policy that the step is about, to be compared with the one in force. `None` when it only takes canaries back.
    async fn meant(&self, old: &State, step: &Step<'_>) -> Result<Option<Records>, ApplyError> {
        let compiled = match step {
            Step::Files { checked, .. } | Step::Stage { checked, .. } => checked.compiled.clone(),
            Step::Promote { .. } => {
                let files = old.staged.as_ref().map(|staged| &*staged.files).unwrap_or_default();
                let compiled = self.compiled_from(files).await;
                let compiled = compiled.map_err(|error| ApplyError::Store(StoreError::Read(error)))?;
                compiled.ok_or(ApplyError::NoRollout)?
            }
            Step::Unstage { .. } => return Ok(None),
        };
        Ok(Some(compiled.records.clone()))
    }
}

impl Completed {
    /// The mesh's policy revision.
    pub(super) fn position(&self) -> Position {
        self.loaded.state.position().unwrap_or(self.positions[0])
    }

    fn unchanged(&self) -> Applied {
        Applied { position: self.position(), changes: 0, positions: kind_positions(self.positions) }
    }
}

/// What has to be written for a step.
enum Draft {
    /// Everything is as it should be.
    Nothing,
    /// What is in force stays, and something is remembered.
    Note(Write),
    Change(Box<Change>),
}

struct Change {
    writes: Vec<Write>,
    made: Made,
}

/// A change, once it is committed.
struct Made {
    state: State,
    action: Action,
    /// Records.
    changes: u64,
    lines: Vec<String>,
}

/// A state while a step is taken in it.
struct Work<'a> {
    state: State,
    entries: Vec<HistoryEntry>,
    /// Files that must be kept with it.
    files: Option<&'a Checked>,
    author: &'a Author,
}

impl<'a> Work<'a> {
    fn on(old: &State, author: &'a Author) -> Self {
        let state = State { since: old.number + 1, revision: None, positions: Vec::new(), ..old.clone() };
        Self { state, entries: Vec::new(), files: None, author }
    }

    /// Adds an entry about the state as it is now.
    fn enter(&mut self, action: Action) {
        self.enter_with(action, self.author.note.clone());
    }

    fn enter_with(&mut self, action: Action, note: String) {
        let state = &mut self.state;
        state.number += 1;
        let (files, bytes) = (state.files.clone(), state.bytes);
        state.past.push(Past { number: state.number, revision: None, kept: !files.is_empty(), files, bytes });
        self.entries.push(HistoryEntry {
            at_unix_seconds: mesh_identity::clock::unix_seconds().try_into().unwrap_or(i64::MAX),
            by: self.author.by.clone(),
            action: action.into(),
            note,
            digest: state.digest.clone().into(),
            ..HistoryEntry::default()
        });
    }

    /// A rollout that runs gives way to another policy.
    fn end_rollout(&mut self) {
        if self.state.staged.take().is_some() {
            self.enter_with(Action::RolloutEnded, staging::GAVE_WAY.to_owned());
        }
    }

    fn staged(&mut self, of: u64) -> Result<Staged, ApplyError> {
        self.state.staged.take().filter(|staged| staged.number == of).ok_or(ApplyError::NoRollout)
    }
}
