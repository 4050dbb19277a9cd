//! From where to where every change is known, over one or two streams.

use crate::Position;

/// What the streams of a cache have told, so that it is known of what it holds whether a change can have been missed.
#[derive(Debug)]
pub(crate) struct Coverage {
    /// Every change since `since` up to here was told; absent before the first stream ever.
    reached: Option<Position>,
    /// What was right at this position or later, and was held since then, is right at `reached`.
    since: Position,
    /// What each parent's stream has told, while it is up.
    streams: Vec<Option<Stretch>>,
    /// `reached` when it was last looked whether it stands still.
    looked: Option<Position>,
}

/// Every change after `from` up to `to` was told on one stream.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    from: Position,
    to: Position,
}

/// What a message did to the coverage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing that readers could see.
    Nothing,
    /// More was reached without a gap.
    Advanced,
    /// Changes were missed: what is held from before may be wrong.
    Gap,
}

impl Coverage {
    pub(crate) fn new(parents: usize) -> Self {
        Self { reached: None, since: Position::ZERO, streams: vec![None; parents], looked: None }
    }

    /// What is held was right at `position`: from the disk.
    pub(crate) const fn restore(&mut self, position: Position) {
        self.reached = Some(position);
        self.since = position;
    }

    pub(crate) const fn reached(&self) -> Option<Position> {
        self.reached
    }

    pub(crate) const fn since(&self) -> Position {
        self.since
    }

    /// What a parent's stream has told up to, while it is up.
    pub(crate) fn told(&self, parent: usize) -> Option<Position> {
        self.streams[parent].map(|stretch| stretch.to)
    }

    /// The furthest that any stream has told: ahead of what was reached while another one brings what lies between.
    pub(crate) fn furthest(&self) -> Option<Position> {
        self.live().map(|stretch| stretch.to).max()
    }

    /// A stream tells changes from `position` on.
    pub(crate) fn began(&mut self, parent: usize, position: Position) -> Step {
        self.streams[parent] = Some(Stretch { from: position, to: position });
        self.settle()
    }

    /// A stream tells another story than what is held: nothing of that can be relied on.
    pub(crate) fn began_anew(&mut self, parent: usize, position: Position) -> Step {
        self.streams[parent] = Some(Stretch { from: position, to: position });
        self.reached = None;
        self.settle()
    }

    /// A stream has told every change from `previous` to `position`.
    ///
    /// # Errors
    /// What it told before ended elsewhere: messages are missing.
    pub(crate) fn delta(&mut self, parent: usize, previous: u64, position: Position) -> Result<Step, String> {
        let Some(stretch) = &mut self.streams[parent] else {
            return Err("a delta where a position should be".to_owned());
        };
        if position.epoch != stretch.to.epoch || previous > stretch.to.revision {
            return Err(format!("a delta from {}.{previous} after {}", position.epoch, stretch.to));
        }
        stretch.to = stretch.to.max(position);
        Ok(self.settle())
    }

    pub(crate) fn ended(&mut self, parent: usize) -> Step {
        self.streams[parent] = None;
        self.settle()
    }

    /// Called now and then: a stream that should bring what is missing, and brings nothing, is not waited for any longer
    /// while another one is ahead.
    pub(crate) fn look(&mut self) -> Step {
        let stands = std::mem::replace(&mut self.looked, self.reached) == self.reached;
        if stands { self.jump() } else { Step::Nothing }
    }

    fn settle(&mut self) -> Step {
        let Some(reached) = self.reached else { return self.jump() };
        if self.live().any(|stretch| stretch.to.epoch > reached.epoch) {
            return self.jump();
        }
        let bring = |stretch: &&Stretch| stretch.from <= reached && stretch.to.epoch == reached.epoch;
        match self.live().filter(bring).map(|stretch| stretch.to).max() {
            Some(to) if to > reached => {
                self.reached = Some(to);
                // Another stream may begin where this one has come to.
                self.settle();
                Step::Advanced
            }
            // Whoever is ahead of it has begun later: this one brings what lies between.
            Some(_) => Step::Nothing,
            None => self.jump(),
        }
    }

