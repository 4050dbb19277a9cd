//! How often who called what, and how that went: bounded, whatever paths callers invent.

use std::hash::{Hash, Hasher};

use ahash::RandomState;
use hashbrown::{Equivalent, HashMap};

use super::Decision;

/// Paths of refused calls, and of those that a rule on a whole gRPC service allows, are the caller's choice. Longer ones
/// are counted together.
pub const LONGEST_PATH: usize = 512;
/// A flow without a call in so many takings is forgotten.
const IDLE_TAKINGS: u8 = 4;

/// One flow, as parts of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow<'a, H = Decision> {
    /// Who called.
    pub caller: &'a str,
    /// Who was called.
    pub service: &'a str,
    /// Empty: more paths than are told apart.
    pub path: &'a str,
    /// What was decided, or how the call ended.
    pub how: H,
}

impl<'a, H> Flow<'a, H> {
    fn on(self, path: &'a str) -> Self {
        Self { path, ..self }
    }
}

/// The same, held.
#[derive(Debug)]
struct Held<H> {
    caller: Box<str>,
    service: Box<str>,
    path: Box<str>,
    how: H,
}

impl<H: Copy> Held<H> {
    fn flow(&self) -> Flow<'_, H> {
        Flow { caller: &self.caller, service: &self.service, path: &self.path, how: self.how }
    }
}

impl<H> From<Flow<'_, H>> for Held<H> {
    fn from(flow: Flow<'_, H>) -> Self {
        let Flow { caller, service, path, how } = flow;
        Self { caller: caller.into(), service: service.into(), path: path.into(), how }
    }
}

impl<H: Copy + PartialEq> PartialEq for Held<H> {
    fn eq(&self, other: &Self) -> bool {
        self.flow() == other.flow()
    }
}

impl<H: Copy + Eq> Eq for Held<H> {}

impl<H: Copy + Hash> Hash for Held<H> {
    fn hash<S: Hasher>(&self, state: &mut S) {
        self.flow().hash(state);
    }
}

impl<H: Copy + PartialEq> Equivalent<Held<H>> for Flow<'_, H> {
    fn equivalent(&self, held: &Held<H>) -> bool {
        *self == held.flow()
    }
}

#[derive(Debug, Default)]
struct Count<M> {
    calls: u64,
    more: M,
    /// Takings since the last call.
    idle: u8,
}

/// Counts flows, and keeps of each what else is wanted. Counting one that is known allocates nothing.
#[derive(Debug)]
pub struct Flows<H = Decision, M = ()> {
    counts: HashMap<Held<H>, Count<M>, RandomState>,
    /// So many are told apart.
    most: usize,
    /// Calls that fit nowhere.
    lost: u64,
}

impl<H: Copy + Eq + Hash, M: Default> Flows<H, M> {
    /// Tells `most` flows apart. What is beyond is counted by caller, service and decision alone; so many of these again.
    pub fn new(most: usize) -> Self {
        Self { counts: HashMap::default(), most, lost: 0 }
    }

    /// Counts `calls` of this flow. Says whether it was not known.
    pub fn add(&mut self, flow: Flow<'_, H>, calls: u64) -> bool {
        self.add_with(flow, calls, |_| ())
    }

    /// The same, and what `more` adds to what is kept of it.
    pub fn add_with(&mut self, flow: Flow<'_, H>, calls: u64, more: impl FnOnce(&mut M)) -> bool {
        let flow = if flow.path.len() > LONGEST_PATH { flow.on("") } else { flow };
        if let Some(count) = self.counts.get_mut(&flow) {
            count.increase(calls, more);
            return false;
        }
        let together = self.counts.len() >= self.most && !flow.path.is_empty();
        let flow = if together { flow.on("") } else { flow };
        if let Some(count) = self.counts.get_mut(&flow).filter(|_| together) {
            count.increase(calls, more);
            return false;
        }
        if self.counts.len() >= 2 * self.most {
            self.lost = self.lost.saturating_add(calls);
            return false;
        }
        self.counts.entry(flow.into()).or_default().increase(calls, more);
        true
    }

    /// Calls that fitted nowhere.
    pub const fn beyond(&self) -> u64 {
        self.lost
    }

    /// So many more fitted nowhere.
    pub const fn lose(&mut self, calls: u64) {
        self.lost = self.lost.saturating_add(calls);
    }

