//! The system's clock may step: nothing expires early, and nothing comes back to life.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use integration::{
    calls::{channel, for_tenant, http_get, outcome, with_headers},
    mesh::{Mesh, Plan, SOON, repository},
    python,
    traffic::Traffic,
};
use serde_json::json;
use tenon_proto::media::v1::{ListRequest, media_client::MediaClient};

/// How a program asks for the time of day.
const ASKS: &[&str] = &["SystemTime::now", "Timestamp::now", "Utc::now", "Local::now", "now_utc", "UnixTime::now"];

/// Who may, below `sidecar/` and `services/`, and why.
const MAY_ASK: &[(&str, &str)] = &[
    ("sidecar/identity/src/clock.rs", "the one place that reads it, once"),
    ("services/journal/src/embedded.rs", "an epoch is made once, and only has to be larger than the last"),
    ("services/journal/src/publisher/followers.rs", "tells operators since when somebody follows"),
    ("services/tenon/src/check.rs", "compares the clocks of machines"),
    ("services/issues/", "a product service: somebody else's software"),
    ("services/media/", "a product service: somebody else's software"),
];

#[test]
fn the_time_of_day_is_read_in_one_place() {
    let mut breaches = Vec::new();
    for folder in ["sidecar", "services"] {
        for file in sources(&repository().join(folder)) {
            let path = file.strip_prefix(repository()).expect("below the repository").display().to_string();
            let text = fs::read_to_string(&file).expect("a source file");
            // Tests stand at the end of their file, or in files of their own.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let asks = ASKS.iter().find(|ask| code.contains(**ask));
            if let Some(ask) = asks
                && !MAY_ASK.iter().any(|(may, _)| path.starts_with(may))
            {
                breaches.push(format!("{path}: {ask}"));
            }
        }
    }
    assert!(
        breaches.is_empty(),
        "a step of the clock changes what these decide; ask mesh_identity::clock: {breaches:#?}"
    );
}

/// Rust files of crates, without their tests and benchmarks.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && !["tests", "benches", "target", "fuzz"].iter().any(|skipped| name == *skipped) {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && name != "tests.rs"
            && name != "testing.rs"
        {
            found.push(path);
        }
    }
    found
}

/// A mesh whose processes see the system's clock shifted by what stands in the file, in seconds; their monotonic clock goes
/// on as it is.
fn mesh(step: &Path) -> Mesh {
    let library = python::file("libfaketime/vendor/libfaketime/src/libfaketime.so.1").expect("make deps installs it");
    let mesh = Plan::demo()
        .expect("a plan")
        .variable("LD_PRELOAD", &library.display().to_string())
        .variable("FAKETIME_TIMESTAMP_FILE", &step.display().to_string())
        .variable("FAKETIME_NO_CACHE", "1")
        .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start()
        .expect("the mesh starts");
    mesh.import(&[json!({
        "tenantId": "acme", "status": "ACTIVE", "region": "us-east",
        "products": {"media": {"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}}}
    })])
    .expect("imported");
    mesh
}

/// Seconds that the certificate of the callee's sidecar still lasts.
async fn remaining(mesh: &Mesh) -> f64 {
    let metrics = http_get(mesh.admin("media", "us-east"), "/metrics").await.expect("metrics");
    let line = metrics.lines().find(|line| line.starts_with("tenon_svid_remaining_seconds")).expect("the metric");
    line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

/// What the caller's sidecar takes for the time of day, in seconds since midnight: a refusal makes it write a line.
async fn time_of_day(mesh: &Mesh) -> i64 {
    let mut client = MediaClient::new(channel(mesh.outbound("issues", "us-east"), "media").await.expect("it answers"));
    let log = mesh.data_dir().join("issues-us-east.log");
    let length = || fs::metadata(&log).map_or(0, |file| file.len());
    let before = length();
    let refused = outcome(&client.list(with_headers(&[("x-tenant-host", "nobody.example.com")], ListRequest {})).await);
    assert_eq!(refused, "TENANT_UNKNOWN");
    let end = Instant::now() + SOON;
    while length() == before {
        assert!(Instant::now() < end, "the refusal is never logged");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let text = fs::read_to_string(&log).expect("the sidecar's log");
    let line = text.lines().rfind(|line| line.contains("TENANT_UNKNOWN")).expect("the refusal's line");
    // 2026-11-22T08:00:27.340008Z
    let (_, time) = line.split_once('T').expect("a line begins with the time");
    let mut numbers = time.split([':', '.']).map(|number| number.parse::<i64>().expect("a time of day"));
    numbers.by_ref().take(3).fold(0, |seconds, number| seconds * 60 + number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_steps_ten_minutes_back_or_ahead_under_traffic_fails_no_call() {
    let scratch = tempfile::tempdir().expect("a folder");
    let file = scratch.path().join("step");
    let step = |by: &str| {
        let fresh = scratch.path().join("fresh");
        fs::write(&fresh, by).and_then(|()| fs::rename(&fresh, &file)).expect("written");
    };
    step("+0");
    let mesh = mesh(&file);
    let outbound = mesh.outbound("issues", "us-east");
    let mut client = MediaClient::new(channel(outbound, "media").await.expect("the sidecar answers"));
    let end = Instant::now() + SOON;
    while outcome(&client.list(for_tenant("acme", ListRequest {})).await) != "ALLOWED" {
        assert!(Instant::now() < end, "the tenant never arrives");
    }
    let (first, left, started) = (time_of_day(&mesh).await, remaining(&mesh).await, Instant::now());

    for (by, seconds) in [("-600", -600), ("+0", 0), ("+600", 600)] {
        let traffic = Traffic::start(outbound, "acme", 100).await.expect("the sidecar answers");
        step(by);
        let expected = first + seconds + started.elapsed().as_secs().cast_signed();
        let seen = time_of_day(&mesh).await;
        let off = (seen - expected).rem_euclid(24 * 3600);
        assert!(
            !(60..=24 * 3600 - 60).contains(&off),
            "{by}: it should be {expected} s after midnight, the sidecar says {seen}"
        );
        // New connections and handshakes too: the operator's own, to each process of the mesh.
        let positions =
            mesh.tenon_ok(&["policy", "status"]).expect("the control plane takes the operator's certificate");
        assert!(positions.contains("media"), "{positions}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let report = traffic.stop().await;
        assert!(report.failed.is_empty() && report.calls > 100, "{by}: {report:?}");
        let expected = left - started.elapsed().as_secs_f64();
        let now = remaining(&mesh).await;
        assert!((now - expected).abs() < 30.0, "{by}: the certificate lasts {now} s instead of {expected}");
    }
}
