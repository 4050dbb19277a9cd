mod parents;

use std::fs;

use bytes::Bytes;
use tenon_proto::replication::v1::{
    Change, Delta, FollowResponse, Heartbeat, Record, SnapshotChunk, SnapshotEnd, SnapshotStart,
    follow_request::Request, follow_response::Response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::{
    stream::{LONGEST_WAIT, SHORTEST_WAIT, SILENCE},
    *,
};
use crate::{Position, Raw, Responses, digest};

/// A stream as the parent sees it.
struct Stream {
    requests: mpsc::Receiver<FollowRequest>,
    responses: mpsc::UnboundedSender<Result<FollowResponse, Status>>,
}

impl Stream {
    fn send(&self, response: Response) {
        self.responses.send(Ok(FollowResponse { response: Some(response) })).unwrap();
    }

    fn snapshot(&self, position: Position, keys: u64) {
        let records: Vec<_> = (0..keys)
            .map(|number| Record { key: format!("key-{number}"), revision: 1, value: Bytes::from_static(b"v") })
            .collect();
        let digest = digest(records.iter().map(|record| (record.key.as_str(), record.revision, &record.value[..])));
        self.send(Response::SnapshotStart(SnapshotStart {
            position: Some(position.into()),
            ..SnapshotStart::default()
        }));
        self.send(Response::SnapshotChunk(SnapshotChunk { records }));
        self.send(Response::SnapshotEnd(SnapshotEnd { records: keys, digest: digest.to_vec().into() }));
    }

    async fn request(&mut self) -> Request {
        self.requests.recv().await.unwrap().request.unwrap()
    }

    async fn resume(&mut self) -> Option<Position> {
        let Request::Start(start) = self.request().await else { panic!("not a start") };
        start.resume.map(Into::into)
    }
}

/// Hands each stream that is opened to the test.
struct Script(mpsc::UnboundedSender<Stream>);

#[tonic::async_trait]
impl Parent for Script {
    async fn follow(&self, requests: mpsc::Receiver<FollowRequest>) -> Result<Responses, Status> {
        let (responses, receiver) = mpsc::unbounded_channel();
        self.0.send(Stream { requests, responses }).unwrap();
        Ok(Box::pin(UnboundedReceiverStream::new(receiver)))
    }
}

struct Run {
    replica: Replica<Raw>,
    streams: mpsc::UnboundedReceiver<Stream>,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

fn run(state_dir: Option<PathBuf>) -> Run {
    run_kind("tenant", state_dir)
}

fn run_kind(kind: &'static str, state_dir: Option<PathBuf>) -> Run {
    let (sender, streams) = mpsc::unbounded_channel();
    let shutdown = CancellationToken::new();
    let follow = Follow { kind, instance: "test".to_owned(), parents: vec![Script(sender)], state_dir };
    let (replica, task) = follow.start(|_| {}, shutdown.clone());
    Run { replica, streams, task, shutdown }
}

impl Run {
    async fn stream(&mut self) -> Stream {
        self.streams.recv().await.unwrap()
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn at(revision: u64) -> Position {
    Position::new(1, revision)
}

#[tokio::test(start_paused = true)]
async fn a_silent_parent_is_left_after_three_and_a_half_seconds_and_resumed_from_what_is_held() {
    let mut run = run(None);
    let mut stream = run.stream().await;
    assert_eq!(stream.resume().await, None);
    stream.snapshot(at(3), 2);
    assert!(matches!(stream.request().await, Request::Ack(_)));
    let heard = Instant::now();
    assert!(run.replica.status().connected);

    let mut next = run.stream().await;
    // Tokio rounds the wait, which is drawn, up to the next millisecond.
    assert!((SILENCE..=SILENCE + SHORTEST_WAIT).contains(&heard.elapsed()), "{:?}", heard.elapsed());
    assert_eq!(next.resume().await, Some(at(3)));
    assert!(stream.responses.is_closed(), "the silent stream is dropped");
    assert!(!run.replica.status().connected);
    assert!(run.replica.get("key-1").is_some());
    run.end().await;
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_a_stream_alive() {
    let mut run = run(None);
    let mut stream = run.stream().await;
    stream.resume().await;
    stream.snapshot(at(3), 2);
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stream.send(Response::Heartbeat(Heartbeat::default()));
    }
    assert!(run.streams.try_recv().is_err() && !stream.responses.is_closed());
    run.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_snapshot_is_answered_before_the_stream_ends_and_asked_for_ever_more_rarely() {
    let mut run = run(None);
    let mut stream = run.stream().await;
    stream.resume().await;
    stream.snapshot(at(3), 100);
    assert!(matches!(stream.request().await, Request::Ack(_)));
    let mut refused_at = Vec::new();
    for _ in 0..12 {
        stream.snapshot(Position::new(2, 9), 0);
        let Request::Nack(nack) = stream.request().await else { panic!("not a nack") };
        assert!(nack.error.contains("0 records are offered where 100 are held"), "{}", nack.error);
        assert!(stream.requests.recv().await.is_none());
        drop(stream);
        refused_at.push(Instant::now());
        stream = run.stream().await;
        assert_eq!(stream.resume().await, Some(at(3)));
    }
    assert_eq!((run.replica.status().records, run.replica.status().nacks), (100, 12));
    let last = refused_at[11] - refused_at[10];
    assert!((Duration::from_secs(5)..=Duration::from_secs(11)).contains(&last), "{last:?}");
    run.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_refuses_is_asked_again_within_two_seconds() {
    let mut run = run(None);
    let mut asked = Instant::now();
    for _ in 0..20 {
        let stream = run.stream().await;
        assert!(asked.elapsed() <= LONGEST_WAIT);
        asked = Instant::now();
        stream.responses.send(Err(Status::unavailable("not now"))).unwrap();
    }
    run.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_state_that_cannot_be_written_is_an_alarm_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    fs::write(&state_dir, "a file where the folder should be").unwrap();
    let mut run = run(Some(state_dir.clone()));
    let mut stream = run.stream().await;
    stream.resume().await;
    stream.snapshot(at(3), 2);
    while run.replica.status().state_error.is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.send(Response::Heartbeat(Heartbeat::default()));
    }
    assert!(run.replica.get("key-1").is_some());
    stream.send(Response::Delta(Delta { epoch: 1, previous_revision: 3, revision: 4, changes: vec![] }));
    run.replica.wait_for(at(4)).await;

    fs::remove_file(&state_dir).unwrap();
    while run.replica.status().state_error.is_some() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.send(Response::Heartbeat(Heartbeat::default()));
    }
    run.end().await;
    let again = self::run(Some(state_dir));
    assert_eq!((again.replica.position(), again.replica.status().records), (Some(at(4)), 2));
    again.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_state_is_on_disk_when_the_follower_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = run(Some(dir.path().to_owned()));
    let mut stream = first.stream().await;
    stream.resume().await;
    stream.snapshot(at(3), 2);
    first.replica.wait_for(at(3)).await;
    first.end().await;

    let again = run(Some(dir.path().to_owned()));
    assert_eq!((again.replica.position(), again.replica.status().records), (Some(at(3)), 2));
    again.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_state_file_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(state::path(dir.path(), "tenant"), "nonsense").unwrap();
    let mut run = run(Some(dir.path().to_owned()));
    assert_eq!(run.replica.position(), None);
    assert_eq!(run.stream().await.resume().await, None);
    run.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_list_of_revocations_that_became_short_while_nobody_listened_keeps_no_new_one_out() {
    for (kind, taken) in [("revocation", true), ("quarantine", true), ("key", true), ("tenant", false)] {
        let mut run = run_kind(kind, None);
        let mut stream = run.stream().await;
        stream.resume().await;
        stream.snapshot(at(30), 30);
        assert!(matches!(stream.request().await, Request::Ack(_)));
        stream.snapshot(at(56), 6);
        let answer = stream.request().await;
        assert_eq!(matches!(answer, Request::Ack(_)), taken, "{kind}: {answer:?}");
        run.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn changes_are_appended_to_the_state_and_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = state::path(dir.path(), "tenant");
    let delta = |revision: u64, value: Option<&'static str>| {
        let value = value.map(|value| Bytes::from_static(value.as_bytes()));
        let changes = vec![Change { key: "key-1".to_owned(), revision, value, several: false }];
        Response::Delta(Delta { epoch: 1, previous_revision: revision - 1, revision, changes })
    };
    let mut first = run(Some(dir.path().to_owned()));
    let mut stream = first.stream().await;
    stream.resume().await;
    stream.snapshot(at(3), 3);
    let written = |wanted: fn(u64, u64) -> bool, before: u64| {
        let path = path.clone();
        async move {
            loop {
                let length = fs::metadata(&path).map_or(0, |file| file.len());
                if wanted(length, before) {
                    return length;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let snapshot = written(|length, _| length > 0, 0).await;
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
    let before = inode();
    stream.send(delta(4, Some("new")));
    let longer = written(|length, before| length > before, snapshot).await;
    assert_eq!(inode(), before, "it is the same file");
    first.end().await;

    let mut second = run(Some(dir.path().to_owned()));
    assert_eq!((second.replica.position(), second.replica.get("key-1").unwrap().raw()), (Some(at(4)), &b"new"[..]));
    let mut stream = second.stream().await;
    assert_eq!(stream.resume().await, Some(at(4)));
    stream.send(delta(5, None));
    written(|length, before| length > before, longer).await;
    assert_eq!(inode(), before, "and so it is in the next run");
    second.end().await;

    let mut file = fs::read(&path).unwrap();
    file.truncate(file.len() - 1);
    fs::write(&path, file).unwrap();
    let mut third = run(Some(dir.path().to_owned()));
    assert_eq!(third.replica.position(), Some(at(4)), "what was half written is fetched again");
    let mut stream = third.stream().await;
    assert_eq!(stream.resume().await, Some(at(4)));
    stream.send(delta(5, None));
    third.replica.wait_for(at(5)).await;
    third.end().await;
    let last = run(Some(dir.path().to_owned()));
    assert_eq!((last.replica.position(), last.replica.status().records), (Some(at(5)), 2));
    last.end().await;
}
