use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use mesh_config::names::control_plane;
use tenon_proto::identity::v1::identity_client::IdentityClient;
use tenon_proto::identity::v1::{
    AttestRequest, CreateJoinTokenRequest, GetTrustBundleRequest, ListKeysRequest, RenewRequest,
};
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use crate::fake::{Fake, Running, TABLE};
use crate::grpc::{Rpc, Who, channel, channel_with, uncovered};
use crate::testing::{Ca, service};
use crate::{Identity, OperatorRole, Revoked, tls};

fn identified(running: &Running, identity: &Arc<Identity>) -> Channel {
    channel(running.address, identity, &service(control_plane::IDENTITY))
}

fn anonymous(running: &Running, ca: &Ca) -> Channel {
    let name = service(control_plane::IDENTITY);
    channel_with(running.address, tls::anonymous_client_config(ca.bundle(), &name), &name)
}

/// What came of `GetTrustBundle`, `Attest`, `CreateJoinToken`, `ListKeys` and a health check.
async fn codes(channel: Channel) -> [Code; 5] {
    fn code<T>(result: Result<T, tonic::Status>) -> Code {
        result.map_or_else(|status| status.code(), |_| Code::Ok)
    }
    let mut client = IdentityClient::new(channel.clone());
    let attest = AttestRequest { join_token: "bad".to_owned(), ..AttestRequest::default() };
    let attested = client.attest(attest).await.unwrap_err();
    [
        code(client.get_trust_bundle(GetTrustBundleRequest {}).await),
        if attested.message() == "no such join token" { Code::Ok } else { attested.code() },
        code(client.create_join_token(CreateJoinTokenRequest::default()).await),
        code(client.list_keys(ListKeysRequest {}).await),
        code(HealthClient::new(channel).check(HealthCheckRequest::default()).await),
    ]
}

#[tokio::test]
async fn each_caller_reaches_what_the_table_gives_it_and_nothing_else() {
    use Code::{Ok, PermissionDenied as Denied, Unauthenticated as Nobody};
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    assert_eq!(codes(anonymous(&running, &ca)).await, [Ok, Ok, Nobody, Nobody, Nobody]);
    assert_eq!(codes(identified(&running, &ca.identity("wiki"))).await, [Ok, Ok, Denied, Denied, Ok]);
    assert_eq!(codes(identified(&running, &ca.identity("media"))).await, [Ok, Ok, Ok, Denied, Ok]);
    assert_eq!(codes(identified(&running, &ca.operator_identity("ada"))).await, [Ok, Ok, Denied, Ok, Ok]);
    running.stop().await;
}

#[tokio::test]
async fn a_path_that_no_table_names_is_denied_to_everyone() {
    const ONE: &[Rpc] = &[Rpc { path: "/tenon.identity.v1.Identity/GetTrustBundle", who: Who::Anyone }];
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start_as(None, ONE).await;
    for channel in [
        anonymous(&running, &ca),
        identified(&running, &ca.identity("media")),
        identified(&running, &ca.operator_identity("ada")),
    ] {
        let [bundle, others @ .., _] = codes(channel).await;
        assert_eq!((bundle, others), (Code::Ok, [Code::PermissionDenied; 3]));
    }
    running.stop().await;
}

#[tokio::test]
async fn a_service_of_the_server_knows_who_calls() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let csr = crate::testing::csr();
    let renew = RenewRequest { csr: csr.into(), ..RenewRequest::default() };
    let answer = IdentityClient::new(identified(&running, &ca.identity("wiki"))).renew(renew).await.unwrap();
    let leaf = crate::peer::Leaf::parse(&answer.into_inner().chain[0]).unwrap();
    assert_eq!(leaf.id, ca.id("wiki"));
    running.stop().await;
}

#[tokio::test]
async fn a_caller_that_is_revoked_is_refused_on_the_connection_it_has_and_on_a_new_one() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let mut client = IdentityClient::new(identified(&running, &ca.identity("media")));
    client.create_join_token(CreateJoinTokenRequest::default()).await.unwrap();
    running.identity.set_revoked(Revoked { services: [service("media")].into(), ..Revoked::default() });
    // The first may find the old connection, which closes under it; the second needs a handshake.
    for _ in 0..2 {
        client.create_join_token(CreateJoinTokenRequest::default()).await.expect_err("revoked");
    }
    running.stop().await;
}

/// An open stream of `channel`, after its first message.
async fn watch(channel: Channel) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let mut stream = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    stream
}

#[tokio::test]
async fn the_open_streams_of_a_revoked_caller_end_at_once_and_those_of_others_go_on() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let (media, wiki) = (ca.identity("media"), ca.identity("wiki"));
    let serial = wiki.svid().serial().to_owned();
    let mut of_media = watch(identified(&running, &media)).await;
    let mut of_wiki = watch(identified(&running, &wiki)).await;
    let mut of_ada = watch(identified(&running, &ca.operator_identity("ada"))).await;

    running.identity.set_revoked(Revoked { services: [service("media")].into(), ..Revoked::default() });
    let ended = tokio::time::timeout(Duration::from_millis(900), of_media.message()).await.expect("ended in time");
    ended.expect_err("the connection is closed");
    assert!(of_wiki.message().now_or_never().is_none(), "another service's stream goes on");

    running.identity.set_revoked(Revoked { serials: [serial].into(), ..Revoked::default() });
    let ended = tokio::time::timeout(Duration::from_millis(900), of_wiki.message()).await.expect("ended in time");
    ended.expect_err("the connection is closed");
    assert!(of_ada.message().now_or_never().is_none(), "an operator's stream goes on");

    // Lifted: the same process connects again.
    running.identity.set_revoked(Revoked::default());
    watch(identified(&running, &media)).await;
    running.stop().await;
}

