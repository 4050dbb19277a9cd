//! What would happen to a call: `tenon policy explain` and `PolicyTest`, offline and online (DESIGN §8). The answer comes
//! from [`outbound::decide`] and [`inbound::decide`], with the caller's credentials taken for good. A caller outside of
//! the mesh has no outbound side, and one that nobody defines has no credentials.

mod here;
mod proposal;

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use mesh_config::names::{RegionName, ServiceName};
use prost::Message as _;
use tenon_proto::{policy::v1 as proto, tcs::v1::TenantContext};

use crate::{
    Named, Peer, Position, Quarantined, Reason, Refusal, Tenants as _, inbound,
    outbound::{self, Destinations},
    policy::{Condition, Match, Nearest, Policy, Rate, Residency, Rule, TenantRequirement},
    tenancy::{Held, Tenant},
};

use self::proposal::Refused;
pub use self::{
    here::{Asked, Granted, inbound, stranger},
    proposal::{Change, Place, Proposal},
};

/// A mesh as its records describe it, ready to be asked.
#[derive(Debug)]
pub struct Mesh {
    policies: BTreeMap<String, Arc<Policy>>,
    /// What `policies` were made from, for proposals.
    records: BTreeMap<String, proto::ServicePolicy>,
    routes: Vec<proto::Route>,
    quarantined: Quarantined,
    /// `None`: no tenant is known, so each that is named is assumed to be a servable one.
    tenants: Option<Held>,
}

/// A call that might be made.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The calling service, or the name of a client outside of the mesh.
    pub caller: &'a str,
    /// The called service.
    pub service: &'a str,
    /// `/package.Service/Method`, without query.
    pub path: &'a str,
    /// The tenant's id.
    pub tenant: Option<&'a str>,
    /// Where the called instance runs. Absent: the tenant's home region, so that residency is satisfied.
    pub region: Option<&'a str>,
    /// The transaction token that it carries.
    pub transaction: Option<TransactionToken<'a>>,
}

/// A transaction token of the mesh, valid and current.
#[derive(Clone, Copy, Debug)]
pub struct TransactionToken<'a> {
    /// The tenant in it, if any.
    pub tenant: Option<&'a str>,
}

/// What would happen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whether the call passes.
    pub allowed: bool,
    /// Why not.
    pub reason: Option<Reason>,
    /// The same for people; one line.
    pub message: Option<String>,
    /// The Allowlist of the rule that decided; or that whose audit mode let pass what no rule matches.
    pub allowlist: Option<String>,
    /// The rule that decided, also when its conditions then refused.
    pub rule: Option<String>,
    /// Where that rule stands, `media.yaml:12`.
    pub source: Option<String>,
    /// When no rule matches: the one that came closest.
    pub nearest: Option<Nearest>,
    /// When the rule is not for the tenant: what of the tenant it is not for.
    pub condition: Option<Condition>,
    /// What audit mode let pass, and enforcing would refuse.
    pub audited: Option<Reason>,
    /// What would allow the call; in audit mode also if it was enforced. `None` where nothing small would.
    pub proposal: Option<Proposal>,
    /// How often the call may be made, when the rule that decided says so. No call was made: it is no reason.
    pub limited: Option<Limited>,
    /// What was taken for granted for lack of knowledge, in words.
    pub assumed: Vec<String>,
}

/// What a rule's rate means for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// At each instance.
    pub rate: Rate,
    /// The tenant has it, whoever calls; otherwise the calling service.
    pub of_the_tenant: bool,
    /// It is logged, and not enforced.
    pub audit: bool,
}

impl Explanation {
    /// Of a refusal that `policy` was the ground of.
    pub fn of(policy: &Policy, refusal: Refusal) -> Self {
        refused(policy, refusal, Vec::new())
    }

    /// The rule that decided.
    pub fn rule_of<'p>(&self, policy: &'p Policy) -> Option<&'p Rule> {
        policy.rules().iter().find(|rule| self.rule.as_deref() == Some(rule.name()))
    }
}

