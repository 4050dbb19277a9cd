//! Whether a change of the policy can be why a canary refused a call.
//!
//! Calls are refused on every day: a tenant is suspended, a token is stale, somebody tries what nobody allowed him. None of
//! that may stop a rollout, and flows name no tenant that could be asked for. So what counts is what the rules say of
//! this caller and path: a refusal is the new policy's work when the old one could not have refused such a call for this
//! reason, or wanted less of it.
//!
//! | reason | counts when the old policy |
//! | --- | --- |
//! | `PATH_NOT_ALLOWED` | let the caller call the path, by a rule or by audit mode |
//! | `TENANT_REQUIRED` | asked for no tenant there |
//! | `TENANT_UNKNOWN` `TENANT_SUSPENDED` | did not look at tenants there |
//! | `PRODUCT_NOT_LICENSED` `PRODUCT_SUSPENDED` | did not look at tenants there, or the service was another product |
//! | `TENANT_WRONG_REGION` | did not look at tenants there, or the residency was another one |
//! | `TENANT_NOT_ALLOWED` | was for tenants there that the new one is not for |
//! | `TXN_MISSING` `TXN_INVALID` `TXN_EXPIRED` `TXN_TENANT_MISMATCH` | asked for no transaction token there |
//! | `TENANT_NOT_IN_FLIGHT`, by the caller's side | let the caller originate calls |
//! | `ASAP_*`, of a caller outside of the mesh | described that client differently |
//!
//! `TENANT_RATE_LIMITED` and `OVERLOADED` never count, not even where the new policy sets a lower rate: such a call is
//! allowed, and one too many. A tenant that is over its rate must not take a policy back, and whoever brings a rate wants it to
//! refuse somebody. How many it would refuse is found out in audit mode.
//!
//! All others come from the state of the mesh, of tenants or of a token and never from a rule, or from records that change
//! only when the rollout completes (`QUARANTINED`, `SERVICE_UNKNOWN`, `NO_ENDPOINT`).

use sidecar_core::{
    Peer, Reason,
    policy::{Match, Policy, Proof, Residency, TenantRequirement},
};
use tenon_proto::policy::v1::{ExternalClient, ServicePolicy, TenantConditions};

/// What decides for one service, before the rollout and for its canaries.
#[derive(Debug)]
pub(crate) struct Changed {
    old: Side,
    new: Side,
}

#[derive(Debug)]
struct Side {
    record: ServicePolicy,
    policy: Policy,
}

/// What one side wants of a call that it lets pass.
struct Terms<'s> {
    /// Nothing of this is enforced: audit mode.
    audit: bool,
    tenant: TenantRequirement,
    proof: Proof,
    conditions: Option<&'s TenantConditions>,
}

impl Changed {
    /// # Errors
    /// One of them does not compile, in words.
    pub fn new(old: ServicePolicy, new: ServicePolicy) -> Result<Self, String> {
        let side = |record: ServicePolicy| {
            let policy = Policy::try_from(&record)?;
            Ok::<_, String>(Side { record, policy })
        };
        Ok(Self { old: side(old)?, new: side(new)? })
    }

    /// Whether the change can be why the service refused such a call of `caller`. A path that was not told apart from
    /// others is not judged.
    pub fn refuses(&self, caller: &str, path: &str, reason: &str) -> bool {
        // One of another version is none of these.
        reason.parse().is_ok_and(|reason| !path.is_empty() && self.brings(caller, path, reason))
    }

    /// Whether the change can be why the service refused calls of `caller` whose paths were not told apart, on whichever path.
    pub fn may_refuse(&self, caller: &str, reason: &str) -> bool {
        let Ok(reason) = reason.parse() else { return false };
        let rules = self.old.record.rules.iter().chain(&self.new.record.rules);
        // Rules tell no other paths apart than those that they name, those beside them below the same `/*`, and all others.
        let named =
            rules.flat_map(|rule| &rule.paths).map(|path| path.strip_suffix('*').map_or_else(|| path.clone(), any));
        named.chain([any("/-/")]).any(|path| self.brings(caller, &path, reason))
    }

    /// Whether the change can be why the service's own call was refused on its way out.
    pub fn keeps_from_calling(&self, reason: &str) -> bool {
        reason == Reason::TenantNotInFlight.as_str() && self.old.policy.originates() && !self.new.policy.originates()
    }

    /// The new rule that decides about such a call, or the nearest one, in words; empty when there is none.
    pub fn rule(&self, caller: &str, path: &str) -> String {
        let (peer, policy) = (self.new.peer(caller), &self.new.policy);
        match policy.authorize(peer, path) {
            Match::Rule(_, rule) if rule.source().is_empty() => format!("rule {} of {}", rule.name(), rule.allowlist()),
            Match::Rule(_, rule) => format!("rule {} of {} ({})", rule.name(), rule.allowlist(), rule.source()),
            Match::Nothing => policy.nearest(peer, path).map(|nearest| nearest.to_string()).unwrap_or_default(),
        }
    }

