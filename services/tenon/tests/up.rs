//! `tenon up` as a process: what it starts, starts again, and leaves behind. The control plane is real; the sidecar is
//! a program that never serves, so the mesh never becomes ready (the integration crate runs whole meshes).

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "up/deaf_line.rs"]
mod deaf_line;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use deaf_line::DeafLine;

const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with both binaries and a policy folder, everything below it.
struct Place {
    dir: tempfile::TempDir,
}

/// A `tenon up` that runs.
struct Up {
    child: Child,
    lines: Receiver<String>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { dir };
        let built = Path::new(env!("CARGO_BIN_EXE_tenon"));
        if fs::hard_link(built, place.path("tenon")).is_err() {
            fs::copy(built, place.path("tenon")).unwrap();
        }
        let sidecar = place.path("tenon-sidecar");
        fs::write(&sidecar, format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", place.path("sidecar.pid").display()))
            .unwrap();
        fs::set_permissions(&sidecar, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(place.path("mesh")).unwrap();
        place.write_mesh("demo.example");
        place
    }

    fn write_mesh(&self, trust_domain: &str) {
        // All held at once, so that they differ.
        let free: Vec<_> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let address: Vec<_> = free.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let text = format!(
            "apiVersion: tenon.dev/v1
kind: Mesh
metadata: {{name: demo}}
spec: {{trustDomain: {trust_domain}, regions: [us-east]}}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {{name: media}}
spec: {{}}
---
apiVersion: tenon.dev/v1
kind: LocalMesh
metadata: {{name: local}}
spec:
  controlPlane: {{identity: {}, keyRepository: {}, tcs: {}, policy: {}, dashboard: {}}}
  instances:
    - {{service: media, region: us-east, outbound: {}, inbound: {}, admin: {}}}
",
            address[0], address[6], address[1], address[2], address[7], address[3], address[4], address[5]
        );
        fs::write(self.path("mesh/mesh.yaml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.path("tenon"));
        command.arg("up").arg("-f").arg(self.path("mesh")).arg("--data").arg(self.path("data"));
        for name in ["TENON_STORE", "TENON_CA_PASSPHRASE", "TENON_RETENTION", "TENON_RETAINED_BYTES"] {
            command.env_remove(name);
        }
        command
    }

    fn up(&self) -> Up {
        self.up_with(&[])
    }

    fn up_with(&self, more: &[&str]) -> Up {
        let mut child = self.command().args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (said, lines) = mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let said = said.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = said.send(line);
                }
            });
        }
        Up { child, lines }
    }

    /// Processes that have to do with this folder, but are no zombies.
    fn processes(&self) -> Vec<String> {
        let needle = self.dir.path().to_str().unwrap();
        let sidecar = fs::read_to_string(self.path("sidecar.pid")).unwrap_or_default();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(needle) || (pid == sidecar.trim() && line.starts_with("sleep")) {
                found.push(format!("{pid} {line}"));
            }
        }
        found
    }

    fn wait_until_nothing_runs(&self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let running = self.processes();
            if running.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "still there: {running:#?}");
            std::thread::yield_now();
        }
    }

    fn wait_for_the_sidecar(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.processes().iter().any(|line| line.contains("sleep 1000")) {
            assert!(Instant::now() < until, "no sidecar was started");
            std::thread::yield_now();
        }
    }
}

