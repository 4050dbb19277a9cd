//! The `media` binary itself: what it says when it cannot start, how it stops, what it does when the disk is full.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    process::{Child, ChildStderr, Command, Stdio},
};

use bytes::Bytes;
use futures_util::stream;
use prost::Message as _;
use tempfile::TempDir;
use tenon_proto::{
    media::v1::{ListRequest, UploadHeader, UploadRequest, media_client::MediaClient, upload_request::Part},
    tcs::v1::{Product, Shard, TenantContext},
};
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};

const BINARY: &str = env!("CARGO_BIN_EXE_media");

fn fails_with(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

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
    let product = Product { shard: Some(shard), ..Product::default() };
    let products = BTreeMap::from([("media".to_owned(), product)]);
    let context = TenantContext { tenant_id: "acme".into(), products, ..TenantContext::default() };
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-tenant-id", "acme".parse().unwrap());
    let context = MetadataValue::from_bytes(&context.encode_to_vec());
    request.metadata_mut().insert_bin("x-tenant-context-bin", context);
    request
}

fn parts(megabytes: usize) -> Vec<UploadRequest> {
    let header = UploadHeader { name: "a".into(), content_type: String::new() };
    let mut parts = vec![UploadRequest { part: Some(Part::Header(header)) }];
    parts.resize(megabytes + 1, UploadRequest { part: Some(Part::Data(Bytes::from_static(&[1; 1 << 20]))) });
    parts
}

#[test]
fn a_taken_port_an_unwritable_folder_and_an_open_address_say_what_to_do() {
    let data = TempDir::new().unwrap();
    let folder = data.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, message) = fails_with(&["--listen", &taken.local_addr().unwrap().to_string(), "--data", folder]);
    assert_eq!(code, Some(1));
    assert!(message.contains("taken by another process") && message.contains("--listen"), "{message}");

    let file = data.path().join("file");
    std::fs::write(&file, "").unwrap();
    for unwritable in [file.join("below").to_str().unwrap(), "/proc/media"] {
        let (code, message) = fails_with(&["--listen", "127.0.0.1:0", "--data", unwritable]);
        assert_eq!(code, Some(1));
        assert!(message.contains("cannot be written") && message.contains("--data"), "{message}");
    }

    let (code, message) = fails_with(&["--listen", "0.0.0.0:0", "--data", folder]);
    assert_eq!(code, Some(2));
    assert!(message.contains("loopback"), "{message}");
}

#[test]
fn a_data_folder_in_use_is_refused_and_sigterm_ends_the_process_in_order() {
    let data = TempDir::new().unwrap();
    let (mut process, _, mut log) = start(Command::new(BINARY), &data);
    let (code, message) = fails_with(&["--listen", "127.0.0.1:0", "--data", data.path().to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(message.contains("used by another process"), "{message}");
    assert!(Command::new("kill").arg(process.0.id().to_string()).status().unwrap().success());
    assert_eq!(process.0.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("media stopped"), "{rest}");
}

#[tokio::test]
async fn an_upload_that_fills_the_disk_is_refused_and_leaves_nothing() {
    // A limit on the size of files is to a process what a full disk is; with the signal ignored, writes fail.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 16384; exec \"$0\" \"$@\"", BINARY]);
    let data = TempDir::new().unwrap();
    let (_process, address, _log) = start(limited, &data);
    let mut media =
        MediaClient::new(Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap());
    let refused = media.upload(of_acme(stream::iter(parts(20)))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("nothing was changed"), "{refused}");
    assert_eq!(std::fs::read_dir(data.path().join("c1/pool.files/public/acme")).unwrap().count(), 0);
    let small = media.upload(of_acme(stream::iter(parts(1)))).await.unwrap().into_inner();
    let listed = media.list(of_acme(ListRequest {})).await.unwrap().into_inner().items;
    assert_eq!(listed, [small]);
}
