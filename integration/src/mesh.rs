//! `tenon up` as a child process, with everything that tests do to a mesh.

mod plan;

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use mesh_identity::{Identity, Svid, TrustBundle};
use serde_json::Value;

pub use self::plan::Plan;
use crate::ports::Ports;

/// How long a mesh may take to become ready in a debug build on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// How long anything else may take that is a matter of milliseconds.
pub const SOON: Duration = Duration::from_secs(20);

/// Where cargo puts what it builds, seen from a test or binary of this crate.
///
/// # Errors
/// The running program does not lie in a target folder.
pub fn target_profile_dir() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("the program lies in no folder")?;
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

/// Folder with the binaries to test instead of those beside this program: `make test-release` names one.
#[must_use]
pub fn binaries_elsewhere() -> Option<PathBuf> {
    std::env::var_os("TENON_TEST_BINARIES").map(PathBuf::from)
}

/// A binary of the workspace.
///
/// # Errors
/// It was not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let path = binaries_elsewhere().map_or_else(target_profile_dir, Ok)?.join(name);
    ensure!(path.exists(), "{} is missing: `make test` builds it, or `cargo build --workspace --bins`", path.display());
    Ok(path)
}

/// The top of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// One instance of a LocalMesh.
#[derive(Debug, Clone, Default)]
pub struct Instance {
    service: String,
    region: String,
    app: Option<u16>,
    command: Vec<String>,
    outbound: u16,
    inbound: u16,
    admin: u16,
    on_demand: bool,
}

/// A mesh on this machine. Dropping it ends it.
pub struct Mesh {
    dir: tempfile::TempDir,
    instances: Vec<Instance>,
    _ports: Ports,
    environment: Vec<(String, String)>,
    store: Option<String>,
    binaries: Option<PathBuf>,
    up: Option<Up>,
    /// Sidecars that a test started by hand.
    extra: Vec<Child>,
    /// What all listens on.
    host: IpAddr,
}

struct Up {
    child: Child,
    printed: mpsc::Receiver<String>,
    log: Vec<String>,
}

impl Mesh {
    /// The policy folder.
    #[must_use]
    pub fn policy_dir(&self) -> PathBuf {
        self.dir.path().join("mesh")
    }

