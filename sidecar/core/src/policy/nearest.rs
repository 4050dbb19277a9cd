//! Which rule a refused call came closest to. Runs for refusals alone; its work is bounded whatever the policy.

use std::fmt;

use super::Policy;
use crate::Peer;

/// Callers or paths that are named.
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
        if let Some(index) = self.index.first_on(path) {
            return self.describe(Missed::Caller, index);
        }
        let beside = self.index.beside(path);
        let is_among = self.index.is_among(caller);
        let of_caller = |index: &&u32| is_among(**index);
        if let Some(index) = beside.iter().find(of_caller) {
            return self.describe(Missed::Method, *index);
        }
        match beside.first() {
            Some(index) => self.describe(Missed::CallerAndMethod, *index),
            None => self.describe(Missed::Service, self.index.first_of(caller)?),
        }
    }

    fn describe(&self, missed: Missed, index: u32) -> Option<Nearest> {
        let rule = self.rule(index)?;
        let allows = match missed {
            Missed::Caller => self.index.callers_of(index).take(NAMED).map(str::to_owned).collect(),
            Missed::Method | Missed::CallerAndMethod | Missed::Service => {
                rule.paths().take(NAMED).map(str::to_owned).collect()
            }
        };
        Some(Nearest {
            index,
            allowlist: rule.allowlist().to_owned(),
            rule: rule.name().to_owned(),
            source: rule.source().to_owned(),
            missed,
            allows,
        })
    }
}
