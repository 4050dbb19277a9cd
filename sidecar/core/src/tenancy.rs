//! Tenants as the decisions see them.

use std::{fmt, ops::Deref, sync::Arc};

use ahash::AHashMap;
use mesh_config::names::TenantId;
use tenon_proto::tcs::v1 as proto;
use triomphe::ThinArc;

use crate::{
    Position,
    fields::{Field, Fields, text},
};

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

/// A tenant context as it was received, which is exactly what this service may see of it, and where in it stands what
/// deciding needs. A handle: cheap to clone, and one allocation a tenant, because a sidecar may hold a million.
#[derive(Clone)]
pub struct Tenant(ThinArc<Header, u8>);

#[derive(Clone, Copy)]
struct Header {
    revision: u64,
    id: Text,
    region: Text,
    status: Status,
    /// The product of a tenant that has one, whose licence has no end, as most have: read once, and not by each call. `None`:
    /// the tenant is another one, whose products are read. These three fit beside the status, so that a million tenants take
    /// no more memory for them.
    only: Option<ProductState>,
    /// Where its name stands.
    only_start: u32,
    only_length: u8,
}

/// A million tenants have one each.
const _: () = assert!(size_of::<Header>() == 32, "a tenant's header grows");

/// Where a text stands in the context.
#[derive(Clone, Copy, Default)]
struct Text {
    start: u32,
    length: u32,
}

/// Fields of the messages in `tcs.proto`.
mod tag {
    pub(super) const TENANT_ID: u32 = 1;
    pub(super) const REVISION: u32 = 2;
    pub(super) const STATUS: u32 = 3;
    pub(super) const HOSTS: u32 = 4;
    pub(super) const REALM: u32 = 5;
    pub(super) const REGION: u32 = 6;
    pub(super) const PRODUCTS: u32 = 7;
    pub(super) const ENTRY_KEY: u32 = 1;
    pub(super) const ENTRY_VALUE: u32 = 2;
    pub(super) const PRODUCT_STATE: u32 = 1;
    pub(super) const PRODUCT_EDITION: u32 = 2;
    pub(super) const PRODUCT_LICENSE_EXPIRES_AT: u32 = 4;
    pub(super) const PRODUCT_FEATURES: u32 = 5;
    pub(super) const TIMESTAMP_SECONDS: u32 = 1;
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

/// What a tenant has of a product, read where it lies: no allocation.
#[derive(Clone, Copy, Debug)]
pub struct HeldProduct<'t>(&'t [u8]);

/// Whether a product may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Product {
    state: ProductState,
    /// The last Unix second of the licence; `i64::MAX` when it has no end.
    licensed_until: i64,
}

impl Tenant {
    /// Reads a `tenon.tcs.v1.TenantContext`, whose own `revision` counts. Of the fields that no decision looks at only the
    /// outline is checked: they are for the app.
    ///
    /// # Errors
    /// Says what is wrong: not a tenant context, or a tenant id that breaks the grammar.
    pub fn decode(raw: impl AsRef<[u8]>) -> Result<Self, String> {
        Self::read(raw.as_ref(), None)
    }

    /// Reads a record of the kind `tenant`: the key must be the tenant's id, and the record's revision counts.
    ///
    /// # Errors
    /// As [`Tenant::decode`], and when the key is not the id.
    pub fn decode_record(key: &str, revision: u64, raw: impl AsRef<[u8]>) -> Result<Self, String> {
        let tenant = Self::read(raw.as_ref(), Some(revision))?;
        if tenant.id() == key {
            Ok(tenant)
        } else {
            Err(format!("the record of {key:?} holds tenant {:?}", tenant.id()))
        }
    }

    fn read(raw: &[u8], revision: Option<u64>) -> Result<Self, String> {
        let header = Header::read(raw).map_err(|error| format!("no tenant context: {error}"))?;
        TenantId::try_from(header.id.of(raw)).map_err(|error| error.to_string())?;
        let header = Header { revision: revision.unwrap_or(header.revision), ..header };
        Ok(Tenant(ThinArc::from_header_and_slice(header, raw)))
    }

