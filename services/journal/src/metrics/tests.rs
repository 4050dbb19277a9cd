use mesh_telemetry::{
    Format, Telemetry,
    documented::{emitted, listed},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Embedded, Everything, Expected, Write};

async fn shown(part: impl Observed) -> (Vec<(String, String)>, String) {
    let telemetry = Telemetry::default();
    let own = emitted(&telemetry.text(Format::OpenMetrics));
    telemetry.add(part);
    let all = emitted(&telemetry.text(Format::OpenMetrics));
    (all.into_iter().filter(|it| !own.contains(it)).collect(), telemetry.text(Format::Prometheus))
}

const DOCS: &str = include_str!("../../../../docs/telemetry.md");

#[tokio::test]
async fn writes_are_timed_and_failures_counted_by_why_and_a_file_has_a_size() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    let store = Embedded::open(&file).unwrap();
    let stores = Stores::default();
    stores.file("tenants", &file);
    let journal = stores.timed("tenant", store.kind("tenant").unwrap());
    journal.append(vec![Write::put("a", "1")]).await.unwrap();
    journal.append(Vec::new()).await.unwrap();
    let absent = || vec![Write::put("a", "2").expecting(Expected::Absent)];
    journal.append(absent()).await.unwrap_err();
    let (names, text) = shown(stores).await;
    assert_eq!(names, listed(DOCS, &["Stores"]));
    assert!(text.contains("tenon_store_write_duration_seconds_count{kind=\"tenant\"} 1\n"), "{text}");
    assert!(text.contains("tenon_store_write_failures_total{kind=\"tenant\",why=\"conflict\"} 1\n"), "{text}");
    let length = file.metadata().unwrap().len();
    assert!(text.contains(&format!("tenon_store_size_bytes{{store=\"tenants\"}} {length}\n")), "{text}");
}

#[tokio::test]
async fn a_publisher_shows_how_far_it_and_its_slowest_follower_are() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Embedded::open(&dir.path().join("store.redb")).unwrap().kind("key").unwrap();
    let first = journal.append(vec![Write::put("a", "1"), Write::put("b", "1")]).await.unwrap();
    let publisher = Publisher::start("key", Arc::clone(&journal), Arc::new(Everything), CancellationToken::new());
    publisher.published(first).await;
    let second = journal.append(vec![Write::put("b", "2")]).await.unwrap();
    publisher.published(second).await;
    let publishers = Publishers(vec![publisher]);
    assert_eq!(publishers.missing(), Vec::<String>::new());
    let (names, text) = shown(publishers).await;
    assert_eq!(names, listed(DOCS, &["Publishers"]));
    for line in ["tenon_publisher_revision{kind=\"key\"} 3", "tenon_publisher_records{kind=\"key\"} 2"] {
        assert!(text.contains(&format!("{line}\n")), "{text}");
    }
}

#[tokio::test]
async fn replicas_have_the_names_that_they_have_in_sidecars() {
    let held = || Status { last_heartbeat_age: Some(std::time::Duration::from_secs(3)), ..Status::default() };
    let (names, text) = shown(Replicas(vec![("route", Box::new(held))])).await;
    assert_eq!(names, listed(DOCS, &["Replicas of the control plane"]));
    assert!(text.contains("tenon_replica_age_seconds{kind=\"route\"} 3.0\n"), "{text}");
}
