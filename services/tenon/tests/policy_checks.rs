//! `tenon policy check` through the binary: every check by its page's own example, and what is asked of running servers.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "policy_checks/page.rs"]
mod page;
#[path = "policy_checks/reflection.rs"]
mod reflection;
#[path = "policy_checks/routes.rs"]
mod routes;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;

use self::page::{Page, descriptors};

fn tenon(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TENON_")) {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

fn check(folder: &Path, more: &[&str]) -> Output {
    tenon(&[&["policy", "check", "-f", folder.to_str().unwrap()], more].concat())
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

/// The findings of a folder with their ids.
fn findings(folder: &Path, more: &[&str]) -> Vec<(String, Value)> {
    let answer = json(&check(folder, &[more, &["-o", "json"]].concat()));
    assert_eq!((&answer["valid"], &answer["problems"]), (&true.into(), &serde_json::json!([])), "{answer:#}");
    let found = answer["findings"].as_array().unwrap().iter();
    found.map(|one| (one["id"].as_str().unwrap().to_owned(), one.clone())).collect()
}

/// A folder with the page's own documents and one more file.
fn folder_with(more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("base.yaml"), Page::read().base).unwrap();
    fs::write(dir.path().join("example.yaml"), more).unwrap();
    dir
}

fn rule(name: &str, callers: &str, paths: &str) -> String {
    format!("    - {{name: {name}, callers: [{callers}], paths: [{paths}]}}\n")
}

fn allowlist(rules: &[String]) -> String {
    let head =
        "apiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {name: media-more}\nspec:\n  service: media\n  rules:\n";
    format!("{head}{}", rules.concat())
}

#[test]
fn every_check_has_a_section_and_every_section_a_check() {
    let listed = tenon(&["policy", "check", "--list", "-o", "json"]);
    assert_eq!(code(&listed), 0);
    let text = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
    let checks: Vec<(String, String)> =
        json(&listed).as_array().unwrap().iter().map(|one| (text(one, "id"), text(one, "name"))).collect();
    let sections: Vec<_> = Page::read().sections.into_iter().map(|section| (section.id, section.name)).collect();
    assert_eq!(sections, checks, "docs/policy-checks.md has the sections of the checks, in their order");
    for section in Page::read().sections {
        for part in ["**Why it matters.**", "**To mend it.**"] {
            assert!(section.text.contains(part), "{} has no {part}", section.id);
        }
    }
    let table = out(&tenon(&["policy", "check", "--list"]));
    assert!(checks.iter().all(|(id, name)| table.contains(id) && table.contains(name)), "{table}");
}

#[test]
fn nothing_is_found_in_the_folder_that_the_examples_stand_beside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("base.yaml"), Page::read().base).unwrap();
    assert_eq!(findings(dir.path(), &[]), []);
    let output = check(dir.path(), &["--deny", "all"]);
    assert_eq!(code(&output), 0, "{}", out(&output));
    assert!(out(&output).contains("3 services, 1 rules, 1 tests: no problem\n"), "{}", out(&output));
}

#[test]
fn each_example_triggers_exactly_its_own_check() {
    for section in Page::read().sections {
        let dir = section.lay_out();
        let args: Vec<&str> = section.args.iter().map(String::as_str).collect();
        let folder = dir.path().join("policy");
        let args = section.beside(dir.path(), &args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let found = findings(&folder, &args);
        let ids: BTreeSet<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, BTreeSet::from([section.id.as_str()]), "{}: {found:#?}", section.id);
        for (_, one) in &found {
            let file = one["file"].as_str().unwrap();
            let at = usize::try_from(one["line"].as_u64().unwrap()).unwrap();
            let text = fs::read_to_string(file).unwrap();
            let line = text.lines().nth(at - 1).unwrap_or_else(|| panic!("{one:#}"));
            assert!(line.chars().count() >= usize::try_from(one["column"].as_u64().unwrap()).unwrap(), "{one:#}");
            assert!(!one["message"].as_str().unwrap().contains('\n') && !one["help"].as_str().unwrap().is_empty());
        }
        // A finding alone is no failure; denied it is, by id and by name; allowed, nothing is left.
        assert_eq!(code(&check(&folder, &args)), 0, "{}", section.id);
        for name in [section.id.as_str(), &section.name, "all"] {
            let output = check(&folder, &[&args[..], &["--deny", name]].concat());
            assert_eq!(code(&output), 1, "{name}");
            assert!(out(&output).contains(&format!(" error {} {}: ", section.id, section.name)), "{}", out(&output));
        }
        let allowed = check(&folder, &[&args[..], &["--deny", "all", "--allow", &section.id]].concat());
        assert_eq!((code(&allowed), out(&allowed).contains(&section.id)), (0, false), "{}", out(&allowed));
    }
}

