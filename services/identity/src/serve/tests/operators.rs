//! Operators and their roles, through the front door.

use mesh_identity::{OperatorRole, Svid};
use rcgen::{CertificateParams, KeyPair};
use tenon_proto::identity::v1::{
    CreateJoinTokenRequest, IssueOperatorRequest, ListRevocationsRequest, RenewRequest, RevokeRequest, RotateRequest,
    revoke_request::What,
};
use zeroize::Zeroizing;

use super::*;

fn request(name: &str, role: &str) -> (IssueOperatorRequest, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    let csr = csr.der().to_vec().into();
    (IssueOperatorRequest { name: name.to_owned(), role: role.to_owned(), csr, ttl_seconds: 0 }, key)
}

impl Service {
    /// What an admin gives `name`.
    async fn issued(&self, name: &str, role: &str) -> Svid {
        let (request, key) = request(name, role);
        let mut admin = IdentityClient::new(self.channel(&self.operator()));
        let chain = admin.issue_operator(request).await.unwrap().into_inner().chain;
        let chain = chain.iter().map(|der| der.to_vec().into()).collect();
        Svid::from_der(chain, Zeroizing::new(key.serialize_der())).unwrap()
    }

    /// What `present` is renewed to.
    async fn renewed(&self, present: Svid) -> Svid {
        let mut client = IdentityClient::new(self.channel(&Identity::new(present, self.ca.bundle())));
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec().into();
        let renewed = client.renew(RenewRequest { csr, ..RenewRequest::default() }).await.unwrap().into_inner();
        let chain = renewed.chain.iter().map(|der| der.to_vec().into()).collect();
        Svid::from_der(chain, Zeroizing::new(key.serialize_der())).unwrap()
    }
}

#[tokio::test]
async fn each_role_may_do_what_those_below_it_may_and_nothing_above() {
    let service = Service::start().await;
    for (role, revokes, rotates) in [("viewer", false, false), ("operator", true, false), ("admin", true, true)] {
        let svid = service.issued("ann", role).await;
        assert_eq!(svid.role().map(OperatorRole::as_str), Some(role));
        let identity = Identity::new(svid, service.ca.bundle());
        let mut ann = IdentityClient::new(service.channel(&identity));
        ann.list_revocations(ListRevocationsRequest::default()).await.unwrap();
        let what = Some(What::Serial("01".to_owned()));
        let revoked = ann.revoke(RevokeRequest { what, ..RevokeRequest::default() }).await;
        assert_eq!(revoked.is_ok(), revokes, "{role}: {revoked:?}");
        // Whoever makes a join token can be any service.
        let token = CreateJoinTokenRequest { service: "media".to_owned(), ttl_seconds: 0 };
        let token = ann.create_join_token(token).await;
        assert_eq!(token.is_ok(), rotates, "{role}: {token:?}");
        // Without a step it says how the rotation stands.
        let rotated = ann.rotate(RotateRequest::default()).await;
        assert_eq!(rotated.is_ok(), rotates, "{role}: {rotated:?}");
        let (another, _) = request("bob", "viewer");
        let issued = ann.issue_operator(another).await;
        assert_eq!(issued.is_ok(), rotates, "{role}: {issued:?}");
        if let Err(refused) = revoked {
            assert!(
                refused.message().contains("is viewer") && refused.message().contains("is for operator"),
                "{refused}"
            );
        }
    }
    service.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_has_the_role_of_the_one_before() {
    let service = Service::start().await;
    let viewer = service.issued("ann", "viewer").await;
    assert_eq!(service.renewed(viewer).await.role(), Some(OperatorRole::Viewer));
    // Whom no admin has made, like whoever runs `tenon up`.
    let own = service.ca.issue_operator("ada", OperatorRole::Admin, SVID_LIFETIME, clock::unix_seconds()).unwrap();
    assert_eq!(service.renewed(own).await.role(), Some(OperatorRole::Admin));
    service.stop().await;
}

/// Named after an operator who was an admin, was made a viewer, and renewed the old certificate for ever.
#[tokio::test]
async fn a_role_that_was_taken_is_not_renewed_also_after_a_restart() {
    let service = Service::start().await;
    let (admin, of_bob) = (service.issued("ann", "admin").await, service.issued("bob", "admin").await);
    let admin = service.renewed(admin).await;
    assert_eq!(admin.role(), Some(OperatorRole::Admin));
    let viewer = service.issued("ann", "viewer").await;
    let again = service.renewed(admin).await;
    assert_eq!(again.role(), Some(OperatorRole::Viewer));
    // More only by the certificate that has more.
    let operator = service.issued("ann", "operator").await;
    assert_eq!(service.renewed(viewer).await.role(), Some(OperatorRole::Viewer));
    let old = service.issued("eve", "admin").await;
    service.issued("eve", "viewer").await;
    let service = Service::start_in(service.stop().await).await;
    for (svid, role) in [(old, "viewer"), (again, "viewer"), (of_bob, "admin"), (operator, "operator")] {
        assert_eq!(service.renewed(svid).await.role().map(OperatorRole::as_str), Some(role));
    }
    service.stop().await;
}

#[tokio::test]
async fn nobody_becomes_an_operator_under_a_bad_name_or_role_or_for_longer_than_a_month() {
    let service = Service::start().await;
    let mut admin = IdentityClient::new(service.channel(&service.operator()));
    for (name, role, ttl_seconds) in
        [("ann", "root", 0), ("ann", "", 0), ("Ann Lee", "viewer", 0), ("", "viewer", 0), ("ann", "viewer", 2_592_001)]
    {
        let request = IssueOperatorRequest { ttl_seconds, ..request(name, role).0 };
        let refused = admin.issue_operator(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name} {role} {ttl_seconds}: {refused}");
    }
    let audit = std::fs::read_to_string(service.dir.path().join("identity").join(crate::audit::FILE)).unwrap();
    assert_eq!(audit.matches("\"rpc\":\"IssueOperator\"").count(), 5, "{audit}");
    service.stop().await;
}
