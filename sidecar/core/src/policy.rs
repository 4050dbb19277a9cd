//! The allowlist of one service, compiled so that a decision costs the same at any number of rules.
//!
//! Rules only allow. The first rule, in the order of the record, that matches caller and path decides everything else
//! (DESIGN §6).

mod conditions;
mod nearest;
mod rule;

use ahash::{AHashMap, AHashSet};
use tenon_proto::policy::v1 as proto;

use crate::Peer;

pub use self::{
    conditions::{Condition, Conditions},
    nearest::{Missed, Nearest},
    rule::{Proof, Rate, Residency, Rule, TenantRequirement},
};

/// Everything that decides who may call one service. Made from its `allowlist` record.
#[derive(Debug, Default)]
pub struct Policy {
    service: Box<str>,
    /// Tenants need this product; `None` for platform services.
    product: Option<Box<str>>,
    residency: Residency,
    originates: bool,
    /// Lets calls pass that no rule matches, logged and counted.
    audit_allowlist: Option<Box<str>>,
    /// In deciding order.
    rules: Vec<Rule>,
    /// `/package.Service/Method` → who may call it.
    exact: AHashMap<Box<str>, Callers>,
    /// `/package.Service/`, for rules on `/package.Service/*` → who may call all of it.
    wildcard: AHashMap<Box<str>, Callers>,
    /// `/package.Service/` → the rules that name anything of it, in order; only refusals look at it.
    by_prefix: AHashMap<Box<str>, Vec<u32>>,
    /// Caller → the first rule that names it; only refusals look at it.
    first_of_caller: Callers,
    /// The names among the callers that are clients outside of the mesh; the others are services.
    outside: AHashSet<Box<str>>,
}

/// The first rule of each caller. Services and outside clients are apart, so that nobody passes as one of the others.
#[derive(Debug, Default)]
struct Callers {
    /// Of any service: `*`. Never of an outside client.
    any: Option<u32>,
    services: AHashMap<Box<str>, u32>,
    outside: AHashMap<Box<str>, u32>,
}

/// What [`Policy::authorize`] found.
#[derive(Clone, Copy, Debug)]
pub enum Match<'p> {
    /// The first rule that matches, and its index.
    Rule(u32, &'p Rule),
    /// No rule matches.
    Nothing,
}

impl Policy {
    /// The policy of a service that has no record in a complete snapshot: it refuses every call and originates none.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The callee.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The product that tenants need, `None` for platform services.
    pub fn product(&self) -> Option<&str> {
        self.product.as_deref()
    }

    /// Which tenants an instance serves.
    pub fn residency(&self) -> Residency {
        self.residency
    }

    /// Whether the service may call for tenants that it is not serving at the moment.
    pub fn originates(&self) -> bool {
        self.originates
    }

    /// The Allowlist whose audit mode lets pass what no rule matches.
    pub fn audit_allowlist(&self) -> Option<&str> {
        self.audit_allowlist.as_deref()
    }

    /// All rules in deciding order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether a rule names this client outside of the mesh; nobody else's handshake passes.
    pub fn knows_outside(&self, name: &str) -> bool {
        self.outside.contains(name)
    }

    /// The rule with this index.
    pub fn rule(&self, index: u32) -> Option<&Rule> {
        self.rules.get(usize::try_from(index).ok()?)
    }

    /// The first rule that allows `caller` the `path`. Four look-ups, no allocation, however many rules there are.
    ///
    /// `path` comes without query and is compared byte for byte.
    pub fn authorize(&self, caller: Peer<'_>, path: &str) -> Match<'_> {
        let exact = self.exact.get(path).and_then(|callers| callers.first(caller));
        let wildcard =
            prefix(path).and_then(|prefix| self.wildcard.get(prefix)).and_then(|callers| callers.first(caller));
        match lower(exact, wildcard).and_then(|index| Some((index, self.rule(index)?))) {
            Some((index, rule)) => Match::Rule(index, rule),
            None => Match::Nothing,
        }
    }

    fn push(&mut self, rule: Rule) -> Result<(), String> {
        let index = u32::try_from(self.rules.len()).map_err(|_| "more than 4 billion rules".to_owned())?;
        let fail = |what: &str| Err(format!("rule {:?} of {:?}: {what}", rule.name, rule.allowlist));
        for path in &rule.paths {
            let Some(prefix) = prefix(path) else {
                return fail(&format!("path {path:?} is neither /package.Service/Method nor /package.Service/*"));
            };
            let callers = match &path[prefix.len()..] {
                "*" => self.wildcard.entry(prefix.into()).or_default(),
                method if method.contains('*') => {
                    return fail(&format!("path {path:?} has \"*\" for a part of a name"));
                }
                _ => self.exact.entry(path.clone()).or_default(),
            };
            for caller in &rule.callers {
                callers.add(caller, index, &self.outside);
            }
            let rules = self.by_prefix.entry(prefix.into()).or_default();
            if rules.last() != Some(&index) {
                rules.push(index);
            }
        }
        for caller in &rule.callers {
            self.first_of_caller.add(caller, index, &self.outside);
        }
        self.rules.push(rule);
        Ok(())
    }
}

impl Callers {
    fn add(&mut self, caller: &str, index: u32, outside: &AHashSet<Box<str>>) {
        if caller == "*" {
            self.any.get_or_insert(index);
        } else if outside.contains(caller) {
            self.outside.entry(caller.into()).or_insert(index);
        } else {
            self.services.entry(caller.into()).or_insert(index);
        }
    }

    fn first(&self, caller: Peer<'_>) -> Option<u32> {
        match caller {
            Peer::Service(name) => lower(self.services.get(name).copied(), self.any),
            Peer::Outside(name) => self.outside.get(name).copied(),
        }
    }
}

/// `Option`'s own order puts `None` first.
fn lower(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// `/package.Service/` of `/package.Service/Method`; `None` when either name is empty or there are more parts.
fn prefix(path: &str) -> Option<&str> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let whole = !service.is_empty() && !method.is_empty() && !method.contains('/');
    whole.then(|| &path[..service.len() + 2])
}

impl TryFrom<&proto::ServicePolicy> for Policy {
    type Error = String;

    /// Compiles a record. An unspecified choice is the documented default; one that this version does not know is an
    /// error, so that a newer policy is never read as a weaker one.
    fn try_from(record: &proto::ServicePolicy) -> Result<Self, String> {
        let mut policy = Policy {
            service: record.service.as_str().into(),
            product: named(&record.product),
            residency: Residency::decode(record.residency)?,
            originates: record.originates,
            audit_allowlist: named(&record.audit_allowlist),
            outside: record.external_clients.iter().map(|client| client.name.as_str().into()).collect(),
            ..Policy::default()
        };
        for rule in &record.rules {
            let conditions = rule.tenants.as_ref();
            if policy.product.is_none()
                && conditions.is_some_and(|of| !of.editions.is_empty() || !of.features.is_empty())
            {
                return Err(format!("rule {:?}: editions and features of a service without product", rule.name));
            }
            policy.push(Rule::try_from(rule)?)?;
        }
        Ok(policy)
    }
}

fn named(text: &str) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests;
