//! A log that lost its end and grew past it again, and who held what was lost.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use async_nats::jetstream;
use journal::{AppendError, Write};
use tempfile::TempDir;

use crate::{
    backend::{Backend as _, InCluster, insist, reach, single},
    nats,
    ports::Ports,
};

const SOON: Duration = Duration::from_secs(25);

/// A server by itself, whose disk can be set back.
struct Server {
    child: Option<Child>,
    port: u16,
    dir: TempDir,
    _ports: Ports,
}

impl Server {
    fn start() -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let mut ports = Ports::take(target).unwrap();
        let mut server = Self { child: None, port: ports.give(), dir: tempfile::tempdir().unwrap(), _ports: ports };
        server.launch();
        server
    }

    fn store(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn launch(&mut self) {
        let mut command = Command::new(nats::binary().unwrap());
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-js", "-sd"]).arg(self.data());
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn keep(&self) {
        copy(&self.data(), &self.dir.path().join("kept"));
    }

    fn set_back(&self) {
        fs::remove_dir_all(self.data()).unwrap();
        copy(&self.dir.path().join("kept"), &self.data());
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn put(key: &str, value: impl ToString) -> Write {
    Write::put(key, value.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_went_back_and_grew_again_is_refused_by_who_held_more_of_it() {
    let mut server = Server::start();
    let backend = InCluster::new(&server.store(), "tenant");
    let held = backend.open(0).await;
    insist(&*held.journal, vec![put("a", 1)]).await.unwrap();
    server.kill();
    server.keep();
    server.launch();
    for number in 2..5 {
        insist(&*held.journal, vec![put("a", number)]).await.unwrap();
    }
    let head = held.journal.head().await.unwrap();
    server.kill();
    server.set_back();
    server.launch();
    let other = backend.open(1).await;
    for number in 0..10 {
        insist(&*other.journal, vec![put("b", number)]).await.unwrap();
    }
    let end = Instant::now() + SOON;
    while held.journal.alarm().is_none_or(|alarm| !alarm.contains("is not the one that is held")) {
        assert_eq!(held.journal.head().await.unwrap(), head, "nothing is taken from the other history");
        assert!(Instant::now() < end, "no alarm but {:?}", held.journal.alarm());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(&held.journal.get("a").await.unwrap().unwrap().value[..], b"4", "it is served on");
    assert!(matches!(held.journal.append(vec![put("a", 9)]).await, Err(AppendError::Failed(_))));
    insist(&*other.journal, vec![put("c", 1)]).await.unwrap();
    assert_eq!(other.journal.alarm(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_somebody_who_held_another_log_is_void_for_all_who_hold_this_one() {
    let single = single().await;
    let backend = InCluster::new(&single.store(), "tenant");
    let (first, second) = (backend.open(0).await, backend.open(1).await);
    insist(&*first.journal, vec![put("a", 1)]).await.unwrap();
    let head = first.journal.head().await.unwrap();
    let context = jetstream::new(single.client().await.unwrap());
    let stream = context.get_stream("TENON_demo=example_TENANT").await.unwrap();
    let last = stream.get_last_raw_message_by_subject("tenon.demo=example.tenant.log").await.unwrap();
    // Of a field that is there twice, the last one is taken: what it follows on, its id, its revision, what it had seen.
    let (after, next) = (u8::try_from(last.sequence).unwrap(), u8::try_from(head.revision + 1).unwrap());
    assert!(after < 128 && next < 128);
    let mut stray = last.payload.to_vec();
    stray.extend([0x18, after, 0x21, 1, 2, 3, 4, 5, 6, 7, 8, 0x28, next, 0x59, 8, 7, 6, 5, 4, 3, 2, 1]);
    context.publish("tenon.demo=example.tenant.log", stray.into()).await.unwrap().await.unwrap();

    insist(&*second.journal, vec![put("b", 1)]).await.unwrap();
    let written = second.journal.head().await.unwrap();
    assert_eq!(written.revision, head.revision + 2, "nothing but the write and its mark");
    reach(&*first.journal, written).await;
    let fresh = backend.open(2).await;
    reach(&*fresh.journal, written).await;
    for replica in [&first, &second, &fresh] {
        assert_eq!(replica.journal.alarm(), None);
        assert_eq!(replica.journal.snapshot().await.unwrap(), first.journal.snapshot().await.unwrap());
    }
}