    fn brings(&self, caller: &str, path: &str, reason: Reason) -> bool {
        if is_of_token(reason) {
            let described = self.old.client(caller);
            return described.is_some() && described != self.new.client(caller);
        }
        let (old, new) = (self.old.terms(caller, path), self.new.terms(caller, path));
        // Who was refused before is refused by either.
        let Some(old) = old else { return false };
        let Some(new) = new else { return reason == Reason::PathNotAllowed };
        if new.audit {
            return false;
        }
        self.is_stricter(&old, &new, reason)
    }

    /// Of a call that both let pass on terms.
    fn is_stricter(&self, old: &Terms<'_>, new: &Terms<'_>, reason: Reason) -> bool {
        let had_tenant = !old.audit && old.tenant != TenantRequirement::None;
        let has_tenant = new.tenant != TenantRequirement::None;
        match reason {
            Reason::TenantRequired => {
                new.tenant == TenantRequirement::Required && (old.audit || old.tenant != TenantRequirement::Required)
            }
            Reason::TenantUnknown | Reason::TenantSuspended => has_tenant && !had_tenant,
            Reason::ProductNotLicensed | Reason::ProductSuspended => {
                let (before, product) = (self.old.policy.product(), self.new.policy.product());
                has_tenant && product.is_some() && (!had_tenant || before != product)
            }
            Reason::TenantWrongRegion => {
                has_tenant
                    && self.new.policy.residency() == Residency::Home
                    && (!had_tenant || self.old.policy.residency() != Residency::Home)
            }
            Reason::TenantNotAllowed => new.conditions.is_some_and(|conditions| {
                !had_tenant || old.conditions.is_none_or(|before| !widens(before, conditions))
            }),
            Reason::TxnMissing | Reason::TxnInvalid | Reason::TxnExpired => {
                new.proof == Proof::Transaction && (old.audit || old.proof == Proof::None)
            }
            Reason::TxnTenantMismatch => {
                new.proof == Proof::Transaction && has_tenant && (old.audit || old.proof == Proof::None || !had_tenant)
            }
            // Of tokens: above. The others are no rule's.
            Reason::AsapMissing
            | Reason::AsapMalformed
            | Reason::AsapAlgorithm
            | Reason::AsapKeyUnknown
            | Reason::AsapKeysUnavailable
            | Reason::AsapSignature
            | Reason::AsapExpired
            | Reason::AsapNotYetValid
            | Reason::AsapLifetime
            | Reason::AsapAudience
            | Reason::AsapIssuer
            | Reason::AsapSubject
            | Reason::Quarantined
            | Reason::PathNotAllowed
            | Reason::PolicyUnavailable
            | Reason::TenantStale
            | Reason::TcsUnavailable
            | Reason::TenantRateLimited
            | Reason::Overloaded
            | Reason::ServiceUnknown
            | Reason::NoEndpoint
            | Reason::UpstreamConnect
            | Reason::Deadline
            | Reason::TenantAmbiguous
            | Reason::TenantNotInFlight => false,
        }
    }
}

impl Side {
    fn terms(&self, caller: &str, path: &str) -> Option<Terms<'_>> {
        let peer = self.peer(caller);
        match (self.policy.authorize(peer, path), self.policy.audit_allowlist(), peer) {
            (Match::Rule(index, rule), ..) => {
                let record = usize::try_from(index).ok().and_then(|index| self.record.rules.get(index));
                let conditions = record.and_then(|record| record.tenants.as_ref());
                Some(Terms { audit: rule.audit, tenant: rule.tenant, proof: rule.proof, conditions })
            }
            // As the sidecar does: a tenant is attached if it is a servable one.
            (Match::Nothing, Some(_), Peer::Service(_)) => {
                Some(Terms { audit: true, tenant: TenantRequirement::Optional, proof: Proof::None, conditions: None })
            }
            (Match::Nothing, ..) => None,
        }
    }

    /// Services and outside clients share one namespace.
    fn peer<'c>(&self, caller: &'c str) -> Peer<'c> {
        if self.client(caller).is_some() { Peer::Outside(caller) } else { Peer::Service(caller) }
    }

    fn client(&self, name: &str) -> Option<&ExternalClient> {
        self.record.external_clients.iter().find(|client| client.name == name)
    }
}

/// A path below this one that no rule names: it is no method's name.
fn any(below: &str) -> String {
    format!("{below}-")
}

fn is_of_token(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::AsapKeyUnknown
            | Reason::AsapKeysUnavailable
            | Reason::AsapSignature
            | Reason::AsapIssuer
            | Reason::AsapSubject
    )
}

/// Whether every tenant that met the conditions `before` meets them `now`.
fn widens(before: &TenantConditions, now: &TenantConditions) -> bool {
    let one_of = |before: &[String], now: &[String]| {
        now.is_empty() || (!before.is_empty() && before.iter().all(|value| now.contains(value)))
    };
    one_of(&before.editions, &now.editions)
        && one_of(&before.regions, &now.regions)
        && one_of(&before.ids, &now.ids)
        && now.features.iter().all(|feature| before.features.contains(feature))
}

#[cfg(test)]
mod tests;