impl Up {
    /// Waits until it says a line with this in it.
    fn says(&self, what: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => all.push(line),
                Err(_) => panic!("it never said {what:?}, but: {all:#?}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

#[test]
fn a_child_that_is_killed_is_started_again_and_sigterm_ends_all_with_exit_code_0() {
    let place = Place::new();
    let mut up = place.up();
    up.says("TCS serves on");
    place.wait_for_the_sidecar();

    let tcs = place.processes().into_iter().find(|line| line.contains("tcs serve")).unwrap();
    let tcs: i32 = tcs.split(' ').next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(tcs).unwrap(), Signal::KILL).unwrap();
    let said = up.says("tcs ended with");
    assert!(said.contains("SIGKILL") && said.contains("starting it again in 100 ms"), "{said}");

    let second = place.command().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        said.contains(&format!("another `tenon up` (process {}) runs on the data folder", up.child.id())),
        "{said}"
    );

    up.signal(Signal::TERM);
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
    assert_eq!(place.processes(), Vec::<String>::new(), "nothing is left when it has ended");
}

#[test]
fn interrupt_and_hangup_end_all_too() {
    for signal in [Signal::INT, Signal::HUP] {
        let place = Place::new();
        let mut up = place.up();
        up.says("identity service serves on");
        up.signal(signal);
        assert_eq!(up.child.wait().unwrap().code(), Some(0));
        assert_eq!(place.processes(), Vec::<String>::new());
    }
}

#[test]
fn signals_that_come_together_are_one_and_a_later_one_insists() {
    let place = Place::new();
    // Says when it is told to end, and does not.
    let script = "trap 'echo told' TERM\necho up\nwhile :; do sleep 0.1; done\n";
    fs::write(place.path("tenon-sidecar"), format!("#!/bin/sh\n{script}")).unwrap();
    let mut up = place.up();
    up.says("media-us-east | up");
    up.signal(Signal::INT);
    up.says("SIGINT: ending");
    let first = Instant::now();
    up.signal(Signal::TERM);
    up.says("media-us-east | told");
    // Asked again and again, as from an impatient terminal: the first second passes, the next one counts.
    let mut said = false;
    while !said {
        up.signal(Signal::TERM);
        said = up.lines.recv_timeout(Duration::from_millis(50)).is_ok_and(|line| line.contains("again: killing"));
        assert!(first.elapsed() < Duration::from_secs(7), "it must not wait for the grace to end");
    }
    assert!(first.elapsed() >= Duration::from_millis(900), "{:?}", first.elapsed());
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
    place.wait_until_nothing_runs();
}

#[test]
fn a_killed_up_leaves_no_process_and_the_next_one_starts_over_it_with_the_same_ca() {
    let place = Place::new();
    let mut up = place.up();
    up.says("TCS serves on");
    place.wait_for_the_sidecar();
    let root = fs::read(place.path("data/ca/root.pem")).unwrap();
    up.signal(Signal::KILL);
    assert_eq!(up.child.wait().unwrap().signal(), Some(9));

    let mut again = place.up();
    again.says("TCS serves on");
    assert_eq!(fs::read(place.path("data/ca/root.pem")).unwrap(), root);
    again.signal(Signal::TERM);
    assert_eq!(again.child.wait().unwrap().code(), Some(0));
    place.wait_until_nothing_runs();
}

#[test]
fn what_an_app_of_a_killed_up_had_started_is_killed_by_the_next_one() {
    let place = Place::new();
    let pid = place.path("grandchild.pid");
    let app = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let script = format!("sleep 1000 & echo $! > {}.new; mv {0}.new {0}; wait", pid.display());
    let text = fs::read_to_string(place.path("mesh/mesh.yaml")).unwrap();
    let instance = format!("region: us-east, app: '{app}', command: [sh, -c, '{script}'], ");
    fs::write(place.path("mesh/mesh.yaml"), text.replace("region: us-east, ", &instance)).unwrap();
    let mut up = place.up();
    up.says("started media-us-east-app");
    let until = Instant::now() + PATIENCE;
    while !pid.exists() {
        assert!(Instant::now() < until, "the app was not started");
        std::thread::yield_now();
    }
    let line = PathBuf::from(format!("/proc/{}/cmdline", fs::read_to_string(&pid).unwrap().trim()));
    let runs = || fs::read(&line).is_ok_and(|line| line.starts_with(b"sleep"));
    // Until then it is the shell's copy of itself.
    while !runs() {
        assert!(Instant::now() < until, "it does not run");
        std::thread::yield_now();
    }
    up.signal(Signal::KILL);
    up.child.wait().unwrap();
    assert!(runs(), "the kernel does not end it");

    let mut again = place.up();
    again.says("killed 1 processes that apps had left");
    let until = Instant::now() + PATIENCE;
    while runs() {
        assert!(Instant::now() < until, "it still runs");
        std::thread::yield_now();
    }
    again.signal(Signal::TERM);
    assert_eq!(again.child.wait().unwrap().code(), Some(0));
    place.wait_until_nothing_runs();
}

#[test]
fn a_taken_port_is_named_with_its_field_and_nothing_is_started() {
    let place = Place::new();
    let text = fs::read_to_string(place.path("mesh/mesh.yaml")).unwrap();
    let policy = text.split("policy: ").nth(1).unwrap().split(',').next().unwrap();
    let _taken = TcpListener::bind(policy).unwrap();
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("is taken: spec.controlPlane.policy is {policy}")), "{said}");
    assert!(!place.path("data/identity.log").exists());
}

