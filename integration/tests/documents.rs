//! The commands of the documents are true: each is run in a running mesh, in the order of its document, and every line that is
//! shown must come (`integration::guide`). Documents with a mesh of their own have a test of their own: docs/policy.md
//! (policy_guide.rs), docs/grpcurl.md (grpcurl_guide.rs), docs/audit.md (audit.rs), docs/check.md (check.rs).

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use integration::{
    guide::{Place, blocks},
    mesh::{Mesh, Plan, SOON, binary, eventually, repository},
    python,
};
use serde_json::json;

/// Documents whose blocks of shell are all run, here or by the test that is named above.
const RUN: &[&str] = &[
    "README.md",
    "docs/asap-libraries.md",
    "docs/audit.md",
    "docs/dashboard.md",
    "docs/grpcurl.md",
    "docs/identity.md",
    "docs/operators.md",
    "docs/policy.md",
    "docs/tap.md",
    "docs/tcs.md",
    "docs/transaction-tokens.md",
];

/// Blocks of commands that need what a test has not in this form: by document and what stands in the block, the test that does
/// the same, and what of the command stands in that test. The last two are empty for what is no command of Tenon's.
const ELSEWHERE: &[(&str, &str, &str, &str)] = &[
    // .ci/run does both.
    ("README.md", "make demo", ".ci/run", "make demo"),
    ("docs/asap-libraries.md", "--keys https:", "integration/src/asap.rs", "\"asap\", \"verify\""),
    ("docs/audit.md", "--expect tcs:", "integration/tests/audit.rs", "\"--expect\""),
    ("docs/life-cycle.md", "tenon-sidecar wait", "integration/tests/documents.rs", "[\"wait\", \"--admin\""),
    ("docs/life-cycle.md", "--take-over", "integration/src/by_hand.rs", "--take-over"),
    ("docs/outside-clients.md", "grpcurl -cacert", "integration/tests/external_clients.rs", "grpcurl"),
    ("docs/production.md", "tenon up -f mesh-config/first", "integration/tests/packages.rs", "\"up\", \"-f\""),
    (
        "docs/production.md",
        "systemctl enable --now tenon-identity",
        "integration/tests/packages.rs",
        "\"join-token\", \"--service\"",
    ),
    // Are root's, and put files where they belong.
    ("docs/production.md", "install -m 755", "", ""),
    ("docs/workload-api.md", "--workload-api unix:", "integration/tests/workload_api.rs", "--workload-api"),
    ("docs/workload-api.md", "--serve-workload-api", "integration/tests/workload_api.rs", "--serve-workload-api"),
    // Needs a cluster.
    ("docs/attestation.md", "kubectl get --raw", "", ""),
];

fn sidecars(mesh: &Mesh) -> Vec<(u16, SocketAddr)> {
    vec![
        (15201, mesh.outbound("issues", "us-east")),
        (15206, mesh.inbound("media", "us-east")),
        (15401, mesh.outbound("wiki", "us-east")),
    ]
}

fn tenants() -> Vec<serde_json::Value> {
    let media = json!({"state": "ACTIVE", "shard": {"cluster": "a", "database": "media", "schema": "acme"}});
    let tenant = |id: &str, status: &str, region: &str| {
        let hosts = [format!("{id}.example.com")];
        json!({"tenantId": id, "status": status, "hosts": hosts, "region": region, "products": {"media": media}})
    };
    vec![
        tenant("acme", "ACTIVE", "us-east"),
        tenant("asleep", "SUSPENDED", "us-east"),
        tenant("globex", "ACTIVE", "us-east"),
        tenant("rheinwerk", "ACTIVE", "eu-west"),
    ]
}

fn call(wiki: SocketAddr, method: &str) -> anyhow::Result<bool> {
    let args = ["-plaintext", "-authority", "media", "-H", "x-tenant-id: acme", &wiki.to_string(), method];
    Ok(Command::new(python::program("grpcurl")?).args(args).output()?.status.success())
}

fn started(plan: Plan) -> anyhow::Result<Mesh> {
    let mesh = plan.start()?;
    mesh.import(&tenants())?;
    eventually(SOON, "calls pass", || call(mesh.outbound("wiki", "us-east"), "media.v1.Media/List"))?;
    Ok(mesh)
}

