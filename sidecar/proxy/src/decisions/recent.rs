//! The last calls that were refused, or that audit mode let pass: for `tenon explain`.

use std::{collections::VecDeque, sync::Arc};

use ahash::RandomState;
use sidecar_core::{Position, Refusal, inbound};
use tenon_proto::policy::v1::RecentDecision;

use super::Decision;
use crate::metrics::Direction;

/// The longest of each text that is kept; what is longer is cut, and ends in an ellipsis.
const LONGEST_NAME: usize = 253;
const LONGEST_TEXT: usize = 1_024;
/// What one decision takes besides its texts: itself, its place, and what the allocator adds.
const OVERHEAD: usize = size_of::<Remembered>() + 160;

/// What was decided from: the rule, and the revision of the policy that it is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grounds {
    /// The Allowlist of the rule that decided; or that whose audit mode let pass what no rule matches.
    pub allowlist: Box<str>,
    /// The rule that decided, also when its conditions then refused; empty when none matched.
    pub rule: Box<str>,
    /// Where it stands.
    pub source: Box<str>,
    /// Of the policy.
    pub policy: Option<Position>,
}

impl Grounds {
    /// Of what `state` refused, or let pass in audit mode.
    pub fn of(state: &inbound::State, refusal: &Refusal, audited: bool) -> Box<Self> {
        let policy = state.policy.as_deref();
        let rule = policy.zip(refusal.rule).and_then(|(policy, index)| policy.rule(index));
        let in_audit_mode = policy.filter(|_| audited && rule.is_none()).and_then(|policy| policy.audit_allowlist());
        Box::new(Self {
            allowlist: rule.map_or(in_audit_mode.unwrap_or_default(), |rule| rule.allowlist()).into(),
            rule: rule.map_or("", |rule| rule.name()).into(),
            source: rule.map_or("", |rule| rule.source()).into(),
            policy: state.policy_position,
        })
    }
}

/// One call that was refused, or that audit mode let pass. Nothing of its token stands in it.
#[derive(Debug)]
pub struct Remembered {
    /// Unix time in milliseconds.
    pub at_unix_ms: i64,
    /// Of the call.
    pub direction: Direction,
    /// What was decided.
    pub decision: Decision,
    /// `x-mesh-request-id`.
    pub request_id: Box<str>,
    /// Who called.
    pub caller: Arc<str>,
    /// Who was called.
    pub service: Box<str>,
    /// Without query.
    pub path: Box<str>,
    /// As the call named it.
    pub tenant: Box<str>,
    /// The refusal's, for people.
    pub message: Box<str>,
    /// Where no rule matched: the nearest one, in words.
    pub nearest: Box<str>,
    /// What it was decided from.
    pub grounds: Grounds,
    /// The tenant replica's position.
    pub tenants: Option<Position>,
}

impl Remembered {
    /// Cuts every text that a caller can make long.
    fn bounded(mut self) -> Self {
        for text in [&mut self.request_id, &mut self.service, &mut self.tenant] {
            cut(text, LONGEST_NAME);
        }
        for text in [&mut self.path, &mut self.message, &mut self.nearest] {
            cut(text, LONGEST_TEXT);
        }
        self
    }

    fn bytes(&self) -> usize {
        let Grounds { allowlist, rule, source, policy: _ } = &self.grounds;
        let texts = [
            &self.request_id,
            &self.service,
            &self.path,
            &self.tenant,
            &self.message,
            &self.nearest,
            allowlist,
            rule,
            source,
        ];
        OVERHEAD + texts.iter().map(|text| text.len()).sum::<usize>()
    }

