use mesh_identity::testing::Ca;

use super::*;

fn record(name: &str, ca: &Ca) -> ExternalClient {
    ExternalClient {
        name: name.to_owned(),
        issuer: format!("{name}.partner"),
        ca: vec![ca.root().to_vec().into()],
        certificate_names: vec![format!("dns:{name}.partner.example")],
        key_repositories: vec!["https://keys.partner.example/".to_owned()],
        key_repository_ca: vec![ca.root().to_vec().into()],
        subjects: vec!["somebody".to_owned()],
    }
}

#[tokio::test]
async fn what_is_the_same_stays_and_what_is_gone_is_nobody() {
    let ca = Ca::new("partner.example");
    let clients = Clients::new(Handle::current());
    let (billing, wages) = (record("billing", &ca), record("wages", &ca));
    clients.set(&[billing.clone(), wages.clone()]);
    let before = clients.get("billing").expect("it was set");
    assert_eq!((&*before.issuer, before.grants[0].subject.as_str()), ("billing.partner", "somebody"));

    clients.set(&[billing.clone(), ExternalClient { issuer: "other".to_owned(), ..wages.clone() }]);
    assert!(Arc::ptr_eq(&before, &clients.get("billing").expect("it is the same")));
    assert_eq!(&*clients.get("wages").expect("it is another").issuer, "other");

    clients.set(&[wages]);
    assert!(clients.get("billing").is_none() && !clients.tls.is_empty());
    clients.set(&[]);
    assert!(clients.get("wages").is_none() && clients.tls.is_empty());
}

#[tokio::test]
async fn a_record_that_cannot_be_used_keeps_nobody_else_out() {
    let ca = Ca::new("partner.example");
    let clients = Clients::new(Handle::current());
    let broken = ExternalClient { key_repositories: vec!["http://plain".to_owned()], ..record("billing", &ca) };
    clients.set(&[broken, record("wages", &ca)]);
    assert!(clients.get("billing").is_none() && clients.get("wages").is_some());
}

#[test]
fn a_policy_with_a_client_that_nobody_could_be_is_refused() {
    let ca = Ca::new("partner.example");
    assert_eq!(check(&record("billing", &ca)), Ok(()));
    for broken in [
        ExternalClient { issuer: String::new(), ..record("billing", &ca) },
        ExternalClient { ca: vec![], ..record("billing", &ca) },
        ExternalClient { ca: vec![b"no certificate".as_slice().into()], ..record("billing", &ca) },
        ExternalClient { certificate_names: vec![], ..record("billing", &ca) },
        ExternalClient { certificate_names: vec!["billing".to_owned()], ..record("billing", &ca) },
    ] {
        assert!(check(&broken).expect_err("broken").contains("billing"));
    }
}
