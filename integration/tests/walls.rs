//! Who may import whom (ARCHITECTURE.md, "Import walls"), which crates are pure, and that there is one cryptography.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use integration::mesh::repository;

const PROTO: &str = "tenon-proto";
const CONFIG: &str = "mesh-config";
const CORE: &str = "sidecar-core";
const ASAP: &str = "mesh-asap";
const TELEMETRY: &str = "mesh-telemetry";
const IDENTITY: &str = "mesh-identity";
const REPLICA: &str = "replica";
const JOURNAL: &str = "journal";

/// Every crate of the workspace, and the crates of the workspace that it may import. Integration may import all.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    (PROTO, &[]),
    (CONFIG, &[PROTO]),
    (CORE, &[PROTO, CONFIG]),
    (ASAP, &[PROTO, CONFIG]),
    (TELEMETRY, &[]),
    (IDENTITY, &[PROTO, CONFIG, ASAP, TELEMETRY]),
    (REPLICA, &[PROTO, CONFIG, IDENTITY]),
    (SIDECAR, &[PROTO, CONFIG, CORE, ASAP, TELEMETRY, IDENTITY, REPLICA]),
    (JOURNAL, &[PROTO, CONFIG, ASAP, TELEMETRY, IDENTITY, REPLICA]),
    ("tcs", &[PROTO, CONFIG, ASAP, TELEMETRY, IDENTITY, REPLICA, JOURNAL]),
    ("identity", &[PROTO, CONFIG, ASAP, TELEMETRY, IDENTITY, REPLICA, JOURNAL]),
    // To explain and to test policy with the code that decides.
    ("policy", &[PROTO, CONFIG, ASAP, TELEMETRY, IDENTITY, REPLICA, JOURNAL, CORE]),
    ("tenon", &[PROTO, CONFIG, ASAP, TELEMETRY, IDENTITY, REPLICA, JOURNAL, CORE, "tcs", "policy", "identity"]),
    // The product services are somebody else's software: of the mesh they know the wire types.
    ("media", &[PROTO]),
    ("issues", &[PROTO, "media"]),
];

/// Nothing but [`INTEGRATION`] may import it, not even for tests.
const SIDECAR: &str = "tenon-sidecar";
/// Nothing imports it.
const INTEGRATION: &str = "integration";

/// All that the pure crates may import from outside of the workspace: no runtime, no socket, no file, no clock.
const PURE: &[(&str, &[&str])] = &[
    (CORE, &["ahash", "bytes", "hashbrown", "prost", "thiserror", "triomphe"]),
    (
        ASAP,
        &[
            "ahash",
            "arc-swap",
            "aws-lc-rs",
            "base64",
            "pem",
            "percent-encoding",
            "serde",
            "serde_json",
            "thiserror",
            "x509-parser",
            "zeroize",
        ],
    ),
];

/// What the sources of the pure crates never say, tests aside.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::io",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "SystemTime",
    "Instant::now",
    "tokio",
];

/// Other cryptography, other TLS.
const BANNED: &[&str] = &[
    "boring",
    "boring-sys",
    "mbedtls",
    "native-tls",
    "openssl",
    "openssl-sys",
    "ring",
    "rustls-rustcrypto",
    "schannel",
    "security-framework",
    "tokio-native-tls",
    "tokio-openssl",
];

fn workspace() -> Metadata {
    MetadataCommand::new().manifest_path(repository().join("Cargo.toml")).no_deps().exec().expect("cargo metadata runs")
}

/// The crates of the workspace that `package` depends on in one of `kinds`.
fn imports(package: &Package, members: &BTreeSet<String>, kinds: &[DependencyKind]) -> BTreeSet<String> {
    let within = |dependency: &&cargo_metadata::Dependency| kinds.contains(&dependency.kind);
    package.dependencies.iter().filter(within).map(|d| d.name.clone()).filter(|name| members.contains(name)).collect()
}

fn members(metadata: &Metadata) -> BTreeSet<String> {
    metadata.packages.iter().map(|package| package.name.to_string()).collect()
}

#[test]
fn every_crate_imports_only_what_the_table_allows() {
    let metadata = workspace();
    let members = members(&metadata);
    let table: BTreeMap<_, BTreeSet<_>> = MAY_IMPORT
        .iter()
        .map(|(name, may)| ((*name).to_owned(), may.iter().map(|n| (*n).to_owned()).collect()))
        .collect();
    let listed: BTreeSet<_> = table.keys().cloned().chain([INTEGRATION.to_owned()]).collect();
    assert_eq!(members, listed, "the table lists every crate of the workspace and no other");

    let mut breaches = Vec::new();
    for package in &metadata.packages {
        let Some(may) = table.get(package.name.as_str()) else { continue };
        let imports = imports(package, &members, &[DependencyKind::Normal, DependencyKind::Build]);
        breaches.extend(imports.difference(may).map(|import| format!("{} imports {import}", package.name)));
    }
    assert!(breaches.is_empty(), "through a wall: {breaches:#?}");
}

