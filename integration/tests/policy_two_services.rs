//! A whole mesh with two policy services on a NATS store: everybody follows both, so either may go.

use std::time::{Duration, Instant};

use integration::{
    mesh::{Plan, target_profile_dir},
    nats::Cluster,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long whoever was killed may take to come back, on a busy machine.
const BACK: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_policy_service_is_stopped_the_other_takes_changes_and_every_sidecar_has_them() {
    let target = target_profile_dir().expect("a target folder");
    let cluster = Cluster::of(1, target.parent().unwrap_or(&target)).await.expect("nats-server");
    let plan = Plan::demo().expect("a plan").policies(2).store(&cluster.store());
    let mesh = tokio::task::spawn_blocking(|| plan.start().expect("a mesh")).await.expect("it starts");
    let policy_dir = mesh.policy_dir().display().to_string();
    let status = || -> Value {
        let output = mesh.tenon(&["policy", "status", "-o", "json"]).expect("it runs");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    let first = mesh.service("policy").expect("it runs");
    let second = mesh.service("policy-2").expect("it runs");
    for (stopped, path) in [(first, "/media.v1.Media/One"), (second, "/media.v1.Media/Two")] {
        let before = status()["revision"].as_u64().expect("a revision");
        signal(stopped, Signal::STOP);
        // A folder of its own: the watched one stays as it is.
        let next = mesh.scratch().join(path.rsplit('/').next().expect("a method"));
        copy(&policy_dir, &next);
        let allowlists = next.join("allowlists.yaml");
        let text = std::fs::read_to_string(&allowlists).expect("it was copied");
        std::fs::write(&allowlists, text.replace("/media.v1.Media/List", path)).expect("it is ours");
        let folder = next.display().to_string();
        let began = Instant::now();
        let applied = mesh.tenon_ok(&["policy", "apply", "-f", &folder, "-o", "json"]);
        let applied: Value = serde_json::from_str(&applied.expect("the other one takes it")).expect("JSON");
        assert_eq!(applied["sidecars"]["acknowledged"], 4, "{applied} after {:?}", began.elapsed());
        assert!(applied["revision"].as_u64() > Some(before), "{applied}");
        signal(stopped, Signal::CONT);
        // Who was away knows it soon, and says so.
        let deadline = Instant::now() + BACK;
        while status()["revision"] != applied["revision"] {
            assert!(Instant::now() < deadline, "{} is not {applied}", status());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, signal).expect("it runs");
}

fn copy(from: &str, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for file in std::fs::read_dir(from).expect("the policy folder") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
}
