//! The allowlist of one service, compiled so that a decision costs the same at any number of rules.
//!
//! Rules only allow. The first rule, in the order of the record, that matches caller and path decides everything else
//! (DESIGN §6).

mod nearest;

use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use tenon_proto::policy::v1 as proto;

use crate::Peer;

pub use self::nearest::{Missed, Nearest};

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

/// Which tenants an instance serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// All of them.
    #[default]
    Any,
    /// Those whose home region is its own.
    Home,
}

/// What a rule wants to know of the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantRequirement {
    /// A servable tenant must be named.
    Required,
    /// A tenant that is named must be servable.
    Optional,
    /// Tenants are ignored and the app is handed none.
    None,
}

/// What a rule wants to be shown besides the caller's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing.
    None,
    /// A transaction token.
    Transaction,
}

/// How often one tenant may use a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls in every `per`.
    pub count: u64,
    /// A second, a minute or an hour.
    pub per: Duration,
    /// Calls that may come at once.
    pub burst: u64,
}

/// One rule of an Allowlist.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The Allowlist it stands in.
    pub allowlist: Box<str>,
    /// Unique within the service.
    pub name: Box<str>,
    /// Where it stands, for explanations: `media.yaml:12`. May be empty.
    pub source: Box<str>,
    /// Service names, and `*` for any.
    pub callers: Vec<Box<str>>,
    /// Exact paths, and `/package.Service/*`.
    pub paths: Vec<Box<str>>,
    /// What it wants to know of the tenant.
    pub tenant: TenantRequirement,
    /// What it wants to be shown.
    pub proof: Proof,
    /// `None`: unlimited.
    pub rate: Option<Rate>,
    /// Its tenant conditions, proof and rate are logged and not enforced.
    pub audit: bool,
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
            policy.push(Rule::try_from(rule)?)?;
        }
        Ok(policy)
    }
}

impl TryFrom<&proto::Rule> for Rule {
    type Error = String;

    fn try_from(record: &proto::Rule) -> Result<Self, String> {
        let texts = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect();
        Ok(Rule {
            allowlist: record.allowlist.as_str().into(),
            name: record.name.as_str().into(),
            source: record.source.as_str().into(),
            callers: texts(&record.callers),
            paths: texts(&record.paths),
            tenant: match proto::TenantRequirement::try_from(record.tenant) {
                Ok(proto::TenantRequirement::Required | proto::TenantRequirement::Unspecified) => {
                    TenantRequirement::Required
                }
                Ok(proto::TenantRequirement::Optional) => TenantRequirement::Optional,
                Ok(proto::TenantRequirement::None) => TenantRequirement::None,
                Err(_) => return Err(format!("rule {:?}: unknown tenant requirement {}", record.name, record.tenant)),
            },
            proof: match proto::Proof::try_from(record.proof) {
                Ok(proto::Proof::None | proto::Proof::Unspecified) => Proof::None,
                Ok(proto::Proof::Transaction) => Proof::Transaction,
                Err(_) => return Err(format!("rule {:?}: unknown proof {}", record.name, record.proof)),
            },
            rate: record.rate.as_ref().map(Rate::from),
            audit: record.audit,
        })
    }
}

impl From<&proto::Rate> for Rate {
    fn from(record: &proto::Rate) -> Self {
        Rate { count: record.count, per: Duration::from_secs(record.per_seconds.into()), burst: record.burst }
    }
}

impl Residency {
    /// From the number in a record; unspecified is `Any`.
    pub(crate) fn decode(number: i32) -> Result<Self, String> {
        match proto::Residency::try_from(number) {
            Ok(proto::Residency::Any | proto::Residency::Unspecified) => Ok(Residency::Any),
            Ok(proto::Residency::Home) => Ok(Residency::Home),
            Err(_) => Err(format!("unknown residency {number}")),
        }
    }
}

fn named(text: &str) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests;
