//! Starting the children in their order, and waiting for each until it serves.

use std::{
    cell::RefCell,
    ffi::OsString,
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::future::try_join_all;
use mesh_config::names::ServiceName;
use mesh_identity::{Identity, grpc};
use tenon_proto::{
    identity::v1::{CreateJoinTokenRequest, identity_client::IdentityClient},
    policy::v1::DescribeRequest,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    children::{JOIN_TOKEN, Plan, Planned},
    credentials::Credentials,
    printer::Printer,
    supervisor::{Nothing, Prepare, Stop, supervise},
};
use crate::{
    data::Data,
    failure::Failure,
    mesh_file::{Sidecar, write_private},
    operator::{Role, files, reason},
    policy, probe, sidecars,
};

/// How often to ask whether a child serves by now.
const POLL: Duration = Duration::from_millis(25);
/// A service of the control plane that does not serve after this long never will.
const CONTROL_PLANE: Duration = Duration::from_secs(60);
/// How often to say which sidecars are still waited for.
const SAY: Duration = Duration::from_secs(10);
/// A child that ended this often before it served once is not going to.
const ENDS: usize = 4;
/// How long asking for the policy in force may take.
const DESCRIBE: Duration = Duration::from_secs(3);
/// How long making a join token may take.
const TOKEN: Duration = Duration::from_secs(3);

/// The children, from the first start to the last end.
pub struct Startup<'a> {
    data: &'a Data,
    plan: &'a Plan,
    credentials: &'a Credentials,
    printer: Printer,
    stop: Stop,
    /// One supervising task a child.
    tasks: JoinSet<()>,
    ready: bool,
}

/// What is known of a child that was started.
#[derive(Clone, Default)]
struct Started {
    /// How long its log was before: what stands there is of an earlier run.
    log_from: u64,
    /// How it ended, each time that it did.
    ends: Rc<RefCell<Vec<String>>>,
}

impl<'a> Startup<'a> {
    pub fn new(data: &'a Data, plan: &'a Plan, credentials: &'a Credentials, printer: Printer, stop: Stop) -> Self {
        Self { data, plan, credentials, printer, stop, tasks: JoinSet::new(), ready: false }
    }

    /// Starts everything and returns when every sidecar serves.
    ///
    /// # Errors
    /// A child that does not come to serve; the others run until `stop`.
    pub async fn run(&mut self) -> Result<(), Failure> {
        let plan = self.plan;
        let addresses = &plan.file.control_plane;
        self.role(Role::Identity, &[&plan.identity], &[addresses.identity]).await?;
        self.role(Role::Policy, &plan.policy.iter().collect::<Vec<_>>(), &addresses.every_policy()).await?;
        self.role(Role::Tcs, &plan.tcs.iter().collect::<Vec<_>>(), &addresses.every_tcs()).await?;
        self.warn_of_another_policy().await;
        for app in &plan.apps {
            self.start(app)?;
            self.printer.progress(format!("started {}", app.spec.name));
        }
        let mut started = Vec::new();
        for child in &plan.sidecars {
            started.push(self.start(child)?);
        }
        self.sidecars(&started).await?;
        self.ready = true;
        self.printer.progress("ready");
        Ok(())
    }

    /// What an operator applied stays in force over a restart, until the folder changes: whoever starts with a folder
    /// must know that it is not what decides.
    async fn warn_of_another_policy(&self) {
        let name = Role::Policy.service_name();
        let channel = grpc::channel(self.plan.file.control_plane.policy, self.credentials.identity(), &name);
        let mut client = policy::client(channel);
        // No answer is for others to report: what matters is that the sidecars get their policy.
        let asked = timeout(DESCRIBE, client.describe(DescribeRequest { service: String::new() })).await;
        let Ok(Ok(described)) = asked else { return };
        let described = described.into_inner();
        let operator = policy::applied_by(&described);
        if let Some(operator) = operator.filter(|_| !policy::says_the_same(&described, &self.plan.records)) {
            let folder = self.plan.folder.display();
            self.printer.warn(&format!(
                "the policy in force is not that of {folder}: {operator} applied it; to change that: tenon policy apply -f {folder}"
            ));
        }
    }

    /// Whether [`Self::run`] came to its end.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Waits until every child that was started is gone; `stop` must have been given.
    pub async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Starts the processes of a service of the control plane, and waits until each serves.
    async fn role(&mut self, role: Role, children: &[&Planned], addresses: &[SocketAddr]) -> Result<(), Failure> {
        let began = Instant::now();
        let mut started = Vec::new();
        for child in children {
            started.push(self.start(child)?);
        }
        let each = children.iter().zip(addresses).zip(&started);
        let each = each.map(|((child, &address), started)| self.serves(role, child, address, started, began));
        try_join_all(each).await.map(drop)
    }

    async fn serves(
        &self,
        role: Role,
        child: &Planned,
        address: SocketAddr,
        started: &Started,
        began: Instant,
    ) -> Result<(), Failure> {
        let channel = grpc::channel(address, self.credentials.identity(), &role.service_name());
        loop {
            let Err(problem) = probe::health(channel.clone()).await else { break };
            started.check(child)?;
            if began.elapsed() > CONTROL_PLANE {
                let waited = CONTROL_PLANE.as_secs();
                let what =
                    format!("the {} ({}) does not serve after {waited} s: {problem}", role.title(), child.spec.name);
                return Err(Failure::new(what).next(format!("its output is in {}", child.spec.log.display())));
            }
            sleep(POLL).await;
        }
        self.printer.progress(format!("{} serves on {address} ({})", role.title(), milliseconds(began)));
        Ok(())
    }

