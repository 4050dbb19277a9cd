//! `tenon check` finds what is wrong with a running mesh, by the id of the check, and nothing once it is put right.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use integration::{
    calls::http_get,
    mesh::{Mesh, Plan, SOON, binary, eventually, signal},
    traffic::Traffic,
};
use rustix::process::Signal;
use serde_json::{Value, json};

fn tenants(count: usize) -> Vec<Value> {
    let shard = json!({"cluster": "c1", "database": "media-1", "schema": "main"});
    let tenant = |id: String| {
        json!({
            "tenantId": id, "status": "ACTIVE", "region": "us-east", "hosts": [format!("{id}.example.com")],
            "products": {"media": {"state": "ACTIVE", "shard": shard}}
        })
    };
    (0..count).map(|number| tenant(format!("t{number}"))).collect()
}

/// What one run says, and how it exits.
fn check(data: &Path, more: &[&str]) -> (i32, Value) {
    let mut command = Command::new(binary("tenon").expect("built"));
    let output = command.args(["check", "-o", "json"]).args(more).arg("--data").arg(data).output().expect("it runs");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().unwrap_or(-1), report)
}

/// Id and subject of all that failed.
fn wrong(report: &Value) -> Vec<(String, String)> {
    let text = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().expect("a list").iter().filter(|check| check["ok"] == false);
    checks.map(|check| (text(check, "id"), text(check, "subject"))).collect()
}

