use std::collections::BTreeMap;

use tenon_proto::tcs::v1::{Product, Shard as RawShard};
use tonic::metadata::MetadataValue;

use super::*;

fn context(tenant: &str, shard: Option<[&str; 3]>) -> TenantContext {
    let shard = shard.map(|[cluster, database, schema]| RawShard {
        cluster: cluster.into(),
        database: database.into(),
        schema: schema.into(),
    });
    let product = Product { shard, ..Product::default() };
    TenantContext {
        tenant_id: tenant.into(),
        products: BTreeMap::from([("media".to_owned(), product)]),
        ..TenantContext::default()
    }
}

fn handed_over(id: &str, context: &TenantContext) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert(TENANT_ID, id.parse().unwrap());
    metadata.insert_bin(TENANT_CONTEXT, MetadataValue::from_bytes(&context.encode_to_vec()));
    metadata
}

#[test]
fn a_tenancy_is_what_the_sidecar_handed_over() {
    let metadata = handed_over("acme", &context("acme", Some(["c1", "db_2", "s-3"])));
    let tenancy = Tenancy::of("media", &metadata).unwrap();
    assert_eq!(tenancy.tenant(), "acme");
    assert_eq!(tenancy.shard.database.as_str(), "db_2");
}

#[test]
fn a_request_past_the_sidecar_is_told_to_go_through_it() {
    let bare = MetadataMap::new();
    let mut only_id = MetadataMap::new();
    only_id.insert(TENANT_ID, "acme".parse().unwrap());
    let mut twice = handed_over("acme", &context("acme", Some(["c", "d", "s"])));
    twice.append(TENANT_ID, "other".parse().unwrap());
    let mut two_contexts = handed_over("acme", &context("acme", Some(["c", "d", "s"])));
    two_contexts.append_bin(TENANT_CONTEXT, MetadataValue::from_bytes(b""));
    let mut garbage = handed_over("acme", &context("acme", None));
    garbage.insert_bin(TENANT_CONTEXT, MetadataValue::from_bytes(b"\xff\xff\xff"));
    let other = handed_over("acme", &context("other", Some(["c", "d", "s"])));
    for metadata in [bare, only_id, twice, two_contexts, garbage, other] {
        let status = Status::from(Tenancy::of("media", &metadata).unwrap_err());
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains("through its sidecar"), "{}", status.message());
    }
}

#[test]
fn a_tenant_without_a_shard_is_told_who_can_set_it() {
    for (product, context) in [("media", context("acme", None)), ("issues", context("acme", Some(["c", "d", "s"])))] {
        let status = Status::from(Tenancy::of(product, &handed_over("acme", &context)).unwrap_err());
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains(&format!("products.{product}.shard")), "{}", status.message());
    }
}

#[test]
fn no_part_of_a_shard_can_leave_the_data_folder() {
    let long = "a".repeat(NAME_BYTES + 1);
    for wrong in ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "A", "a.b", "a b", "a\0b", "ü", &long] {
        for at in 0..3 {
            let mut shard = ["c", "d", "s"];
            shard[at] = wrong;
            let metadata = handed_over("acme", &context("acme", Some(shard)));
            let refused = Tenancy::of("media", &metadata).unwrap_err();
            assert!(matches!(refused, TenancyError::BadShard { .. }), "{wrong:?} at {at}: {refused}");
        }
    }
    let metadata = handed_over("../acme", &context("../acme", Some(["c", "d", "s"])));
    assert_eq!(Tenancy::of("media", &metadata).unwrap_err(), TenancyError::Unreadable(TENANT_ID));
}
