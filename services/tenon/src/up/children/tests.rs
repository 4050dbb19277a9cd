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
      tenants: on-demand
      admin: 127.0.0.1:15300
";

fn planned(store: Option<&Store>) -> Plan {
    planned_of(MESH, store)
}

/// With a second TCS, in zone b.
fn planned_two(store: Option<&Store>) -> Plan {
    let second = "identity: 127.0.0.1:16010, tcs: [127.0.0.1:15020, {address: 127.0.0.1:15021, zone: b}]";
    planned_of(&MESH.replace("identity: 127.0.0.1:16010", second), store)
}

fn planned_of(text: &str, store: Option<&Store>) -> Plan {
    let mesh = parse(&[SourceFile { path: "mesh.yaml".into(), text: text.into() }]).unwrap();
    let binaries = Binaries { tenon: "/bin/tenon".into(), sidecar: "/bin/tenon-sidecar".into() };
    let around = Surroundings {
        folder: Path::new("/mesh"),
        data: &Data::new(Path::new("/data")),
        store,
        past: &PastArgs { retention: std::time::Duration::from_secs(2 * 3600), retained_bytes: 1 << 30 },
        mesh: &mesh,
        local: mesh.local().unwrap(),
        pin: "abc123",
        metrics: &metrics(),
    };
    plan(&around, &binaries)
}

fn metrics() -> BTreeMap<String, SocketAddr> {
    [("identity".to_owned(), ([127, 0, 0, 1], 15_012).into())].into()
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
    assert!(!line.contains("--app") && line.contains("--tenants on-demand"), "{line}");
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
    assert_eq!(identity.role.metrics, Some(([127, 0, 0, 1], 15_012).into()));
    assert_eq!(identity.key_repository, Some(([127, 0, 0, 1], 15011).into()));
    let Command::Policy(Policy::Serve(policy)) = parsed(&plan.policy[0]) else { panic!("another command") };
    assert_eq!(
        (policy.folder.as_deref(), policy.store.to_string()),
        (Some(Path::new("/mesh")), "embedded:/data/policy/policy.redb".to_owned())
    );
    let Command::Tcs(Tcs::Serve(tcs)) = parsed(&plan.tcs[0]) else { panic!("another command") };
    let store = tcs.store.unwrap().to_string();
    assert_eq!((tcs.join.identity.port(), store.as_str()), (16010, "embedded:/data/tcs/tcs.redb"));
    assert_eq!((tcs.past.retention.as_secs(), tcs.past.retained_bytes), (2 * 3600, 1 << 30));
    assert_eq!(tcs.join.join_token_file.as_deref(), Some(Path::new("/data/tcs/join-token")));
}

#[test]
fn stores_may_lie_elsewhere() {
    let store: Store = "embedded:/fast".parse().unwrap();
    let plan = planned(Some(&store));
    assert!(line(&plan.tcs[0]).contains("--store embedded:/fast/tcs.redb"));
    assert!(line(&plan.policy[0]).contains("--store embedded:/fast/policy.redb"));
}

#[test]
fn a_second_tcs_follows_the_first_and_sidecars_are_told_of_both() {
    use crate::cli::{Command, Tcs};
    let plan = planned_two(None);
    assert_eq!(plan.tcs[1].spec.name, "tcs-2");
    let Command::Tcs(Tcs::Serve(second)) = parsed(&plan.tcs[1]) else { panic!("another command") };
    assert_eq!((second.store, second.follow), (None, vec![([127, 0, 0, 1], 15020).into()]));
    assert_eq!((second.listen.port(), second.role.state_dir.as_path()), (15021, Path::new("/data/tcs-2")));
    let sidecar = line(&plan.sidecars[0]);
    assert!(sidecar.contains(" --tcs 127.0.0.1:15020 --tcs b=127.0.0.1:15021 "), "{sidecar}");
    let replicas = &plan.file.control_plane.tcs_replicas;
    assert_eq!((replicas[0].address.port(), replicas[0].writes), (15021, false));
}

#[test]
fn with_nats_each_tcs_writes_with_a_state_folder_of_its_own() {
    let store: Store = "nats://127.0.0.1:4222,127.0.0.1:4223".parse().unwrap();
    let plan = planned_two(Some(&store));
    for (child, dir) in
        [(&plan.tcs[0], "/data/tcs "), (&plan.tcs[1], "/data/tcs-2 "), (&plan.policy[0], "/data/policy ")]
    {
        let line = line(child);
        assert!(line.contains(" --store nats://127.0.0.1:4222,127.0.0.1:4223 "), "{line}");
        assert_eq!(line.contains(" --retention 2h --retained-bytes 1GiB "), line.contains("tcs serve"), "{line}");
        assert!(line.contains(&format!("--state-dir {dir}")) && !line.contains("--follow"), "{line}");
    }
    assert!(plan.file.control_plane.tcs_replicas[0].writes);
}

#[test]
fn only_the_identity_service_gets_the_passphrase() {
    // What is removed depends on the environment of the test; the passphrase is never kept but there.
    let plan = planned(None);
    assert!(!plan.identity.spec.without.iter().any(|name| name == PASSPHRASE));
    assert!(plan.apps[0].spec.without.iter().any(|name| name == PASSPHRASE));
}
