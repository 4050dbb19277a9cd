//! The way of spans to a collector: OTLP over gRPC, in batches, off the path of calls.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tracing::{info, warn};

use super::attributes::text;
use crate::{config::Config, metrics::Spans};

/// Spans of one request.
const BATCH: usize = 512;
/// How long a span waits for others.
const TOGETHER: Duration = Duration::from_secs(1);
/// How long a collector may take for a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts with the same batch: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// How long the same batch is tried.
const TRIED: Duration = Duration::from_secs(30);
/// The longest that the last spans may hold up the end.
const LAST: Duration = Duration::from_secs(2);

/// Exports what comes until `end`, and then what is left, for two seconds at most.
pub async fn run(
    (url, config, instance): (String, Arc<Config>, String),
    mut spans: mpsc::Receiver<Span>,
    counts: Arc<Spans>,
    end: CancellationToken,
) {
    let Ok(collector) = Endpoint::from_shared(url) else { return };
    let mut exporter = Exporter {
        client: TraceServiceClient::new(collector.connect_lazy()),
        resource: resource(&config, &instance),
        counts,
        away: false,
    };
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            taken = together(&mut spans, &mut batch) => if taken == 0 { return },
            () = end.cancelled() => break,
        }
        let full = std::mem::take(&mut batch);
        let waiting = full.len();
        tokio::select! {
            () = exporter.export(full) => {}
            () = end.cancelled() => exporter.counts.lost(waiting),
        }
    }
    spans.close();
    let _too_late = timeout(LAST, async {
        while together(&mut spans, &mut batch).await > 0 || !batch.is_empty() {
            exporter.export(std::mem::take(&mut batch)).await;
        }
    })
    .await;
}

/// Spans that come within a second of the first, into `batch`; 0 when none will come any more.
async fn together(spans: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>) -> usize {
    if batch.is_empty() && spans.recv_many(batch, BATCH).await == 0 {
        return 0;
    }
    let due = Instant::now() + TOGETHER;
    while batch.len() < BATCH {
        match tokio::time::timeout_at(due, spans.recv_many(batch, BATCH)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    batch.len()
}

struct Exporter {
    client: TraceServiceClient<Channel>,
    resource: Resource,
    counts: Arc<Spans>,
    /// The last attempt failed, and it was said.
    away: bool,
}

impl Exporter {
    async fn export(&mut self, spans: Vec<Span>) {
        let sent = spans.len();
        let (began, mut wait) = (Instant::now(), RETRY.0);
        loop {
            let answer = timeout(PATIENCE, self.client.export(self.request(spans.clone()))).await;
            let status = match answer {
                Ok(Ok(answer)) => {
                    let rejected = answer.into_inner().partial_success.map_or(0, |partial| partial.rejected_spans);
                    let rejected = usize::try_from(rejected).unwrap_or_default().min(sent);
                    self.counts.lost(rejected);
                    self.counts.exported(sent - rejected);
                    if std::mem::replace(&mut self.away, false) {
                        info!("spans are exported again");
                    }
                    return;
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("the collector does not answer"),
            };
            if !std::mem::replace(&mut self.away, true) {
                warn!(%status, "spans cannot be exported: look at --otlp, and whether the collector takes OTLP over gRPC there");
            }
            if !may_be_repeated(&status) || began.elapsed() + wait > TRIED {
                self.counts.lost(sent);
                return;
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let of_the_scope = ScopeSpans { scope: Some(scope), spans, schema_url: String::new() };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![of_the_scope],
                schema_url: String::new(),
            }],
        }
    }
}

/// As the OTLP specification has it, "OTLP/gRPC Response", "Failures".
fn may_be_repeated(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn resource(config: &Config, instance: &str) -> Resource {
    let mut attributes = vec![
        text("service.name", config.service.as_str()),
        text("service.instance.id", instance),
        text("tenon.trust_domain", config.trust_domain.as_str()),
    ];
    attributes.extend(config.region.as_ref().map(|region| text("cloud.region", region.as_str())));
    attributes.extend(config.zone.as_ref().map(|zone| text("cloud.availability_zone", zone.as_str())));
    Resource { attributes, ..Resource::default() }
}
