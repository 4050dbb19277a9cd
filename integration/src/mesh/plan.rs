//! What a mesh shall be, before it runs.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{Instance, Mesh, binary, repository, target_profile_dir};
use crate::ports::Ports;

/// What a mesh shall be.
pub struct Plan {
    ports: Ports,
    dir: tempfile::TempDir,
    instances: Vec<Instance>,
    files: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    /// Processes of the TCS, and of the policy service.
    tcs: usize,
    policies: usize,
    store: Option<String>,
    binaries: Option<PathBuf>,
    /// What all listens on.
    host: IpAddr,
}

impl Plan {
    /// A mesh `test.example` with regions us-east and eu-west and nothing in it.
    ///
    /// # Errors
    /// No ports, or no temporary folder.
    pub fn new() -> anyhow::Result<Self> {
        let target = target_profile_dir()?;
        let mesh = "apiVersion: tenon.dev/v1\nkind: Mesh\nmetadata: {name: test}\n\
                    spec: {trustDomain: test.example, regions: [us-east, eu-west]}\n";
        Ok(Self {
            ports: Ports::take(target.parent().unwrap_or(&target))?,
            dir: tempfile::tempdir()?,
            instances: Vec::new(),
            files: vec![("mesh.yaml".into(), mesh.into())],
            environment: Vec::new(),
            tcs: 1,
            policies: 1,
            store: None,
            binaries: None,
            host: Ipv4Addr::LOCALHOST.into(),
        })
    }

    /// The demo's mesh: issues and media in us-east, media in eu-west, and wiki.
    ///
    /// # Errors
    /// As [`Plan::new`]; or the sample files cannot be read.
    pub fn demo() -> anyhow::Result<Self> {
        let mut plan = Self::new()?;
        for file in ["services.yaml", "allowlists.yaml"] {
            let text = fs::read_to_string(repository().join("mesh-config/demo").join(file))?;
            plan = plan.file(file, &text);
        }
        let outbound = plan.ports.give();
        let outbound_flag = format!("127.0.0.1:{outbound}");
        let plan = plan.product("issues", "us-east", &["--outbound", &outbound_flag], Some(outbound))?;
        let plan = plan.product("media", "us-east", &[], None)?.product("media", "eu-west", &[], None)?;
        Ok(plan.caller("wiki", "us-east"))
    }

