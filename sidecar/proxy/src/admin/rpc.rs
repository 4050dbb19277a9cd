//! `tenon.admin.v1`: what operators ask a sidecar over gRPC. Runs where replication runs, never on a worker.
//!
//! Whoever is on the machine may ask, and nobody else: neither another machine, where the listener takes connections of any,
//! nor a web page that has a browser ask for it. Browsers do not speak HTTP/2 without TLS.

mod decisions;
mod describe;
mod endpoints;
mod explain;
mod log_level;
mod tenants;

use std::{net::SocketAddr, sync::Arc};

use axum::{body::Body, extract::Request, response::Response};
use http::{Version, header};
use http_body_util::BodyExt as _;
use tenon_proto::admin::v1::{
    DecisionsRequest, DecisionsResponse, DescribeRequest, DescribeResponse, EndpointsRequest, EndpointsResponse,
    ExplainRequest, ExplainResponse, GetRequest, GetResponse, SetLogLevelRequest, SetLogLevelResponse,
    sidecar_server::{Sidecar, SidecarServer},
    tenants_server::{Tenants, TenantsServer},
};
use tonic::{Response as Answer, Status, codegen::Service as _, service::Routes};

use super::Admin;
use crate::live::Live;

/// How the paths of its requests begin.
const PATH: &str = "/tenon.admin.v1.";
/// The services, for reflection.
pub(super) const SERVICES: [&str; 2] = ["tenon.admin.v1.Sidecar", "tenon.admin.v1.Tenants"];
/// Answers that are made or read at once. Most are some kilobytes.
pub(super) const ANSWERS: usize = 8;
/// The longest request, and the longest answer, which is what clients take where nothing else is said.
const LARGEST_REQUEST_BYTES: usize = 64 << 10;
const LARGEST_ANSWER_BYTES: usize = 4 << 20;

/// Who is at the other end of the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visitor(pub SocketAddr);

/// Whether this request is for these services.
pub(super) fn is_meant(path: &str) -> bool {
    path.starts_with(PATH)
}

/// Answers one request. Its place is free again when the answer was read, which takes a quarter of a minute at most.
pub(super) async fn serve(admin: Admin, request: Request) -> Response {
    if let Err(status) = may_ask(&request) {
        return status.into_http();
    }
    let Ok(place) = Arc::clone(&admin.places).try_acquire_owned() else {
        return Status::resource_exhausted(format!("{ANSWERS} answers are being read: try again")).into_http();
    };
    let server = Arc::new(Server(admin));
    let sidecar = SidecarServer::from_arc(Arc::clone(&server))
        .max_decoding_message_size(LARGEST_REQUEST_BYTES)
        .max_encoding_message_size(LARGEST_ANSWER_BYTES);
    let tenants = TenantsServer::from_arc(server)
        .max_decoding_message_size(LARGEST_REQUEST_BYTES)
        .max_encoding_message_size(LARGEST_ANSWER_BYTES);
    let Ok(response) = Routes::new(sidecar).add_service(tenants).call(request).await;
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _until_the_end = &place;
            frame
        }))
    })
}

fn may_ask(request: &Request) -> Result<(), Status> {
    let from = request.extensions().get::<Visitor>().map(|Visitor(from)| from.ip().to_canonical());
    if !from.is_some_and(|from| from.is_loopback()) {
        return Err(Status::permission_denied(
            "only who is on the sidecar's own machine may ask it: use kubectl port-forward, kubectl exec or ssh -L",
        ));
    }
    if request.version() != Version::HTTP_2 || request.headers().contains_key(header::ORIGIN) {
        return Err(Status::permission_denied("this is not for web pages: use a gRPC client, such as grpcurl"));
    }
    Ok(())
}

struct Server(Admin);

impl Server {
    /// What there is once the sidecar has joined.
    fn live(&self) -> Result<Arc<Live>, Status> {
        self.0.live.load_full().ok_or_else(|| {
            let missing = self.0.missing();
            Status::unavailable(missing.join("; "))
        })
    }
}

#[tonic::async_trait]
impl Sidecar for Server {
    async fn describe(&self, request: tonic::Request<DescribeRequest>) -> Result<Answer<DescribeResponse>, Status> {
        describe::describe(&self.0, &request.into_inner()).map(Answer::new)
    }

    async fn explain(&self, request: tonic::Request<ExplainRequest>) -> Result<Answer<ExplainResponse>, Status> {
        explain::explain(&*self.live()?, &request.into_inner()).await.map(Answer::new)
    }

    async fn endpoints(&self, request: tonic::Request<EndpointsRequest>) -> Result<Answer<EndpointsResponse>, Status> {
        endpoints::endpoints(&*self.live()?, &request.into_inner()).map(Answer::new)
    }

    async fn decisions(&self, request: tonic::Request<DecisionsRequest>) -> Result<Answer<DecisionsResponse>, Status> {
        let membership = self.0.membership.load_full();
        let instance = membership.as_ref().map(|membership| membership.instance().to_string()).unwrap_or_default();
        decisions::decisions(&*self.live()?, instance, request.into_inner()).map(Answer::new)
    }

    async fn set_log_level(
        &self,
        request: tonic::Request<SetLogLevelRequest>,
    ) -> Result<Answer<SetLogLevelResponse>, Status> {
        log_level::set(&request.into_inner()).map(Answer::new)
    }
}

#[tonic::async_trait]
impl Tenants for Server {
    async fn get(&self, request: tonic::Request<GetRequest>) -> Result<Answer<GetResponse>, Status> {
        tenants::get(&*self.live()?, request.into_inner()).await.map(Answer::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(from: &str, version: Version, origin: Option<&str>) -> Result<(), tonic::Code> {
        let mut request = Request::new(Body::empty());
        *request.version_mut() = version;
        if let Some(origin) = origin {
            request.headers_mut().insert(header::ORIGIN, origin.parse().expect("a value"));
        }
        request.extensions_mut().insert(Visitor(from.parse().expect("an address")));
        may_ask(&request).map_err(|status| status.code())
    }

    #[test]
    fn who_is_on_the_machine_may_ask_and_no_web_page() {
        let refused = Err(tonic::Code::PermissionDenied);
        for from in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(asks(from, Version::HTTP_2, None), Ok(()), "{from}");
        }
        for from in ["10.0.0.1:1", "[::ffff:10.0.0.1]:1", "[fd00::1]:1", "0.0.0.0:1"] {
            assert_eq!(asks(from, Version::HTTP_2, None), refused, "{from}");
        }
        assert_eq!(asks("127.0.0.1:1", Version::HTTP_11, None), refused);
        assert_eq!(asks("127.0.0.1:1", Version::HTTP_2, Some("http://evil.example")), refused);
        assert!(may_ask(&Request::new(Body::empty())).is_err(), "nobody knows who asks");
    }
}
