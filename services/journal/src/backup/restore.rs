//! A store is made from a backup, as it was at some moment.

use std::{collections::HashMap, path::Path};

use super::{FormatError, Item, Reader, Section};
use crate::{
    Change, Embedded, Entry, LoadError, OpenError, Part, Position,
    embedded::{Loading, now_unix_ms},
};

/// A moment of a journal's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// All that the backup has.
    Newest,
    /// After the write of this revision.
    Revision(u64),
    /// The same, of this epoch.
    Position(Position),
    /// After the last write at or before this time: Unix milliseconds, by the clocks of those who wrote.
    Time(u64),
    /// As far back as the backup reaches.
    Oldest,
}

/// Why there is no store from a backup. Nothing of it is left, and what was there before is still there.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the backup has no {0}")]
    Missing(String),
    #[error("the backup tells the states from revision {oldest} to {newest}, not that of {asked}")]
    Revision { asked: u64, oldest: u64, newest: u64 },
    #[error("the backup is of epoch {of}, not of {asked}")]
    Epoch { asked: u64, of: u64 },
    /// The store was written for the first time after that, or what was written then is no longer in the log.
    #[error("the backup does not reach back that far")]
    TooEarly {
        /// When the oldest change was made that it has; absent when it has none.
        oldest_unix_ms: Option<u64>,
    },
    #[error("the backup was made before that")]
    TooLate { made_unix_ms: u64 },
}

/// What was made of one kind of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub kind: String,
    /// What the backup is of.
    pub backup: Position,
    /// The last change that is in the store now.
    pub revision: u64,
    /// When that was made: Unix milliseconds; absent when the backup does not tell.
    pub at_unix_ms: Option<u64>,
    /// Changes that were undone.
    pub undone: u64,
    pub records: u64,
    /// The position at which the store goes on: a new epoch, and no revision that was used before.
    pub position: Position,
}

/// What a restored store comes after: the store whose place it takes, if there was one. Its epoch and revisions are
/// later than those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    pub epoch: u64,
    /// The last revision of each kind.
    pub heads: HashMap<String, u64>,
    /// No later revision of that epoch was ever answered. Where that cannot be told, or the backup is of another epoch, the
    /// restored store goes on behind all that may have been.
    pub whole: bool,
}

impl Replaced {
    /// Of a store that nobody else writes to.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(store: &Embedded) -> Result<Self, OpenError> {
        Ok(Self { epoch: store.epoch(), heads: store.heads()?, whole: true })
    }
}

/// How many revisions a store that is lost may have come further than its backup, at least.
pub(super) const LOST: u64 = 1 << 32;

/// A store in the making; dropped before [`Restore::finish`] it leaves nothing. All calls block.
pub struct Restore {
    reader: Reader,
    loading: Loading,
    kind: String,
    to: Moment,
    part_of: fn(&Entry) -> u64,
    replaced: Replaced,
    /// When the backup was begun.
    made_unix_ms: u64,
    /// The later ones of the backup and of the store that is replaced.
    epoch: u64,
    present: Option<Kind>,
    done: Vec<Restored>,
}

/// The kind that is being restored.
struct Kind {
    section: Section,
    to: Moment,
    part_of: fn(&Entry) -> u64,
    records: u64,
    undone: u64,
    /// The newest change that is kept.
    newest: Option<(u64, u64)>,
    /// The change that was seen last.
    oldest: Option<(u64, u64)>,
}

impl Restore {
    /// Begins a store that will be at `path`, in the place of whatever is there. `to` is a moment of `kind`; all other
    /// kinds are restored as the backup has them.
    ///
    /// # Errors
    /// [`LoadError`] when it cannot be made there.
    pub fn begin(path: &Path, kind: &str, to: Moment, replaced: Replaced) -> Result<Self, LoadError> {
        let (loading, epoch) = (Loading::create(path)?, replaced.epoch);
        let (kind, reader, part_of) = (kind.to_owned(), Reader::default(), itself as fn(&Entry) -> u64);
        Ok(Self {
            reader,
            loading,
            kind,
            to,
            part_of,
            replaced,
            made_unix_ms: 0,
            epoch,
            present: None,
            done: Vec::new(),
        })
    }

    /// Keeps together what was written together: `part_of` tells the revision that was answered for a change, which is the
    /// change's own or an earlier one. A moment that is a revision is after all that is part of it.
    #[must_use]
    pub fn keeping_together(self, part_of: fn(&Entry) -> u64) -> Self {
        Self { part_of, ..self }
    }

    /// Takes the next bytes of the backup. Returns how many records and changes were among them.
    ///
    /// # Errors
    /// [`RestoreError`]: the backup is damaged, does not have that moment, or cannot be written.
    pub fn push(&mut self, bytes: &[u8]) -> Result<u64, RestoreError> {
        self.reader.push(bytes);
        let mut parts = 0;
        while let Some(item) = self.reader.item()? {
            match item {
                Item::Begin { at_unix_ms } => self.begun(at_unix_ms)?,
                Item::Section(section) => self.section(section)?,
                Item::Part(part) => {
                    self.part(part)?;
                    parts += 1;
                }
                Item::End => self.end_kind()?,
            }
        }
        Ok(parts)
    }

