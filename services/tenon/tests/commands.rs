//! The binary as a shell sees it: exit codes, what goes to which stream, and what it says to do.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const MESH: &str = "apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: demo}
spec: {trustDomain: demo.example, regions: [us-east, eu-west]}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {product: media, residency: home}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: issues}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Allowlist
metadata: {name: media}
spec:
  service: media
  rules:
    - name: read
      callers: [issues]
      paths: [/media.v1.Media/Get]
";

const TESTS: &str = "apiVersion: tenon.dev/v1
kind: PolicyTest
metadata: {name: reading}
spec:
  tenants: [{tenantId: acme, status: ACTIVE, region: us-east, products: {media: {state: ACTIVE}}}]
  calls:
    - {caller: issues, service: media, path: /media.v1.Media/Get, tenant: acme, expect: ALLOWED}
    - {caller: wiki, service: media, path: /media.v1.Media/Get, tenant: acme, expect: EXPECTED}
";

fn tenon(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TENON_")) {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn path(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn wrong_usage_exits_2_and_says_so_on_standard_error() {
    let output = tenon(&["policy", "explain"]);
    assert_eq!((code(&output), out(&output).as_str()), (2, ""));
    assert!(err(&output).contains("--caller"), "{}", err(&output));
}

#[test]
fn every_command_that_needs_a_mesh_says_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = path(&dir);
    let mesh = folder(&[("mesh.yaml", MESH)]);
    let file = mesh.path().join("tenants.jsonl");
    fs::write(&file, "{\"tenantId\":\"acme\",\"status\":\"ACTIVE\",\"region\":\"us-east\"}\n").unwrap();
    for args in [
        vec!["tenants", "import", file.to_str().unwrap()],
        vec!["tenants", "get", "acme"],
        vec!["tenants", "list"],
        vec!["tenants", "suspend", "acme"],
        vec!["tenants", "unsuspend", "acme"],
        vec!["tenants", "delete", "acme"],
        vec!["policy", "apply", "-f", path(&mesh)],
        vec!["policy", "status"],
        vec!["policy", "history"],
        vec!["policy", "rollback", "7"],
        vec!["policy", "rollout", "--abort"],
        vec!["policy", "flows"],
        vec!["policy", "diff", "-f", path(&mesh)],
        vec!["policy", "suggest"],
        vec!["explain", "0193a1b2"],
        vec!["policy", "explain", "--caller", "a", "--service", "b", "--path", "/c.D/E"],
        vec!["identity", "join-token", "--service", "media"],
        vec!["identity", "keys"],
        vec!["check"],
        vec!["sidecars"],
    ] {
        let output = tenon(&[args.as_slice(), &["--data", data]].concat());
        assert_eq!((code(&output), out(&output).as_str()), (1, ""), "{args:?}");
        let expected = format!(
            "error: no running mesh found in {data}\n  start one with `tenon up -f DIR` or name its folder with --data\n"
        );
        assert_eq!(err(&output), expected, "{args:?}");
    }
}

#[test]
fn all_problems_of_a_policy_folder_are_printed_with_their_places() {
    let dir = folder(&[(
        "mesh.yaml",
        &MESH.replace("callers: [issues]", "callers: [nobody]").replace("spec: {}", "sepc: {}"),
    )]);
    let output = tenon(&["policy", "check", "-f", path(&dir)]);
    assert_eq!(code(&output), 1);
    let file = dir.path().join("mesh.yaml");
    let places: Vec<_> =
        err(&output).lines().filter(|line| line.starts_with(file.to_str().unwrap())).map(str::to_owned).collect();
    assert!(places.len() >= 2, "{}", err(&output));

    let output = tenon(&["policy", "check", "-f", path(&dir), "-o", "json"]);
    assert_eq!(code(&output), 1);
    let json: Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!((&json["valid"], json["problems"].as_array().unwrap().len()), (&false.into(), places.len()));
    assert!(json["problems"][0]["line"].as_u64().unwrap() > 1);
}

#[test]
fn a_good_folder_is_checked_with_exit_code_0() {
    let dir = folder(&[("mesh.yaml", MESH)]);
    let output = tenon(&["policy", "check", "-f", path(&dir)]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).contains("2 services, 1 rules"), "{}", out(&output));
}