    /// As the policy service is told; the name of the instance is for the caller to add.
    pub fn to_proto(&self) -> RecentDecision {
        let position = |position: Option<Position>| position.map(|held| held.to_string()).unwrap_or_default();
        RecentDecision {
            request_id: self.request_id.to_string(),
            at_unix_ms: self.at_unix_ms,
            instance: String::new(),
            direction: self.direction.as_str().to_owned(),
            caller: self.caller.to_string(),
            service: self.service.to_string(),
            path: self.path.to_string(),
            tenant: self.tenant.to_string(),
            decision: self.decision.to_proto().into(),
            reason: self.decision.reason().to_owned(),
            message: self.message.to_string(),
            allowlist: self.grounds.allowlist.to_string(),
            rule: self.grounds.rule.to_string(),
            source: self.grounds.source.to_string(),
            nearest: self.nearest.to_string(),
            policy_revision: position(self.grounds.policy),
            tenant_revision: position(self.tenants),
        }
    }
}

fn cut(text: &mut Box<str>, longest: usize) {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        *text = format!("{}…", &text[..end]).into();
    }
}

/// Decisions in the order in which they were made, the newest of them.
#[derive(Debug)]
pub struct Recent {
    /// Each behind the hash of its request id: looking for one reads little memory.
    decisions: VecDeque<(u64, Box<Remembered>)>,
    hasher: RandomState,
    bytes: usize,
    most: usize,
    most_bytes: usize,
    /// Of all that were ever remembered: numbers the last one.
    pushed: u64,
}

/// Which decisions are looked for; what is empty says nothing.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Of this request.
    pub request_id: String,
    /// With this reason.
    pub reason: String,
    /// That named this tenant.
    pub tenant: String,
    /// Of this caller.
    pub caller: String,
}

impl Wanted {
    fn is(&self, decision: &Remembered) -> bool {
        let same = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        same(&self.request_id, &decision.request_id)
            && same(&self.reason, decision.decision.reason())
            && same(&self.tenant, &decision.tenant)
            && same(&self.caller, &decision.caller)
    }
}

impl Recent {
    /// Keeps `most` decisions at most, and `most_bytes` of them.
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { decisions: VecDeque::new(), hasher: RandomState::new(), bytes: 0, most, most_bytes, pushed: 0 }
    }

    /// Remembers this one, and forgets the oldest for it.
    pub fn push(&mut self, decision: Remembered) {
        let decision = decision.bounded();
        self.bytes += decision.bytes();
        self.pushed += 1;
        self.decisions.push_back((self.hasher.hash_one(&*decision.request_id), Box::new(decision)));
        while self.decisions.len() > self.most || self.bytes > self.most_bytes {
            let Some((_, oldest)) = self.decisions.pop_front() else { break };
            self.bytes -= oldest.bytes();
        }
    }

    /// The latest decision on this request.
    pub fn find(&self, request_id: &str) -> Option<&Remembered> {
        let hash = self.hasher.hash_one(request_id);
        let mut latest_first = self.decisions.iter().rev();
        let found = latest_first.find(|(other, decision)| *other == hash && *decision.request_id == *request_id);
        found.map(|(_, decision)| &**decision)
    }

    /// Looks at so many decisions at most, from the newest that is older than the one of the number `before`, and hands out
    /// those that are wanted. Comes back with what is `before` the next time; `None`: these were the oldest.
    pub fn look(
        &self,
        wanted: &Wanted,
        before: Option<u64>,
        at_once: usize,
        found: &mut Vec<RecentDecision>,
    ) -> Option<u64> {
        let newer = before.map_or(0, |before| self.pushed.saturating_sub(before - 1));
        let newer = usize::try_from(newer).unwrap_or(usize::MAX);
        let looked = self.decisions.iter().rev().skip(newer).take(at_once);
        found.extend(looked.filter(|(_, decision)| wanted.is(decision)).map(|(_, decision)| decision.to_proto()));
        let seen = newer.saturating_add(at_once);
        (seen < self.decisions.len()).then(|| self.pushed - seen as u64 + 1)
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.decisions.len()
    }
}

#[cfg(test)]
mod tests {
    use sidecar_core::Reason;

    use super::*;

