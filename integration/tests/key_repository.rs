//! The key repository and the operator's commands around it, with clients that know nothing of Tenon: Python's own HTTPS
//! and the real `grpcurl`.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use integration::{
    mesh::{Mesh, Plan, SOON, binary, eventually, repository},
    python,
};
use serde_json::{Value, json};

fn mesh() -> Mesh {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let media = json!({"state": "ACTIVE", "shard": {"cluster": "c1", "database": "d1", "schema": "s1"}});
    let acme = json!({"tenantId": "acme", "status": "ACTIVE", "region": "us-east", "products": {"media": media}});
    mesh.import(&[acme]).expect("imported");
    mesh
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(mesh: &Mesh, args: &[&str]) -> Value {
    let printed = mesh.tenon_ok(&[args, &["-o", "json"]].concat()).expect("the command succeeds");
    serde_json::from_str(&printed).expect("JSON")
}

/// What the repository answers to Python, path by path.
fn ask(mesh: &Mesh, paths: &[&str]) -> Vec<Value> {
    let file = mesh.mesh_file().expect("mesh.json");
    let base = format!("https://{}/", file["controlPlane"]["keyRepository"].as_str().expect("an address"));
    let output = Command::new(python::program("python").expect("python"))
        .arg(repository().join("integration/tests/python/repository.py"))
        .arg(base)
        .arg(mesh.data_dir().join("trust-bundle.pem"))
        .args(paths)
        .output()
        .expect("python runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", printed(&output)))
}

#[test]
fn a_client_outside_of_the_mesh_gets_keys_and_bundles_over_https_and_trusts_nothing_but_the_roots() {
    let mesh = mesh();
    let keys = json(&mesh, &["identity", "keys"]);
    let keys = keys.as_array().expect("a list");
    assert!(keys.iter().filter(|key| key["use"] == "asap").count() >= 4, "each sidecar has one: {keys:?}");
    let kids: Vec<&str> = keys.iter().map(|key| key["kid"].as_str().expect("a kid")).collect();
    for (answer, key) in ask(&mesh, &kids).iter().zip(keys) {
        if key["use"] == "asap" {
            assert_eq!(
                (&answer["status"], &answer["type"]),
                (&json!(200), &json!("application/x-pem-file")),
                "{answer}"
            );
            assert!(answer["body"].as_str().expect("text").starts_with("-----BEGIN PUBLIC KEY-----"), "{answer}");
            assert!(answer["cacheControl"].as_str().expect("text").contains("max-age=60"), "{answer}");
        } else {
            assert_eq!(answer["status"], 404, "a transaction key is no ASAP key: {answer}");
        }
    }
    let answers =
        ask(&mesh, &["trust-bundle.pem", ".well-known/spiffe-bundle.json", ".well-known/jwks.json", "media/none"]);
    let bundle = fs::read_to_string(mesh.data_dir().join("trust-bundle.pem")).expect("the bundle");
    assert_eq!(answers[0]["body"], bundle);
    let spiffe: Value = serde_json::from_str(answers[1]["body"].as_str().expect("text")).expect("JSON");
    assert_eq!((&spiffe["keys"][0]["use"], spiffe["keys"].as_array().map(Vec::len)), (&json!("x509-svid"), Some(1)));
    assert!(spiffe["spiffe_sequence"].is_u64(), "{spiffe}");
    assert_eq!((&answers[2]["status"], &answers[3]["status"]), (&json!(200), &json!(404)));

    // Others may be busy with the machine: of all checks this one.
    let checked = mesh.tenon(&["check", "-o", "json"]).expect("it runs");
    let checked: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let checks = checked["checks"].as_array().expect("a list");
    assert!(checks.iter().any(|check| check["subject"] == "key repository" && check["ok"] == true), "{checked}");
}

/// The credentials of a service in the hands of an operator.
struct Debugging<'m> {
    mesh: &'m Mesh,
    /// What `identity svid` printed.
    told: Value,
}

impl<'m> Debugging<'m> {
    fn of(mesh: &'m Mesh, service: &str) -> Self {
        let out = mesh.scratch().join(format!("debugging {service}"));
        let told = json(mesh, &["identity", "svid", "--service", service, "--out", &out.display().to_string()]);
        Self { mesh, told }
    }

    fn text(&self, name: &str) -> &str {
        self.told[name].as_str().unwrap_or_else(|| panic!("{name} of {}", self.told))
    }

    /// Runs the line that `identity svid` proposes, with the blanks filled in: `List` of media in us-east.
    fn as_told(&self) -> Output {
        self.run(self.text("grpcurl"))
    }

