//! What the tests of a folder leave untouched.

use std::collections::{BTreeMap, BTreeSet};

use mesh_config::Mesh;
use serde::Serialize;

use super::Outcome;

/// Rules that decided a call of some test, and their paths that one matched.
#[derive(Debug, Serialize)]
pub struct Coverage {
    rules: Share<UntouchedRule>,
    paths: Share<UntouchedPath>,
}

/// How much of something is touched.
#[derive(Debug, Serialize)]
pub struct Share<T> {
    total: usize,
    touched: usize,
    /// Rounded down; 100 of nothing.
    percent: usize,
    untouched: Vec<T>,
}

/// A rule that decided no call.
#[derive(Debug, Serialize)]
pub struct UntouchedRule {
    service: String,
    allowlist: String,
    rule: String,
    source: String,
}

/// A path of a rule that no call matched which that rule decided.
#[derive(Debug, Serialize)]
pub struct UntouchedPath {
    service: String,
    allowlist: String,
    rule: String,
    path: String,
    source: String,
}

impl<T> Share<T> {
    fn new(total: usize, untouched: Vec<T>) -> Self {
        let touched = total.saturating_sub(untouched.len());
        Self { total, touched, percent: (100 * touched).checked_div(total).unwrap_or(100), untouched }
    }
}

impl Coverage {
    /// Of these calls. A rule is touched also by a call that its conditions refuse.
    pub fn of(mesh: &Mesh, outcomes: &[Outcome]) -> Self {
        // Allowlist and rule → the paths that calls had.
        let mut touched: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for outcome in outcomes {
            if let Some(rule) = &outcome.rule {
                touched.entry(rule).or_default().insert(&outcome.path);
            }
        }
        let (mut rules, mut paths) = (Vec::new(), Vec::new());
        let (mut all_rules, mut all_paths) = (0, 0);
        let nothing = BTreeSet::new();
        for allowlist in mesh.allowlists() {
            for rule in &allowlist.rules {
                all_rules += 1;
                all_paths += rule.paths.len();
                let called = touched.get(format!("{}/{}", allowlist.name, rule.name).as_str());
                let (service, allowlist) = (allowlist.service.to_string(), allowlist.name.to_string());
                if called.is_none() {
                    rules.push(UntouchedRule {
                        service: service.clone(),
                        allowlist: allowlist.clone(),
                        rule: rule.name.to_string(),
                        source: rule.source.clone(),
                    });
                }
                let called = called.unwrap_or(&nothing);
                let untouched = rule.paths.iter().filter(|path| !called.iter().any(|called| matches(path, called)));
                paths.extend(untouched.map(|path| UntouchedPath {
                    service: service.clone(),
                    allowlist: allowlist.clone(),
                    rule: rule.name.to_string(),
                    path: path.clone(),
                    source: rule.source.clone(),
                }));
            }
        }
        Self { rules: Share::new(all_rules, rules), paths: Share::new(all_paths, paths) }
    }

    /// The lower one of the two shares.
    pub fn percent(&self) -> usize {
        self.rules.percent.min(self.paths.percent)
    }

    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let Self { rules, paths } = self;
        let mut lines = vec![format!(
            "coverage: {} of {} rules ({} %), {} of {} paths ({} %)",
            rules.touched, rules.total, rules.percent, paths.touched, paths.total, paths.percent
        )];
        lines.extend(rules.untouched.iter().map(|UntouchedRule { service, rule, source, .. }| {
            format!("  {source}: no call is decided by rule {rule} of {service}")
        }));
        // The paths of a rule that is not touched at all are no news.
        let told: BTreeSet<&str> = rules.untouched.iter().map(|rule| rule.source.as_str()).collect();
        let more = paths.untouched.iter().filter(|path| !told.contains(path.source.as_str()));
        lines.extend(more.map(|UntouchedPath { service, rule, path, source, .. }| {
            format!("  {source}: no call of {path} is decided by rule {rule} of {service}")
        }));
        lines
    }
}

/// Whether a rule's path takes the path of a call.
fn matches(path: &str, called: &str) -> bool {
    path == called
        || path
            .strip_suffix('*')
            .filter(|prefix| prefix.ends_with('/'))
            .and_then(|prefix| called.strip_prefix(prefix))
            .is_some_and(|method| !method.is_empty() && !method.contains('/'))
}
