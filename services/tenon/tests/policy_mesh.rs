//! The commands of `tenon policy` that talk to a running mesh, and `tenon explain`, as a shell sees them.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "policy_mesh/fake.rs"]
mod fake;
#[path = "policy_mesh/signed.rs"]
mod signed;

use std::{io::Read as _, process::Stdio};

use fake::{Mesh, POLICY, positions, status};
use serde_json::{Value, json};
use tenon_proto::policy::v1::{
    ApplyResponse, CanaryStatus, Conflict, ExplainResponse, Flow, FlowTotal, FlowsResponse, HistoryEntry,
    HistoryResponse, PolicyRevision, RecentDecision, RolloutPlan, RolloutResponse, RolloutStatus, flow::Decision,
    history_entry::Action, rollout_status::State,
};

fn revision(revision: u64) -> Option<PolicyRevision> {
    Some(PolicyRevision { epoch: 7, revision })
}

fn applied(revision: u64) -> ApplyResponse {
    ApplyResponse { epoch: 7, revision, changes: 2, positions: positions(revision, 3), ..Default::default() }
}

fn bobs(revision_: u64) -> HistoryEntry {
    HistoryEntry {
        revision: revision(revision_),
        at_unix_seconds: 1_700_000_000,
        by: "operator bob".into(),
        action: Action::Applied.into(),
        changes: vec!["service media: rules read changed".into(), "service wiki added".into()],
        note: "night shift".into(),
        kept: true,
        digest: vec![1, 171].into(),
    }
}

#[test]
fn apply_names_what_it_was_made_for_and_waits_until_every_sidecar_has_it() {
    let mesh = Mesh::new();
    let folder = mesh.folder(POLICY);
    mesh.script(|script| {
        script.apply = applied(11);
        let looks = [[("m1", 10), ("m2", 10)], [("m1", 11), ("m2", 10)], [("m1", 11), ("m2", 11)]];
        script.statuses = looks.map(|look| status(&look.map(|(name, at)| (name, at, "")))).into();
    });
    let (code, json) = mesh.json(&["policy", "apply", "-f", &folder, "-m", "wiki reads"]);
    let sidecars = json!({"acknowledged": 2, "total": 2, "refused": [], "late": []});
    assert_eq!((code, &json), (0, &json!({"epoch": 7, "revision": 11, "changes": 2, "sidecars": sidecars})));
    let request = mesh.script(|script| script.applied.remove(0));
    assert_eq!((request.expected, request.note.as_str(), request.plan), (revision(10), "wiki reads", None));

    let (code, out, _) = mesh.run(&["policy", "apply", "-f", &folder]);
    assert_eq!((code, out.as_str()), (0, "applied: 2 changes, revision 7.11\nacknowledged by 2 of 2 sidecars\n"));

    mesh.script(|script| script.statuses = [status(&[("m1", 0, "")])].into());
    let (code, json) = mesh.json(&["policy", "apply", "-f", &folder, "--no-wait", "--expect", "9"]);
    assert_eq!((code, &json), (0, &json!({"epoch": 7, "revision": 11, "changes": 2})));
    assert_eq!(mesh.script(|script| script.applied.pop()).unwrap().expected, revision(9));
}

#[test]
fn apply_that_was_overtaken_says_by_whom_and_what_and_changes_nothing() {
    let mesh = Mesh::new();
    let folder = mesh.folder(POLICY);
    let conflict = Conflict { in_force: revision(12), since: vec![bobs(12)] };
    mesh.script(|script| script.apply = ApplyResponse { conflict: Some(conflict), ..Default::default() });
    let (code, out, err) = mesh.run(&["policy", "apply", "-f", &folder]);
    assert_eq!((code, out.as_str()), (1, ""));
    let told = "from 7.10 to 7.12\n7.12 2023-11-14T22:13:20Z operator bob applied: service media: rules read changed and 1 more";
    assert!(err.contains(told) && err.contains("--expect 7.12"), "{err}");
    let (code, json) = mesh.json(&["policy", "apply", "-f", &folder]);
    assert_eq!((code, &json["conflict"]["inForce"]["revision"]), (1, &12.into()));
    assert_eq!(json["conflict"]["since"][0]["by"], "operator bob");
}

