//! gRPC's own interoperability client and server (the ones in Ruby): what passes between the two passes through two sidecars.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use integration::mesh::{Mesh, Plan, repository};

const POLICY: &str = "
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: interop}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: interop}
spec:
  service: interop
  rules:
    - name: everything
      callers: [wiki]
      paths: [/grpc.testing.TestService/*, /grpc.testing.UnimplementedService/*]
      tenant: none
";

/// The cases of <https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md> that the client in Ruby knows and that
/// need no account of a cloud.
const CASES: &[&str] = &[
    "empty_unary",
    "large_unary",
    "client_compressed_unary",
    "client_streaming",
    "client_compressed_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "unimplemented_method",
    "unimplemented_service",
    "status_code_and_message",
    "custom_metadata",
];

/// How long one case may take: some send and receive megabytes, in a debug build.
const CASE: Duration = Duration::from_secs(60);

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where Debian's package has the programs.
fn program(name: &str) -> PathBuf {
    let asked = Command::new("ruby")
        .args(["-e", "puts Gem::Specification.find_by_name('grpc').gem_dir"])
        .output()
        .expect("ruby runs: `make deps` installs it");
    let dir = String::from_utf8(asked.stdout).expect("a path");
    let path = PathBuf::from(dir.trim()).join("src/ruby/pb/test").join(name);
    assert!(path.exists(), "{} is missing: `make deps` installs ruby-grpc", path.display());
    path
}

fn serve(port: u16) -> Server {
    let server = Command::new("ruby")
        .arg(program("server.rb"))
        .args(["--port", &port.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .expect("the server starts");
    let server = Server(server);
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < CASE, "the server does not listen");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    server
}

/// What the client said against it; `None` when the case passed.
fn run(case: &str, port: u16, authority: &str) -> Option<String> {
    let output = Command::new("timeout")
        .arg(CASE.as_secs().to_string())
        .arg("ruby")
        .arg(repository().join("integration/tests/ruby/interop_client.rb"))
        .arg(authority)
        .arg(program("client.rb"))
        .args(["--server_host", "127.0.0.1", "--server_port", &port.to_string(), "--test_case", case])
        .output()
        .expect("the client runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && said.contains(&format!("OK: {case}"));
    (!passed).then(|| format!("{}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn mesh() -> Mesh {
    let plan = Plan::new().expect("a plan").file("policy.yaml", POLICY).caller("wiki", "us-east");
    plan.app_elsewhere("interop", "us-east").start().expect("the mesh starts")
}

#[test]
fn every_case_that_passes_directly_passes_through_two_sidecars() {
    let mesh = mesh();
    let app = mesh.app("interop", "us-east").port();
    let _server = serve(app);
    let outbound = mesh.outbound("wiki", "us-east").port();
    let direct: Vec<_> = CASES.iter().filter(|case| run(case, app, "-").is_none()).collect();
    assert!(direct.len() >= 13, "of the client's cases these alone pass without sidecars: {direct:?}");
    let failed: Vec<_> = direct
        .iter()
        .filter_map(|case| run(case, outbound, "interop").map(|said| format!("== {case}: {said}")))
        .collect();
    assert!(failed.is_empty(), "{} of {} cases fail:\n{}", failed.len(), direct.len(), failed.join("\n"));
}
