//! What the policy costs a sidecar: one inbound decision at 10, 1,000 and 10,000 rules, and compiling records.
//!
//! Prints a table, or with `--json` one JSON object `{"figure": value}`; exits 1 when a bar is missed. Times are of single
//! decisions, each with the two looks at the clock around it, over calls that are spread over all rules and tenants, in the
//! quickest of several rounds.

mod mesh;
mod report;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use mesh::Mesh;
use report::Report;
use sidecar_core::policy::Policy;
use tenon_proto::policy::v1 as proto;
use tikv_jemalloc_ctl::{epoch, stats, thread};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Decisions of one round.
const DECISIONS: usize = 100_000;
/// Rounds, of which the quickest counts: the others say what else the machine was doing.
const ROUNDS: usize = 10;

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let mut report = Report::default();
    decisions(&mut report);
    compiling(&mut report);
    let met = if json { report.json() } else { report.table() };
    if !met {
        std::process::exit(1);
    }
}

fn decisions(report: &mut Report) {
    report.figure("clock_ns", clock(), "ns");
    for rules in [10, 1_000, 10_000] {
        let mesh = Mesh::new(rules);
        for index in 0..DECISIONS {
            black_box(mesh.decide(index));
        }
        let allocated = thread::allocatedp::read().expect("jemalloc counts");
        let before = allocated.get();
        for index in 0..DECISIONS {
            black_box(mesh.decide(index));
        }
        let bytes = allocated.get() - before;
        let (median, p99) = (0..ROUNDS).map(|_| timed(&mesh)).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default();
        report.bar(&format!("decision_{rules}_rules_median_ns"), median, 1_000.0, "ns");
        report.figure(&format!("decision_{rules}_rules_p99_ns"), p99, "ns");
        report.bar(&format!("decision_{rules}_rules_allocated_bytes"), bytes as f64, 0.0, "bytes");
    }
}

/// Median and p99 of one round, in nanoseconds.
fn timed(mesh: &Mesh) -> (f64, f64) {
    let one = |index| {
        mesh.read(index);
        let start = Instant::now();
        black_box(mesh.decide(black_box(index)));
        u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX)
    };
    let mut nanos: Vec<u32> = (0..DECISIONS).map(one).collect();
    nanos.sort_unstable();
    let quantile = |share: f64| f64::from(nanos[(share * DECISIONS as f64) as usize]);
    (quantile(0.5), quantile(0.99))
}

/// The median of timing nothing, which is part of every time below.
fn clock() -> f64 {
    let mut nanos: Vec<u128> = (0..100_000).map(|_| Instant::now().elapsed().as_nanos()).collect();
    nanos.sort_unstable();
    nanos[nanos.len() / 2] as f64
}

fn compiling(report: &mut Report) {
    let mesh: Vec<_> = (0..1_000).map(|service| mesh::record(&format!("service-{service}"), 10)).collect();
    compiled(report, "1000_services_10000_rules", &mesh);
    compiled(report, "1_service_10000_rules", &[mesh::record("media", 10_000)]);
    compiled(report, "1_rule_300_callers_300_paths", &[mesh::wide(1, 300, 300)]);
    compiled(report, "100_rules_100_callers_20_paths", &[mesh::wide(100, 100, 20)]);
}

/// Records, as they are replicated, → what decides. Memory is what the result holds.
fn compiled(report: &mut Report, name: &str, records: &[proto::ServicePolicy]) {
    let before = in_use();
    let start = Instant::now();
    let policies: Vec<Policy> = records.iter().map(|record| Policy::try_from(record).expect("a policy")).collect();
    let took = start.elapsed();
    let bytes = in_use().saturating_sub(before);
    drop(black_box(policies));
    report.figure(&format!("compile_{name}_ms"), milliseconds(took), "ms");
    report.figure(&format!("memory_{name}_kb"), bytes as f64 / 1e3, "kB");
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn in_use() -> usize {
    epoch::advance().expect("jemalloc counts");
    stats::allocated::read().expect("jemalloc counts")
}