fn explain(dir: &tempfile::TempDir, more: &[&str]) -> (i32, Value) {
    let args =
        ["policy", "explain", "-f", path(dir), "--service", "media", "--path", "/media.v1.Media/Get", "-o", "json"];
    let output = tenon(&[&args, more].concat());
    (code(&output), serde_json::from_str(&out(&output)).unwrap_or_else(|_| panic!("{}", err(&output))))
}

#[test]
fn explain_offline_answers_in_the_form_of_the_design() {
    let dir = folder(&[("mesh.yaml", MESH)]);
    let tenants = dir.path().join("tenants.jsonl");
    fs::write(
        &tenants,
        "{\"tenantId\":\"acme\",\"status\":\"ACTIVE\",\"region\":\"us-east\",\"products\":{\"media\":{\"state\":\"ACTIVE\"}}}\n\
         {\"tenantId\":\"globex\",\"status\":\"SUSPENDED\",\"region\":\"us-east\",\"products\":{\"media\":{\"state\":\"ACTIVE\"}}}\n",
    )
    .unwrap();
    let tenants = ["--tenants", tenants.to_str().unwrap()];
    let ask = |caller: &str, tenant: &str, more: &[&str]| {
        explain(&dir, &[&["--caller", caller, "--tenant", tenant][..], &tenants, more].concat())
    };

    let (code, json) = ask("issues", "acme", &[]);
    assert_eq!((code, &json["allowed"], &json["reason"]), (0, &true.into(), &Value::Null));
    assert_eq!((&json["allowlist"], &json["rule"]), (&"media".into(), &"read".into()));

    let (code, json) = ask("issues", "globex", &[]);
    assert_eq!((code, &json["allowed"], &json["reason"]), (1, &false.into(), &"TENANT_SUSPENDED".into()));
    assert_eq!((&json["allowlist"], &json["rule"]), (&"media".into(), &"read".into()));

    let (code, json) = ask("wiki", "acme", &[]);
    assert_eq!((code, &json["reason"], &json["rule"]), (1, &"PATH_NOT_ALLOWED".into(), &Value::Null));
    assert_eq!(json["nearest"]["rule"], "read");

    let (_, json) = ask("issues", "nobody", &[]);
    assert_eq!(json["reason"], "TENANT_UNKNOWN");
    let (_, json) = ask("issues", "acme", &["--region", "eu-west"]);
    assert_eq!(json["reason"], "TENANT_WRONG_REGION");
}

#[test]
fn explain_takes_a_transaction_token_and_refuses_callers_that_nobody_defines() {
    let more = "paths: [/media.v1.Media/Get]\n      proof: transaction\n    - {name: all, callers: ['*'], paths: \
                [/grpc.health.v1.Health/*], tenant: none}";
    let mesh = MESH.replace("paths: [/media.v1.Media/Get]", more);
    let dir = folder(&[("mesh.yaml", &mesh)]);
    let issues = ["--caller", "issues", "--tenant", "acme"];
    for (token, expected) in [
        (&[][..], Some("TXN_MISSING")),
        (&["--transaction", "acme"], None),
        (&["--transaction=globex"], Some("TXN_TENANT_MISMATCH")),
        (&["--transaction"], Some("TXN_TENANT_MISMATCH")),
    ] {
        let (code, json) = explain(&dir, &[&issues, token].concat());
        assert_eq!(json["reason"].as_str(), expected, "{token:?}");
        assert_eq!((code, json["allowed"].as_bool()), (i32::from(expected.is_some()), Some(expected.is_none())));
    }
    let health = |caller: &str| {
        let args =
            ["policy", "explain", "-f", path(&dir), "--service", "media", "--path", "/grpc.health.v1.Health/Check"];
        tenon(&[&args[..], &["--caller", caller]].concat())
    };
    assert_eq!(code(&health("issues")), 0);
    let stranger = health("isues");
    assert_eq!(code(&stranger), 1);
    assert!(out(&stranger).contains("isues is neither a service of the mesh nor"), "{}", out(&stranger));
}

