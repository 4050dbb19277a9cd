//! What is known of a call from its head.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Uri};

use crate::said::Said;

/// What refusals and log lines tell about a call. Cloned out of the request by reference count: nothing is copied.
#[derive(Debug)]
pub struct Facts {
    /// The callee: this service (inbound), or the destination as named (outbound).
    pub service: Arc<str>,
    /// Who calls: the peer (inbound), or this service (outbound).
    pub caller: Arc<str>,
    /// Path of the request.
    pub uri: Uri,
    /// The tenant as it was named by id or host.
    pub tenant: Option<HeaderValue>,
    /// `x-mesh-request-id`.
    pub request_id: HeaderValue,
    /// Whether the answer must be a gRPC one.
    pub grpc: bool,
    /// For the log, and for HEAD, whose refusals have no body.
    pub method: Method,
}

impl Facts {
    /// Reads what can be read without deciding anything.
    pub fn of<B>(
        request: &Request<B>,
        said: &Said<'_>,
        (service, caller): (Arc<str>, Arc<str>),
        request_id: HeaderValue,
    ) -> Self {
        Self {
            service,
            caller,
            uri: request.uri().clone(),
            tenant: said.tenant_id.first().cloned(),
            request_id,
            grpc: said.is_grpc(),
            method: request.method().clone(),
        }
    }

    /// The request id as text.
    #[must_use]
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The tenant as text; what is not printable ASCII is not repeated.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.tenant.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}