    fn decision(request_id: &str) -> Remembered {
        Remembered {
            at_unix_ms: 1,
            direction: Direction::Inbound,
            decision: Decision::Refused(Reason::PathNotAllowed),
            request_id: request_id.into(),
            caller: "wiki".into(),
            service: "media".into(),
            path: "/media.v1.Media/Erase".into(),
            tenant: "acme".into(),
            message: "no rule of service media allows wiki the path".into(),
            nearest: "".into(),
            grounds: Grounds::default(),
            tenants: None,
        }
    }

    #[test]
    fn the_newest_stay_by_count_and_the_latest_of_one_request_is_found() {
        let mut recent = Recent::new(3, usize::MAX);
        for id in ["a", "b", "c", "d"] {
            recent.push(decision(id));
        }
        assert_eq!(recent.len(), 3);
        assert!(recent.find("a").is_none());
        assert_eq!(&*recent.find("b").unwrap().request_id, "b");
        recent.push(Remembered { at_unix_ms: 2, ..decision("d") });
        assert_eq!(recent.find("d").unwrap().at_unix_ms, 2);
    }

    #[test]
    fn the_newest_stay_by_bytes_and_what_callers_write_is_cut() {
        let long = "é".repeat(50_000);
        let flood = || Remembered { path: (*long).into(), tenant: (*long).into(), ..decision("x") };
        let mut recent = Recent::new(usize::MAX, 100_000);
        for _ in 0..1_000 {
            recent.push(flood());
        }
        assert!((20..100).contains(&recent.len()), "{}", recent.len());
        assert!(recent.bytes <= recent.most_bytes);
        let held: usize = recent.decisions.iter().map(|(_, decision)| decision.bytes()).sum();
        assert_eq!(recent.bytes, held, "what is forgotten is no longer counted");
        let path = &recent.find("x").unwrap().path;
        assert!(path.len() < LONGEST_TEXT + 4 && path.ends_with("é…"), "{}", path.len());
    }

    #[test]
    fn all_are_looked_at_newest_first_and_each_once_also_while_others_come() {
        let mut recent = Recent::new(300, usize::MAX);
        for number in 0..500 {
            recent.push(decision(&format!("{number}")));
        }
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            before = recent.look(&Wanted::default(), before, 64, &mut found);
            if before.is_none() {
                break;
            }
            recent.push(decision("late"));
        }
        let ids: Vec<_> = found.iter().map(|decision| decision.request_id.clone()).collect();
        // Each that came late has pushed out the oldest.
        let expected: Vec<_> = (204..500).rev().map(|number| number.to_string()).collect();
        assert_eq!(ids, expected);
    }

    #[test]
    fn only_what_is_wanted_is_found() {
        let mut recent = Recent::new(10, usize::MAX);
        recent.push(decision("a"));
        recent.push(Remembered { caller: "issues".into(), tenant: "".into(), ..decision("b") });
        let find = |wanted: Wanted| {
            let mut found = Vec::new();
            recent.look(&wanted, None, 10, &mut found);
            found.into_iter().map(|decision| decision.request_id).collect::<Vec<_>>()
        };
        assert_eq!(find(Wanted::default()), ["b", "a"]);
        assert_eq!(find(Wanted { caller: "wiki".into(), ..Wanted::default() }), ["a"]);
        assert_eq!(find(Wanted { tenant: "acme".into(), caller: "issues".into(), ..Wanted::default() }), [""; 0]);
        assert_eq!(find(Wanted { request_id: "b".into(), ..Wanted::default() }), ["b"]);
        assert_eq!(find(Wanted { reason: "TENANT_STALE".into(), ..Wanted::default() }), [""; 0]);
    }

    #[test]
    fn one_decision_that_is_too_large_leaves_nothing_and_harms_nothing() {
        let mut recent = Recent::new(10, 10);
        recent.push(decision("a"));
        assert_eq!((recent.len(), recent.bytes), (0, 0));
    }
}
