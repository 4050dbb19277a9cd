//! The audit record: who did and asked what is in it, and what somebody did to it is found.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use integration::{
    guide::Place,
    mesh::{Mesh, Plan, SOON, binary, eventually, signal},
};
use redb::{Database, ReadableTable as _, TableDefinition};
use rustix::process::Signal;
use serde_json::{Value, json};

fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let shard = json!({"cluster": "c1", "database": "media-1", "schema": "main"});
    let product = json!({"state": "ACTIVE", "shard": shard});
    let tenant = json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"media": product}});
    mesh.import(&[tenant]).expect("imported");
    mesh
}

fn listed(mesh: &Mesh, more: &[&str]) -> Vec<Value> {
    let text = mesh.tenon_ok(&[&["audit", "list", "-o", "json"], more].concat()).expect("it lists");
    serde_json::from_str(&text).expect("JSON")
}

/// Waits for a record of what was done; outcomes are written without anybody waiting for them.
fn recorded(mesh: &Mesh, action: &str, what: &str, outcome: &str) -> Value {
    let mut found = Value::Null;
    let is = |it: &Value| it["what"].as_str().is_some_and(|it| it.contains(what)) && it["outcome"] == outcome;
    eventually(SOON, "it is recorded", || {
        found = listed(mesh, &["--action", action]).into_iter().find(is).unwrap_or_default();
        Ok(!found.is_null())
    })
    .unwrap_or_else(|error| panic!("{action} {what} {outcome}: {error}: {:#?}", listed(mesh, &[])));
    found
}

fn verify(mesh: &Mesh, more: &[&str]) -> (Option<i32>, Value) {
    let output: Output = mesh.tenon(&[&["audit", "verify", "-o", "json"], more].concat()).expect("it runs");
    let told = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), told)
}

fn of<'j>(told: &'j Value, process: &str) -> &'j Value {
    let chains = told["chains"].as_array().expect("a list").iter();
    chains.clone().find(|chain| chain["process"] == process).unwrap_or_else(|| panic!("no {process}: {told:#}"))
}