impl Mesh {
    /// Takes the records of a compiled folder (`mesh_config::compile`) or of the policy service's `Describe`.
    ///
    /// `tenants`: `Some` is all there are, and others are unknown; `None` means that nothing is known of tenants, so that
    /// each that is named is assumed active, licensed and at home where the callee runs.
    ///
    /// # Errors
    /// Says which record cannot be used.
    pub fn new<'r>(
        services: impl IntoIterator<Item = &'r proto::ServicePolicy>,
        routes: impl IntoIterator<Item = &'r proto::Route>,
        quarantines: impl IntoIterator<Item = &'r proto::Quarantine>,
        tenants: Option<Vec<TenantContext>>,
    ) -> Result<Self, String> {
        let records: BTreeMap<_, _> =
            services.into_iter().map(|record| (record.service.clone(), record.clone())).collect();
        let compile = |(name, record): (&String, _)| Ok((name.clone(), Arc::new(Policy::try_from(record)?)));
        Ok(Mesh {
            policies: records.iter().map(compile).collect::<Result<_, String>>()?,
            records,
            routes: routes.into_iter().cloned().collect(),
            quarantined: quarantines.into_iter().collect(),
            tenants: tenants.map(hold).transpose()?,
        })
    }

    /// What would happen to the call at `now` (Unix seconds).
    ///
    /// Outbound's checks that do not depend on running instances are made too: `SERVICE_UNKNOWN`, `QUARANTINED` and the
    /// grammar of the tenant id. That the tenant is in flight is assumed where the caller's `originates` is false.
    ///
    /// # Errors
    /// The caller, the service or the region is not a name at all.
    pub fn explain(&self, call: &Call<'_>, now: u64) -> Result<Explanation, String> {
        let name = |text: &str| ServiceName::try_from(text).map_err(|error| error.to_string());
        let (caller, callee) = (name(call.caller)?, name(call.service)?);
        let policy = self.policies.get(call.service).map_or_else(|| Arc::new(Policy::empty()), Arc::clone);
        let mut assumed = Vec::new();
        let peer = self.peer(call, &policy);
        let tenants = self.tenants_for(call, &policy, peer, &mut assumed)?;
        let region = instance_region(call, &tenants)?;

        let before = match peer {
            Some(Peer::Service(_)) => self.outbound(call, &tenants, caller, region.as_ref(), &mut assumed),
            Some(Peer::Outside(_)) => self.defined(call.service),
            None => Err(self.nobody(call, &policy)),
        };
        let inbound = |policy: &Arc<Policy>| {
            let (me, region, quarantined) = (callee.clone(), region.clone(), self.quarantined.clone());
            let state =
                inbound::State { me, region, policy: Some(Arc::clone(policy)), quarantined, policy_position: None };
            // Nobody's calls are asked about only to find out what would let the same call of somebody pass.
            inbound_of(&state, &tenants, peer.unwrap_or(Peer::Service(call.caller)), call, now)
        };
        let outcome = before.and_then(|()| inbound(&policy));
        let tenant = call.tenant.and_then(|id| tenants.get(id).found());
        let refused = Refused {
            call: *call,
            record: self.records.get(call.service),
            tenant: tenant.as_deref(),
            nobody: peer.is_none(),
        };
        let enforced = |policy: Policy| inbound(&Arc::new(policy)).err();
        let ruled = peer.is_some_and(|peer| matches!(policy.authorize(peer, call.path), Match::Rule(..)));
        let propose = |refusal: &Refusal| {
            let cut_off = refusal.reason == Reason::Quarantined;
            if cut_off { self.release(call).filter(|_| ruled) } else { refused.propose(refusal, enforced) }
        };
        let mut explanation = match outcome {
            Ok((rule, audited)) => {
                let proposal = audited.as_ref().and_then(propose);
                Explanation { proposal, ..passed(&policy, rule, audited, assumed) }
            }
            Err(refusal) => {
                let proposal = propose(&refusal);
                Explanation { proposal, ..self::refused(&policy, refusal, assumed) }
            }
        };
        let rule = explanation.rule_of(&policy);
        if [explanation.reason, explanation.audited].contains(&Some(Reason::TenantNotAllowed)) {
            explanation.condition = missed(&policy, rule, tenant.as_deref());
        }
        explanation.limited = rule.and_then(|rule| limited(rule, call));
        Ok(explanation)
    }

    /// Who calls, as TLS would prove it to the callee; `None` when it would prove nothing.
    fn peer<'a>(&self, call: &Call<'a>, policy: &Policy) -> Option<Peer<'a>> {
        if self.is_defined(call.caller) {
            Some(Peer::Service(call.caller))
        } else {
            policy.knows_outside(call.caller).then_some(Peer::Outside(call.caller))
        }
    }

    fn is_defined(&self, service: &str) -> bool {
        self.routes.iter().any(|route| route.service == service)
    }

    /// What the sidecar of a calling service says by itself; for callers that have none.
    fn defined(&self, service: &str) -> Result<(), Refusal> {
        match self.is_defined(service) {
            true => Ok(()),
            false => Err(Refusal::new(Reason::ServiceUnknown, format!("nobody defines service {service}"))),
        }
    }

    /// Why a caller that TLS proves nothing of is refused. The mesh itself ends its connection without a reason.
    fn nobody(&self, call: &Call<'_>, policy: &Policy) -> Refusal {
        if let Err(refusal) = self.defined(call.service) {
            return refusal;
        }
        stranger(policy, call)
    }

    /// What a quarantine is answered with, where a rule would let the call pass.
    fn release(&self, call: &Call<'_>) -> Option<Proposal> {
        let cut_off = [call.caller, call.service].into_iter().filter(|name| self.quarantined.reason(name).is_some());
        let mut changes: Vec<_> = cut_off.map(|name| Change::Release { service: name.to_owned() }).collect();
        changes.dedup();
        (!changes.is_empty()).then_some(Proposal { changes })
    }

    /// The tenants that the mesh knows, or one made up from the call.
    fn tenants_for(
        &self,
        call: &Call<'_>,
        policy: &Policy,
        peer: Option<Peer<'_>>,
        assumed: &mut Vec<String>,
    ) -> Result<Cow<'_, Held>, String> {
        let (None, Some(id)) = (&self.tenants, call.tenant) else {
            let known = self.tenants.as_ref();
            return Ok(known.map_or_else(|| Cow::Owned(Held::nothing_yet()), Cow::Borrowed));
        };
        let rule = peer.and_then(|peer| match policy.authorize(peer, call.path) {
            Match::Rule(_, rule) => Some(rule),
            Match::Nothing => None,
        });
        // An id that breaks the grammar cannot be held, and is then as unknown as it should be.
        let Ok(tenants) = hold(vec![made_up(id, call, policy, rule)]) else {
            return hold(Vec::new()).map(Cow::Owned);
        };
        let made_up = tenants.get(id).found();
        let at_home = call.region.is_none() || made_up.as_deref().map(Tenant::region) == call.region;
        let home = if at_home { "licensed and at home where the instance runs" } else { "and licensed" };
        assumed.push(format!("tenant {id} is known, active{} {home}", if at_home { "," } else { "" }));
        if let Some(rule) = rule.filter(|rule| rule.conditions.is_some())
            && missed(policy, Some(rule), made_up.as_deref()).is_none()
        {
            assumed.push(format!("tenant {id} is one that rule {} is for", rule.name()));
        }
        Ok(Cow::Owned(tenants))
    }

    /// Outbound's decision, given one instance of the service in `region`.
    fn outbound(
        &self,
        call: &Call<'_>,
        tenants: &Held,
        caller: ServiceName,
        region: Option<&RegionName>,
        assumed: &mut Vec<String>,
    ) -> Result<(), Refusal> {
        let here = region.map_or(ANYWHERE, RegionName::as_str).to_owned();
        let endpoint = proto::Endpoint {
            service: call.service.to_owned(),
            region: here.clone(),
            zone: String::new(),
            address: "127.0.0.1:15006".to_owned(),
            lease: None,
        };
        let (destinations, _unusable) = Destinations::build(&self.routes, [&endpoint], (None, None), None);
        let originates = self.policies.get(call.caller).is_none_or(|policy| policy.originates());
        let (quarantined, destinations) = (self.quarantined.clone(), Some(destinations));
        let state = outbound::State { me: caller, region: None, zone: None, originates, quarantined, destinations };
        let authority = format!("{}.{here}", call.service);
        let head = outbound::Head { authority: &authority, tenant_ids: named(call), tenant_hosts: Named::None };
        outbound::decide(&state, tenants, &head, |_| true, true)?;
        if let (false, Some(tenant)) = (originates, call.tenant) {
            assumed.push(format!("{} is serving tenant {tenant} at the moment (originates: false)", call.caller));
        }
        Ok(())
    }
}

