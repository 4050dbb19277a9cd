//! The life of a tenant and of its products: which event is legal when, and what it makes of them.
//!
//! [`TABLE`] is all of it; docs/tcs.md shows the same table. Pure: no journal, no clock.

use std::fmt;

use mesh_config::names::RegionName;
use pbjson_types::Timestamp;
use tenon_proto::tcs::v1::lifecycle_event::Change;
use tenon_proto::tcs::v1::tenant_context::Status;
use tenon_proto::tcs::v1::{
    BeginMove, CreateProduct, CreateTenant, FinishMove, Move, Product, TenantContext, UpdateLicense, product,
};

use Event as E;
use ProductState as P;
use TenantState as T;

/// Where a tenant is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TenantState {
    /// There is none of that id.
    Absent,
    Active,
    Suspended,
    /// Active, and on its way to another region.
    Moving,
    /// Suspended, and on its way to another region.
    MovingSuspended,
}

/// Where a product of a tenant is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ProductState {
    /// The tenant does not have it.
    Absent,
    Inactive,
    Active,
    Suspended,
}

/// What can happen, by the names of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    CreateTenant,
    DestroyTenant,
    SuspendTenant,
    UnsuspendTenant,
    CreateProduct,
    DestroyProduct,
    ActivateProduct,
    DeactivateProduct,
    SuspendProduct,
    UnsuspendProduct,
    UpdateLicense,
    BeginMove,
    FinishMove,
    AbandonMove,
}

/// When one event is legal, and where it leads.
pub(crate) struct Row {
    pub event: Event,
    /// The tenant's state before and after; what is not here is illegal.
    pub tenant: &'static [(TenantState, TenantState)],
    /// The product's state before and after; empty for events of the tenant itself.
    pub product: &'static [(ProductState, ProductState)],
}

/// A tenant that does not move keeps its state through events of its products.
const SETTLED: &[(TenantState, TenantState)] = &[(T::Active, T::Active), (T::Suspended, T::Suspended)];
/// A product can be cut off at any time.
const PRESENT: &[(TenantState, TenantState)] = &[
    (T::Active, T::Active),
    (T::Suspended, T::Suspended),
    (T::Moving, T::Moving),
    (T::MovingSuspended, T::MovingSuspended),
];

/// The state machine, whole.
#[rustfmt::skip]
pub(crate) const TABLE: [Row; 14] = [
    Row { event: E::CreateTenant, tenant: &[(T::Absent, T::Active)], product: &[] },
    Row { event: E::DestroyTenant, tenant: &[(T::Active, T::Absent), (T::Suspended, T::Absent)], product: &[] },
    Row { event: E::SuspendTenant, tenant: &[(T::Active, T::Suspended), (T::Moving, T::MovingSuspended)], product: &[] },
    Row { event: E::UnsuspendTenant, tenant: &[(T::Suspended, T::Active), (T::MovingSuspended, T::Moving)], product: &[] },
    Row { event: E::BeginMove, tenant: &[(T::Active, T::Moving), (T::Suspended, T::MovingSuspended)], product: &[] },
    Row { event: E::FinishMove, tenant: &[(T::Moving, T::Active), (T::MovingSuspended, T::Suspended)], product: &[] },
    Row { event: E::AbandonMove, tenant: &[(T::Moving, T::Active), (T::MovingSuspended, T::Suspended)], product: &[] },
    Row { event: E::CreateProduct, tenant: SETTLED, product: &[(P::Absent, P::Inactive)] },
    Row { event: E::DestroyProduct, tenant: SETTLED, product: &[(P::Inactive, P::Absent), (P::Active, P::Absent), (P::Suspended, P::Absent)] },
    Row { event: E::ActivateProduct, tenant: SETTLED, product: &[(P::Inactive, P::Active)] },
    Row { event: E::DeactivateProduct, tenant: SETTLED, product: &[(P::Active, P::Inactive)] },
    Row { event: E::SuspendProduct, tenant: PRESENT, product: &[(P::Active, P::Suspended)] },
    Row { event: E::UnsuspendProduct, tenant: PRESENT, product: &[(P::Suspended, P::Active)] },
    Row { event: E::UpdateLicense, tenant: SETTLED, product: &[(P::Inactive, P::Inactive), (P::Active, P::Active), (P::Suspended, P::Suspended)] },
];

/// Why an event changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not in this state.
    Illegal {
        event: Event,
        tenant: TenantState,
        /// Of events that name a product of a tenant that exists.
        product: Option<(String, ProductState)>,
        /// What would be legal, of the tenant and of the product.
        legal: Vec<Event>,
    },
    /// Legal by the table, and yet it does not fit this tenant.
    Misfit(String),
    /// What the event says makes no tenant.
    Invalid(Vec<String>),
}

