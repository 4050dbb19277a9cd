//! Tenants of realistic size: two hosts, three products with shards and features.

use prost::Message as _;
use tenon_proto::tcs::v1::{Product, Shard, TenantContext};

/// The product that the replica's service is: of the three it sees one.
pub const PRODUCT: &str = "media";
const PRODUCTS: [&str; 3] = ["issues", PRODUCT, "wiki"];

/// The id of tenant `number`: as long as a UUID, and spread over the key space as UUIDs are.
pub fn id(number: u64) -> String {
    let spread = u128::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let hex = format!("{spread:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Its first host.
pub fn host(number: u64) -> String {
    format!("customer-{number:07}.example.com")
}

/// Tenant `number` in its `version`: what changes with the version is the number of seats.
pub fn tenant(number: u64, version: u32) -> TenantContext {
    let region = if number.is_multiple_of(2) { "us-east" } else { "eu-west" };
    let products = PRODUCTS.map(|name| {
        let product = Product {
            state: 1,
            edition: if number.is_multiple_of(5) { "enterprise" } else { "standard" }.to_owned(),
            seats: 100 + version,
            license_expires_at: Some(pbjson_types::Timestamp { seconds: 1_900_000_000, nanos: 0 }),
            features: ["audit-log", "sso", "sandbox"].map(str::to_owned).into(),
            shard: Some(Shard {
                cluster: format!("{name}-{region}-{}", number % 16),
                database: format!("{name}_{:03}", number % 256),
                schema: format!("t{number:07}"),
            }),
        };
        (name.to_owned(), product)
    });
    TenantContext {
        tenant_id: id(number),
        status: 1,
        hosts: vec![host(number), format!("www.customer-{number:07}.example")],
        realm: "commercial".to_owned(),
        region: region.to_owned(),
        products: products.into(),
        settings: [("locale".to_owned(), "en-GB".to_owned())].into(),
        ..TenantContext::default()
    }
}

/// Bytes of a whole record, and of what a service with one product sees of it.
pub fn sizes(number: u64) -> (usize, usize) {
    let whole = tenant(number, 0);
    let mut seen = whole.clone();
    seen.products.retain(|name, _| name == PRODUCT);
    (whole.encoded_len(), seen.encoded_len())
}
