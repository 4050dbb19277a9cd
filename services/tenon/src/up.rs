//! `tenon up`: a whole mesh on this machine, as child processes of this one.

mod children;
mod credentials;
mod follow_log;
mod leftovers;
mod lock;
mod ports;
mod printer;
mod startup;
mod supervisor;

use std::{path::Path, time::Duration};

use journal::Store;
use mesh_config::LocalMesh;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::LocalSet,
    time::{Instant, sleep},
};

pub use self::credentials::{ca_failure, operator_name, passphrase};
use self::{credentials::Credentials, lock::Lock, printer::Printer, startup::Startup, supervisor::Stop};
use crate::{
    cli,
    data::Data,
    failure::{Answer, Failure},
};

/// How long ports may stay taken by what a killed `tenon up` left, which is about to end.
const LEFTOVERS: Duration = Duration::from_secs(5);

/// A signal this long after the first one is meant as a second.
const INSISTING: Duration = Duration::from_secs(1);

/// Runs the mesh until it is told to end. Must be called on the main thread: children are tied to it.
///
/// # Errors
/// What keeps the mesh from starting; nothing is left running then.
pub fn run(args: cli::Up) -> Result<Answer, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Failure::new(format!("cannot start: {error}")).next("free some memory and file descriptors")
    })?;
    let (printer, written) = Printer::start();
    let outcome = runtime.block_on(LocalSet::new().run_until(up(args, printer)));
    // Whatever still holds a printer ends with the runtime.
    drop(runtime);
    written.wait();
    outcome
}

async fn up(args: cli::Up, printer: Printer) -> Result<Answer, Failure> {
    // First of all, so that no signal from now on is missed.
    let mut signals = Signals::new()?;
    let mesh = crate::policy::load(&args.folder)?;
    let local = mesh.local().ok_or_else(|| no_local_mesh(&args.folder))?;
    several_share_a_store(local, args.store.as_ref())?;
    let binaries = children::Binaries::find()?;
    let data = Data::new(&absolute(&args.data)?);
    let lock = Lock::take(&data)?;
    let credentials = Credentials::prepare(&data, mesh.trust_domain())?;
    if lock.unclean {
        let killed = leftovers::kill(&data);
        if killed > 0 {
            printer.progress(format!("killed {killed} processes that apps had left when tenon up was killed here"));
        }
    }
    free_ports(local, &lock).await?;

    let folder = absolute(&args.folder)?;
    let around = children::Surroundings {
        folder: &folder,
        data: &data,
        store: args.store.as_ref(),
        past: &args.past,
        mesh: &mesh,
        local,
        pin: &credentials.pin(),
        metrics: &children::metrics_addresses(local),
    };
    let plan = children::plan(&around, &binaries);
    plan.file.write(&data)?;

    let stop = Stop::default();
    let renewal = tokio::task::spawn_local(credentials.clone().keep_renewed(printer.clone(), stop.polite.clone()));
    let mut startup = Startup::new(&data, &plan, &credentials, printer.clone(), stop.clone());
    let started = tokio::select! {
        started = startup.run() => started,
        name = signals.next() => {
            printer.progress(format!("{name}: ending before the mesh was ready"));
            Ok(())
        }
    };
    if startup.is_ready() {
        let name = signals.next().await;
        printer.progress(format!("{name}: ending the mesh"));
    }
    stop.polite.cancel();
    tokio::select! {
        () = startup.ended() => {}
        name = signals.insisting() => {
            printer.progress(format!("{name} again: killing what is left"));
            stop.now.cancel();
            startup.ended().await;
        }
    }
    renewal.abort();
    drop(lock);
    started?;
    printer.progress("ended");
    Ok(Answer::Yes)
}

/// An embedded store is open in one process alone, and of policy services each one writes.
fn several_share_a_store(local: &LocalMesh, store: Option<&Store>) -> Result<(), Failure> {
    match (local.control_plane.policy.len(), store) {
        (1, _) | (_, Some(Store::Nats(_))) => Ok(()),
        (several, _) => Err(Failure::usage(format!(
            "spec.controlPlane.policy names {several} processes, which need a store that they share"
        ))
        .next("give --store nats://HOST:PORT[,HOST:PORT], or name one address")),
    }
}

fn no_local_mesh(folder: &Path) -> Failure {
    Failure::new(format!("{} has no LocalMesh document: nothing says what to run", folder.display())).next(
        "add one: kind: LocalMesh, spec: {instances: [{service: media, region: us-east, outbound: 127.0.0.1:15201, inbound: 127.0.0.1:15206, admin: 127.0.0.1:15200}]}",
    )
}

/// Children are told whole paths, so that each can be started again from anywhere.
fn absolute(path: &Path) -> Result<std::path::PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(format!("cannot tell where {} is: {error}", path.display())).next("run in a folder that exists")
    })
}

/// Refuses when an address is taken. What a killed `tenon up` left gets a moment to end.
async fn free_ports(local: &LocalMesh, lock: &Lock) -> Result<(), Failure> {
    let wanted = ports::wanted(local);
    let patience = Instant::now() + if lock.unclean { LEFTOVERS } else { Duration::ZERO };
    loop {
        let problems = ports::problems(&wanted);
        if problems.is_empty() {
            return Ok(());
        }
        if Instant::now() >= patience {
            return Err(Failure::new(problems.join("\n")).next(
                "end what listens there (`ss -lxtnp` names it; another `tenon up`?), or write other addresses in the LocalMesh document",
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// What ends `tenon up`.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(format!("cannot listen for signals: {error}")).next("free some file descriptors")
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for one and names it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// Waits for one that does not belong to the first any more: a terminal interrupts a whole group, and whoever
    /// started this process sends SIGTERM right after it.
    async fn insisting(&mut self) -> &'static str {
        let began = Instant::now();
        loop {
            let name = self.next().await;
            if began.elapsed() >= INSISTING {
                return name;
            }
        }
    }
}
