use bytes::Bytes;
use pbjson_types::Timestamp;
use proptest::prelude::*;
use prost::{
    Message as _,
    encoding::{DecodeContext, WireType, decode_key, skip_field},
};

use super::*;

fn product(state: proto::product::State, license_expires_at: Option<i64>) -> proto::Product {
    let license_expires_at = license_expires_at.map(|seconds| Timestamp { seconds, nanos: 0 });
    proto::Product { state: state.into(), license_expires_at, ..Default::default() }
}

fn acme() -> proto::TenantContext {
    let products = [
        ("crm", product(proto::product::State::Suspended, None)),
        ("media", product(proto::product::State::Active, Some(1_000))),
        ("wiki", product(proto::product::State::Active, None)),
        ("zeta", product(proto::product::State::Inactive, None)),
    ];
    proto::TenantContext {
        tenant_id: "acme".into(),
        revision: 7,
        status: proto::tenant_context::Status::Active.into(),
        hosts: vec!["acme.example".into()],
        region: "us-east".into(),
        products: products.into_iter().map(|(name, product)| (name.to_owned(), product)).collect(),
        ..Default::default()
    }
}

fn raw(context: &proto::TenantContext) -> Bytes {
    context.encode_to_vec().into()
}

#[test]
fn a_tenant_keeps_what_decisions_need_and_the_context_as_it_came() {
    let raw = raw(&acme());
    let tenant = Tenant::decode(raw.clone()).unwrap();
    assert_eq!((tenant.id(), tenant.region(), tenant.revision()), ("acme", "us-east", 7));
    assert_eq!(tenant.status(), Status::Active);
    assert!(tenant.hosts().eq(["acme.example"]));
    assert_eq!(tenant.context(), &raw);
}

#[test]
fn a_product_is_active_while_its_licence_lasts() {
    let tenant = Tenant::decode(raw(&acme())).unwrap();
    for (product, now, expected) in [
        ("media", 0, ProductState::Active),
        ("media", 1_000, ProductState::Active),
        ("media", 1_001, ProductState::Inactive),
        ("wiki", 1_001, ProductState::Active),
        ("crm", 0, ProductState::Suspended),
        ("zeta", 0, ProductState::Inactive),
        ("missing", 0, ProductState::Inactive),
        ("", 0, ProductState::Inactive),
        ("med", 0, ProductState::Inactive),
        ("us-east", 0, ProductState::Inactive),
    ] {
        assert_eq!(tenant.product(product, now), expected, "{product} at {now}");
    }
}

/// Bug to keep out: what is read ahead of a tenant's only product must be what reading all of them says.
#[test]
fn an_only_product_is_what_it_is_beside_others() {
    let long = "p".repeat(300);
    let only = |name: &str, product: proto::Product| {
        let products = [(name.to_owned(), product)].into_iter().collect();
        proto::TenantContext { products, ..acme() }
    };
    for state in [proto::product::State::Active, proto::product::State::Suspended, proto::product::State::Inactive] {
        for licence in [None, Some(-5), Some(1_000), Some(i64::MAX)] {
            for name in ["wiki", "w", "", &long] {
                let alone = only(name, product(state, licence));
                let mut beside = alone.clone();
                beside.products.insert("other".into(), product(proto::product::State::Active, None));
                let [alone, beside] = [alone, beside].map(|context| Tenant::decode(raw(&context)).unwrap());
                for (asked, now) in ["wiki", "w", "wik", "wikis", "", &long, "us-east"]
                    .into_iter()
                    .flat_map(|asked| [0, 1_000, 1_001, u64::MAX].map(|now| (asked, now)))
                {
                    let (alone, beside) = (alone.product(asked, now), beside.product(asked, now));
                    assert_eq!(alone, beside, "{asked} of {name} {state:?} {licence:?} at {now}");
                }
            }
        }
    }
}