/// Those of the first two steps of the README, in its words.
#[test]
fn what_the_readme_shows_of_the_sample_mesh_and_of_a_service_of_ones_own_is_so() -> anyhow::Result<()> {
    let readme = fs::read_to_string(repository().join("README.md"))?;
    let policy = blocks(&readme).into_iter().find(|it| it.text.contains("metadata: {name: invoices}"));
    let plan = Plan::demo()?.file("invoices.yaml", &policy.expect("the documents of invoices").text);
    let mesh = started(plan.caller("invoices", "us-east"))?;
    let sidecars = [sidecars(&mesh), vec![(15501, mesh.outbound("invoices", "us-east"))]].concat();
    assert_eq!(Place::of(&mesh, &sidecars)?.run("README.md")?, 8);
    Ok(())
}

#[test]
fn the_commands_of_tenants_operators_the_dashboard_and_asap_tokens_do_what_they_say() -> anyhow::Result<()> {
    let mesh = started(Plan::demo()?)?;
    let place = Place::of(&mesh, &sidecars(&mesh))?;
    assert_eq!(place.run("docs/tcs.md")?, 7);
    assert_eq!(place.run("docs/operators.md")?, 2);
    assert_eq!(place.run("docs/dashboard.md")?, 1);
    assert_eq!(place.run("docs/asap-libraries.md")?, 5);
    // The last: the document revokes who the others are, and has a certificate to be revoked.
    let wiki = mesh.scratch().join("guide/wiki");
    mesh.tenon_ok(&["identity", "svid", "--service", "wiki", "--out", &wiki.to_string_lossy()])?;
    assert_eq!(place.run("docs/identity.md")?, 10);
    Ok(())
}

#[test]
fn the_commands_of_transaction_tokens_do_what_they_say() -> anyhow::Result<()> {
    let text = fs::read_to_string(repository().join("docs/transaction-tokens.md"))?;
    let gateway = blocks(&text).into_iter().find(|it| it.text.contains("metadata: {name: gateway}"));
    let mesh = started(Plan::demo()?.file("gateway.yaml", &gateway.expect("the gateway's document").text))?;
    mesh.tenon_ok(&[
        "identity",
        "svid",
        "--service",
        "gateway",
        "--out",
        &mesh.scratch().join("guide/gateway").to_string_lossy(),
    ])?;
    assert_eq!(Place::of(&mesh, &sidecars(&mesh))?.run("docs/transaction-tokens.md")?, 2);
    Ok(())
}

/// Ends the calls, whatever the commands did.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn what_is_watched_comes_as_the_documents_show_it() -> anyhow::Result<()> {
    let mesh = started(Plan::demo()?)?;
    let place = Place::of(&mesh, &sidecars(&mesh))?;
    let (wiki, done) = (mesh.outbound("wiki", "us-east"), AtomicBool::new(false));
    let commands = thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let _may_be_refused = (call(wiki, "media.v1.Media/List"), call(wiki, "media.v1.Media/Delete"));
                thread::park_timeout(Duration::from_millis(50));
            }
        });
        let _ended = Ended(&done);
        place.run("docs/tap.md")
    })?;
    assert_eq!(commands, 2);
    Ok(())
}

#[test]
fn who_starts_an_app_waits_for_its_sidecar() -> anyhow::Result<()> {
    let mesh = Plan::demo()?.start()?;
    let wait = |admin: String, timeout: &str| {
        Command::new(binary("tenon-sidecar")?)
            .args(["wait", "--admin", &admin, "--timeout", timeout])
            .output()
            .map_err(anyhow::Error::from)
    };
    let ready = wait(mesh.admin("media", "us-east").to_string(), "60s")?;
    assert!(ready.status.success(), "{ready:?}");
    // Nobody listens there for the admin of a sidecar.
    let other = wait(mesh.outbound("wiki", "us-east").to_string(), "1s")?;
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    assert!(!other.stderr.is_empty());
    Ok(())
}

