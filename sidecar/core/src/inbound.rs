//! The decision on a call that came from another sidecar (DESIGN §3, "Inbound").

use std::sync::Arc;

use mesh_config::names::{RegionName, ServiceName, TenantId};

use crate::{
    Credentials, Lookup, Named, Peer, Position, Quarantined, Reason, Refusal, Tenants, Token, Transaction, Wanted,
    policy::{Conditions, Match, Policy, Proof, Residency, Rule, TenantRequirement},
    refusal::shown,
    tenancy::{ProductState, Status, Tenant},
};

/// All that inbound decisions are made from but tenants and keys: one snapshot, so that no decision mixes two revisions.
#[derive(Debug)]
pub struct State {
    /// The callee.
    pub me: ServiceName,
    /// Where this instance runs; without one it serves no tenant of a service with `residency: home`.
    pub region: Option<RegionName>,
    /// `None` until the first snapshot ever; a snapshot without a record for this service is [`Policy::empty`].
    pub policy: Option<Arc<Policy>>,
    /// Who is cut off.
    pub quarantined: Quarantined,
    /// What `policy` was made from: `policy_revision` in refusals.
    pub policy_position: Option<Position>,
}

/// What of a request's head decides.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Without query: `req.uri().path()`.
    pub path: &'a str,
    /// `x-asap-token`, else `authorization: Bearer`.
    pub token: Token<'a>,
    /// `x-tenant-id`.
    pub tenant: Named<'a>,
    /// `x-tenant-revision`. When it stands several times or is not text: `Some("")`.
    pub tenant_revision: Option<&'a str>,
    /// `txn-token`.
    pub txn_token: Named<'a>,
}

/// The call is allowed.
#[derive(Debug)]
pub struct Verdict<R> {
    /// Whose context the app is handed.
    pub tenant: Option<R>,
    /// The rule that decided, an index into [`Policy::rules`]; `None` when audit mode let pass what no rule matches.
    pub rule: Option<u32>,
    /// What the transaction token proved, for deciding the call again while it is open; `None` when the rule wants none,
    /// or when audit mode let pass a call without one.
    pub transaction: Option<Transaction>,
    /// What audit mode let pass: to be logged and counted.
    pub audited: Option<Refusal>,
}

/// The call is not allowed, or not yet.
#[derive(Debug)]
pub enum Stop {
    /// Answer with this.
    Refused(Refusal),
    /// The caller saw a newer revision than the replica has: wait for it, 250 ms at most, and decide again with
    /// [`Waited::for_revision`].
    WaitFor(Position),
    /// The tenant is not held: ask for it, and decide again with [`Waited::for_tenant`].
    Resolve(Wanted),
}

/// What a call has waited for already. Nothing is waited for twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// The replica was given time to reach the caller's revision: what it still lacks is `TENANT_STALE`.
    pub for_revision: bool,
    /// The tenant was asked for: what is still not held is `TCS_UNAVAILABLE`.
    pub for_tenant: bool,
}

impl Waited {
    /// For everything there is: the decision answers for good.
    pub const FOR_ALL: Self = Self { for_revision: true, for_tenant: true };
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

/// Decides one call of `peer`, at `now` (Unix seconds).
///
/// The checks are those of DESIGN §3 in their order; the first failure answers. `waited` says what was waited for before.
///
/// # Errors
/// [`Stop::Refused`] with the reason, or [`Stop::WaitFor`] and [`Stop::Resolve`] at most once a call each.
pub fn decide<T: Tenants, C: Credentials>(
    state: &State,
    tenants: &T,
    credentials: &mut C,
    peer: Peer<'_>,
    head: &Head<'_>,
    now: u64,
    waited: Waited,
) -> Result<Verdict<T::Ref>, Stop> {
    authenticate(credentials, peer, head.token, now)?;
    state.quarantined.check(peer.name(), state.me.as_str())?;
    let mut granted = allowlist(state, peer, head.path)?;
    let transaction = transaction(&mut granted, credentials, head, now)?;
    let seen = granted.enforce(freshness(&granted, tenants, head, waited))?;
    let tenant = granted.enforce(admit(&granted, state, tenants, head.tenant, seen.flatten(), now, waited))?.flatten();
    granted.enforce(intended(&granted, state, tenant.as_deref()))?;
    Ok(Verdict { tenant: seen.and(tenant), rule: granted.rule, transaction, audited: granted.audited })
}

/// What the allowlist granted, and under which conditions.
struct Granted<'p> {
    rule: Option<u32>,
    tenant: TenantRequirement,
    proof: Proof,
    /// Which tenants it is for, and the rule that says so.
    tenants: Option<(&'p Rule, &'p Conditions)>,
    /// The conditions are logged and not enforced.
    audit: bool,
    /// The first thing that audit mode let pass.
    audited: Option<Refusal>,
}

impl<'p> Granted<'p> {
    fn by(index: u32, rule: &'p Rule) -> Self {
        let Rule { tenant, proof, audit, .. } = *rule;
        let tenants = rule.conditions.as_deref().map(|conditions| (rule, conditions));
        Granted { rule: Some(index), tenant, proof, tenants, audit, audited: None }
    }

