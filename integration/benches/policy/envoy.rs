//! Envoy with its RBAC filter in front of the app: who calls stands in a header, since what is measured is the rules.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;

use crate::load::listening;

/// How the rules are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `rules.policies`, as meshes generate them: one policy a rule.
    Policies,
    /// `matcher`, a tree by path, as a careful operator writes it.
    Matcher,
}

/// A running Envoy; ends with this.
pub struct Envoy {
    child: Child,
    pub address: SocketAddr,
}

impl Envoy {
    /// Starts it with rules that allow `caller` the paths.
    ///
    /// # Errors
    /// There is no Envoy, or it does not listen.
    pub fn start(form: Form, caller: &str, paths: &[String], app: SocketAddr, dir: &Path) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let file = dir.join(format!("envoy-{form:?}-{}.yaml", paths.len()));
        std::fs::write(&file, configuration(form, caller, paths, address, app))?;
        let child = Command::new(program()?)
            .args(["--concurrency", "2", "--log-level", "error", "--use-dynamic-base-id", "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .spawn()
            .context("Envoy cannot be started")?;
        let envoy = Self { child, address };
        listening(address)?;
        Ok(envoy)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The one that `make bench-policy` installs.
fn program() -> anyhow::Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/envoy/bin/envoy");
    path.canonicalize().context("there is no Envoy below target/envoy: `make bench-policy` installs it")
}

fn configuration(form: Form, caller: &str, paths: &[String], address: SocketAddr, app: SocketAddr) -> String {
    let rules = rules(form, caller, paths);
    format!(
        r#"static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: HTTP2
          route_config:
            virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: app}}}}]}}]
          http_filters:
          - name: rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              {rules}
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: app
    type: STATIC
    load_assignment:
      cluster_name: app
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {app}}}}}}}}}]}}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
"#,
        port = address.port(),
        app = app.port(),
    )
}

/// The configuration of the filter, indented as it stands in the file.
fn rules(form: Form, caller: &str, paths: &[String]) -> String {
    let header = "{name: x-caller, string_match: {exact: ";
    match form {
        Form::Policies => {
            let mut text = String::from("rules:\n                action: ALLOW\n                policies:\n");
            for (rule, path) in paths.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "                  rule-{rule:05}: {{permissions: [{{url_path: {{path: {{exact: {path}}}}}}}], \
                     principals: [{{header: {header}{caller}}}}}}}]}}"
                );
            }
            text
        }
        Form::Matcher => {
            let action = |name: &str, action: &str| {
                format!(
                    "{{action: {{name: {name}, typed_config: {{\"@type\": \
                     type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}, action: {action}}}}}}}"
                )
            };
            let input = |header: &str| {
                format!(
                    "{{name: input, typed_config: {{\"@type\": \
                     type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: \"{header}\"}}}}"
                )
            };
            let mut text = format!(
                "matcher:\n                matcher_tree:\n                  input: {}\n                  exact_match_map:\n                    map:\n",
                input(":path")
            );
            for path in paths {
                let _ = writeln!(
                    text,
                    "                      {path}: {{matcher: {{matcher_tree: {{input: {}, exact_match_map: {{map: \
                     {{{caller}: {}}}}}}}}}}}",
                    input("x-caller"),
                    action("allow", "ALLOW")
                );
            }
            let _ = writeln!(text, "                on_no_match: {}", action("deny", "DENY"));
            text
        }
    }
}
