//! Instances that a test itself starts and stops, sidecar and app, found by their callers through registration alone.

mod media;

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::Context as _;
use rustix::process::Signal;

use crate::{
    calls::http_get,
    mesh::{Mesh, SOON, binary, signal, target_profile_dir, wait},
    ports::Ports,
};

pub use self::media::{Media, POLICY, TENANT};

/// One instance of `media` (the real product service) or of an app that the test runs, and its sidecar.
pub struct Instance {
    name: String,
    scratch: PathBuf,
    app: SocketAddr,
    outbound: SocketAddr,
    inbound: SocketAddr,
    admin: SocketAddr,
    /// Of the sidecar.
    args: Vec<String>,
    app_process: Option<Child>,
    sidecar: Option<Child>,
    _ports: Ports,
}

impl Instance {
    /// Plans an instance of `service` in us-east, with what its sidecar needs to join. Nothing runs yet.
    ///
    /// # Errors
    /// The mesh does not run, or there are no ports.
    pub fn plan(mesh: &Mesh, service: &str, name: &str) -> anyhow::Result<Self> {
        let target = target_profile_dir()?;
        let mut ports = Ports::take(target.parent().unwrap_or(&target))?;
        let mut address = || SocketAddr::from(([127, 0, 0, 1], ports.give()));
        let (app, outbound, inbound, admin) = (address(), address(), address(), address());
        let scratch = mesh.scratch().join(format!("by-hand-{name}"));
        fs::create_dir_all(&scratch)?;
        let token = scratch.join("join-token");
        fs::write(&token, mesh.tenon_ok(&["identity", "join-token", "--service", service])?)?;
        let file = mesh.mesh_file()?;
        let text = |value: &serde_json::Value| Ok::<_, anyhow::Error>(value.as_str().context("text")?.to_owned());
        let plane = &file["controlPlane"];
        let args = [
            ("--service", service.to_owned()),
            ("--trust-domain", "test.example".to_owned()),
            ("--region", "us-east".to_owned()),
            ("--app", app.to_string()),
            ("--outbound", outbound.to_string()),
            ("--inbound", inbound.to_string()),
            ("--admin", admin.to_string()),
            ("--identity", text(&plane["identity"])?),
            ("--tcs", text(&plane["tcs"])?),
            ("--policy", text(&plane["policy"])?),
            ("--trust-bundle-sha256", text(&file["trustBundleSha256"])?),
            ("--join-token-file", token.display().to_string()),
            ("--state-dir", scratch.join("state").display().to_string()),
            ("--workers", "1".to_owned()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let (app_process, sidecar) = (None, None);
        let name = name.to_owned();
        Ok(Self { name, scratch, app, outbound, inbound, admin, args, app_process, sidecar, _ports: ports })
    }

    /// One more option of the sidecar, with its value.
    #[must_use]
    pub fn option(mut self, flag: &str, value: &str) -> Self {
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Another value of an option that it has.
    ///
    /// # Panics
    /// When it does not have it.
    #[must_use]
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        let at = self.args.iter().position(|arg| arg == flag).expect("the option is there");
        self.args[at + 1] = value.to_owned();
        self
    }

    /// All options of its sidecar as a file for `--config`: YAML is what JSON is too.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn config(&self) -> anyhow::Result<PathBuf> {
        let mut options = serde_json::Map::new();
        for pair in self.args.chunks(2) {
            let mut words = pair[0].trim_start_matches('-').split('-');
            let mut name = words.next().unwrap_or_default().to_owned();
            for word in words {
                name += &word[..1].to_uppercase();
                name += &word[1..];
            }
            let value = pair[1].parse::<u64>().map_or_else(|_| pair[1].clone().into(), serde_json::Value::from);
            options.insert(name, value);
        }
        let path = self.scratch.join("sidecar.yaml");
        fs::write(&path, serde_json::to_vec_pretty(&options)?)?;
        Ok(path)
    }

    /// Where its app listens.
    #[must_use]
    pub fn app(&self) -> SocketAddr {
        self.app
    }

    /// Where the app's own calls go.
    #[must_use]
    pub fn outbound(&self) -> SocketAddr {
        self.outbound
    }

    /// Where other sidecars call.
    #[must_use]
    pub fn inbound(&self) -> SocketAddr {
        self.inbound
    }

    /// Starts `media` as its app.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_app(&mut self) -> anyhow::Result<()> {
        self.start_app_at(self.app)
    }