#[test]
fn findings_are_printed_with_place_and_remedy() {
    let dir = folder_with(&allowlist(&[rule("get", "issues", "/media.v1.Media/Get")]));
    let file = dir.path().join("example.yaml");
    let expected = format!(
        "{file}:7:7: warning TP001 rule-never-matches: rule get of media can never match: earlier rules take all of its \
         calls, as read (base.yaml:27) does issues on /media.v1.Media/Get\n  help: delete rule get, or move it up before \
         them if its conditions are meant\n{dir}: mesh demo, 3 services, 2 rules, 1 tests: no problem, 1 warnings\n",
        file = file.display(),
        dir = dir.path().display()
    );
    assert_eq!(out(&check(dir.path(), &[])), expected);
}

#[test]
fn a_rule_is_shadowed_by_what_is_wider_and_by_nothing_else() {
    const GET: &str = "/media.v1.Things/Get";
    const ALL: &str = "/media.v1.Things/*";
    /// Callers and paths of each rule.
    type Rules = &'static [(&'static str, &'static str)];
    let table: &[(&str, Rules, &[&str])] = &[
        ("several rules together take all of it", &[("issues", GET), ("wiki", GET), ("issues, wiki", GET)], &["TP001"]),
        ("a wildcard takes its methods", &[("issues", ALL), ("issues", GET)], &["TP001"]),
        ("a method takes nothing from its wildcard", &[("issues", GET), ("issues", ALL)], &[]),
        ("any service is every service", &[("\"*\"", GET), ("issues", GET)], &["TP001"]),
        ("named services are never any service", &[("issues, wiki, media", GET), ("\"*\"", GET)], &["TP008"]),
        ("another caller", &[("issues", GET), ("wiki", GET)], &[]),
        ("another gRPC service", &[("issues", "/media.v1.Thing/*"), ("issues", GET)], &[]),
        ("one of two callers", &[("issues", GET), ("wiki, issues", GET)], &["TP002"]),
        ("one of two paths", &[("issues", ALL), ("issues", "/media.v1.Things/Get, /media.v1.More/Get")], &["TP002"]),
        ("the same in another order", &[("issues, wiki", GET), ("wiki, issues", GET)], &["TP003"]),
        ("a service beside any", &[("\"*\", wiki", GET)], &["TP004"]),
    ];
    for (what, rules, expected) in table {
        let rules = rules.iter().enumerate();
        let rules: Vec<_> = rules.map(|(at, (callers, paths))| rule(&format!("r{at}"), callers, paths)).collect();
        let dir = folder_with(&allowlist(&rules));
        let ids: Vec<_> = findings(dir.path(), &[]).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, *expected, "{what}");
    }
}

#[test]
fn an_outside_client_is_no_service_that_a_star_takes() {
    let client = Page::read().sections.into_iter().find(|section| section.id == "TP005").unwrap().yaml;
    let rules = [rule("all", "\"*\"", "/media.v1.Media/List"), rule("partner", "partner", "/media.v1.Media/List")];
    let dir = folder_with(&format!("{client}---\n{}", allowlist(&rules)));
    assert_eq!(findings(dir.path(), &[]), []);
    let rules = [rule("both", "\"*\", partner", "/media.v1.Media/List")];
    let dir = folder_with(&format!("{client}---\n{}", allowlist(&rules)));
    assert_eq!(findings(dir.path(), &[]), []);
}

/// A record of calls to media that passed: callers and paths. `decision` is that of all of them.
fn flows(decision: &str, calls: &[(&str, &str)]) -> String {
    let flow = |(caller, path): &(&str, &str)| {
        serde_json::json!({"caller": caller, "service": "media", "path": path, "decision": decision, "reason": "",
            "count": 1, "first": "2026-11-19T08:00:00Z", "last": "2026-11-19T08:00:00Z"})
    };
    let flows: Vec<_> = calls.iter().map(flow).collect();
    let record = serde_json::json!({"from": "2026-11-19T08:00:00Z", "until": "2026-11-22T08:00:00Z", "flows": flows});
    record.to_string()
}

