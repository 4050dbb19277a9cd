use mesh_config::{SourceFile, parse};

use super::*;

const MESH: &str = "
apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: demo}
spec: {trustDomain: demo.example, regions: [us-east, eu-west]}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {}
---
apiVersion: tenon.dev/v1
kind: LocalMesh
metadata: {name: local}
spec:
  controlPlane: {identity: 127.0.0.1:16010}
  instances:
    - service: media
      region: us-east
      app: 127.0.0.1:9002
      command: [media, --listen, 127.0.0.1:9002]
      outbound: 127.0.0.1:15201
      inbound: 127.0.0.1:15206
      admin: 127.0.0.1:15200
    - service: media
      region: us-east
      zone: b
      outbound: unix:/run/media.sock
      inbound: 127.0.0.1:15306
      admin: 127.0.0.1:15300
";

fn planned(store: Option<&Store>) -> Plan {
    let mesh = parse(&[SourceFile { path: "mesh.yaml".into(), text: MESH.into() }]).unwrap();
    let binaries = Binaries { tenon: "/bin/tenon".into(), sidecar: "/bin/tenon-sidecar".into() };
    let around = Surroundings {
        folder: Path::new("/mesh"),
        data: &Data::new(Path::new("/data")),
        store,
        mesh: &mesh,
        local: mesh.local().unwrap(),
        pin: "abc123",
    };
    plan(&around, &binaries)
}

fn line(child: &Planned) -> String {
    child.spec.program.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_sidecars_command_line_is_complete_and_holds_no_secret() {
    let plan = planned(None);
    assert_eq!(
        line(&plan.sidecars[0]),
        "/bin/tenon-sidecar --service media --trust-domain demo.example --region us-east --app 127.0.0.1:9002 \
         --outbound 127.0.0.1:15201 --inbound 127.0.0.1:15206 --admin 127.0.0.1:15200 --identity 127.0.0.1:16010 \
         --tcs 127.0.0.1:15020 --policy 127.0.0.1:15030 --trust-bundle-sha256 abc123 \
         --join-token-file /data/sidecars/media-us-east/join-token --state-dir /data/sidecars/media-us-east \
         --drain-seconds 6"
    );
    assert_eq!(plan.file.sidecars[0].command.join(" "), line(&plan.sidecars[0]), "mesh.json has the same");
    assert_eq!(plan.sidecars[0].joins.as_ref().unwrap().as_str(), "media");
}

#[test]
fn a_second_instance_in_a_region_gets_a_name_of_its_own() {
    let plan = planned(None);
    assert_eq!(plan.sidecars[1].spec.name, "media-us-east-2");
    let line = line(&plan.sidecars[1]);
    assert!(line.contains("--zone b ") && line.contains("--outbound unix:/run/media.sock"), "{line}");
    assert!(!line.contains("--app"), "{line}");
}

#[test]
fn an_app_is_run_as_it_is_written_and_joins_nothing() {
    let plan = planned(None);
    assert_eq!(plan.apps.len(), 1);
    assert_eq!(line(&plan.apps[0]), "media --listen 127.0.0.1:9002");
    assert_eq!((plan.apps[0].spec.name.as_str(), &plan.apps[0].joins), ("media-us-east-app", &None));
    assert_eq!(plan.apps[0].spec.with, [("TENON_DATA_FOLDER", "/data".into())]);
}

/// What clap makes of a command line, as the child would.
fn parsed(child: &Planned) -> crate::cli::Command {
    use clap::Parser as _;
    crate::cli::Cli::try_parse_from(&child.spec.program).unwrap().command
}

#[test]
fn roles_understand_their_command_lines() {
    use crate::cli::{Command, Identity, Policy, Tcs};
    let plan = planned(None);
    let Command::Identity(Identity::Serve(identity)) = parsed(&plan.identity) else { panic!("another command") };
    assert_eq!((identity.listen.port(), identity.ca.as_path()), (16010, Path::new("/data/ca")));
    assert_eq!(identity.key_repository, Some(([127, 0, 0, 1], 15011).into()));
    let Command::Policy(Policy::Serve(policy)) = parsed(&plan.policy) else { panic!("another command") };
    assert_eq!(
        (policy.folder.as_deref(), policy.store.path()),
        (Some(Path::new("/mesh")), Path::new("/data/policy/policy.redb"))
    );
    let Command::Tcs(Tcs::Serve(tcs)) = parsed(&plan.tcs) else { panic!("another command") };
    assert_eq!((tcs.join.identity.port(), tcs.store.path()), (16010, Path::new("/data/tcs/tcs.redb")));
    assert_eq!(tcs.join.join_token_file.as_deref(), Some(Path::new("/data/tcs/join-token")));
}

#[test]
fn stores_may_lie_elsewhere() {
    let store: Store = "embedded:/fast".parse().unwrap();
    let plan = planned(Some(&store));
    assert!(line(&plan.tcs).contains("--store embedded:/fast/tcs.redb"));
    assert!(line(&plan.policy).contains("--store embedded:/fast/policy.redb"));
}

#[test]
fn only_the_identity_service_gets_the_passphrase() {
    // What is removed depends on the environment of the test; the passphrase is never kept but there.
    let plan = planned(None);
    assert!(!plan.identity.spec.without.iter().any(|name| name == PASSPHRASE));
    assert!(plan.apps[0].spec.without.iter().any(|name| name == PASSPHRASE));
}