/// Waits until the check finds that of whoever it is, with all that it must say, and exits 1.
fn finds(data: &Path, id: &str, subject: &str) {
    let mut last = Value::Null;
    let found = eventually(SOON, "it is found", || {
        let (code, report) = check(data, &[]);
        let has = wrong(&report).iter().any(|(found, of)| found == id && of.contains(subject));
        last = report;
        Ok(has && code == 1)
    });
    found.unwrap_or_else(|error| panic!("{id} of {subject}: {error}: {:?}: {last:#}", wrong(&last)));
    let checks = last["checks"].as_array().expect("a list").iter();
    for check in checks.filter(|check| check["id"] == id && check["ok"] == false) {
        for name in ["detail", "why", "next"] {
            assert!(check[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {check}");
        }
        let anchor = check["docs"].as_str().expect("a place").split('#').nth(1).expect("an anchor").to_owned();
        assert_eq!(anchor, format!("{}-{}", id.to_lowercase(), check["check"].as_str().expect("a name")));
    }
}

/// Waits until nothing is wrong.
fn is_well(data: &Path) {
    let mut last = Value::Null;
    let well = eventually(SOON, "all is well", || {
        let (code, report) = check(data, &[]);
        last = report;
        Ok(code == 0)
    });
    well.unwrap_or_else(|error| panic!("{error}: {:?}: {last:#}", wrong(&last)));
}

/// The process is stopped meanwhile.
fn stopped(pid: u32, then: impl FnOnce()) {
    signal(pid, Signal::STOP).expect("stopped");
    then();
    signal(pid, Signal::CONT).expect("it goes on");
}

#[test]
fn processes_that_do_not_answer_are_found() {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let data = mesh.data_dir();
    is_well(&data);
    stopped(mesh.service("tcs").expect("it runs"), || finds(&data, "TC001", "TCS"));
    stopped(mesh.service("identity").expect("it runs"), || {
        finds(&data, "TC001", "identity service");
        finds(&data, "TC002", "key repository");
    });
    let inbound = format!("--inbound {}", mesh.inbound("media", "us-east"));
    let (sidecar, _) = mesh.processes(&inbound).pop().expect("it runs");
    stopped(sidecar, || {
        finds(&data, "TC003", "media-us-east");
        finds(&data, "TC007", "tenant");
    });
    is_well(&data);
    // What is not reached is not said to be well.
    stopped(mesh.service("policy").expect("it runs"), || {
        finds(&data, "TC001", "policy service");
        let (_, report) = check(&data, &[]);
        let checks = report["checks"].as_array().expect("a list");
        assert!(checks.iter().all(|check| check["id"] != "TC011" || check["ok"] == false), "{report:#}");
    });
    is_well(&data);
}

/// Writes a policy file, as an editor does.
fn write(mesh: &Mesh, name: &str, text: &str) {
    let new = mesh.scratch().join("new");
    fs::write(&new, text).expect("written");
    fs::rename(new, mesh.policy_dir().join(name)).expect("renamed");
}

/// As the metric of the policy service has it.
async fn folder_problems(mesh: &Mesh) -> usize {
    let address = mesh.mesh_file().expect("mesh.json")["controlPlane"]["metrics"]["policy"].clone();
    let address = address.as_str().and_then(|it| it.parse().ok()).expect("an address");
    let text = http_get(address, "/metrics").await.expect("metrics");
    let value = text.lines().find_map(|line| line.strip_prefix("tenon_policy_folder_problems "));
    value.and_then(|value| value.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_policy_is_found() {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    mesh.import(&tenants(1)).expect("imported");
    let data = mesh.data_dir();
    is_well(&data);
    let document = |kind: &str, name: &str, spec: &str| {
        format!("---\napiVersion: tenon.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
    };
    let nobody = document("Service", "ghost", "{}")
        + &document(
            "Allowlist",
            "ghost",
            "{service: ghost, rules: [{name: one, callers: [wiki], paths: [/g.v1.G/Get]}]}",
        );
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    for (text, id, subject) in [
        ("kind: Nonsense\n".to_owned(), "TC011", "policy service"),
        (document("Quarantine", "incident", "{services: [wiki], reason: INC-7}"), "TC012", "wiki"),
        (nobody, "TC014", "ghost"),
    ] {
        write(&mesh, "more.yaml", &text);
        finds(&data, id, subject);
        assert_eq!(folder_problems(&mesh).await > 0, id == "TC011", "{text}");
        fs::remove_file(mesh.policy_dir().join("more.yaml")).expect("removed");
        is_well(&data);
        assert_eq!(folder_problems(&mesh).await, 0);
    }
    let local = mesh.policy_dir().join("local.yaml");
    let before = fs::read_to_string(&local).expect("the LocalMesh document");
    let with = before.replacen(
        "instances:\n",
        &format!("instances:\n    - {{service: media, region: us-east, inbound: '{free}'}}\n"),
        1,
    );
    let with = if with == before { panic!("no list of instances: {before}") } else { with };
    write(&mesh, "local.yaml", &with);
    finds(&data, "TC015", &free.to_string());
    write(&mesh, "local.yaml", &before);
    is_well(&data);
    halted(&mesh, &data).await;
}

/// A canary refuses what passed before.
async fn halted(mesh: &Mesh, data: &Path) {
    let traffic = Traffic::start(mesh.outbound("wiki", "us-east"), "t0", 20).await.expect("calls");
    eventually(SOON, "calls are on record", || {
        let flows: Value = serde_json::from_str(&mesh.tenon_ok(&["policy", "flows", "-o", "json"])?)?;
        Ok(flows["flows"].as_array().is_some_and(|flows| flows.iter().any(|flow| flow["decision"] == "ALLOWED")))
    })
    .expect("recorded");
    let folder = mesh.scratch().join("stricter");
    fs::create_dir(&folder).expect("a folder");
    for entry in fs::read_dir(mesh.policy_dir()).expect("the folder") {
        let entry = entry.expect("an entry");
        let text = fs::read_to_string(entry.path()).expect("a file");
        let text = text.replace(
            "callers: [wiki]\n      paths:\n        - /media.v1.Media/Get\n        - /media.v1.Media/List",
            "callers: [wiki]\n      paths:\n        - /media.v1.Media/None",
        );
        fs::write(folder.join(entry.file_name()), text).expect("written");
    }
    let folder = folder.display().to_string();
    let output = mesh.tenon(&["policy", "apply", "-f", &folder, "--canary", "50", "--hold", "10m"]).expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    finds(data, "TC013", "policy service");
    traffic.stop().await;
    // Whatever is changed next makes it the past.
    write(mesh, "more.yaml", "apiVersion: tenon.dev/v1\nkind: Service\nmetadata: {name: quiet}\nspec: {}\n");
    is_well(data);
}

/// The data folder of an operator, in which tests may say what is not so.
struct Elsewhere<'m> {
    mesh: &'m Mesh,
    dir: PathBuf,
}

impl<'m> Elsewhere<'m> {
    fn of(mesh: &'m Mesh, name: &str, more: &[&str]) -> Self {
        let dir = mesh.scratch().join(name);
        let out = dir.display().to_string();
        let args = [&["identity", "operator", "--name", name, "--role", "admin", "--out", &out], more].concat();
        mesh.tenon_ok(&args).expect("an operator");
        Self { mesh, dir }
    }

    /// Changes `mesh.json`, looks, and changes it back.
    fn with(&self, change: impl FnOnce(&mut Value), then: impl FnOnce(&Path)) {
        let file = self.dir.join("mesh.json");
        let before = fs::read_to_string(&file).expect("mesh.json");
        let mut json = self.mesh.mesh_file().expect("mesh.json");
        change(&mut json);
        fs::write(&file, json.to_string()).expect("written");
        then(&self.dir);
        fs::write(&file, before).expect("written");
    }
}

fn sidecar<'j>(json: &'j mut Value, name: &str) -> &'j mut Value {
    let sidecars = json["sidecars"].as_array_mut().expect("a list");
    sidecars.iter_mut().find(|sidecar| sidecar["name"] == name).expect("it is there")
}

/// Answers everything with this date and this body, as the admin listener of a sidecar would.
fn admin(date: &'static str, version: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    // It ends with the test.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _asked = stream.read(&mut [0; 4096]);
            let body = json!({"version": version}).to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _answered = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    address
}

#[test]
fn clocks_certificates_roots_ports_versions_and_apps_are_looked_at() {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    is_well(&mesh.data_dir());
    let short = Elsewhere::of(&mesh, "shorty", &["--ttl", "600"]);
    finds(&short.dir, "TC005", "operator");
    let ann = Elsewhere::of(&mesh, "ann", &[]);
    is_well(&ann.dir);
    let old = admin("Sat, 01 Jan 2000 00:00:00 GMT", env!("CARGO_PKG_VERSION"));
    ann.with(
        |json| sidecar(json, "wiki-us-east")["admin"] = old.to_string().into(),
        |data| finds(data, "TC004", "wiki-us-east"),
    );
    let other = admin("", "99.0.0");
    ann.with(
        |json| sidecar(json, "wiki-us-east")["admin"] = other.to_string().into(),
        |data| finds(data, "TC017", "mesh"),
    );
    let media = mesh.inbound("media", "us-east").to_string();
    ann.with(
        |json| sidecar(json, "issues-us-east")["inbound"] = media.into(),
        |data| finds(data, "TC016", "issues-us-east"),
    );
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    ann.with(
        |json| sidecar(json, "media-us-east")["app"] = free.to_string().into(),
        |data| finds(data, "TC019", "media-us-east"),
    );
    is_well(&ann.dir);
    let bundle = ann.dir.join("trust-bundle.pem");
    let before = fs::read_to_string(&bundle).expect("the bundle");
    fs::write(&bundle, before.clone() + &root_of_thirty_days(&mesh)).expect("written");
    finds(&ann.dir, "TC006", "root 2");
    fs::write(&bundle, before).expect("written");
    is_well(&ann.dir);
}

fn root_of_thirty_days(mesh: &Mesh) -> String {
    let [key, root] = ["root.key", "root.pem"].map(|name| mesh.scratch().join(name));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
    command.args(["-subj", "/CN=a root that ends", "-addext", "subjectAltName=URI:spiffe://test.example"]);
    command.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
    let output = command.arg("-keyout").arg(key).arg("-out").arg(&root).output().expect("make deps brings openssl");
    assert!(output.status.success(), "{output:?}");
    fs::read_to_string(root).expect("a certificate")
}

#[test]
fn what_followers_refuse_and_services_that_disagree_are_found() {
    let mesh = Plan::demo().expect("a plan").tcs(2).start().expect("the mesh starts");
    mesh.import(&tenants(200)).expect("imported");
    let data = mesh.data_dir();
    is_well(&data);
    // An empty table upstream, which nobody believes.
    let tcs = mesh.service("tcs").expect("it runs");
    signal(mesh.pid(), Signal::STOP).expect("nobody starts it again");
    signal(tcs, Signal::KILL).expect("killed");
    fs::remove_file(data.join("tcs/tcs.redb")).expect("removed");
    signal(mesh.pid(), Signal::CONT).expect("it goes on");
    finds(&data, "TC008", "tenant at tcs");
    finds(&data, "TC009", "tenant");
    finds(&data, "TC010", "tenant at tcs-2");
}

#[test]
fn it_is_watched_until_somebody_has_seen_enough_and_lists_what_it_checks() {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    is_well(&mesh.data_dir());
    let mut command = Command::new(binary("tenon").expect("built"));
    command.args(["check", "--watch", "1", "-o", "json", "--data"]).arg(mesh.data_dir());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("it runs");
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("a pipe")));
    let rounds: Vec<Value> =
        lines.take(2).map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON, one a line")).collect();
    assert!(rounds.iter().all(|round| round["ok"] == true && round["at"].is_string()), "{rounds:?}");
    signal(child.id(), Signal::INT).expect("interrupted");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    let listed: Value =
        serde_json::from_str(&mesh.tenon_ok(&["check", "--list", "-o", "json"]).expect("it lists")).expect("JSON");
    assert_eq!((&listed[2]["id"], &listed[2]["check"]), (&json!("TC003"), &json!("ready")));
    let (_, report) = check(&mesh.data_dir(), &[]);
    let made = |id: &Value| report["checks"].as_array().expect("a list").iter().any(|check| check["id"] == *id);
    let never = listed.as_array().expect("a list").iter().filter(|check| !made(&check["id"]));
    // These two say something only when there is something to say.
    let silent: Vec<_> = never.map(|check| check["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(silent, ["TC009", "TC010", "TC016"]);
}
