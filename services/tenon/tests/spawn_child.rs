//! `tenon spawn-child`: what it starts ends with its parent, whatever ends the parent.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A shell that starts `sleep` through `spawn-child`, and prints the process id that it has.
fn parent(signal: &str) -> (Child, String) {
    let script = format!(
        "{} spawn-child --parent $$ --signal {signal} -- sh -c 'echo $$; exec sleep 1000' & wait",
        env!("CARGO_BIN_EXE_tenon")
    );
    let mut shell = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut pid = String::new();
    BufReader::new(shell.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    (shell, pid.trim().to_owned())
}

/// Gone, or dead and not yet reaped by whoever inherited it.
fn ended(pid: &str) -> bool {
    fs::read_to_string(Path::new("/proc").join(pid).join("stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn wait_until_ended(pid: &str) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !ended(pid) {
        assert!(Instant::now() < patience, "process {pid} is still there");
        std::thread::yield_now();
    }
}

#[test]
fn a_child_ends_when_its_parent_is_killed() {
    for signal in ["KILL", "TERM"] {
        let (mut shell, pid) = parent(signal);
        assert!(!ended(&pid));
        shell.kill().unwrap();
        shell.wait().unwrap();
        wait_until_ended(&pid);
    }
}

#[test]
fn a_child_of_somebody_else_does_not_start() {
    let output = Command::new(env!("CARGO_BIN_EXE_tenon"))
        .args(["spawn-child", "--parent", "1", "--signal", "KILL", "--", "echo", "started"])
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not the parent"));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_tenon"))
        .args([
            "spawn-child",
            "--parent",
            &std::process::id().to_string(),
            "--signal",
            "KILL",
            "--",
            "/nonexistent/app",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot run /nonexistent/app"));
}