    /// Goes on from the stream that is furthest ahead, whatever was missed.
    fn jump(&mut self) -> Step {
        let Some(ahead) = self.live().max_by_key(|stretch| stretch.to).copied() else { return Step::Nothing };
        if self.reached.is_some_and(|reached| reached >= ahead.to) {
            return Step::Nothing;
        }
        self.reached = Some(ahead.to);
        self.since = ahead.from;
        Step::Gap
    }

    fn live(&self) -> impl Iterator<Item = &Stretch> {
        self.streams.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, revision: u64) -> Position {
        Position::new(epoch, revision)
    }

    /// A cache that started with its first parent at 1.10, and what it reached.
    fn started() -> Coverage {
        let mut coverage = Coverage::new(2);
        assert_eq!(coverage.began(0, at(1, 10)), Step::Gap);
        assert_eq!((coverage.reached(), coverage.since()), (Some(at(1, 10)), at(1, 10)));
        coverage
    }

    #[test]
    fn what_one_stream_missed_the_other_brings() {
        let mut coverage = started();
        assert_eq!(coverage.began(1, at(1, 12)), Step::Nothing, "the first parent brings 11 and 12");
        assert_eq!(coverage.delta(1, 12, at(1, 13)), Ok(Step::Nothing));
        assert_eq!(coverage.delta(0, 10, at(1, 12)), Ok(Step::Advanced));
        assert_eq!(coverage.reached(), Some(at(1, 13)), "and the second goes on from there");
        assert_eq!(coverage.delta(0, 12, at(1, 13)), Ok(Step::Nothing), "a duplicate");
        assert_eq!(coverage.ended(0), Step::Nothing);
        assert_eq!(coverage.delta(1, 13, at(1, 14)), Ok(Step::Advanced));
        assert_eq!((coverage.reached(), coverage.since()), (Some(at(1, 14)), at(1, 10)));
    }

    #[test]
    fn when_nobody_brings_what_is_missing_there_is_a_gap() {
        let mut coverage = started();
        coverage.began(1, at(1, 12));
        assert_eq!(coverage.ended(0), Step::Gap);
        assert_eq!((coverage.reached(), coverage.since()), (Some(at(1, 12)), at(1, 12)));
    }

    #[test]
    fn a_parent_that_stands_still_is_not_waited_for_for_ever() {
        let mut coverage = started();
        coverage.began(1, at(1, 12));
        assert_eq!(coverage.look(), Step::Nothing);
        assert_eq!(coverage.look(), Step::Gap);
        assert_eq!(coverage.reached(), Some(at(1, 12)));
        assert_eq!(coverage.look(), Step::Nothing);
        assert_eq!(coverage.look(), Step::Nothing, "nobody is ahead");
    }

    #[test]
    fn a_parent_that_is_behind_changes_nothing_until_it_has_caught_up() {
        let mut coverage = started();
        assert_eq!(coverage.began(1, at(1, 5)), Step::Nothing);
        assert_eq!(coverage.ended(0), Step::Nothing);
        assert_eq!(coverage.delta(1, 5, at(1, 10)), Ok(Step::Nothing));
        assert_eq!(coverage.delta(1, 10, at(1, 11)), Ok(Step::Advanced));
        assert_eq!(coverage.since(), at(1, 10));
    }

    #[test]
    fn a_newer_epoch_is_a_gap_and_an_older_one_nothing() {
        let mut coverage = started();
        assert_eq!(coverage.began(1, at(2, 3)), Step::Gap);
        assert_eq!((coverage.reached(), coverage.since()), (Some(at(2, 3)), at(2, 3)));
        assert_eq!(coverage.delta(0, 10, at(1, 99)), Ok(Step::Nothing), "of the old history");
        assert_eq!(coverage.reached(), Some(at(2, 3)));
    }

    #[test]
    fn a_stream_resumes_what_was_reached_without_a_gap() {
        let mut coverage = started();
        coverage.ended(0);
        assert_eq!(coverage.reached(), Some(at(1, 10)), "nothing is lost while nobody is there");
        assert_eq!(coverage.began(0, at(1, 10)), Step::Nothing);
        assert_eq!(coverage.delta(0, 8, at(1, 12)), Ok(Step::Advanced));
        assert_eq!(coverage.since(), at(1, 10));
        assert!(coverage.delta(0, 13, at(1, 14)).is_err(), "13 is missing");
        assert!(coverage.delta(1, 12, at(1, 13)).is_err(), "a stream that has not begun");
    }
}
