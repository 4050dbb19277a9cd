//! The decision on a call of the sidecar's own app (DESIGN §3, "Outbound").

mod destination;

use std::ops::Deref;

use mesh_config::names::{RegionName, ServiceName, TenantId, ZoneName};

use crate::{
    Lookup, Named, Position, Quarantined, Reason, Refusal, Tenants, Wanted, balance::Candidates, policy::Residency,
    refusal::shown, tenancy::Tenant,
};

pub use self::destination::{Destination, Destinations};

/// All that outbound decisions are made from but tenants: one snapshot, so that no decision mixes two revisions.
#[derive(Debug)]
pub struct State {
    /// The caller.
    pub me: ServiceName,
    /// Where this instance runs.
    pub region: Option<RegionName>,
    /// Where it runs within the region.
    pub zone: Option<ZoneName>,
    /// Whether the app may call for tenants that it is not serving at the moment; `false` while its own policy is unknown.
    pub originates: bool,
    /// Who is cut off.
    pub quarantined: Quarantined,
    /// Every service of the mesh; `None` until the first complete snapshot of routes ever.
    pub destinations: Option<Destinations>,
}

/// What of a request's head decides.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `:authority`: `media`, `media.eu-west`, each with or without a port, which is ignored.
    pub authority: &'a str,
    /// `x-tenant-id`.
    pub tenant_ids: Named<'a>,
    /// `x-tenant-host`.
    pub tenant_hosts: Named<'a>,
}

/// Where the call goes, and for whom.
#[derive(Debug)]
pub struct Verdict<'s, R> {
    /// The service.
    pub destination: &'s Destination,
    /// The tenant.
    pub tenant: CallFor<R>,
    /// The instances to try, at least one.
    pub candidates: Candidates<'s>,
}

/// For whom a call is made.
#[derive(Debug)]
pub enum CallFor<R> {
    /// It names no tenant.
    Nobody,
    /// A tenant of the replica, and the position of its record: `x-tenant-revision`.
    Tenant(R, Position),
    /// An id that nobody has (yet): passed on, the callee decides.
    Unknown(TenantId),
    /// An id of which nothing can be found out: passed on where no home region has to be known for that.
    Unresolved(TenantId),
}

/// The call is not allowed, or not yet.
#[derive(Debug)]
pub enum Stop {
    /// Answer with this.
    Refused(Refusal),
    /// The tenant is not held: ask for it, and decide again with `asked`.
    Resolve(Wanted),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

impl From<Stop> for Refusal {
    /// For those who do not ask: then a tenant that is not held is not to be had.
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(refusal) => refusal,
            Stop::Resolve(_) => unavailable(),
        }
    }
}

impl<R: Deref<Target = Tenant>> CallFor<R> {
    /// `x-tenant-id` of the call.
    pub fn id(&self) -> Option<&str> {
        match self {
            CallFor::Nobody => None,
            CallFor::Tenant(tenant, _) => Some(tenant.id()),
            CallFor::Unknown(id) | CallFor::Unresolved(id) => Some(id.as_str()),
        }
    }

    /// `x-tenant-revision` of the call.
    pub fn position(&self) -> Option<Position> {
        match self {
            CallFor::Tenant(_, position) => Some(*position),
            CallFor::Nobody | CallFor::Unknown(_) | CallFor::Unresolved(_) => None,
        }
    }

    /// The only region that the call may go to: the one that the authority pins, else for a destination that keeps
    /// residency the tenant's home. A tenant that nobody has has none; one that could not be asked about may have any.
    fn region<'r>(&'r self, residency: Residency, pinned: Option<&'r str>) -> Result<Option<&'r str>, Refusal> {
        match (pinned, residency, self) {
            (Some(pinned), ..) => Ok(Some(pinned)),
            (None, Residency::Home, CallFor::Tenant(tenant, _)) => Ok(Some(tenant.region())),
            (None, Residency::Home, CallFor::Unresolved(_)) => Err(unavailable()),
            (None, Residency::Home, CallFor::Nobody | CallFor::Unknown(_)) | (None, Residency::Any, _) => Ok(None),
        }
    }
}

/// Decides one call of the app. `in_flight` says whether the app is serving a tenant right now; it is asked only when the
/// service does not originate calls. `asked` says that the tenant was asked for before.
///
/// # Errors
/// [`Stop::Resolve`] at most once a call, or [`Stop::Refused`] with `POLICY_UNAVAILABLE`, `SERVICE_UNKNOWN`,
/// `QUARANTINED`, `TENANT_AMBIGUOUS`, `TENANT_UNKNOWN`, `TCS_UNAVAILABLE`, `TENANT_NOT_IN_FLIGHT` or `NO_ENDPOINT`.
pub fn decide<'s, T: Tenants>(
    state: &'s State,
    tenants: &T,
    head: &Head<'_>,
    in_flight: impl Fn(&str) -> bool,
    asked: bool,
) -> Result<Verdict<'s, T::Ref>, Stop> {
    let (destination, pinned) = find(state, head.authority)?;
    state.quarantined.check(state.me.as_str(), destination.service().as_str())?;
    let tenant = identify(tenants, head, asked)?;
    originate(state, tenant.id(), in_flight)?;
    let candidates = candidates(destination, tenant.region(destination.residency(), pinned)?)?;
    Ok(Verdict { destination, tenant, candidates })
}