#[test]
fn rollback_that_was_overtaken_says_that_nothing_was_rolled_back() {
    let mesh = Mesh::new();
    let conflict = Conflict { in_force: revision(12), since: vec![bobs(12)] };
    mesh.script(|script| script.apply = ApplyResponse { conflict: Some(conflict), ..Default::default() });
    let (code, out, err) = mesh.run(&["policy", "rollback", "9"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("the policy was not rolled back to 7.9: somebody else changed it"), "{err}");
    assert!(err.contains("and roll back again: `tenon policy rollback 7.9 --expect 7.12`"), "{err}");
    assert!(!err.contains("applied: somebody") && !err.contains("apply again"), "{err}");
}

#[test]
fn who_refuses_a_policy_and_who_is_late_is_named_and_it_is_said_to_be_applied() {
    let mesh = Mesh::new();
    let folder = mesh.folder(POLICY);
    mesh.script(|script| {
        script.apply = applied(11);
        script.statuses = [status(&[("m1", 11, ""), ("m2", 10, "7.11: no memory"), ("m3", 10, "")])].into();
    });
    let args = ["policy", "apply", "-f", &folder, "--wait", "1s"];
    let (code, json) = mesh.json(&args);
    let refused = json!([{"instance": "m2", "error": "allowlist 7.11: no memory"}]);
    let sidecars = json!({"acknowledged": 1, "total": 3, "refused": refused, "late": ["m3"]});
    assert_eq!((code, &json["sidecars"]), (1, &sidecars));
    let (code, _, err) = mesh.run(&args);
    let told = "the policy is applied, revision 7.11, but 1 of 3 sidecars refused it\nm2 refused it: allowlist 7.11: no memory\nm3 has not";
    assert!(code == 1 && err.contains(told), "{err}");

    mesh.script(|script| script.statuses = [status(&[("m1", 11, ""), ("m3", 10, "")])].into());
    let (code, out, err) = mesh.run(&args);
    let told =
        "the policy is applied, revision 7.11, but 1 of 2 sidecars have not acknowledged it after 1 s\nm3 has not";
    assert!(code == 1 && err.contains(told) && out.contains("acknowledged by 1 of 2 sidecars"), "{out}{err}");
}

fn rollout(state: State, held: u32) -> RolloutResponse {
    let canary = |instance: &str| CanaryStatus {
        instance: instance.into(),
        service: "media".into(),
        acknowledged: true,
        nack: String::new(),
    };
    let rollout = RolloutStatus {
        revision: revision(11),
        state: state.into(),
        plan: Some(RolloutPlan { canary_percent: 50.0, hold_seconds: 60, services: vec!["media".into()] }),
        by: "operator ann".into(),
        held_seconds: held,
        canaries: vec![canary("m1")],
        touched: 2,
        ..Default::default()
    };
    RolloutResponse { rollout: Some(rollout) }
}

fn halted() -> RolloutResponse {
    let mut halted = rollout(State::Halted, 3);
    let one = halted.rollout.as_mut().unwrap();
    one.reason = "canaries refuse calls that passed before".into();
    one.refused = vec![flow("wiki", "/media.v1.Media/Get", Decision::Refused, "PATH_NOT_ALLOWED", 4)];
    halted
}

fn flow(caller: &str, path: &str, decision: Decision, reason: &str, count: u64) -> Flow {
    let (caller, path, reason) = (caller.into(), path.into(), reason.into());
    Flow { caller, service: "media".into(), path, decision: decision.into(), reason, count }
}

#[test]
fn a_rollout_is_followed_until_it_is_everybodys() {
    let mesh = Mesh::new();
    let folder = mesh.folder(POLICY);
    mesh.script(|script| {
        script.apply = applied(11);
        let earlier =
            RolloutResponse { rollout: Some(RolloutStatus { revision: revision(4), ..halted().rollout.unwrap() }) };
        script.rollouts = [earlier, rollout(State::Running, 1), rollout(State::Completed, 60)].into();
        script.statuses = [status(&[("m1", 11, ""), ("m2", 11, "")])].into();
    });
    let args = ["policy", "apply", "-f", &folder, "--canary", "50%", "--hold", "1m", "--services", "media"];
    let (code, json) = mesh.json(&args);
    assert_eq!(
        (code, &json["rollout"]["state"], &json["sidecars"]["acknowledged"]),
        (0, &"COMPLETED".into(), &2.into())
    );
    let plan = mesh.script(|script| script.applied.remove(0)).plan.unwrap();
    assert_eq!((plan.canary_percent, plan.hold_seconds, plan.services), (50.0, 60, vec!["media".to_owned()]));
}

#[test]
fn a_rollout_that_is_halted_is_a_failure_that_names_the_calls_that_it_refused() {
    let mesh = Mesh::new();
    let folder = mesh.folder(POLICY);
    mesh.script(|script| {
        script.apply = applied(11);
        script.rollouts = [halted()].into();
    });
    let args = ["policy", "apply", "-f", &folder, "--canary", "50", "--hold", "1m"];
    let (code, out, err) = mesh.run(&args);
    let refused = "wiki -> media /media.v1.Media/Get: REFUSED PATH_NOT_ALLOWED 4 times";
    assert!(code == 1 && err.contains("was halted") && err.contains(refused), "{err}");
    assert!(out.contains("rollout begun: revision 7.11"), "{out}");
    let (code, json) = mesh.json(&args);
    assert_eq!((code, &json["rollout"]["refused"][0]["count"]), (1, &4.into()));

    let (code, json) = mesh.json(&["policy", "rollout"]);
    assert_eq!((code, &json["state"], &json["canaries"][0]["instance"]), (1, &"HALTED".into(), &"m1".into()));
    let (code, out, _) = mesh.run(&["policy", "rollout"]);
    assert!(code == 1 && out.contains(refused) && out.contains("m1"), "{out}");
}

#[test]
fn a_rollout_goes_on_when_nobody_follows_it_any_more() {
    let mesh = Mesh::new();
    let folder = mesh.folder(POLICY);
    mesh.script(|script| {
        script.apply = applied(11);
        script.rollouts = [rollout(State::Running, 1)].into();
    });
    let args = ["policy", "apply", "-f", &folder, "--canary", "50", "--hold", "1m"];
    let mut child = mesh.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Once this is printed the interrupt is listened for, or will be with the next thing that it does.
    let (mut out, mut byte) = (Vec::new(), [0]);
    while !out.ends_with(b"\n") {
        assert_eq!(child.stdout.as_mut().unwrap().read(&mut byte).unwrap(), 1);
        out.extend(byte);
    }
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let pid = rustix::process::Pid::from_child(&child);
    let listens = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap().to_owned();
        u64::from_str_radix(&caught, 16).unwrap() & 0b10 != 0
    };
    while !listens() {
        assert!(std::time::Instant::now() < until, "it never listens for an interrupt");
        std::thread::yield_now();
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (code, _, err) = fake::outcome(&child.wait_with_output().unwrap());
    assert!(code == 1 && err.contains("no longer followed: the rollout of revision 7.11 goes on by itself"), "{err}");
    assert_eq!(mesh.script(|script| script.ended.len()), 0);
}

#[test]
fn a_rollout_is_ended_by_who_says_so() {
    let mesh = Mesh::new();
    assert_eq!(mesh.run(&["policy", "rollout"]), (0, "there was no rollout yet\n".into(), String::new()));
    assert_eq!(mesh.json(&["policy", "rollout"]), (0, Value::Null));
    mesh.script(|script| script.rollouts = [rollout(State::Completed, 1)].into());
    assert_eq!(mesh.run(&["policy", "rollout", "--complete", "-m", "fine"]).0, 0);
    assert_eq!(mesh.run(&["policy", "rollout", "--abort"]).0, 0);
    let ended: Vec<_> =
        mesh.script(|script| script.ended.drain(..).map(|ended| (ended.complete, ended.note)).collect());
    assert_eq!(ended, [(true, "fine".to_owned()), (false, String::new())]);
}

#[test]
fn status_says_what_each_sidecar_has() {
    let mesh = Mesh::new();
    mesh.script(|script| {
        script.rollouts = [rollout(State::Running, 3)].into();
        script.statuses = [status(&[("m1", 10, ""), ("m2", 9, "")])].into();
    });
    let (code, json) = mesh.json(&["policy", "status"]);
    assert_eq!((code, &json["revision"], &json["services"][0]["service"]), (0, &10.into(), &"media".into()));
    let sidecar = |instance: &str, revision: u64, state: &str, error: Value| json!({"instance": instance, "service": "media", "epoch": 7, "revision": revision, "state": state, "error": error});
    assert_eq!(json["sidecars"], json!([sidecar("m1", 10, "ok", Value::Null), sidecar("m2", 9, "late", Value::Null)]));
    assert_eq!((&json["rollout"]["state"], &json["rollout"]["heldSeconds"]), (&"RUNNING".into(), &3.into()));

    mesh.script(|script| {
        script.rollouts = [rollout(State::Completed, 3)].into();
        script.statuses = [status(&[("m1", 9, "7.10: no memory")])].into();
    });
    let (code, json) = mesh.json(&["policy", "status"]);
    assert_eq!((code, &json["sidecars"][0]), (1, &sidecar("m1", 9, "refused", "allowlist 7.10: no memory".into())));
    assert_eq!(json["rollout"], Value::Null);
    let (code, out, _) = mesh.run(&["policy", "status"]);
    assert!(
        code == 1 && out.contains("m1        media    7.9              refused: allowlist 7.10: no memory"),
        "{out}"
    );
}

#[test]
fn the_history_is_a_line_a_change_and_whole_as_json() {
    let mesh = Mesh::new();
    mesh.script(|script| {
        script.history = HistoryResponse { entries: vec![bobs(12), HistoryEntry { kept: false, ..bobs(11) }] }
    });
    let (code, out, _) = mesh.run(&["policy", "history"]);
    let lines: Vec<_> = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let line = "2023-11-14T22:13:20Z operator bob applied service media: rules read changed and 1 more night shift";
    assert_eq!((code, lines.len()), (0, 3), "{out}");
    assert_eq!(lines[1..], [format!("7.12 {line}"), format!("7.11 (not kept) {line}")]);
    let (_, json) = mesh.json(&["policy", "history", "--limit", "1"]);
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(
        (&json[0]["action"], &json[0]["changes"][1], &json[0]["digest"]),
        (&"APPLIED".into(), &"service wiki added".into(), &"01ab".into())
    );
}

#[test]
fn rollback_takes_a_revision_of_this_epoch_or_a_whole_one_and_waits() {
    let mesh = Mesh::new();
    mesh.script(|script| {
        script.apply = applied(11);
        script.statuses = [status(&[("m1", 11, "")])].into();
    });
    let (code, out, _) = mesh.run(&["policy", "rollback", "4", "-m", "back"]);
    assert_eq!(
        (code, out.as_str()),
        (0, "rolled back to 7.4: 2 changes, revision 7.11\nacknowledged by 1 of 1 sidecars\n")
    );
    assert_eq!(mesh.run(&["policy", "rollback", "6.3", "--no-wait"]).0, 0);
    let asked = mesh.script(|script| std::mem::take(&mut script.rolled_back));
    assert_eq!((asked[0].to, asked[0].expected, asked[0].note.as_str()), (revision(4), revision(10), "back"));
    assert_eq!(asked[1].to, Some(PolicyRevision { epoch: 6, revision: 3 }));
}

fn record() -> FlowsResponse {
    let total =
        |flow| FlowTotal { flow: Some(flow), first_unix_seconds: 1_700_000_000, last_unix_seconds: 1_700_003_600 };
    FlowsResponse {
        flows: vec![
            total(flow("wiki", "/media.v1.Media/Get", Decision::Allowed, "", 7)),
            total(flow("wiki", "/media.v1.Media/Erase", Decision::Refused, "PATH_NOT_ALLOWED", 2)),
        ],
        from_unix_seconds: 1_700_000_000,
        until_unix_seconds: 1_700_000_000 + 12 * 86_400 + 3 * 3_600,
        silent_hours: 2,
    }
}

#[test]
fn flows_are_shown_with_how_long_the_record_is_and_can_be_read_again() {
    let mesh = Mesh::new();
    mesh.script(|script| script.flows = record());
    let (code, out, _) = mesh.run(&["policy", "flows", "--service", "media"]);
    assert!(code == 0 && out.ends_with("on 12 days 3 hours of record, 2 hours silent\n"), "{out}");
    let (_, json) = mesh.json(&["policy", "flows"]);
    let first = json!({
        "caller": "wiki", "service": "media", "path": "/media.v1.Media/Get", "decision": "ALLOWED", "reason": "", "count": 7,
        "first": "2023-11-14T22:13:20Z", "last": "2023-11-14T23:13:20Z",
    });
    assert_eq!(
        (&json["flows"][0], &json["silentHours"], &json["from"]),
        (&first, &2.into(), &"2023-11-14T22:13:20Z".into())
    );
    let file = mesh.write("flows.json", &json.to_string());
    mesh.script(|script| script.flows = FlowsResponse::default());
    let (code, out, _) = mesh.run(&["policy", "suggest", "--flows", &file]);
    assert!(code == 0 && out.contains("- /media.v1.Media/Get\n") && !out.contains("Erase"), "{out}");
}

#[test]
fn diff_exits_1_when_a_call_that_passed_would_be_refused_and_names_it() {
    let mesh = Mesh::new();
    mesh.script(|script| {
        script.flows = record();
        script.statuses = [status(&[("m1", 10, ""), ("m2", 10, "")])].into();
    });
    let folder = mesh.folder(&POLICY.replace("/media.v1.Media/Get, ", ""));
    let (code, json) = mesh.json(&["policy", "diff", "-f", &folder]);
    let refused = &json["newlyRefused"];
    assert_eq!((code, refused.as_array().unwrap().len(), &refused[0]["path"]), (1, 1, &"/media.v1.Media/Get".into()));
    assert_eq!(json["touched"], json!([{"service": "media", "sidecars": 2}]));
    let (code, out, _) = mesh.run(&["policy", "diff", "-f", &folder]);
    assert!(
        code == 1 && out.contains("touches media (2 sidecars)\non 12 days 3 hours of record, 2 hours silent"),
        "{out}"
    );

    let folder =
        mesh.folder(&POLICY.replace("/media.v1.Media/List]", "/media.v1.Media/Erase]\n      proof: transaction"));
    let (code, json) = mesh.json(&["policy", "diff", "-f", &folder]);
    assert_eq!((code, &json["newlyRefused"]), (0, &json!([])));
    assert_eq!(json["mayBeRefused"][0]["conditions"], json!(["proof: transaction"]));
    assert_eq!(json["newlyAllowed"][0]["path"], "/media.v1.Media/Erase");
}

#[test]
fn a_suggestion_goes_to_a_file_and_nothing_is_suggested_from_nothing() {
    let mesh = Mesh::new();
    let (code, _, err) = mesh.run(&["policy", "suggest"]);
    assert!(code == 1 && err.contains("no record: nothing was ever recorded"), "{err}");
    let (code, _, err) = mesh.run(&["policy", "suggest", "--service", "meda"]);
    assert!(code == 1 && err.contains("there is no service meda"), "{err}");
    mesh.script(|script| script.flows = record());
    let file = mesh.dir.path().join("suggested.yaml");
    let (code, out, _) = mesh.run(&["policy", "suggest", "--out", file.to_str().unwrap()]);
    assert!(code == 0 && out.contains("1 rules for 1 services, from 12 days 3 hours of record"), "{out}");
    let suggested = std::fs::read_to_string(&file).unwrap();
    let at = POLICY.find("---\napiVersion: tenon.dev/v1\nkind: Allowlist").unwrap();
    let folder = mesh.folder(&format!("{}{suggested}", &POLICY[..at]));
    let (code, json) = mesh.json(&["policy", "diff", "-f", &folder]);
    assert_eq!((code, &json["newlyRefused"], &json["mayBeRefused"]), (0, &json!([]), &json!([])));
}

#[test]
fn a_refused_request_is_explained_with_the_smallest_change_that_would_allow_it() {
    let mesh = Mesh::new();
    let decision = RecentDecision {
        request_id: "r1".into(),
        at_unix_ms: 1_700_000_000_000,
        instance: "m1".into(),
        direction: "inbound".into(),
        caller: "wiki".into(),
        service: "media".into(),
        path: "/media.v1.Media/Put".into(),
        tenant: "acme".into(),
        decision: Decision::Refused.into(),
        reason: "PATH_NOT_ALLOWED".into(),
        message: "no rule of media allows it".into(),
        nearest: "rule read of media (mesh.yaml:22) missed by method: it allows /media.v1.Media/Get".into(),
        policy_revision: "7.10".into(),
        ..Default::default()
    };
    mesh.script(|script| script.explain = ExplainResponse { decisions: vec![decision], asked: 2, answered: 2 });
    let (code, json) = mesh.json(&["explain", "r1"]);
    assert_eq!((code, &json["requestId"], &json["reason"]), (0, &"r1".into(), &"PATH_NOT_ALLOWED".into()));
    assert_eq!((&json["message"], &json["policyRevision"]), (&"no rule of media allows it".into(), &"7.10".into()));
    assert!(json["nearest"].as_str().unwrap().contains("missed by method"), "{json}");
    assert_eq!(json["proposal"][0]["change"], "add");
    mesh.script(|script| script.explain.decisions[0].decision = Decision::Audited.into());
    let (code, out, _) = mesh.run(&["explain", "r1"]);
    assert!(code == 0 && out.contains("to allow it when enforced: add /media.v1.Media/Put to `paths`"), "{out}");
    mesh.script(|script| script.explain.decisions[0].decision = Decision::Refused.into());
    let (code, out, _) = mesh.run(&["explain", "r1"]);
    assert!(
        code == 0 && out.contains("to allow it: add /media.v1.Media/Put to `paths` of rule read of allowlist media"),
        "{out}"
    );

    mesh.script(|script| script.explain = ExplainResponse { decisions: Vec::new(), asked: 2, answered: 1 });
    let (code, _, err) = mesh.run(&["explain", "r2"]);
    assert!(
        code == 1 && err.contains("no sidecar remembers request r2: 2 were asked, 1 of them did not answer"),
        "{err}"
    );
    let (code, json) = mesh.json(&["explain", "r2"]);
    assert_eq!((code, &json["reason"], &json["asked"]), (1, &Value::Null, &2.into()));
}
