//! `tenon policy test`, `explain` and `schema` through the binary, without a mesh.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use quick_xml::{Reader, events::Event};
use serde_json::{Value, json};

const MESH: &str = "apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: demo}
spec: {trustDomain: demo.example, regions: [us-east]}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {product: media}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: issues}
spec: {}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: wiki}
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
      paths: [/media.v1.Media/Get, /media.v1.Media/List]
    - name: thumbnails
      callers: [issues]
      paths: [/media.v1.Thumbnails/*]
    - name: export
      callers: [issues]
      paths: [/media.v1.Media/Export]
      tenants: {ids: [globex]}
";

const TESTS: &str = "apiVersion: tenon.dev/v1
kind: PolicyTest
metadata: {name: reading}
spec:
  tenants: [{tenantId: acme, status: ACTIVE, region: us-east, products: {media: {state: ACTIVE}}}]
  calls:
    - {caller: issues, service: media, path: /media.v1.Media/Get, tenant: acme, expect: ALLOWED}
    - {caller: wiki, service: media, path: /media.v1.Media/Get, tenant: acme, expect: WIKI}
    - {caller: issues, service: media, path: /media.v1.Thumbnails/Get, tenant: acme, region: us-east, expect: THUMBNAILS}
";

/// A folder with tests, of which the second and the third expect what is given.
fn folder(wiki: &str, thumbnails: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mesh.yaml"), MESH).unwrap();
    let tests = TESTS.replace("WIKI", wiki).replace("THUMBNAILS", thumbnails);
    fs::write(dir.path().join("tests.yaml"), tests).unwrap();
    dir
}

fn tenon(command: &str, dir: &tempfile::TempDir, more: &[&str]) -> Output {
    let mut tenon = Command::new(env!("CARGO_BIN_EXE_tenon"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TENON_")) {
        tenon.env_remove(name);
    }
    tenon.args(["policy", command, "-f", dir.path().to_str().unwrap()]).args(more).output().unwrap()
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

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}{}", out(output), err(output)))
}

#[test]
fn what_does_not_come_as_expected_is_a_diff_with_what_decided() {
    let output = tenon("test", &folder("ALLOWED", "PATH_NOT_ALLOWED"), &[]);
    assert_eq!(code(&output), 1);
    let expected = "\
tests.yaml:8:7: reading: wiki -> media /media.v1.Media/Get, tenant acme
  - ALLOWED
  + PATH_NOT_ALLOWED: no rule of service media allows wiki the path /media.v1.Media/Get
    nearest: rule read of allowlist media at mesh.yaml:27; it differs by caller and allows issues
tests.yaml:9:7: reading: issues -> media /media.v1.Thumbnails/Get, tenant acme, in us-east
  - PATH_NOT_ALLOWED
  + ALLOWED
    decided by rule thumbnails of allowlist media at mesh.yaml:30
1 of 3 calls came out as expected
";
    assert!(out(&output).ends_with(expected), "{}", out(&output));
    let calls = &json(&tenon("test", &folder("ALLOWED", "ALLOWED"), &["-o", "json"]))["calls"];
    assert_eq!(calls[1]["message"], "no rule of service media allows wiki the path /media.v1.Media/Get");
    assert!(calls[1]["because"].as_str().unwrap().starts_with("nearest: rule read"), "{calls:#}");
    assert_eq!((&calls[0]["rule"], &calls[0]["passed"]), (&"media/read".into(), &true.into()));
}

/// Every element with its attributes, as a parser sees them.
fn elements(xml: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut reader = Reader::from_str(xml);
    let mut found = Vec::new();
    loop {
        let event = reader.read_event().unwrap();
        if let Event::Start(element) | Event::Empty(element) = &event {
            let attributes = element.attributes().map(|attribute| {
                let attribute = attribute.unwrap();
                let value = quick_xml::escape::unescape(&attribute.value).unwrap();
                (attribute.key.as_ref().to_owned(), value.into_owned())
            });
            found.push((element.name().as_ref().to_owned(), attributes.collect()));
        }
        if event == Event::Eof {
            return found;
        }
    }
}

#[test]
fn junit_has_a_suite_for_each_test_and_a_case_for_each_call() {
    let dir = folder("ALLOWED", "ALLOWED");
    let report: PathBuf = dir.path().join("report.xml");
    let output = tenon("test", &dir, &["--junit", report.to_str().unwrap()]);
    assert_eq!(code(&output), 1);
    let found = elements(&fs::read_to_string(&report).unwrap());
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["testsuites", "testsuite", "testcase", "testcase", "failure", "testcase"]);
    let has = |at: usize, key: &str, value: &str| {
        assert!(found[at].1.contains(&(key.to_owned(), value.to_owned())), "{key}={value}: {found:#?}");
    };
    for at in [0, 1] {
        has(at, "tests", "3");
        has(at, "failures", "1");
    }
    has(1, "name", "reading");
    has(3, "name", "wiki -> media /media.v1.Media/Get, tenant acme");
    has(3, "file", "tests.yaml");
    has(3, "line", "8");
    has(4, "message", "expected ALLOWED, came PATH_NOT_ALLOWED");

    // Written also when everything passes, over what was there; and a report that cannot be is no success.
    drop(dir);
    let dir = folder("PATH_NOT_ALLOWED", "ALLOWED");
    let output = tenon("test", &dir, &["--junit", report.to_str().unwrap()]);
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(err(&output).contains("name another file with --junit"), "{}", err(&output));
    let report = dir.path().join("report.xml");
    assert_eq!(code(&tenon("test", &dir, &["--junit", report.to_str().unwrap()])), 0);
    assert!(!fs::read_to_string(&report).unwrap().contains("<failure"));
}

#[test]
fn coverage_names_the_rules_and_paths_that_no_call_touches() {
    let dir = folder("PATH_NOT_ALLOWED", "ALLOWED");
    let output = tenon("test", &dir, &["--coverage"]);
    assert_eq!(code(&output), 0);
    let expected = "\
3 of 3 calls came out as expected
coverage: 2 of 3 rules (66 %), 2 of 4 paths (50 %)
  mesh.yaml:33: no call is decided by rule export of media
  mesh.yaml:27: no call of /media.v1.Media/List is decided by rule read of media
";
    assert!(out(&output).ends_with(expected), "{}", out(&output));

    let coverage = &json(&tenon("test", &dir, &["--coverage", "-o", "json"]))["coverage"];
    let rule = json!({"service": "media", "allowlist": "media", "rule": "export", "source": "mesh.yaml:33"});
    assert_eq!(coverage["wanted"], Value::Null);
    assert_eq!(coverage["rules"], json!({"total": 3, "touched": 2, "percent": 66, "untouched": [rule]}));
    let paths: Vec<_> =
        coverage["paths"]["untouched"].as_array().unwrap().iter().map(|one| one["path"].clone()).collect();
    assert_eq!(paths, ["/media.v1.Media/List", "/media.v1.Media/Export"]);
    assert!(json(&tenon("test", &dir, &["-o", "json"])).get("coverage").is_none());
}

#[test]
fn too_little_coverage_exits_1() {
    let dir = folder("PATH_NOT_ALLOWED", "ALLOWED");
    for (least, expected) in [("0", 0), ("50", 0), ("51", 1), ("100", 1)] {
        let output = tenon("test", &dir, &["--min-coverage", least]);
        assert_eq!(code(&output), expected, "{least}: {}", out(&output));
        let why = "not passed: coverage is below the";
        assert_eq!(out(&output).contains(why), expected == 1, "{}", out(&output));
        let output = tenon("test", &dir, &["--min-coverage", least, "-o", "json"]);
        let answer = json(&output);
        assert_eq!((code(&output), &answer["passed"]), (expected, &(expected == 0).into()), "{least}");
        assert_eq!((&answer["failed"], answer["coverage"]["wanted"].to_string().as_str()), (&0.into(), least));
    }
    assert_eq!(code(&tenon("test", &dir, &["--min-coverage", "101"])), 2);
}

#[test]
fn a_refusal_is_explained_with_the_nearest_rule_and_the_change_that_would_allow_it() {
    let dir = folder("ALLOWED", "ALLOWED");
    let from = ["--from", "wiki", "--to", "media", "--path", "/media.v1.Media/Get", "--tenant", "acme"];
    let output = tenon("explain", &dir, &from);
    assert_eq!(code(&output), 1);
    let text = out(&output);
    for expected in [
        "wiki -> media /media.v1.Media/Get: refused: PATH_NOT_ALLOWED: ",
        "\n  nearest: rule read of allowlist media at mesh.yaml:27; it differs by caller and allows issues\n",
        "\n  to allow it: add to allowlist media: {name: wiki-get, callers: [wiki], paths: [/media.v1.Media/Get], \
         tenant: required}\n",
        "\n  assumed: tenant acme is known",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let answer = json(&tenon("explain", &dir, &[&from[..], &["-o", "json"]].concat()));
    let change = &answer["proposal"][0];
    assert_eq!(
        (&answer["allowed"], &change["change"], &change["rule"]),
        (&false.into(), &"new_rule".into(), &"wiki-get".into())
    );

    let from = ["--from", "issues", "--to", "media", "--path", "/media.v1.Media/Export", "--tenant", "acme"];
    let answer = json(&tenon("explain", &dir, &[&from[..], &["-o", "json"]].concat()));
    assert_eq!((&answer["reason"], &answer["condition"]), (&"TENANT_NOT_ALLOWED".into(), &"id".into()));
    assert_eq!(answer["proposal"][0]["field"], "tenants.ids");
    let text = out(&tenon("explain", &dir, &from));
    assert!(
        text.contains("\n  the rule is not for this tenant: id differs\n  to allow it: add acme to `tenants.ids`"),
        "{text}"
    );

    let from = ["--from", "issues", "--to", "media", "--path", "/media.v1.Media/Get", "--tenant", "acme"];
    let answer = json(&tenon("explain", &dir, &[&from[..], &["-o", "json"]].concat()));
    assert_eq!((&answer["allowed"], &answer["proposal"]), (&true.into(), &Value::Null));
}

#[test]
fn what_cannot_be_meant_is_wrong_usage_of_explain() {
    let dir = folder("ALLOWED", "ALLOWED");
    let explain = |path: &str, more: &[&str]| {
        let from = ["--from", "wiki", "--to", "media", "--tenant", "acme", "--path", path];
        tenon("explain", &dir, &[&from[..], more].concat())
    };
    let get = "/media.v1.Media/Get";
    for (path, more, expected) in [
        (
            get,
            &["--region", "us-eats"][..],
            "--region us-eats: the Mesh has no such region (did you mean \"us-east\"?)",
        ),
        (get, &["--region", "mars"], "--region mars: the Mesh has no such region\n"),
        ("media.v1.Media/Get", &[], "--path media.v1.Media/Get: expected /package.Service/Method"),
        ("", &[], "expected /package.Service/Method"),
        (get, &["--transaction", "Acme Inc"], "--transaction Acme Inc: "),
    ] {
        let output = explain(path, more);
        assert_eq!((code(&output), out(&output).as_str()), (2, ""), "{path} {more:?}: {}", err(&output));
        assert!(err(&output).contains(expected), "{path} {more:?}: {}", err(&output));
    }
    for more in [&["--region", "us-east"][..], &["--transaction", "acme"], &["--transaction"]] {
        assert_eq!(code(&explain(get, more)), 1, "{more:?}");
    }
    assert_eq!(code(&explain("/media.v1.Media/Get?x=1", &[])), 1);
}

#[test]
fn a_call_that_audit_mode_lets_pass_is_told_what_would_allow_it_when_enforced() {
    let dir = folder("ALLOWED", "ALLOWED");
    fs::write(dir.path().join("mesh.yaml"), MESH.replace("service: media\n", "service: media\n  mode: audit\n"))
        .unwrap();
    let from = ["--from", "wiki", "--to", "media", "--path", "/media.v1.Media/Get", "--tenant", "acme"];
    let output = tenon("explain", &dir, &from);
    let text = out(&output);
    assert_eq!(code(&output), 0, "{text}");
    assert!(text.contains("\n  to allow it when enforced: add ") && !text.contains("to allow it:"), "{text}");
}

#[test]
fn the_schema_is_the_one_that_the_documentation_has() {
    let output = Command::new(env!("CARGO_BIN_EXE_tenon")).args(["policy", "schema"]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", err(&output));
    let documented: Value = serde_json::from_str(include_str!("../../../docs/policy.schema.json")).unwrap();
    assert!(json(&output) == documented, "{}", out(&output));
}
