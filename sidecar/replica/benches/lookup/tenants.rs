//! Tenants as a service of one product sees them, held as a sidecar holds them.

use super::*;

use std::sync::LazyLock;

use prost::encoding::{WireType, decode_key, decode_varint};
use tenon_proto::tcs::v1::{Product, Shard, product::State, tenant_context};
use triomphe::ThinArc;

/// As large as a sidecar's: the sidecar's own knows where its texts stand, and so does this one.
#[derive(Clone)]
pub struct Tenant(ThinArc<Header, u8>);

struct Header {
    revision: u64,
    id_end: u32,
    _region: [u32; 3],
}

const HOSTS: u32 = 4;

impl Value for Tenant {
    fn decode(key: &str, revision: u64, raw: Bytes) -> Result<Self, String> {
        let id_end = 2 + key.len();
        if raw.get(2..id_end) != Some(key.as_bytes()) {
            return Err("another tenant's".to_owned());
        }
        let tenant =
            Self(ThinArc::from_header_and_slice(Header { revision, id_end: id_end as u32, _region: [0; 3] }, &raw));
        // As long as reading the outline takes.
        black_box(tenant.aliases().count());
        Ok(tenant)
    }

    fn key(&self) -> &str {
        std::str::from_utf8(&self.0.slice[2..self.0.header.header.id_end as usize]).expect("checked when decoded")
    }

    fn revision(&self) -> u64 {
        self.0.header.header.revision
    }

    fn raw(&self) -> &[u8] {
        &self.0.slice
    }

    fn aliases(&self) -> impl Iterator<Item = &str> {
        let mut rest = self.raw();
        std::iter::from_fn(move || {
            let (tag, wire_type) = decode_key(&mut rest).ok()?;
            let number = decode_varint(&mut rest).ok()?;
            if wire_type != WireType::LengthDelimited {
                return Some((tag, None));
            }
            let (value, behind) = rest.split_at_checked(number as usize)?;
            rest = behind;
            Some((tag, Some(value)))
        })
        .filter_map(|(tag, value)| std::str::from_utf8(value.filter(|_| tag == HOSTS)?).ok())
    }
}

pub fn id(number: usize) -> String {
    format!("tenant-{number:06}")
}

pub fn host(number: usize, which: usize) -> String {
    format!("{}-{number:06}.sites.example", ["acme", "shop"][which])
}

/// The part of a tenant's context that a service of the product media sees.
pub fn context(number: usize, seats: u32) -> Bytes {
    static SAMPLE: LazyLock<TenantContext> = LazyLock::new(|| TenantContext {
        status: tenant_context::Status::Active.into(),
        realm: "eu".to_owned(),
        region: "eu-west".to_owned(),
        settings: [("locale".to_owned(), "de-DE".to_owned())].into(),
        products: [(
            "media".to_owned(),
            Product {
                state: State::Active.into(),
                edition: "premium".to_owned(),
                license_expires_at: Some(pbjson_types::Timestamp { seconds: 1_900_000_000, nanos: 0 }),
                features: ["thumbnails", "search", "export"].map(str::to_owned).to_vec(),
                ..Product::default()
            },
        )]
        .into(),
        ..TenantContext::default()
    });
    let mut tenant = SAMPLE.clone();
    tenant.tenant_id = id(number);
    tenant.revision = 1;
    tenant.hosts = vec![host(number, 0), host(number, 1)];
    if let Some(product) = tenant.products.get_mut("media") {
        product.seats = 10 + seats % 1_000;
        product.shard = Some(Shard {
            cluster: format!("pg-{:02}", number % 40),
            database: "media".to_owned(),
            schema: format!("shard_{:03}", number % 1_000),
        });
    }
    tenant.encode_to_vec().into()
}
