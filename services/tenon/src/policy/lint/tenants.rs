//! Tenant conditions that nobody meets, as far as is known.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use mesh_config::{Residency, Tenants};
use tenon_proto::tcs::v1::TenantContext;

use super::{Finding, Placed, Subject, checks::TENANTS_NEVER_MET, places::Step, some_of};

pub(super) fn check(subject: &Subject<'_>, tenants: Option<&[TenantContext]>, found: &mut Vec<Finding>) {
    let mut known = tenants.map(Known::new);
    for (service, rules) in &subject.rules {
        for placed in rules.iter().copied() {
            let Some(conditions) = &placed.rule.tenants else { continue };
            let unmet = served_nowhere(subject, service, conditions).or_else(|| {
                let product = subject.mesh.services().get(*service).and_then(|service| service.product.as_ref());
                known.as_mut()?.unmet(conditions, product.map(|product| product.as_str()))
            });
            found.extend(unmet.map(|why| finding(subject, placed, &why)));
        }
    }
}

fn finding(subject: &Subject<'_>, placed: Placed<'_>, why: &str) -> Finding {
    let name = &placed.rule.name;
    Finding {
        check: &TENANTS_NEVER_MET,
        place: subject.place(placed, &[Step::Key("tenants")]),
        message: format!("no tenant can meet the conditions of rule {name}: {why}"),
        help: format!("correct the conditions, or delete rule {name} if its tenants are gone"),
    }
}

/// A service that serves only tenants at home (`residency: home`) and has no instance in any region of the condition.
fn served_nowhere(subject: &Subject<'_>, service: &str, conditions: &Tenants) -> Option<String> {
    let residency = subject.mesh.services().get(service)?.residency;
    let instances = subject.mesh.local()?.instances.iter().filter(|instance| instance.service.as_str() == service);
    let regions: BTreeSet<&str> = instances.map(|instance| instance.region.as_str()).collect();
    let none_serves = conditions.regions.iter().all(|region| !regions.contains(region.as_str()));
    (residency == Residency::Home && !conditions.regions.is_empty() && !regions.is_empty() && none_serves).then(|| {
        let wanted = some_of(conditions.regions.iter().map(|region| region.as_str()));
        let there = some_of(regions);
        format!("{service} serves tenants at home alone and has instances in {there}, none in {wanted}")
    })
}

/// The tenants that there are, so that a rule costs the same with a million of them.
struct Known<'t> {
    tenants: &'t [TenantContext],
    by_id: HashMap<&'t str, &'t TenantContext>,
    /// Product → every combination that some tenant has. `None`: of tenants whatever their products.
    combinations: BTreeMap<Option<String>, HashSet<Combination<'t>>>,
}

/// What conditions look at, beside the id.
#[derive(PartialEq, Eq, Hash)]
struct Combination<'t> {
    region: &'t str,
    edition: &'t str,
    features: BTreeSet<&'t str>,
}

impl<'t> Combination<'t> {
    /// `None` when the tenant does not have the product.
    fn of(tenant: &'t TenantContext, product: Option<&str>) -> Option<Self> {
        let held = match product {
            Some(product) => Some(tenant.products.get(product)?),
            None => None,
        };
        Some(Self {
            region: &tenant.region,
            edition: held.map_or("", |product| &product.edition),
            features: held.into_iter().flat_map(|product| &product.features).map(String::as_str).collect(),
        })
    }

    fn meets(&self, conditions: &Tenants) -> bool {
        let is_one = |list: &[String], value: &str| list.is_empty() || list.iter().any(|one| one == value);
        is_one(&conditions.editions, self.edition)
            && conditions.features.iter().all(|feature| self.features.contains(feature.as_str()))
            && (conditions.regions.is_empty() || conditions.regions.iter().any(|region| region.as_str() == self.region))
    }
}

impl<'t> Known<'t> {
    fn new(tenants: &'t [TenantContext]) -> Self {
        let by_id = tenants.iter().map(|tenant| (tenant.tenant_id.as_str(), tenant)).collect();
        Self { tenants, by_id, combinations: BTreeMap::new() }
    }

    /// Why no tenant meets the conditions, if so.
    fn unmet(&mut self, conditions: &Tenants, product: Option<&str>) -> Option<String> {
        if conditions.ids.is_empty() {
            let combinations = self
                .combinations
                .entry(product.map(str::to_owned))
                .or_insert_with(|| self.tenants.iter().filter_map(|tenant| Combination::of(tenant, product)).collect());
            let met = combinations.iter().any(|combination| combination.meets(conditions));
            return (!met).then(|| format!("none of the {} tenants does", self.tenants.len()));
        }
        let named = conditions.ids.iter().filter_map(|id| self.by_id.get(id.as_str()));
        let mut named = named.filter_map(|tenant| Combination::of(tenant, product));
        let met = named.any(|combination| combination.meets(conditions));
        (!met).then(|| format!("neither does {}", some_of(conditions.ids.iter().map(|id| id.as_str()))))
    }
}