#[test]
fn of_a_product_that_stands_twice_the_last_one_counts() {
    let only = |state| proto::TenantContext {
        products: [("wiki".to_owned(), product(state, None))].into_iter().collect(),
        ..acme()
    };
    let (active, suspended) = (proto::product::State::Active, proto::product::State::Suspended);
    for (first, second, expected) in
        [(active, suspended, ProductState::Suspended), (suspended, active, ProductState::Active)]
    {
        let both = [raw(&only(first)), raw(&only(second))].concat();
        assert_eq!(Tenant::decode(both).unwrap().product("wiki", 0), expected);
    }
}

#[test]
fn a_licence_that_ended_before_1970_has_ended() {
    let mut context = acme();
    context.products.insert("old".into(), product(proto::product::State::Active, Some(-5)));
    assert_eq!(Tenant::decode(raw(&context)).unwrap().product("old", 0), ProductState::Inactive);
}

#[test]
fn a_status_that_this_version_does_not_know_is_not_served() {
    for (status, expected) in
        [(0, Status::Suspended), (1, Status::Active), (2, Status::Suspended), (9, Status::Suspended)]
    {
        let context = proto::TenantContext { status, ..acme() };
        assert_eq!(Tenant::decode(raw(&context)).unwrap().status(), expected, "{status}");
    }
    for (state, expected) in [(0, ProductState::Inactive), (9, ProductState::Inactive)] {
        let mut context = acme();
        context.products.insert("new".into(), proto::Product { state, ..Default::default() });
        assert_eq!(Tenant::decode(raw(&context)).unwrap().product("new", 0), expected, "{state}");
    }
}

#[test]
fn what_is_no_tenant_context_is_an_error() {
    assert!(Tenant::decode(Bytes::from_static(&[0xff])).is_err());
    for id in ["", "Acme", "a.b", "-a"] {
        assert!(Tenant::decode(raw(&proto::TenantContext { tenant_id: id.into(), ..acme() })).is_err(), "{id:?}");
    }
}

#[test]
fn a_record_must_hold_the_tenant_of_its_key_and_gives_the_revision() {
    let tenant = Tenant::decode_record("acme", 42, raw(&acme())).unwrap();
    assert_eq!(tenant.revision(), 42);
    assert!(Tenant::decode_record("other", 42, raw(&acme())).is_err());
}

#[test]
fn held_tenants_are_found_by_id_and_by_host() {
    let position = Position { epoch: 1, revision: 7 };
    let held = Held::snapshot(position, [Tenant::decode(raw(&acme())).unwrap()]);
    assert_eq!(held.position(), Some(position));
    assert_eq!(held.get("acme").found().unwrap().id(), "acme");
    assert_eq!(held.by_host("acme.example").found().unwrap().id(), "acme");
    assert_eq!(held.get("acme.example"), Lookup::Nobody);
    assert_eq!(held.by_host("acme"), Lookup::Nobody);
    assert_eq!(Held::nothing_yet().position(), None);
    assert_eq!(Held::nothing_yet().get("acme"), Lookup::NotHeld);
}

#[test]
fn of_a_product_that_stands_twice_in_one_entry_the_parts_are_read_as_one_and_of_two_entries_the_last() {
    let field = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2, bytes.len() as u8], bytes].concat();
    let part = |edition: &str, feature: &str| {
        let product = proto::Product { edition: edition.into(), features: vec![feature.into()], ..Default::default() };
        field(2, &product.encode_to_vec())
    };
    let entry = |parts: &[Vec<u8>]| field(7, &[&[field(1, b"media")], parts].concat().concat());
    let first = entry(&[part("first", "x")]);
    let last = entry(&[part("free", "a"), part("paid", "b")]);
    let raw = [field(1, b"acme"), first, last].concat();
    let message = &proto::TenantContext::decode(&*raw).unwrap().products["media"];
    assert_eq!((message.edition.as_str(), message.features.join(" ").as_str()), ("paid", "a b"));
    let tenant = Tenant::decode(&raw).unwrap();
    let held = tenant.held("media").unwrap();
    assert_eq!((held.edition(), held.features().collect::<Vec<_>>()), ("paid", vec!["a", "b"]));
    assert!(tenant.held("wiki").is_none());
}

