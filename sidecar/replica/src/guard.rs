//! What must not happen to a map that is in use (DESIGN §5, poison guards).

use std::{collections::VecDeque, time::Duration};

use tenon_proto::{
    kind,
    replication::v1::{GuardRules, guard_rules::Override},
};

/// Deltas may shrink the map by the guard's share within this time.
const WINDOW: Duration = Duration::from_secs(60);
/// How often the size of the map is noted for that.
const SAMPLES_EVERY: Duration = Duration::from_secs(1);

/// When something happens, for parts that never read a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since some moment before everything else; never steps.
    pub elapsed: Duration,
    /// The time of day, in seconds since 1970, as it is known without believing a clock that steps.
    pub unix_seconds: i64,
}

/// The most that a map may shrink which a follower holds.
///
/// The accident it stops: an emptied table upstream empties every cache below it. An operator who means it sets an
/// override at the service, which travels with the stream ([`GuardRules`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Share of the held records, in percent, that a snapshot or a minute of deltas may take away. 100 switches the guard
    /// off.
    pub largest_shrink_percent: u8,
    /// Maps of at most this many records are not guarded: few records can all go for good reasons.
    pub unguarded_records: u64,
}

impl Default for Guard {
    fn default() -> Self {
        Self { largest_shrink_percent: 50, unguarded_records: 20 }
    }
}

impl Guard {
    /// The guard of a kind, for every follower of it that was told no other rules.
    ///
    /// Lists of who is refused have none: that a shorter one is not believed would keep the next refusal out for ever. Nor
    /// do keys: a mesh is scaled down overnight, and a key that is missing comes back with its instance's next
    /// confirmation, within a minute. Nor do endpoints, for the same reason: instances register and leave as they come and
    /// go, and the policy service itself never removes more than half of those that only fell silent.
    pub fn of(kind: &str) -> Self {
        match kind {
            kind::KEY | kind::REVOCATION | kind::QUARANTINE | kind::ENDPOINT => Self::OFF,
            _ => Self::default(),
        }
    }

    /// Accepts every change.
    pub const OFF: Self = Self { largest_shrink_percent: 100, unguarded_records: 0 };

    /// Whether a map of `held` records may become one of `offered`.
    ///
    /// # Errors
    /// One line for the log, the status and the NACK.
    pub fn check(&self, held: u64, offered: u64) -> Result<(), String> {
        let lost = u128::from(held.saturating_sub(offered));
        if held <= self.unguarded_records || lost * 100 <= u128::from(held) * u128::from(self.largest_shrink_percent) {
            return Ok(());
        }
        Err(format!(
            "{offered} records are offered where {held} are held, which is more than {} % fewer: refused as poisoned",
            self.largest_shrink_percent
        ))
    }
}

/// The guard of one map: the rules that were told last, and how large the map was within the last minute.
#[derive(Debug)]
pub struct Guarding {
    /// What holds where the rules say nothing.
    default: Guard,
    /// Only a part of the map is held, whose size says nothing about what an override lets the whole shrink to.
    part: bool,
    rules: GuardRules,
    /// Sizes of the map, each the largest within its second; the oldest first.
    sizes: VecDeque<(Duration, u64)>,
    /// The size from which deltas shrank the map too far, until the parent sends better: the minute that passes meanwhile
    /// does not make them good.
    refused_from: Option<u64>,
}

impl Guarding {
    pub const fn new(default: Guard) -> Self {
        Self { default, part: false, rules: EMPTY, sizes: VecDeque::new(), refused_from: None }
    }

    /// Of whoever holds only what it asked for. How far the whole map shrinks is its parents' to guard.
    pub(crate) fn of_part(default: Guard) -> Self {
        Self { part: true, ..Self::new(default) }
    }

    /// Takes over what the state file had.
    pub(crate) fn restore(&mut self, rules: GuardRules) {
        self.rules = rules;
    }

    /// The rules in force, for the state file and for operators.
    pub const fn rules(&self) -> &GuardRules {
        &self.rules
    }