#[test]
fn a_data_folder_of_another_mesh_is_refused() {
    let place = Place::new();
    let mut up = place.up();
    up.says("identity service serves on");
    up.signal(Signal::TERM);
    up.child.wait().unwrap();
    place.write_mesh("other.example");
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("its trust domain is demo.example, and the policy folder says other.example"), "{said}");
}

#[test]
fn a_control_plane_that_cannot_start_is_given_up_with_its_own_words() {
    let place = Place::new();
    // A folder where the store's file should be.
    fs::create_dir_all(place.path("data/tcs/tcs.redb")).unwrap();
    fs::write(place.path("data/tcs.log"), "of an earlier run\n").unwrap();
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("tcs does not start: it ended with exit status: 1, 4 times in a row"), "{said}");
    assert!(said.contains("tcs.redb") && said.contains("tcs.log"), "{said}");
    assert!(!said.contains("of an earlier run"), "{said}");
    assert_eq!(place.processes(), Vec::<String>::new());
}

/// A command of the operator against the running mesh, with its JSON.
fn operator(place: &Place, args: &[&str]) -> (i32, serde_json::Value, String) {
    let output = Command::new(place.path("tenon")).args(args).arg("--data").arg(place.path("data")).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), json, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn commands_of_the_operator_answer_from_the_running_control_plane() {
    let place = Place::new();
    let mut up = place.up();
    up.says("TCS serves on");
    let file = place.path("tenants.jsonl");
    let import = |text: &str| {
        fs::write(&file, text).unwrap();
        operator(&place, &["tenants", "import", file.to_str().unwrap(), "-o", "json"])
    };

    let acme = r#"{"tenantId":"acme","status":"ACTIVE","region":"us-east","hosts":["acme.example"]}"#;
    let (code, json, said) = import(&format!("{acme}\n{}\n", acme.replace("acme", "globex")));
    assert_eq!((code, &json["tenants"]), (0, &2.into()), "{said}");
    let (code, _, said) = import(&format!("\n{}\n", acme.replace("\"acme\"", "\"other\"")));
    assert_eq!(code, 1);
    assert!(said.contains(&format!("{}:2:1: ", file.display())) && said.contains("nothing was applied"), "{said}");

    let (code, json, _) = operator(&place, &["tenants", "get", "--host", "acme.example", "-o", "json"]);
    assert_eq!((code, &json["tenantId"], &json["status"]), (0, &"acme".into(), &"ACTIVE".into()));
    let (_, before, _) = operator(&place, &["tenants", "suspend", "acme", "-o", "json"]);
    let (code, after, _) = operator(&place, &["tenants", "unsuspend", "acme", "-o", "json"]);
    assert_eq!(code, 0);
    assert!(after["revision"].as_u64().unwrap() > before["revision"].as_u64().unwrap());
    let (_, list, _) = operator(&place, &["tenants", "list", "-o", "json"]);
    assert_eq!(
        list.as_array().unwrap().iter().map(|tenant| &tenant["tenantId"]).collect::<Vec<_>>(),
        ["acme", "globex"]
    );
    assert_eq!(operator(&place, &["tenants", "delete", "globex"]).0, 0);
    let (code, _, said) = operator(&place, &["tenants", "delete", "globex"]);
    assert_eq!(code, 1);
    assert!(said.contains("there is no tenant named globex") && said.contains("tenon tenants list"), "{said}");

    let (code, json, said) = operator(&place, &["policy", "status", "-o", "json"]);
    assert_eq!((code, &json["mesh"]), (0, &"demo".into()), "{said}");
    assert_eq!((&json["services"][0]["service"], &json["services"][0]["instances"]), (&"media".into(), &1.into()));
    let explain = ["policy", "explain", "--caller", "media", "--service", "media", "--path", "/a.B/C", "-o", "json"];
    let (code, json, _) = operator(&place, &explain);
    assert_eq!((code, &json["reason"]), (1, &"PATH_NOT_ALLOWED".into()));
    let (_, keys, _) = operator(&place, &["identity", "keys", "-o", "json"]);
    let kid = keys[0]["kid"].as_str().unwrap();
    assert!(kid.starts_with(keys[0]["issuer"].as_str().unwrap()) && keys[0]["created"].is_string(), "{keys}");
    let (_, token, _) = operator(&place, &["identity", "join-token", "--service", "media", "-o", "json"]);
    assert!(token["joinToken"].as_str().unwrap().len() > 20, "{token}");

    up.signal(Signal::TERM);
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_the_tcs_answers_is_told_as_an_answer() {
    let place = Place::new();
    let mut up = place.up_with(&["--retention", "36h", "--retained-bytes", "64MiB"]);
    up.says("TCS serves on");
    let tcs = place.processes().into_iter().find(|line| line.contains("tcs serve")).unwrap();
    assert!(tcs.contains(" --retention 36h --retained-bytes 64MiB "), "{tcs}");

    let file = place.path("tenants.jsonl");
    fs::write(&file, "{\"tenantId\":\"acme\",\"status\":\"ACTIVE\",\"region\":\"us-east\"}\n").unwrap();
    let (_, json, _) = operator(&place, &["tenants", "import", file.to_str().unwrap(), "-o", "json"]);
    let epoch = json["epoch"].as_str().map_or_else(|| json["epoch"].to_string(), str::to_owned);
    let (code, _, said) = operator(&place, &["tenants", "get", "acme", "--at-least", &format!("{epoch}.1000")]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(" answers: this process has not come to revision "), "{said}");
    assert!(said.contains("\n  repeat it; `tenon check` shows who is behind\n"), "{said}");
    assert!(!said.contains("is the mesh running"), "{said}");

    let (key, backup) = (place.path("key"), place.path("backup"));
    fs::write(&key, [7; 32]).unwrap();
    let files = [backup.to_str().unwrap(), "--key-file", key.to_str().unwrap()];
    let (code, _, said) = operator(&place, &[&["tcs", "backup", "--out"][..], &files].concat());
    assert_eq!(code, 0, "{said}");
    let verify = [&["tcs", "verify-backup", "-o", "json"][..], &files].concat();
    let (code, json, said) = operator(&place, &verify);
    assert_eq!((code, &json["serving"]["differences"]), (0, &0.into()), "{said}");
    // Nobody to compare with: the backup is good, and what was asked for was not done.
    up.signal(Signal::TERM);
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
    let (code, json, said) = operator(&place, &verify);
    assert_eq!((code, &json["good"]), (1, &true.into()), "{said}");
    assert!(json["serving"]["notCompared"].as_str().unwrap().contains("does not answer on"), "{json}");
    assert!(said.starts_with("error: not compared with the serving TCS: "), "{said}");
}

#[test]
fn a_write_whose_answer_is_lost_is_not_told_as_if_it_had_not_been_made() {
    let place = Place::new();
    let mut up = place.up();
    up.says("TCS serves on");
    let file = place.path("tenants.jsonl");
    fs::write(&file, "{\"tenantId\":\"acme\",\"status\":\"ACTIVE\",\"region\":\"us-east\"}\n").unwrap();
    assert_eq!(operator(&place, &["tenants", "import", file.to_str().unwrap()]).0, 0);
    let event = place.path("event.json");
    fs::write(&event, r#"{"eventId":"crm-1","tenantId":"acme","unsuspendTenant":{}}"#).unwrap();
    let event = ["tenants", "event", event.to_str().unwrap()];

    // The same mesh through a line on which no answer arrives.
    let mesh = fs::read_to_string(place.path("data/mesh.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&mesh).unwrap();
    let tcs = json["controlPlane"]["tcs"].as_str().unwrap();
    let deaf = DeafLine::to(tcs);
    fs::create_dir_all(place.path("deaf/operator")).unwrap();
    for name in ["trust-bundle.pem", "operator/svid.pem", "operator/key.pem"] {
        fs::copy(place.path("data").join(name), place.path("deaf").join(name)).unwrap();
    }
    fs::write(place.path("deaf/mesh.json"), mesh.replace(tcs, &deaf.address)).unwrap();

    for (command, becomes, says) in [
        (&["tenants", "suspend", "acme"], "SUSPENDED", "it may have been done: `tenon tenants get acme` tells"),
        (&event, "ACTIVE", "send the same event again: it is applied once"),
    ] {
        let mut asking = Command::new(place.path("tenon"));
        asking.args(command).arg("--data").arg(place.path("deaf")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let asking = asking.spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        while operator(&place, &["tenants", "get", "acme", "-o", "json"]).1["status"] != becomes {
            assert!(Instant::now() < until, "{command:?} was not done");
        }
        deaf.end();
        let output = asking.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error: the outcome is unknown: ") && said.contains(says), "{said}");
    }
    let (code, json, said) = operator(&place, &[&event[..], &["-o", "json"]].concat());
    assert_eq!((code, &json["repeatedEvent"]), (0, &true.into()), "{said}");

    // Nobody listens: then it is known that nothing was done.
    up.signal(Signal::TERM);
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
    let (code, _, said) = operator(&place, &["tenants", "suspend", "acme"]);
    assert_eq!(code, 1);
    assert!(said.starts_with("error: tenant acme was not suspended: the TCS does not answer on "), "{said}");
    assert!(said.contains("is the mesh running?"), "{said}");
}

#[test]
fn check_finds_the_sidecar_that_does_not_serve_and_the_app_that_does_not_listen() {
    let place = Place::new();
    let app_listens = TcpListener::bind("127.0.0.1:0").unwrap();
    let app_address = app_listens.local_addr().unwrap();
    let text = fs::read_to_string(place.path("mesh/mesh.yaml")).unwrap();
    let text = text.replace("region: us-east, ", &format!("region: us-east, app: '{app_address}', "));
    fs::write(place.path("mesh/mesh.yaml"), text).unwrap();
    let mut up = place.up();
    up.says("TCS serves on");
    // The sidecar never serves, and that is what the check finds.
    let (code, json, _) = operator(&place, &["check", "-o", "json"]);
    assert_eq!((code, &json["ok"]), (1, &false.into()));
    let checks = json["checks"].as_array().unwrap();
    let dead = checks.iter().find(|check| check["check"] == "ready").unwrap();
    assert_eq!((&dead["subject"], &dead["ok"]), (&"media-us-east".into(), &false.into()));
    assert!(checks.iter().filter(|check| check["check"] == "reachable").all(|check| check["ok"] == true), "{json}");
    let app = checks.last().unwrap();
    assert_eq!((&app["check"], &app["subject"], &app["ok"]), (&"app".into(), &"media-us-east".into(), &true.into()));
    drop(app_listens);
    let (code, json, _) = operator(&place, &["check", "-o", "json"]);
    let app = json["checks"].as_array().unwrap().last().unwrap();
    assert_eq!((code, &app["ok"]), (1, &false.into()));
    assert!(app["next"].as_str().unwrap().starts_with(&format!("start media on {app_address}")), "{app}");
    up.signal(Signal::TERM);
    assert_eq!(up.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_policy_without_instances_is_applied_with_a_warning_and_named_at_the_next_start() {
    let place = Place::new();
    let mut up = place.up();
    up.says("TCS serves on");
    // Allowlists alone: the contract is that it is applied, and it takes the instances away.
    let text = fs::read_to_string(place.path("mesh/mesh.yaml")).unwrap();
    let (without, _) = text.split_once("---\napiVersion: tenon.dev/v1\nkind: LocalMesh").unwrap();
    let alone = place.path("alone");
    fs::create_dir(&alone).unwrap();
    fs::write(alone.join("mesh.yaml"), without).unwrap();
    let apply = |folder: &Path| operator(&place, &["policy", "apply", "-f", folder.to_str().unwrap(), "-o", "json"]);
    let (code, _, said) = apply(&alone);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("warning: this policy names no instances: every call will be NO_ENDPOINT"), "{said}");
    up.signal(Signal::TERM);
    assert_eq!(up.child.wait().unwrap().code(), Some(0));

    let mut again = place.up();
    let said = again.says("the policy in force is not that of");
    let mesh = place.path("mesh");
    assert!(
        said.contains("/operator/") && said.ends_with(&format!("tenon policy apply -f {}", mesh.display())),
        "{said}"
    );
    let (code, _, said) = apply(&mesh);
    assert_eq!((code, said.as_str()), (0, ""));
    again.signal(Signal::TERM);
    assert_eq!(again.child.wait().unwrap().code(), Some(0));

    let mut third = place.up();
    place.wait_for_the_sidecar();
    third.signal(Signal::TERM);
    assert_eq!(third.child.wait().unwrap().code(), Some(0));
    let said: Vec<String> = third.lines.iter().collect();
    assert!(!said.iter().any(|line| line.contains("is not that of")), "who did as told is not told again: {said:#?}");
}