/// The service that the authority names, and the region when it pins one.
fn find<'s, 'h>(state: &'s State, authority: &'h str) -> Result<(&'s Destination, Option<&'h str>), Refusal> {
    let Some(destinations) = &state.destinations else {
        return Err(Refusal::new(Reason::PolicyUnavailable, "this sidecar has not received the mesh's services yet"));
    };
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => authority,
    };
    // Names of services have no dots.
    let (service, region) = match name.split_once('.') {
        Some((service, region)) => (service, Some(region)),
        None => (name, None),
    };
    match destinations.get(service) {
        Some(destination) => Ok((destination, region)),
        None => Err(Refusal::new(
            Reason::ServiceUnknown,
            format!("nobody defines a service for authority {:?}", shown(authority)),
        )),
    }
}

/// For whom the call is. An id that nobody has is passed on: a rule with `tenant: none` takes any.
fn identify<T: Tenants>(tenants: &T, head: &Head<'_>, asked: bool) -> Result<CallFor<T::Ref>, Stop> {
    // Read before the tenant: should a new epoch come between, the call asks for less than it could, never for more.
    let position = tenants.position();
    match (head.tenant_ids, head.tenant_hosts) {
        (Named::None, Named::None) => Ok(CallFor::Nobody),
        (Named::One(id), Named::None) => match (tenants.get(id), position) {
            (Lookup::Found(tenant), Some(position)) => Ok(found(tenants, tenant, position)),
            (Lookup::Found(_), None) | (Lookup::NotHeld, _) if !asked => Err(Stop::Resolve(Wanted::Id(parse(id)?))),
            (Lookup::Found(_), None) | (Lookup::NotHeld, _) => Ok(CallFor::Unresolved(parse(id)?)),
            (Lookup::Nobody, _) => Ok(CallFor::Unknown(parse(id)?)),
        },
        (Named::None, Named::One(host)) => match (by_host(tenants, host), position) {
            (Lookup::Found(tenant), Some(position)) => Ok(found(tenants, tenant, position)),
            (Lookup::Found(_), None) | (Lookup::NotHeld, _) if !asked => {
                Err(Stop::Resolve(Wanted::Host(host.to_ascii_lowercase().into())))
            }
            (Lookup::Found(_), None) | (Lookup::NotHeld, _) => Err(unavailable().into()),
            (Lookup::Nobody, _) => {
                Err(Refusal::new(Reason::TenantUnknown, "no tenant has the host that x-tenant-host names").into())
            }
        },
        (Named::Many, _) | (_, Named::Many) | (Named::One(_), Named::One(_)) => {
            let message = "expected one x-tenant-id or one x-tenant-host, not several and not both";
            Err(Refusal::new(Reason::TenantAmbiguous, message).into())
        }
    }
}

fn parse(id: &str) -> Result<TenantId, Refusal> {
    TenantId::try_from(id).map_err(|_| Refusal::new(Reason::TenantUnknown, "x-tenant-id is not a tenant id"))
}

fn found<T: Tenants>(tenants: &T, tenant: T::Ref, position: Position) -> CallFor<T::Ref> {
    let as_of = tenants.as_of(&tenant).unwrap_or(position);
    let position = Position { revision: tenant.revision(), ..as_of };
    CallFor::Tenant(tenant, position)
}

fn unavailable() -> Refusal {
    Refusal::new(Reason::TcsUnavailable, "this sidecar does not hold the tenant and cannot ask for it")
}

/// The longest host name (RFC 1035, section 2.3.4). What is longer is nobody's.
const LONGEST_HOST: usize = 253;

/// Host names compare without case (RFC 4343); they are held in lower case.
fn by_host<T: Tenants>(tenants: &T, host: &str) -> Lookup<T::Ref> {
    let mut lower = [0; LONGEST_HOST];
    let Some(lower) = lower.get_mut(..host.len()).filter(|lower| !lower.is_empty()) else { return Lookup::Nobody };
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return tenants.by_host(host);
    }
    lower.copy_from_slice(host.as_bytes());
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).map_or(Lookup::Nobody, |lower| tenants.by_host(lower))
}

fn originate(state: &State, tenant: Option<&str>, in_flight: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    match tenant {
        Some(id) if !state.originates && !in_flight(id) => {
            let message = format!("service {} may call only for tenants it is serving, and {id} is none", state.me);
            Err(Refusal::new(Reason::TenantNotInFlight, message))
        }
        Some(_) | None => Ok(()),
    }
}

fn candidates<'s>(destination: &'s Destination, region: Option<&str>) -> Result<Candidates<'s>, Refusal> {
    let candidates = destination.endpoints().candidates(region);
    if !candidates.is_empty() {
        return Ok(candidates);
    }
    let service = destination.service();
    let message = match region {
        Some(region) => format!("service {service} has no instance in region {:?}", shown(region)),
        None => format!("service {service} has no instance"),
    };
    Err(Refusal::new(Reason::NoEndpoint, message))
}

#[cfg(test)]
mod tests;
