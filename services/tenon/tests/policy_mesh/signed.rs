//! `tenon policy bundle`: signed once, verified and applied elsewhere.

use std::{fs, process::Command};

use aws_lc_rs::signature::Ed25519KeyPair;
use mesh_identity::policy_signature;
use serde_json::json;

use crate::{
    applied,
    fake::{Mesh, POLICY, outcome, status},
};

fn tenon(args: &[&str]) -> (i32, String, String) {
    outcome(&Command::new(env!("CARGO_BIN_EXE_tenon")).args(args).output().unwrap())
}

/// Private and public key files, as OpenSSL writes them.
fn keys(mesh: &Mesh, name: &str) -> (String, String) {
    let private = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref().to_vec();
    let public = policy_signature::public_key(&private).unwrap().to_pem();
    let private = pem::encode(&pem::Pem::new("PRIVATE KEY", private));
    (mesh.write(&format!("{name}.key"), &private), mesh.write(&format!("{name}.pub"), &public))
}

#[test]
fn a_bundle_is_the_same_each_time_is_verified_by_its_key_alone_and_applied() {
    let mesh = Mesh::new();
    let folder = mesh.folder(POLICY);
    let ((key, public), (_, other)) = (keys(&mesh, "policy"), keys(&mesh, "other"));
    let at = |name: &str| mesh.dir.path().join(name).display().to_string();
    let (one, two) = (at("one.bundle"), at("two.bundle"));
    for out in [&one, &two] {
        let args = ["policy", "bundle", "-f", &folder, "--sign", &key, "--out", out, "--serial", "1700000000"];
        let (code, text, err) = tenon(&args);
        assert!(
            code == 0 && text.contains("2 services signed with key") && text.contains("serial 1700000000"),
            "{text}{err}"
        );
    }
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());

    let (code, text, err) = tenon(&["policy", "bundle", "verify", &one, "--key", &public]);
    assert!(
        code == 0 && text.contains("mesh demo, 2 services, signed 2023-11-14T22:13:20Z with this key"),
        "{text}{err}"
    );
    let (code, _, err) = tenon(&["policy", "bundle", "verify", &one, "--key", &other]);
    assert!(
        code == 1 && err.contains("the signature of service media: made with a key that is not accepted here"),
        "{err}"
    );
    let (code, text, _) = tenon(&["policy", "bundle", "verify", &one, "--key", &other, "-o", "json"]);
    assert!(code == 1 && text.contains("\"valid\": false"), "{text}");

    mesh.script(|script| {
        script.apply = applied(11);
        script.statuses = [status(&[("m1", 11, "")])].into();
    });
    let (code, json) = mesh.json(&["policy", "apply", "--bundle", &one]);
    assert_eq!((code, &json["sidecars"]["acknowledged"]), (0, &json!(1)));
    let request = mesh.script(|script| script.applied.remove(0));
    let serials: Vec<_> = request.signatures.iter().map(|signature| signature.serial).collect();
    assert_eq!((serials, request.files.len()), (vec![1_700_000_000; 2], 1));
}

#[test]
fn what_cannot_sign_and_what_is_no_bundle_says_what_is_expected() {
    let mesh = Mesh::new();
    let folder = mesh.folder(POLICY);
    let (key, public) = keys(&mesh, "policy");
    let out = mesh.dir.path().join("out.bundle").display().to_string();
    for (sign, out, says) in [
        (&public, &out, "openssl genpkey -algorithm ed25519"),
        (&"nowhere.pem".to_owned(), &out, "cannot read the private key nowhere.pem"),
        (&key, &"/nonexistent/out".to_owned(), "cannot write /nonexistent/out"),
    ] {
        let (code, _, err) = tenon(&["policy", "bundle", "-f", &folder, "--sign", sign, "--out", out]);
        assert!(code == 1 && err.contains(says), "{err}");
    }
    let (code, _, err) = mesh.run(&["policy", "apply", "--bundle", &key]);
    assert!(code == 1 && err.contains("is no bundle, or is damaged"), "{err}");
    for wrong in [vec!["policy", "bundle"], vec!["policy", "apply"], vec!["policy", "bundle", "verify", &key]] {
        assert_eq!(tenon(&wrong).0, 2, "{wrong:?}");
    }
    assert_eq!(tenon(&["policy", "apply", "-f", &folder, "--canary", "5%"]).0, 2);
}
