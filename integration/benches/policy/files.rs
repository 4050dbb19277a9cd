//! The policy files of the benchmark.

use std::fmt::Write as _;

use mesh_config::SourceFile;

/// What begins the name of the rule that changes; the rest says when it was written, in Unix microseconds.
pub const WRITTEN: &str = "written-";

/// A mesh of `services` services, each with an Allowlist of `rules` rules; those for which `changed` says so have one more,
/// which is named for `at`.
pub fn mesh(services: usize, rules: usize, changed: impl Fn(usize) -> bool, at: u64) -> Vec<SourceFile> {
    let frame = format!(
        "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {{name: bench}}\nspec: {{trustDomain: {}, regions: [here]}}\n",
        crate::DOMAIN
    );
    let one = |service: usize| {
        let mut text = format!(
            "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{}}\n---\n\
             apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: {name}}}\nspec:\n  service: {name}\n  rules:\n",
            name = name(service)
        );
        for rule in 0..rules {
            let caller = name((service + rule + 1) % services);
            let _ = writeln!(
                text,
                "    - {{name: rule-{rule}, callers: [{caller}], paths: [/bench.v1.S{rule}/Get, /bench.v1.T{rule}/*]}}"
            );
        }
        if changed(service) {
            let caller = name((service + 1) % services);
            let _ = writeln!(text, "    - {{name: {WRITTEN}{at}, callers: [{caller}], paths: [/bench.v1.U/Get]}}");
        }
        SourceFile { path: format!("{}.yaml", name(service)), text }
    };
    let mesh = SourceFile { path: "mesh.yaml".into(), text: frame };
    (0..services).map(one).chain([mesh]).collect()
}

/// The name of a service.
pub fn name(service: usize) -> String {
    format!("service-{service:04}")
}
