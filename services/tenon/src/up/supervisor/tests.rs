use std::{cell::RefCell, fs, rc::Rc};

use tempfile::TempDir;
use tokio::task::LocalSet;

use super::*;

/// A child that runs a shell script, untied: the life of the test process is not its own.
fn shell(dir: &TempDir, script: &str) -> Spec {
    Spec {
        name: "child".into(),
        program: ["sh", "-c", script].map(OsString::from).into(),
        log: dir.path().join("child.log"),
        grace: GRACE,
        without: Vec::new(),
        with: Vec::new(),
        tie: Vec::new(),
    }
}

/// Waits until the file holds this many lines, and returns them.
async fn lines(path: &Path, count: usize) -> Vec<String> {
    let waiting = async {
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.ends_with('\n') && text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), waiting).await.expect("the child wrote what it should")
}

fn exists(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// Runs the child while `during` does, then shuts it down; returns what was said of its ends.
async fn while_supervised(spec: Spec, during: impl Future<Output = ()>) -> Vec<String> {
    let (printer, _written) = Printer::start();
    let stop = Stop::default();
    let ends = Rc::new(RefCell::new(Vec::new()));
    let heard = Rc::clone(&ends);
    let local = LocalSet::new();
    let ended = move |what: &str| heard.borrow_mut().push(what.to_owned());
    let supervised = local.spawn_local(supervise(spec, Nothing, ended, printer, stop.clone()));
    local
        .run_until(async {
            during.await;
            stop.polite.cancel();
            timeout(GRACE * 2, supervised).await.expect("it ends").unwrap();
        })
        .await;
    ends.take()
}

#[tokio::test]
async fn a_child_that_dies_is_started_again_and_the_wait_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let spec = shell(&dir, "echo $$; exit 7");
    let log = spec.log.clone();
    let ends = while_supervised(spec, async {
        let pids = lines(&log, 3).await;
        assert_ne!(pids[0], pids[1]);
    })
    .await;
    assert!(ends.len() >= 2 && ends.iter().all(|end| end == "ended with exit status: 7"), "{ends:?}");
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_said_to_be_so() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec { program: vec!["/nonexistent/app".into()], ..shell(&dir, "") };
    let (printer, _written) = Printer::start();
    let stop = Stop::default();
    let mut said = None;
    let ended = |what: &str| {
        said = Some(what.to_owned());
        stop.polite.cancel();
    };
    supervise(spec, Nothing, ended, printer, stop.clone()).await;
    assert!(said.unwrap().starts_with("could not be started: No such file"));
}

#[tokio::test]
async fn what_a_child_started_in_turn_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    // The one that it started hears no SIGTERM.
    let spec = shell(&dir, "(trap '' TERM; exec sleep 1000) & echo $!; echo $$; wait");
    let log = spec.log.clone();
    let mut pids = Vec::new();
    while_supervised(spec, async { pids = lines(&log, 2).await }).await;
    // Reaped by init, which may take a moment after the signal.
    let gone = async {
        while pids.iter().any(|pid| exists(pid) && !is_zombie(pid)) {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), gone).await.expect("nothing is left");
}

fn is_zombie(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed_after_its_grace() {
    let dir = tempfile::tempdir().unwrap();
    let grace = Duration::from_millis(100);
    let spec = Spec { grace, ..shell(&dir, "trap '' TERM; echo $$; while :; do sleep 1; done") };
    let log = spec.log.clone();
    let mut pid = String::new();
    while_supervised(spec, async { pid = lines(&log, 1).await.remove(0) }).await;
    assert!(!exists(&pid));
}

#[tokio::test]
async fn a_child_that_ends_on_sigterm_may_say_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let spec = shell(&dir, "trap 'echo bye; exit 0' TERM; echo up; sleep 1000 & wait");
    let log = spec.log.clone();
    while_supervised(spec, async { drop(lines(&log, 1).await) }).await;
    assert!(fs::read_to_string(&log).unwrap().ends_with("bye\n"));
}

#[tokio::test]
async fn before_each_start_it_is_prepared() {
    struct Token(PathBuf, u32);
    impl Prepare for Token {
        async fn prepare(&mut self, _: &mut [OsString]) -> Result<(), String> {
            self.1 += 1;
            fs::write(&self.0, format!("token-{}\n", self.1)).map_err(|error| error.to_string())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("join-token");
    let spec = shell(&dir, &format!("cat {}", token.display()));
    let log = spec.log.clone();
    let (printer, _written) = Printer::start();
    let stop = Stop::default();
    let supervised = supervise(spec, Token(token, 0), |_| {}, printer, stop.clone());
    tokio::join!(supervised, async {
        assert_eq!(lines(&log, 2).await[..2], ["token-1", "token-2"]);
        stop.polite.cancel();
    });
}

#[tokio::test]
async fn the_log_holds_what_the_child_wrote_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let spec = shell(
        &dir,
        "head -c 200000 /dev/zero | tr '\\0' x; echo; echo out; echo err >&2; echo end; printf x; exec sleep 1000",
    );
    let log = spec.log.clone();
    let whole = "x".repeat(200_000) + "\nout\nerr\nend\nx";
    while_supervised(spec, async {
        let waiting = async {
            while fs::read_to_string(&log).unwrap_or_default() != whole {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), waiting).await.expect("the log holds all of it");
    })
    .await;
}

/// Named after what it guards: children once wrote to pipes, and hung when `tenon up` was stopped.
#[tokio::test]
async fn a_child_goes_on_writing_while_nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing of this runtime runs while the main thread waits for the child's last line.
    let spec = shell(&dir, "for i in $(seq 20000); do echo line $i; done; echo done; sleep 1000");
    let log = spec.log.clone();
    while_supervised(spec, async {
        tokio::task::yield_now().await;
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !fs::read_to_string(&log).unwrap_or_default().ends_with("done\n") {
            assert!(std::time::Instant::now() < end, "the child waits for a reader");
        }
    })
    .await;
}

#[test]
fn a_log_that_has_grown_large_makes_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("child.log");
    File::create(&path).unwrap().set_len(LARGE_LOG + 1).unwrap();
    assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
    assert_eq!(fs::metadata(dir.path().join("child.log.1")).unwrap().len(), LARGE_LOG + 1);
}
