//! Which commits count. Pure, so that every replica decides alike.

use super::wire::Commit;
use crate::Position;

/// Up to where a log was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Which log; 0: none was read yet.
    pub(crate) log: u64,
    pub(crate) epoch: u64,
    /// Sequence of the last message of the log, void or not.
    pub(crate) sequence: u64,
    /// Id of that message.
    pub(crate) id: u64,
    /// The revision of the last write that counts.
    pub(crate) head: u64,
}

/// What a message of the log means to who stands at a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its writes are to be made.
    Counts,
    /// All records are to be replaced.
    Replaces,
    /// Its writer had not seen what came before: two wrote at once, or one wrote the same again.
    Void,
    /// Something between the cursor and it is missing.
    Gap,
    /// It follows on another message of that sequence than the one at the cursor: either what is held or what its writer held
    /// is not this log, which the log alone can tell. It is void where what is held is.
    Stray,
}

impl Cursor {
    pub(super) const fn position(&self) -> Position {
        Position::new(self.epoch, self.head)
    }

    /// What `commit`, the next message of the log, means.
    ///
    /// A server up to 2.9 lets two commits of one predecessor in when both are under way at once, so what it accepted is
    /// not enough.
    pub(super) const fn judge(&self, commit: &Commit) -> Verdict {
        if commit.after < self.sequence {
            return Verdict::Void;
        }
        if commit.after > self.sequence {
            return Verdict::Gap;
        }
        if commit.log != 0 && commit.replaced.is_some() && commit.epoch > self.epoch {
            return Verdict::Replaces;
        }
        if let Some(id) = commit.after_id
            && id != self.id
        {
            return Verdict::Stray;
        }
        if self.log == 0 && commit.log != 0 && commit.after == 0 && commit.replaced.is_none() {
            return Verdict::Counts;
        }
        let next = commit.log == self.log && commit.epoch == self.epoch && commit.first_revision == self.head + 1;
        if next { Verdict::Counts } else { Verdict::Void }
    }

    /// The cursor after `commit`, which is at `sequence` and means `verdict`.
    pub(super) const fn after(self, sequence: u64, commit: &Commit, verdict: Verdict) -> Self {
        let cursor = Self { sequence, id: commit.id, ..self };
        match verdict {
            Verdict::Counts => Self { log: commit.log, epoch: commit.epoch, head: commit.last_revision(), ..cursor },
            Verdict::Replaces | Verdict::Void | Verdict::Gap | Verdict::Stray => cursor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::wire::{Change, Replaced};

    const AT: Cursor = Cursor { log: 7, epoch: 3, sequence: 20, id: 5, head: 11 };

    fn commit(after: u64, first_revision: u64, writes: usize) -> Commit {
        let writes = vec![Change { key: "k".to_owned(), value: None }; writes];
        Commit { log: 7, epoch: 3, after, id: 9, first_revision, writes, ..Commit::default() }
    }

    #[test]
    fn a_commit_counts_only_where_it_follows_on_what_its_writer_had_seen() {
        for (commit, verdict) in [
            (commit(20, 12, 2), Verdict::Counts),
            (commit(19, 12, 2), Verdict::Void),
            (commit(0, 1, 0), Verdict::Void),
            (commit(21, 12, 1), Verdict::Gap),
            (commit(20, 13, 1), Verdict::Void),
            (Commit { log: 8, ..commit(20, 12, 1) }, Verdict::Void),
            (Commit { after_id: Some(5), ..commit(20, 12, 2) }, Verdict::Counts),
            (Commit { after_id: Some(6), ..commit(20, 12, 2) }, Verdict::Stray),
            (Commit { after_id: Some(6), ..commit(20, 9, 2) }, Verdict::Stray),
            (Commit { after_id: Some(6), ..commit(19, 12, 2) }, Verdict::Void),
            (
                Commit { epoch: 4, after_id: Some(6), replaced: Some(Replaced { manifest: 1 }), ..commit(20, 12, 0) },
                Verdict::Replaces,
            ),
            (Commit { epoch: 4, ..commit(20, 12, 1) }, Verdict::Void),
            (Commit { epoch: 4, replaced: Some(Replaced { manifest: 1 }), ..commit(20, 12, 0) }, Verdict::Replaces),
            (Commit { replaced: Some(Replaced { manifest: 1 }), ..commit(20, 13, 0) }, Verdict::Void),
            (Commit { epoch: 4, replaced: Some(Replaced { manifest: 1 }), ..commit(19, 12, 0) }, Verdict::Void),
            (
                Commit { log: 8, epoch: 4, replaced: Some(Replaced { manifest: 1 }), ..commit(20, 1, 0) },
                Verdict::Replaces,
            ),
        ] {
            assert_eq!(AT.judge(&commit), verdict, "{commit:?}");
        }
        let counted = AT.after(24, &commit(20, 12, 2), Verdict::Counts);
        assert_eq!(counted, Cursor { sequence: 24, id: 9, head: 13, ..AT });
        assert_eq!(AT.after(24, &commit(19, 12, 2), Verdict::Void), Cursor { sequence: 24, id: 9, ..AT });
    }

    #[test]
    fn the_first_message_names_the_log_and_a_second_first_one_is_void() {
        let first = Commit { log: 7, epoch: 3, id: 1, first_revision: 1, ..Commit::default() };
        assert_eq!(Cursor::default().judge(&first), Verdict::Counts);
        let cursor = Cursor::default().after(1, &first, Verdict::Counts);
        assert_eq!(cursor, Cursor { log: 7, epoch: 3, sequence: 1, id: 1, head: 0 });
        assert_eq!(cursor.judge(&Commit { log: 8, ..first }), Verdict::Void);
        assert_eq!(Cursor::default().judge(&commit(20, 12, 1)), Verdict::Gap);
    }
}
