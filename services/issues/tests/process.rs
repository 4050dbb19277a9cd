//! The `issues` binary itself: what it says when it cannot start, and what it does when the disk is full.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, ChildStderr, Command, Stdio},
};

use prost::Message as _;
use tempfile::TempDir;
use tenon_proto::{
    issues::v1::{CreateRequest, GetRequest, ListRequest, issues_client::IssuesClient},
    tcs::v1::{Product, Shard, TenantContext},
};
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};

const BINARY: &str = env!("CARGO_BIN_EXE_issues");

/// Ends the process with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts on a port of the system's choice and reads it from the first log line.
fn start(mut command: Command, data: &TempDir) -> (Process, String, BufReader<ChildStderr>) {
    command.args(["--listen", "127.0.0.1:0", "--data"]).arg(data.path()).env("NO_COLOR", "1").stderr(Stdio::piped());
    let mut process = Process(command.spawn().unwrap());
    let mut log = BufReader::new(process.0.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let address = line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    (process, address, log)
}

fn of_acme<T>(message: T) -> Request<T> {
    let shard = Shard { cluster: "c1".into(), database: "pool".into(), schema: "public".into() };
    let products = BTreeMap::from([("issues".to_owned(), Product { shard: Some(shard), ..Product::default() })]);
    let context = TenantContext { tenant_id: "acme".into(), products, ..TenantContext::default() };
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-tenant-id", "acme".parse().unwrap());
    let context = MetadataValue::from_bytes(&context.encode_to_vec());
    request.metadata_mut().insert_bin("x-tenant-context-bin", context);
    request
}

fn create(description: &str) -> Request<CreateRequest> {
    of_acme(CreateRequest { project: "DEMO".into(), summary: "s".into(), description: description.into() })
}

#[test]
fn a_taken_port_and_a_wrong_outbound_say_what_to_do() {
    let data = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(BINARY).args(arguments).arg("--data").arg(data.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = run(&["--listen", &taken.local_addr().unwrap().to_string()]);
    assert_eq!(code, Some(1));
    assert!(message.contains("taken by another process"), "{message}");
    let (code, message) = run(&["--outbound", "media"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("unix:PATH"), "{message}");
}

#[tokio::test]
async fn what_does_not_fit_on_the_disk_is_refused_and_all_else_stays() {
    // A limit on the size of files is to a process what a full disk is; with the signal ignored, writes fail.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 16384; exec \"$0\" \"$@\"", BINARY]);
    let data = TempDir::new().unwrap();
    let (process, address, log) = start(limited, &data);
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut issues = IssuesClient::new(channel);
    let description = "d".repeat(64 << 10);
    let mut created = 0;
    let refused = loop {
        match issues.create(create(&description)).await {
            Ok(_) => created += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(created > 10, "{created}");
    let last = GetRequest { key: format!("DEMO-{created}") };
    assert_eq!(issues.get(of_acme(last)).await.unwrap().into_inner().description, description);
    let next = GetRequest { key: format!("DEMO-{}", created + 1) };
    assert_eq!(issues.get(of_acme(next)).await.unwrap_err().code(), Code::NotFound);
    drop((process, log));

    // With room again, the number that was not given is given.
    let (_process, address, _log) = start(Command::new(BINARY), &data);
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut issues = IssuesClient::new(channel);
    assert_eq!(issues.create(create("")).await.unwrap().into_inner().key, format!("DEMO-{}", created + 1));
    let mut all = issues.list(of_acme(ListRequest::default())).await.unwrap().into_inner();
    let mut listed = 0;
    while all.message().await.unwrap().is_some() {
        listed += 1;
    }
    assert_eq!(listed, created + 1);
}
