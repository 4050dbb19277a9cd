//! What is measured: ways from a caller to an app.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use integration::mesh::{Mesh, Plan, repository, target_profile_dir};
use serde_json::json;

use crate::{
    CALLER, TENANT,
    app::App,
    envoy::Form,
    envoy_pair::{Credentials, EnvoyPair},
};

/// Rules of the callee; all of them name paths of their own.
const RULES: usize = 10_000;
const FEW_RULES: usize = 100;
const TENANTS: usize = 1_000;

/// A way to the app.
pub struct Subject {
    pub name: &'static str,
    /// Where the caller's calls go.
    pub address: SocketAddr,
    /// Called there; the rule for it stands in the middle.
    pub path: String,
    pub headers: Vec<String>,
    /// The two proxies in between, the caller's first.
    pub pids: Vec<u32>,
}

/// All of them, running.
pub struct Subjects {
    pub all: Vec<Subject>,
    _app: App,
    _envoys: Vec<EnvoyPair>,
    _meshes: Vec<Mesh>,
}

pub const DIRECT: &str = "direct";
pub const OURS: &str = "tenon";
pub const UNCHECKED: &str = "tenon --no-checks";
pub const ENVOY_LIST: &str = "envoy, list of 100";
pub const ENVOY_TREE: &str = "envoy, tree of 10,000";

/// Starts everything.
///
/// # Errors
/// A process cannot be started.
pub fn start(scratch: &Path) -> anyhow::Result<Subjects> {
    let app = App::start()?;
    let (path, headers) = (path_of(FEW_RULES / 2), Vec::new());
    let mut all = vec![Subject { name: DIRECT, address: app.address, path, headers, pids: Vec::new() }];
    let (mut meshes, mut envoys) = (Vec::new(), Vec::new());
    for (name, binaries) in [(OURS, checked()?), (UNCHECKED, unchecked()?)] {
        let mesh = mesh(name, &binaries)?;
        let sidecar = |service: &str| {
            let found = mesh.processes(&format!("tenon-sidecar --service {service}")).into_iter().next();
            Ok::<_, anyhow::Error>(found.with_context(|| format!("the sidecar of {service} runs"))?.0)
        };
        let pids = vec![sidecar(CALLER)?, sidecar("media")?];
        let address = mesh.outbound(CALLER, "us-east");
        // Without checks one that no rule allows: were they made after all, its calls would be refused.
        let path = if name == UNCHECKED { path_of(RULES) } else { path_of(RULES / 2) };
        let headers = vec![format!("x-tenant-id: {TENANT}")];
        all.push(Subject { name, address, path, headers, pids });
        meshes.push(mesh);
    }
    let credentials = Credentials::new(scratch)?;
    for (name, form, rules) in [(ENVOY_LIST, Form::Policies, FEW_RULES), (ENVOY_TREE, Form::Matcher, RULES)] {
        let paths: Vec<String> = (0..rules).map(path_of).collect();
        let pair = EnvoyPair::start(form, &paths, &credentials, app.address)?;
        let (path, headers) = (path_of(rules / 2), vec![format!("x-tenant-id: {TENANT}")]);
        all.push(Subject { name, address: pair.address(), path, headers, pids: pair.pids() });
        envoys.push(pair);
    }
    Ok(Subjects { all, _app: app, _envoys: envoys, _meshes: meshes })
}

fn path_of(rule: usize) -> String {
    format!("/bench.v1.S{rule}/Get")
}

fn mesh(name: &str, binaries: &Path) -> anyhow::Result<Mesh> {
    let mut policy = String::from(
        "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: media}\nspec: {product: media}\n---\n\
         apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: wiki}\nspec: {}\n---\n\
         apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {name: media}\nspec:\n  service: media\n  rules:\n",
    );
    for rule in 0..RULES {
        let path = path_of(rule);
        let _ = writeln!(policy, "    - {{name: rule-{rule}, callers: [{CALLER}], paths: [{path}], tenant: required}}");
    }
    let this = std::env::current_exe()?.display().to_string();
    let app = |port: u16| vec![this, "app".to_owned(), format!("127.0.0.1:{port}")];
    let no_checks = if name == UNCHECKED { "true" } else { "false" };
    let plan = Plan::new()?.binaries(binaries).variable("BENCH_NO_CHECKS", no_checks).file("policy.yaml", &policy);
    let mesh = plan.app("media", "us-east", app).caller(CALLER, "us-east").start()?;
    let tenant = |id: &str| {
        let product = json!({"state": "ACTIVE", "edition": "standard", "seats": 25,
            "shard": {"cluster": "c1", "database": "media-1", "schema": "main"}});
        json!({"tenantId": id, "status": "ACTIVE", "hosts": [format!("{id}.example.com")], "realm": "us",
            "region": "us-east", "products": {"media": product}})
    };
    let others = (1..TENANTS).map(|number| tenant(&format!("tenant-{number:04}")));
    mesh.import(&[tenant(TENANT)].into_iter().chain(others).collect::<Vec<_>>())?;
    Ok(mesh)
}

/// Where `tenon` and `tenon-sidecar` lie: beside this program, or in `TENON_BENCH_BINARIES`.
fn checked() -> anyhow::Result<PathBuf> {
    std::env::var_os("TENON_BENCH_BINARIES").map_or_else(target_profile_dir, |dir| Ok(dir.into()))
}

/// The same with the sidecar that was built with the feature `bench-no-checks`.
fn unchecked() -> anyhow::Result<PathBuf> {
    let dir = std::env::var_os("TENON_BENCH_NO_CHECKS")
        .map_or_else(|| repository().join("target/no-checks/release"), PathBuf::from);
    let tenon = dir.join("tenon");
    let _none_yet = std::fs::remove_file(&tenon);
    std::fs::hard_link(checked()?.join("tenon"), &tenon).with_context(|| {
        format!("the sidecar without checks is not in {}: `make bench-mesh` builds it", dir.display())
    })?;
    Ok(dir)
}
