//! Keeps one child process running: starts it, copies what it says, starts it again when it dies, ends it.
//!
//! Every child is started through `tenon spawn-child`, so that it ends by itself when this process is killed, and in a
//! process group of its own (in our session), so that what it started in turn ends with it. Futures of this module
//! must run on the main thread: the kernel ties a child to the thread that started it.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{follow_log::follow, printer::Printer};

/// The first wait before a child is started again; doubled each time, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A child that lived this long starts again without having to wait for what happened before.
const STEADY: Duration = Duration::from_secs(10);
/// How long a child may take to end after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(8);
/// How long to wait for the rest of the output of a child that has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A log of more bytes than this is put aside when its child is started.
const LARGE_LOG: u64 = 64 * 1024 * 1024;

/// What to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// For people and for the log file's name: `media-us-east`.
    pub name: String,
    /// The program and its arguments.
    pub program: Vec<OsString>,
    /// Where its output goes, appended.
    pub log: PathBuf,
    /// How long it may take to end after SIGTERM before it gets SIGKILL.
    pub grace: Duration,
    /// Environment variables that it does not get.
    pub without: Vec<OsString>,
    /// Environment variables that it gets besides what this process has.
    pub with: Vec<(&'static str, OsString)>,
    /// What goes before the program to tie it to the life of this process; see [`tie`].
    pub tie: Vec<OsString>,
}

/// `tenon spawn-child … --`: the command line of this binary that runs a program which ends when this process does.
pub fn tie(tenon: &Path) -> Vec<OsString> {
    let parent = std::process::id().to_string();
    let mut line = vec![tenon.as_os_str().to_owned()];
    line.extend(["spawn-child", "--parent", &parent, "--signal", "KILL", "--"].map(OsString::from));
    line
}

/// How children are told to end.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// SIGTERM, and SIGKILL for who takes longer than its grace.
    pub polite: CancellationToken,
    /// SIGKILL, for who has not ended yet.
    pub now: CancellationToken,
}

/// Something to do before each start of a child, such as writing it a fresh join token. A failure is printed and the
/// child is started all the same: it may not need it.
pub trait Prepare {
    /// Does it; an error is a sentence for the operator. The command line, program first, may be brought up to date.
    fn prepare(&mut self, program: &mut [OsString]) -> impl Future<Output = Result<(), String>>;
}

/// Nothing to do.
pub struct Nothing;

impl Prepare for Nothing {
    async fn prepare(&mut self, _: &mut [OsString]) -> Result<(), String> {
        Ok(())
    }
}

/// Runs the child until `stop`; then it is gone, with all of its process group, when this returns.
///
/// `ended` hears of every time that the child ended without being told to.
pub async fn supervise(
    mut spec: Spec,
    mut prepare: impl Prepare,
    mut ended: impl FnMut(&str),
    printer: Printer,
    stop: Stop,
) {
    let mut backoff = BACKOFF.0;
    loop {
        let prepared = tokio::select! {
            prepared = prepare.prepare(&mut spec.program) => prepared,
            () = stop.polite.cancelled() => return,
        };
        if let Err(problem) = prepared {
            printer.warn(&format!("{}: {problem}", spec.name));
        }
        let started = Instant::now();
        let what = match Running::start(&spec, &printer) {
            Ok(mut running) => tokio::select! {
                status = running.child.wait() => {
                    running.end_group().await;
                    status.map_or_else(|error| error.to_string(), ending)
                }
                () = stop.polite.cancelled() => {
                    running.terminate(&stop.now).await;
                    return;
                }
            },
            Err(error) => format!("could not be started: {error}"),
        };
        if started.elapsed() >= STEADY {
            backoff = BACKOFF.0;
        }
        ended(&what);
        printer.warn(&format!(
            "{} {what}; starting it again in {} ms (its output: {})",
            spec.name,
            backoff.as_millis(),
            spec.log.display()
        ));
        tokio::select! {
            () = sleep(backoff) => {}
            () = stop.polite.cancelled() => return,
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// `ended with exit status: 1`, `ended with signal: 9 (SIGKILL)`.
fn ending(status: ExitStatus) -> String {
    format!("ended with {status}")
}

/// A child process and the task that prints its output.
struct Running {
    child: Child,
    group: Option<Pid>,
    grace: Duration,
    /// Cancelled when the child has ended: what it wrote is all there.
    ended: CancellationToken,
    printing: JoinHandle<()>,
}

impl Running {
    fn start(spec: &Spec, printer: &Printer) -> io::Result<Self> {
        let log = open_log(&spec.log)?;
        let from = log.metadata()?.len();
        let mut line = spec.tie.iter().chain(&spec.program);
        let program = line.next().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program given"))?;
        let mut command = Command::new(program);
        command
            .args(line)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        for name in &spec.without {
            command.env_remove(name);
        }
        for (name, value) in &spec.with {
            command.env(name, value);
        }
        let child = command.spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let ended = CancellationToken::new();
        let printing = tokio::spawn(follow(spec.log.clone(), from, spec.name.clone(), printer.clone(), ended.clone()));
        Ok(Self { child, group, grace: spec.grace, ended, printing })
    }

    /// Ends the child: politely, then not.
    async fn terminate(mut self, now: &CancellationToken) {
        self.signal(Signal::TERM);
        let ended = tokio::select! {
            ended = timeout(self.grace, self.child.wait()) => ended.is_ok(),
            () = now.cancelled() => false,
        };
        if !ended {
            self.signal(Signal::KILL);
            // An error leaves nothing that could still be done.
            let _ = self.child.wait().await;
        }
        self.end_group().await;
    }

    /// After the child itself has ended: ends what it left behind, and prints the rest of the output.
    async fn end_group(&mut self) {
        self.signal(Signal::KILL);
        self.ended.cancel();
        let _ = timeout(LAST_WORDS, &mut self.printing).await;
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // No such group: it has ended already.
            let _ = kill_process_group(group, signal);
        }
    }
}

/// Opens a log for appending. One that has grown large makes way, as `NAME.log.1`, for a new one.
fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LARGE_LOG) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    File::options().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests;