    /// The data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A folder for the test's own files.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Starts `tenon up` and waits for `ready`.
    ///
    /// # Errors
    /// It ends or takes too long; with what it printed.
    pub fn up(&mut self) -> anyhow::Result<()> {
        let mut child = Command::new(self.tenon_binary()?)
            .args(["up", "-f"])
            .arg(self.policy_dir())
            .arg("--data")
            .arg(self.data_dir())
            .args(self.store.iter().flat_map(|store| ["--store", store]))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (sender, printed) = mpsc::channel();
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let errors = sender.clone();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| errors.send(line))
        });
        self.up = Some(Up { child, printed, log: Vec::new() });
        self.wait_for_line("ready", READY)
    }

    fn tenon_binary(&self) -> anyhow::Result<PathBuf> {
        self.binaries.as_ref().map_or_else(|| binary("tenon"), |folder| Ok(folder.join("tenon")))
    }

    fn wait_for_line(&mut self, wanted: &str, within: Duration) -> anyhow::Result<()> {
        let up = self.up.as_mut().context("the mesh is not running")?;
        let end = Instant::now() + within;
        loop {
            match up.printed.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line == wanted => return Ok(()),
                Ok(line) => up.log.push(line),
                Err(error) => {
                    bail!("`tenon up` never printed {wanted:?} ({error}); it printed:\n{}", up.log.join("\n"))
                }
            }
        }
    }

    /// Process id of `tenon up`.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.up.as_ref().expect("the mesh is running").child.id()
    }

    /// Runs `tenon` with `--data` of this mesh.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn tenon(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(self.tenon_binary()?);
        command.args(args).arg("--data").arg(self.data_dir()).current_dir(self.dir.path()).stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// As [`Mesh::tenon`], and it must succeed; its standard output.
    ///
    /// # Errors
    /// It fails: with what it printed.
    pub fn tenon_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.tenon(args)?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tenon {args:?}: {}\n{printed}\n{complained}", output.status);
        Ok(printed)
    }

    /// Imports tenants from proto3 JSON values.
    ///
    /// # Errors
    /// The import fails.
    pub fn import(&self, tenants: &[Value]) -> anyhow::Result<()> {
        let file = self.dir.path().join("tenants.jsonl");
        let lines: Vec<String> = tenants.iter().map(Value::to_string).collect();
        fs::write(&file, lines.join("\n") + "\n")?;
        self.tenon_ok(&["tenants", "import", &file.display().to_string()]).map(drop)
    }

    fn find(&self, service: &str, region: &str) -> &Instance {
        self.instances
            .iter()
            .find(|instance| instance.service == service && instance.region == region)
            .expect("the plan names this instance")
    }

    /// Outbound listener of an instance's sidecar.
    #[must_use]
    pub fn outbound(&self, service: &str, region: &str) -> SocketAddr {
        SocketAddr::new(self.host, self.find(service, region).outbound)
    }

    /// Inbound listener of an instance's sidecar.
    #[must_use]
    pub fn inbound(&self, service: &str, region: &str) -> SocketAddr {
        SocketAddr::new(self.host, self.find(service, region).inbound)
    }

    /// Admin listener of an instance's sidecar.
    #[must_use]
    pub fn admin(&self, service: &str, region: &str) -> SocketAddr {
        SocketAddr::new(self.host, self.find(service, region).admin)
    }

    /// Admin listeners of the sidecars of all instances of a service.
    #[must_use]
    pub fn admins(&self, service: &str) -> Vec<SocketAddr> {
        let instances = self.instances.iter().filter(|instance| instance.service == service);
        instances.map(|instance| SocketAddr::new(self.host, instance.admin)).collect()
    }

    /// Where an instance's app listens.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn app(&self, service: &str, region: &str) -> SocketAddr {
        SocketAddr::new(self.host, self.find(service, region).app.expect("the plan gives it an app"))
    }

    /// Where the apps of all instances of a service listen.
    #[must_use]
    pub fn apps(&self, service: &str) -> Vec<SocketAddr> {
        let instances = self.instances.iter().filter(|instance| instance.service == service);
        instances.filter_map(|instance| Some(SocketAddr::new(self.host, instance.app?))).collect()
    }

    /// Everything below `tenon up` whose command line says this: (pid, command line).
    #[must_use]
    pub fn processes(&self, saying: &str) -> Vec<(u32, Vec<String>)> {
        descendants(self.pid()).into_iter().filter(|(_, words)| words.join(" ").contains(saying)).collect()
    }

    /// The process of the control plane whose state lies in this folder of the data folder: `tcs`, `tcs-2`.
    ///
    /// # Errors
    /// It does not run.
    pub fn service(&self, name: &str) -> anyhow::Result<u32> {
        let folder = self.data_dir().join(name).display().to_string();
        let is = |words: &[String]| words.windows(2).any(|two| two[0] == "--state-dir" && two[1] == folder);
        let found = self.processes("--state-dir").into_iter().find(|(_, words)| is(words));
        Ok(found.with_context(|| format!("no process has its state in {folder}"))?.0)
    }

    /// The operator, as the control plane knows it.
    ///
    /// # Errors
    /// The mesh has not been started yet.
    pub fn operator(&self) -> anyhow::Result<Arc<Identity>> {
        let read = |name: &str| fs::read_to_string(self.data_dir().join(name));
        let svid = Svid::from_pem(&read("operator/svid.pem")?, &read("operator/key.pem")?)?;
        let bundle = TrustBundle::from_pem(svid.id().trust_domain().clone(), &read("trust-bundle.pem")?)?;
        Ok(Identity::new(svid, bundle))
    }

    /// Where each TCS listens, the first one first.
    ///
    /// # Errors
    /// The mesh has not been started yet.
    pub fn tcs(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let plane = self.mesh_file()?["controlPlane"].take();
        let replicas = plane["tcsReplicas"].as_array().into_iter().flatten().map(|replica| &replica["address"]);
        let all = [&plane["tcs"]].into_iter().chain(replicas);
        all.map(|address| Ok(address.as_str().context("an address is text")?.parse()?)).collect()
    }

    /// Kills (SIGKILL) identity, TCS and policy service. `tenon up` is stopped (SIGSTOP) first, so that it starts none of
    /// them again; it goes on when the mesh ends.
    ///
    /// # Errors
    /// A process cannot be found or killed.
    pub fn kill_control_plane(&self) -> anyhow::Result<()> {
        let roles = ["identity serve", "tcs serve", "policy serve"];
        let services: Vec<u32> = roles.iter().flat_map(|role| self.processes(role)).map(|(pid, _)| pid).collect();
        ensure!(services.len() == roles.len(), "expected three services, found the processes {services:?}");
        signal(self.pid(), rustix::process::Signal::STOP)?;
        services.into_iter().try_for_each(|pid| signal(pid, rustix::process::Signal::KILL))
    }

    /// Starts a sidecar again by hand with the command line that it had.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_by_hand(&mut self, command: &[String]) -> anyhow::Result<()> {
        let (program, args) = command.split_first().context("an empty command line")?;
        let log = fs::File::create(self.dir.path().join(format!("by-hand-{}.log", self.extra.len())))?;
        let child = Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.extra.push(child);
        Ok(())
    }

    /// `mesh.json` of the data folder.
    ///
    /// # Errors
    /// There is none.
    pub fn mesh_file(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.data_dir().join("mesh.json"))?)?)
    }

    /// Asks `tenon up` to end, as Ctrl-C does, and waits for it.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub fn down(&mut self) -> anyhow::Result<()> {
        let Some(mut up) = self.up.take() else { return Ok(()) };
        signal(up.child.id(), rustix::process::Signal::CONT)?;
        signal(up.child.id(), rustix::process::Signal::TERM)?;
        let status = wait(&mut up.child, SOON)?;
        let log: Vec<String> = up.log.into_iter().chain(up.printed.try_iter()).collect();
        ensure!(status.success(), "`tenon up` ended with {status}:\n{}", log.join("\n"));
        Ok(())
    }

    /// What the processes of the mesh have logged, by file name.
    #[must_use]
    pub fn logs(&self) -> HashMap<String, String> {
        let Ok(entries) = fs::read_dir(self.data_dir()) else { return HashMap::new() };
        entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"))
            .map(|entry| {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                (entry.file_name().to_string_lossy().into_owned(), text)
            })
            .collect()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for child in &mut self.extra {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        if thread::panicking() {
            let mut logs: Vec<(String, String)> = self.logs().into_iter().collect();
            logs.sort();
            for (name, text) in logs {
                let tail: Vec<&str> = text.lines().rev().take(40).collect();
                eprintln!("== the end of {name}:");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        if let Err(error) = self.down() {
            eprintln!("ending the mesh: {error:#}");
        }
    }
}

/// Sends a signal.
///
/// # Errors
/// There is no such process.
pub fn signal(pid: u32, signal: rustix::process::Signal) -> anyhow::Result<()> {
    let raw = i32::try_from(pid)?;
    let pid = rustix::process::Pid::from_raw(raw).ok_or_else(|| anyhow!("{pid} is no process id"))?;
    rustix::process::kill_process(pid, signal).with_context(|| format!("signalling process {raw}"))
}

/// Waits for a child to end.
///
/// # Errors
/// It does not, in time.
pub fn wait(child: &mut Child, within: Duration) -> anyhow::Result<std::process::ExitStatus> {
    let mut status = None;
    eventually(within, "the process ends", || {
        status = child.try_wait()?;
        Ok(status.is_some())
    })?;
    status.context("it has ended")
}

/// Asks until the answer is yes.
///
/// # Errors
/// It never is, in time; or asking fails.
pub fn eventually(within: Duration, what: &str, mut ask: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + within;
    while !ask()? {
        ensure!(Instant::now() < end, "it did not come true within {within:?} that {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
    Ok(())
}

/// All processes below `root`: (pid, command line).
#[must_use]
pub fn descendants(root: u32) -> Vec<(u32, Vec<String>)> {
    let mut parents: HashMap<u32, u32> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name stands in parentheses and may hold anything; the parent is the second field behind it.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = fields.split_whitespace();
        let (Some(state), Some(Ok(parent))) = (fields.next(), fields.next().map(str::parse)) else { continue };
        if state != "Z" {
            parents.insert(pid, parent);
        }
    }
    let below = |pid: &u32| {
        let mut at = *pid;
        while let Some(parent) = parents.get(&at) {
            if *parent == root {
                return true;
            }
            at = *parent;
        }
        false
    };
    parents.keys().filter(|pid| below(pid)).map(|pid| (*pid, command_line(*pid))).collect()
}

/// Words of a process's command line; empty when it is gone.
#[must_use]
pub fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}
