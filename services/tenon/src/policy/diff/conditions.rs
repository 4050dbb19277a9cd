//! What the rule that would decide a call asks beyond what the one of today does, and what it no longer asks.

use tenon_proto::policy::v1::{Proof, Rate, Residency, Rule, ServicePolicy, TenantConditions, TenantRequirement};

use super::{Call, Calls, Decided, Decider};

/// Everything that a call meets once a rule matched it. In audit mode the callee enforces nothing, so nothing is asked.
#[derive(Default)]
struct Asked<'r> {
    tenant: u8,
    proof: bool,
    rate: Option<&'r Rate>,
    tenants: Option<&'r TenantConditions>,
    product: &'r str,
    home: bool,
    /// Of the caller, whose own sidecar asks it: whatever the callee's rule or mode is.
    originates: bool,
}

/// One thing that is asked.
enum Condition {
    Tenant,
    Proof,
    Rate,
    Tenants,
    Product,
    Home,
    Originates,
}

/// In the words of the policy files; empty when whatever passed still passes.
pub(super) fn newly_asked(
    (was, before): (Decided<'_>, &Decider<'_>),
    (is, now): (Decided<'_>, &Decider<'_>),
    call: &Call,
) -> Vec<String> {
    let more = beyond(&asked(was, before, call), &asked(is, now, call), call);
    more.into_iter().map(|(_, words)| words).collect()
}

/// What calls were refused for and the new rule does not ask, in the words of the policy files.
pub(super) fn no_longer_asked(
    (was, before): (Decided<'_>, &Decider<'_>),
    (is, now): (Decided<'_>, &Decider<'_>),
    call: &Call,
    calls: &Calls,
) -> Vec<String> {
    let (old, new) = (asked(was, before, call), asked(is, now, call));
    let refused_for = |condition: &Condition| {
        calls.refused.keys().any(|reason| match (reason.as_str(), condition) {
            ("TENANT_REQUIRED", Condition::Tenant) => old.tenant == 2,
            // Of a tenant that is named, which `optional` looks at as well.
            (
                "TENANT_UNKNOWN" | "TENANT_SUSPENDED" | "TENANT_STALE" | "TCS_UNAVAILABLE" | "TXN_TENANT_MISMATCH",
                Condition::Tenant,
            ) => new.tenant == 0,
            ("TXN_MISSING" | "TXN_INVALID" | "TXN_EXPIRED" | "TXN_TENANT_MISMATCH", Condition::Proof)
            | ("TENANT_RATE_LIMITED", Condition::Rate)
            | ("TENANT_NOT_ALLOWED", Condition::Tenants)
            | ("PRODUCT_NOT_LICENSED" | "PRODUCT_SUSPENDED", Condition::Product)
            | ("TENANT_WRONG_REGION", Condition::Home)
            | ("TENANT_NOT_IN_FLIGHT", Condition::Originates) => true,
            _ => false,
        })
    };
    let less = beyond(&new, &old, call).into_iter();
    less.filter(|(condition, _)| refused_for(condition)).map(|(_, words)| words).collect()
}

/// What `more` asks and `less` does not.
fn beyond(less: &Asked<'_>, more: &Asked<'_>, call: &Call) -> Vec<(Condition, String)> {
    let mut found = Vec::new();
    if more.tenant > less.tenant {
        let tenant = ["none", "optional", "required"][usize::from(more.tenant.min(2))];
        found.push((Condition::Tenant, format!("tenant: {tenant}")));
    }
    if more.proof && !less.proof {
        found.push((Condition::Proof, "proof: transaction".to_owned()));
    }
    if let Some(rate) = more.rate
        && less.rate.is_none_or(|less| is_lower(rate, less))
    {
        let unit = match rate.per_seconds {
            60 => "m",
            3_600 => "h",
            _ => "s",
        };
        let words = format!("rate: {}/{unit} per tenant, burst {}", rate.count, rate.burst);
        found.push((Condition::Rate, words));
    }
    let narrower = narrower(less.tenants, more.tenants).into_iter();
    found.extend(narrower.map(|words| (Condition::Tenants, words)));
    if !more.product.is_empty() && more.product != less.product {
        found.push((Condition::Product, format!("product: {}", more.product)));
    }
    if more.home && !less.home {
        found.push((Condition::Home, "residency: home".to_owned()));
    }
    if less.originates && !more.originates {
        found.push((Condition::Originates, format!("originates: false of {}", call.caller)));
    }
    found
}

fn asked<'r>(decided: Decided<'r>, decider: &Decider<'r>, call: &Call) -> Asked<'r> {
    let originates = decider.record(&call.caller).is_none_or(|record| record.originates);
    let of_rule = of_rule(decided, decider.record(&call.service));
    Asked { originates, ..of_rule }
}

fn of_rule<'r>(decided: Decided<'r>, record: Option<&'r ServicePolicy>) -> Asked<'r> {
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
        ..Asked::default()
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