    fn run(&self, line: &str) -> Output {
        let proto = repository().join("proto");
        let line = line
            .replace("TENANT", "acme")
            // It goes on trying where the handshake is refused.
            .replace("grpcurl -cacert", "grpcurl -connect-timeout 2 -cacert")
            .replace("-proto FILE", &format!("-import-path {} -proto media/v1/media.proto", proto.display()))
            .replace("PACKAGE.SERVICE/METHOD", "media.v1.Media/List");
        let folder = |program: &Path| program.parent().expect("a folder").display().to_string();
        let path = format!(
            "{}:{}:{}",
            folder(&binary("tenon").expect("built")),
            folder(&python::program("grpcurl").expect("installed")),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(line).env("PATH", path).current_dir(self.mesh.scratch());
        command.output().expect("a shell")
    }

    fn must_be_refused(&self, reason: &str) {
        let refused = self.as_told();
        assert!(!refused.status.success() && printed(&refused).contains(reason), "{reason}: {}", printed(&refused));
    }
}

#[test]
fn an_operator_calls_a_sidecar_as_a_service_with_the_line_that_identity_svid_prints() {
    let mesh = mesh();
    // Its example is the first sidecar of another service than its own: media in us-east.
    let issues = Debugging::of(&mesh, "issues");
    assert!(issues.text("grpcurl").contains(&mesh.inbound("media", "us-east").to_string()), "{}", issues.told);
    assert_eq!(issues.told["keyIsKnownEverywhere"], true);
    eventually(SOON, "the tenant has arrived", || Ok(issues.as_told().status.success())).expect("the call passes");

    // The certificate is wiki's and the token is issues's: a stolen token is of no use.
    let wiki = Debugging::of(&mesh, "wiki");
    let own =
        ["svid.pem", "key.pem"].map(|name| (format!("debugging issues/{name}"), format!("debugging wiki/{name}")));
    let mixed = own.iter().fold(issues.text("grpcurl").to_owned(), |line, (from, to)| line.replace(from, to));
    let stolen = wiki.run(&mixed);
    assert!(printed(&stolen).contains("ASAP_ISSUER"), "{}", printed(&stolen));

    let audit = fs::read_to_string(mesh.data_dir().join("identity/audit.jsonl")).expect("the audit log");
    let svids = audit.lines().filter(|line| line.contains(r#""event":"svid""#)).count();
    assert_eq!(svids, 2, "{audit}");
    let refused = mesh.tenon(&["identity", "svid", "--service", "tenon-tcs", "--out", "none"]).expect("it runs");
    assert!(printed(&refused).contains("belongs to the control plane"), "{}", printed(&refused));
}

#[test]
fn a_key_a_certificate_and_a_service_are_revoked_listed_and_lifted_by_the_operator() {
    let mesh = mesh();
    let issues = Debugging::of(&mesh, "issues");
    eventually(SOON, "the tenant has arrived", || Ok(issues.as_told().status.success())).expect("the call passes");
    let (kid, serial) = (issues.text("kid").to_owned(), issues.text("serial").to_uppercase());

    for (flag, name, refused) in
        [("--kid", kid.as_str(), "ASAP_KEY_UNKNOWN"), ("--serial", serial.as_str(), ""), ("--service", "issues", "")]
    {
        let revoked = json(&mesh, &["identity", "revoke", flag, name, "--reason", "a test"]);
        assert!(revoked["revoked"] == true && revoked["warning"].is_null(), "{revoked}");
        assert!(revoked["revision"].as_u64().expect("a number") > 0);
        let within = Instant::now() + Duration::from_secs(1);
        // Of a revoked certificate no handshake is done, so that no reason can be told.
        loop {
            let began = Instant::now();
            if !issues.as_told().status.success() {
                break;
            }
            assert!(began < within, "{flag} {name} still passes");
        }
        issues.must_be_refused(refused);
        let listed = json(&mesh, &["identity", "revoke", "--list"]);
        let [listed] = &listed.as_array().expect("a list")[..] else { panic!("one: {listed}") };
        let shown = listed[flag.trim_start_matches("--")].as_str().expect("what is revoked");
        assert!(shown.eq_ignore_ascii_case(name) && listed["reason"] == "a test", "{listed}");
        if flag == "--kid" {
            assert_eq!(ask(&mesh, &[&kid])[0]["status"], 404);
        }
        mesh.tenon_ok(&["identity", "revoke", "--lift", flag, name]).expect("lifted");
        assert_eq!(json(&mesh, &["identity", "revoke", "--list"]), json!([]));
        if flag == "--serial" {
            eventually(SOON, "the certificate is good again", || {
                // Its key went with the revocation of the key.
                Ok(printed(&issues.as_told()).contains("ASAP_KEY_UNKNOWN"))
            })
            .expect("it is another refusal now");
        }
    }
    // The sidecar of issues itself is back as well, with no help.
    let again = Debugging::of(&mesh, "issues");
    eventually(SOON, "a new key passes", || Ok(again.as_told().status.success())).expect("the call passes");

    let typo = mesh.tenon(&["identity", "revoke", "--service", "isues"]).expect("it runs");
    assert!(
        typo.status.success() && printed(&typo).contains("warning: no key of isues is known"),
        "{}",
        printed(&typo)
    );
    for (args, says) in [
        (&["--service", "tenon-identity"][..], "belongs to the control plane"),
        (&["--serial", "nonsense"], "not a serial"),
        (&["--lift", "--service", "wiki"], "is not revoked"),
    ] {
        let refused = mesh.tenon(&[&["identity", "revoke"], args].concat()).expect("it runs");
        assert!(refused.status.code() == Some(1) && printed(&refused).contains(says), "{}", printed(&refused));
    }
    assert_eq!(mesh.tenon(&["identity", "revoke"]).expect("it runs").status.code(), Some(2));
}
