//! `docs/grpcurl.md` is true: its commands are run in order in a running mesh, and every line that it shows must come
//! (`integration::guide`).

use std::{fs, os::unix::fs::symlink};

use integration::{
    guide::{Shell, blocks},
    mesh::{Mesh, Plan, SOON, eventually, repository},
    python,
};
use serde_json::json;

fn mesh() -> anyhow::Result<Mesh> {
    let mesh = Plan::demo()?.start()?;
    let media = json!({"state": "ACTIVE", "shard": {"cluster": "a", "database": "media", "schema": "acme"}});
    let tenant = |id: &str, status: &str| {
        let hosts = [format!("{id}.example.com")];
        json!({"tenantId": id, "status": status, "hosts": hosts, "region": "us-east", "products": {"media": media}})
    };
    mesh.import(&[tenant("acme", "ACTIVE"), tenant("asleep", "SUSPENDED")])?;
    let (grpcurl, wiki) = (python::program("grpcurl")?, mesh.outbound("wiki", "us-east").to_string());
    let call = ["-plaintext", "-authority", "media", "-H", "x-tenant-id: acme", &wiki, "media.v1.Media/List"];
    eventually(SOON, "calls pass", || Ok(std::process::Command::new(&grpcurl).args(call).output()?.status.success()))?;
    Ok(mesh)
}

#[test]
fn every_command_of_the_cookbook_does_what_it_says() -> anyhow::Result<()> {
    let mesh = mesh()?;
    let scratch = mesh.scratch().join("cookbook");
    fs::create_dir_all(&scratch)?;
    symlink(mesh.data_dir(), scratch.join(".tenon"))?;
    let control_plane = mesh.mesh_file()?["controlPlane"].clone();
    let service = |name: &str| control_plane[name].as_str().unwrap_or_default().to_owned();
    let addresses = [
        ("127.0.0.1:15401", mesh.outbound("wiki", "us-east").to_string()),
        ("127.0.0.1:15400", mesh.admin("wiki", "us-east").to_string()),
        ("127.0.0.1:15200", mesh.admin("media", "us-east").to_string()),
        ("127.0.0.1:15206", mesh.inbound("media", "us-east").to_string()),
        ("127.0.0.1:15010", service("identity")),
        ("127.0.0.1:15020", service("tcs")),
        ("127.0.0.1:15030", service("policy")),
    ];
    // In one pass: an address of the test may look like one of the document.
    let local = |line: &str| {
        let mut parts = line.split("127.0.0.1:");
        let mut local = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (port, rest) = part.split_at(5);
            let known = addresses.iter().find(|(shown, _)| shown.ends_with(port));
            local += &known.unwrap_or_else(|| panic!("{line}: whose address is {port}?")).1;
            local += rest;
        }
        local.replace("demo.example", "test.example")
    };
    let guide = fs::read_to_string(repository().join("docs/grpcurl.md"))?;
    let mut commands = 0;
    for block in blocks(&guide) {
        assert_eq!(block.language, "sh", "line {}", block.line);
        let shell = Shell::read(&block, local)?;
        commands += shell.commands;
        shell.run(&scratch, &mesh.data_dir(), &format!("line {} of docs/grpcurl.md", block.line))?;
    }
    assert!(commands >= 25, "{commands} commands are not the whole cookbook");
    Ok(())
}
