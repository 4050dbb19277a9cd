//! Tenants as the decisions see them.

use std::{ops::Deref, sync::Arc};

use ahash::AHashMap;
use bytes::Bytes;
use mesh_config::names::TenantId;
use prost::Message as _;
use tenon_proto::tcs::v1 as proto;

use crate::Position;

/// Looks tenants up in what this sidecar holds. Never waits.
pub trait Tenants {
    /// A tenant that stays as it is while the call is decided and served.
    type Ref: Deref<Target = Tenant>;

    /// What has been reached; `None` before the first complete snapshot.
    fn position(&self) -> Option<Position>;

    /// The tenant of this id.
    fn get(&self, id: &str) -> Lookup<Self::Ref>;

    /// The tenant that has this host. `host` is lower-case.
    fn by_host(&self, host: &str) -> Lookup<Self::Ref>;

    /// The position as of which `tenant` was right, where it may have changed since: a cache that lost its stream for a
    /// while serves what it has until it has looked again. `None`: it is as new as [`Tenants::position`].
    fn as_of(&self, tenant: &Self::Ref) -> Option<Position> {
        let _of_a_whole_map = tenant;
        None
    }
}

/// What is known under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<R> {
    /// This tenant.
    Found(R),
    /// That there is no such tenant: an authoritative "no".
    Nobody,
    /// Nothing. A whole map says so before its first complete snapshot; a cache of a larger one whenever it has to ask.
    NotHeld,
}

impl<R> Lookup<R> {
    /// The tenant, where one was found.
    pub fn found(self) -> Option<R> {
        match self {
            Lookup::Found(tenant) => Some(tenant),
            Lookup::Nobody | Lookup::NotHeld => None,
        }
    }
}

/// A tenant that has to be asked for: what it was called, in the form that the TCS knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// By id.
    Id(TenantId),
    /// By host, in lower case.
    Host(Box<str>),
}

impl<T: Tenants + ?Sized> Tenants for &T {
    type Ref = T::Ref;

    fn position(&self) -> Option<Position> {
        (**self).position()
    }

    fn get(&self, id: &str) -> Lookup<Self::Ref> {
        (**self).get(id)
    }

    fn by_host(&self, host: &str) -> Lookup<Self::Ref> {
        (**self).by_host(host)
    }

    fn as_of(&self, tenant: &Self::Ref) -> Option<Position> {
        (**self).as_of(tenant)
    }
}

/// What deciding needs of a tenant context, small because a sidecar may hold a million; and the context itself as it was
/// received, which is exactly what this service may see of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    revision: u64,
    status: Status,
    id_end: u8,
    region_end: u16,
    /// Id, region and names of products, one after the other: one allocation instead of many.
    text: Box<str>,
    /// In the order of their names.
    products: Box<[Product]>,
    context: Bytes,
    hosts: Box<[Box<str>]>,
}

/// Whether a tenant is served at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Active,
    /// It is not. Also every status that this version does not know.
    Suspended,
}

/// Whether a tenant may use a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductState {
    /// It may, while its licence lasts.
    Active,
    /// It has none. Also every state that this version does not know.
    Inactive,
    /// It had one, which is suspended.
    Suspended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Product {
    /// Of the name in `Tenant::text`; it begins where the one before ends.
    name_end: u16,
    state: ProductState,
    /// The last Unix second of the licence; `i64::MAX` when it has no end.
    licensed_until: i64,
}

impl Tenant {
    /// Reads a `tenon.tcs.v1.TenantContext`, whose own `revision` counts.
    ///
    /// # Errors
    /// Says what is wrong: not a tenant context, or a tenant id that breaks the grammar.
    pub fn decode(raw: Bytes) -> Result<Self, String> {
        let context =
            proto::TenantContext::decode(raw.clone()).map_err(|error| format!("no tenant context: {error}"))?;
        let id = TenantId::try_from(context.tenant_id.as_str()).map_err(|error| error.to_string())?;
        let long = |_| "names of products of more than 64 KiB".to_owned();
        let mut text = format!("{id}{}", context.region);
        let id_end = u8::try_from(id.as_str().len()).map_err(long)?;
        let region_end = u16::try_from(text.len()).map_err(long)?;
        let mut products = Vec::with_capacity(context.products.len());
        for (name, product) in &context.products {
            text.push_str(name);
            products.push(Product::read(product, u16::try_from(text.len()).map_err(long)?));
        }
        let status = match proto::tenant_context::Status::try_from(context.status) {
            Ok(proto::tenant_context::Status::Active) => Status::Active,
            Ok(proto::tenant_context::Status::Suspended | proto::tenant_context::Status::Unspecified) | Err(_) => {
                Status::Suspended
            }
        };
        let (text, products) = (text.into(), products.into());
        let hosts = context.hosts.into_iter().map(Box::from).collect();
        Ok(Tenant { revision: context.revision, status, id_end, region_end, text, products, context: raw, hosts })
    }