    /// Puts the store in its place when the backup was whole. Returns what was made of each kind.
    ///
    /// # Errors
    /// As [`Restore::push`].
    pub fn finish(self) -> Result<Vec<Restored>, RestoreError> {
        let Self { reader, loading, kind, mut done, epoch, .. } = self;
        reader.finish()?;
        if !done.iter().any(|restored| restored.kind == kind) {
            return Err(RestoreError::Missing(kind));
        }
        let epoch = now_unix_ms().max(epoch + 1);
        for restored in &mut done {
            restored.position.epoch = epoch;
        }
        loading.finish(epoch)?;
        Ok(done)
    }

    fn begun(&mut self, at_unix_ms: u64) -> Result<(), RestoreError> {
        self.made_unix_ms = at_unix_ms;
        if matches!(self.to, Moment::Time(asked) if asked > at_unix_ms) {
            return Err(RestoreError::TooLate { made_unix_ms: at_unix_ms });
        }
        Ok(())
    }

    fn section(&mut self, section: Section) -> Result<(), RestoreError> {
        self.end_kind()?;
        self.epoch = self.epoch.max(section.position.epoch);
        let to = match if section.kind == self.kind { self.to } else { Moment::Newest } {
            Moment::Position(asked) if asked.epoch != section.position.epoch => {
                return Err(RestoreError::Epoch { asked: asked.epoch, of: section.position.epoch });
            }
            Moment::Position(asked) => Moment::Revision(asked.revision),
            to @ (Moment::Newest | Moment::Revision(_) | Moment::Time(_) | Moment::Oldest) => to,
        };
        let (oldest, newest) = (section.floor, section.position.revision);
        if let Moment::Revision(asked) = to
            && !(oldest..=newest).contains(&asked)
        {
            return Err(RestoreError::Revision { asked, oldest, newest });
        }
        self.loading.begin(&section.kind);
        self.present =
            Some(Kind { section, to, part_of: self.part_of, records: 0, undone: 0, newest: None, oldest: None });
        Ok(())
    }

    fn part(&mut self, part: Part) -> Result<(), RestoreError> {
        let Some(kind) = &mut self.present else { return Ok(()) };
        match part {
            Part::Record(record) => {
                kind.records += 1;
                self.loading.record(record)?;
            }
            Part::Change(change) if kind.keeps(&change) => self.loading.keep(change)?,
            Part::Change(change) => {
                kind.undone += 1;
                match (&change.previous, &change.entry.value) {
                    (Some(_), None) => kind.records += 1,
                    (None, Some(_)) => kind.records = kind.records.saturating_sub(1),
                    (Some(_), Some(_)) | (None, None) => {}
                }
                self.loading.undo(change)?;
            }
        }
        Ok(())
    }

    fn end_kind(&mut self) -> Result<(), RestoreError> {
        let Some(kind) = self.present.take() else { return Ok(()) };
        if matches!(kind.to, Moment::Time(_)) && kind.newest.is_none() && kind.section.position.revision > 0 {
            return Err(RestoreError::TooEarly { oldest_unix_ms: kind.oldest.map(|(_, at)| at) });
        }
        let Kind { section: Section { kind: name, position: backup, floor, .. }, records, undone, newest, .. } = kind;
        let head = self.replaced.heads.get(&name).copied().unwrap_or_default().max(backup.revision);
        let known = self.replaced.whole && self.replaced.epoch == backup.epoch;
        let head = if known { head } else { behind_what_is_lost(head) };
        self.loading.end(head, floor)?;
        let (revision, at_unix_ms) = match newest {
            Some((revision, at)) => (revision, Some(at)),
            None => (if undone == 0 { backup.revision } else { floor }, None),
        };
        let position = Position::new(0, head);
        self.done.push(Restored { kind: name, backup, revision, at_unix_ms, undone, records, position });
        Ok(())
    }
}

impl Kind {
    /// Whether the next older change is part of the state that is restored.
    fn keeps(&mut self, Change { entry, .. }: &Change) -> bool {
        let seen = (entry.revision, entry.at_unix_ms);
        self.oldest = Some(seen);
        let kept = self.newest.is_some()
            || match self.to {
                Moment::Newest => true,
                Moment::Revision(revision) | Moment::Position(Position { revision, .. }) => {
                    (self.part_of)(entry) <= revision
                }
                Moment::Time(at) => entry.at_unix_ms <= at,
                Moment::Oldest => false,
            };
        if kept {
            self.newest.get_or_insert(seen);
        }
        kept
    }
}

/// A revision that no store came to that went on after `head`, even where one was made from the same backup before and is
/// lost as well: they do not make a write each microsecond.
fn behind_what_is_lost(head: u64) -> u64 {
    head.saturating_add(LOST).max(now_unix_ms().saturating_mul(1000))
}

const fn itself(entry: &Entry) -> u64 {
    entry.revision
}
