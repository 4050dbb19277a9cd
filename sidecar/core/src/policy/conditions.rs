//! Which tenants a rule is for. A rule with 100,000 ids costs a call what a rule with one does.

use std::fmt;

use ahash::AHashSet;
use tenon_proto::policy::v1 as proto;

use crate::tenancy::Tenant;

/// What a rule wants of the tenant that a call names. Every list that is not empty must be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The tenant is one of these.
    ids: AHashSet<Box<str>>,
    /// Its home region is one of these.
    regions: AHashSet<Box<str>>,
    /// Its product has one of these editions.
    editions: AHashSet<Box<str>>,
    /// Its product has each of these features. In byte order, each once.
    features: Box<[Box<str>]>,
}

/// What of a tenant does not fit a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// Its id.
    Id,
    /// Its home region.
    Region,
    /// The edition of its product.
    Edition,
    /// A feature that its product lacks.
    Feature,
}

impl Condition {
    /// For machines: `id`, `region`, `edition`, `feature`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Condition::Id => "id",
            Condition::Region => "region",
            Condition::Edition => "edition",
            Condition::Feature => "feature",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Conditions {
    /// The first condition, cheap ones first, that `tenant` does not meet at a service of `product`; `None` when it meets
    /// them all. No allocation.
    pub fn missed(&self, tenant: &Tenant, product: Option<&str>) -> Option<Condition> {
        let one_of = |set: &AHashSet<Box<str>>, value: &str| set.is_empty() || set.contains(value);
        if !one_of(&self.ids, tenant.id()) {
            return Some(Condition::Id);
        }
        if !one_of(&self.regions, tenant.region()) {
            return Some(Condition::Region);
        }
        if self.editions.is_empty() && self.features.is_empty() {
            return None;
        }
        let held = product.and_then(|product| tenant.held(product));
        if !one_of(&self.editions, held.map(|held| held.edition()).unwrap_or_default()) {
            return Some(Condition::Edition);
        }
        // 64 features in one pass over the tenant's, so that long lists on both sides stay cheap.
        for wanted in self.features.chunks(64) {
            let mut missing = u64::MAX >> (64 - wanted.len());
            for feature in held.iter().flat_map(|held| held.features()) {
                if let Ok(index) = wanted.binary_search_by(|wanted| (**wanted).cmp(feature)) {
                    missing &= !(1 << index);
                }
            }
            if missing != 0 {
                return Some(Condition::Feature);
            }
        }
        None
    }

    /// An edition that meets the condition, where there is one: for tenants of which nothing is known.
    pub(crate) fn any_edition(&self) -> Option<&str> {
        self.editions.iter().map(AsRef::as_ref).min()
    }

    /// A region that meets the condition, where there is one.
    pub(crate) fn any_region(&self) -> Option<&str> {
        self.regions.iter().map(AsRef::as_ref).min()
    }

    /// Every feature that it wants.
    pub(crate) fn features(&self) -> impl Iterator<Item = &str> {
        self.features.iter().map(AsRef::as_ref)
    }
}

impl TryFrom<&proto::TenantConditions> for Conditions {
    type Error = String;

    /// Conditions without any list are an error: a newer version has others, and they must not be passed over.
    fn try_from(record: &proto::TenantConditions) -> Result<Self, String> {
        if *record == proto::TenantConditions::default() {
            return Err("it has tenant conditions that this version does not know".to_owned());
        }
        let set = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect();
        let mut features: Vec<Box<str>> = record.features.iter().map(|text| text.as_str().into()).collect();
        features.sort_unstable();
        features.dedup();
        Ok(Conditions {
            ids: set(&record.ids),
            regions: set(&record.regions),
            editions: set(&record.editions),
            features: features.into(),
        })
    }
}

#[cfg(test)]
mod tests;
