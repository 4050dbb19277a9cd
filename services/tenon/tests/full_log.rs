//! A role whose log cannot be written, since the disk that it goes to is full.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

#[test]
#[expect(clippy::disallowed_methods, reason = "the state of another process cannot be awaited")]
fn a_role_that_cannot_write_its_log_serves_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut identity = Command::new(env!("CARGO_BIN_EXE_tenon"))
        .args(["identity", "serve", "--trust-domain", "demo.example"])
        .args(["--listen", &address.to_string(), "--key-repository", "127.0.0.1:0"])
        .arg("--ca")
        .arg(dir.path().join("ca"))
        .arg("--state-dir")
        .arg(dir.path().join("identity"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(full)
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    // The last thing that it opens before it serves; by then it has had something to log.
    let store = dir.path().join("identity/store.redb");
    while !(store.exists() && TcpStream::connect(address).is_ok()) {
        assert!(identity.try_wait().unwrap().is_none() && Instant::now() < until, "it does not start");
        thread::sleep(Duration::from_millis(20));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&identity), rustix::process::Signal::TERM).unwrap();
    let status = identity.wait().unwrap();
    assert!(status.success(), "ended with {status}");
}