#[test]
fn what_is_wider_than_used_is_told_by_the_calls_that_passed_and_the_methods_there_are() {
    const GET: &str = "/media.v1.Media/Get";
    let dir = folder_with(&allowlist(&[
        rule("all", "\"*\"", "/media.v1.Things/*"),
        rule("health", "\"*\"", "/grpc.health.v1.Health/*"),
    ]));
    let (record, methods) = (dir.path().join("flows.json"), dir.path().join("media.binpb"));
    let proto = "package media.v1;\nservice Media {\nrpc Get(\n}\nservice Things {\nrpc Get(\nrpc List(\n}\n";
    fs::write(&methods, prost::Message::encode_to_vec(&descriptors(proto))).unwrap();
    let (issues, wiki) = (("issues", "/media.v1.Things/Get"), ("wiki", "/media.v1.Things/List"));
    for (what, decision, calls, expected) in [
        ("all methods and all services", "ALLOWED", &[("issues", GET), issues, wiki][..], &[][..]),
        ("audit mode let them pass", "AUDITED", &[issues, wiki], &[]),
        ("refused calls need no rule", "REFUSED", &[issues, wiki], &["TP010", "TP009"]),
        ("one method", "ALLOWED", &[issues, ("wiki", issues.1)], &["TP009"]),
        ("one caller", "ALLOWED", &[issues, ("issues", wiki.1)], &["TP010"]),
        ("more paths than are told apart", "ALLOWED", &[issues, ("wiki", issues.1), ("wiki", "")], &[]),
        ("an empty record", "ALLOWED", &[], &[]),
    ] {
        fs::write(&record, flows(decision, calls)).unwrap();
        let args = ["--flows", record.to_str().unwrap(), "--descriptors", methods.to_str().unwrap()];
        let ids: Vec<_> = findings(dir.path(), &args).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, expected, "{what}");
        let warned = err(&check(dir.path(), &args)).contains("the record of flows is empty");
        assert_eq!(warned, calls.is_empty(), "{what}");
    }
}

#[test]
fn a_remedy_names_everything_that_is_to_be_written() {
    let mut base = String::new();
    let names: Vec<String> = (1..=7).map(|at| format!("s{at}")).collect();
    for name in names.iter().chain([&"idle".to_owned()]) {
        write!(base, "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{}}\n---\n").unwrap();
    }
    let dir = folder_with(&format!("{base}{}", allowlist(&[rule("all", "\"*\"", "/media.v1.Things/*")])));
    let paths: Vec<String> = (1..=7).map(|at| format!("/media.v1.Things/M{at}")).collect();
    let calls: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(paths.iter().map(String::as_str)).collect();
    let record = dir.path().join("flows.json");
    fs::write(&record, flows("ALLOWED", &calls)).unwrap();
    let found = findings(dir.path(), &["--flows", record.to_str().unwrap(), "--allow", "TP007"]);
    let help = |id: &str| found.iter().find(|(of, _)| of == id).unwrap().1["help"].clone();
    assert_eq!(help("TP009"), format!("write {} in its place", paths.join(", ")));
    assert_eq!(help("TP010"), format!("write {} in place of \"*\"", names.join(", ")));
}

#[test]
fn what_audit_mode_lets_everybody_call_is_nothing_that_nobody_may_call() {
    let descriptors = {
        let set = descriptors("package media.v1;\nservice Media {\nrpc Get(\nrpc Erase(\n}\n");
        prost::Message::encode_to_vec(&set)
    };
    let archive = "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: archive}\nspec: {}\n---\n";
    let list = |service: &str, mode: &str| {
        let head = "---\napiVersion: tenon.dev/v1\nkind: Allowlist\n";
        format!("{head}metadata: {{name: {service}-more}}\nspec: {{service: {service}, mode: {mode}, rules: []}}\n")
    };
    for (mode, expected) in [("audit", &["TP011", "TP011"][..]), ("enforce", &["TP007", "TP015"])] {
        let dir = folder_with(&format!("{archive}{}{}", list("archive", mode), list("media", mode)));
        let methods = dir.path().join("media.binpb");
        fs::write(&methods, &descriptors).unwrap();
        let found = findings(dir.path(), &["--descriptors", methods.to_str().unwrap()]);
        let mut ids: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, expected, "{mode}: {found:#?}");
    }
}

