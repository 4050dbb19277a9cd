//! What the processes of a mesh show of themselves, and the alerts and the dashboard that are made of it, by the judgement of
//! promtool.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use integration::{
    by_hand::{Instance, POLICY},
    calls::{channel, for_tenant, http_get, outcome},
    mesh::{Mesh, Plan, SOON, repository},
    python,
};
use prost::Message as _;
use serde_json::{Value, json};
use tenon_proto::media::v1::{DeleteRequest, GetRequest, ListRequest, media_client::MediaClient};

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn monitoring() -> PathBuf {
    repository().join("mesh-config/monitoring")
}

/// Standard output and standard error, where it is content.
fn promtool(args: &[&str], input: &str) -> String {
    let mut child = Command::new("promtool")
        .args(args)
        .current_dir(monitoring())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool of the package prometheus; make deps installs it");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {args:?}: {said}");
    said
}

/// Names and types in `docs/telemetry.md`, as the text format of Prometheus has them.
fn documented() -> BTreeSet<(String, String)> {
    let docs = read("docs/telemetry.md");
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let named = rows.map(|(name, rest)| {
        let kind = rest.split('|').nth(1).unwrap_or_default().trim();
        let suffix = if kind == "counter" { "_total" } else { "" };
        (format!("{name}{suffix}"), kind.to_owned())
    });
    named.collect()
}

/// Every time series that the document promises.
fn series() -> BTreeSet<String> {
    let parts = |(name, kind): (String, String)| match kind.as_str() {
        "histogram" => ["_bucket", "_count", "_sum"].map(|part| format!("{name}{part}")).to_vec(),
        _ => vec![name],
    };
    documented().into_iter().flat_map(parts).collect()
}

/// The metrics that an expression of PromQL names.
fn named(expression: &str) -> Vec<&str> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| {
            ["tenon_", "grpc_server_call", "grpc_client_call", "process_"].iter().any(|of| word.starts_with(of))
        })
        .collect()
}

fn expressions_of_rules() -> Vec<String> {
    let rules = read("mesh-config/monitoring/alerts.yaml");
    rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned).collect()
}

