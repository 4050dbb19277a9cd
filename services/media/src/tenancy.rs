//! For which tenant a request is, and where that tenant's rows live: read from what the sidecar hands over.
//!
//! The app verifies nothing here that the sidecar has verified (status, licence, region). It refuses a request that did
//! not come through the sidecar, because without a tenant context there is no row it could touch.

use std::{fmt, sync::Arc};

use prost::Message as _;
use tenon_proto::tcs::v1::{self as tcs, TenantContext};
use tonic::{Status, metadata::MetadataMap};

#[cfg(test)]
mod tests;

/// The tenant's id, set by the sidecar alone (DESIGN, "Inbound").
pub const TENANT_ID: &str = "x-tenant-id";
/// The part of the tenant context that this service may see: binary metadata, `tenon.tcs.v1.TenantContext`.
pub const TENANT_CONTEXT: &str = "x-tenant-context-bin";
/// The calling service as its mTLS identity and ASAP token proved it.
pub const CALLER: &str = "x-mesh-caller";
/// What the mesh calls this request in all its logs.
pub const REQUEST_ID: &str = "x-mesh-request-id";

/// Longest part of a shard's name: each becomes one component of a path.
const NAME_BYTES: usize = 64;

/// A name that is safe as one component of a path and as part of a key: `[a-z0-9_-]+`, at most 64 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// None if the text breaks the grammar.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=NAME_BYTES).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        fits.then(|| Self(text.into()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Where a product keeps the rows of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub(crate) cluster: Name,
    pub(crate) database: Name,
    pub(crate) schema: Name,
}

/// One request's tenant and its shard. Whoever holds it may reach the rows of this tenant and of no other.
///
/// It has no public constructor but [`Tenancy::of`], so no handler can make up a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenancy {
    pub(crate) tenant: Name,
    pub(crate) shard: Shard,
}

impl Tenancy {
    /// Reads the tenancy of a request, as it concerns `product`.
    ///
    /// # Errors
    /// When the sidecar's headers are absent, repeated, unreadable or contradict each other, and when the context names
    /// no usable shard of the product.
    pub fn of(product: &str, metadata: &MetadataMap) -> Result<Self, TenancyError> {
        Self::read(product, metadata).map(|(tenancy, _)| tenancy)
    }

    /// As [`Tenancy::of`], for a request that writes: a tenant that moves to another region is read-only until it has
    /// arrived.
    ///
    /// # Errors
    /// As [`Tenancy::of`], and when the tenant moves.
    pub fn for_writing(product: &str, metadata: &MetadataMap) -> Result<Self, TenancyError> {
        match Self::read(product, metadata)? {
            (tenancy, None) => Ok(tenancy),
            (Self { tenant, .. }, Some(to)) => Err(TenancyError::Moving { tenant, to: to.to_region }),
        }
    }

    fn read(product: &str, metadata: &MetadataMap) -> Result<(Self, Option<tcs::Move>), TenancyError> {
        let id = the_one(metadata.get_all(TENANT_ID).iter(), TENANT_ID)?;
        let id = id.to_str().map_err(|_| TenancyError::Unreadable(TENANT_ID))?;
        let raw = the_one(metadata.get_all_bin(TENANT_CONTEXT).iter(), TENANT_CONTEXT)?;
        let raw = raw.to_bytes().map_err(|_| TenancyError::Unreadable(TENANT_CONTEXT))?;
        let mut context = TenantContext::decode(raw).map_err(|_| TenancyError::Unreadable(TENANT_CONTEXT))?;
        if context.tenant_id != id {
            return Err(TenancyError::Contradiction);
        }
        let tenant = Name::parse(id).ok_or(TenancyError::Unreadable(TENANT_ID))?;
        let shard = context.products.get(product).and_then(|product| product.shard.as_ref());
        let shard = shard.ok_or_else(|| TenancyError::NoShard { tenant: tenant.clone(), product: product.into() })?;
        let shard = Shard::of(&tenant, product, shard)?;
        Ok((Self { tenant, shard }, context.r#move.take()))
    }

    /// The tenant's id, for messages and logs.
    pub fn tenant(&self) -> &str {
        self.tenant.as_str()
    }

    /// A tenant in a shard of its own.
    #[cfg(test)]
    pub(crate) fn for_tests(tenant: &str) -> Self {
        let name = |text| Name::parse(text).expect("tests use names that fit");
        Self { tenant: name(tenant), shard: Shard { cluster: name("c"), database: name("d"), schema: name("s") } }
    }
}

impl Shard {
    fn of(tenant: &Name, product: &str, raw: &tcs::Shard) -> Result<Self, TenancyError> {
        let part = |part: &'static str, text: &str| {
            Name::parse(text).ok_or_else(|| TenancyError::BadShard {
                tenant: tenant.clone(),
                product: product.into(),
                part,
                value: text.chars().take(NAME_BYTES).collect(),
            })
        };
        Ok(Self {
            cluster: part("cluster", &raw.cluster)?,
            database: part("database", &raw.database)?,
            schema: part("schema", &raw.schema)?,
        })
    }
}

/// Takes the only value of a header.
fn the_one<T>(mut values: impl Iterator<Item = T>, header: &'static str) -> Result<T, TenancyError> {
    let first = values.next().ok_or(TenancyError::Absent(header))?;
    match values.next() {
        None => Ok(first),
        Some(_) => Err(TenancyError::Repeated(header)),
    }
}

/// Why a request has no tenancy. All are FAILED_PRECONDITION: to send the same request again cannot help, before
/// something else has changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenancyError {
    /// The request names no tenant, or reached the app past its sidecar.
    #[error(
        "the request has no {0}: call this service through its sidecar, naming the tenant in x-tenant-id at your own \
         sidecar, and let the allowlist rule say `tenant: required`"
    )]
    Absent(&'static str),
    /// A header that the sidecar sets once came more than once.
    #[error("the request has more than one {0}: call this service through its sidecar, which sets exactly one")]
    Repeated(&'static str),
    /// A header that is not what the sidecar sets.
    #[error("{0} cannot be read: call this service through its sidecar, which sets it")]
    Unreadable(&'static str),
    /// Id and context are of different tenants.
    #[error("x-tenant-id and x-tenant-context-bin name different tenants: call this service through its sidecar")]
    Contradiction,
    /// The tenant has not been given a place for this product's rows.
    #[error(
        "tenant {tenant} has no shard for product {product}: an operator sets products.{product}.shard {{cluster, \
         database, schema}} with `tenon tenants apply`"
    )]
    NoShard {
        /// Whose context it is.
        tenant: Name,
        /// The product that looked for its shard.
        product: String,
    },
    /// Its rows are on their way: what is written now might be left behind.
    #[error("tenant {tenant} moves to {to} and takes no writes until it has arrived: try again later")]
    Moving {
        /// Who moves.
        tenant: Name,
        /// The region that will be its home.
        to: String,
    },
    /// A part of the shard's name is not usable as a file name.
    #[error(
        "tenant {tenant} has shard {part} {value:?} for product {product}, expected [a-z0-9_-]+ of at most 64 bytes: an \
         operator corrects it with `tenon tenants apply`"
    )]
    BadShard {
        /// Whose context it is.
        tenant: Name,
        /// The product whose shard it is.
        product: String,
        /// cluster, database or schema.
        part: &'static str,
        /// What stood there.
        value: String,
    },
}

impl From<TenancyError> for Status {
    fn from(error: TenancyError) -> Self {
        Self::failed_precondition(error.to_string())
    }
}
