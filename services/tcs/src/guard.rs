//! The guard of the map of tenants: what every replica refuses to lose (DESIGN §5, poison guards).
//!
//! The rules are one record of a kind of their own in the store of the tenants, so that every process that writes there
//! has the same ones. They are checked here before a tenant goes, by the publisher before it feeds its followers, and by
//! each follower.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use journal::{AppendError, Journal, ReadError, TailError, Write};
use mesh_config::names::TenantId;
use mesh_identity::clock;
use prost::Message as _;
use tenon_proto::replication::v1::{GuardRules, guard_rules::Override};
use tenon_proto::tcs::v1::{Guard, GuardOverride};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Key of the one record of its kind.
const KEY: &str = "guard";
/// So many canaries are enough: each follower looks for all of them.
const MOST_CANARIES: usize = 1000;
/// The map may shrink by the guard's share within this time, and every follower's guard uses the same.
const WINDOW: Duration = Duration::from_secs(60);
/// How often the size of the map is noted for that.
const SAMPLES_EVERY: Duration = Duration::from_secs(1);

/// Why a tenant may not go. Says what an operator can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Shrink {
    #[error(
        "the guard keeps {0}, which is a canary: take it off the list with `tenon tcs guard set --canary ...`, or \
         `tenon tcs guard allow-shrink`"
    )]
    Canary(String),
    #[error(
        "the guard lets no more than {percent} % of the tenants go within a minute: {left} of {most} would be left; wait a \
         minute, or allow it with `tenon tcs guard allow-shrink --to {left}`"
    )]
    TooFar { percent: u8, most: u64, left: u64 },
}

/// Why the guard was not set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetError {
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    #[error(
        "no replica believes by itself that there are no canaries any more, it may be an accident: allow it first with \
         `tenon tcs guard allow-shrink`, and set it while that is in force"
    )]
    Emptied,
    #[error("the guard cannot be written")]
    Write(#[from] AppendError),
}

/// The guard in force. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Guards {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Arc<dyn Journal>,
    guard: watch::Sender<Guard>,
    rules: watch::Sender<GuardRules>,
    /// Held from reading or writing the guard until it is in force, so that the last one that is written is.
    taking: tokio::sync::Mutex<()>,
    sizes: Mutex<Sizes>,
}

/// How large the map was within the last minute: the largest of each second, the oldest first.
#[derive(Debug, Default)]
struct Sizes(VecDeque<(Instant, u64)>);

impl Guards {
    /// Where the guard is kept.
    pub(crate) fn journal(&self) -> &dyn Journal {
        &*self.shared.journal
    }

    /// Reads the guard from its journal, and follows it until `shutdown`. Must be called within a tokio runtime.
    pub(crate) async fn open(journal: Arc<dyn Journal>, shutdown: CancellationToken) -> Result<Self, ReadError> {
        let (guard, rules) = (watch::Sender::new(Guard::default()), watch::Sender::new(GuardRules::default()));
        let shared =
            Arc::new(Shared { journal, guard, rules, taking: tokio::sync::Mutex::default(), sizes: Mutex::default() });
        shared.read().await?;
        tokio::spawn(shutdown.run_until_cancelled_owned(follow(Arc::clone(&shared))));
        Ok(Self { shared })
    }

    /// As followers are told.
    pub(crate) fn rules(&self) -> watch::Receiver<GuardRules> {
        self.shared.rules.subscribe()
    }

    pub(crate) fn get(&self) -> Guard {
        self.shared.guard.borrow().clone()
    }

