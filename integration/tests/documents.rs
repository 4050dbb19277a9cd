//! The commands of the documents are true: each is run in a running mesh, in the order of its document, and every line that is
//! shown must come (`integration::guide`). Documents with a mesh of their own have a test of their own: docs/policy.md
//! (policy_guide.rs), docs/grpcurl.md (grpcurl_guide.rs), docs/audit.md (audit.rs), docs/check.md (check.rs),
//! docs/outside-clients.md (external_clients.rs), docs/production.md (packages.rs), docs/workload-api.md (workload_api.rs).

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

use anyhow::Context as _;
use integration::{
    by_hand::{self, Instance},
    guide::{Place, blocks},
    mesh::{Mesh, Plan, SOON, binary, eventually, repository},
    python,
};
use mesh_asap::SigningKey;
use mesh_identity::repository::testing::{KeyServer, Reply, WebCa};
use serde_json::json;

/// Documents whose blocks of shell are all run, here or by the test that is named above.
const RUN: &[&str] = &[
    "README.md",
    "docs/asap-libraries.md",
    "docs/audit.md",
    "docs/dashboard.md",
    "docs/grpcurl.md",
    "docs/identity.md",
    "docs/life-cycle.md",
    "docs/operators.md",
    "docs/outside-clients.md",
    "docs/policy.md",
    "docs/production.md",
    "docs/tap.md",
    "docs/tcs.md",
    "docs/transaction-tokens.md",
    "docs/workload-api.md",
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
    let mut command = Command::new(python::program("grpcurl")?);
    command.arg("-import-path").arg(repository().join("proto")).args(["-proto", "media/v1/media.proto", "-plaintext"]);
    command.args(["-authority", "media", "-H", "x-tenant-id: acme", &wiki.to_string(), method]);
    Ok(command.output()?.status.success())
}

fn started(plan: Plan) -> anyhow::Result<Mesh> {
    let mesh = plan.start()?;
    mesh.import(&tenants())?;
    eventually(SOON, "calls pass", || call(mesh.outbound("wiki", "us-east"), "media.v1.Media/List"))?;
    Ok(mesh)
}

/// A partner with a key repository, and a token of its.
fn publish_a_key(place: &Place, web: &WebCa, keys: &KeyServer) -> anyhow::Result<()> {
    let key = SigningKey::generate("partner")?;
    let kid = key.kid().as_str();
    keys.tell(kid, Reply::key(&pem::encode(&pem::Pem::new("PUBLIC KEY", key.public_spki()))));
    let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", key.pkcs8().to_vec()));
    fs::write(place.folder().join("key.pem"), pem)?;
    fs::write(place.folder().join("partner-ca.pem"), web.pem())?;
    let mint = ["asap", "mint", "--issuer", "partner", "--audience", "media", "--kid", kid, "--key", "key.pem"];
    let minted = Command::new(binary("tenon")?).args(mint).current_dir(place.folder()).output()?;
    Ok(fs::write(place.folder().join("token"), minted.stdout)?)
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
    let (runtime, web) = (tokio::runtime::Runtime::new()?, WebCa::new());
    let keys = runtime.block_on(KeyServer::start(&web));
    publish_a_key(&place, &web, &keys)?;
    let own = keys.address().to_string();
    let place = place.with("keys.partner.example", &own).with("fallback.partner.example", &own);
    assert_eq!(place.run("docs/asap-libraries.md")?, 6);
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

/// When the process at this admin listener began.
fn began(admin: SocketAddr) -> anyhow::Result<Option<String>> {
    let output = Command::new("curl").args(["-s", &format!("http://{admin}/metrics")]).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().find_map(|line| line.strip_prefix("process_start_time_seconds ")).map(str::to_owned))
}

#[test]
fn a_sidecar_starts_before_its_app_and_is_replaced_by_the_commands_of_its_life_cycle() -> anyhow::Result<()> {
    let mesh = Plan::new()?.file("policy.yaml", by_hand::POLICY).caller("wiki", "us-east").start()?;
    mesh.import(&tenants())?;
    let instance = Instance::plan(&mesh, "media", "guide")?;
    let place = Place::of(&mesh, &[(9002, instance.app())])?;
    let place = place.with("/etc/tenon/media.yaml", &instance.config()?.to_string_lossy());
    let admin = [("TENON_ADMIN", &*instance.admin().to_string())];
    let first = place.shell("docs/life-cycle.md", "tenon-sidecar wait")?.start(place.folder(), &admin)?;
    let passes = || call(mesh.outbound("wiki", "us-east"), "media.v1.Media/List");
    eventually(SOON, "calls pass", passes).with_context(|| first.log())?;
    let before = began(instance.admin())?.context("the sidecar says when it began")?;
    let second = place.shell("docs/life-cycle.md", "--take-over")?.start(place.folder(), &[])?;
    let taken_over = || Ok(began(instance.admin())?.is_some_and(|now| now != before));
    eventually(SOON, "the other process has taken over", taken_over).with_context(|| second.log())?;
    assert!(passes()?, "{}", second.log());

    let wait = |admin: SocketAddr, timeout: &str| {
        Command::new(binary("tenon-sidecar")?)
            .args(["wait", "--admin", &admin.to_string(), "--timeout", timeout])
            .output()
            .map_err(anyhow::Error::from)
    };
    // Nobody listens there for the admin of a sidecar.
    let other = wait(mesh.outbound("wiki", "us-east"), "1s")?;
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
    for (path, text) in documents()? {
        for block in blocks(&text).iter().filter(|it| it.language == "sh" || it.text.lines().any(is_command)) {
            let place = format!("line {} of {path}", block.line);
            // .ci/run runs both.
            if path == "README.md" && block.text.starts_with("make demo ") {
                let ci = fs::read_to_string(repository().join(".ci/run"))?;
                assert!(["make demo", "make test"].iter().all(|command| ci.contains(command)), "{ci}");
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