#[test]
fn policy_tests_exit_1_only_when_one_does_not_come_as_expected() {
    for (expect, exit) in [("PATH_NOT_ALLOWED", 0), ("ALLOWED", 1)] {
        let dir = folder(&[("mesh.yaml", MESH), ("tests.yaml", &TESTS.replace("EXPECTED", expect))]);
        let output = tenon(&["policy", "test", "-f", path(&dir), "-o", "json"]);
        assert_eq!(code(&output), exit, "{}", err(&output));
        let json: Value = serde_json::from_str(&out(&output)).unwrap();
        assert_eq!(json["failed"], exit);
        assert_eq!(
            (&json["calls"][1]["came"], &json["calls"][1]["passed"]),
            (&"PATH_NOT_ALLOWED".into(), &(exit == 0).into())
        );
    }
}

#[test]
fn a_test_that_expects_what_is_no_reason_is_an_error_and_so_is_a_folder_without_tests() {
    let dir = folder(&[("mesh.yaml", MESH), ("tests.yaml", &TESTS.replace("EXPECTED", "NO_SUCH_REASON"))]);
    let output = tenon(&["policy", "test", "-f", path(&dir)]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("NO_SUCH_REASON"), "{}", err(&output));
    let dir = folder(&[("mesh.yaml", MESH)]);
    let output = tenon(&["policy", "test", "-f", path(&dir)]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("no PolicyTest document"), "{}", err(&output));
}

#[test]
fn problems_of_a_tenant_file_come_all_at_once_before_any_mesh_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tenants.jsonl");
    fs::write(&file, "{\"tenantId\":\"acme\",\"status\":\"ACTIVE\"}\n{\"tenantId\":\"-\"}\nnonsense\n").unwrap();
    let output = tenon(&["tenants", "import", file.to_str().unwrap(), "--data", path(&dir)]);
    assert_eq!(code(&output), 1);
    let text = err(&output);
    for line in [2, 3] {
        assert!(text.contains(&format!("{}:{line}:", file.display())), "line {line} in {text}");
    }
    assert!(text.contains("nothing was applied"), "{text}");
}

#[test]
fn a_ca_is_made_once_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let args = ["identity", "ca-init", "--out", ca.to_str().unwrap()];
    let output = tenon(&args);
    assert_eq!(code(&output), 0, "{}", err(&output));
    let key = fs::read_to_string(ca.join("root.key")).unwrap();
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_eq!(fs::metadata(ca.join("root.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let output = tenon(&args);
    assert_eq!(code(&output), 1);
    assert_eq!(fs::read_to_string(ca.join("root.key")).unwrap(), key);
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tenon(&["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(out(&output).contains("tenon"), "{shell}");
    }
}

#[test]
fn up_refuses_a_bad_folder_before_it_touches_anything() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let run = |mesh: &Path| tenon(&["up", "-f", mesh.to_str().unwrap(), "--data", data.to_str().unwrap()]);

    let output = run(&dir.path().join("nowhere"));
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("nowhere"), "{}", err(&output));

    let mesh = folder(&[("mesh.yaml", MESH)]);
    let output = run(mesh.path());
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("has no LocalMesh document"), "{}", err(&output));
    assert!(!data.exists());
}

#[test]
fn a_policy_service_that_wants_signatures_follows_no_folder() {
    let dir = folder(&[("settings.yaml", "requireSigned: keys.pem\n")]);
    let (settings, state) = (dir.path().join("settings.yaml"), dir.path().join("state"));
    let (settings, state) = (settings.to_str().unwrap(), state.to_str().unwrap());
    let store = format!("embedded:{state}/store");
    let serve = ["policy", "serve", "--trust-domain", "d.example", "--trust-bundle-sha256", "00", "-f", "mesh"];
    let serve = [&serve[..], &["--state-dir", state, "--store", &store, "--listen", "127.0.0.1:0"]].concat();
    for more in [["--require-signed", "keys.pem"], ["--config", settings]] {
        let output = tenon(&[&serve[..], &more].concat());
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(
            err.contains("--folder mesh with --require-signed keys.pem: a watched folder has no signature"),
            "{err}"
        );
    }
}
