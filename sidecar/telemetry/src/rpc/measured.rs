//! A service whose calls are counted.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use super::{
    Rpcs,
    body::{Call, Received, Sent},
    status,
};

/// Counts the calls of the service within, where it is told into what.
#[derive(Clone, Debug)]
pub struct Measured<S> {
    inner: S,
    rpcs: Option<Arc<Rpcs>>,
}

impl<S> Measured<S> {
    /// Without `rpcs` it passes everything on as it is.
    pub fn new(inner: S, rpcs: Option<Arc<Rpcs>>) -> Self {
        Self { inner, rpcs }
    }
}

impl<S> Service<Request<Body>> for Measured<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(rpcs) = &self.rpcs else { return Box::pin(self.inner.call(request)) };
        let mut call = Call::begin(rpcs, request.uri().path());
        let received = call.received();
        let answer = self.inner.call(request.map(|body| Body::new(Received::new(body, received))));
        Box::pin(async move {
            let answer = answer.await?;
            call.says(status::of_headers(answer.status(), answer.headers()));
            Ok(answer.map(|body| Body::new(Sent::new(body, call))))
        })
    }
}
