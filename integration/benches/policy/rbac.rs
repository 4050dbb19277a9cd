//! What rules cost a call: the callee's sidecar of a whole mesh, and Envoy's RBAC filter, with the same rules before the same
//! app. Envoy knows the caller by a header here; the sidecar also does TLS, the token and the quarantine. So what is
//! compared is what 10,000 rules add to 100.

use std::fmt::Write as _;

use anyhow::Context as _;
use integration::mesh::Plan;
use serde_json::json;

use crate::{
    app::App,
    envoy::{self, Caller, Envoy, Form, Proxy},
    h2load::{Load, cpu},
    report::Report,
};

const CALLS: usize = 40_000;
const RULES: [usize; 2] = [100, 10_000];
const CALLER: &str = "wiki";

/// Runs the part.
///
/// # Errors
/// A process cannot be started, or a call was refused.
pub fn measure(report: &mut Report) -> anyhow::Result<()> {
    let envoy = |form| move |rules| through_envoy(form, rules);
    proxied(report, "tenon", through_tenon)?;
    proxied(report, "envoy_rbac_matcher", envoy(Form::Matcher))?;
    proxied(report, "envoy_rbac", envoy(Form::Policies))
}

fn proxied(report: &mut Report, name: &str, through: impl Fn(usize) -> anyhow::Result<f64>) -> anyhow::Result<()> {
    let [few, many] = RULES;
    let (with_few, with_many) = (through(few)?, through(many)?);
    for (rules, micros) in [(few, with_few), (many, with_many)] {
        report.figure(&format!("{name}_cpu_per_call_{rules}_rules"), json!(micros), format!("{micros:.1} µs"));
    }
    let ratio = with_many / with_few;
    report.figure(&format!("{name}_{many}_rules_against_{few}"), json!(ratio), format!("{ratio:.2} ×"));
    Ok(())
}

/// The rule that allows the calls stands in the middle.
fn paths(rules: usize) -> (Vec<String>, String) {
    let paths: Vec<String> = (0..rules).map(|rule| format!("/bench.v1.S{rule}/Get")).collect();
    let middle = paths[rules / 2].clone();
    (paths, middle)
}

fn through_tenon(rules: usize) -> anyhow::Result<f64> {
    let (paths, path) = paths(rules);
    let mut policy = String::from(
        "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: media}\nspec: {}\n---\n\
         apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: wiki}\nspec: {}\n---\n\
         apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {name: media}\nspec:\n  service: media\n  rules:\n",
    );
    for (rule, path) in paths.iter().enumerate() {
        let _ = writeln!(policy, "    - {{name: rule-{rule}, callers: [{CALLER}], paths: [{path}], tenant: none}}");
    }
    let this = std::env::current_exe()?.display().to_string();
    let app = |port: u16| vec![this, "app".to_owned(), format!("127.0.0.1:{port}")];
    let mesh =
        Plan::new()?.file("policy.yaml", &policy).app("media", "us-east", app).caller(CALLER, "us-east").start()?;
    let (sidecar, _) = mesh.processes("--service media").into_iter().next().context("the callee's sidecar runs")?;
    let load = Load { path, ..Load::new(mesh.outbound(CALLER, "us-east"), 16, 1, mesh.scratch())? };
    cpu_per_call(sidecar, &load)
}

fn through_envoy(form: Form, rules: usize) -> anyhow::Result<f64> {
    let (paths, path) = paths(rules);
    let dir = tempfile::tempdir()?;
    let app = App::start()?;
    let envoy = Envoy::start("rbac", dir.path(), |listen| {
        let filters = vec![envoy::rbac(form, Caller::Header(CALLER), &paths)];
        let (tls, upstream_tls) = (None, None);
        Proxy { listen, tls, filters, adds_header: None, upstream: app.address, upstream_tls }.configuration()
    })?;
    let headers = vec![format!("x-caller: {CALLER}")];
    cpu_per_call(envoy.pid(), &Load { path, headers, ..Load::new(envoy.address, 16, 1, dir.path())? })
}

/// CPU microseconds that `pid` spends on a call.
fn cpu_per_call(pid: u32, load: &Load) -> anyhow::Result<f64> {
    load.run(CALLS / 10)?;
    let before = cpu(pid)?;
    load.run(CALLS)?;
    Ok((cpu(pid)? - before).as_secs_f64() * 1e6 / CALLS as f64)
}
