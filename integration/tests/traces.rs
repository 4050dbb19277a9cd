//! Traces over OTLP, with a collector that speaks the real protocol: one trace spans client, two sidecars and server. And the
//! access log.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use integration::{
    by_hand::Instance,
    calls::http_get,
    mesh::{Mesh, Plan, SOON},
    shop::{self, Shop},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_client::TraceServiceClient,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span, span::SpanKind, status::StatusCode},
};

use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: shop}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: shop}
spec:
  service: shop
  rules: [{name: get, callers: [wiki], paths: [/shop.v1.Shop/Get], tenant: none}]
";

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-11111111111111111111111111111111-00f067aa0ba902b7-00";

/// Takes spans, with the service that each is of.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_one in request.into_inner().resource_spans {
            let resource = of_one.resource.unwrap_or_default();
            let service = text(&resource.attributes, "service.name").unwrap_or_default();
            let spans = of_one.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().expect("nobody panics").extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    }

    fn spans(&self) -> Vec<(String, Span)> {
        self.0.lock().expect("nobody panics").clone()
    }

    /// The spans of a trace, once there are so many.
    async fn trace(&self, id: &str, count: usize) -> Vec<(String, Span)> {
        let end = Instant::now() + SOON;
        loop {
            let spans: Vec<_> = self.spans().into_iter().filter(|(_, span)| hex(&span.trace_id) == id).collect();
            if spans.len() >= count {
                return spans;
            }
            assert!(Instant::now() < end, "{spans:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value?;
    if let Value::StringValue(text) = value { Some(text) } else { Some(format!("{value:?}")) }
}

/// What an app with OpenTelemetry of its own would export.
async fn export(to: SocketAddr, name: &str, kind: SpanKind, id: &str, parent: &str) {
    let span = Span {
        trace_id: bytes(TRACE),
        span_id: bytes(id),
        parent_span_id: bytes(parent),
        name: name.to_owned(),
        kind: kind.into(),
        ..Span::default()
    };
    let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
    let resource_spans = vec![ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() }];
    let mut client = TraceServiceClient::connect(format!("http://{to}")).await.expect("the collector answers");
    client.export(ExportTraceServiceRequest { resource_spans }).await.expect("it takes spans");
}

struct World {
    mesh: Mesh,
    shop: Arc<Shop>,
    sender: h2::client::SendRequest<bytes::Bytes>,
}

impl World {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY);
        let plan = plan.caller("wiki", "us-east").app_elsewhere("shop", "us-east");
        let plan = variables.iter().fold(plan, |plan, (name, value)| plan.variable(name, value));
        let mesh = plan.start().expect("the mesh starts");
        let shop = Shop::serve(mesh.app("shop", "us-east")).await.expect("an app");
        let sender = shop::connect(mesh.outbound("wiki", "us-east")).await.expect("the sidecar listens");
        Self { mesh, shop, sender }
    }

    async fn call(&self, method: &str, headers: &[(&'static str, &'static str)]) -> Result<(), String> {
        shop::call(self.sender.clone(), "shop", method, headers).await
    }

    /// The app takes calls.
    async fn settled(&self) {
        let end = Instant::now() + SOON;
        while let Err(problem) = self.call("Get", &[]).await {
            assert!(Instant::now() < end, "{problem}");
        }
    }

    fn traceparent(&self) -> Option<String> {
        self.shop.head().get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_spans_client_two_sidecars_and_server() {
    let collector = Collector::default();
    let address = collector.serve().await;
    let world = World::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}"))]).await;
    world.settled().await;
    let secret = ("authorization", "Bearer of-a-user");
    world.call("Get", &[("traceparent", SAMPLED), ("tracestate", "vendor=1"), secret]).await.expect("allowed");
    let arrived = world.traceparent().expect("the trace goes on to the app");
    let server = arrived.split('-').nth(2).expect("a span").to_owned();
    assert!(arrived.starts_with(&format!("00-{TRACE}-")) && arrived.ends_with("-01"), "{arrived}");
    assert_eq!(world.shop.head()["tracestate"], "vendor=1");
    export(address, "Get in the client", SpanKind::Client, CLIENT, "").await;
    export(address, "Get in the server", SpanKind::Server, "00000000000000aa", &server).await;

    let spans = collector.trace(TRACE, 4).await;
    assert_eq!(spans.len(), 4, "{spans:#?}");
    let child_of = |parent: &str| {
        let mut children = spans.iter().filter(|(_, span)| hex(&span.parent_span_id) == parent);
        let child = children.next().unwrap_or_else(|| panic!("nobody continues {parent}: {spans:#?}"));
        assert!(children.next().is_none(), "{parent} has one child");
        child
    };
    let (service, outbound) = child_of(CLIENT);
    assert_eq!((service.as_str(), outbound.kind(), &*outbound.name), ("wiki", SpanKind::Client, "shop.v1.Shop/Get"));
    let (service, inbound) = child_of(&hex(&outbound.span_id));
    assert_eq!((service.as_str(), inbound.kind()), ("shop", SpanKind::Server));
    assert_eq!(hex(&inbound.span_id), server);
    assert_eq!(child_of(&server).1.name, "Get in the server");
    assert_eq!(inbound.trace_state, "vendor=1");
    let said = |key: &str| text(&inbound.attributes, key);
    assert_eq!((said("rpc.system"), said("rpc.service")), (Some("grpc".into()), Some("shop.v1.Shop".into())));
    assert_eq!((said("tenon.caller"), said("tenon.service")), (Some("wiki".into()), Some("shop".into())));
    assert_eq!((said("tenon.decision"), said("tenon.rule")), (Some("allowed".into()), Some("get".into())));
    assert_eq!(said("rpc.grpc.status_code"), Some("IntValue(0)".into()));
    assert!(outbound.start_time_unix_nano <= inbound.start_time_unix_nano + 1_000_000, "within a millisecond");
    assert!(outbound.end_time_unix_nano > outbound.start_time_unix_nano);
    assert!(!format!("{spans:?}").contains("of-a-user"), "a credential");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_an_error_with_its_reason_and_what_is_not_sampled_goes_as_it_came() {
    let collector = Collector::default();
    let address = collector.serve().await;
    let world = World::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}"))]).await;
    world.settled().await;
    world.call("Get", &[("traceparent", UNSAMPLED)]).await.expect("allowed");
    assert_eq!(world.traceparent().as_deref(), Some(UNSAMPLED));
    world.call("Get", &[("traceparent", "nonsense")]).await.expect("allowed");
    assert_eq!(world.traceparent().as_deref(), Some("nonsense"), "it is the app's, and no trace begins by itself");
    world.call("Get", &[]).await.expect("allowed");
    assert_eq!(world.traceparent(), None);

    let refused = world.call("Erase", &[("traceparent", SAMPLED)]).await.expect_err("no rule allows it");
    assert!(refused.contains("PATH_NOT_ALLOWED"), "{refused}");
    let spans = collector.trace(TRACE, 2).await;
    let (_, inbound) = spans.iter().find(|(service, _)| service == "shop").expect("the callee's");
    assert_eq!(text(&inbound.attributes, "tenon.reason").as_deref(), Some("PATH_NOT_ALLOWED"));
    assert_eq!(inbound.status.as_ref().map(|status| status.code()), Some(StatusCode::Error));
    assert_eq!(collector.spans().len(), 2, "of calls that nobody records there are none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_has_a_line_of_json_for_each_call() {
    let world = World::start(&[]).await;
    world.settled().await;
    let planned = Instance::plan(&world.mesh, "wiki", "logged").expect("a plan");
    let mut instance = planned.option("--access-log", "on");
    instance.start_sidecar().expect("it starts");
    let end = Instant::now() + SOON;
    while http_get(instance.admin(), "/ready").await.is_err() {
        assert!(Instant::now() < end, "{}", instance.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let sender = shop::connect(instance.outbound()).await.expect("it listens");
    let secret = ("authorization", "Bearer of-a-user");
    for method in ["Get", "Erase"] {
        let _refused = shop::call(sender.clone(), "shop", method, &[secret, ("x-tenant-id", "acme")]).await;
    }
    let _refused = shop::call(sender, "nobody", "Get", &[]).await;
    let lines = loop {
        let lines: Vec<serde_json::Value> =
            instance.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if lines.len() >= 3 {
            break lines;
        }
        assert!(Instant::now() < end, "{}", instance.output());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let told = |line: &serde_json::Value| {
        let text = |field: &str| line[field].as_str().unwrap_or("-").to_owned();
        (text("service"), text("path"), text("tenant"), text("outcome"), text("reason"), line["grpcStatus"].as_u64())
    };
    let row = |service: &str, path: &str, tenant: &str, outcome: &str, reason: &str, status| {
        let (path, tenant) = (format!("/shop.v1.Shop/{path}"), tenant.to_owned());
        (service.to_owned(), path, tenant, outcome.to_owned(), reason.to_owned(), status)
    };
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(told(&lines[0]), row("shop", "Get", "acme", "finished", "-", Some(0)));
    assert_eq!(told(&lines[1]), row("shop", "Erase", "acme", "finished", "-", Some(7)), "by the callee's sidecar");
    assert_eq!(told(&lines[2]), row("nobody", "Get", "-", "refused", "SERVICE_UNKNOWN", None));
    assert!(!instance.output().contains("of-a-user"), "a credential");
    instance.end_sidecar(rustix::process::Signal::TERM).await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_trace_begin_one_where_a_share_is_asked_for_and_pass_while_nobody_takes_spans() {
    // A port that nobody listens on.
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let endpoint = format!("http://{closed}");
    let world = World::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_TRACES_SAMPLER_ARG", "1")]).await;
    world.settled().await;
    for _ in 0..200 {
        world.call("Get", &[("tracestate", "of=nobody")]).await.expect("the collector is no part of a call");
    }
    let begun = world.traceparent().expect("a trace begins");
    assert!(begun.ends_with("-03"), "sampled, with a random id: {begun}");
    assert!(!world.shop.head().contains_key("tracestate"), "a state without its trace is nobody's");

    // Whoever comes later gets what is made from then on, and what was tried meanwhile.
    let collector = Collector::default();
    let listener = TcpListener::bind(closed).await.expect("still free");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(incoming));
    let end = Instant::now() + SOON;
    while collector.spans().is_empty() {
        assert!(Instant::now() < end, "they never arrive");
        world.call("Get", &[]).await.expect("allowed");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let metrics = http_get(world.mesh.admin("wiki", "us-east"), "/metrics").await.expect("it answers");
    assert!(metrics.contains("tenon_spans_total{outcome=\"exported\"}"), "{metrics}");
}