    /// Reads a record of the kind `tenant`: the key must be the tenant's id, and the record's revision counts.
    ///
    /// # Errors
    /// As [`Tenant::decode`], and when the key is not the id.
    pub fn decode_record(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        let tenant = Self::decode(raw)?;
        if tenant.id() == key {
            Ok(Tenant { revision, ..tenant })
        } else {
            Err(format!("the record of {key:?} holds tenant {:?}", tenant.id()))
        }
    }

    /// The tenant's id.
    pub fn id(&self) -> &str {
        &self.text[..usize::from(self.id_end)]
    }

    /// Revision of the record; its epoch is the replica's.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether it is served at all.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Its home region; may be empty.
    pub fn region(&self) -> &str {
        &self.text[usize::from(self.id_end)..usize::from(self.region_end)]
    }

    /// The `TenantContext` as it was received: the value of `x-tenant-context-bin` before base64.
    pub fn context(&self) -> &Bytes {
        &self.context
    }

    /// Whether it may use `product` at `now` (Unix seconds). A licence that ran out is `Inactive`, and so is a product
    /// that the tenant does not have. The second of `license_expires_at` is still licensed.
    pub fn product(&self, product: &str, now: u64) -> ProductState {
        let mut begin = usize::from(self.region_end);
        for held in &self.products {
            let end = usize::from(held.name_end);
            if &self.text[begin..end] == product {
                return held.at(now);
            }
            begin = end;
        }
        ProductState::Inactive
    }

    /// Its site host names.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| &**host)
    }
}

impl Product {
    fn read(product: &proto::Product, name_end: u16) -> Self {
        let state = match proto::product::State::try_from(product.state) {
            Ok(proto::product::State::Active) => ProductState::Active,
            Ok(proto::product::State::Suspended) => ProductState::Suspended,
            Ok(proto::product::State::Inactive | proto::product::State::Unspecified) | Err(_) => ProductState::Inactive,
        };
        let licensed_until = product.license_expires_at.as_ref().map_or(i64::MAX, |at| at.seconds);
        Product { name_end, state, licensed_until }
    }

    fn at(self, now: u64) -> ProductState {
        let ran_out = i64::try_from(now).unwrap_or(i64::MAX) > self.licensed_until;
        if ran_out && self.state == ProductState::Active { ProductState::Inactive } else { self.state }
    }
}

/// Tenants in an ordinary map: for explanations, tests and benchmarks. Sidecars look into their replica instead.
#[derive(Clone, Debug, Default)]
pub struct Held {
    position: Option<Position>,
    tenants: AHashMap<Box<str>, Arc<Tenant>>,
    hosts: AHashMap<Box<str>, Arc<Tenant>>,
}

impl Held {
    /// As a replica before its first complete snapshot.
    pub fn nothing_yet() -> Self {
        Self::default()
    }

    /// A complete snapshot.
    pub fn snapshot(position: Position, tenants: impl IntoIterator<Item = Tenant>) -> Self {
        let mut held = Held { position: Some(position), ..Held::default() };
        for tenant in tenants {
            let tenant = Arc::new(tenant);
            for host in tenant.hosts() {
                held.hosts.insert(host.into(), Arc::clone(&tenant));
            }
            held.tenants.insert(tenant.id().into(), tenant);
        }
        held
    }

    fn looked_up(&self, found: Option<&Arc<Tenant>>) -> Lookup<Arc<Tenant>> {
        match (found, self.position) {
            (Some(tenant), _) => Lookup::Found(Arc::clone(tenant)),
            (None, Some(_)) => Lookup::Nobody,
            (None, None) => Lookup::NotHeld,
        }
    }
}

impl Tenants for Held {
    type Ref = Arc<Tenant>;

    fn position(&self) -> Option<Position> {
        self.position
    }

    fn get(&self, id: &str) -> Lookup<Self::Ref> {
        self.looked_up(self.tenants.get(id))
    }

    fn by_host(&self, host: &str) -> Lookup<Self::Ref> {
        self.looked_up(self.hosts.get(host))
    }
}

#[cfg(test)]
mod tests;
