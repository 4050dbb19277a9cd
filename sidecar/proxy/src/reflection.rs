//! gRPC reflection of the sidecar's own services, made when it is first asked for: what it knows of every message takes
//! more memory than a thousand tenants.

use std::sync::OnceLock;

use http::Request;
use tonic::service::Routes;

/// How the paths of its requests begin, in both of its versions.
const PATH: &str = "/grpc.reflection.";

/// Tells of some services.
pub struct Reflection {
    services: &'static [&'static str],
    routes: OnceLock<Routes>,
}

impl Reflection {
    /// Tells of the services of these full names, Tenon's or gRPC's own.
    pub const fn of(services: &'static [&'static str]) -> Self {
        Self { services, routes: OnceLock::new() }
    }

    /// Whether this request is for reflection.
    pub fn is_asked<B>(request: &Request<B>) -> bool {
        request.uri().path().starts_with(PATH)
    }

    /// What answers such a request; a clone for each.
    pub fn routes(&self) -> Routes {
        self.routes.get_or_init(|| self.make()).clone()
    }

    fn make(&self) -> Routes {
        let descriptors = || {
            let all = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tenon_proto::FILE_DESCRIPTOR_SET);
            self.services.iter().fold(all, |all, service| all.with_service_name(*service))
        };
        // Only descriptors that do not decode are an error, and these come from the compiler.
        match (descriptors().build_v1(), descriptors().build_v1alpha()) {
            (Ok(v1), Ok(v1alpha)) => Routes::new(v1).add_service(v1alpha).prepare(),
            (Err(_), _) | (_, Err(_)) => Routes::default(),
        }
    }
}
