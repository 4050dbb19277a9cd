use bytes::Bytes;
use prost::Message as _;
use tenon_proto::tcs::v1 as tcs;

use super::*;

fn record(ids: &str, regions: &str, editions: &str, features: &str) -> proto::TenantConditions {
    let list = |words: &str| words.split_whitespace().map(str::to_owned).collect();
    proto::TenantConditions {
        ids: list(ids),
        regions: list(regions),
        editions: list(editions),
        features: list(features),
    }
}

/// Has `media` with this edition and these features, and `wiki` with others.
fn tenant(id: &str, region: &str, edition: &str, features: &str) -> Tenant {
    let product = |edition: &str, features: &str| tcs::Product {
        edition: edition.into(),
        features: features.split_whitespace().map(str::to_owned).collect(),
        ..Default::default()
    };
    let context = tcs::TenantContext {
        tenant_id: id.into(),
        region: region.into(),
        products: [
            ("media".to_owned(), product(edition, features)),
            ("wiki".to_owned(), product("enterprise", "wiki-feature")),
        ]
        .into(),
        ..Default::default()
    };
    Tenant::decode(Bytes::from(context.encode_to_vec())).unwrap()
}

#[test]
fn each_list_that_is_given_must_be_met() {
    let acme = tenant("acme", "us-east", "premium", "beta export");
    let plain = tenant("plain", "", "", "");
    for (ids, regions, editions, features, of_acme, of_plain) in [
        ("acme globex", "", "", "", "", "id"),
        ("globex", "", "", "", "id", "id"),
        ("", "eu-west us-east", "", "", "", "region"),
        ("", "eu-west", "", "", "region", "region"),
        ("", "", "enterprise premium", "", "", "edition"),
        ("", "", "enterprise", "", "edition", "edition"),
        ("", "", "Premium", "", "edition", "edition"),
        ("", "", "", "beta", "", "feature"),
        ("", "", "", "export beta export", "", "feature"),
        ("", "", "", "beta wiki-feature", "feature", "feature"),
        ("", "", "premium", "export", "", "edition"),
        ("acme", "us-east", "premium", "beta", "", "id"),
        ("acme", "us-east", "premium", "gamma", "feature", "id"),
        ("acme plain", "us-east", "enterprise", "gamma", "edition", "region"),
    ] {
        let conditions = Conditions::try_from(&record(ids, regions, editions, features)).unwrap();
        for (tenant, expected) in [(&acme, of_acme), (&plain, of_plain)] {
            let missed = conditions.missed(tenant, Some("media")).map_or("", Condition::as_str);
            assert_eq!(missed, expected, "{conditions:?} of {tenant:?}");
        }
    }
}

#[test]
fn what_a_tenant_has_of_a_product_counts_for_no_other() {
    let acme = tenant("acme", "us-east", "premium", "beta");
    for (conditions, product, expected) in [
        (record("", "", "enterprise", ""), "wiki", None),
        (record("", "", "enterprise", ""), "media", Some(Condition::Edition)),
        (record("", "", "", "wiki-feature"), "wiki", None),
        (record("", "", "", "wiki-feature"), "media", Some(Condition::Feature)),
        (record("", "", "", "beta"), "crm", Some(Condition::Feature)),
        (record("", "", "premium", ""), "crm", Some(Condition::Edition)),
    ] {
        assert_eq!(Conditions::try_from(&conditions).unwrap().missed(&acme, Some(product)), expected, "{conditions:?}");
    }
    let conditions = Conditions::try_from(&record("", "", "premium", "")).unwrap();
    assert_eq!(conditions.missed(&acme, None), Some(Condition::Edition));
}

#[test]
fn more_features_than_a_word_has_bits_are_all_wanted() {
    let named = |count: usize| (0..count).map(|index| format!("feature-{index}")).collect::<Vec<_>>().join(" ");
    for count in [1, 63, 64, 65, 128, 200] {
        let conditions = Conditions::try_from(&record("", "", "", &named(count))).unwrap();
        let all = tenant("acme", "", "", &format!("other {}", named(count)));
        assert_eq!(conditions.missed(&all, Some("media")), None, "{count}");
        for lacking in [0, count / 2, count - 1] {
            let others =
                named(count).replace(&format!("feature-{lacking} "), "").replace(&format!(" feature-{lacking}"), "");
            if others.split(' ').count() == count - 1 {
                let all_but_one = tenant("acme", "", "", &others);
                assert_eq!(
                    conditions.missed(&all_but_one, Some("media")),
                    Some(Condition::Feature),
                    "{count} {lacking}"
                );
            }
        }
    }
}

#[test]
fn conditions_that_this_version_cannot_see_are_not_passed_over() {
    assert!(Conditions::try_from(&proto::TenantConditions::default()).is_err());
}