    /// No rule matched, in audit mode: a tenant is attached if it is a servable one.
    fn by_audit(refusal: Refusal) -> Self {
        let tenant = TenantRequirement::Optional;
        Granted { rule: None, tenant, proof: Proof::None, tenants: None, audit: true, audited: Some(refusal) }
    }

    /// The outcome of a condition: a failure ends the call, or in audit mode is written down.
    fn enforce<T>(&mut self, outcome: Result<T, Stop>) -> Result<Option<T>, Stop> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(Stop::Refused(refusal)) if self.audit => {
                let rule = self.rule;
                self.audited.get_or_insert_with(|| refusal.by_rule(rule));
                Ok(None)
            }
            Err(Stop::Refused(refusal)) => Err(Stop::Refused(refusal.by_rule(self.rule))),
            Err(wait @ (Stop::WaitFor(_) | Stop::Resolve(_))) => Err(wait),
        }
    }
}

fn authenticate(credentials: &mut impl Credentials, peer: Peer<'_>, token: Token<'_>, now: u64) -> Result<(), Refusal> {
    match token {
        Token::One(token) => credentials.verify(peer, token, now),
        Token::Missing => Err(Refusal::new(Reason::AsapMissing, "the request carries no ASAP token")),
        Token::Ambiguous => {
            Err(Refusal::new(Reason::AsapMalformed, "expected exactly one ASAP token, as a bearer token"))
        }
    }
}

fn allowlist<'s>(state: &'s State, peer: Peer<'_>, path: &str) -> Result<Granted<'s>, Refusal> {
    let Some(policy) = &state.policy else {
        let message = format!("service {} has not received its policy yet", state.me);
        return Err(Refusal::new(Reason::PolicyUnavailable, message));
    };
    match policy.authorize(peer, path) {
        Match::Rule(index, rule) => Ok(Granted::by(index, rule)),
        Match::Nothing => {
            let message = format!("no rule of service {} allows {} the path {}", state.me, peer.name(), shown(path));
            let nearest = policy.nearest(peer, path).map(Box::new);
            let refusal = Refusal { nearest, ..Refusal::new(Reason::PathNotAllowed, message) };
            // Audit mode is for finding out which services call which; strangers are let in by rules alone.
            match (policy.audit_allowlist(), peer) {
                (Some(_), Peer::Service(_)) => Ok(Granted::by_audit(refusal)),
                (Some(_), Peer::Outside(_)) | (None, _) => Err(refusal),
            }
        }
    }
}

/// Verifies the transaction token where the rule wants one, and then, where the rule looks at tenants, that its tenant is
/// the call's. A rule that ignores tenants ignores the token's too.
fn transaction(
    granted: &mut Granted<'_>,
    credentials: &mut impl Credentials,
    head: &Head<'_>,
    now: u64,
) -> Result<Option<Transaction>, Stop> {
    let token = match (granted.proof, head.txn_token) {
        (Proof::None, _) => return Ok(None),
        (Proof::Transaction, Named::One(token)) => Ok(token),
        (Proof::Transaction, Named::None) => {
            Err(Refusal::new(Reason::TxnMissing, "the rule wants a transaction token and the call carries none"))
        }
        (Proof::Transaction, Named::Many) => {
            Err(Refusal::new(Reason::TxnInvalid, "the call carries several transaction tokens"))
        }
    };
    let shown = token.and_then(|token| credentials.transaction(token, head.tenant, now));
    let shown = granted.enforce(shown.map_err(Stop::from))?;
    if let (Some(Transaction::OtherTenant), TenantRequirement::Required | TenantRequirement::Optional) =
        (shown, granted.tenant)
    {
        let message = "the transaction token was not issued for the tenant that the call names";
        granted.enforce(Err::<(), _>(Refusal::new(Reason::TxnTenantMismatch, message).into()))?;
    }
    Ok(shown)
}

/// Whether the replica has what the caller has seen. Concerns calls whose tenant is looked at; before the first snapshot
/// there is nothing to compare with, and [`admit`] says so. Comes back with what the caller has seen.
fn freshness(
    granted: &Granted<'_>,
    tenants: &impl Tenants,
    head: &Head<'_>,
    waited: Waited,
) -> Result<Option<Position>, Stop> {
    let (TenantRequirement::Required | TenantRequirement::Optional, Named::One(_) | Named::Many, Some(seen)) =
        (granted.tenant, head.tenant, head.tenant_revision)
    else {
        return Ok(None);
    };
    let stale = |message: String| Err(Refusal::new(Reason::TenantStale, message).into());
    let Ok(seen) = seen.parse::<Position>() else {
        return stale("x-tenant-revision is not <epoch>.<revision>".to_owned());
    };
    match tenants.position() {
        Some(reached) if reached < seen && waited.for_revision => {
            stale(format!("the caller saw {seen}, this replica has {reached}"))
        }
        Some(reached) if reached < seen => Err(Stop::WaitFor(seen)),
        Some(_) | None => Ok(Some(seen)),
    }
}