#[test]
fn nothing_imports_the_sidecar_but_integration_and_nothing_imports_integration() {
    let metadata = workspace();
    let members = members(&metadata);
    let kinds = [DependencyKind::Normal, DependencyKind::Build, DependencyKind::Development];
    let mut breaches = Vec::new();
    for package in &metadata.packages {
        let imports = imports(package, &members, &kinds);
        if imports.contains(INTEGRATION) || (imports.contains(SIDECAR) && *package.name != INTEGRATION) {
            breaches.push(package.name.to_string());
        }
    }
    assert!(breaches.is_empty(), "these import {SIDECAR} or {INTEGRATION}: {breaches:?}");
}

#[test]
fn the_pure_crates_import_nothing_that_does_input_output_or_waits() {
    let metadata = workspace();
    let members = members(&metadata);
    for (name, may) in PURE {
        let package = metadata.packages.iter().find(|package| package.name == *name).expect("a crate of the workspace");
        let others: Vec<_> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind != DependencyKind::Development)
            .map(|dependency| dependency.name.as_str())
            .filter(|dependency| !members.contains(*dependency) && !may.contains(dependency))
            .collect();
        assert!(others.is_empty(), "{name} must stay pure, and imports {others:?}");
    }
}

#[test]
fn the_sources_of_the_pure_crates_name_no_file_socket_thread_or_clock() {
    let mut breaches = Vec::new();
    for folder in ["sidecar/core/src", "sidecar/asap/src"] {
        each_source(&repository().join(folder), &mut |path, text| {
            // Tests stand last in a file.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (index, line) in code.lines().enumerate() {
                // An address is data, and no socket.
                let line = line.split("//").next().unwrap_or_default().replace("std::net::SocketAddr", "");
                breaches.extend(
                    IMPURE
                        .iter()
                        .filter(|word| line.contains(**word))
                        .map(|word| format!("{}:{}: {word}", path.display(), index + 1)),
                );
            }
        });
    }
    assert!(breaches.is_empty(), "not pure: {breaches:#?}");
}

/// Every Rust file below `folder` but those that hold only tests.
fn each_source(folder: &Path, visit: &mut dyn FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("tests") {
            each_source(&path, visit);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            visit(&path, &fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn there_is_no_cryptography_but_aws_lc_rs() {
    // Not `cargo metadata`: its graph has `ring`, which a weak feature of rustls-webpki mentions and nothing builds.
    let built = built();
    let names: BTreeSet<_> = built.iter().map(|package| package.name.as_str()).collect();
    assert!(names.contains("aws-lc-rs") && names.contains("tokio"), "the graph was read: {names:?}");
    let banned: Vec<_> = names.iter().filter(|name| BANNED.contains(name)).collect();
    assert!(banned.is_empty(), "aws-lc-rs is the only cryptography, and these came in: {banned:?}");

    let rustls: Vec<_> = built.iter().filter(|package| package.name == "rustls").collect();
    let versions: BTreeSet<_> = rustls.iter().map(|package| package.version.as_str()).collect();
    assert_eq!(versions.len(), 1, "one version of rustls: {versions:?}");
    for Built { features, .. } in rustls {
        let has = |feature: &str| features.iter().any(|enabled| enabled == feature);
        assert!(has("aws_lc_rs") && !has("ring"), "rustls is built with {features:?}");
        assert!(!has("tls12"), "TLS 1.3 alone: rustls is built with {features:?}");
    }
}

/// A package of any kind of dependency, direct or not, with the features it is built with.
struct Built {
    name: String,
    version: String,
    features: Vec<String>,
}

/// All that a build of the workspace and its tests compiles on this platform.
fn built() -> Vec<Built> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        // What is built is on the disk and in the lock file: no test goes to the network or writes here.
        .args(["tree", "--workspace", "--all-features", "--frozen", "--edges", "normal,build,dev"])
        .args(["--prefix", "none", "--format", "{p}|{f}"])
        .current_dir(repository())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let package = |line: &str| {
        let (package, features) = line.split_once('|')?;
        let (name, rest) = package.split_once(" v")?;
        let version = rest.split(' ').next().unwrap_or_default().to_owned();
        let features = features.split([',', ' ']).map(str::to_owned).collect();
        Some(Built { name: name.to_owned(), version, features })
    };
    text.lines().filter_map(package).collect()
}