#[tokio::test]
async fn a_revoked_operator_is_cut_off_whichever_certificate_it_shows_and_nobody_of_the_same_name_is() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let (ada, namesake) = (ca.operator_identity("ada"), ca.identity("ada"));
    let mut of_ada = watch(identified(&running, &ada)).await;
    let mut of_ann = watch(identified(&running, &ca.operator_identity("ann"))).await;
    let mut of_namesake = watch(identified(&running, &namesake)).await;
    let mut client = HealthClient::new(identified(&running, &ada));
    client.check(HealthCheckRequest::default()).await.unwrap();

    running.identity.set_revoked(Revoked { operators: ["ada".to_owned()].into(), ..Revoked::default() });
    let ended = tokio::time::timeout(Duration::from_millis(900), of_ada.message()).await.expect("ended in time");
    ended.expect_err("the connection is closed");
    assert!(of_ann.message().now_or_never().is_none(), "another operator's stream goes on");
    assert!(of_namesake.message().now_or_never().is_none(), "so does that of a service of this name");
    for _ in 0..2 {
        client.check(HealthCheckRequest::default()).await.expect_err("revoked");
    }
    let renewed = identified(&running, &ca.operator_identity("ada"));
    HealthClient::new(renewed).check(HealthCheckRequest::default()).await.expect_err("another certificate of it");

    running.identity.set_revoked(Revoked::default());
    watch(identified(&running, &ada)).await;
    running.stop().await;
}

#[tokio::test]
async fn a_channel_to_a_server_that_is_revoked_ends_its_streams_and_connects_no_more() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let media = ca.identity("media");
    let channel = identified(&running, &media);
    let mut stream = watch(channel.clone()).await;
    media.set_revoked(Revoked { services: [service(control_plane::IDENTITY)].into(), ..Revoked::default() });
    let ended = tokio::time::timeout(Duration::from_millis(900), stream.message()).await.expect("ended in time");
    ended.expect_err("the connection is closed");
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.expect_err("refused in the handshake");
    running.stop().await;
}

#[tokio::test]
async fn clients_that_say_nothing_delay_nobody() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(running.address).await.unwrap());
    }
    let mut client = IdentityClient::new(anonymous(&running, &ca));
    client.get_trust_bundle(GetTrustBundleRequest {}).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn clients_without_a_certificate_take_no_place_from_those_that_have_one() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let get = async |channel: Channel| IdentityClient::new(channel).get_trust_bundle(GetTrustBundleRequest {}).await;
    let mut held = Vec::new();
    loop {
        let channel = anonymous(&running, &ca);
        match get(channel.clone()).await {
            Ok(_) => held.push(channel),
            Err(_) => break,
        }
        assert!(held.len() < 100, "there is no end of them");
    }
    get(identified(&running, &ca.identity("media"))).await.unwrap();
    held.pop();
    let place = async {
        while get(anonymous(&running, &ca)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), place).await.expect("a place that is given back is given again");
    running.stop().await;
}

#[tokio::test]
async fn both_reflections_list_the_services_of_the_table_and_no_others() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let channel = identified(&running, &ca.operator_identity("ada"));
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "tenon.identity.v1.Identity",
    ];

    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else { panic!() };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, expected);

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else { panic!() };
    assert_eq!(list.service.len(), expected.len());
    running.stop().await;
}

#[tokio::test]
async fn a_stream_that_never_ends_does_not_keep_a_server_from_stopping() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let mut client = HealthClient::new(identified(&running, &ca.operator_identity("ada")));
    let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    running.stop().await;
    assert!(stream.next().await.is_none_or(|answer| answer.is_err()));
}

#[tokio::test]
async fn a_channel_refuses_a_server_that_is_not_the_expected_service() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start_as(Some(ca.identity("media")), TABLE).await;
    let mut client = IdentityClient::new(identified(&running, &ca.identity("wiki")));
    let status = client.get_trust_bundle(GetTrustBundleRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    running.stop().await;
}

#[tokio::test]
async fn a_channel_connects_again_when_its_server_is_back() {
    let ca = Arc::new(Ca::new("demo.example"));
    let running = Fake::new(&ca).start().await;
    let mut client = IdentityClient::new(identified(&running, &ca.identity("wiki")));
    client.get_trust_bundle(GetTrustBundleRequest {}).await.unwrap();
    let address = running.address;
    running.stop().await;
    let back = Fake::new(&ca).start_at(address).await;
    // The first call may still find the dead connection.
    let first = client.get_trust_bundle(GetTrustBundleRequest {}).await;
    let second = client.get_trust_bundle(GetTrustBundleRequest {}).await;
    assert!(first.is_ok() || second.is_ok(), "{second:?}");
    back.stop().await;
}

#[test]
fn an_rpc_that_the_table_lacks_is_found() {
    const REPLICATION: &str = "tenon.replication.v1.Replication";
    const ALL: &[Rpc] = &[
        Rpc { path: "/tenon.replication.v1.Replication/Follow", who: Who::Services },
        Rpc { path: "/tenon.replication.v1.Replication/Fetch", who: Who::Services },
        Rpc { path: "/tenon.replication.v1.Replication/Status", who: Who::Operators(OperatorRole::Viewer) },
    ];
    assert_eq!(uncovered(&[REPLICATION], ALL), Vec::<String>::new());
    assert_eq!(uncovered(&[REPLICATION], &ALL[1..]), ["/tenon.replication.v1.Replication/Follow"]);
    assert_eq!(uncovered(&["tenon.Nothing"], ALL), ["/tenon.Nothing/*"]);
}