    /// Takes rules over as a parent told them. That the list of canaries became empty is not believed by itself: it may
    /// be the same accident that canaries are there for. It is believed under an override, and where the rules say that an
    /// operator emptied it: so also by who was away while the override was in force.
    pub fn told(&mut self, mut rules: GuardRules, now: Now) {
        let meant = rules.no_canaries || in_force(&rules, now).is_some() || in_force(&self.rules, now).is_some();
        if rules.canaries.is_empty() && !meant {
            rules.canaries = std::mem::take(&mut self.rules.canaries);
        }
        self.rules = rules;
    }

    /// Whether a snapshot may take the place of `held` records.
    pub fn snapshot(&self, held: u64, offered: u64, now: Now, has: impl Fn(&str) -> bool) -> Result<(), String> {
        if self.overridden(offered, now) {
            return Ok(());
        }
        self.effective().check(held, offered)?;
        match self.rules.canaries.iter().find(|canary| !has(canary)) {
            None => Ok(()),
            Some(canary) => Err(format!("the snapshot lacks {canary}, which must exist: refused as poisoned")),
        }
    }

    /// Whether a delta that deletes `deleted` may make a map of `offered` records of one of `held`.
    pub fn delta<'d>(
        &mut self,
        held: u64,
        offered: u64,
        now: Now,
        mut deleted: impl Iterator<Item = &'d str>,
    ) -> Result<(), String> {
        self.held(held, now);
        if self.overridden(offered, now) {
            self.replaced();
            return Ok(());
        }
        if !self.rules.canaries.is_empty()
            && let Some(canary) = deleted.find(|key| self.rules.canaries.iter().any(|canary| canary == key))
        {
            return Err(format!("a delta deletes {canary}, which must exist: refused as poisoned"));
        }
        if offered >= held {
            self.refused_from = self.refused_from.filter(|_| offered == held);
            return Ok(());
        }
        let from = self.sizes.iter().map(|(_, size)| *size).chain(self.refused_from).max().unwrap_or(held);
        let checked = self.effective().check(from, offered);
        self.refused_from = checked.is_err().then_some(from);
        checked
    }

    /// Notes that the map has this size.
    pub fn held(&mut self, records: u64, now: Now) {
        while self.sizes.front().is_some_and(|(at, _)| now.elapsed.saturating_sub(*at) > WINDOW) {
            self.sizes.pop_front();
        }
        match self.sizes.back_mut() {
            Some((at, size)) if now.elapsed.saturating_sub(*at) < SAMPLES_EVERY => *size = records.max(*size),
            _ => self.sizes.push_back((now.elapsed, records)),
        }
    }

    /// So many records were forgotten for other reasons than that the parent lost them: as if they had never been held.
    pub(crate) fn let_go(&mut self, records: u64) {
        for size in self.sizes.iter_mut().map(|(_, size)| size).chain(&mut self.refused_from) {
            *size = size.saturating_sub(records);
        }
    }

    /// Another map took the place of the guarded one.
    pub fn replaced(&mut self) {
        self.sizes.clear();
        self.refused_from = None;
    }

    fn overridden(&self, offered: u64, now: Now) -> bool {
        in_force(&self.rules, now).is_some_and(|it| self.part || offered >= it.smallest_records)
    }

    fn effective(&self) -> Guard {
        match u8::try_from(self.rules.largest_shrink_percent.min(100)) {
            Ok(0) | Err(_) => self.default,
            Ok(percent) => Guard { largest_shrink_percent: percent, ..self.default },
        }
    }
}