fn alerts() -> Vec<String> {
    let rules = read("mesh-config/monitoring/alerts.yaml");
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_process_of_a_mesh_shows_what_is_documented_and_promtool_finds_nothing_to_say() {
    let mesh = tokio::task::spawn_blocking(|| {
        let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY).caller("wiki", "us-east");
        plan.start().expect("a mesh")
    });
    let mesh = mesh.await.expect("it starts");
    let file = mesh.mesh_file().expect("mesh.json");
    let control_plane = file["controlPlane"]["metrics"].as_object().expect("addresses").clone();
    let names: Vec<_> = control_plane.keys().map(String::as_str).collect();
    assert_eq!(names, ["identity", "policy", "tcs"]);
    let sidecars = file["sidecars"].as_array().expect("sidecars").iter();
    let sidecars = sidecars.map(|sidecar| (sidecar["name"].to_string(), sidecar["admin"].clone()));
    let (mut shown, documented) = (BTreeSet::new(), documented());
    for (name, address) in control_plane.into_iter().chain(sidecars) {
        let address: SocketAddr = address.as_str().and_then(|address| address.parse().ok()).expect("an address");
        assert_eq!(http_get(address, "/live").await.expect("it lives"), "live\n", "{name}");
        http_get(address, "/ready").await.expect("it is ready");
        let text = http_get(address, "/metrics").await.expect("metrics");
        let said = promtool(&["check", "metrics"], &text);
        assert_eq!(said.trim(), "", "{name}");
        assert!(text.contains("\ntenon_ready 1\n"), "{name}: {text}");
        // A histogram without it is none to `histogram_quantile`.
        let ends = text.lines().filter(|line| line.contains("le=\"+Inf\"")).count();
        assert_eq!(ends, text.lines().filter(|line| line.contains("_count")).count(), "{name}: {text}");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        for (metric, kind) in types {
            let metric = (metric.to_owned(), kind.to_owned());
            assert!(documented.contains(&metric), "{name} shows {metric:?}, which docs/telemetry.md does not list");
            shown.insert(metric);
        }
    }
    // That of a sidecar which holds tenants on demand, of two parents, and of what has not happened yet are shown in
    // such meshes; the crates' own tests compare them.
    let missing: Vec<_> = documented.difference(&shown).map(|(name, _)| name.as_str()).collect();
    let elsewhere = |name: &&str| {
        ["tenon_tenant_cache_", "tenon_upstream_", "tenon_replica_parent_connected"]
            .iter()
            .any(|of| name.starts_with(of))
    };
    let missing: Vec<_> = missing.into_iter().filter(|name| !elsewhere(name)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "listed in docs/telemetry.md, and shown by nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_counted_once_by_who_called_whom_and_what() {
    let mesh = tokio::task::spawn_blocking(|| Plan::demo().expect("a plan").start().expect("a mesh"));
    let mesh = mesh.await.expect("it starts");
    let product = json!({"state": "ACTIVE", "shard": {"cluster": "c1", "database": "media-1", "schema": "main"}});
    let tenant = json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"media": product}});
    mesh.import(&[tenant]).expect("imported");
    let wiki = channel(mesh.outbound("wiki", "us-east"), "media").await.expect("the sidecar answers");
    let mut media = MediaClient::new(wiki);
    let (mut allowed, mut refused) = (0_u32, 0_u32);
    let end = Instant::now() + SOON;
    while allowed < 5 {
        match outcome(&media.list(for_tenant("acme", ListRequest {})).await).as_str() {
            "ALLOWED" => allowed += 1,
            _ => assert!(Instant::now() < end, "the tenant never arrives"),
        }
        refused += 1;
        let delete = for_tenant("acme", DeleteRequest { id: "no-such-file".into() });
        assert_eq!(outcome(&media.delete(delete).await), "PATH_NOT_ALLOWED");
    }
    let admins = [mesh.admin("media", "us-east"), mesh.admin("wiki", "us-east"), mesh.admin("media", "eu-west")];
    let wanted = [
        (r#"caller="wiki",callee="media",method="/media.v1.Media/List",decision="allowed",reason="""#, allowed),
        (r#"caller="wiki",callee="media",method="other",decision="refused",reason="PATH_NOT_ALLOWED""#, refused),
    ];
    loop {
        let mut counts = [0.0; 2];
        for admin in admins {
            let text = http_get(admin, "/metrics").await.expect("metrics");
            for (count, (labels, _)) in counts.iter_mut().zip(wanted) {
                let line = format!("tenon_flow_calls_total{{{labels}}} ");
                let value = text.lines().find_map(|it| it.strip_prefix(&line)?.parse::<f64>().ok());
                *count += value.unwrap_or_default();
            }
        }
        if counts == wanted.map(|(_, calls)| f64::from(calls)) {
            break;
        }
        assert!(Instant::now() < end, "{counts:?} of {wanted:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// As the parser of Prometheus' own Python client reads a page of OpenMetrics.
fn samples(admin: SocketAddr) -> Vec<Value> {
    let script = repository().join("integration/tests/python/openmetrics.py");
    let mut command = Command::new(python::program("python").expect("a Python"));
    let output = command.arg(script).arg(format!("http://{admin}/metrics")).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The sum over all series that have these labels.
fn sum(samples: &[Value], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &&Value| labels.iter().all(|(label, value)| sample["labels"][*label] == **value);
    let named = samples.iter().filter(|sample| sample["name"] == name).filter(has);
    named.map(|sample| sample["value"].as_f64().expect("a number")).sum()
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Another instance of media, which takes calls when this comes back.
async fn measured(mesh: &Mesh) -> Instance {
    let planned = Instance::plan(mesh, "media", "measured").expect("a plan").option("--tenant-metrics", "1");
    // Nobody takes spans: what is recorded is recorded.
    let mut instance = planned.option("--otlp", "http://127.0.0.1:9");
    instance.start_app().expect("it starts");
    instance.start_sidecar().expect("it starts");
    instance
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_measured_by_method_on_both_sides_with_a_trace_to_look_at_and_tenants_where_that_is_wanted() {
    let mesh = tokio::task::spawn_blocking(|| Plan::demo().expect("a plan").start().expect("a mesh"));
    let mesh = mesh.await.expect("it starts");
    let product = json!({"state": "ACTIVE", "shard": {"cluster": "c1", "database": "media-1", "schema": "main"}});
    let tenant =
        |id: &str| json!({"tenantId": id, "status": "ACTIVE", "region": "us-east", "products": {"media": product}});
    mesh.import(&[tenant("acme"), tenant("globex")]).expect("imported");
    let mut instance = measured(&mesh).await;
    let wiki = channel(mesh.outbound("wiki", "us-east"), "media").await.expect("the sidecar answers");
    let mut media = MediaClient::new(wiki);
    let traced = |mut request: tonic::Request<GetRequest>| {
        let context = format!("00-{TRACE}-00f067aa0ba902b7-01");
        request.metadata_mut().insert("traceparent", context.parse().expect("a value"));
        request
    };
    let (mut missing, mut refused) = (0_u32, 0_u32);
    let (wanted, end) = (GetRequest { id: "no-such-file".into() }, Instant::now() + SOON);
    let get = [("grpc_method", "media.v1.Media/Get"), ("grpc_status", "NOT_FOUND")];
    // Until the instance has had some of both tenants.
    loop {
        for tenant in ["acme", "acme", "acme", "globex"] {
            let answer = media.get(traced(for_tenant(tenant, wanted.clone()))).await;
            missing += u32::from(answer.is_err_and(|status| status.code() == tonic::Code::NotFound));
        }
        let delete = for_tenant("acme", DeleteRequest { id: "no-such-file".into() });
        refused += u32::from(outcome(&media.delete(delete).await) == "PATH_NOT_ALLOWED");
        let text = http_get(instance.admin(), "/metrics").await.unwrap_or_default();
        let has_calls = |tenant: &str| {
            let series = format!("tenon_tenant_calls_total{{tenant=\"{tenant}\",outcome=\"finished\"}} ");
            text.lines().any(|line| line.strip_prefix(&series).is_some_and(|calls| calls != "0"))
        };
        if missing > 20 && has_calls("acme") && has_calls("_other") {
            break;
        }
        assert!(Instant::now() < end, "{missing} calls, {}", instance.log());
    }
    let shown = samples(instance.admin());
    let server = |what: &str, labels: &[(&str, &str)]| sum(&shown, &format!("grpc_server_call_{what}"), labels);
    let count = server("duration_seconds_count", &get);
    assert!(count > 0.0);
    let size = f64::from(u32::try_from(wanted.encoded_len()).expect("small"));
    let received = server("rcvd_total_compressed_message_size_bytes_sum", &get);
    assert!((received - count * size).abs() < 0.5, "{received} bytes of {count} requests");
    let tenants = sum(&shown, "tenon_tenant_calls_total", &[("outcome", "finished")]);
    assert!(tenants <= count, "{tenants} calls for tenants, {count} calls");
    let of_nobody = shown.iter().filter(|sample| sample["labels"]["tenant"] == "globex").count();
    assert_eq!(of_nobody, 0, "one tenant was asked for");
    let traces: BTreeSet<_> = shown.iter().filter_map(|sample| sample["trace"].as_str()).collect();
    assert_eq!(traces, BTreeSet::from([TRACE]));

    let own = samples(mesh.admin("wiki", "us-east"));
    let client = |labels: &[(&str, &str)]| {
        let pair = [("caller", "wiki"), ("callee", "media")];
        sum(&own, "grpc_client_call_duration_seconds_count", &[&pair[..], labels].concat())
    };
    assert!((client(&get) - f64::from(missing)).abs() < 0.5, "{} of {missing}", client(&get));
    let denied = client(&[("grpc_method", "media.v1.Media/Delete"), ("grpc_status", "PERMISSION_DENIED")]);
    assert!((denied - f64::from(refused)).abs() < 0.5, "{denied} of {refused}");
    assert!(sum(&own, "tenon_tenant_calls_total", &[]) == 0.0, "nobody asked this one for tenants");
    // What no rule allows is a path that anybody may have invented, to the callee.
    let all: Vec<_> = samples(mesh.admin("media", "us-east")).into_iter().chain(shown).collect();
    assert!(sum(&all, "grpc_server_call_duration_seconds_count", &[("grpc_method", "media.v1.Media/Delete")]) == 0.0);
    assert!(sum(&all, "grpc_server_call_duration_seconds_count", &[("grpc_status", "PERMISSION_DENIED")]) > 0.0);
    instance.end_sidecar(rustix::process::Signal::TERM).await.expect("it ends");
}

#[test]
fn promtool_takes_the_alert_rules_and_each_fires_and_is_quiet_as_its_test_says() {
    promtool(&["check", "rules", "alerts.yaml"], "");
    promtool(&["test", "rules", "alerts_test.yaml"], "");
    let tests = read("mesh-config/monitoring/alerts_test.yaml");
    for alert in alerts() {
        for case in ["fires", "is quiet"] {
            assert!(tests.contains(&format!("name: {alert} {case}\n")), "no case in which {alert} {case}");
        }
    }
}

#[test]
fn rules_and_dashboard_name_only_what_is_documented() {
    let dashboard: Value = serde_json::from_str(&read("mesh-config/monitoring/grafana.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let of_dashboard = targets.map(|target| target["expr"].as_str().expect("an expression").to_owned());
    let series = series();
    for expression in expressions_of_rules().into_iter().chain(of_dashboard) {
        let named = named(&expression);
        assert!(!named.is_empty(), "{expression} names no metric");
        for name in named {
            assert!(series.contains(name), "{name} in {expression} is not in docs/telemetry.md");
        }
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let (rules, docs) = (read("mesh-config/monitoring/alerts.yaml"), read("docs/alerts.md"));
    let headings: Vec<_> = docs.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(headings, alerts());
    for alert in alerts() {
        let runbook = format!("runbook: docs/alerts.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&runbook), "{alert} lacks its {runbook}");
    }
}