    /// The same, at another address.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_app_at(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let mut command = Command::new(binary("media")?);
        command.args(["--listen", &address.to_string(), "--data"]).arg(self.scratch.join("data"));
        self.app_process = Some(self.spawn(command, "app")?);
        Ok(())
    }

    /// Starts its sidecar.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_sidecar(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(binary("tenon-sidecar")?);
        command.args(&self.args);
        self.sidecar = Some(self.spawn(command, "sidecar")?);
        Ok(())
    }

    /// Starts one more process of its sidecar, which takes over from the one that runs; that one is handed back. Of the
    /// options of the sidecar some may have other values.
    ///
    /// # Errors
    /// None runs, or the new one cannot be started.
    pub fn take_over(&mut self, otherwise: &[(&str, &str)]) -> anyhow::Result<Child> {
        let mut args = self.args.clone();
        for (flag, value) in otherwise {
            let at = args.iter().position(|arg| arg == flag).with_context(|| format!("no {flag}"))?;
            args[at + 1] = (*value).to_owned();
        }
        let mut command = Command::new(binary("tenon-sidecar")?);
        command.args(&args).arg("--take-over");
        let new = self.spawn(command, "sidecar")?;
        self.sidecar.replace(new).context("no sidecar runs")
    }

    /// Puts a process of its sidecar in the place of the one that is known, which is handed back.
    ///
    /// # Errors
    /// None is known.
    pub fn replace(&mut self, sidecar: Child) -> anyhow::Result<Child> {
        self.sidecar.replace(sidecar).context("no sidecar runs")
    }

    /// Where operators look.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits until the sidecar says that it is ready, and its instance registered.
    ///
    /// # Errors
    /// Neither comes true in time.
    pub async fn registered(&self) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + SOON;
        loop {
            let metrics = http_get(self.admin, "/metrics").await.unwrap_or_default();
            if metrics.lines().any(|line| line.starts_with("tenon_registered") && line.ends_with(" 1")) {
                return Ok(());
            }
            anyhow::ensure!(tokio::time::Instant::now() < end, "{} is not registered:\n{}", self.name, self.log());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Sends the sidecar a signal, and does not wait for what comes of it.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal_sidecar(&self, how: Signal) -> anyhow::Result<()> {
        signal(self.sidecar.as_ref().context("it does not run")?.id(), how)
    }

    /// Sends app and sidecar a signal at the same time, and waits for the end of both.
    ///
    /// # Errors
    /// One does not run, or does not end in time.
    pub async fn end_both(&mut self, how: Signal) -> anyhow::Result<()> {
        let (sidecar, app) = tokio::join!(end(self.sidecar.take(), how), end(self.app_process.take(), how));
        sidecar.and(app).map(drop)
    }

    /// Sends the sidecar a signal; one that ends it is waited for.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub async fn end_sidecar(&mut self, how: Signal) -> anyhow::Result<ExitStatus> {
        end(self.sidecar.take(), how).await
    }

    /// The same for the app.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub async fn end_app(&mut self, how: Signal) -> anyhow::Result<ExitStatus> {
        end(self.app_process.take(), how).await
    }

    /// What the sidecar has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("sidecar.log")).unwrap_or_default()
    }

    /// What the sidecar has written to its standard output.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(self.scratch.join("sidecar.out")).unwrap_or_default()
    }

    fn spawn(&self, mut command: Command, name: &str) -> anyhow::Result<Child> {
        let open = |end: &str| {
            let path = self.scratch.join(format!("{name}.{end}"));
            File::options().create(true).append(true).open(path)
        };
        command.current_dir(&self.scratch).stdin(Stdio::null()).stdout(open("out")?).stderr(open("log")?);
        command.spawn().with_context(|| format!("starting {command:?}"))
    }
}

async fn end(process: Option<Child>, how: Signal) -> anyhow::Result<ExitStatus> {
    let mut process = process.context("it does not run")?;
    signal(process.id(), how)?;
    tokio::task::spawn_blocking(move || wait(&mut process, SOON)).await?
}

impl Drop for Instance {
    fn drop(&mut self) {
        for process in [&mut self.sidecar, &mut self.app_process].into_iter().flatten() {
            let _gone = process.kill();
            let _reaped = process.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("== the end of the sidecar's log of {}:", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}