const EMPTY: GuardRules =
    GuardRules { largest_shrink_percent: 0, canaries: Vec::new(), r#override: None, no_canaries: false };

fn in_force(rules: &GuardRules, now: Now) -> Option<&Override> {
    rules.r#override.as_ref().filter(|it| now.unix_seconds < it.until_unix_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(seconds: u64) -> Now {
        Now { elapsed: Duration::from_secs(seconds), unix_seconds: 1_000_000 + i64::try_from(seconds).unwrap() }
    }

    fn rules(percent: u32, canaries: &[&str], allowed: Option<(u64, i64)>) -> GuardRules {
        GuardRules {
            largest_shrink_percent: percent,
            canaries: canaries.iter().map(|canary| (*canary).to_owned()).collect(),
            r#override: allowed
                .map(|(smallest_records, until)| Override { smallest_records, until_unix_seconds: 1_000_000 + until }),
            no_canaries: false,
        }
    }

    #[test]
    fn a_map_may_shrink_by_the_share_and_not_by_one_more() {
        let guard = Guard::default();
        for (held, offered, allowed) in [
            (0, 0, true),
            (20, 0, true),
            (21, 0, false),
            (21, 10, false),
            (21, 11, true),
            (100, 50, true),
            (100, 49, false),
            (100, 900, true),
        ] {
            assert_eq!(guard.check(held, offered).is_ok(), allowed, "{held} to {offered}");
        }
        assert!(Guard::OFF.check(1_000_000, 0).is_ok());
    }

    #[test]
    fn a_minute_of_deltas_may_shrink_the_map_no_further_than_one_snapshot() {
        let mut guard = Guarding::new(Guard::default());
        let mut delta = |held, offered, at| guard.delta(held, offered, now(at), std::iter::empty()).is_ok();
        assert!(delta(100, 80, 0) && delta(80, 50, 30));
        assert!(!delta(50, 49, 50), "more than half within a minute");
        assert!(!delta(50, 49, 900), "waiting does not make it good");
        assert!(delta(50, 51, 901) && delta(51, 49, 902), "but better changes do");
        assert!(delta(49, 30, 990), "and a new minute has begun");
    }

    #[test]
    fn what_an_operator_allows_is_allowed_until_its_end() {
        let mut guard = Guarding::new(Guard::default());
        guard.told(rules(10, &["canary"], Some((30, 60))), now(0));
        let there = |_: &str| true;
        assert!(guard.snapshot(100, 30, now(59), |_| false).is_ok());
        assert!(guard.snapshot(100, 29, now(59), there).is_err(), "no further than that");
        assert!(guard.snapshot(100, 30, now(60), there).is_err(), "and no longer");
        assert!(guard.snapshot(100, 90, now(60), there).is_ok());
        assert!(guard.snapshot(100, 90, now(60), |_| false).is_err(), "the canary is missing");
        assert!(guard.delta(100, 99, now(60), ["other"].into_iter()).is_ok());
        assert!(guard.delta(100, 99, now(60), ["canary"].into_iter()).is_err());
    }

    #[test]
    fn what_is_allowed_of_the_whole_map_is_not_measured_by_the_part_that_is_held() {
        let mut guard = Guarding::of_part(Guard::default());
        guard.told(rules(0, &["canary"], Some((900_000, 60))), now(0));
        assert!(guard.snapshot(100, 0, now(59), |_| false).is_ok());
        assert!(guard.delta(100, 99, now(59), ["canary"].into_iter()).is_ok());
        assert!(guard.snapshot(100, 100, now(60), |_| false).is_err(), "no longer than that");
    }

    #[test]
    fn a_list_of_canaries_that_became_empty_is_not_believed_without_an_override() {
        let mut guard = Guarding::new(Guard::default());
        guard.told(rules(0, &["canary"], None), now(0));
        guard.told(rules(70, &[], None), now(1));
        assert_eq!((guard.rules().largest_shrink_percent, guard.rules().canaries.len()), (70, 1));
        guard.told(rules(70, &["other"], None), now(2));
        assert_eq!(guard.rules().canaries, ["other"]);
        guard.told(rules(70, &[], Some((0, 9))), now(3));
        assert!(guard.rules().canaries.is_empty());
    }

    /// Whoever was away during the override would else keep the old canaries for ever, and refuse that they go.
    #[test]
    fn a_list_that_an_operator_emptied_is_believed_also_after_the_override_and_until_there_are_canaries_again() {
        let emptied = GuardRules { no_canaries: true, ..rules(0, &[], None) };
        let mut guard = Guarding::new(Guard::default());
        guard.told(rules(0, &["canary"], None), now(0));
        guard.told(emptied, now(100));
        assert!(guard.delta(30, 29, now(101), ["canary"].into_iter()).is_ok());
        assert!(guard.snapshot(30, 29, now(101), |_| false).is_ok());
        guard.told(rules(0, &["other"], None), now(102));
        guard.told(rules(0, &[], None), now(103));
        assert_eq!(guard.rules().canaries, ["other"]);
    }
}
