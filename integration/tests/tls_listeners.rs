//! The real `sslyze` against every TLS listener of a running mesh.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use integration::{
    mesh::{Mesh, Plan, repository},
    python,
};
use serde_json::{Value, json};

/// Every scan, and where its result says that all is well. An object: each of its members must be there and the same.
fn expected() -> Vec<(&'static str, Value)> {
    let unsupported = json!({"is_tls_version_supported": false, "accepted_cipher_suites": []});
    vec![
        ("ssl_3_0_cipher_suites", unsupported.clone()),
        ("tls_1_0_cipher_suites", unsupported.clone()),
        ("tls_1_1_cipher_suites", unsupported.clone()),
        ("tls_1_2_cipher_suites", unsupported),
        ("tls_1_3_cipher_suites", json!({"is_tls_version_supported": true})),
        ("tls_compression", json!({"supports_compression": false})),
        ("tls_1_3_early_data", json!({"supports_early_data": false})),
        ("openssl_ccs_injection", json!({"is_vulnerable_to_ccs_injection": false})),
        ("heartbleed", json!({"is_vulnerable_to_heartbleed": false})),
        ("robot", json!({"robot_result": "NOT_VULNERABLE_RSA_NOT_SUPPORTED"})),
        (
            "session_renegotiation",
            json!({"is_vulnerable_to_client_renegotiation_dos": false, "supports_secure_renegotiation": true}),
        ),
        (
            "session_resumption",
            json!({
                "session_id_resumption_result": "SERVER_IS_TLS_1_3_ONLY",
                "tls_ticket_resumption_result": "SERVER_IS_TLS_1_3_ONLY",
            }),
        ),
        ("tls_fallback_scsv", json!({"supports_fallback_scsv": true})),
        ("tls_extended_master_secret", json!({"supports_ems_extension": true})),
        ("elliptic_curves", json!({"supports_ecdh_key_exchange": true})),
        ("certificate_info", json!({})),
    ]
}

/// The flags that schedule them.
const SCANS: &[&str] = &[
    "--sslv3",
    "--tlsv1",
    "--tlsv1_1",
    "--tlsv1_2",
    "--tlsv1_3",
    "--compression",
    "--early_data",
    "--openssl_ccs",
    "--heartbleed",
    "--robot",
    "--reneg",
    "--resum",
    "--fallback",
    "--ems",
    "--elliptic_curves",
    "--certinfo",
];
/// Curves without known weakness; whoever offers nothing else gets no connection.
const CURVES: &[&str] = &["X25519", "secp256r1", "secp384r1"];

/// What sslyze found at each of `targets`, in their order.
fn sslyze(program: &[PathBuf], args: &[&str], targets: &[String], scratch: &Path) -> Vec<Value> {
    let report = scratch.join("sslyze.json");
    let _ = fs::remove_file(&report);
    let (program, before) = program.split_first().expect("a program");
    let output = Command::new(program)
        .args(before)
        .args(["--mozilla_config", "disable", "--json_out"])
        .arg(&report)
        .args(args)
        .args(targets)
        .output()
        .expect("sslyze runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let report = fs::read(&report).unwrap_or_else(|error| panic!("no report: {error}; sslyze said {said}"));
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["invalid_server_strings"], json!([]), "{said}");
    let results = report["server_scan_results"].as_array().expect("a list");
    assert_eq!(results.len(), targets.len(), "{said}");
    let of = |target: &String| {
        let is_it = |result: &&Value| {
            let location = &result["server_location"];
            *target == format!("{}:{}", location["hostname"].as_str().unwrap_or_default(), location["port"])
        };
        results.iter().find(is_it).unwrap_or_else(|| panic!("nothing of {target}: {said}")).clone()
    };
    targets.iter().map(of).collect()
}

fn with_h2() -> Vec<PathBuf> {
    let script = repository().join("integration/tests/python/sslyze_h2.py");
    vec![python::program("python").expect("python"), script]
}

/// All that is wrong with one listener. A scan that was not made, or did not come to its end, is wrong as well.
fn problems(listener: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    if listener["scan_status"] != "COMPLETED" {
        return vec![format!("{}: {}", listener["scan_status"], listener["connectivity_error_trace"])];
    }
    if listener["connectivity_result"]["highest_tls_version_supported"] != "TLS_1_3" {
        problems.push(format!("{}", listener["connectivity_result"]));
    }
    for (scan, expected) in expected() {
        let found = &listener["scan_result"][scan];
        if found["status"] != "COMPLETED" {
            problems.push(format!("{scan} was not done: {} {}", found["error_reason"], found["error_trace"]));
            continue;
        }
        for (name, value) in expected.as_object().expect("an object") {
            if found["result"][name] != *value {
                problems.push(format!("{scan}: {name} is {}", found["result"][name]));
            }
        }
    }
    let result = |scan: &str| listener["scan_result"][scan]["result"].clone();
    for curve in result("elliptic_curves")["supported_curves"].as_array().into_iter().flatten() {
        if !CURVES.iter().any(|good| curve["name"] == *good) {
            problems.push(format!("weak curve {curve}"));
        }
    }
    for chain in result("certificate_info")["certificate_deployments"].as_array().into_iter().flatten() {
        if chain["received_chain_has_valid_order"] != true || chain["verified_chain_has_sha1_signature"] == true {
            problems.push("the certificate chain is out of order, or signed with SHA-1".to_owned());
        }
    }
    problems
}