    /// Replaces the guard. That its canaries exist is the caller's to know.
    pub(crate) async fn set(&self, guard: Guard) -> Result<Guard, SetError> {
        let shared = Arc::clone(&self.shared);
        // To its end, also when the caller goes away.
        let set = tokio::spawn(async move {
            let _alone = shared.taking.lock().await;
            let guard = settled(&shared.guard.borrow(), guard, unix_seconds())?;
            shared.journal.append(vec![Write::put(KEY, guard.encode_to_vec())]).await?;
            shared.take(guard.clone());
            Ok(guard)
        });
        set.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Notes how many tenants there are.
    pub(crate) fn held(&self, tenants: u64) {
        self.shared.sizes().note(tenants, Instant::now());
    }

    /// Whether `held` tenants may become `left` by the loss of `id`.
    pub(crate) fn check(&self, held: u64, left: u64, id: &str) -> Result<(), Shrink> {
        let most = self.shared.sizes().most(Instant::now()).max(held);
        check(&self.shared.guard.borrow(), most, left, id, unix_seconds())
    }
}

impl Shared {
    async fn read(&self) -> Result<(), ReadError> {
        let _alone = self.taking.lock().await;
        let guard = match self.journal.get(KEY).await? {
            Some(record) => Guard::decode(record.value).map_err(|error| ReadError(error.into()))?,
            None => Guard::default(),
        };
        self.take(guard);
        Ok(())
    }

    fn take(&self, mut guard: Guard) {
        guard.canaries = believed(&self.guard.borrow(), &guard, unix_seconds()).to_vec();
        self.rules.send_if_modified(|known| {
            let new = rules(&guard);
            let changed = *known != new;
            *known = new;
            changed
        });
        self.guard.send_replace(guard);
    }

    fn sizes(&self) -> std::sync::MutexGuard<'_, Sizes> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sizes {
    fn note(&mut self, tenants: u64, now: Instant) {
        self.forget(now);
        match self.0.back_mut() {
            Some((at, most)) if now.duration_since(*at) < SAMPLES_EVERY => *most = tenants.max(*most),
            _ => self.0.push_back((now, tenants)),
        }
    }

    fn most(&mut self, now: Instant) -> u64 {
        self.forget(now);
        self.0.iter().map(|(_, tenants)| *tenants).max().unwrap_or(0)
    }

    fn forget(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.0.pop_front();
        }
    }
}

/// Follows what other processes set.
async fn follow(shared: Arc<Shared>) {
    loop {
        let mut tail = match shared.journal.head().await {
            Ok(head) => shared.journal.tail(head),
            Err(error) => Box::pin(futures_util::stream::once(async { Err(TailError::from(error)) })),
        };
        let problem = loop {
            let read = shared.read().await.map_err(TailError::from);
            match read.and(tail.next().await.unwrap_or(Err(TailError::Compacted))) {
                Ok(_) => {}
                Err(problem) => break problem,
            }
        };
        tracing::warn!(%problem, "the guard of the tenants cannot be read: the last one stays in force");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The guard as it is written where `held` is in force.
fn settled(held: &Guard, mut guard: Guard, now: i64) -> Result<Guard, SetError> {
    // Whoever changes something else sends it along as it was shown, and it may have ended since.
    if guard.r#override == held.r#override && in_force(held, now).is_none() {
        guard.r#override = None;
    }
    let problems = wrong(&guard, now);
    if !problems.is_empty() {
        return Err(SetError::Invalid(problems));
    }
    let allowed = in_force(held, now).or_else(|| in_force(&guard, now)).is_some();
    if guard.canaries.is_empty() && !held.canaries.is_empty() && !allowed {
        return Err(SetError::Emptied);
    }
    let taken_off = allowed && !held.canaries.is_empty();
    guard.no_canaries = guard.canaries.is_empty() && (taken_off || held.no_canaries);
    guard.missing_canaries.clear();
    Ok(guard)
}

/// The canaries of `new` as followers believe them that know those of `held` ([`replica::Guarding::told`]): a tenant that
/// they would keep must not go here.
fn believed<'g>(held: &'g Guard, new: &'g Guard, now: i64) -> &'g [String] {
    let meant = new.no_canaries || in_force(new, now).or_else(|| in_force(held, now)).is_some();
    if new.canaries.is_empty() && !meant { &held.canaries } else { &new.canaries }
}

fn check(guard: &Guard, most: u64, left: u64, id: &str, now: i64) -> Result<(), Shrink> {
    if in_force(guard, now).is_some_and(|allowed| left >= allowed.smallest_records) {
        return Ok(());
    }
    if guard.canaries.iter().any(|canary| canary == id) {
        return Err(Shrink::Canary(id.to_owned()));
    }
    let mut share = replica::Guard::default();
    if let Ok(percent @ 1..) = u8::try_from(guard.largest_shrink_percent.min(100)) {
        share.largest_shrink_percent = percent;
    }
    share.check(most, left).map_err(|_| Shrink::TooFar { percent: share.largest_shrink_percent, most, left })
}

fn in_force(guard: &Guard, now: i64) -> Option<&GuardOverride> {
    guard.r#override.as_ref().filter(|allowed| allowed.until.as_ref().is_some_and(|until| now < until.seconds))
}

fn rules(guard: &Guard) -> GuardRules {
    let allowed = guard.r#override.as_ref().and_then(|allowed| {
        let until_unix_seconds = allowed.until.as_ref()?.seconds;
        Some(Override { smallest_records: allowed.smallest_records, until_unix_seconds })
    });
    GuardRules {
        largest_shrink_percent: guard.largest_shrink_percent,
        canaries: guard.canaries.clone(),
        r#override: allowed,
        no_canaries: guard.no_canaries,
    }
}

