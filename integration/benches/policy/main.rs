//! Policy at scale (`make bench-policy`): a change reaching 1,000 sidecars, and what rules cost a call beside Envoy's RBAC.
//!
//! Each part is a process of its own on the same machine. Prints a table and writes JSON; exits 1 when a bar is missed.
//! What one decision costs is `sidecar-core`'s benchmark of the same name.

mod distribution;
mod files;
mod followers;
mod rbac;

use std::path::{Path, PathBuf};

use anyhow::bail;
use integration::bench::{
    app, child, envoy, h2load,
    report::{self, Report},
};
use mesh_identity::testing::Ca;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const DOMAIN: &str = "bench.example";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => {}
        ["serve", ca, listen, dir] => return distribution::serve(&read_ca(ca)?, listen.parse()?, Path::new(dir)),
        ["followers", ca, policy] => return followers::run(policy.parse()?, &read_ca(ca)?),
        ["app", listen] => return app::run(listen.parse()?),
        _ => bail!("takes no arguments"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut report = Report::default();
    runtime.block_on(distribution::measure(&mut report))?;
    rbac::measure(&mut report)?;
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench-policy.json");
    if !report.finish(&file)? {
        std::process::exit(1);
    }
    Ok(())
}

/// The benchmark's root of trust, as all parts read it.
fn read_ca(dir: &str) -> anyhow::Result<Ca> {
    let root = std::fs::read(Path::new(dir).join("root.der"))?;
    let key = std::fs::read_to_string(Path::new(dir).join("root.key"))?;
    Ok(Ca::from_parts(DOMAIN, root.into(), &key))
}
