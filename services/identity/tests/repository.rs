//! The key repository and revocations, through the front doors: HTTPS and gRPC.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "repository/front_door.rs"]
mod front_door;

use front_door::{Https, Service};
use mesh_asap::{PublicKey, SigningKey};
use tenon_proto::identity::v1::revoke_request::What;
use tenon_proto::identity::v1::{
    AsapKey, LiftRevocationRequest, ListKeysRequest, ListRevocationsRequest, RenewRequest, RevokeRequest,
    RotateRequest, lift_revocation_request, revocation, rotate_request,
};
use tonic::Code;

fn asap(key: &SigningKey) -> AsapKey {
    AsapKey { kid: key.kid().to_string(), spki: key.public_spki().into() }
}

fn revoke(what: What) -> RevokeRequest {
    RevokeRequest { what: Some(what), reason: "a test".to_owned() }
}

#[tokio::test]
async fn a_key_is_served_as_any_asap_library_asks_for_it_over_both_versions_of_http() {
    let service = Service::start().await;
    let key = SigningKey::generate("media").unwrap();
    service.renew("media", asap(&key)).await.unwrap();
    let path = format!("/{}", key.kid());
    for protocol in [&b"http/1.1"[..], b"h2", b""] {
        let mut https = Https::connect(&service, protocol).await;
        let (head, body) = https.until(&path, 200).await;
        let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("content-type").unwrap(), "application/x-pem-file");
        assert_eq!(header("cache-control").unwrap(), "public, max-age=60, stale-while-revalidate=240");
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.starts_with("-----BEGIN PUBLIC KEY-----"), "{text}");
        PublicKey::from_pem(text).unwrap();

        let etag = header("etag").unwrap();
        assert!(etag.starts_with('"'), "strong: {etag}");
        for (tags, status) in [
            (etag.clone(), 304),
            (format!("\"other\", W/{etag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\"".to_owned(), 200),
        ] {
            let (head, body) = https.send("GET", &path, &[("if-none-match", &tags)]).await;
            assert_eq!((head.status.as_u16(), body.is_empty()), (status, status == 304), "{tags}");
            assert_eq!(head.headers["etag"].to_str().unwrap(), etag);
            assert!(head.headers.contains_key("cache-control"));
        }
        let (head, body) = https.send("HEAD", &path, &[]).await;
        assert_eq!((head.status.as_u16(), body.is_empty()), (200, true));
        assert_eq!(head.headers["content-length"].to_str().unwrap(), text.len().to_string());
        let (head, _) = https.send("POST", &path, &[]).await;
        assert_eq!((head.status.as_u16(), head.headers["allow"].to_str().unwrap()), (405, "GET, HEAD"));
    }
    service.stop().await;
}

#[tokio::test]
async fn what_is_no_kid_is_not_found_and_is_not_decoded_into_one() {
    let service = Service::start().await;
    let key = SigningKey::generate("media").unwrap();
    service.renew("media", asap(&key)).await.unwrap();
    let kid = key.kid().as_str();
    Https::connect(&service, b"http/1.1").await.until(&format!("/{kid}"), 200).await;
    let (_, id) = kid.split_once('/').unwrap();
    for path in [
        "/".to_owned(),
        format!("//{kid}"),
        format!("/media//{id}"),
        format!("/media%2F{id}"),
        format!("/%6Dedia/{id}"),
        format!("/issues/../{kid}"),
        format!("/./{kid}"),
        format!("/{kid}/"),
        format!("/{}", kid.to_uppercase()),
        "/media/other".to_owned(),
        "/media/\u{e9}".to_owned(),
        "/../audit.jsonl".to_owned(),
        "/.well-known/other".to_owned(),
        format!("/media/{}", "x".repeat(300)),
    ] {
        let status = front_door::raw_status(&service, &format!("GET {path} HTTP/1.1")).await;
        assert!(status == "404" || (status == "400" && !path.is_ascii()), "{path}: {status}");
    }
    let mut https = Https::connect(&service, b"http/1.1").await;
    let (head, _) = https.send("GET", "/media/other", &[]).await;
    assert_eq!(head.headers["cache-control"].to_str().unwrap(), "public, max-age=5");
    service.stop().await;
}

