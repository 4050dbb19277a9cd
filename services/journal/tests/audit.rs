//! The audit record in both stores: one chain whoever writes it, what is tampered with is found, and what is noted while the
//! store is away is written later.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "conformance/backend.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod backend;
#[path = "../../../integration/src/nats.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod nats;
#[path = "../../../integration/src/ports.rs"]
mod ports;

use std::{collections::BTreeSet, path::Path, time::Duration};

use journal::{
    Store,
    audit::{
        Audit, Cursor, Event, Outcome, Service,
        chain::{Fault, Head, Verifier},
    },
};
use prost::Message as _;
use redb::TableDefinition;
use tenon_proto::audit::v1::{HeadResponse, Record};

use crate::backend::{MESH, mesh, single, within};

const SOON: Duration = Duration::from_secs(30);
type Rows = TableDefinition<'static, &'static str, (u64, &'static [u8])>;
const ROWS: Rows = TableDefinition::new("audit_tcs/records");

async fn open(path: &Path) -> Audit {
    let store = Store::Embedded(path.to_owned());
    Audit::open(Service::Tcs, &store, &mesh(MESH), Path::new("/nonexistent")).await.unwrap()
}

async fn records(audit: &Audit) -> Vec<Record> {
    let (mut cursor, mut all) = (Cursor::default(), Vec::new());
    loop {
        let page = audit.after(&mut cursor).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

async fn verified(audit: &Audit, known: Vec<Head>) -> Result<Head, Fault> {
    let mut verifier = Verifier::new("tcs", known);
    records(audit).await.iter().for_each(|record| verifier.push(record));
    verifier.finish()
}

fn event(what: usize) -> Event {
    Event::new("spiffe://demo.example/operator/ann", "suspend-tenant", what.to_string())
}

/// Ten records in a file that nobody has open, and where they ended.
async fn ten(path: &Path) -> Head {
    let audit = open(path).await;
    for what in 1..=10 {
        assert_eq!(audit.record(event(what)).await.unwrap(), what as u64);
    }
    let head = audit.head().await.unwrap();
    audit.end().await;
    head
}

fn key(sequence: u64) -> String {
    format!("record/{sequence:020}")
}

/// As somebody does who can write the file.
fn tamper(path: &Path, with: impl FnOnce(&mut redb::Table<'_, &'static str, (u64, &'static [u8])>)) {
    let database = redb::Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    with(&mut transaction.open_table(ROWS).unwrap());
    transaction.commit().unwrap();
}

fn value(table: &redb::Table<'_, &'static str, (u64, &'static [u8])>, sequence: u64) -> Vec<u8> {
    use redb::ReadableTable as _;
    table.get(key(sequence).as_str()).unwrap().unwrap().value().1.to_vec()
}

#[tokio::test]
async fn records_outlive_the_process_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tcs.redb.audit");
    let before = ten(&path).await;
    let audit = open(&path).await;
    audit.note(event(11));
    let begun = audit.begin(event(12)).await.unwrap();
    begun.end(Outcome::Done, |event| event.detail("revision", 7));
    drop(audit.begin(event(13)).await.unwrap());
    let last = audit.record(event(14)).await.unwrap();
    assert_eq!(verified(&audit, vec![before]).await.unwrap().sequence, last);
    let records = records(&audit).await;
    let outcomes: Vec<_> = records[10..].iter().map(|record| (&*record.what, &*record.outcome, record.of)).collect();
    let expected = [
        ("11", "done", 0),
        ("12", "begun", 0),
        ("12", "done", 12),
        ("13", "begun", 0),
        ("13", "unknown", 14),
        ("14", "done", 0),
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(records[12].details["revision"], "7");
}

#[tokio::test]
async fn what_somebody_did_to_the_file_is_found_and_named() {
    type Tampering = fn(&mut redb::Table<'_, &'static str, (u64, &'static [u8])>);
    let cases: [(&str, Tampering, Fault); 5] = [
        (
            "changed",
            |table| {
                let text = value(table, 4);
                let text: Vec<u8> = text.iter().map(|byte| if *byte == b'4' { b'5' } else { *byte }).collect();
                table.insert(key(4).as_str(), (4, &text[..])).unwrap();
            },
            Fault::Changed(4),
        ),
        ("spoiled", |table| drop(table.insert(key(4).as_str(), (4, &b"\xff"[..])).unwrap()), Fault::Changed(4)),
        ("removed", |table| drop(table.remove(key(4).as_str()).unwrap()), Fault::Removed(4)),
        (
            "swapped",
            |table| {
                let (four, seven) = (value(table, 4), value(table, 7));
                table.insert(key(4).as_str(), (4, &seven[..])).unwrap();
                table.insert(key(7).as_str(), (7, &four[..])).unwrap();
            },
            Fault::Reordered { expected: 4, found: 7 },
        ),
        ("cut", |table| drop(table.remove(key(10).as_str()).unwrap()), Fault::Cut { last: 9, known: 10 }),
    ];
    for (name, tampering, fault) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        ten(&path).await;
        tamper(&path, tampering);
        let audit = open(&path).await;
        let stands = audit.head().await.unwrap();
        assert_eq!(verified(&audit, vec![stands]).await, Err(fault), "{name}");
    }
}

#[tokio::test]
async fn a_head_that_somebody_removed_does_not_begin_the_chain_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let before = ten(&path).await;
    tamper(&path, |table| drop(table.remove("head").unwrap()));
    let audit = open(&path).await;
    assert_eq!(audit.record(event(11)).await.unwrap(), 11);
    assert_eq!(verified(&audit, vec![before]).await.unwrap().sequence, 11);
}

#[tokio::test]
async fn a_head_that_somebody_set_back_keeps_nothing_from_being_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let before = ten(&path).await;
    let audit = open(&path).await;
    let fourth = records(&audit).await.swap_remove(3);
    audit.end().await;
    let earlier = HeadResponse { service: "tcs".into(), sequence: 4, hash: fourth.hash }.encode_to_vec();
    tamper(&path, |table| drop(table.insert("head", (4, &earlier[..])).unwrap()));
    let audit = open(&path).await;
    assert_eq!(audit.head().await.unwrap(), before);
    assert_eq!(audit.record(event(11)).await.unwrap(), 11);
    assert_eq!(verified(&audit, vec![before]).await.unwrap().sequence, 11);
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_and_what_is_granted_is_recorded_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(&dir.path().join("audit")).await;
    for what in 0..5_000 {
        audit.note_limited(event(what).outcome(Outcome::Refused));
        if what % 500 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let last = audit.record(event(0)).await.unwrap();
    assert!((1_001..1_500).contains(&last), "{last}");
    verified(&audit, Vec::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_on_one_nats_store_make_one_chain() {
    let server = single().await;
    let store: Store = server.store().parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = async |name: &str| Audit::open(Service::Tcs, &store, &mesh(MESH), &dir.path().join(name)).await.unwrap();
    let (one, other) = (open("one").await, open("other").await);
    let write = async |audit: &Audit, from: usize| {
        for what in from..from + 30 {
            // Who is told that others write all the time tries again, as a caller does.
            while audit.record(event(what)).await.is_err() {}
        }
    };
    within(SOON * 2, "sixty records", async { tokio::join!(write(&one, 0), write(&other, 100)) }).await;
    let last = one.record(event(999)).await.unwrap().max(other.record(event(999)).await.unwrap());
    for audit in [&one, &other] {
        within(SOON, "the end", async {
            while audit.head().await.unwrap().sequence < last {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let stands = audit.head().await.unwrap();
        assert_eq!(verified(audit, vec![stands]).await.unwrap().sequence, last);
        let written: BTreeSet<_> = records(audit).await.into_iter().map(|record| record.what).collect();
        assert_eq!(written.len(), 61, "all of both");
    }
}
