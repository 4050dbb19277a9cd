//! The sample mesh: its folder, its processes, its tenants.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use integration::mesh::{SOON, binary, descendants, repository, signal, wait};
use rustix::process::Signal;
use tokio::signal::unix::SignalKind;

use crate::tenants;

/// Outbound listener of the sidecar of `issues`, as in `mesh-config/demo/local.yaml`.
pub const ISSUES: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15_101);
/// Outbound listener of the sidecar of `wiki`.
pub const WIKI: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15_401);

/// A running sample mesh. Dropping it ends all its processes.
pub struct Sample {
    up: Child,
    policy: PathBuf,
    data: PathBuf,
}

impl Sample {
    /// Starts the mesh on a fresh data folder, with a copy of the policy that may be changed, and its tenants.
    pub fn start_fresh() -> anyhow::Result<Self> {
        let home = repository().join("target/demo");
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("cannot clear {}", home.display()))?;
        }
        let policy = home.join("mesh");
        fs::create_dir_all(&policy)?;
        for entry in fs::read_dir(repository().join("mesh-config/demo"))? {
            let path = entry?.path();
            // The apps keep their files below the demo's folder, too.
            let text = fs::read_to_string(&path)?.replace(".tenon/", "target/demo/");
            fs::write(policy.join(path.file_name().context("a file has a name")?), text)?;
        }
        Self::start(policy, home.join("data"))
    }

    fn start(policy: PathBuf, data: PathBuf) -> anyhow::Result<Self> {
        let mut up = Command::new(binary("tenon")?)
            .arg("up")
            .arg("-f")
            .arg(&policy)
            .arg("--data")
            .arg(&data)
            .current_dir(repository())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for this process, which ends the mesh in its own time.
            .process_group(0)
            .spawn()?;
        let (sender, printed) = mpsc::channel();
        let (stdout, stderr) = (up.stdout.take().context("piped")?, up.stderr.take().context("piped")?);
        let errors = sender.clone();
        thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
        thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|l| errors.send(l)));
        let mesh = Self { up, policy, data };
        let mut log = Vec::new();
        loop {
            match printed.recv_timeout(Duration::from_secs(60)) {
                Ok(line) if line == "ready" => break,
                Ok(line) => log.push(line),
                Err(_) => bail!("the mesh did not become ready; `tenon up` printed:\n{}", log.join("\n")),
            }
        }
        // Whatever it prints from now on is in its log files; the pipe must not fill up.
        thread::spawn(move || printed.into_iter().for_each(drop));
        mesh.import()?;
        Ok(mesh)
    }

    fn import(&self) -> anyhow::Result<()> {
        let file = self.data.join("demo-tenants.jsonl");
        let lines: Vec<String> = tenants::all().iter().map(ToString::to_string).collect();
        fs::write(&file, lines.join("\n") + "\n")?;
        self.tenon(&["tenants", "import", &file.display().to_string()])
    }

    /// Runs an operator's command.
    pub fn tenon(&self, args: &[&str]) -> anyhow::Result<()> {
        let output =
            Command::new(binary("tenon")?).args(args).arg("--data").arg(&self.data).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "tenon {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The policy folder, free to be changed.
    pub fn policy(&self) -> &Path {
        &self.policy
    }

    /// SIGKILL for identity, TCS and policy service; `tenon up` is stopped so that it does not start them again.
    pub fn kill_control_plane(&self) -> anyhow::Result<()> {
        signal(self.up.id(), Signal::STOP)?;
        let roles = ["identity serve", "tcs serve", "policy serve"];
        let mut killed = 0;
        for (pid, words) in descendants(self.up.id()) {
            if roles.iter().any(|role| words.join(" ").contains(role)) {
                signal(pid, Signal::KILL)?;
                killed += 1;
            }
        }
        ensure!(killed == roles.len(), "expected three services of the control plane, found {killed}");
        Ok(())
    }

    fn down(&mut self) -> anyhow::Result<()> {
        signal(self.up.id(), Signal::CONT)?;
        signal(self.up.id(), Signal::TERM)?;
        wait(&mut self.up, SOON).map(drop)
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            eprintln!("demo: ending the mesh: {error:#}");
        }
    }
}

/// Waits for Ctrl-C, SIGTERM or SIGHUP, and says which it was.
pub async fn asked_to_end() -> anyhow::Result<&'static str> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut hang_up = tokio::signal::unix::signal(SignalKind::hangup())?;
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended.map(|()| "Ctrl-C").map_err(Into::into),
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = hang_up.recv() => Ok("SIGHUP"),
    }
}

/// Starts the mesh of mesh-config/demo itself, with `.tenon` as its data folder, and stays until Ctrl-C.
pub async fn stay() -> anyhow::Result<ExitCode> {
    let mesh = Sample::start(repository().join("mesh-config/demo"), repository().join(".tenon"))?;
    println!(
        "\nThe sample mesh is running with {} tenants; Ctrl-C ends it. In another terminal, try:\n
  # allowed: wiki lists acme's files
  grpcurl -plaintext -authority media -H 'x-tenant-id: acme' {WIKI} media.v1.Media/List
  # refused, with the reason: wiki may not delete
  grpcurl -plaintext -authority media -H 'x-tenant-id: acme' -d '{{\"id\": \"x\"}}' {WIKI} media.v1.Media/Delete
  # refused: this tenant is suspended
  grpcurl -plaintext -authority media -H 'x-tenant-id: asleep' {WIKI} media.v1.Media/List
  # a work item, kept by issues for acme
  grpcurl -plaintext -authority issues -H 'x-tenant-id: acme' -d '{{\"project\": \"OPS\", \"summary\": \"Disk full\"}}' {WIKI} issues.v1.Issues/Create

  target/release/tenon tenants unsuspend asleep      # and call again
  target/release/tenon policy status
  target/release/tenon check
  target/release/tenon dashboard                     # a link for your browser
  edit mesh-config/demo/allowlists.yaml              # takes effect while running\n",
        tenants::COUNT
    );
    let ended = asked_to_end().await?;
    drop(mesh);
    println!("{ended}: the mesh is stopped.");
    Ok(ExitCode::SUCCESS)
}
