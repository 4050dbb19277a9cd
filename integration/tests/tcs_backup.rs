//! Backups of a mesh that goes on, made and restored by the commands of `docs/tcs.md`, word for word.

use std::{
    os::unix::fs::symlink,
    process::Command,
    time::{Duration, Instant},
};

use integration::{
    calls::{channel, for_tenant, outcome},
    changes::{self, held},
    mesh::{Mesh, Plan, SOON, binary, eventually, repository, signal},
    under_traffic::{SIDECARS, World, nothing_went_wrong, outbounds},
};
use rustix::process::Signal;
use serde_json::Value;
use tenon_proto::{
    media::v1::{ListRequest, media_client::MediaClient},
    tcs::v1::TenantContext,
};

const KEY: &str = "tenon tcs backup-key --out backup.key";
const BACKUP: &str = "tenon tcs backup --out tenants.backup --key-file backup.key";
const VERIFY: &str = "tenon tcs verify-backup tenants.backup --key-file backup.key --data .tenon";
const NOW: &str = "date -u +%FT%TZ";
const BREAK: &str = "tenon tenants delete acme";
const RESTORE: &str = "tenon tcs restore later.backup --key-file backup.key --store embedded:.tenon/tcs/tcs.redb \
                       --replace --to TIME";
const SEE: &str = "tenon tenants get acme";

/// The drill of the docs, in a folder where the mesh's data folder has its usual name.
struct Drill {
    docs: String,
}

impl Drill {
    fn begin(mesh: &Mesh) -> Self {
        symlink(mesh.data_dir(), mesh.scratch().join(".tenon")).expect("a link");
        let docs = std::fs::read_to_string(repository().join("docs/tcs.md")).expect("the docs");
        Self { docs: words(&docs) }
    }

    /// What a command of the docs prints, which must succeed.
    fn run(&self, mesh: &Mesh, command: &str) -> String {
        self.run_with(mesh, command, ("", ""))
    }

    /// As [`Drill::run`], with something put in the place of a word.
    fn run_with(&self, mesh: &Mesh, command: &str, (word, by): (&str, &str)) -> String {
        assert!(self.docs.contains(command), "the docs do not have `{command}`");
        let mut all = command.split_whitespace().map(|it| if it == word { by } else { it });
        let program = match all.next() {
            Some("tenon") => binary("tenon").expect("built"),
            other => other.expect("a program").into(),
        };
        let output = Command::new(program).args(all).current_dir(mesh.scratch()).env_remove("TENON_DATA").output();
        let output = output.expect("it runs");
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {}\n{printed}\n{complained}", output.status);
        printed
    }

    /// The time, once everything before is in an earlier second.
    fn note_the_time(&self, mesh: &Mesh) -> String {
        let before = self.run(mesh, NOW);
        let mut now = before.clone();
        eventually(SOON, "a second has passed", || {
            now = self.run(mesh, NOW);
            Ok(now != before)
        })
        .expect("time goes on");
        now
    }

    /// Steps 1 to 3: a backup, a time, the accident, and a backup that has it. Between the last two, `meanwhile` happens.
    fn up_to_the_accident(&self, mesh: &Mesh, meanwhile: impl FnOnce()) -> String {
        self.run(mesh, KEY);
        self.run(mesh, BACKUP);
        let time = self.note_the_time(mesh);
        self.run(mesh, BREAK);
        meanwhile();
        assert!(self.docs.contains("`--out later.backup`"), "the docs do not name the second backup");
        self.run_with(mesh, BACKUP, ("tenants.backup", "later.backup"));
        time
    }
}

/// With one space between two words.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn create_acme(mesh: &Mesh) {
    let (tcs, operator) = (mesh.tcs().expect("addresses"), mesh.operator().expect("credentials"));
    let mut tenants = changes::operator(tcs[0], &operator);
    changes::write(&mut tenants, vec![changes::tenant("acme", 0)]).await.expect("imported");
}