    /// What is counted, and stays so.
    pub fn each(&self, mut each: impl FnMut(Flow<'_, H>, u64, &M)) {
        self.counts.iter().for_each(|(flow, count)| each(flow.flow(), count.calls, &count.more));
    }

    /// Hands out what was counted since the last time, and the calls that fitted nowhere. Flows stay known for a while.
    pub fn take(&mut self, mut each: impl FnMut(Flow<'_, H>, u64, M)) -> u64 {
        let crowded = self.counts.len() > self.most / 2;
        self.counts.retain(|flow, count| {
            if count.calls == 0 {
                count.idle += 1;
                return !crowded && count.idle < IDLE_TAKINGS;
            }
            each(flow.flow(), std::mem::take(&mut count.calls), std::mem::take(&mut count.more));
            true
        });
        std::mem::take(&mut self.lost)
    }
}

impl<M> Count<M> {
    fn increase(&mut self, calls: u64, more: impl FnOnce(&mut M)) {
        self.calls = self.calls.saturating_add(calls);
        self.idle = 0;
        more(&mut self.more);
    }
}

#[cfg(test)]
mod tests {
    use sidecar_core::Reason;

    use super::*;

    fn flow<'a>(caller: &'a str, path: &'a str) -> Flow<'a> {
        Flow { caller, service: "media", path, how: Decision::Refused(Reason::PathNotAllowed) }
    }

    fn taken(flows: &mut Flows) -> Vec<(String, String, u64)> {
        let mut taken = Vec::new();
        flows.take(|flow, calls, ()| taken.push((flow.caller.to_owned(), flow.path.to_owned(), calls)));
        taken.sort();
        taken
    }

    #[test]
    fn flows_that_differ_in_anything_are_counted_apart_and_known_the_second_time() {
        let mut flows = Flows::new(100);
        let one = flow("wiki", "/m/Get");
        let others = [
            flow("issues", "/m/Get"),
            flow("wiki", "/m/Put"),
            Flow { service: "issues", ..one },
            Flow { how: Decision::Allowed, ..one },
            Flow { how: Decision::Audited(Reason::PathNotAllowed), ..one },
            Flow { how: Decision::Refused(Reason::Quarantined), ..one },
        ];
        assert!(flows.add(one, 1));
        for other in others {
            assert!(flows.add(other, 1), "{other:?}");
        }
        assert!(!flows.add(one, 2));
        let mut counts = Vec::new();
        flows.take(|flow, calls, ()| counts.push((flow == one, calls)));
        counts.sort_unstable();
        assert_eq!(counts, [(false, 1), (false, 1), (false, 1), (false, 1), (false, 1), (false, 1), (true, 3)]);
    }

    #[test]
    fn what_was_taken_is_not_taken_again_and_idle_flows_are_forgotten() {
        let mut flows = Flows::new(100);
        flows.add(flow("wiki", "/m/Get"), 1);
        assert_eq!(taken(&mut flows).len(), 1);
        assert_eq!(taken(&mut flows).len(), 0);
        assert!(!flows.add(flow("wiki", "/m/Get"), 1), "it is still known");
        for _ in 0..=IDLE_TAKINGS {
            assert!(!flows.counts.is_empty());
            taken(&mut flows);
        }
        assert!(flows.counts.is_empty());
        assert!(flows.add(flow("wiki", "/m/Get"), 1), "it is new again");
    }

    #[test]
    fn beyond_the_bound_paths_are_counted_together_and_nothing_grows_for_ever() {
        let mut flows = Flows::new(4);
        for number in 0..100 {
            flows.add(flow("wiki", &format!("/m/{number}")), 1);
        }
        flows.add(flow("wiki", &"/".repeat(LONGEST_PATH + 1)), 1);
        let taken = taken(&mut flows);
        assert_eq!(taken.len(), 5, "{taken:?}");
        assert_eq!(taken[0], ("wiki".to_owned(), String::new(), 97));
        // Known callers with one path each, more than there is room for: told, not held.
        for number in 0..100 {
            flows.add(flow(&format!("caller-{number}"), "/m/Get"), 1);
        }
        assert_eq!(flows.counts.len(), 8);
        let mut counted = 0;
        let lost = flows.take(|_, calls, ()| counted += calls);
        assert_eq!(counted + lost, 100);
    }

    #[test]
    fn a_table_that_was_flooded_finds_room_again() {
        let mut flows = Flows::new(4);
        for number in 0..100 {
            flows.add(flow("wiki", &format!("/m/{number}")), 1);
        }
        taken(&mut flows);
        taken(&mut flows);
        assert!(flows.counts.is_empty(), "crowded: what is idle goes at once");
    }
}
