//! A JetStream cluster of three nodes on loopback, whose nodes can be killed, stopped and started again.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use async_nats::{
    Client, ConnectOptions,
    jetstream::{self, ErrorCode, context::GetStreamErrorKind},
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::ports::Ports;

/// How long a cluster may take until all of its nodes answer.
const STARTING: Duration = Duration::from_secs(30);

/// Three nodes with a folder each; dropping it ends them.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    dir: TempDir,
    _ports: Ports,
}

#[derive(Debug)]
struct Node {
    client: u16,
    route: u16,
    child: Mutex<Option<Child>>,
}

impl Cluster {
    /// Starts three nodes and waits until each of them answers for JetStream. `target` is Cargo's target folder, where
    /// locks on ports lie.
    ///
    /// # Errors
    /// There is no `nats-server`, or it does not come up; with the end of its log.
    pub async fn start(target: &Path) -> anyhow::Result<Self> {
        Self::of(3, target).await
    }

    /// As [`Cluster::start`], of `size` nodes. A single one is no cluster, and keeps streams on one disk.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn of(size: usize, target: &Path) -> anyhow::Result<Self> {
        let mut ports = Ports::take(target)?;
        let dir = tempfile::tempdir()?;
        let mut nodes = Vec::new();
        for _ in 0..size {
            nodes.push(Node { client: ports.give(), route: ports.give(), child: Mutex::default() });
        }
        let cluster = Self { nodes, dir, _ports: ports };
        for node in 0..size {
            cluster.configure(node)?;
            cluster.launch(node)?;
        }
        cluster.wait().await?;
        Ok(cluster)
    }

    /// What `--store` takes.
    #[must_use]
    pub fn store(&self) -> String {
        let servers: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.client)).collect();
        format!("nats://{}", servers.join(","))
    }

    /// Ends a node without warning.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&self, node: usize) -> anyhow::Result<()> {
        let mut child = self.nodes[node].child().take().context("the node is down already")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts a node that was killed, with what is on its disk.
    ///
    /// # Errors
    /// It is running, or cannot be started.
    pub fn launch(&self, node: usize) -> anyhow::Result<()> {
        let mut running = self.nodes[node].child();
        if running.is_some() {
            bail!("node {node} is running");
        }
        let log = File::create(self.folder(node).join("output.log"))?;
        let child = Command::new(binary()?)
            .arg("-c")
            .arg(self.folder(node).join("server.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("nats-server cannot be started")?;
        *running = Some(child);
        Ok(())
    }

    /// Stops a node in the middle of whatever it does; its connections stay open.
    ///
    /// # Errors
    /// It is not running.
    pub fn stop(&self, node: usize) -> anyhow::Result<()> {
        self.signal(node, Signal::STOP)
    }

    /// Lets a stopped node go on.
    ///
    /// # Errors
    /// It is not running.
    pub fn go_on(&self, node: usize) -> anyhow::Result<()> {
        self.signal(node, Signal::CONT)
    }

    fn signal(&self, node: usize, signal: Signal) -> anyhow::Result<()> {
        let child = self.nodes[node].child();
        let child = child.as_ref().context("the node is down")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process has this id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Forgets what a node that is down had on its disk.
    ///
    /// # Errors
    /// The files cannot be deleted.
    pub fn wipe(&self, node: usize) -> anyhow::Result<()> {
        Ok(fs::remove_dir_all(self.folder(node).join("data"))?)
    }

    /// The node that leads a stream.
    ///
    /// # Errors
    /// Nobody tells in time.
    pub async fn leader(&self, stream: &str) -> anyhow::Result<usize> {
        let context = jetstream::new(self.client().await?);
        let until = Instant::now() + STARTING;
        while Instant::now() < until {
            if let Ok(stream) = context.get_stream(stream).await
                && let Some(leader) = stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.as_ref())
                && let Some(node) = leader.strip_prefix('n').and_then(|number| number.parse().ok())
            {
                return Ok(node);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("{stream} has no leader")
    }

    /// What the cluster says of a stream, and the nodes have logged last: for a test that waited in vain.
    pub async fn state(&self, stream: &str) -> String {
        let mut text = match self.client().await {
            Ok(client) => match jetstream::new(client).get_stream(stream).await {
                Ok(found) => {
                    let info = found.cached_info();
                    format!("{stream}: {:?}, {:?}\n", info.state, info.cluster)
                }
                Err(error) => format!("{stream}: {error}\n"),
            },
            Err(error) => format!("no connection: {error}\n"),
        };
        for number in 0..self.nodes.len() {
            text += &format!("node {number}:\n{}\n", self.end_of_log(number));
        }
        text
    }

    fn end_of_log(&self, node: usize) -> String {
        let log = fs::read_to_string(self.folder(node).join("output.log")).unwrap_or_default();
        let end: Vec<_> = log.lines().rev().take(10).collect();
        end.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// A connection to the first node that takes one.
    ///
    /// # Errors
    /// None does.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let servers: Result<Vec<async_nats::ServerAddr>, _> =
            self.nodes.iter().map(|node| format!("nats://127.0.0.1:{}", node.client).parse()).collect();
        let options = ConnectOptions::new().connection_timeout(Duration::from_secs(2));
        Ok(options.ping_interval(Duration::from_secs(1)).connect(servers?).await?)
    }

    /// Waits until every node that runs answers for JetStream.
    ///
    /// # Errors
    /// It takes too long; with the end of the node's log.
    pub async fn wait(&self) -> anyhow::Result<()> {
        let until = Instant::now() + STARTING;
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.child().is_some()) {
            while !answers(node.client).await {
                if Instant::now() > until {
                    bail!("node {number} does not come up:\n{}", self.end_of_log(number));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    fn folder(&self, node: usize) -> PathBuf {
        self.dir.path().join(node.to_string())
    }

    fn configure(&self, node: usize) -> anyhow::Result<()> {
        let folder = self.folder(node);
        fs::create_dir_all(&folder)?;
        let data = folder.join("data");
        let Node { client, route, .. } = &self.nodes[node];
        let mut conf = format!(
            "server_name: n{node}\nlisten: 127.0.0.1:{client}\n\
             jetstream {{ store_dir: {data:?}, max_mem: 64MB, max_file: 4GB }}\n"
        );
        if self.nodes.len() > 1 {
            let routes: Vec<_> =
                self.nodes.iter().map(|other| format!("nats-route://127.0.0.1:{}", other.route)).collect();
            writeln!(conf, "cluster {{ name: tests, listen: 127.0.0.1:{route}, routes: {routes:?} }}")?;
        }
        Ok(fs::write(folder.join("server.conf"), conf)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for mut child in self.nodes.iter().filter_map(|node| node.child().take()) {
            // A stopped one dies as well.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Node {
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answers(port: u16) -> bool {
    let options = ConnectOptions::new().connection_timeout(Duration::from_millis(500));
    let Ok(client) = options.connect(format!("nats://127.0.0.1:{port}")).await else { return false };
    let mut context = jetstream::new(client);
    context.set_timeout(Duration::from_millis(500));
    // The leader of all of them tells that there is no such stream.
    let found = context.get_stream("none").await.map_err(|error| error.kind());
    matches!(found, Err(GetStreamErrorKind::JetStream(error)) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// `nats-server` of the search path, or where Debian puts it, which is not on everybody's.
///
/// # Errors
/// There is none; with what to do.
pub fn binary() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join("nats-server")).find(|file| file.is_file());
    found.context("there is no nats-server: run `make deps`, or install the package nats-server")
}
