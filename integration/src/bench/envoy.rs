//! Envoys, which the benchmarks compare with.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;

use super::app::listening;

/// How the rules are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `rules.policies`, as meshes generate them: one policy a rule.
    Policies,
    /// `matcher`, a tree by path, as a careful operator writes it.
    Matcher,
}

/// By what an Envoy knows who calls.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    /// The header `x-caller`.
    Header(&'a str),
    /// The URI name of the client's certificate.
    Certificate(&'a str),
}

/// A running Envoy; ends with this.
pub struct Envoy {
    child: Child,
    pub address: SocketAddr,
}

impl Envoy {
    /// Starts one with what `configuration` makes of the address at which it shall listen.
    ///
    /// # Errors
    /// There is no Envoy, or it does not listen.
    pub fn start(name: &str, dir: &Path, configuration: impl FnOnce(SocketAddr) -> String) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let file = dir.join(format!("envoy-{name}.yaml"));
        std::fs::write(&file, configuration(address))?;
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

/// The one that the Makefile installs.
fn program() -> anyhow::Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/envoy/bin/envoy");
    path.canonicalize().context("there is no Envoy below target/envoy: `make bench-policy` or `bench-mesh` installs it")
}

/// What an Envoy shall be: YAML in its flow style, so that parts need no indentation.
pub struct Proxy<'a> {
    pub listen: SocketAddr,
    /// Of the listener.
    pub tls: Option<String>,
    /// Before the router.
    pub filters: Vec<String>,
    /// `name: value`
    pub adds_header: Option<(&'a str, &'a str)>,
    pub upstream: SocketAddr,
    pub upstream_tls: Option<String>,
}

impl Proxy<'_> {
    /// As Envoy reads it.
    pub fn configuration(&self) -> String {
        let socket = |tls: &Option<String>| {
            let tls = tls
                .as_ref()
                .map(|tls| format!("transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {tls}}}, "));
            tls.unwrap_or_default()
        };
        let added = self.adds_header.map(|(key, value)| {
            format!("request_headers_to_add: [{{header: {{key: {key}, value: \"{value}\"}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}], ")
        });
        let filters: String = self.filters.iter().map(|filter| format!("      {filter},\n")).collect();
        format!(
            r#"{{static_resources: {{
  listeners: [{{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, filter_chains: [{{{listener_tls}filters: [{{
    name: hcm, typed_config: {{
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: bench, codec_type: HTTP2,
      route_config: {{{added}virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: next, timeout: 0s}}}}]}}]}},
      http_filters: [
{filters}      {{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}],
  clusters: [{{name: next, type: STATIC, {upstream_tls}
    load_assignment: {{cluster_name: next, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]}},
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}}]}},
    typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{
      "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      explicit_http_config: {{http2_protocol_options: {{}}}}}}}}}}]}}}}
"#,
            port = self.listen.port(),
            listener_tls = socket(&self.tls),
            added = added.unwrap_or_default(),
            upstream = self.upstream.port(),
            upstream_tls = socket(&self.upstream_tls),
        )
    }
}

/// The filter that lets `caller` call these paths and nothing else.
pub fn rbac(form: Form, caller: Caller<'_>, paths: &[String]) -> String {
    let rules = match form {
        Form::Policies => policies(caller, paths),
        Form::Matcher => matcher(caller, paths),
    };
    format!(
        "{{name: rbac, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, {rules}}}}}"
    )
}

fn policies(caller: Caller<'_>, paths: &[String]) -> String {
    let principal = match caller {
        Caller::Header(name) => format!("{{header: {{name: x-caller, string_match: {{exact: {name}}}}}}}"),
        Caller::Certificate(id) => format!("{{authenticated: {{principal_name: {{exact: \"{id}\"}}}}}}"),
    };
    let mut text = String::from("rules: {action: ALLOW, policies: {\n");
    for (rule, path) in paths.iter().enumerate() {
        let _ = writeln!(
            text,
            "  rule-{rule:05}: {{permissions: [{{url_path: {{path: {{exact: {path}}}}}}}], principals: [{principal}]}},"
        );
    }
    text + "}}"
}

fn matcher(caller: Caller<'_>, paths: &[String]) -> String {
    let action = |name: &str, action: &str| {
        format!(
            "{{action: {{name: {name}, typed_config: {{\"@type\": type.googleapis.com/envoy.config.rbac.v3.Action, \
             name: {name}, action: {action}}}}}}}"
        )
    };
    let header = |header: &str| {
        format!(
            "{{name: input, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: \"{header}\"}}}}"
        )
    };
    let (input, caller) = match caller {
        Caller::Header(name) => (header("x-caller"), name),
        Caller::Certificate(id) => (
            "{name: input, typed_config: {\"@type\": \
             type.googleapis.com/envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput}}"
                .to_owned(),
            id,
        ),
    };
    let mut text = format!("matcher: {{matcher_tree: {{input: {}, exact_match_map: {{map: {{\n", header(":path"));
    for path in paths {
        let _ = writeln!(
            text,
            "  {path}: {{matcher: {{matcher_tree: {{input: {input}, exact_match_map: {{map: {{\"{caller}\": {}}}}}}}}}}},",
            action("allow", "ALLOW")
        );
    }
    let _ = write!(text, "}}}}}}, on_no_match: {}}}", action("deny", "DENY"));
    text
}