/// Everything that is wrong with a guard, each a line.
fn wrong(guard: &Guard, now: i64) -> Vec<String> {
    let mut problems = Vec::new();
    if guard.largest_shrink_percent > 100 {
        problems.push(format!("largest shrink {} %, expected 0 to 100", guard.largest_shrink_percent));
    }
    if guard.canaries.len() > MOST_CANARIES {
        problems.push(format!("{} canaries, expected at most {MOST_CANARIES}", guard.canaries.len()));
    }
    problems
        .extend(guard.canaries.iter().filter_map(|id| TenantId::try_from(id.as_str()).err()).map(|e| e.to_string()));
    if let Some(allowed) = &guard.r#override {
        if allowed.until.as_ref().is_none_or(|until| until.seconds <= now) {
            problems.push("the override ends in the past, or never: give a time at which it ends".to_owned());
        }
        if allowed.reason.trim().is_empty() {
            problems.push("the override has no reason: say who allows it and why".to_owned());
        }
    }
    problems
}

fn unix_seconds() -> i64 {
    i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX)
}

/// The guard that rules come from, where the rules are all that is known: at a relay.
pub(crate) fn of_rules(rules: GuardRules) -> Guard {
    let GuardRules { largest_shrink_percent, canaries, r#override, no_canaries } = rules;
    let r#override = r#override.map(|allowed| GuardOverride {
        smallest_records: allowed.smallest_records,
        until: Some(pbjson_types::Timestamp { seconds: allowed.until_unix_seconds, nanos: 0 }),
        reason: String::new(),
    });
    Guard { largest_shrink_percent, canaries, r#override, no_canaries, missing_canaries: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pbjson_types::Timestamp;

    const NOW: i64 = 1_000;

    fn allowing(smallest_records: u64, until: i64) -> Option<GuardOverride> {
        let until = Some(Timestamp { seconds: until, nanos: 0 });
        Some(GuardOverride { smallest_records, until, reason: "ada: clean up".to_owned() })
    }

    #[test]
    fn single_tenants_go_from_a_small_map_and_from_a_large_one_until_it_has_shrunk_too_far() {
        let guard = Guard { largest_shrink_percent: 10, ..Guard::default() };
        for (most, left, allowed) in
            [(1, 0, true), (20, 0, true), (21, 20, true), (21, 18, false), (1000, 900, true), (1000, 899, false)]
        {
            assert_eq!(check(&guard, most, left, "acme", NOW).is_ok(), allowed, "{most} to {left}");
        }
        assert!(check(&Guard::default(), 100, 50, "acme", NOW).is_ok(), "half by default");
        assert!(check(&Guard::default(), 100, 49, "acme", NOW).is_err());
    }

    #[test]
    fn canaries_stay_unless_an_override_is_in_force() {
        let mut guard = Guard { canaries: vec!["acme".to_owned()], ..Guard::default() };
        assert_eq!(check(&guard, 5, 4, "acme", NOW), Err(Shrink::Canary("acme".to_owned())));
        assert!(check(&guard, 5, 4, "globex", NOW).is_ok());
        guard.r#override = allowing(3, NOW + 1);
        assert!(check(&guard, 5, 4, "acme", NOW).is_ok());
        assert!(check(&guard, 5, 2, "acme", NOW).is_err(), "no further than that");
        assert!(check(&guard, 5, 4, "acme", NOW + 1).is_err(), "and no longer");
    }

    #[test]
    fn the_last_canary_is_taken_off_only_under_an_override_and_that_is_remembered() {
        let with = |canaries: &[&str], r#override| {
            let canaries = canaries.iter().map(|canary| (*canary).to_owned()).collect();
            Guard { canaries, r#override, ..Guard::default() }
        };
        let held = with(&["acme"], None);
        assert!(matches!(settled(&held, with(&[], None), NOW), Err(SetError::Emptied)));
        let ended = with(&["acme"], allowing(0, NOW));
        assert!(matches!(settled(&ended, with(&[], None), NOW), Err(SetError::Emptied)));
        assert!(settled(&held, with(&[], allowing(0, NOW + 1)), NOW).unwrap().no_canaries, "in one request");
        let allowed = with(&["acme"], allowing(0, NOW + 1));
        let emptied = settled(&allowed, with(&[], None), NOW).unwrap();
        assert!(emptied.no_canaries && of_rules(rules(&emptied)).no_canaries);
        assert!(settled(&emptied, with(&[], None), NOW + 9).unwrap().no_canaries, "for good");
        assert!(!settled(&emptied, with(&["acme"], None), NOW + 9).unwrap().no_canaries, "until there are some");
        assert!(!settled(&with(&[], None), with(&[], None), NOW).unwrap().no_canaries, "nobody took any off");
    }

    #[test]
    fn an_override_that_has_ended_and_is_sent_along_is_dropped() {
        let held = Guard { r#override: allowing(0, NOW), ..Guard::default() };
        let set = |guard| settled(&held, guard, NOW);
        assert_eq!(set(Guard { largest_shrink_percent: 10, ..held.clone() }).unwrap().r#override, None);
        assert!(matches!(set(Guard { r#override: allowing(1, NOW), ..held.clone() }), Err(SetError::Invalid(_))));
    }

    #[test]
    fn a_record_that_is_gone_takes_no_canary_along() {
        let held = Guard { canaries: vec!["acme".to_owned()], ..Guard::default() };
        assert_eq!(believed(&held, &Guard::default(), NOW), held.canaries);
        assert!(believed(&held, &Guard { no_canaries: true, ..Guard::default() }, NOW).is_empty());
        assert!(believed(&held, &Guard { r#override: allowing(0, NOW + 1), ..Guard::default() }, NOW).is_empty());
    }

    #[test]
    fn the_size_within_the_last_minute_counts() {
        let (mut sizes, start) = (Sizes::default(), Instant::now());
        sizes.note(100, start);
        sizes.note(90, start + Duration::from_millis(10));
        sizes.note(80, start + Duration::from_secs(30));
        assert_eq!(sizes.most(start + WINDOW), 100);
        assert_eq!(sizes.most(start + WINDOW + Duration::from_secs(1)), 80);
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let guard = |largest_shrink_percent, canary: &str, r#override| Guard {
            largest_shrink_percent,
            canaries: vec![canary.to_owned()],
            r#override,
            ..Guard::default()
        };
        let good = guard(10, "acme", allowing(0, NOW + 1));
        let guard = guard(101, "A!", allowing(0, NOW));
        assert_eq!(wrong(&guard, NOW).len(), 3, "{:?}", wrong(&guard, NOW));
        assert_eq!(wrong(&good, NOW), Vec::<String>::new());
        assert_eq!(of_rules(rules(&good)).canaries, good.canaries);
    }
}
