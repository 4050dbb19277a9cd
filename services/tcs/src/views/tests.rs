use std::collections::HashMap;

use mesh_identity::SpiffeId;
use prost::Message as _;
use replica::Decode as _;
use tenon_proto::policy::v1::Route;
use tenon_proto::tcs::v1::{Product, TenantContext};
use tonic::Code;

use super::*;

/// None: no policy has arrived.
struct Policy(Option<HashMap<&'static str, &'static str>>);

impl Routes for Policy {
    fn known(&self) -> bool {
        self.0.is_some()
    }

    fn get(&self, service: &str) -> Option<Decoded<ServiceRoute>> {
        let product = self.0.as_ref()?.get(service)?;
        let route =
            Route { service: service.to_owned(), product: (*product).to_owned(), residency: 1, ..Route::default() };
        Some(Decoded::new(service, 1, route.encode_to_vec().into()).unwrap())
    }
}

fn views() -> ProductViews<Policy> {
    ProductViews::new(Policy(Some(HashMap::from([("media", "media"), ("thumbs", "media"), ("audit", "")]))))
}

fn peer(path: &str) -> Peer {
    let id: SpiffeId = format!("spiffe://demo.example/{path}").parse().unwrap();
    Peer { id, serial: "1".to_owned(), not_after: 0, role: None }
}

fn acme() -> TenantContext {
    TenantContext {
        tenant_id: "acme".to_owned(),
        revision: 7,
        status: 1,
        hosts: vec!["acme.example".to_owned()],
        realm: "commercial".to_owned(),
        region: "us-east".to_owned(),
        products: ["issues", "media", "wiki"].map(|name| (name.to_owned(), Product::default())).into(),
        settings: [("theme".to_owned(), "dark".to_owned())].into(),
        r#move: None,
    }
}

fn seen(path: &str) -> TenantContext {
    let views = views();
    let view = views.view(&peer(path)).unwrap();
    let value = acme().encode_to_vec().into();
    TenantContext::decode(views.project(&view, "acme", &value).unwrap()).unwrap()
}

#[test]
fn a_service_sees_its_own_product_and_all_that_is_no_product() {
    let mut expected = acme();
    expected.products.retain(|name, _| name == "media");
    assert_eq!(seen("svc/media"), expected);
    assert_eq!(seen("svc/thumbs"), expected);
}

#[test]
fn a_platform_service_sees_no_product() {
    let mut expected = acme();
    expected.products.clear();
    assert_eq!(seen("svc/audit"), expected);
}

#[test]
fn operators_and_the_control_plane_see_everything() {
    for path in ["operator/ada", "svc/tenon-policy", "svc/tenon-egress"] {
        assert_eq!(seen(path), acme(), "{path}");
    }
}

#[test]
fn a_service_that_the_policy_does_not_know_sees_nothing() {
    let status = views().view(&peer("svc/stranger")).unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "stranger is not in the policy"));
    let status = ProductViews::new(Policy(None)).view(&peer("svc/media")).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("not in the policy"), "{status}");
}

#[test]
fn services_of_one_product_share_a_view_and_others_do_not() {
    let views = views();
    let name = |path| views.view(&peer(path)).unwrap();
    assert_eq!(name("svc/media"), name("svc/thumbs"));
    assert_ne!(name("svc/media"), name("svc/audit"));
    assert_ne!(name("svc/media"), name("operator/ada"));
}

#[test]
fn the_same_record_gives_the_same_bytes() {
    let views = views();
    let view = views.view(&peer("svc/media")).unwrap();
    let value: Bytes = acme().encode_to_vec().into();
    assert_eq!(views.project(&view, "acme", &value), views.project(&view, "acme", &value));
}

#[test]
fn of_a_damaged_record_nothing_is_shown_that_decodes() {
    let views = views();
    let view = views.view(&peer("svc/media")).unwrap();
    let mut value = acme().encode_to_vec();
    value.truncate(value.len() - 1);
    let shown = views.project(&view, "acme", &value.into()).unwrap();
    assert!(TenantContext::decode(shown.clone()).is_err());
    assert_eq!(shown, DAMAGED, "and nothing of it");
}

#[test]
fn what_the_store_keeps_for_itself_is_shown_to_nobody() {
    let views = views();
    for path in ["operator/ada", "svc/tenon-policy", "svc/media"] {
        let view = views.view(&peer(path)).unwrap();
        assert!(views.project(&view, "event/0198", &Bytes::new()).is_none(), "{path}");
    }
    assert!(views.hides("event/0198") && !views.hides("acme"));
}

#[test]
fn a_tenant_is_found_by_its_hosts() {
    let views = views();
    assert_eq!(views.aliases(&acme().encode_to_vec()), ["acme.example"]);
}

#[test]
fn a_route_with_a_product_that_is_none_is_refused() {
    for product in ["*", "Media", "a/b"] {
        let route =
            Route { service: "media".to_owned(), product: product.to_owned(), residency: 1, ..Route::default() };
        assert!(ServiceRoute::decode("media", 1, route.encode_to_vec().into()).is_err(), "{product}");
    }
}
