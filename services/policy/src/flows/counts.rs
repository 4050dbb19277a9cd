//! The flows of one service within one hour, and how many of them are told apart. Nothing here is trusted to be few: paths
//! and callers come from calls that anybody may make.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tenon_proto::policy::v1::{Flow, flow::Decision};

/// Flows that are told apart.
const FLOWS: usize = 4000;
/// Of these, such as were refused: their paths are whatever somebody asked for, and must not push out those that pass.
const REFUSED: usize = FLOWS / 2;
/// Of these, such as are between the same two services and pass.
const OF_A_PAIR: usize = 1000;
/// The same of those that were refused.
const REFUSED_OF_A_PAIR: usize = OF_A_PAIR / 2;
/// Bytes of all names, paths and reasons.
const TEXT: usize = 512 << 10;
/// Flows beside [`FLOWS`] of which the path is no longer told.
const WITHOUT_PATH: usize = 1000;

/// What a flow is, without how often.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FlowKey {
    pub service: Arc<str>,
    pub caller: Arc<str>,
    /// Empty: more paths than are told apart, together.
    pub path: Arc<str>,
    pub decision: Decision,
    pub reason: Arc<str>,
}

impl FlowKey {
    pub fn of(flow: &Flow) -> Self {
        Self {
            service: flow.service.as_str().into(),
            caller: flow.caller.as_str().into(),
            path: flow.path.as_str().into(),
            decision: flow.decision(),
            reason: flow.reason.as_str().into(),
        }
    }

    pub fn into_flow(self, count: u64) -> Flow {
        Flow {
            caller: self.caller.as_ref().to_owned(),
            service: self.service.as_ref().to_owned(),
            path: self.path.as_ref().to_owned(),
            decision: self.decision.into(),
            reason: self.reason.as_ref().to_owned(),
            count,
        }
    }

    /// The same of any path.
    #[must_use]
    pub fn of_any_path(self) -> Self {
        Self { path: "".into(), ..self }
    }

    /// The same decision on calls of anybody, to `service` if that is whose it is.
    #[must_use]
    pub fn of_anybody(self, service: &str) -> Self {
        let none: Arc<str> = "".into();
        let service = if *self.service == *service { self.service } else { Arc::clone(&none) };
        Self { service, caller: Arc::clone(&none), path: Arc::clone(&none), decision: self.decision, reason: none }
    }

    fn is_refused(&self) -> bool {
        self.decision == Decision::Refused
    }

    fn pair(&self) -> (Arc<str>, Arc<str>, bool) {
        (Arc::clone(&self.caller), Arc::clone(&self.service), self.is_refused())
    }

    /// Bytes of all its texts.
    pub fn text(&self) -> usize {
        self.service.len() + self.caller.len() + self.path.len() + self.reason.len()
    }
}

/// How often each flow was reported by the sidecars of one service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    flows: BTreeMap<FlowKey, u64>,
    refused: usize,
    /// Caller, callee, and whether they were refused → flows between them.
    pairs: HashMap<(Arc<str>, Arc<str>, bool), usize>,
    text: usize,
}

impl Counts {
    /// Counts a flow that a sidecar of `reporter` reported: by its name where there is room for one more, else with
    /// others. No count is lost.
    pub fn add(&mut self, reporter: &str, key: FlowKey, count: u64) {
        if self.counted(&key, count) {
            return;
        }
        if self.has_room(&key) {
            return self.insert(key, count);
        }
        let key = key.of_any_path();
        if self.counted(&key, count) {
            return;
        }
        if self.flows.len() < FLOWS + WITHOUT_PATH {
            return self.insert(key, count);
        }
        let key = key.of_anybody(reporter);
        if !self.counted(&key, count) {
            self.insert(key, count);
        }
    }

    /// In the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, u64)> {
        self.flows.iter().map(|(key, count)| (key, *count))
    }

    /// What this takes in the store, at most and roughly.
    pub fn bytes(&self) -> usize {
        self.text + self.flows.len() * 24
    }

    /// As it was stored: nothing is judged anew.
    pub(super) fn insert(&mut self, key: FlowKey, count: u64) {
        self.refused += usize::from(key.is_refused());
        *self.pairs.entry(key.pair()).or_default() += 1;
        self.text += key.text();
        self.flows.insert(key, count);
    }

    fn counted(&mut self, key: &FlowKey, count: u64) -> bool {
        let Some(held) = self.flows.get_mut(key) else { return false };
        *held = held.saturating_add(count);
        true
    }

    fn has_room(&self, key: &FlowKey) -> bool {
        let of_a_pair = if key.is_refused() { REFUSED_OF_A_PAIR } else { OF_A_PAIR };
        self.flows.len() < FLOWS
            && (!key.is_refused() || self.refused < REFUSED)
            && self.pairs.get(&key.pair()).is_none_or(|flows| *flows < of_a_pair)
            && self.text + key.text() <= TEXT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(caller: &str, path: &str, decision: Decision) -> FlowKey {
        let reason = if decision == Decision::Refused { "PATH_NOT_ALLOWED" } else { "" };
        FlowKey { service: "media".into(), caller: caller.into(), path: path.into(), decision, reason: reason.into() }
    }

    fn total(counts: &Counts) -> u64 {
        counts.iter().map(|(_, count)| count).sum()
    }

    #[test]
    fn what_a_caller_makes_up_takes_no_room_of_others_and_every_call_is_counted() {
        let mut counts = Counts::default();
        for number in 0..5000 {
            counts.add("media", key("scanner", &format!("/a/{number}"), Decision::Refused), 2);
        }
        assert_eq!((counts.iter().count(), total(&counts)), (REFUSED_OF_A_PAIR + 1, 10_000));
        let folded = counts.iter().find(|(key, _)| key.path.is_empty()).unwrap();
        assert_eq!((&*folded.0.caller, folded.1), ("scanner", 9000));
        for caller in 0..5 {
            for number in 0..1000 {
                counts.add("media", key(&format!("scanner{caller}"), &format!("/a/{number}"), Decision::Refused), 1);
            }
        }
        let told = counts.iter().filter(|(key, _)| key.is_refused() && !key.path.is_empty()).count();
        assert!(told <= REFUSED && told > REFUSED - 10, "{told}");
        counts.add("media", key("scanner", "/media.v1.Media/Get", Decision::Allowed), 7);
        assert!(counts.iter().any(|(key, count)| &*key.path == "/media.v1.Media/Get" && count == 7));
        assert_eq!(total(&counts), 15_007);
    }

    #[test]
    fn callers_without_end_end_up_as_nobody() {
        let mut counts = Counts::default();
        for number in 0..10_000 {
            counts.add("media", key(&format!("c{number}"), "/a/b", Decision::Allowed), 1);
        }
        assert_eq!((counts.iter().count(), total(&counts)), (FLOWS + WITHOUT_PATH + 1, 10_000));
        let nobody = counts.iter().find(|(key, _)| key.caller.is_empty()).unwrap();
        assert_eq!((&*nobody.0.service, nobody.1), ("media", 5000));
    }

    #[test]
    fn long_paths_take_a_bounded_room() {
        let mut counts = Counts::default();
        for number in 0..4000 {
            let (caller, path) = (format!("c{}", number % 10), format!("/a/{number}{}", "x".repeat(500)));
            counts.add("media", key(&caller, &path, Decision::Allowed), 1);
        }
        assert!(counts.bytes() < 700 << 10, "{}", counts.bytes());
        assert_eq!(total(&counts), 4000);
    }
}
