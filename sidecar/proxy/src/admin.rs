//! The admin listener: `/metrics`, `/live`, `/ready`, `/config` over HTTP; `tenon.admin.v1`, health and reflection over gRPC.

mod connections;
mod document;
mod rpc;

use std::{borrow::Cow, io, sync::Arc};

use arc_swap::ArcSwapOption;
use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_identity::join::Membership;
use mesh_telemetry::Format;
use serde_json::Value;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::codegen::Service as _;

use crate::{
    config::Config,
    live::Live,
    metrics::{Metrics, Snapshot},
    reflection::Reflection,
};

/// What the admin listener shows. It answers from the first moment on, before the sidecar has joined the mesh.
#[derive(Clone)]
pub struct Admin {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    live: Arc<ArcSwapOption<Live>>,
    membership: Arc<ArcSwapOption<Membership>>,
    /// Why the last attempt to join failed.
    refused: Arc<ArcSwapOption<String>>,
    stopping: CancellationToken,
    /// Of answers that are made or read.
    places: Arc<Semaphore>,
}

impl Admin {
    /// `live` is set once the sidecar has joined; `stopping` makes it unready before its listeners close.
    pub fn new(config: Arc<Config>, metrics: Arc<Metrics>, stopping: CancellationToken) -> Self {
        let places = Arc::new(Semaphore::new(rpc::ANSWERS));
        Self {
            config,
            metrics,
            live: Arc::default(),
            membership: Arc::default(),
            refused: Arc::default(),
            stopping,
            places,
        }
    }

    /// An attempt to join the mesh failed.
    pub fn cannot_join(&self, why: &str) {
        self.refused.store(Some(Arc::new(why.to_owned())));
    }

    /// The sidecar has joined the mesh.
    pub fn joined(&self, live: &Arc<Live>, membership: &Arc<Membership>) {
        self.membership.store(Some(Arc::clone(membership)));
        self.live.store(Some(Arc::clone(live)));
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
        let (health_reporter, health) = tonic_health::server::health_reporter();
        let grpc = tonic::service::Routes::new(health);
        let watch = tokio::spawn(self.clone().report_health(health_reporter, shutdown.clone()));
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/live", get(|| async { "live\n" }))
            .route("/ready", get(ready))
            .route("/config", get(config))
            .with_state(self.clone())
            .merge(grpc.into_axum_router())
            .fallback(move |request| other(self.clone(), request));
        let served = connections::serve(listener, router, shutdown).await;
        watch.abort();
        served
    }

    /// gRPC health says what `/ready` says.
    async fn report_health(self, reporter: tonic_health::server::HealthReporter, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(200));
        let mut last = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            let ready = self.is_ready();
            if last.replace(ready) != Some(ready) {
                let status =
                    if ready { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
                reporter.set_service_status("", status).await;
            }
        }
    }

    /// What `/ready` says.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    fn missing(&self) -> Vec<Cow<'static, str>> {
        if self.stopping.is_cancelled() {
            return vec!["the sidecar is draining: open calls may end, new ones go elsewhere".into()];
        }
        let (live, membership) = (self.live.load(), self.membership.load());
        let (Some(live), Some(membership)) = (live.as_ref(), membership.as_ref()) else {
            let why = self.refused.load().as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            return vec![format!("the sidecar has not joined the mesh{why}").into()];
        };
        let mut missing: Vec<_> = live.missing().into_iter().map(Cow::Borrowed).collect();
        if membership.standing().svid_seconds_left < 0 {
            missing.push("this sidecar's certificate has ended".into());
        }
        missing
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.live.load().as_ref().map(|live| live.snapshot()).unwrap_or_default();
        snapshot.ready = self.is_ready();
        snapshot.standing = self.membership.load().as_ref().map(|membership| membership.standing());
        snapshot
    }
}

/// What is made when it is asked for: an idle sidecar has no room for it.
async fn other(admin: Admin, request: Request) -> Response {
    static REFLECTION: Reflection = Reflection::of(&["grpc.health.v1.Health", rpc::SERVICES[0], rpc::SERVICES[1]]);
    if rpc::is_meant(request.uri().path()) {
        return rpc::serve(admin, request).await;
    }
    if !Reflection::is_asked(&request) {
        return nothing_here(request.headers());
    }
    let Ok(response) = REFLECTION.routes().call(request).await;
    response.map(Body::new)
}

/// gRPC callers are told UNIMPLEMENTED in their own way, others 404.
fn nothing_here(headers: &HeaderMap) -> Response {
    let grpc = headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return tonic::Status::unimplemented("this listener serves tenon.admin.v1, health and reflection")
            .into_http::<Body>();
    }
    (StatusCode::NOT_FOUND, "try /metrics, /live, /ready or /config\n").into_response()
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> impl IntoResponse {
    let format = Format::accepted(&headers);
    let text = format.of(admin.metrics.text(admin.snapshot()));
    ([(header::CONTENT_TYPE, format.content_type())], text)
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let missing = admin.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
    }
}

/// Everything effective, nothing secret.
async fn config(State(admin): State<Admin>) -> Json<Value> {
    Json(Value::Object(document::document(&admin)))
}