/// The callee's decision, with everything waited for and the caller's credentials good.
fn inbound_of(
    state: &inbound::State,
    tenants: &Held,
    peer: Peer<'_>,
    call: &Call<'_>,
    now: u64,
) -> Result<(Option<u32>, Option<Refusal>), Refusal> {
    match here::ask(state, tenants, peer, call, now, inbound::Waited::FOR_ALL) {
        Ok(verdict) => Ok((verdict.rule, verdict.audited)),
        Err(inbound::Stop::Refused(refusal)) => Err(refusal),
        // Nothing is waited for: everything was, as far as the decision knows.
        Err(inbound::Stop::WaitFor(position)) => {
            Err(Refusal::new(Reason::TenantStale, format!("revision {position} is not here")))
        }
        Err(inbound::Stop::Resolve(_)) => Err(Refusal::new(Reason::TcsUnavailable, "the tenant is not held")),
    }
}

/// A tenant that nothing speaks against: servable where the call goes, and what its rule wants but of another id.
fn made_up(id: &str, call: &Call<'_>, policy: &Policy, rule: Option<&Rule>) -> TenantContext {
    let conditions = rule.and_then(|rule| rule.conditions.as_deref());
    let wanted = conditions.and_then(|conditions| conditions.any_region());
    let region = match (call.region, policy.residency()) {
        // Only tenants that are at home there are served there.
        (Some(region), Residency::Home) => region,
        (region, Residency::Any | Residency::Home) => wanted.or(region).unwrap_or(ANYWHERE),
    };
    let product = tenon_proto::tcs::v1::Product {
        state: tenon_proto::tcs::v1::product::State::Active.into(),
        edition: conditions.and_then(|conditions| conditions.any_edition()).unwrap_or_default().to_owned(),
        features: conditions.iter().flat_map(|conditions| conditions.features()).map(str::to_owned).collect(),
        ..Default::default()
    };
    TenantContext {
        tenant_id: id.to_owned(),
        status: tenon_proto::tcs::v1::tenant_context::Status::Active.into(),
        region: region.to_owned(),
        products: policy.product().map(|name| (name.to_owned(), product)).into_iter().collect(),
        ..Default::default()
    }
}

