//! How often who called what, and what was decided: bounded, whatever paths callers invent.

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
pub struct Flow<'a> {
    /// Who called.
    pub caller: &'a str,
    /// Who was called.
    pub service: &'a str,
    /// Empty: more paths than are told apart.
    pub path: &'a str,
    /// What was decided.
    pub decision: Decision,
}

impl<'a> Flow<'a> {
    fn on(self, path: &'a str) -> Self {
        Self { path, ..self }
    }
}

/// The same, held.
#[derive(Debug)]
struct Held {
    caller: Box<str>,
    service: Box<str>,
    path: Box<str>,
    decision: Decision,
}

impl Held {
    fn flow(&self) -> Flow<'_> {
        Flow { caller: &self.caller, service: &self.service, path: &self.path, decision: self.decision }
    }
}

impl From<Flow<'_>> for Held {
    fn from(flow: Flow<'_>) -> Self {
        let Flow { caller, service, path, decision } = flow;
        Self { caller: caller.into(), service: service.into(), path: path.into(), decision }
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.flow() == other.flow()
    }
}

impl Eq for Held {}

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.flow().hash(state);
    }
}

impl Equivalent<Held> for Flow<'_> {
    fn equivalent(&self, held: &Held) -> bool {
        *self == held.flow()
    }
}

#[derive(Debug, Default)]
struct Count {
    calls: u64,
    /// Takings since the last call.
    idle: u8,
}

/// Counts flows. Counting one that is known allocates nothing.
#[derive(Debug)]
pub struct Flows {
    counts: HashMap<Held, Count, RandomState>,
    /// So many are told apart.
    most: usize,
    /// Calls that fit nowhere.
    lost: u64,
}

impl Flows {
    /// Tells `most` flows apart. What is beyond is counted by caller, service and decision alone; so many of these again.
    pub fn new(most: usize) -> Self {
        Self { counts: HashMap::default(), most, lost: 0 }
    }

    /// Counts `calls` of this flow. Says whether it was not known.
    pub fn add(&mut self, flow: Flow<'_>, calls: u64) -> bool {
        let flow = if flow.path.len() > LONGEST_PATH { flow.on("") } else { flow };
        if self.increase(flow, calls) {
            return false;
        }
        let together = self.counts.len() >= self.most && !flow.path.is_empty();
        let flow = if together { flow.on("") } else { flow };
        if together && self.increase(flow, calls) {
            return false;
        }
        if self.counts.len() >= 2 * self.most {
            self.lost = self.lost.saturating_add(calls);
            return false;
        }
        self.counts.insert(flow.into(), Count { calls, idle: 0 });
        true
    }

    fn increase(&mut self, flow: Flow<'_>, calls: u64) -> bool {
        let Some(count) = self.counts.get_mut(&flow) else { return false };
        count.calls = count.calls.saturating_add(calls);
        count.idle = 0;
        true
    }

    /// Calls that fitted nowhere.
    pub const fn beyond(&self) -> u64 {
        self.lost
    }

    /// What is counted, and stays so.
    pub fn each(&self, mut each: impl FnMut(Flow<'_>, u64)) {
        self.counts.iter().for_each(|(flow, count)| each(flow.flow(), count.calls));
    }

    /// Hands out what was counted since the last time, and the calls that fitted nowhere. Flows stay known for a while.
    pub fn take(&mut self, mut each: impl FnMut(Flow<'_>, u64)) -> u64 {
        let crowded = self.counts.len() > self.most / 2;
        self.counts.retain(|flow, count| {
            if count.calls == 0 {
                count.idle += 1;
                return !crowded && count.idle < IDLE_TAKINGS;
            }
            each(flow.flow(), std::mem::take(&mut count.calls));
            true
        });
        std::mem::take(&mut self.lost)
    }
}

#[cfg(test)]
mod tests {
    use sidecar_core::Reason;

    use super::*;

    fn flow<'a>(caller: &'a str, path: &'a str) -> Flow<'a> {
        Flow { caller, service: "media", path, decision: Decision::Refused(Reason::PathNotAllowed) }
    }

    fn taken(flows: &mut Flows) -> Vec<(String, String, u64)> {
        let mut taken = Vec::new();
        flows.take(|flow, calls| taken.push((flow.caller.to_owned(), flow.path.to_owned(), calls)));
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
            Flow { decision: Decision::Allowed, ..one },
            Flow { decision: Decision::Audited(Reason::PathNotAllowed), ..one },
            Flow { decision: Decision::Refused(Reason::Quarantined), ..one },
        ];
        assert!(flows.add(one, 1));
        for other in others {
            assert!(flows.add(other, 1), "{other:?}");
        }
        assert!(!flows.add(one, 2));
        let mut counts = Vec::new();
        flows.take(|flow, calls| counts.push((flow == one, calls)));
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
        let lost = flows.take(|_, calls| counted += calls);
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