#[test]
fn tenants_of_a_file_tell_which_conditions_nobody_meets() {
    let conditions = |conditions: &str| {
        allowlist(&[format!(
            "    - {{name: export, callers: [wiki], paths: [/media.v1.Media/Export], tenants: {conditions}}}\n"
        )])
    };
    let tenants = "{\"tenantId\":\"acme\",\"status\":\"ACTIVE\",\"region\":\"us-east\",\"products\":{\"media\":{\"state\":\"ACTIVE\",\"edition\":\"enterprise\",\"features\":[\"export\"]}}}\n\
         {\"tenantId\":\"globex\",\"status\":\"ACTIVE\",\"region\":\"us-east\"}\n";
    for (text, expected) in [
        ("{ids: [acme]}", 0),
        ("{ids: [acme, nobody]}", 0),
        ("{ids: [nobody]}", 1),
        // It does not have the product.
        ("{ids: [globex]}", 1),
        ("{products: {media: {editions: [enterprise]}}, features: [export]}", 0),
        ("{products: {media: {editions: [enterprize]}}}", 1),
        ("{features: [export, beta]}", 1),
        ("{regions: [us-east], ids: [acme]}", 0),
    ] {
        let dir = folder_with(&conditions(text));
        let file = dir.path().join("tenants.jsonl");
        fs::write(&file, tenants).unwrap();
        assert_eq!(findings(dir.path(), &[]), [], "{text}");
        let found = findings(dir.path(), &["--tenants", file.to_str().unwrap()]);
        let ids: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, vec!["TP017"; expected], "{text}");
    }
}

#[test]
fn flags_that_cannot_be_meant_are_wrong_usage() {
    let dir = folder_with("");
    for (args, expected) in [
        (&["--deny", "TP0001"][..], "there is no such check (did you mean \"TP001\"?)"),
        (&["--allow", "rule-never-match"], "did you mean \"rule-never-matches\"?"),
        (&["--deny", "TP001", "--allow", "rule-never-matches"], "TP001 is denied and allowed at once"),
        (&["--deny", "all", "--allow", "all"], "choose one of them"),
        (&["--reflect", "media"], "expected SERVICE=HOST:PORT"),
        (&["--reflect", "medai=127.0.0.1:1"], "did you mean \"media\"?"),
    ] {
        let output = check(dir.path(), args);
        assert_eq!((code(&output), out(&output).as_str()), (2, ""), "{args:?}");
        assert!(err(&output).contains(expected), "{args:?}: {}", err(&output));
    }
    for (flag, text) in [("--flows", "[]"), ("--descriptors", "no descriptors"), ("--tenants", "{}"), ("--flows", "{}")]
    {
        let file = dir.path().join("file");
        fs::write(&file, text).unwrap();
        let output = check(dir.path(), &[flag, file.to_str().unwrap()]);
        assert_eq!((code(&output), out(&output).as_str()), (1, ""), "{flag} {text}");
        assert!(err(&output).contains(file.to_str().unwrap()), "{flag}: {}", err(&output));
    }
}

#[test]
fn problems_leave_no_room_for_findings() {
    let dir = folder_with(&allowlist(&[rule("get", "nobody", "/media.v1.Media/Get")]));
    let output = check(dir.path(), &["-o", "json", "--deny", "all"]);
    let answer = json(&output);
    assert_eq!((code(&output), &answer["valid"], &answer["findings"]), (1, &false.into(), &serde_json::json!([])));
    assert_eq!(answer["problems"].as_array().unwrap().len(), 1);
}

#[test]
fn a_thousand_services_with_ten_thousand_rules_are_looked_through_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut mesh =
        "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {name: big}\nspec: {trustDomain: big.example, regions: [r]}\n"
            .to_owned();
    let mut lists = String::new();
    for service in 0..1_000 {
        write!(mesh, "---\napiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: s{service}}}\nspec: {{}}\n")
            .unwrap();
        let head = format!("---\napiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: s{service}}}\nspec:\n");
        write!(lists, "{head}  service: s{service}\n  rules:\n").unwrap();
        // One service has a thousand rules about the same two paths, the worst there is; they are never equal.
        let rules = if service == 0 { 1_010 } else { 9 };
        for at in 0..rules {
            let callers = format!("s{}, s{}", (at + 1) % 1_000, (at + 501) % 1_000);
            let path = if service == 0 { "/p.S/A, /p.S/B".to_owned() } else { format!("/p{at}.S/A, /p{at}.S/*") };
            lists += &format!("    - {{name: r{at}, callers: [{callers}], paths: [{path}]}}\n");
        }
    }
    fs::write(dir.path().join("mesh.yaml"), mesh).unwrap();
    fs::write(dir.path().join("allowlists.yaml"), lists).unwrap();
    let began = Instant::now();
    let found = findings(dir.path(), &[]);
    // Without optimisation and beside other work; with all pairs of rules compared it takes minutes.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let count = |id: &str| found.iter().filter(|(of, _)| of == id).count();
    assert!(count("TP003") >= 500 && count("TP004") >= 8_000, "{} {}", count("TP003"), count("TP004"));
}
