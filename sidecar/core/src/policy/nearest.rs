//! Which rule a refused call came closest to. Runs for refusals alone; its work is bounded whatever the policy.

use std::fmt;

use super::{Policy, Rule, prefix};
use crate::Peer;

/// Rules of one gRPC service that are looked at, and callers or paths that are named, so that refusals stay cheap.
const LOOKED_AT: usize = 1_000;
const NAMED: usize = 5;

/// The rule that a refused call came closest to, for the callee's log and for `explain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Index into [`Policy::rules`].
    pub index: u32,
    /// The Allowlist it stands in.
    pub allowlist: String,
    /// Its name.
    pub rule: String,
    /// Where it stands: `media.yaml:12`. May be empty.
    pub source: String,
    /// What the call missed it by.
    pub missed: Missed,
    /// The first few values that the rule would have taken instead.
    pub allows: Vec<String>,
}

/// What a call missed a rule by, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Missed {
    /// It allows the path, to other callers.
    Caller,
    /// It allows the caller other methods of the same gRPC service.
    Method,
    /// It allows other callers other methods of the same gRPC service.
    CallerAndMethod,
    /// It allows the caller, on other gRPC services.
    Service,
}

impl Missed {
    /// For machines: `caller`, `method`, `caller_and_method`, `service`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Missed::Caller => "caller",
            Missed::Method => "method",
            Missed::CallerAndMethod => "caller_and_method",
            Missed::Service => "service",
        }
    }
}

/// `rule product-read of media (media.yaml:12) missed by caller: it allows issues, wiki`.
impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} of {}", self.rule, self.allowlist)?;
        if !self.source.is_empty() {
            write!(f, " ({})", self.source)?;
        }
        write!(f, " missed by {}: it allows {}", self.missed.as_str(), self.allows.join(", "))
    }
}

impl Policy {
    /// The rule that came closest to allowing `caller` the `path`; among equally close ones the first. `None` when no
    /// rule has anything in common with the call.
    pub fn nearest(&self, caller: Peer<'_>, path: &str) -> Option<Nearest> {
        let same_service = prefix(path)
            .and_then(|prefix| self.by_prefix.get(prefix))
            .into_iter()
            .flatten()
            .take(LOOKED_AT)
            .filter_map(|&index| Some((self.missed_by(self.rule(index)?, caller, path), index)))
            .min();
        let same_caller = self.first_of_caller.first(caller);
        let (missed, index) = same_service.or(same_caller.map(|index| (Missed::Service, index)))?;
        self.describe(missed, index)
    }

    fn describe(&self, missed: Missed, index: u32) -> Option<Nearest> {
        let rule = self.rule(index)?;
        let allows = match missed {
            Missed::Caller => &rule.callers,
            Missed::Method | Missed::CallerAndMethod | Missed::Service => &rule.paths,
        };
        Some(Nearest {
            index,
            allowlist: rule.allowlist.to_string(),
            rule: rule.name.to_string(),
            source: rule.source.to_string(),
            missed,
            allows: allows.iter().take(NAMED).map(ToString::to_string).collect(),
        })
    }

    /// For a rule that names something of the path's gRPC service and does not match the call.
    fn missed_by(&self, rule: &Rule, caller: Peer<'_>, path: &str) -> Missed {
        let caller_fits = rule.callers.iter().any(|allowed| match caller {
            Peer::Service(name) => &**allowed == "*" || (&**allowed == name && !self.outside.contains(name)),
            Peer::Outside(name) => &**allowed == name && self.outside.contains(name),
        });
        let path_fits = rule.paths.iter().any(|allowed| allows(allowed, path));
        match (caller_fits, path_fits) {
            (true, _) => Missed::Method,
            (false, true) => Missed::Caller,
            (false, false) => Missed::CallerAndMethod,
        }
    }
}

fn allows(allowed: &str, path: &str) -> bool {
    allowed == path || (allowed.ends_with("/*") && prefix(allowed).is_some() && prefix(allowed) == prefix(path))
}