impl TenantState {
    pub(crate) fn of(tenant: Option<&TenantContext>) -> Self {
        match tenant {
            None => Self::Absent,
            Some(TenantContext { status, r#move, .. }) => match (*status == Status::Suspended as i32, r#move) {
                (false, None) => Self::Active,
                (true, None) => Self::Suspended,
                (false, Some(_)) => Self::Moving,
                (true, Some(_)) => Self::MovingSuspended,
            },
        }
    }
}

impl ProductState {
    pub(crate) fn of(product: Option<&Product>) -> Self {
        match product.map(Product::state) {
            None => Self::Absent,
            // A record without a state does not pass the check of what is written.
            Some(product::State::Inactive | product::State::Unspecified) => Self::Inactive,
            Some(product::State::Active) => Self::Active,
            Some(product::State::Suspended) => Self::Suspended,
        }
    }
}

impl Event {
    pub(crate) fn of(change: &Change) -> Self {
        match change {
            Change::CreateTenant(_) => E::CreateTenant,
            Change::DestroyTenant(_) => E::DestroyTenant,
            Change::SuspendTenant(_) => E::SuspendTenant,
            Change::UnsuspendTenant(_) => E::UnsuspendTenant,
            Change::CreateProduct(_) => E::CreateProduct,
            Change::DestroyProduct(_) => E::DestroyProduct,
            Change::ActivateProduct(_) => E::ActivateProduct,
            Change::DeactivateProduct(_) => E::DeactivateProduct,
            Change::SuspendProduct(_) => E::SuspendProduct,
            Change::UnsuspendProduct(_) => E::UnsuspendProduct,
            Change::UpdateLicense(_) => E::UpdateLicense,
            Change::BeginMove(_) => E::BeginMove,
            Change::FinishMove(_) => E::FinishMove,
            Change::AbandonMove(_) => E::AbandonMove,
        }
    }

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.event == self).expect("every event has a row: a test asks for each")
    }
}

impl Row {
    /// Where the event leads from here: the states of tenant and product.
    pub(crate) fn step(
        &self,
        tenant: TenantState,
        product: Option<ProductState>,
    ) -> Option<(TenantState, Option<ProductState>)> {
        let (_, tenant) = self.tenant.iter().find(|(from, _)| *from == tenant)?;
        let product = match (self.product, product) {
            ([], _) => None,
            (_, None) => return None,
            (steps, Some(now)) => Some(steps.iter().find(|(from, _)| *from == now)?.1),
        };
        Some((*tenant, product))
    }
}

/// What is legal in a state: events of the tenant, and those of the product when one is given.
pub(crate) fn legal(tenant: TenantState, product: Option<ProductState>) -> Vec<Event> {
    TABLE.iter().filter(|row| row.step(tenant, product).is_some()).map(|row| row.event).collect()
}

/// The product that an event is about.
pub(crate) fn product_of(change: &Change) -> Option<&str> {
    match change {
        Change::CreateProduct(CreateProduct { product, .. }) | Change::UpdateLicense(UpdateLicense { product, .. }) => {
            Some(product)
        }
        Change::DestroyProduct(event) => Some(&event.product),
        Change::ActivateProduct(event) => Some(&event.product),
        Change::DeactivateProduct(event) => Some(&event.product),
        Change::SuspendProduct(event) => Some(&event.product),
        Change::UnsuspendProduct(event) => Some(&event.product),
        Change::CreateTenant(_)
        | Change::DestroyTenant(_)
        | Change::SuspendTenant(_)
        | Change::UnsuspendTenant(_)
        | Change::BeginMove(_)
        | Change::FinishMove(_)
        | Change::AbandonMove(_) => None,
    }
}

/// What an event makes of a tenant (absent: there is none); an absent result: it is gone.
///
/// # Errors
/// [`Refused`]; then nothing is to be written.
pub(crate) fn apply(
    id: &str,
    tenant: Option<TenantContext>,
    change: &Change,
    now: Timestamp,
) -> Result<Option<TenantContext>, Refused> {
    let event = Event::of(change);
    let from = TenantState::of(tenant.as_ref());
    let product = product_of(change)
        .map(|name| (name.to_owned(), ProductState::of(tenant.as_ref().and_then(|tenant| tenant.products.get(name)))));
    let product_state = product.as_ref().map(|(_, state)| *state);
    let Some((to, product_to)) = event.row().step(from, product_state) else {
        let product = product.filter(|_| from != T::Absent);
        let legal = legal(from, product.as_ref().map(|(_, state)| *state));
        return Err(Refused::Illegal { event, tenant: from, product, legal });
    };
    let mut next = match (tenant, change) {
        (_, Change::CreateTenant(create)) => created(id, create.clone()),
        (Some(tenant), _) => tenant,
        (None, _) => unreachable!("the table creates a tenant with CreateTenant alone"),
    };
    details(&mut next, change, now)?;
    if to == T::Absent {
        return Ok(None);
    }
    let suspended = matches!(to, T::Suspended | T::MovingSuspended);
    next.set_status(if suspended { Status::Suspended } else { Status::Active });
    if let (Some((name, _)), Some(to)) = (product, product_to) {
        enter(&mut next, &name, to);
    }
    next.revision = 0;
    match mesh_config::tenant::check(&next) {
        Ok(()) => Ok(Some(next)),
        Err(problems) => Err(Refused::Invalid(problems)),
    }
}