#[tokio::test]
async fn the_trust_bundle_is_served_as_pem_and_in_the_format_of_spiffe() {
    let service = Service::start().await;
    let mut https = Https::connect(&service, b"http/1.1").await;
    let (head, body) = https.until("/trust-bundle.pem", 200).await;
    assert_eq!(head.headers["content-type"].to_str().unwrap(), "application/x-pem-file");
    assert_eq!(std::str::from_utf8(&body).unwrap(), service.ca.bundle().to_pem());

    let (head, body) = https.until("/.well-known/spiffe-bundle.json", 200).await;
    assert_eq!(head.headers["content-type"].to_str().unwrap(), "application/json");
    let bundle: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert!(bundle["spiffe_sequence"].is_u64() && bundle["spiffe_refresh_hint"] == 300, "{bundle}");
    let [key] = &bundle["keys"].as_array().unwrap()[..] else { panic!("one root: {bundle}") };
    assert_eq!((&key["use"], &key["kty"], &key["crv"]), (&"x509-svid".into(), &"EC".into(), &"P-256".into()));
    let [certificate] = &key["x5c"].as_array().unwrap()[..] else { panic!("one certificate: {key}") };
    let der = pem::parse(service.ca.bundle().to_pem()).unwrap().into_contents();
    assert_eq!(certificate.as_str().unwrap(), front_door::base64(&der));

    let (head, body) = https.until("/.well-known/jwks.json", 200).await;
    assert_eq!(head.headers["content-type"].to_str().unwrap(), "application/jwk-set+json");
    let keys: serde_json::Value = serde_json::from_slice(&body).unwrap();
    for key in keys["keys"].as_array().unwrap() {
        assert_eq!((&key["alg"], &key["use"]), (&"ES256".into(), &"sig".into()));
        // Keys of transaction tokens are no ASAP keys.
        let (head, _) = https.send("GET", &format!("/{}", key["kid"].as_str().unwrap()), &[]).await;
        assert_eq!(head.status.as_u16(), 404, "{key}");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_revoked_key_is_not_found_at_once_and_not_registered_again_until_that_is_lifted() {
    let service = Service::start().await;
    let key = SigningKey::generate("media").unwrap();
    let kid = key.kid().to_string();
    let path = format!("/{kid}");
    service.renew("media", asap(&key)).await.unwrap();
    let mut https = Https::connect(&service, b"h2").await;
    https.until(&path, 200).await;

    let mut operator = service.operator();
    let revoked = operator.revoke(revoke(What::Kid(kid.clone()))).await.unwrap().into_inner();
    assert_eq!(https.send("GET", &path, &[]).await.0.status.as_u16(), 404, "at once");
    assert_eq!((revoked.revision > 0, revoked.warning.as_str()), (true, ""));
    assert_eq!(operator.list_keys(ListKeysRequest {}).await.unwrap().into_inner().keys.len(), service.own_keys().await);
    let refused = service.renew("media", asap(&key)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("--lift"), "{refused}");
    service.renew("media", asap(&SigningKey::generate("media").unwrap())).await.unwrap();

    let listed = operator.list_revocations(ListRevocationsRequest {}).await.unwrap().into_inner().revocations;
    let [listed] = &listed[..] else { panic!("one revocation: {listed:?}") };
    assert_eq!((listed.reason.as_str(), listed.by.as_str()), ("a test", "spiffe://demo.example/operator/ada"));

    let lift = || LiftRevocationRequest { what: Some(lift_revocation_request::What::Kid(kid.clone())) };
    operator.lift_revocation(lift()).await.unwrap();
    assert_eq!(operator.lift_revocation(lift()).await.unwrap_err().code(), Code::NotFound);
    service.renew("media", asap(&key)).await.unwrap();
    https.until(&path, 200).await;
    let audited = service.audited();
    for event in ["issue", "revoke", "refuse", "lift"] {
        assert!(audited.iter().any(|line| line["event"] == event), "{event}: {audited:?}");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_revoked_service_gets_no_certificate_not_even_with_a_token_that_was_made_before() {
    let service = Service::start().await;
    let (token, key) = (service.join_token("media").await.unwrap(), SigningKey::generate("media").unwrap());
    service.renew("media", asap(&key)).await.unwrap();
    let mut https = Https::connect(&service, b"h2").await;
    https.until(&format!("/{}", key.kid()), 200).await;

    let mut operator = service.operator();
    operator.revoke(revoke(What::Service("media".to_owned()))).await.unwrap();
    assert_eq!(https.send("GET", &format!("/{}", key.kid()), &[]).await.0.status.as_u16(), 404);
    let attested = service.attest(&token, asap(&SigningKey::generate("media").unwrap())).await.unwrap_err();
    assert_eq!(attested.code(), Code::PermissionDenied, "{attested}");
    // Its certificate is nobody's any more.
    assert!(service.renew("media", asap(&key)).await.is_err());
    assert_eq!(service.join_token("media").await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(service.svid("media", 60).await.unwrap_err().code(), Code::FailedPrecondition);
    service.renew("issues", asap(&SigningKey::generate("issues").unwrap())).await.unwrap();

    let what = Some(lift_revocation_request::What::Service("media".to_owned()));
    operator.lift_revocation(LiftRevocationRequest { what }).await.unwrap();
    service.attest(&token, asap(&SigningKey::generate("media").unwrap())).await.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn a_revoked_serial_is_refused_however_it_is_written_and_its_service_is_not() {
    let service = Service::start().await;
    let (stolen, other) = (service.identity_of("media"), service.identity_of("media"));
    let mut operator = service.operator();
    let serial = format!("serial=00{}", stolen.svid().serial().to_uppercase());
    let revoked = operator.revoke(revoke(What::Serial(serial))).await.unwrap().into_inner();
    assert!(revoked.warning.contains("audit log"), "it was not issued by this process: {}", revoked.warning);
    assert!(service.renew_as(&stolen, asap(&SigningKey::generate("media").unwrap())).await.is_err());
    service.renew_as(&other, asap(&SigningKey::generate("media").unwrap())).await.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn a_revoked_operator_renews_no_more_and_is_refused_everything_until_another_lifts_that() {
    let service = Service::start().await;
    let (ada, ann) = (service.operator_named("ada"), service.operator_named("ann"));
    let (mut of_ada, mut of_ann) = (service.operator_as(&ada), service.operator_as(&ann));
    let renew = || RenewRequest { csr: front_door::csr(), ..RenewRequest::default() };
    let renewed = of_ada.renew(renew()).await.unwrap();
    assert_eq!(renewed.into_inner().chain.len(), 2);

    let own = of_ada.revoke(revoke(What::Operator("ada".to_owned()))).await.unwrap_err();
    assert!(own.code() == Code::FailedPrecondition && own.message().contains("that you are calling with"), "{own}");
    let typo = of_ann.revoke(revoke(What::Operator("adda".to_owned()))).await.unwrap().into_inner();
    assert!(typo.warning.contains("is the name right?"), "{}", typo.warning);
    let revoked = of_ann.revoke(revoke(What::Operator("ada".to_owned()))).await.unwrap().into_inner();
    assert_eq!((revoked.revision > 0, revoked.warning.as_str()), (true, ""), "it had renewed");

    of_ada.renew(renew()).await.unwrap_err();
    of_ada.list_keys(ListKeysRequest {}).await.unwrap_err();
    // Another certificate of the name is of no more use.
    let mut again = service.operator_as(&service.operator_named("ada"));
    again.renew(renew()).await.unwrap_err();
    let what = || Some(lift_revocation_request::What::Operator("ada".to_owned()));
    again.lift_revocation(LiftRevocationRequest { what: what() }).await.unwrap_err();

    let listed = of_ann.list_revocations(ListRevocationsRequest {}).await.unwrap().into_inner().revocations;
    assert!(listed.iter().any(|one| one.what == Some(revocation::What::Operator("ada".to_owned()))), "{listed:?}");
    of_ann.lift_revocation(LiftRevocationRequest { what: what() }).await.unwrap();
    of_ada.renew(renew()).await.unwrap();
    let audited = service.audited();
    for event in ["revoke", "lift"] {
        assert!(audited.iter().any(|line| line["event"] == event && line["what"] == "operator/ada"), "{audited:?}");
    }
    service.stop().await;
}

#[tokio::test]
async fn the_control_plane_and_ones_own_certificate_are_not_revoked_by_accident() {
    let service = Service::start().await;
    let identity = service.operator_identity();
    let mut operator = service.operator_as(&identity);
    for what in [
        What::Service("tenon-identity".to_owned()),
        What::Service("tenon-policy".to_owned()),
        What::Kid("tenon-tcs/1".to_owned()),
        What::Serial(identity.svid().serial().to_owned()),
    ] {
        let refused = operator.revoke(revoke(what.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{what:?}: {refused}");
    }
    let unknown = operator.revoke(revoke(What::Service("nobody".to_owned()))).await.unwrap().into_inner();
    assert!(unknown.warning.contains("is the name right?"), "{}", unknown.warning);
    for what in [What::Service("No Name".to_owned()), What::Kid("a//b".to_owned()), What::Serial("xyz".to_owned())] {
        assert_eq!(operator.revoke(revoke(what)).await.unwrap_err().code(), Code::InvalidArgument);
    }
    service.stop().await;
}

#[tokio::test]
async fn an_operator_gets_an_svid_of_a_service_but_not_of_the_control_plane_and_the_audit_log_says_so() {
    let service = Service::start().await;
    let issued = service.svid("media", 60).await.unwrap();
    assert_eq!(issued.chain.len(), 2);
    assert!(issued.key_revision > 0);
    let audited = service.audited();
    let line = audited.iter().find(|line| line["event"] == "svid").unwrap();
    assert_eq!((&line["by"], &line["service"]), (&"spiffe://demo.example/operator/ada".into(), &"media".into()));
    assert!(line["kid"].as_str().unwrap().starts_with("media/"));

    assert_eq!(service.svid("tenon-tcs", 60).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(service.svid("media", 3_601).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(service.svid("Media", 60).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(service.audited().iter().filter(|line| line["rpc"] == "IssueSvid").count(), 3);
    service.stop().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_granted_but_taking_away_needs_no_record() {
    let service = Service::start().await;
    let token = service.join_token("media").await.unwrap();
    let key = || asap(&SigningKey::generate("media").unwrap());
    service.renew("media", key()).await.unwrap();
    let mut operator = service.operator();

    service.fill_the_disk_of_the_audit_log(true);
    let what = || Some(lift_revocation_request::What::Service("wiki".to_owned()));
    operator.revoke(revoke(What::Service("wiki".to_owned()))).await.unwrap();
    for refused in [
        service.attest(&token, key()).await.unwrap_err(),
        service.renew("media", key()).await.unwrap_err(),
        service.svid("media", 60).await.unwrap_err(),
        service.join_token("issues").await.unwrap_err(),
        operator.lift_revocation(LiftRevocationRequest { what: what() }).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("audit log"), "{refused}");
    }

    service.fill_the_disk_of_the_audit_log(false);
    service.attest(&token, key()).await.expect("the token was given back");
    operator.lift_revocation(LiftRevocationRequest { what: what() }).await.unwrap();
    service.stop().await;
}

#[tokio::test]
async fn the_certificate_follows_the_issuing_authority_without_a_restart_or_a_closed_connection() {
    let service = Service::start().await;
    let mut before = Https::connect(&service, b"h2").await;
    let request = RotateRequest { step: rotate_request::Step::Issuing.into() };
    let rotated = service.operator().rotate(request).await.unwrap().into_inner();
    assert!(rotated.done, "{rotated:?}");
    let deadline = tokio::time::Instant::now() + front_door::DEADLINE;
    while Https::connect(&service, b"h2").await.issuer == before.issuer {
        assert!(tokio::time::Instant::now() < deadline, "the certificate was not replaced");
        tokio::task::yield_now().await;
    }
    assert_eq!(before.send("GET", "/trust-bundle.pem", &[]).await.0.status.as_u16(), 200);
    service.stop().await;
}

#[tokio::test]
async fn one_address_that_holds_all_its_connections_keeps_nobody_else_waiting() {
    let service = Service::start().await;
    let mut held = Vec::new();
    for _ in 0..256 {
        held.push(front_door::tcp("127.0.0.1", service.repository).await);
    }
    // They say nothing, and count all the same.
    front_door::closed(front_door::tcp("127.0.0.1", service.repository).await).await;
    let mut elsewhere = Https::connect_from(&service, b"h2", "127.0.0.2").await;
    assert_eq!(elsewhere.send("GET", "/trust-bundle.pem", &[]).await.0.status.as_u16(), 200);
    drop(held);
    service.stop().await;
}
