//! What a decision costs: at most 1 µs and no allocation, at any number of rules (DESIGN §11). Allocations are listed
//! below the times; where none are listed there were none.

use divan::{AllocProfiler, Bencher, black_box};

#[path = "fixture/mesh.rs"]
mod mesh;

use mesh::Mesh;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const TENANTS: usize = 100_000;

fn main() {
    divan::main();
}

/// An allowed inbound call, with tenant and freshness; the token is remembered elsewhere.
#[divan::bench(args = [10, 10_000])]
fn inbound(bencher: Bencher<'_, '_>, rules: usize) {
    let mesh = Mesh::new(rules, TENANTS);
    bencher.bench_local(|| black_box(&mesh).inbound());
}

/// The same of a client outside of the mesh, whose rule wants a transaction token; that is remembered elsewhere as well.
#[divan::bench(args = [10, 10_000])]
fn inbound_with_proof(bencher: Bencher<'_, '_>, rules: usize) {
    let mesh = Mesh::new(rules, TENANTS);
    bencher.bench_local(|| black_box(&mesh).inbound_with_proof());
}

/// A refusal, its message and its nearest rule.
#[divan::bench(args = [10, 10_000])]
fn inbound_refused(bencher: Bencher<'_, '_>, rules: usize) {
    let mesh = Mesh::new(rules, 1);
    bencher.bench_local(|| black_box(&mesh).inbound_refused());
}

/// An allowed outbound call: destination, tenant, endpoint, slot, latency.
#[divan::bench]
fn outbound(bencher: Bencher<'_, '_>) {
    let mesh = Mesh::new(1, TENANTS);
    bencher.bench_local(|| black_box(&mesh).outbound());
}

/// The same with the tenant named by a host that is not in lower case.
#[divan::bench]
fn outbound_by_host(bencher: Bencher<'_, '_>) {
    let mesh = Mesh::new(1, TENANTS);
    bencher.bench_local(|| black_box(&mesh).outbound_by_host());
}

/// One look-up in a map of tenants, without a replica around it.
#[divan::bench(args = [1_000, 100_000])]
fn tenant(bencher: Bencher<'_, '_>, tenants: usize) {
    let mesh = Mesh::new(1, tenants);
    bencher.bench_local(|| black_box(&mesh).tenant());
}
