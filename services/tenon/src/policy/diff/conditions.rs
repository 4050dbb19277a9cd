//! What the rule that would decide a call asks beyond what the one of today does.

use tenon_proto::policy::v1::{Proof, Rate, Residency, Rule, ServicePolicy, TenantConditions, TenantRequirement};

use super::{Call, Decided, Decider};

/// Everything that a call meets once a rule matched it. In audit mode nothing is enforced, so nothing is asked.
#[derive(Default)]
struct Asked<'r> {
    tenant: u8,
    proof: bool,
    rate: Option<&'r Rate>,
    tenants: Option<&'r TenantConditions>,
    product: &'r str,
    home: bool,
}

/// In the words of the policy files; empty when whatever passed still passes.
pub(super) fn newly_asked(
    (was, before): (Decided<'_>, &Decider<'_>),
    (is, now): (Decided<'_>, &Decider<'_>),
    call: &Call,
) -> Vec<String> {
    let old = asked(was, before.record(&call.service));
    let new = asked(is, now.record(&call.service));
    let mut more = Vec::new();
    if new.tenant > old.tenant {
        more.push(format!("tenant: {}", ["none", "optional", "required"][usize::from(new.tenant.min(2))]));
    }
    if new.proof && !old.proof {
        more.push("proof: transaction".to_owned());
    }
    if let Some(rate) = new.rate
        && old.rate.is_none_or(|old| is_lower(rate, old))
    {
        let unit = match rate.per_seconds {
            60 => "m",
            3_600 => "h",
            _ => "s",
        };
        more.push(format!("rate: {}/{unit} per tenant, burst {}", rate.count, rate.burst));
    }
    // What a tenant must be is asked only of calls whose tenant is looked at.
    if new.tenant > 0 {
        more.extend(narrower(old.tenants, new.tenants));
        if !new.product.is_empty() && new.product != old.product {
            more.push(format!("product: {}", new.product));
        }
        if new.home && !old.home {
            more.push("residency: home".to_owned());
        }
        let originates = |decider: &Decider<'_>| decider.record(&call.caller).is_none_or(|record| record.originates);
        if originates(before) && !originates(now) {
            more.push(format!("originates: false of {}", call.caller));
        }
    }
    more
}

fn asked<'r>(decided: Decided<'r>, record: Option<&'r ServicePolicy>) -> Asked<'r> {
    let (Decided::Rule(rule), Some(record)) = (decided, record) else { return Asked::default() };
    if rule.audit {
        return Asked::default();
    }
    let tenant = match rule.tenant() {
        TenantRequirement::None => 0,
        TenantRequirement::Optional => 1,
        TenantRequirement::Unspecified | TenantRequirement::Required => 2,
    };
    let Rule { rate, tenants, .. } = rule;
    Asked {
        tenant,
        proof: rule.proof() == Proof::Transaction,
        rate: rate.as_ref(),
        tenants: tenants.as_ref().filter(|_| tenant > 0),
        product: if tenant > 0 { &record.product } else { "" },
        home: tenant > 0 && record.residency() == Residency::Home,
    }
}

/// Also a smaller burst lets fewer calls pass.
fn is_lower(new: &Rate, old: &Rate) -> bool {
    let in_a_day = |rate: &Rate| u128::from(rate.count) * 86_400 / u128::from(rate.per_seconds.max(1));
    in_a_day(new) < in_a_day(old) || new.burst < old.burst
}

fn narrower(old: Option<&TenantConditions>, new: Option<&TenantConditions>) -> Vec<String> {
    let Some(new) = new else { return Vec::new() };
    let none = TenantConditions::default();
    let old = old.unwrap_or(&none);
    let one_of = |old: &[String], new: &[String]| {
        !new.is_empty() && (old.is_empty() || old.iter().any(|value| !new.contains(value)))
    };
    let all_of = |old: &[String], new: &[String]| new.iter().any(|value| !old.contains(value));
    [
        ("editions", &new.editions, one_of(&old.editions, &new.editions)),
        ("features", &new.features, all_of(&old.features, &new.features)),
        ("regions", &new.regions, one_of(&old.regions, &new.regions)),
        ("ids", &new.ids, one_of(&old.ids, &new.ids)),
    ]
    .into_iter()
    .filter(|(_, _, narrower)| *narrower)
    .map(|(list, values, _)| format!("tenants: {list} {}", values.join(" ")))
    .collect()
}