fn created(id: &str, CreateTenant { hosts, realm, region, settings }: CreateTenant) -> TenantContext {
    TenantContext { tenant_id: id.to_owned(), hosts, realm, region, settings, ..TenantContext::default() }
}

/// What an event changes beside the states.
fn details(tenant: &mut TenantContext, change: &Change, now: Timestamp) -> Result<(), Refused> {
    match change.clone() {
        Change::CreateProduct(CreateProduct { product, edition, seats, license_expires_at, features, shard }) => {
            let new = Product { state: 0, edition, seats, license_expires_at, features, shard };
            tenant.products.insert(product, new);
        }
        Change::UpdateLicense(UpdateLicense { product, edition, seats, license_expires_at, features }) => {
            if let Some(held) = tenant.products.get_mut(&product) {
                *held = Product { edition, seats, license_expires_at, features, ..std::mem::take(held) };
            }
        }
        Change::BeginMove(BeginMove { to_region }) => {
            if let Err(error) = RegionName::try_from(to_region.as_str()) {
                return Err(Refused::Invalid(vec![format!("toRegion: {error}")]));
            }
            if to_region == tenant.region {
                return Err(Refused::Misfit(format!("tenant {} is at home in {to_region}", tenant.tenant_id)));
            }
            tenant.r#move = Some(Move { to_region, started_at: Some(now) });
        }
        Change::FinishMove(finish) => arrive(tenant, finish)?,
        Change::AbandonMove(_) => tenant.r#move = None,
        Change::CreateTenant(_)
        | Change::DestroyTenant(_)
        | Change::SuspendTenant(_)
        | Change::UnsuspendTenant(_)
        | Change::DestroyProduct(_)
        | Change::ActivateProduct(_)
        | Change::DeactivateProduct(_)
        | Change::SuspendProduct(_)
        | Change::UnsuspendProduct(_) => {}
    }
    Ok(())
}

fn arrive(tenant: &mut TenantContext, FinishMove { shards }: FinishMove) -> Result<(), Refused> {
    for (name, shard) in shards {
        let Some(product) = tenant.products.get_mut(&name) else {
            let what = format!("tenant {} has no product {name:?}, which FinishMove gives a shard", tenant.tenant_id);
            return Err(Refused::Misfit(what));
        };
        product.shard = Some(shard);
    }
    if let Some(Move { to_region, .. }) = tenant.r#move.take() {
        tenant.region = to_region;
    }
    Ok(())
}

fn enter(tenant: &mut TenantContext, name: &str, state: ProductState) {
    let state = match state {
        P::Absent => {
            tenant.products.remove(name);
            return;
        }
        P::Inactive => product::State::Inactive,
        P::Active => product::State::Active,
        P::Suspended => product::State::Suspended,
    };
    if let Some(product) = tenant.products.get_mut(name) {
        product.set_state(state);
    }
}

impl fmt::Display for TenantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            T::Absent => "absent",
            T::Active => "ACTIVE",
            T::Suspended => "SUSPENDED",
            T::Moving => "ACTIVE, moving",
            T::MovingSuspended => "SUSPENDED, moving",
        })
    }
}

impl fmt::Display for ProductState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            P::Absent => "absent",
            P::Inactive => "INACTIVE",
            P::Active => "ACTIVE",
            P::Suspended => "SUSPENDED",
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `CreateTenant, DestroyTenant`; `nothing` when there is none.
pub(crate) fn listed(events: &[Event]) -> String {
    if events.is_empty() {
        return "nothing".to_owned();
    }
    events.iter().map(Event::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Illegal { event, tenant, product, legal } => {
                write!(f, "{event} is illegal: the tenant is {tenant}")?;
                if let Some((name, state)) = product {
                    write!(f, ", its product {name} is {state}")?;
                }
                write!(f, "; legal would be {}", listed(legal))
            }
            Self::Misfit(what) => f.write_str(what),
            Self::Invalid(problems) => f.write_str(&problems.join("\n")),
        }
    }
}

#[cfg(test)]
mod tests;
