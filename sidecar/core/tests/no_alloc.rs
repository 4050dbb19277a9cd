//! A good decision allocates nothing (DESIGN §11).
//!
//! `unsafe` is forbidden here, and with it an allocator of our own that counts. divan has one, and reports what each
//! benchmark allocated: so the test runs itself again as a handful of benchmarks and reads that report.

use std::{collections::BTreeMap, env, process::Command};

use divan::{AllocProfiler, Bencher, black_box};

#[path = "../benches/fixture/mesh.rs"]
mod mesh;

use mesh::Mesh;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Set in the process whose report is read.
const REPORT: &str = "TENON_NO_ALLOC_REPORT";

#[divan::bench]
fn good_inbound(bencher: Bencher<'_, '_>) {
    let mesh = Mesh::new(100, 100);
    bencher.bench_local(|| black_box(&mesh).inbound());
}

#[divan::bench]
fn good_inbound_with_proof(bencher: Bencher<'_, '_>) {
    let mesh = Mesh::new(100, 100);
    bencher.bench_local(|| black_box(&mesh).inbound_with_proof());
}

#[divan::bench]
fn good_outbound(bencher: Bencher<'_, '_>) {
    let mesh = Mesh::new(1, 100);
    bencher.bench_local(|| black_box(&mesh).outbound());
}

#[divan::bench]
fn good_outbound_by_host(bencher: Bencher<'_, '_>) {
    let mesh = Mesh::new(1, 100);
    bencher.bench_local(|| black_box(&mesh).outbound_by_host());
}

#[divan::bench]
fn good_look_up(bencher: Bencher<'_, '_>) {
    let mesh = Mesh::new(1, 100);
    bencher.bench_local(|| black_box(&mesh).tenant());
}

/// Writes a message, so it must allocate: the proof that allocations are seen at all.
#[divan::bench]
fn refused(bencher: Bencher<'_, '_>) {
    let mesh = Mesh::new(100, 100);
    bencher.bench_local(|| black_box(&mesh).inbound_refused());
}

#[test]
fn the_good_path_allocates_nothing() {
    if env::var_os(REPORT).is_some() {
        divan::Divan::default().sample_count(10).sample_size(10).run_benches();
        return;
    }
    let this = env::current_exe().expect("the running test has a path");
    let arguments = ["--exact", "the_good_path_allocates_nothing", "--nocapture"];
    let output = Command::new(this).args(arguments).env(REPORT, "1").output().expect("the test runs itself");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}");
    let expected = [
        ("good_inbound", false),
        ("good_inbound_with_proof", false),
        ("good_look_up", false),
        ("good_outbound", false),
        ("good_outbound_by_host", false),
        ("refused", true),
    ];
    let expected = expected.map(|(name, allocates)| (name.to_owned(), allocates));
    assert_eq!(allocating(&report), BTreeMap::from(expected), "{report}");
}

/// Each benchmark of a report, and whether memory operations are listed below it.
fn allocating(report: &str) -> BTreeMap<String, bool> {
    let mut found = BTreeMap::new();
    let mut current = None;
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("─ ") {
            let name = rest.split_whitespace().next().unwrap_or_default();
            found.insert(name.to_owned(), false);
            current = Some(name.to_owned());
        } else if let (true, Some(name)) = (["alloc:", "grow:"].iter().any(|word| line.contains(word)), &current) {
            found.insert(name.clone(), true);
        }
    }
    found
}