/// Finds the tenant, no older than the caller has seen it, and checks that this instance may serve it.
fn admit<T: Tenants>(
    granted: &Granted<'_>,
    state: &State,
    tenants: &T,
    named: Named<'_>,
    seen: Option<Position>,
    now: u64,
    waited: Waited,
) -> Result<Option<T::Ref>, Stop> {
    let refuse = |reason, message: String| Err(Refusal::new(reason, message).into());
    let id = match (granted.tenant, named) {
        (TenantRequirement::None, _) | (TenantRequirement::Optional, Named::None) => return Ok(None),
        (TenantRequirement::Required, Named::None) => {
            return refuse(Reason::TenantRequired, "the rule wants a tenant and the call names none".to_owned());
        }
        // TENANT_AMBIGUOUS is the app's mistake and outbound's word; over the wire two ids are nobody's id.
        (_, Named::Many) => return refuse(Reason::TenantUnknown, "the call names several tenants".to_owned()),
        (_, Named::One(id)) => id,
    };
    match tenants.get(id) {
        Lookup::Found(tenant) if outdated(tenants, &tenant, seen) => Err(not_held(id, waited, || {
            let message = format!("this sidecar could not ask for what the caller saw of tenant {}", tenant.id());
            Refusal::new(Reason::TenantStale, message)
        })),
        Lookup::Found(tenant) => Ok(servable(state, &tenant, now).map(|()| Some(tenant))?),
        Lookup::Nobody => Err(unknown(id).into()),
        Lookup::NotHeld => Err(not_held(id, waited, || {
            Refusal::new(Reason::TcsUnavailable, "this sidecar does not hold the tenant and cannot ask for it")
        })),
    }
}

/// Whether the caller has seen what may be newer than `tenant`.
fn outdated<T: Tenants>(tenants: &T, tenant: &T::Ref, seen: Option<Position>) -> bool {
    seen.is_some_and(|seen| tenants.as_of(tenant).is_some_and(|as_of| as_of < seen))
}

/// Active, licensed and at home here.
fn servable(state: &State, tenant: &Tenant, now: u64) -> Result<(), Refusal> {
    let (id, policy) = (tenant.id(), state.policy.as_deref());
    match tenant.status() {
        Status::Active => {}
        Status::Suspended => return Err(Refusal::new(Reason::TenantSuspended, format!("tenant {id} is suspended"))),
    }
    if let Some(product) = policy.and_then(Policy::product) {
        match tenant.product(product, now) {
            ProductState::Active => {}
            ProductState::Inactive => {
                let message = format!("tenant {id} has no licence for product {product}");
                return Err(Refusal::new(Reason::ProductNotLicensed, message));
            }
            ProductState::Suspended => {
                let message = format!("product {product} of tenant {id} is suspended");
                return Err(Refusal::new(Reason::ProductSuspended, message));
            }
        }
    }
    match (policy.map(Policy::residency).unwrap_or_default(), &state.region) {
        (Residency::Any, _) => Ok(()),
        (Residency::Home, Some(here)) if here.as_str() == tenant.region() => Ok(()),
        (Residency::Home, _) => {
            let message = format!("the home region of tenant {id} is not served by this instance of {}", state.me);
            Err(Refusal::new(Reason::TenantWrongRegion, message))
        }
    }
}

/// Whether the rule is for this tenant. In audit mode the app is handed a tenant that it is not for.
fn intended(granted: &Granted<'_>, state: &State, tenant: Option<&Tenant>) -> Result<(), Stop> {
    let (Some((rule, conditions)), Some(tenant)) = (granted.tenants, tenant) else { return Ok(()) };
    match conditions.missed(tenant, state.policy.as_deref().and_then(Policy::product)) {
        None => Ok(()),
        Some(missed) => {
            let (rule, id) = (rule.name(), tenant.id());
            let message = format!("rule {rule} of service {} is not for tenant {id}, by its {missed}", state.me);
            Err(Refusal::new(Reason::TenantNotAllowed, message).into())
        }
    }
}

/// Why nobody was found under `id`.
fn unknown(id: &str) -> Refusal {
    match TenantId::try_from(id) {
        Err(_) => Refusal::new(Reason::TenantUnknown, "what the call names is not a tenant id"),
        Ok(id) => Refusal::new(Reason::TenantUnknown, format!("nobody knows tenant {id}")),
    }
}

/// The tenant has to be asked for; when it was, `unavailable`. What is no id is nobody's, without asking.
fn not_held(id: &str, waited: Waited, unavailable: impl FnOnce() -> Refusal) -> Stop {
    match TenantId::try_from(id) {
        Err(_) => unknown(id).into(),
        Ok(_) if waited.for_tenant => unavailable().into(),
        Ok(id) => Stop::Resolve(Wanted::Id(id)),
    }
}

#[cfg(test)]
mod tests;
