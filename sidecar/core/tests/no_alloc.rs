//! A good decision allocates nothing (DESIGN §11).
//!
//! `unsafe` is forbidden here, and with it an allocator of our own that counts. divan has one, which reports what each
//! benchmark allocated: so the test runs itself again as a handful of benchmarks and reads the report.

use std::process::Command;

use divan::AllocProfiler;

#[path = "../benches/mesh/mod.rs"]
mod mesh;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Set in the process that is read.
const REPORT: &str = "TENON_NO_ALLOC_REPORT";

#[divan::bench]
fn good_inbound(bencher: divan::Bencher<'_, '_>) {
    let mesh = mesh::Mesh::new(100, 100);
    bencher.bench_local(|| mesh.inbound());
}
