//! Which calls ever passed, in memory: what a rollout asks while it runs.

use std::{collections::HashMap, sync::Arc};

use tenon_proto::policy::v1::flow::Decision;

use super::counts::FlowKey;

/// Flows that are told apart, of all services and of one. Beyond, any path of the caller may have passed.
const ALL: usize = 500_000;
const OF_A_SERVICE: usize = 10_000;

/// Calls that passed: allowed, or let pass by audit mode.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// By the callee.
    services: HashMap<Arc<str>, HashMap<CallerAndPath, Times>>,
    all: usize,
}

type CallerAndPath = (Arc<str>, Arc<str>);

/// Unix seconds; of what was read from the store, the beginnings of the hours.
#[derive(Clone, Copy, Debug)]
struct Times {
    first: u64,
    last: u64,
}

impl Passed {
    /// Notes a flow of `at`, if it passed.
    pub fn note(&mut self, flow: &FlowKey, at: u64) {
        if matches!(flow.decision, Decision::Allowed | Decision::Audited) {
            let key = (Arc::clone(&flow.caller), Arc::clone(&flow.path));
            self.add(&flow.service, key, Times { first: at, last: at });
        }
    }

    /// Notes all that `other` knows.
    pub fn merge(&mut self, other: Self) {
        for (service, flows) in other.services {
            flows.into_iter().for_each(|(key, times)| self.add(&service, key, times));
        }
    }

    fn add(&mut self, service: &Arc<str>, mut key: CallerAndPath, Times { first, last }: Times) {
        let flows = self.services.entry(Arc::clone(service)).or_default();
        if !flows.contains_key(&key) && (flows.len() >= OF_A_SERVICE || self.all >= ALL) {
            key.1 = "".into();
        }
        if !flows.contains_key(&key) {
            // The callers that a service makes up must end somewhere as well.
            if flows.len() >= 2 * OF_A_SERVICE {
                return;
            }
            self.all += 1;
        }
        let times = flows.entry(key).or_insert(Times { first, last });
        times.first = times.first.min(first);
        times.last = times.last.max(last);
    }

    /// Whether such a call passed before `moment`, or may have.
    pub fn before(&self, caller: &str, service: &str, path: &str, moment: u64) -> bool {
        let Some(flows) = self.services.get(service) else { return false };
        let caller: Arc<str> = caller.into();
        [path, ""].into_iter().any(|path| {
            let times = flows.get(&(Arc::clone(&caller), path.into()));
            times.is_some_and(|times| times.first < moment)
        })
    }

    /// Forgets what did not pass since `moment`.
    pub fn forget(&mut self, moment: u64) {
        for flows in self.services.values_mut() {
            flows.retain(|_, times| times.last >= moment);
        }
        self.services.retain(|_, flows| !flows.is_empty());
        self.all = self.services.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(caller: &str, path: &str, decision: Decision) -> FlowKey {
        FlowKey { service: "media".into(), caller: caller.into(), path: path.into(), decision, reason: "".into() }
    }

    #[test]
    fn what_passed_is_known_from_the_moment_after() {
        let mut passed = Passed::default();
        passed.note(&flow("wiki", "/a/b", Decision::Allowed), 10);
        passed.note(&flow("wiki", "/a/b", Decision::Allowed), 20);
        passed.note(&flow("wiki", "/a/audited", Decision::Audited), 10);
        passed.note(&flow("wiki", "/a/c", Decision::Refused), 10);
        for (path, moment, known) in [
            ("/a/b", 10, false),
            ("/a/b", 11, true),
            ("/a/audited", 11, true),
            ("/a/c", 99, false),
            ("/a/d", 99, false),
        ] {
            assert_eq!(passed.before("wiki", "media", path, moment), known, "{path} before {moment}");
        }
        assert!(!passed.before("issues", "media", "/a/b", 11) && !passed.before("wiki", "wiki", "/a/b", 11));
        passed.forget(15);
        assert!(passed.before("wiki", "media", "/a/b", 11), "it passed at 20 as well");
        assert!(!passed.before("wiki", "media", "/a/audited", 11));
        assert_eq!(passed.all, 1);
    }

    #[test]
    fn beyond_what_is_told_apart_any_path_of_the_caller_may_have_passed() {
        let mut passed = Passed::default();
        for number in 0..OF_A_SERVICE {
            passed.note(&flow("scanner", &format!("/a/{number}"), Decision::Allowed), 10);
        }
        assert!(!passed.before("wiki", "media", "/a/b", 99));
        passed.note(&flow("wiki", "/a/c", Decision::Allowed), 10);
        assert!(passed.before("wiki", "media", "/a/b", 99) && !passed.before("issues", "media", "/a/b", 99));
        for number in 0..3 * OF_A_SERVICE {
            passed.note(&flow(&format!("c{number}"), "/a/b", Decision::Allowed), 10);
        }
        assert_eq!(passed.all, 2 * OF_A_SERVICE);
    }
}