    /// All of it listens on `::1`, and on no IPv4 address.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.host = Ipv6Addr::LOCALHOST.into();
        self
    }

    /// A policy file.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.retain(|(other, _)| other != name);
        self.files.push((name.into(), text.into()));
        self
    }

    /// A variable of `tenon up`, which all its processes inherit.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// So many processes of the TCS, each in a zone of its own.
    #[must_use]
    pub fn tcs(mut self, processes: usize) -> Self {
        self.tcs = processes;
        self
    }

    /// So many processes of the policy service.
    #[must_use]
    pub fn policies(mut self, processes: usize) -> Self {
        self.policies = processes;
        self
    }

    /// Binaries of this folder instead of those beside this program.
    #[must_use]
    pub fn binaries(mut self, folder: &Path) -> Self {
        self.binaries = Some(folder.to_owned());
        self
    }

    /// `--store` of `tenon up`.
    #[must_use]
    pub fn store(mut self, store: &str) -> Self {
        self.store = Some(store.into());
        self
    }

    /// An instance that only calls.
    #[must_use]
    pub fn caller(mut self, service: &str, region: &str) -> Self {
        let instance = self.instance(service, region, None);
        self.instances.push(instance);
        self
    }

    /// Has the sidecar of an instance that is planned hold the tenants that were asked for, instead of all.
    #[must_use]
    pub fn on_demand(mut self, service: &str, region: &str) -> Self {
        let planned = self.instances.iter_mut().filter(|it| it.service == service && it.region == region);
        planned.for_each(|instance| instance.on_demand = true);
        self
    }

    /// An instance that only calls, whose sidecar holds the tenants that it was asked for.
    #[must_use]
    pub fn caller_on_demand(mut self, service: &str, region: &str) -> Self {
        let instance = self.instance(service, region, None);
        self.instances.push(Instance { on_demand: true, ..instance });
        self
    }

    /// An instance whose app is started by `tenon up`: `command` is given the app's port.
    #[must_use]
    pub fn app(mut self, service: &str, region: &str, command: impl FnOnce(u16) -> Vec<String>) -> Self {
        let mut instance = self.instance(service, region, None);
        let port = self.ports.give();
        (instance.app, instance.command) = (Some(port), command(port));
        self.instances.push(instance);
        self
    }

    /// An instance whose app the test runs itself, or does not.
    #[must_use]
    pub fn app_elsewhere(mut self, service: &str, region: &str) -> Self {
        let mut instance = self.instance(service, region, None);
        instance.app = Some(self.ports.give());
        self.instances.push(instance);
        self
    }

    /// So many instances beside one app, which the test runs itself.
    #[must_use]
    pub fn instances(mut self, service: &str, region: &str, count: usize) -> Self {
        let app = self.ports.give();
        for _ in 0..count {
            let instance = self.instance(service, region, None);
            self.instances.push(Instance { app: Some(app), ..instance });
        }
        self
    }

    fn product(mut self, service: &str, region: &str, more: &[&str], outbound: Option<u16>) -> anyhow::Result<Self> {
        let mut instance = self.instance(service, region, outbound);
        let port = self.ports.give();
        let data = self.dir.path().join(format!("apps/{service}-{region}"));
        let program = binary(service)?;
        let mut command = vec![program.display().to_string(), "--listen".into(), format!("127.0.0.1:{port}")];
        command.extend(["--data".into(), data.display().to_string()]);
        command.extend(more.iter().map(|word| (*word).to_owned()));
        (instance.app, instance.command) = (Some(port), command);
        self.instances.push(instance);
        Ok(self)
    }

    fn instance(&mut self, service: &str, region: &str, outbound: Option<u16>) -> Instance {
        Instance {
            service: service.into(),
            region: region.into(),
            outbound: outbound.unwrap_or_else(|| self.ports.give()),
            inbound: self.ports.give(),
            admin: self.ports.give(),
            ..Instance::default()
        }
    }

    fn local_mesh(&mut self) -> String {
        let host = self.host;
        let at = move |port| SocketAddr::new(host, port);
        let mut text = String::from(
            "apiVersion: tenon.dev/v1\nkind: LocalMesh\nmetadata: {name: local}\nspec:\n  controlPlane:\n",
        );
        for key in ["identity", "keyRepository", "dashboard"] {
            text += &format!("    {key}: \"{}\"\n", at(self.ports.give()));
        }
        let policies: Vec<_> = (0..self.policies).map(|_| format!("\"{}\"", at(self.ports.give()))).collect();
        text += &format!("    policy: [{}]\n", policies.join(", "));
        if self.tcs == 1 {
            text += &format!("    tcs: \"{}\"\n", at(self.ports.give()));
        } else {
            text += "    tcs:\n";
            for number in 0..self.tcs {
                text += &format!("      - {{address: \"{}\", zone: zone-{number}}}\n", at(self.ports.give()));
            }
        }
        text += "  instances:\n";
        for instance in &self.instances {
            text += &format!("    - service: {}\n      region: {}\n", instance.service, instance.region);
            if let Some(port) = instance.app {
                text += &format!("      app: \"{}\"\n", at(port));
            }
            if !instance.command.is_empty() {
                text += &format!("      command: {}\n", serde_json::json!(instance.command));
            }
            text += &format!(
                "      outbound: \"{}\"\n      inbound: \"{}\"\n      admin: \"{}\"\n",
                at(instance.outbound),
                at(instance.inbound),
                at(instance.admin)
            );
            if instance.on_demand {
                text += "      tenants: on-demand\n";
            }
        }
        text
    }

    /// Writes the files without starting anything.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn prepare(mut self) -> anyhow::Result<Mesh> {
        let folder = self.dir.path().join("mesh");
        fs::create_dir_all(&folder)?;
        for (name, text) in &self.files {
            fs::write(folder.join(name), text)?;
        }
        let local = self.local_mesh();
        fs::write(folder.join("local.yaml"), local)?;
        Ok(Mesh {
            dir: self.dir,
            instances: self.instances,
            _ports: self.ports,
            environment: self.environment,
            store: self.store,
            binaries: self.binaries,
            up: None,
            extra: Vec::new(),
            host: self.host,
        })
    }

    /// Starts the mesh and waits until it says `ready`.
    ///
    /// # Errors
    /// It does not become ready: with its log.
    pub fn start(self) -> anyhow::Result<Mesh> {
        let mut mesh = self.prepare()?;
        mesh.up()?;
        Ok(mesh)
    }
}
