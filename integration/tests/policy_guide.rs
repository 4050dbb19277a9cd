//! `docs/policy.md` is true: its files are written, its commands are run in order in a running mesh, and every line that it
//! shows must come (`integration::guide`).

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use integration::{
    guide::{Block, Shell, blocks},
    mesh::{Mesh, Plan, repository},
    python,
};
use serde_json::json;

/// What the guide's `--hold` is in the test.
const HOLD: &str = "20s";

#[test]
fn every_example_of_the_guide_does_what_it_says() -> anyhow::Result<()> {
    let mesh = Plan::demo()?.start()?;
    let product = json!({"state": "ACTIVE", "shard": {"cluster": "a", "database": "media", "schema": "acme"}});
    let products = json!({"media": product, "issues": product});
    mesh.import(&[json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": products})])?;
    let scratch = mesh.scratch().join("guide");
    fs::create_dir_all(&scratch)?;
    std::os::unix::fs::symlink(mesh.policy_dir(), scratch.join("mesh"))?;
    let guide = fs::read_to_string(repository().join("docs/policy.md"))?;
    let (mut files, mut commands) = (0, 0);
    for block in blocks(&guide) {
        match block.language {
            "yaml" => {
                let name = block.text.lines().next().and_then(|line| line.strip_prefix("# "));
                let path = scratch.join(name.unwrap_or_else(|| panic!("line {}: names no file", block.line)));
                fs::create_dir_all(path.parent().expect("a file lies in a folder"))?;
                fs::write(path, &block.text)?;
                files += 1;
            }
            "sh" => commands += run(&mesh, &scratch, &block)?,
            other => panic!("line {}: a block of {other:?} is not tested", block.line),
        }
    }
    assert!(files >= 5 && commands >= 15, "{files} files and {commands} commands are not the whole guide");
    Ok(())
}

/// Runs the commands of one block; comes back with how many there were.
fn run(mesh: &Mesh, scratch: &Path, block: &Block<'_>) -> anyhow::Result<usize> {
    let wiki = mesh.outbound("wiki", "us-east").to_string();
    let local = |line: &str| line.replace("127.0.0.1:15401", &wiki).replace("--hold 10m", &format!("--hold {HOLD}"));
    let shell = Shell::read(block, local)?;
    let (commands, place) = (shell.commands, format!("line {} of docs/policy.md", block.line));
    let calling = AtomicBool::new(shell.script.contains("--canary"));
    thread::scope(|threads| {
        // A rollout is judged by the calls of meanwhile.
        threads.spawn(|| call(&wiki, &calling));
        let _told = Told(&calling);
        shell.run(scratch, &mesh.data_dir(), &place)
    })?;
    Ok(commands)
}

/// Ends the calls, whatever the commands did.
struct Told<'a>(&'a AtomicBool);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Calls what the guide's policy takes away, many times a second, as long as it is told to.
fn call(wiki: &str, calling: &AtomicBool) {
    let began = Instant::now();
    while calling.load(Ordering::SeqCst) && began.elapsed() < Duration::from_secs(120) {
        let grpcurl = python::program("grpcurl");
        let _refused = grpcurl.map(|grpcurl| {
            Command::new(grpcurl)
                .args(["-plaintext", "-authority", "media", "-H", "x-tenant-id: acme", wiki, "media.v1.Media/List"])
                .output()
        });
        thread::park_timeout(Duration::from_millis(100));
    }
}