    /// The tenant's id.
    pub fn id(&self) -> &str {
        self.header().id.of(self.context())
    }

    /// Revision of the record; its epoch is the replica's.
    pub fn revision(&self) -> u64 {
        self.header().revision
    }

    /// Whether it is served at all.
    pub fn status(&self) -> Status {
        self.header().status
    }

    /// Its home region; may be empty.
    pub fn region(&self) -> &str {
        self.header().region.of(self.context())
    }

    /// The `TenantContext` as it was received: the value of `x-tenant-context-bin` before base64.
    pub fn context(&self) -> &[u8] {
        &self.0.slice
    }

    /// Where this record lies: no two have the same address while both are held.
    pub fn address(&self) -> usize {
        self.0.as_ptr().addr()
    }

    /// Whether it may use `product` at `now` (Unix seconds). A licence that ran out is `Inactive`, and so is a product
    /// that the tenant does not have. The second of `license_expires_at` is still licensed.
    pub fn product(&self, product: &str, now: u64) -> ProductState {
        let &Header { only, only_start, only_length, .. } = self.header();
        if let Some(state) = only {
            let name = self.context().get(only_start as usize..).and_then(|rest| rest.get(..usize::from(only_length)));
            return if name == Some(product.as_bytes()) { state } else { ProductState::Inactive };
        }
        self.entry(product).map_or(ProductState::Inactive, |(_, held)| held.at(now))
    }

    /// What it has of `product`, be it active or not; `None` when that is nothing.
    pub fn held(&self, product: &str) -> Option<HeldProduct<'_>> {
        self.entry(product).map(|(entry, _)| HeldProduct(entry))
    }

    fn entry(&self, product: &str) -> Option<(&[u8], Product)> {
        let entries = self.fields(tag::PRODUCTS).filter_map(|entry| Some((entry, Product::read(entry).ok()?)));
        // Of a map's entries with one key the last one counts.
        entries.filter(|(_, (name, _))| *name == product).last().map(|(entry, (_, held))| (entry, held))
    }

    /// Its site host names.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.fields(tag::HOSTS).filter_map(|host| std::str::from_utf8(host).ok())
    }

    fn header(&self) -> &Header {
        &self.0.header.header
    }

    fn fields(&self, tag: u32) -> impl Iterator<Item = &[u8]> {
        Fields::all(self.context(), tag).filter_map(Field::bytes)
    }
}

impl<'t> HeldProduct<'t> {
    /// What it is called; may be empty.
    pub fn edition(self) -> &'t str {
        self.texts(tag::PRODUCT_EDITION).last().unwrap_or_default()
    }

    /// What is switched on.
    pub fn features(self) -> impl Iterator<Item = &'t str> {
        self.texts(tag::PRODUCT_FEATURES)
    }

    /// Of a message that stands twice the parts are read as one.
    fn texts(self, tag: u32) -> impl Iterator<Item = &'t str> {
        let parts = Fields::all(self.0, tag::ENTRY_VALUE).filter_map(Field::bytes);
        let texts = parts.flat_map(move |part| Fields::all(part, tag)).filter_map(Field::bytes);
        texts.filter_map(|text| std::str::from_utf8(text).ok())
    }
}

impl PartialEq for Tenant {
    fn eq(&self, other: &Self) -> bool {
        self.revision() == other.revision() && self.context() == other.context()
    }
}

impl Eq for Tenant {}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("id", &self.id()).field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Header {
    fn read(raw: &[u8]) -> Result<Self, String> {
        let mut header = Header {
            revision: 0,
            id: Text::default(),
            region: Text::default(),
            status: Status::Suspended,
            only: None,
            only_start: 0,
            only_length: 0,
        };
        let mut products = 0_usize;
        for field in Fields::of(raw) {
            let (tag, field) = field?;
            match tag {
                tag::TENANT_ID => header.id = Text::read(field, "tenant_id")?,
                tag::REVISION => header.revision = field.number().ok_or("revision is no number")?,
                tag::STATUS => header.status = Status::read(field.number().ok_or("status is no number")?),
                tag::HOSTS => drop(text(field, "hosts")?),
                tag::REALM => drop(text(field, "realm")?),
                tag::REGION => header.region = Text::read(field, "region")?,
                tag::PRODUCTS => {
                    let (name, product) = Product::read(field.bytes().ok_or("products is no map")?)?;
                    header.only = None;
                    if products == 0 {
                        header.read_ahead(raw, name, product);
                    }
                    products += 1;
                }
                _of_no_interest => {}
            }
        }
        Ok(header)
    }