/// All documents for people, with their paths.
fn documents() -> anyhow::Result<Vec<(String, String)>> {
    let mut paths: Vec<String> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(str::to_owned).into();
    for folder in ["docs", "docs/adr"] {
        for entry in fs::read_dir(repository().join(folder))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if Path::new(&name).extension().is_some_and(|it| it == "md") {
                paths.push(format!("{folder}/{name}"));
            }
        }
    }
    paths.sort();
    paths.into_iter().map(|path| Ok((path.clone(), fs::read_to_string(repository().join(&path))?))).collect()
}

const PROGRAMS: &[&str] = &[
    "install",
    "tenon",
    "tenon-sidecar",
    "grpcurl",
    "make",
    "curl",
    "openssl",
    "kubectl",
    "cargo",
    "systemctl",
    "target/release/tenon",
];

fn is_command(line: &str) -> bool {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    let mut words =
        line.split_whitespace().skip_while(|word| word.starts_with("TENON_") || word.starts_with("SPIFFE_"));
    words.next().is_some_and(|program| PROGRAMS.contains(&program))
}

#[test]
fn every_block_of_commands_is_run_by_a_test() -> anyhow::Result<()> {
    let mut elsewhere = BTreeSet::new();
    for (path, text) in documents()? {
        for block in blocks(&text).iter().filter(|it| it.language == "sh" || it.text.lines().any(is_command)) {
            let place = format!("line {} of {path}", block.line);
            let other = ELSEWHERE.iter().find(|(document, says, ..)| *document == path && block.text.contains(says));
            if let Some(&(document, says, test, there)) = other {
                elsewhere.insert((document, says));
                let found = test.is_empty() || fs::read_to_string(repository().join(test))?.contains(there);
                assert!(found, "{place}: {test} does not have {there}");
                continue;
            }
            // Of docs/policy-checks.md each block is the command line of an example: services/tenon/tests/policy_checks.rs.
            let run = match block.language {
                "sh" => RUN.contains(&path.as_str()),
                other => other == "console" && path == "docs/policy-checks.md",
            };
            assert!(run, "{place}: no test runs it");
            let (mut prompts, mut goes_on) = (0, false);
            for line in block.text.lines() {
                let prompt = line.starts_with("$ ");
                assert!(prompt || goes_on || !is_command(line), "{place}: a command begins with `$ `: {line}");
                prompts += usize::from(prompt);
                goes_on = line.ends_with(['\\', '|']);
            }
            assert!(prompts > 0, "{place}: it has no command");
        }
    }
    assert_eq!(elsewhere.len(), ELSEWHERE.len(), "a block that is no more: {ELSEWHERE:?}, there are {elsewhere:?}");
    Ok(())
}

/// `tenon …` between single backticks.
fn inline(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).filter(|span| {
        span.split(' ').next().is_some_and(|program| ["tenon", "tenon-sidecar"].contains(&program))
            && span.contains(' ')
    })
}

/// What is said in passing is not run, but there is such a command, and it has these flags.
#[test]
fn every_command_that_a_sentence_names_exists_with_its_flags() -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for (path, text) in documents()? {
        for span in inline(&text) {
            if !seen.insert(span.to_owned()) {
                continue;
            }
            let words: Vec<&str> = span.split([' ', '[', ']', '"', '=']).filter(|word| !word.is_empty()).collect();
            let is_name =
                |word: &&&str| word.chars().all(|it| it.is_ascii_lowercase() || it == '-') && !word.starts_with('-');
            let names: Vec<&str> = words[1..].iter().take_while(is_name).copied().collect();
            let flags = words.iter().filter(|word| word.starts_with('-') && word.len() > 1);
            // What follows the last of the subcommands is an argument: `tenon tenants get acme`.
            let help = (0..=names.len()).rev().find_map(|count| {
                let output = Command::new(binary(words[0]).ok()?).args(&names[..count]).arg("--help").output().ok()?;
                (output.status.success() && names.len() - count <= 1)
                    .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
            });
            let help = help.unwrap_or_else(|| panic!("{path}: `{span}`: no such command"));
            for flag in flags {
                let known = help.split([' ', ',', '\n', '[', '`']).any(|word| word == *flag);
                assert!(known, "{path}: `{span}`: no flag {flag} in\n{help}");
            }
        }
    }
    assert!(seen.len() >= 60, "{} are too few: where are they?", seen.len());
    Ok(())
}
