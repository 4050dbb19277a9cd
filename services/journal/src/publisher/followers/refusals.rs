//! What followers refused lately, whether they are still connected or not.

use std::{collections::HashMap, time::Duration};

use tenon_proto::replication::v1::Mode;
use tokio::time::Instant;

use crate::Position;

/// How long a refusal is remembered. Who goes on refusing says so again each 10 s or so.
const REMEMBERED: Duration = Duration::from_secs(300);
/// The most followers that are remembered: a kilobyte each, or two.
const MOST: usize = 1024;

/// SPIFFE ID and instance name.
type Name = (String, String);

/// The last refusal of each follower, bounded in number and in time.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    lately: HashMap<Name, (Refusal, Instant)>,
}

/// What a follower said when it refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What it refused to go to.
    pub(super) position: Position,
    /// In the words that operators are shown.
    pub(super) nack: String,
    /// What it held, as far as it had said so.
    pub(super) acknowledged: Option<Position>,
    pub(super) mode: Mode,
}

impl Refusals {
    pub(super) fn add(&mut self, name: Name, refusal: Refusal) {
        self.forget_old();
        if self.lately.len() >= MOST
            && !self.lately.contains_key(&name)
            && let Some(oldest) = self.lately.iter().min_by_key(|(_, (_, at))| *at).map(|(name, _)| name.clone())
        {
            self.lately.remove(&oldest);
        }
        self.lately.insert(name, (refusal, Instant::now()));
    }

    /// It has taken what it was sent.
    pub(super) fn over(&mut self, name: &Name) {
        self.lately.remove(name);
    }

    /// It goes on from `position`: a refusal of another history is over, for that is not offered any more.
    pub(super) fn resumed(&mut self, name: &Name, position: Position) {
        if self.lately.get(name).is_some_and(|(refusal, _)| refusal.position.epoch != position.epoch) {
            self.over(name);
        }
    }

    /// Those that are remembered, and since when.
    pub(super) fn lately(&mut self) -> &HashMap<Name, (Refusal, Instant)> {
        self.forget_old();
        &self.lately
    }

    fn forget_old(&mut self) {
        self.lately.retain(|_, (_, at)| at.elapsed() < REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Name {
        ("spiffe://test.example/svc/media".to_owned(), format!("media-{number}"))
    }

    fn refusal(epoch: u64, revision: u64) -> Refusal {
        let position = Position::new(epoch, revision);
        Refusal { position, nack: format!("{position}: it is bad"), acknowledged: None, mode: Mode::Full }
    }

    fn names(refusals: &mut Refusals) -> Vec<String> {
        let mut names: Vec<_> = refusals.lately().keys().map(|(_, instance)| instance.clone()).collect();
        names.sort_unstable();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_forgotten_after_some_minutes_or_when_something_is_taken() {
        let mut refusals = Refusals::default();
        for number in [1, 2] {
            refusals.add(name(number), refusal(1, 5));
        }
        tokio::time::advance(REMEMBERED / 2).await;
        refusals.add(name(3), refusal(1, 5));
        refusals.over(&name(2));
        assert_eq!(names(&mut refusals), ["media-1", "media-3"]);
        tokio::time::advance(REMEMBERED / 2).await;
        assert_eq!(names(&mut refusals), ["media-3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_resumes_still_refuses_what_comes_next_but_not_what_is_no_longer_offered() {
        let mut refusals = Refusals::default();
        refusals.add(name(1), refusal(2, 5));
        refusals.resumed(&name(1), Position::new(2, 4));
        assert_eq!(names(&mut refusals), ["media-1"]);
        refusals.resumed(&name(1), Position::new(1, 4));
        assert_eq!(names(&mut refusals), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_the_oldest_is_forgotten() {
        let mut refusals = Refusals::default();
        for number in 0..=MOST {
            refusals.add(name(number), refusal(1, 5));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(refusals.lately().len(), MOST);
        assert!(!names(&mut refusals).contains(&"media-0".to_owned()));
    }
}