fn contexts() -> impl Strategy<Value = proto::TenantContext> {
    let features = prop::collection::vec("[a-z]{0,2}", 0..3);
    let states = (-1..5i32, prop::option::of(-5..5i64), "[a-z]{0,3}", features);
    let product = states.prop_map(|(state, end, edition, features)| proto::Product {
        state,
        license_expires_at: end.map(|seconds| Timestamp { seconds, nanos: 7 }),
        edition,
        seats: 9,
        features,
        shard: Some(proto::Shard { cluster: "c".to_owned(), ..Default::default() }),
    });
    let products = prop::collection::btree_map("[a-c]{0,2}", product, 0..4);
    let hosts = prop::collection::vec("[a-z.]{0,9}", 0..4);
    let texts = prop::collection::btree_map("[a-z]{1,3}", ".{0,5}", 0..3);
    ("[a-z0-9]{1,4}", any::<u64>(), -1..5i32, hosts, "[a-zé]{0,5}", products, texts).prop_map(
        |(tenant_id, revision, status, hosts, region, products, settings)| proto::TenantContext {
            tenant_id,
            revision,
            status,
            hosts,
            region,
            products: products.into_iter().collect(),
            settings: settings.into_iter().collect(),
            ..Default::default()
        },
    )
}

/// `TenantContext.settings`: the number of its field.
const SETTINGS: u32 = 8;

/// As prost reads it. But prost takes the fields of a map, products and settings, whatever their wire type: what such bytes
/// say is nothing to go by.
fn decoded(bytes: &[u8]) -> Option<proto::TenantContext> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match decode_key(&mut rest).ok()? {
            (tag::PRODUCTS | SETTINGS, wire_type) if wire_type != WireType::LengthDelimited => return None,
            (tag, wire_type) => skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?,
        }
    }
    proto::TenantContext::decode(bytes).ok()
}

proptest! {
    #[test]
    fn a_tenant_is_read_as_the_message_it_is(context in contexts(), now in 0..6u64) {
        let tenant = Tenant::decode(raw(&context)).unwrap();
        prop_assert_eq!((tenant.id(), tenant.region()), (context.tenant_id.as_str(), context.region.as_str()));
        prop_assert_eq!(tenant.revision(), context.revision);
        prop_assert_eq!(tenant.hosts().collect::<Vec<_>>(), context.hosts.iter().collect::<Vec<_>>());
        let active = context.status() == proto::tenant_context::Status::Active;
        prop_assert_eq!(tenant.status() == Status::Active, active);
        use proto::product::State;
        for (name, product) in &context.products {
            let ran_out = product.license_expires_at.as_ref().is_some_and(|at| at.seconds < now as i64);
            let expected = match product.state() {
                State::Active if !ran_out => ProductState::Active,
                State::Suspended => ProductState::Suspended,
                State::Active | State::Inactive | State::Unspecified => ProductState::Inactive,
            };
            prop_assert_eq!(tenant.product(name, now), expected, "{}", name);
            let held = tenant.held(name).unwrap();
            prop_assert_eq!(held.edition(), &product.edition);
            prop_assert!(held.features().eq(product.features.iter()), "{:?}", held);
        }
    }

    #[test]
    fn damage_is_refused_where_the_message_would_be_or_does_no_harm(
        context in contexts(), at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<bool>()
    ) {
        let mut bytes = context.encode_to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
        if let Ok(tenant) = Tenant::decode(&bytes) {
            // What is read can be looked at, whatever it is.
            let held = tenant.held("a").map(|held| (held.edition().len(), held.features().count()));
            let _ = (tenant.region(), tenant.hosts().count(), tenant.product("a", 1), held);
            prop_assert!(TenantId::try_from(tenant.id()).is_ok());
            if let Some(message) = decoded(&bytes) {
                prop_assert_eq!((tenant.id(), tenant.region()), (&*message.tenant_id, &*message.region));
                prop_assert_eq!(tenant.hosts().collect::<Vec<_>>(), message.hosts);
            }
        } else if let Some(message) = decoded(&bytes) {
            prop_assert!(TenantId::try_from(message.tenant_id.as_str()).is_err(), "refused, though it is {message:?}");
        }
    }
}