#[test]
fn what_operators_change_and_ask_is_recorded_with_who_and_what_came_of_it() {
    let mesh = mesh();
    mesh.tenon_ok(&["tenants", "suspend", "acme"]).expect("suspended");
    mesh.tenon_ok(&["tenants", "get", "acme"]).expect("found");
    let folder = mesh.scratch().join("viewer");
    let out = folder.to_str().expect("text");
    mesh.tenon_ok(&["identity", "operator", "--name", "vera", "--role", "viewer", "--out", out]).expect("a viewer");
    let vera = |args: &[&str]| {
        let mut command = Command::new(binary("tenon").expect("built"));
        command.args(args).arg("--data").arg(&folder).output().expect("it runs")
    };
    let refused = vera(&["tenants", "unsuspend", "acme"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let missing = mesh.tenon(&["tenants", "suspend", "nosuch"]).expect("it runs");
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    mesh.tenon_ok(&["dashboard"]).expect("a link");
    mesh.tenon_ok(&["identity", "revoke", "--service", "issues", "--reason", "INC-7"]).expect("revoked");

    let suspended = recorded(&mesh, "Tenants/Suspend", "acme", "done");
    assert!(suspended["by"].as_str().is_some_and(|by| by.ends_with("/operator/operator")), "{suspended}");
    assert_eq!((&suspended["details"]["role"], &suspended["service"]), (&json!("admin"), &json!("tcs")));
    let begun = listed(&mesh, &["--action", "Tenants/Suspend", "--service", "tcs"]);
    assert!(begun.iter().any(|it| it["outcome"] == "begun" && it["sequence"] == suspended["of"]), "{begun:#?}");
    recorded(&mesh, "Tenants/Import", "1 tenants", "done");
    recorded(&mesh, "Tenants/Get", "acme", "done");
    recorded(&mesh, "Identity/IssueOperator", "vera as viewer", "done");
    recorded(&mesh, "Identity/Revoke", "service issues: INC-7", "done");
    recorded(&mesh, "Policy/SignIn", "", "done");
    let not_there = recorded(&mesh, "Tenants/Suspend", "nosuch", "refused");
    assert!(not_there["details"]["why"].as_str().is_some_and(|why| why.contains("nosuch")), "{not_there}");
    let tried = recorded(&mesh, "Tenants/Unsuspend", "", "refused");
    assert!(tried["by"].as_str().is_some_and(|by| by.ends_with("/operator/vera")), "{tried}");
    assert_eq!(listed(&mesh, &["--by", "vera"]).len(), 1);
    let denied = vera(&["audit", "list"]);
    assert_eq!(denied.status.code(), Some(1), "a viewer may not: {denied:?}");
    recorded(&mesh, "Audit/List", "action Tenants/Suspend", "done");
    assert_eq!(
        listed(&mesh, &["--since", "1h", "--service", "policy", "--action", "Tenants/Get"]),
        Vec::<Value>::new()
    );
}

#[test]
fn an_export_that_was_changed_is_found_and_a_head_that_was_kept_tells_of_a_chain_made_anew() {
    let mesh = mesh();
    for _ in 0..3 {
        mesh.tenon_ok(&["tenants", "suspend", "acme"]).expect("suspended");
    }
    recorded(&mesh, "Tenants/Suspend", "acme", "done");
    let (code, told) = verify(&mesh, &[]);
    assert_eq!((code, &told["ok"]), (Some(0), &json!(true)), "{told:#}");
    let head = of(&told, "tcs")["head"].as_str().expect("a head").to_owned();
    assert_eq!(verify(&mesh, &["--expect", &head]).0, Some(0));
    let forged = format!("{}{}", &head[..head.len() - 1], if head.ends_with('0') { '1' } else { '0' });
    let (code, told) = verify(&mesh, &["--expect", &forged]);
    assert_eq!(code, Some(1), "{told:#}");
    assert!(of(&told, "tcs")["fault"].as_str().is_some_and(|fault| fault.contains("made anew")), "{told:#}");
    let later = format!("tcs:9999:{}", head.rsplit(':').next().expect("a hash"));
    assert_eq!(verify(&mesh, &["--expect", &later]).0, Some(1), "its end is missing");

    let tcs = mesh.service("tcs").expect("it runs");
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    signal(tcs, Signal::KILL).expect("killed");
    let (code, told) = verify(&mesh, &[]);
    assert_eq!(
        (code, &of(&told, "tcs")["ok"], &of(&told, "policy")["ok"]),
        (Some(1), &Value::Null, &json!(true)),
        "{told:#}"
    );
    signal(mesh.pid(), Signal::CONT).expect("it goes on");
    eventually(SOON, "it is started again", || Ok(verify(&mesh, &[]).0 == Some(0))).expect("started");

    let file = mesh.scratch().join("audit.jsonl");
    let path = file.display().to_string();
    mesh.tenon_ok(&["audit", "export", "--out", &path]).expect("exported");
    assert_eq!(mesh.tenon(&["audit", "export", "--out", &path]).expect("it runs").status.code(), Some(1), "it exists");
    let whole = fs::read_to_string(&file).expect("lines");
    let mut lines: Vec<&str> = whole.lines().collect();
    let first = lines.iter().position(|line| line.contains("\"process\":\"tcs\"")).expect("of the TCS");
    assert_eq!(verify(&mesh, &["--file", &path]).0, Some(0));
    let changed = lines[first + 1].replace("/operator/operator", "/operator/somebody");
    for (how, says) in
        [("changed", "record 2 was changed"), ("removed", "record 2 was removed"), ("swapped", "reordered")]
    {
        lines = whole.lines().collect();
        match how {
            "changed" => lines[first + 1] = &changed,
            "removed" => drop(lines.remove(first + 1)),
            _ => lines.swap(first + 1, first + 2),
        }
        fs::write(&file, lines.join("\n")).expect("written");
        let (code, told) = verify(&mesh, &["--file", &path]);
        assert_eq!(code, Some(1), "{how}");
        assert!(of(&told, "tcs")["fault"].as_str().is_some_and(|fault| fault.contains(says)), "{how}: {told:#}");
    }
    fs::write(&file, "").expect("written");
    let output = mesh.tenon(&["audit", "verify", "--file", &path]).expect("it runs");
    assert!(
        output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("has no records"),
        "{output:?}"
    );
    fs::write(&file, "no record\n").expect("written");
    let output = mesh.tenon(&["audit", "verify", "--file", &path]).expect("it runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("audit.jsonl:1: not JSON"), "{output:?}");
}

type Rows<'t> = redb::Table<'t, &'static str, (u64, &'static [u8])>;
const ROWS: TableDefinition<'static, &'static str, (u64, &'static [u8])> = TableDefinition::new("audit_tcs/records");

fn key(sequence: u64) -> String {
    format!("record/{sequence:020}")
}

/// Ends the TCS, does something to its audit record, and has it started again.
fn tampered(mesh: &Mesh, with: impl FnOnce(&mut Rows<'_>)) {
    let pid = mesh.service("tcs").expect("it runs");
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    signal(pid, Signal::KILL).expect("killed");
    let file = mesh.data_dir().join("tcs/tcs.redb.audit");
    eventually(SOON, "the file is nobody's", || Ok(Database::open(&file).is_ok())).expect("free");
    edit(&file, with);
    signal(mesh.pid(), Signal::CONT).expect("it goes on");
    eventually(SOON, "it is started again", || {
        Ok(mesh.service("tcs").is_ok_and(|again| again != pid)
            && mesh.tenon(&["tenants", "get", "acme"])?.status.success())
    })
    .expect("started");
}

fn edit(file: &Path, with: impl FnOnce(&mut Rows<'_>)) {
    let database = Database::open(file).expect("the store");
    let transaction = database.begin_write().expect("a transaction");
    with(&mut transaction.open_table(ROWS).expect("the table"));
    transaction.commit().expect("committed");
}

fn value(table: &Rows<'_>, sequence: u64) -> Vec<u8> {
    table.get(key(sequence).as_str()).expect("read").expect("it is there").value().1.to_vec()
}

#[test]
fn what_somebody_did_to_the_store_is_found_and_the_chain_goes_on() {
    let mesh = mesh();
    for _ in 0..3 {
        mesh.tenon_ok(&["tenants", "suspend", "acme"]).expect("suspended");
    }
    recorded(&mesh, "Tenants/Suspend", "acme", "done");
    let fault = || of(&verify(&mesh, &[]).1, "tcs")["fault"].as_str().unwrap_or_default().to_owned();
    assert_eq!((verify(&mesh, &[]).0, fault().as_str()), (Some(0), ""));
    let (mut three, mut five) = (Vec::new(), Vec::new());
    tampered(&mesh, |table| {
        (three, five) = (value(table, 3), value(table, 5));
        let mut changed = three.clone();
        let at = changed.windows(8).position(|it| it == b"operator").expect("who it was");
        changed[at] = b'x';
        table.insert(key(3).as_str(), (3, &changed[..])).expect("written");
    });
    assert_eq!((verify(&mesh, &[]).0, fault().contains("record 3 was changed")), (Some(1), true), "{}", fault());
    tampered(&mesh, |table| {
        table.insert(key(3).as_str(), (3, &five[..])).expect("written");
        table.insert(key(5).as_str(), (5, &three[..])).expect("written");
    });
    assert!(fault().contains("reordered: record 5 stands where record 3"), "{}", fault());
    tampered(&mesh, |table| {
        table.insert(key(5).as_str(), (5, &five[..])).expect("written");
        table.remove(key(3).as_str()).expect("removed");
    });
    assert!(fault().contains("record 3 was removed"), "{}", fault());
    // Put right it is whole again, with all that was recorded meanwhile.
    tampered(&mesh, |table| drop(table.insert(key(3).as_str(), (3, &three[..])).expect("written")));
    assert_eq!((verify(&mesh, &[]).0, fault().as_str()), (Some(0), ""));
    let cut = |table: &mut Rows<'_>| {
        let last = table.iter().expect("rows").next_back().expect("a row").expect("read").0.value().to_owned();
        table.remove(last.as_str()).expect("removed");
    };
    tampered(&mesh, cut);
    assert_eq!(verify(&mesh, &[]).0, Some(1), "{}", fault());
}

#[test]
fn every_command_of_the_document_does_what_it_says() -> anyhow::Result<()> {
    let mesh = mesh();
    mesh.tenon_ok(&["tenants", "suspend", "acme"])?;
    recorded(&mesh, "Tenants/Suspend", "acme", "done");
    let commands = Place::of(&mesh, &[])?.run("docs/audit.md")?;
    assert_eq!(commands, 7);
    Ok(())
}