/// Which condition of the rule the tenant does not meet.
fn missed(policy: &Policy, rule: Option<&Rule>, tenant: Option<&Tenant>) -> Option<Condition> {
    rule?.conditions.as_ref()?.missed(tenant?, policy.product())
}

fn limited(rule: &Rule, call: &Call<'_>) -> Option<Limited> {
    let of_the_tenant = call.tenant.is_some() && rule.tenant != TenantRequirement::None;
    Some(Limited { rate: rule.rate()?, of_the_tenant, audit: rule.audit })
}

/// Stands for the region of an instance when nothing in the call says which.
const ANYWHERE: &str = "anywhere";

fn hold(tenants: Vec<TenantContext>) -> Result<Held, String> {
    let decode = |context: TenantContext| Tenant::decode(Bytes::from(context.encode_to_vec()));
    let tenants = tenants.into_iter().map(decode).collect::<Result<Vec<_>, String>>()?;
    Ok(Held::snapshot(Position { epoch: 1, revision: 1 }, tenants))
}

fn named<'a>(call: &Call<'a>) -> Named<'a> {
    call.tenant.map_or(Named::None, Named::One)
}

/// Where the called instance runs: as the call says, else in the tenant's home.
fn instance_region(call: &Call<'_>, tenants: &Held) -> Result<Option<RegionName>, String> {
    if let Some(region) = call.region {
        return RegionName::try_from(region).map(Some).map_err(|error| error.to_string());
    }
    let home = call.tenant.and_then(|id| tenants.get(id).found());
    Ok(home.and_then(|tenant| RegionName::try_from(tenant.region()).ok()))
}

fn passed(policy: &Policy, rule: Option<u32>, audited: Option<Refusal>, assumed: Vec<String>) -> Explanation {
    let decided = rule.and_then(|index| policy.rule(index));
    let allowlist = decided.map(|rule| rule.allowlist()).or(policy.audit_allowlist());
    Explanation {
        allowed: true,
        reason: None,
        message: None,
        allowlist: allowlist.map(str::to_owned),
        rule: decided.map(|rule| rule.name().to_owned()),
        source: decided.map(|rule| rule.source().to_owned()),
        condition: None,
        audited: audited.as_ref().map(|refusal| refusal.reason),
        proposal: None,
        nearest: audited.and_then(|refusal| refusal.nearest).map(|nearest| *nearest),
        limited: None,
        assumed,
    }
}

fn refused(policy: &Policy, refusal: Refusal, assumed: Vec<String>) -> Explanation {
    let decided = refusal.rule.and_then(|index| policy.rule(index));
    Explanation {
        allowed: false,
        reason: Some(refusal.reason),
        message: Some(refusal.message),
        allowlist: decided.map(|rule| rule.allowlist().to_owned()),
        rule: decided.map(|rule| rule.name().to_owned()),
        source: decided.map(|rule| rule.source().to_owned()),
        nearest: refusal.nearest.map(|nearest| *nearest),
        condition: None,
        audited: None,
        proposal: None,
        limited: None,
        assumed,
    }
}

#[cfg(test)]
mod tests;
