//! The allowlist of one service, compiled so that a decision costs the same at any number of rules.
//!
//! Rules only allow. The first rule, in the order of the record, that matches caller and path decides everything else
//! (DESIGN §6).

mod conditions;
mod index;
mod nearest;
mod rule;

use std::sync::Arc;

use ahash::AHashSet;
use tenon_proto::policy::v1 as proto;

use self::index::{Builder, Index};

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
    rules: Box<[Rule]>,
    index: Index,
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
        self.index.knows_outside(name)
    }

    /// The rule with this index.
    pub fn rule(&self, index: u32) -> Option<&Rule> {
        self.rules.get(usize::try_from(index).ok()?)
    }

    /// The first rule that allows `caller` the `path`. Three look-ups, no allocation, however many rules there are.
    ///
    /// `path` comes without query and is compared byte for byte.
    pub fn authorize(&self, caller: Peer<'_>, path: &str) -> Match<'_> {
        match self.index.first(caller, path).and_then(|index| Some((index, self.rule(index)?))) {
            Some((index, rule)) => Match::Rule(index, rule),
            None => Match::Nothing,
        }
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
        let mut index = Builder::new(record.external_clients.iter().map(|client| client.name.as_str()))?;
        let (product, mut allowlists) = (named(&record.product), AHashSet::new());
        let mut rules = Vec::with_capacity(record.rules.len());
        for rule in &record.rules {
            let fail = |what: String| format!("rule {:?} of {:?}: {what}", rule.name, rule.allowlist);
            let conditions = rule.tenants.as_ref();
            if product.is_none() && conditions.is_some_and(|of| !of.editions.is_empty() || !of.features.is_empty()) {
                return Err(fail("editions and features of a service without product".to_owned()));
            }
            let (callers, paths) = (rule.callers.iter().map(String::as_str), rule.paths.iter().map(String::as_str));
            index.push(callers, paths).map_err(fail)?;
            let allowlist = shared(&mut allowlists, &rule.allowlist);
            rules.push(Rule::compile(rule, allowlist).map_err(fail)?);
        }
        Ok(Policy {
            service: record.service.as_str().into(),
            product,
            residency: Residency::decode(record.residency)?,
            originates: record.originates,
            audit_allowlist: named(&record.audit_allowlist),
            rules: rules.into(),
            index: index.finish()?,
        })
    }
}

/// The same text for the same name.
fn shared(known: &mut AHashSet<Arc<str>>, text: &str) -> Arc<str> {
    if let Some(text) = known.get(text) {
        return Arc::clone(text);
    }
    let text = Arc::<str>::from(text);
    known.insert(Arc::clone(&text));
    text
}

fn named(text: &str) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests;
