//! What a change changed, in words: one line for each service, Route, quarantine, instance and attestor.

use std::collections::BTreeMap;

use mesh_config::{Records, route_changes};
use tenon_proto::policy::v1::{Attestor, Endpoint, Quarantine, Residency, Route, Rule, ServicePolicy};

/// More than anybody reads.
pub(super) const MAX_LINES: usize = 100;
/// In characters: names of rules are long, and many.
const MAX_LINE: usize = 400;

/// The lines, at most 100; none when nothing differs that has a meaning.
pub(crate) fn between(old: &Records, new: &Records) -> Vec<String> {
    let mut lines = Vec::new();
    each(&old.allowlists, &new.allowlists, |name, change| {
        let line = match change {
            Change::Added(policy) => Some(added(name, policy)),
            Change::Removed => Some(format!("service {name} removed")),
            Change::Changed(old_policy, policy) => {
                changed(name, (old_policy, old.routes.get(name)), (policy, new.routes.get(name)))
            }
        };
        lines.extend(line);
    });
    lines.extend(route_changes(&old.routes, &new.routes));
    each(&old.quarantines, &new.quarantines, |name, change| {
        lines.push(match change {
            Change::Added(Quarantine { reason, .. }) if reason.is_empty() => format!("{name} quarantined"),
            Change::Added(Quarantine { reason, .. }) => format!("{name} quarantined: {reason}"),
            Change::Removed => format!("quarantine of {name} lifted"),
            Change::Changed(_, Quarantine { reason, .. }) => format!("quarantine of {name}: now {reason:?}"),
        });
    });
    each(&old.endpoints, &new.endpoints, |name, change: Change<'_, Endpoint>| {
        lines.extend(change.differs().map(|what| format!("instance {name} {what}")));
    });
    each(&old.attestors, &new.attestors, |name, change: Change<'_, Attestor>| {
        lines.extend(change.differs().map(|what| format!("attestor {name} {what}")));
    });
    let more = lines.len().saturating_sub(MAX_LINES);
    if more > 0 {
        lines.truncate(MAX_LINES - 1);
        lines.push(format!("and {} more", more + 1));
    }
    lines.into_iter().map(shortened).collect()
}

enum Change<'r, R> {
    Added(&'r R),
    Removed,
    /// It may be the same all the same.
    Changed(&'r R, &'r R),
}

impl<R: PartialEq> Change<'_, R> {
    fn differs(&self) -> Option<&'static str> {
        match self {
            Self::Added(_) => Some("added"),
            Self::Removed => Some("removed"),
            Self::Changed(old, new) => (old != new).then_some("changed"),
        }
    }
}

/// Every key of either, in order. Records that are the same are handed over only for what belongs to them beside.
fn each<'r, R>(old: &'r BTreeMap<String, R>, new: &'r BTreeMap<String, R>, mut note: impl FnMut(&str, Change<'r, R>))
where
    R: PartialEq,
{
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        match (old.get(key), new.get(key)) {
            (None, Some(new)) => note(key, Change::Added(new)),
            (Some(_), None) => note(key, Change::Removed),
            (Some(old), Some(new)) => note(key, Change::Changed(old, new)),
            (None, None) => {}
        }
    }
}

fn added(name: &str, policy: &ServicePolicy) -> String {
    match policy.rules.len() {
        0 => format!("service {name} added"),
        _ => format!("service {name} added, rules {}", names(policy.rules.iter())),
    }
}

/// `None` when nothing differs that has a meaning: where a rule stands in its file has none.
fn changed(
    name: &str,
    (old, old_route): (&ServicePolicy, Option<&Route>),
    (new, new_route): (&ServicePolicy, Option<&Route>),
) -> Option<String> {
    let mut what = Vec::new();
    what.extend(rules(&old.rules, &new.rules));
    if old.audit_allowlist != new.audit_allowlist {
        what.push(match (old.audit_allowlist.is_empty(), new.audit_allowlist.is_empty()) {
            (_, true) => "mode now enforce".to_owned(),
            (true, false) => format!("mode now audit (allowlist {})", new.audit_allowlist),
            (false, false) => format!("audited by allowlist {} now", new.audit_allowlist),
        });
    }
    if old.product != new.product {
        what.push(if new.product.is_empty() {
            "no product now".to_owned()
        } else {
            format!("product now {}", new.product)
        });
    }
    if old.residency != new.residency {
        what.push(format!("residency now {}", if new.residency() == Residency::Home { "home" } else { "any" }));
    }
    if old.originates != new.originates {
        what.push(format!("originates now {}", new.originates));
    }
    if old.external_clients != new.external_clients {
        what.push("clients outside of the mesh changed".to_owned());
    }
    let right = |right: fn(&Route) -> bool| (old_route.is_some_and(right), new_route.is_some_and(right));
    for (says, (before, after)) in [
        ("requestsTransactionTokens", right(|route| route.requests_transaction_tokens)),
        ("managesTenants", right(|route| route.manages_tenants)),
    ] {
        if before != after {
            what.push(format!("{says} now {after}"));
        }
    }
    match (&old.signature, &new.signature) {
        (Some(_), None) => what.push("no longer signed".to_owned()),
        (None, Some(_)) => what.push("now signed".to_owned()),
        (None, None) | (Some(_), Some(_)) => {}
    }
    (!what.is_empty()).then(|| format!("service {name}: {}", what.join("; ")))
}

fn rules(old: &[Rule], new: &[Rule]) -> Option<String> {
    let find = |rules: &[Rule], name: &str| rules.iter().find(|rule| rule.name == name).map(meaning);
    let mut what = Vec::new();
    let mut note = |rules: Vec<&Rule>, verb: &str| {
        if !rules.is_empty() {
            what.push(format!("{} {verb}", names(rules.into_iter())));
        }
    };
    note(
        new.iter().filter(|rule| find(old, &rule.name).is_some_and(|before| before != meaning(rule))).collect(),
        "changed",
    );
    note(new.iter().filter(|rule| find(old, &rule.name).is_none()).collect(), "added");
    note(old.iter().filter(|rule| find(new, &rule.name).is_none()).collect(), "removed");
    let order = |rules: &[Rule], other: &[Rule]| -> Vec<String> {
        rules.iter().filter(|rule| find(other, &rule.name).is_some()).map(|rule| rule.name.clone()).collect()
    };
    if order(old, new) != order(new, old) {
        what.push("in another order".to_owned());
    }
    (!what.is_empty()).then(|| format!("rules {}", what.join(", ")))
}

/// Whether two records of a service are the same to its sidecars: wherever their rules stand, and whenever they were signed,
/// by the same key.
pub(super) fn same(old: &ServicePolicy, new: &ServicePolicy) -> bool {
    let says = |policy: &ServicePolicy| {
        let rules = policy.rules.iter().map(meaning).collect();
        let key = policy.signature.as_ref().map(|signature| signature.key_id.clone());
        (key, ServicePolicy { rules, canary: None, signature: None, ..policy.clone() })
    };
    says(old) == says(new)
}

/// What a rule says, wherever it stands.
fn meaning(rule: &Rule) -> Rule {
    Rule { source: String::new(), ..rule.clone() }
}

fn names<'r>(rules: impl Iterator<Item = &'r Rule>) -> String {
    rules.map(|rule| rule.name.as_str()).collect::<Vec<_>>().join(" ")
}

fn shortened(line: String) -> String {
    // A reason may be of several lines.
    let line = line.replace(char::is_control, " ");
    match line.char_indices().nth(MAX_LINE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
