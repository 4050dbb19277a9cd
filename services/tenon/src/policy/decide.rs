//! Recorded flows decided by a policy, as far as that can be done without a tenant: which rule, or why none.

use std::collections::{BTreeMap, BTreeSet};

use sidecar_core::{
    Peer,
    policy::{Match, Policy},
};
use tenon_proto::policy::v1::{DescribeResponse, Quarantine, Route, Rule, ServicePolicy, flow::Decision};

use super::flows::Record;
use crate::failure::Failure;

/// A policy that is ready to decide.
pub(super) struct Decider<'r> {
    services: BTreeMap<&'r str, (&'r ServicePolicy, Policy)>,
    defined: BTreeSet<&'r str>,
    quarantined: BTreeSet<&'r str>,
}

/// What a policy says of a flow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Decided<'r> {
    /// This rule decides the rest: tenant, proof and rate.
    Rule(&'r Rule),
    /// No rule does; this Allowlist's audit mode lets it pass.
    Audit(&'r str),
    Refused(&'static str),
}

impl Decided<'_> {
    pub fn passes(self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// `rule read of allowlist media (media.yaml:7)`.
    pub fn words(self) -> String {
        match self {
            Self::Rule(rule) if rule.source.is_empty() => format!("rule {} of allowlist {}", rule.name, rule.allowlist),
            Self::Rule(rule) => format!("rule {} of allowlist {} ({})", rule.name, rule.allowlist, rule.source),
            Self::Audit(allowlist) => format!("audit mode of allowlist {allowlist}"),
            Self::Refused(reason) => reason.to_owned(),
        }
    }
}

impl<'r> Decider<'r> {
    /// # Errors
    /// A record that this version does not understand.
    pub fn new(
        services: impl IntoIterator<Item = &'r ServicePolicy>,
        routes: impl IntoIterator<Item = &'r Route>,
        quarantines: impl IntoIterator<Item = &'r Quarantine>,
    ) -> Result<Self, Failure> {
        let compile = |record: &'r ServicePolicy| Ok((record.service.as_str(), (record, Policy::try_from(record)?)));
        let services: Result<_, String> = services.into_iter().map(compile).collect();
        Ok(Self {
            services: services.map_err(|problem| {
                Failure::new(format!("the policy cannot be used: {problem}"))
                    .next("`tenon policy status` shows the policy in force; apply one that this version knows")
            })?,
            defined: routes.into_iter().map(|route| route.service.as_str()).collect(),
            quarantined: quarantines.into_iter().map(|quarantine| quarantine.service.as_str()).collect(),
        })
    }

    /// # Errors
    /// As [`Decider::new`].
    pub fn in_force(described: &'r DescribeResponse) -> Result<Self, Failure> {
        Self::new(&described.services, &described.routes, &described.quarantines)
    }

    pub fn record(&self, service: &str) -> Option<&'r ServicePolicy> {
        self.services.get(service).map(|(record, _)| *record)
    }

    pub fn decide(&self, call: &Call) -> Decided<'r> {
        let Call { caller, service, path } = call;
        if !self.defined.contains(service.as_str()) {
            return Decided::Refused("SERVICE_UNKNOWN");
        }
        if self.quarantined.contains(caller.as_str()) || self.quarantined.contains(service.as_str()) {
            return Decided::Refused("QUARANTINED");
        }
        let Some((record, policy)) = self.services.get(service.as_str()) else { return NOT_ALLOWED };
        let peer = match self.defined.contains(caller.as_str()) {
            true => Peer::Service(caller),
            false if policy.knows_outside(caller) => Peer::Outside(caller),
            false => return NOT_ALLOWED,
        };
        match policy.authorize(peer, path) {
            Match::Rule(index, _) => {
                let rule = usize::try_from(index).ok().and_then(|index| record.rules.get(index));
                rule.map_or(NOT_ALLOWED, Decided::Rule)
            }
            // Audit mode is for services of the mesh alone.
            Match::Nothing => match (record.audit_allowlist.as_str(), peer) {
                ("", _) | (_, Peer::Outside(_)) => NOT_ALLOWED,
                (allowlist, Peer::Service(_)) => Decided::Audit(allowlist),
            },
        }
    }
}

const NOT_ALLOWED: Decided<'static> = Decided::Refused("PATH_NOT_ALLOWED");

/// Who called what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    pub caller: String,
    pub service: String,
    pub path: String,
}

/// What became of the calls, over the whole record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Calls {
    pub allowed: u64,
    /// By reason.
    pub refused: BTreeMap<String, u64>,
    /// What audit mode let pass, by the reason for which it would be refused.
    pub audited: BTreeMap<String, u64>,
    /// Unix seconds of the hour of the last one.
    pub last: i64,
}

impl Calls {
    pub fn passed(&self) -> u64 {
        self.allowed + self.audited.values().sum::<u64>()
    }

    pub fn all(&self) -> u64 {
        self.passed() + self.refused.values().sum::<u64>()
    }
}

/// The record by call; and how many calls went to paths that it does not tell apart.
pub(super) fn calls(record: &Record) -> (BTreeMap<Call, Calls>, u64) {
    let (mut by_call, mut together) = (BTreeMap::<Call, Calls>::new(), 0);
    for total in &record.flows {
        let Some(flow) = &total.flow else { continue };
        if flow.path.is_empty() {
            together += flow.count;
            continue;
        }
        let call = Call { caller: flow.caller.clone(), service: flow.service.clone(), path: flow.path.clone() };
        let calls = by_call.entry(call).or_default();
        match flow.decision() {
            Decision::Allowed => calls.allowed += flow.count,
            Decision::Audited => *calls.audited.entry(flow.reason.clone()).or_default() += flow.count,
            Decision::Unspecified | Decision::Refused => {
                *calls.refused.entry(flow.reason.clone()).or_default() += flow.count;
            }
        }
        calls.last = calls.last.max(total.last_unix_seconds);
    }
    (by_call, together)
}
