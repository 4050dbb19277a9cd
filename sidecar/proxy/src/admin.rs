//! The admin listener: `/metrics`, `/live`, `/ready`, `/config` over HTTP, health and reflection over gRPC.

mod connections;

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
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::codegen::Service as _;

use crate::{
    config::{Config, SvidFrom},
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
}

impl Admin {
    /// `live` is set once the sidecar has joined; `stopping` makes it unready before its listeners close.
    pub fn new(config: Arc<Config>, metrics: Arc<Metrics>, stopping: CancellationToken) -> Self {
        Self { config, metrics, live: Arc::default(), membership: Arc::default(), refused: Arc::default(), stopping }
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
            .with_state(self)
            .merge(grpc.into_axum_router())
            .fallback(reflection);
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

/// Reflection, and nothing else.
async fn reflection(request: Request) -> Response {
    static REFLECTION: Reflection = Reflection::of("grpc.health.v1.Health");
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
        return tonic::Status::unimplemented("this listener serves health and reflection").into_http::<Body>();
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
    let config = &admin.config;
    let live = admin.live.load();
    let svid = live.as_ref().map(|live| {
        let svid = live.identity.svid();
        json!({
            "spiffeId": svid.id().to_string(),
            "serial": svid.serial(),
            "notBefore": svid.not_before(),
            "notAfter": svid.not_after(),
        })
    });
    let membership = admin.membership.load().as_ref().map(|membership| {
        let standing = membership.standing();
        json!({
            "instance": &**membership.instance(),
            "asapKey": membership.asap_key().borrow().kid().as_str(),
            "asapKeyCreated": standing.asap_key_created,
            "renewalError": standing.renewals.error,
            "confirmationError": standing.confirmations.error,
            "rekeyingError": standing.rekeyings.error,
            "stateError": standing.state_error,
        })
    });
    let (pin, workload_api) = match &config.svid_from {
        SvidFrom::IdentityService { pin, .. } => (Some(pin), None),
        SvidFrom::WorkloadApi(socket) => (None, Some(socket.to_string())),
    };
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "service": config.service.as_str(),
        "trustDomain": config.trust_domain.as_str(),
        "region": config.region.as_ref().map(|region| region.as_str()),
        "zone": config.zone.as_ref().map(|zone| zone.as_str()),
        "app": config.app.as_ref().map(ToString::to_string),
        "appUids": config.app_uids,
        "outbound": config.outbound.to_string(),
        "inbound": config.inbound.to_string(),
        "admin": config.admin.to_string(),
        "identity": config.identity.to_string(),
        "tcs": config.tcs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tenants": config.tenants.as_str(),
        "tenantCacheBytes": config.tenants.cache_bytes(),
        "policy": config.policy.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "requireSigned": !config.require_signed.is_empty(),
        "trustBundleSha256": pin,
        "workloadApi": workload_api,
        "stateDir": config.state_dir.display().to_string(),
        "workers": config.workers,
        "settleMs": u64::try_from(config.settle.as_millis()).unwrap_or(u64::MAX),
        "drainSeconds": config.drain.as_secs(),
        "accessLog": config.access_log,
        "svid": svid,
        "membership": membership,
        "missing": admin.missing(),
        "destinations": admin.snapshot().destinations,
        "replicas": admin.snapshot().replicas,
    }))
}