    /// Notes the only product. Its `name` stands in `raw`, or is empty because it is nowhere.
    fn read_ahead(&mut self, raw: &[u8], name: &str, product: Product) {
        let start = if name.is_empty() { 0 } else { name.as_ptr().addr() - raw.as_ptr().addr() };
        if let (Ok(start), Ok(length), i64::MAX) =
            (u32::try_from(start), u8::try_from(name.len()), product.licensed_until)
        {
            (self.only, self.only_start, self.only_length) = (Some(product.state), start, length);
        }
    }
}

impl Text {
    fn read(field: Field<'_>, name: &str) -> Result<Self, String> {
        text(field, name)?;
        let Field::Bytes(bytes, start) = field else { return Err(format!("{name} is no text")) };
        let number = |number: usize| u32::try_from(number).map_err(|_| format!("{name} is too far from the start"));
        Ok(Text { start: number(start)?, length: number(bytes.len())? })
    }

    fn of(self, raw: &[u8]) -> &str {
        let text = raw.get(self.start as usize..).and_then(|rest| rest.get(..self.length as usize));
        text.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

impl Status {
    fn read(number: u64) -> Self {
        match proto::tenant_context::Status::try_from(number as i32) {
            Ok(proto::tenant_context::Status::Active) => Status::Active,
            Ok(proto::tenant_context::Status::Suspended | proto::tenant_context::Status::Unspecified) | Err(_) => {
                Status::Suspended
            }
        }
    }
}

impl Product {
    /// Reads an entry of `TenantContext.products`.
    fn read(entry: &[u8]) -> Result<(&str, Self), String> {
        let mut name = "";
        let mut read = Product { state: ProductState::Inactive, licensed_until: i64::MAX };
        for field in Fields::of(entry) {
            match field? {
                (tag::ENTRY_KEY, key) => name = text(key, "a product's name")?,
                (tag::ENTRY_VALUE, Field::Bytes(product, _)) => read.take(product)?,
                (tag::ENTRY_VALUE, Field::Number(_)) => return Err("a product is no message".to_owned()),
                _of_no_interest => {}
            }
        }
        Ok((name, read))
    }

    fn take(&mut self, product: &[u8]) -> Result<(), String> {
        for field in Fields::of(product) {
            match field? {
                (tag::PRODUCT_STATE, Field::Number(number)) => {
                    self.state = match proto::product::State::try_from(number as i32) {
                        Ok(proto::product::State::Active) => ProductState::Active,
                        Ok(proto::product::State::Suspended) => ProductState::Suspended,
                        Ok(proto::product::State::Inactive | proto::product::State::Unspecified) | Err(_) => {
                            ProductState::Inactive
                        }
                    };
                }
                (tag::PRODUCT_LICENSE_EXPIRES_AT, Field::Bytes(at, _)) => {
                    // A message that is there without a field has the field's default.
                    self.licensed_until = if self.licensed_until == i64::MAX { 0 } else { self.licensed_until };
                    for field in Fields::of(at) {
                        if let (tag::TIMESTAMP_SECONDS, Field::Number(seconds)) = field? {
                            self.licensed_until = seconds as i64;
                        }
                    }
                }
                (tag::PRODUCT_EDITION, field) => drop(text(field, "a product's edition")?),
                (tag::PRODUCT_FEATURES, field) => drop(text(field, "a product's feature")?),
                (tag::PRODUCT_STATE | tag::PRODUCT_LICENSE_EXPIRES_AT, _) => {
                    return Err("a product's state or licence is of another type".to_owned());
                }
                _of_no_interest => {}
            }
        }
        Ok(())
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