/// Calls for acme until it is answered so.
async fn call_for_acme(mesh: &Mesh, expected: &str) {
    let channel = channel(mesh.outbound("wiki", "us-east"), "media").await.expect("the sidecar answers");
    let (mut media, began) = (MediaClient::new(channel), Instant::now());
    loop {
        let outcome = outcome(&media.list(for_tenant("acme", ListRequest {})).await);
        if outcome == expected {
            return;
        }
        assert!(began.elapsed() < SOON, "{outcome} instead of {expected}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn acme(mesh: &Mesh) -> Value {
    serde_json::from_str(&mesh.tenon_ok(&["tenants", "get", "acme", "-o", "json"]).expect("it is there")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_deleted_under_traffic_comes_back_from_a_backup_and_nobody_who_follows_is_started_again() {
    let World { mesh, pairs, calls, look_ups, changes } =
        World::start(Plan::demo().expect("a plan").tcs(2), &[0]).await;
    let drill = Drill::begin(&mesh);
    create_acme(&mesh).await;
    call_for_acme(&mesh, "ALLOWED").await;
    let before = acme(&mesh);

    let made = changes.made();
    let time = drill.up_to_the_accident(&mesh, || {
        let made = changes.made();
        eventually(SOON, "writes go on", || Ok(changes.made() > made + 10)).expect("written");
    });
    assert!(changes.made() > made + 10, "writes go on during a backup");
    call_for_acme(&mesh, "TENANT_UNKNOWN").await;
    let verified = drill.run(&mesh, VERIFY);
    for same in ["the store restored from it is the same", "the serving TCS at that revision is the same"] {
        assert!(verified.contains(same), "{verified}");
    }
    let undone = changes.stop().await.last();
    // A restore takes tenants back; while its records come in, a look-up may have one of them at the old position.
    let looked = look_ups.stop().await;

    // The TCS alone is stopped: who follows must find out.
    let followers = || {
        let mut all = mesh.processes("tenon-sidecar --service");
        all.sort();
        (all, mesh.service("tcs-2").expect("it runs"))
    };
    let following = followers();
    assert_eq!(following.0.len(), SIDECARS.len());
    let tcs = mesh.service("tcs").expect("it runs");
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    signal(tcs, Signal::KILL).expect("killed");
    // Its store is let go of by the last of its threads, after its command line is gone and before it is a zombie.
    let threads = || std::fs::read_dir(format!("/proc/{tcs}/task")).map_or(0, Iterator::count);
    let status = || std::fs::read_to_string(format!("/proc/{tcs}/status")).unwrap_or_default();
    let over = || status().is_empty() || status().lines().any(|line| line.starts_with("State:\tZ"));
    eventually(SOON, "it is gone", || Ok(threads() <= 1 && over())).expect("gone");
    let restored = drill.run_with(&mesh, RESTORE, ("TIME", &time));
    signal(mesh.pid(), Signal::CONT).expect("it goes on");
    call_for_acme(&mesh, "ALLOWED").await;

    let found = changes_since(&mesh, &pairs, undone).await;
    assert!(acme(&mesh)["revision"] == before["revision"], "it keeps the revision that wrote it: {restored}");
    for (one, who) in found.iter().zip(SIDECARS) {
        assert_eq!(one, &found[0], "{who:?} has something else than {:?}", SIDECARS[0]);
    }
    assert_eq!(followers(), following, "nobody had to be started again");
    nothing_went_wrong(&calls.stop().await, &looked);
}

/// What every sidecar has of these tenants once a write after the restore has arrived. What was written up to `undone`, a
/// revision of the old epoch, is gone as it was written: wholly.
async fn changes_since(mesh: &Mesh, pairs: &[[String; 2]], undone: (u64, u64)) -> Vec<Vec<TenantContext>> {
    let (tcs, operator) = (mesh.tcs().expect("addresses"), mesh.operator().expect("credentials"));
    let mut tenants = changes::operator(tcs[0], &operator);
    let written = changes::write(&mut tenants, vec![changes::tenant("later", 0)]).await.expect("written");
    assert!(written > undone && written.0 > undone.0, "{written:?} is of a later epoch than {undone:?}");
    let mut found = Vec::new();
    for outbound in outbounds(mesh) {
        let mut held = held(outbound, pairs, written, SOON).await.expect("it follows");
        for pair in held.chunks(2) {
            assert!(pair[0].revision + 1 == pair[1].revision, "half of a write was undone: {pair:?}");
            assert_eq!(pair[0].settings, pair[1].settings, "half of a write was undone");
        }
        // Of its products each sees its own.
        held.iter_mut().for_each(|tenant| tenant.products.clear());
        found.push(held);
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drill_of_the_docs_brings_a_tenant_back() {
    let mut mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let drill = Drill::begin(&mesh);
    create_acme(&mesh).await;
    call_for_acme(&mesh, "ALLOWED").await;
    let time = drill.up_to_the_accident(&mesh, || {});
    call_for_acme(&mesh, "TENANT_UNKNOWN").await;
    mesh.down().expect("it ends");
    drill.run_with(&mesh, RESTORE, ("TIME", &time));
    mesh.up().expect("it starts");
    let seen = drill.run(&mesh, SEE);
    assert!(seen.contains("acme"), "{seen}");
    call_for_acme(&mesh, "ALLOWED").await;
}
