//! The data plane beside Envoy (`make bench-mesh`): what a pair of proxies costs a call, and how long calls take.
//!
//! Each part is a process of its own on the same machine; all are up from beginning to end and are measured in turn, so
//! that what disturbs the machine disturbs all alike. Prints tables and writes JSON; exits 1 when a bar is missed.

mod envoy_pair;
mod measured;
mod own_client;
mod rounds;
mod subject;

use std::path::PathBuf;

use anyhow::bail;
use integration::bench::{app, child, envoy, h2load, report};

/// Which service calls.
const CALLER: &str = "wiki";
/// For whom.
const TENANT: &str = "acme";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => {}
        ["app", listen] => return app::run(listen.parse()?),
        _ => bail!("takes no arguments"),
    }
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench-mesh.json");
    if !rounds::measure()?.report(&file)? {
        std::process::exit(1);
    }
    Ok(())
}
