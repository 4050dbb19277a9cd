//! `docs/grpcurl.md` is true: its commands are run in order in a running mesh, and every line that it shows must come
//! (`integration::guide`).

use integration::{
    guide::Place,
    mesh::{Mesh, Plan, SOON, eventually},
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
    let (wiki, media) = (("wiki", "us-east"), ("media", "us-east"));
    let sidecars = [
        (15401, mesh.outbound(wiki.0, wiki.1)),
        (15400, mesh.admin(wiki.0, wiki.1)),
        (15200, mesh.admin(media.0, media.1)),
        (15206, mesh.inbound(media.0, media.1)),
    ];
    let commands = Place::of(&mesh, &sidecars)?.run("docs/grpcurl.md")?;
    assert!(commands >= 25, "{commands} commands are not the whole cookbook");
    Ok(())
}