/// The TLS listeners of a mesh, and what each asks of a client.
fn listeners(mesh: &Mesh) -> Vec<(String, &'static str)> {
    let file = mesh.mesh_file().expect("mesh.json");
    let plane = |name: &str| file["controlPlane"][name].as_str().expect("an address").to_owned();
    let mut listeners = vec![
        (plane("identity"), "OPTIONAL"),
        (plane("keyRepository"), "DISABLED"),
        (plane("tcs"), "REQUIRED"),
        (plane("policy"), "REQUIRED"),
    ];
    let sidecars = file["sidecars"].as_array().expect("a list");
    listeners.extend(sidecars.iter().map(|s| (s["inbound"].as_str().expect("an address").to_owned(), "REQUIRED")));
    listeners
}

#[test]
fn sslyze_finds_tls_1_3_alone_and_no_weakness_on_any_listener() {
    let mesh = Plan::demo().expect("a plan").start().expect("the mesh starts");
    let svid = mesh.scratch().join("svid");
    mesh.tenon_ok(&["identity", "svid", "--service", "media", "--out", &svid.display().to_string()]).expect("an SVID");
    let file = |name: &str| svid.join(name).display().to_string();
    let (certificate, key, bundle) = (file("svid.pem"), file("key.pem"), file("bundle.pem"));
    let listeners = listeners(&mesh);
    let targets: Vec<String> = listeners.iter().map(|(address, _)| address.clone()).collect();

    let credentials = ["--cert", &certificate, "--key", &key, "--certinfo_ca_file", &bundle];
    let found = sslyze(&with_h2(), &[&credentials, SCANS].concat(), &targets, mesh.scratch());
    for ((address, client), found) in listeners.iter().zip(&found) {
        assert_eq!(problems(found), Vec::<String>::new(), "{address}");
        if *client == "DISABLED" {
            // The one that has a name which the tool can check; by the mesh's root alone.
            let chains = &found["scan_result"]["certificate_info"]["result"]["certificate_deployments"];
            let checked = chains[0]["path_validation_results"].as_array().expect("a list");
            assert!(checked.iter().any(|result| result["was_validation_successful"] == true), "{checked:?}");
        }
    }

    // Without a certificate: what is asked of clients; and the protocol whose library cannot read ours.
    for ((address, client), found) in listeners.iter().zip(sslyze(&with_h2(), &["--sslv2"], &targets, mesh.scratch())) {
        assert_eq!(found["connectivity_result"]["client_auth_requirement"], *client, "{address}");
        let sslv2 = &found["scan_result"]["ssl_2_0_cipher_suites"];
        assert_eq!(
            (&sslv2["status"], &sslv2["result"]["is_tls_version_supported"]),
            (&json!("COMPLETED"), &json!(false))
        );
    }

    // As it comes, sslyze offers no ALPN: nobody but the key repository does a handshake with it.
    let plain = [python::program("sslyze").expect("sslyze")];
    for ((address, client), found) in listeners.iter().zip(sslyze(&plain, &["--tlsv1_3"], &targets, mesh.scratch())) {
        let reached = found["connectivity_status"] == "COMPLETED";
        assert_eq!(reached, *client == "DISABLED", "{address}: {found}");
    }

    // And what finds nothing here does find something where there is something.
    let weak = Weak::start(&certificate, &key);
    let found = sslyze(&with_h2(), SCANS, &[format!("127.0.0.1:{}", weak.port)], mesh.scratch());
    let problems = problems(&found[0]).join("\n");
    assert!(problems.contains("tls_1_2_cipher_suites: is_tls_version_supported is true"), "{problems}");
    let dead = Plan::new().expect("a plan").prepare().expect("no mesh");
    let nobody = sslyze(&with_h2(), SCANS, &["127.0.0.1:1".to_owned()], dead.scratch());
    assert!(!self::problems(&nobody[0]).is_empty(), "a listener that is not there has not passed");
}

/// A server that has what must be found.
struct Weak {
    child: Child,
    port: u16,
}

impl Weak {
    fn start(certificate: &str, key: &str) -> Self {
        let mut child = Command::new(python::program("python").expect("python"))
            .arg(repository().join("integration/tests/python/weak_server.py"))
            .args([certificate, key])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("it says its port");
        Self { child, port: line.trim().parse().expect("a port") }
    }
}

impl Drop for Weak {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
