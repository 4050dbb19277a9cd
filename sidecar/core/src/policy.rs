//! The allowlist of one service, compiled so that a decision costs the same at any number of rules.
//!
//! Rules only allow. The first rule, in the order of the record, that matches caller and path decides everything else
//! (DESIGN §6).

mod conditions;
mod index;
mod nearest;
mod record;
mod rule;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tenon_proto::policy::v1 as proto;

use self::{
    index::{Builder, Index},
    record::Text,
};

use crate::Peer;

pub use self::{
    conditions::{Condition, Conditions},
    nearest::{Missed, Nearest},
    rule::{Proof, Rate, Residency, Rule, TenantRequirement},
};

/// Everything that decides who may call one service. Made from its `allowlist` record, in which the texts of the rules stay:
/// names are read there when they are asked for.
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

    /// Compiles a record, as the bytes that it came as; and what of it is no rule. The bytes are kept: they must not be a
    /// part of something larger.
    ///
    /// An unspecified choice is the documented default; one that this version does not know is an error, so that a newer
    /// policy is never read as a weaker one.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub fn decode(raw: Bytes) -> Result<(Self, proto::ServicePolicy), String> {
        let (rest, places) = record::split(&raw)?;
        let record = proto::ServicePolicy::decode(&*rest).map_err(|error| error.to_string())?;
        let mut index = Builder::new(record.external_clients.iter().map(|client| client.name.as_str()))?;
        let (product, shared) = (named(&record.product), Arc::new(raw.clone()));
        let mut rules = Vec::with_capacity(places.len());
        // One at a time: what is made of it only for now takes the same memory for each.
        for at in places {
            let (message, start) = record::rule(&raw, at);
            let rule = proto::Rule::decode(message).map_err(|error| error.to_string())?;
            let fail = |what: String| format!("rule {:?} of {:?}: {what}", rule.name, rule.allowlist);
            let conditions = rule.tenants.as_ref();
            if product.is_none() && conditions.is_some_and(|of| !of.editions.is_empty() || !of.features.is_empty()) {
                return Err(fail("editions and features of a service without product".to_owned()));
            }
            let paths = record::paths(message).map(|path| Text { start: start + path.start, ..path });
            index.push(record::callers(message), paths).map_err(fail)?;
            rules.push(Rule::compile(&rule, &shared, at).map_err(fail)?);
        }
        let policy = Policy {
            service: record.service.as_str().into(),
            product,
            residency: Residency::decode(record.residency)?,
            originates: record.originates,
            audit_allowlist: named(&record.audit_allowlist),
            rules: rules.into(),
            index: index.finish(raw.clone())?,
        };
        Ok((policy, record))
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

    /// As [`Policy::decode`].
    fn try_from(record: &proto::ServicePolicy) -> Result<Self, String> {
        Policy::decode(record.encode_to_vec().into()).map(|(policy, _)| policy)
    }
}

fn named(text: &str) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests;
