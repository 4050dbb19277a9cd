//! `docs/policy.md` is true: its files are written, its commands are run in order in a running mesh, and every line that it
//! shows must come.
//!
//! In a block of shell, `$ ` begins a command. Other lines are what must be printed, in this order: other lines may stand
//! between, `…` is any text, and runs of spaces are one. `# exit 1` at the end is the exit code of the block; else it is 0.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use integration::{
    mesh::{Mesh, Plan, repository, target_profile_dir},
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

/// What stands between fences.
struct Block<'a> {
    language: &'a str,
    text: String,
    /// Of the first fence.
    line: usize,
}

fn blocks(document: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut open = false;
    for (number, line) in document.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            if !open {
                blocks.push(Block { language, text: String::new(), line: number + 1 });
            }
            open = !open;
        } else if let (true, Some(block)) = (open, blocks.last_mut()) {
            block.text += line;
            block.text += "\n";
        }
    }
    assert!(!open, "the last block has an end");
    blocks
}

/// Runs the commands of one block; comes back with how many there were.
fn run(mesh: &Mesh, scratch: &Path, block: &Block<'_>) -> anyhow::Result<usize> {
    let wiki = mesh.outbound("wiki", "us-east").to_string();
    let local = |line: &str| line.replace("127.0.0.1:15401", &wiki).replace("--hold 10m", &format!("--hold {HOLD}"));
    let (mut script, mut expected, mut exit, mut commands) = (String::new(), VecDeque::new(), 0, 0);
    for line in block.text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            script += &(local(command) + "\n");
            commands += 1;
        } else if let Some(code) = line.strip_prefix("# exit ") {
            exit = code.parse()?;
        } else if !line.is_empty() {
            expected.push_back(line);
        }
    }
    let installed = python::program("grpcurl")?;
    let programs = [target_profile_dir()?, installed.parent().expect("a program lies in a folder").to_owned()];
    let path = std::env::join_paths(programs.into_iter().chain(std::env::split_paths(&std::env::var("PATH")?)))?;
    let calling = AtomicBool::new(script.contains("--canary"));
    let output = thread::scope(|threads| {
        // A rollout is judged by the calls of meanwhile.
        threads.spawn(|| call(&wiki, &calling));
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(scratch)
            .env("PATH", path)
            .env("TENON_DATA", mesh.data_dir())
            .stdin(Stdio::null())
            .output();
        calling.store(false, Ordering::SeqCst);
        output
    })?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let told = || format!("line {} of docs/policy.md:\n{script}{printed}{errors}", block.line);
    assert_eq!(output.status.code(), Some(exit), "{}", told());
    for line in printed.lines() {
        if expected.front().is_some_and(|pattern| matches(pattern, line)) {
            expected.pop_front();
        }
    }
    assert!(expected.is_empty(), "{}\ndoes not print {expected:?}", told());
    Ok(commands)
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

/// Whether `line` is what `pattern` shows: from its beginning, `…` for any text, spaces alike.
fn matches(pattern: &str, line: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = plain(line);
    let mut rest = line.as_str();
    for (index, part) in pattern.split('…').map(plain).enumerate() {
        match rest.find(part.as_str()) {
            Some(at) if index > 0 || at == 0 => rest = &rest[at + part.len()..],
            _ => return false,
        }
    }
    true
}

#[test]
fn a_line_of_the_guide_is_compared_from_its_beginning() {
    assert!(matches("applied: 1 changes, revision …", "applied: 1 changes, revision 17.4"));
    assert!(matches("media …3 …enforce", "media   3   media   2   enforce"));
    assert!(matches("…halted", "rollout of 1.2 halted: why"));
    assert!(!matches("applied", "not applied"));
    assert!(!matches("media …4", "media 3 enforce"));
    assert!(!matches("one two", "one and two"));
}
