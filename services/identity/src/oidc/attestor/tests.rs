use replica::Decode as _;
use serde_json::json;

use super::*;

/// Claims as a Kubernetes service-account token has them.
fn claims() -> Map<String, Value> {
    let Value::Object(claims) = json!({
        "sub": "system:serviceaccount:shop:media",
        "groups": ["a", "b", 7],
        "admin": true,
        "uid": 1000,
        "nothing": null,
        "a/b": {"c~d": "escaped"},
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "media"}, "list": ["x", {"y": "z"}]},
    }) else {
        unreachable!()
    };
    claims
}

#[test]
fn a_claim_matches_by_its_exact_value_wherever_it_stands() {
    for (claim, value, matches) in [
        ("sub", "system:serviceaccount:shop:media", true),
        ("sub", "system:serviceaccount:shop:medi", false),
        ("sub", "System:serviceaccount:shop:media", false),
        ("sub", "", false),
        ("SUB", "system:serviceaccount:shop:media", false),
        ("groups", "b", true),
        ("groups", "7", true),
        ("groups", "c", false),
        ("admin", "true", true),
        ("admin", "True", false),
        ("uid", "1000", true),
        ("uid", "1000.0", false),
        ("nothing", "null", false),
        ("missing", "", false),
        ("kubernetes.io", "shop", false),
        ("/kubernetes.io/namespace", "shop", true),
        ("/kubernetes.io/namespace", "other", false),
        ("/kubernetes.io/serviceaccount/name", "media", true),
        ("/kubernetes.io/serviceaccount", "media", false),
        ("/kubernetes.io/list", "x", true),
        ("/kubernetes.io/list/0", "x", true),
        ("/kubernetes.io/list/1/y", "z", true),
        ("/kubernetes.io/list/2", "x", false),
        ("/a~1b/c~0d", "escaped", true),
        ("/sub", "system:serviceaccount:shop:media", true),
        ("/", "shop", false),
        ("", "shop", false),
    ] {
        let wanted = Wanted { claim: claim.to_owned(), value: value.to_owned() };
        assert_eq!(wanted.matches(&claims()), matches, "{claim} = {value}");
    }
}

fn record(rules: &[(&[(&str, &str)], &str)]) -> proto::Attestor {
    let rule = |(claims, service): &(&[(&str, &str)], &str)| proto::AttestorRule {
        claims: claims.iter().map(|(claim, value)| ((*claim).to_owned(), (*value).to_owned())).collect(),
        service: (*service).to_owned(),
    };
    proto::Attestor {
        name: "cluster".to_owned(),
        issuer: "https://issuer.example".to_owned(),
        audience: "tenon".to_owned(),
        jwks_uri: String::new(),
        ca: vec![],
        rules: rules.iter().map(rule).collect(),
    }
}

fn decode(record: &proto::Attestor) -> Result<Attestor, String> {
    Attestor::decode("cluster", 1, record.encode_to_vec().into())
}

#[test]
fn the_first_rule_whose_claims_all_match_decides_and_one_without_claims_matches_nothing() {
    let attestor = decode(&record(&[
        (&[], "nobody"),
        (&[("/kubernetes.io/namespace", "shop"), ("admin", "false")], "wrong"),
        (&[("/kubernetes.io/namespace", "shop"), ("/kubernetes.io/serviceaccount/name", "media")], "media"),
        (&[("/kubernetes.io/namespace", "shop")], "shop"),
    ]));
    let attestor = attestor.unwrap();
    assert_eq!(attestor.service_for(&claims()).unwrap().as_str(), "media");
    let mut others = claims();
    others["kubernetes.io"]["serviceaccount"]["name"] = "wiki".into();
    assert_eq!(attestor.service_for(&others).unwrap().as_str(), "shop");
    others["kubernetes.io"]["namespace"] = "bank".into();
    assert_eq!(attestor.service_for(&others), None);
}

#[test]
fn a_record_that_would_take_keys_without_https_or_attest_the_control_plane_is_refused() {
    assert!(decode(&record(&[])).is_ok());
    for broken in [
        proto::Attestor { issuer: "http://127.0.0.1".to_owned(), ..record(&[]) },
        proto::Attestor { jwks_uri: "http://127.0.0.1/keys".to_owned(), ..record(&[]) },
        proto::Attestor { audience: String::new(), ..record(&[]) },
        record(&[(&[("sub", "x")], "tenon-identity")]),
        record(&[(&[("sub", "x")], "tenon-policy")]),
        record(&[(&[("sub", "x")], "Media!")]),
    ] {
        assert!(decode(&broken).unwrap_err().contains("cluster"), "{broken:?}");
    }
    // Some platforms name themselves by something else than a URL.
    let named = proto::Attestor {
        issuer: "cluster-7".to_owned(),
        jwks_uri: "https://k.example/keys".to_owned(),
        ..record(&[])
    };
    assert!(decode(&named).is_ok());
}