    async fn sidecars(&self, started: &[Started]) -> Result<(), Failure> {
        let began = Instant::now();
        let said = RefCell::new(Instant::now());
        let waiting = RefCell::new(Vec::<String>::new());
        let one = async |sidecar: &Sidecar, child: &Planned, started: &Started| {
            while let Err(problem) = sidecars::ready(sidecar).await {
                started.check(child)?;
                waiting.borrow_mut().push(format!("{} ({problem})", sidecar.name));
                if said.borrow().elapsed() > SAY {
                    *said.borrow_mut() = Instant::now();
                    let mut names = waiting.take();
                    names.sort_unstable();
                    names.dedup();
                    self.printer.warn(&format!("still waiting for {}", names.join(", ")));
                }
                sleep(POLL).await;
            }
            let Sidecar { name, inbound, outbound, .. } = sidecar;
            let took = milliseconds(began);
            self.printer.progress(format!("sidecar {name} serves: outbound {outbound}, inbound {inbound} ({took})"));
            Ok::<(), Failure>(())
        };
        let each = self.plan.file.sidecars.iter().zip(&self.plan.sidecars).zip(started);
        let outcomes = try_join_all(each.map(|((s, child), started)| one(s, child, started)));
        outcomes.await.map(drop)
    }

    fn start(&mut self, child: &Planned) -> Result<Started, Failure> {
        let log_from = fs::metadata(&child.spec.log).map_or(0, |log| log.len());
        let started = Started { log_from, ends: Rc::default() };
        let ends = Rc::clone(&started.ends);
        let ended = move |what: &str| ends.borrow_mut().push(what.to_owned());
        let (spec, printer, stop) = (child.spec.clone(), self.printer.clone(), self.stop.clone());
        match &child.joins {
            None => self.tasks.spawn_local(supervise(spec, Nothing, ended, printer, stop)),
            Some(service) => {
                let token = JoinToken::new(self, child, service.clone())?;
                self.tasks.spawn_local(supervise(spec, token, ended, printer, stop))
            }
        };
        Ok(started)
    }
}

fn milliseconds(since: Instant) -> String {
    format!("{} ms", since.elapsed().as_millis())
}

impl Started {
    /// Gives up on a child that ends again and again before it has served once.
    fn check(&self, child: &Planned) -> Result<(), Failure> {
        let ends = self.ends.borrow();
        let Some(last) = ends.last().filter(|_| ends.len() >= ENDS) else { return Ok(()) };
        let text = fs::read(&child.spec.log).unwrap_or_default();
        // A log that is shorter than it was has been put aside for a new one.
        let ours = usize::try_from(self.log_from).ok().and_then(|from| text.get(from..)).unwrap_or(&text);
        let ours = String::from_utf8_lossy(ours);
        let tail: Vec<_> = ours.lines().rev().take(5).collect();
        let tail: String = tail.iter().rev().map(|line| format!("\n  | {line}")).collect();
        Err(Failure::new(format!("{} does not start: it {last}, {} times in a row{tail}", child.spec.name, ends.len()))
            .next(format!("its whole output is in {}", child.spec.log.display())))
    }
}

/// A fresh join token for a child, in a file that only its owner can read.
struct JoinToken {
    identity: Arc<Identity>,
    address: SocketAddr,
    service: ServiceName,
    file: PathBuf,
}

impl JoinToken {
    fn new(startup: &Startup<'_>, child: &Planned, service: ServiceName) -> Result<Self, Failure> {
        let is_sidecar = startup.plan.sidecars.iter().any(|sidecar| sidecar.spec.name == child.spec.name);
        let dir = if is_sidecar { startup.data.sidecar(&child.spec.name) } else { startup.data.role(&child.spec.name) };
        private_folder(&dir)?;
        Ok(Self {
            identity: Arc::clone(startup.credentials.identity()),
            address: startup.plan.file.control_plane.identity,
            service,
            file: dir.join(JOIN_TOKEN),
        })
    }
}

fn private_folder(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        Failure::new(format!("cannot make {}: {error}", dir.display()))
            .next("make the data folder writable, or name another one with --data")
    })
}

impl Prepare for JoinToken {
    async fn prepare(&mut self, program: &mut [OsString]) -> Result<(), String> {
        // The root may have been rotated since the line was made.
        files::repin(program, &self.identity.bundle().pin());
        // The folder may have been removed: then the child joins anew.
        if let Some(dir) = self.file.parent() {
            private_folder(dir).map_err(|failure| failure.to_string())?;
        }
        let channel = grpc::channel(self.address, &self.identity, &Role::Identity.service_name());
        let request = CreateJoinTokenRequest { service: self.service.to_string(), ttl_seconds: 0 };
        let mut client = IdentityClient::new(channel);
        let without = "it starts with the certificate that it has";
        match timeout(TOKEN, client.create_join_token(request)).await {
            Ok(Ok(answer)) => write_private(&self.file, answer.into_inner().join_token.as_bytes())
                .map_err(|failure| format!("no fresh join token: {failure}; {without}")),
            Ok(Err(status)) => Err(format!("no fresh join token: {}; {without}", reason(&status))),
            Err(_) => Err(format!("no fresh join token: the identity service does not answer; {without}")),
        }
    }
}
