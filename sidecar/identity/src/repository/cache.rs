//! What is known of the keys of one outside client, and when to ask again (A16). Never waits, never reads the clock:
//! `now` is an argument, Unix seconds.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_asap::{Kid, Lookup, MAX_LEEWAY_SECONDS, MAX_LIFETIME_SECONDS, PublicKey};

use super::freshness::Freshness;

/// How long a key that every repository denies counts as unknown (A15).
const ABSENT: u64 = 20;
/// How long the repositories are left alone after none of them could say.
const PAUSE: u64 = 2;
/// How long a key that could not be fetched again is left alone.
const RETRY: u64 = 5;
/// A key in use is not fetched again of itself more often than this, however short its repository says its life is.
const INTERVAL: u64 = 5;
/// Whoever waited for a key gets it, even when the repository wants nothing kept.
const AT_LEAST: u64 = 2;
/// A key that nobody has looked up for so long has no remembered verification: it need not be kept fresh.
const IN_USE: u64 = MAX_LIFETIME_SECONDS + 2 * MAX_LEEWAY_SECONDS;
/// Most keys of one client, missing ones included.
const MOST: usize = 1024;
/// Fetches of unknown keys that one client may cause at once, and then one more each second (A16).
const BURST: u64 = 30;

/// What all repositories together said.
#[derive(Debug)]
pub(super) enum Answer {
    /// One of them has the key.
    Key(Arc<PublicKey>, Box<str>, Freshness),
    /// All of them say that there is none: 404 or 403.
    Absent,
    /// At least one could not say.
    Failed,
}

/// What stands between a caller and an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// There is an answer, or none to hope for now.
    Nothing,
    /// A fetch, or the one under way.
    Fetch,
}

/// What is due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// To be fetched again.
    pub refresh: Vec<Kid>,
    /// A key's time is over.
    pub dropped: bool,
    /// When something is due next.
    pub next: Option<u64>,
}

#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Box<str>, Entry>,
    /// Fetches of unknown keys that may be started now, short of `BURST`.
    spent: u64,
    /// When `spent` was right.
    spent_at: u64,
}

enum Entry {
    Key(Held),
    Absent { until: u64 },
    Failed { until: u64 },
}

struct Held {
    key: Arc<PublicKey>,
    /// As it came, to see whether a later one is the same.
    text: Box<str>,
    /// From then on it is fetched again when somebody looks it up.
    fresh_until: u64,
    /// From then on it is not used.
    usable_until: u64,
    /// From then on it is fetched again of itself, while it is in use.
    refresh_at: u64,
    /// Not before: the last try failed.
    retry_at: u64,
    /// When it was last looked up.
    used_at: u64,
}

impl Held {
    fn new(key: Arc<PublicKey>, text: Box<str>, life: Freshness, now: u64) -> Self {
        let fresh_until = now + life.fresh;
        Self {
            key,
            text,
            fresh_until,
            usable_until: (fresh_until + life.stale).max(now + AT_LEAST),
            // Ahead of its end, so that nobody waits for a key in use, with or without a stale time.
            refresh_at: now + (life.fresh - life.fresh / 5).max(INTERVAL),
            retry_at: now,
            used_at: now,
        }
    }

    fn in_use(&self, now: u64) -> bool {
        now < self.used_at + IN_USE
    }
}

impl Cache {
    /// What is known, and whether to fetch it again.
    pub(super) fn look(&mut self, kid: &str, now: u64) -> (Lookup, bool) {
        match self.entries.get_mut(kid) {
            Some(Entry::Key(held)) if now < held.usable_until => {
                held.used_at = held.used_at.max(now);
                (Lookup::Found(Arc::clone(&held.key)), now >= held.fresh_until && now >= held.retry_at)
            }
            Some(Entry::Absent { until }) if now < *until => (Lookup::Unknown, false),
            Some(Entry::Key(_) | Entry::Absent { .. } | Entry::Failed { .. }) | None => (Lookup::Unavailable, false),
        }
    }

    /// Whether to wait for a fetch. One that is not `under_way` is counted against the client.
    pub(super) fn need(&mut self, kid: &str, now: u64, under_way: bool) -> Need {
        let answered = match self.entries.get(kid) {
            Some(Entry::Key(held)) => now < held.usable_until,
            Some(Entry::Absent { until } | Entry::Failed { until }) => now < *until,
            None => false,
        };
        if answered || !(under_way || self.spend(now)) { Need::Nothing } else { Need::Fetch }
    }

    /// What the repositories answered. True when verifications under this key count no longer.
    pub(super) fn store(&mut self, kid: &str, answer: Answer, now: u64) -> bool {
        self.make_room(kid, now);
        let before = match self.entries.get_mut(kid) {
            Some(Entry::Key(held)) => Some(held),
            Some(Entry::Absent { .. } | Entry::Failed { .. }) | None => None,
        };
        let (entry, changed) = match (answer, before) {
            (Answer::Key(key, text, life), before) => {
                let changed = before.as_ref().is_some_and(|before| before.text != text);
                let used_at = before.map_or(now, |before| before.used_at);
                (Entry::Key(Held { used_at, ..Held::new(key, text, life, now) }), changed)
            }
            (Answer::Absent, before) => (Entry::Absent { until: now + ABSENT }, before.is_some()),
            (Answer::Failed, Some(before)) if now < before.usable_until => {
                before.retry_at = now + RETRY;
                return false;
            }
            (Answer::Failed, before) => (Entry::Failed { until: now + PAUSE }, before.is_some()),
        };
        self.entries.insert(kid.into(), entry);
        changed
    }

    /// Drops what is over, and says what is due.
    pub(super) fn tend(&mut self, now: u64) -> Due {
        let mut due = Due::default();
        self.entries.retain(|kid, entry| {
            let Entry::Key(held) = entry else { return !entry.is_over(now) };
            if now >= held.usable_until {
                due.dropped = true;
                return false;
            }
            let mut next = held.usable_until;
            if held.in_use(now) {
                let at = held.refresh_at.max(held.retry_at);
                if now < at {
                    next = next.min(at);
                } else if let Ok(kid) = kid.parse() {
                    due.refresh.push(kid);
                }
            }
            due.next = Some(due.next.map_or(next, |before| before.min(next)));
            true
        });
        due
    }

    /// One fetch of an unknown key, if there is one left.
    fn spend(&mut self, now: u64) -> bool {
        self.spent = self.spent.saturating_sub(now.saturating_sub(self.spent_at));
        self.spent_at = self.spent_at.max(now);
        let left = self.spent < BURST;
        self.spent += u64::from(left);
        left
    }

    /// Keeps the number of entries bounded: what is over goes first, then what was used longest ago.
    fn make_room(&mut self, kid: &str, now: u64) {
        if self.entries.len() < MOST || self.entries.contains_key(kid) {
            return;
        }
        self.entries.retain(|_, entry| !entry.is_over(now));
        while self.entries.len() >= MOST {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used_at()).map(|(kid, _)| kid.clone());
            let Some(oldest) = oldest else { return };
            self.entries.remove(&oldest);
        }
    }
}

impl Entry {
    fn is_over(&self, now: u64) -> bool {
        match self {
            Self::Key(held) => now >= held.usable_until,
            Self::Absent { until } | Self::Failed { until } => now >= *until,
        }
    }

    fn used_at(&self) -> u64 {
        match self {
            Self::Key(held) => held.used_at,
            Self::Absent { .. } | Self::Failed { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests;
