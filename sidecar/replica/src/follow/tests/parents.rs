//! Two parents at once.

use super::{
    super::{acks::SPACING, stream::SHORTEST_WAIT},
    *,
};
use crate::{Named, ParentStatus};

struct Two {
    replica: Replica<Raw>,
    streams: [mpsc::UnboundedReceiver<Stream>; 2],
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

fn run_two() -> Two {
    let (first, first_streams) = mpsc::unbounded_channel();
    let (second, second_streams) = mpsc::unbounded_channel();
    let shutdown = CancellationToken::new();
    let parents = vec![Named::new("first", Script(first)), Named::new("second", Script(second))];
    let follow = Follow { kind: "tenant", instance: "test".to_owned(), parents, state_dir: None };
    let (replica, task) = follow.start(|_| {}, shutdown.clone());
    Two { replica, streams: [first_streams, second_streams], task, shutdown }
}

impl Two {
    async fn stream(&mut self, parent: usize) -> Stream {
        self.streams[parent].recv().await.unwrap()
    }

    fn parent(&self, parent: usize) -> ParentStatus {
        self.replica.status().parents[parent].clone()
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn delta(from: u64, to: u64) -> Response {
    Response::Delta(Delta { epoch: 1, previous_revision: from, revision: to, changes: vec![] })
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_is_stopped_delays_neither_the_snapshot_nor_changes_of_the_other() {
    let mut two = run_two();
    let _stopped = two.stream(0).await;
    let mut good = two.stream(1).await;
    good.resume().await;
    let began = Instant::now();
    good.snapshot(at(3), 2);
    two.replica.wait_for(at(3)).await;
    for revision in 3..3000 {
        good.send(delta(revision, revision + 1));
        two.replica.wait_for(at(revision + 1)).await;
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    let status = two.replica.status();
    assert!(status.connected && status.last_error.is_none());
    assert_eq!((two.parent(0).name.as_str(), two.parent(0).connected), ("first", false));
    assert!(two.parent(1).connected);
    two.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_parent_leaves_is_shown_and_what_it_missed_is_asked_for_when_it_is_back() {
    let mut two = run_two();
    let (dead, mut good) = (two.stream(0).await, two.stream(1).await);
    good.resume().await;
    good.snapshot(at(3), 2);
    two.replica.wait_for(at(3)).await;
    dead.responses.send(Err(Status::unavailable("gone"))).unwrap();
    let mut back = two.stream(0).await;
    assert_eq!(back.resume().await, Some(at(3)));
    assert!(two.parent(0).last_error.unwrap().contains("gone"));
    assert_eq!(two.replica.status().last_error, None, "the other one is good");
    back.send(delta(3, 4));
    two.replica.wait_for(at(4)).await;
    assert_eq!(two.parent(0).last_error, None);
    two.end().await;
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_are_coalesced_and_go_to_both_parents() {
    let mut two = run_two();
    let (mut first, mut second) = (two.stream(0).await, two.stream(1).await);
    first.resume().await;
    first.snapshot(at(3), 2);
    assert!(matches!(first.request().await, Request::Ack(_)), "the first one at once");
    second.resume().await;
    drop(second);
    let mut second = two.stream(1).await;
    assert_eq!(second.resume().await, Some(at(3)));
    second.send(delta(3, 4));
    two.replica.wait_for(at(4)).await;
    let mut acknowledged = Vec::new();
    let began = Instant::now();
    for revision in 4..1004 {
        first.send(delta(revision, revision + 1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        while let Ok(request) = first.requests.try_recv() {
            acknowledged.push((began.elapsed(), request));
        }
    }
    assert!((4..=6).contains(&acknowledged.len()), "{acknowledged:?}");
    assert!(acknowledged.windows(2).all(|pair| pair[1].0 - pair[0].0 >= SPACING));
    for stream in [&mut first, &mut second] {
        loop {
            let Request::Ack(ack) = stream.request().await else { panic!("not an acknowledgement") };
            if ack.position == Some(at(1004).into()) {
                break;
            }
        }
    }
    two.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_position_does_not_wait_for_parents_to_be_asked_again_some_time() {
    let mut two = run_two();
    for _ in 0..8 {
        drop((two.stream(0).await, two.stream(1).await));
    }
    let waiting = tokio::spawn({
        let replica = two.replica.clone();
        async move { replica.wait_for(at(3)).await }
    });
    let began = Instant::now();
    let mut first = two.stream(0).await;
    assert!(began.elapsed() <= SHORTEST_WAIT * 2, "{:?}", began.elapsed());
    first.resume().await;
    first.snapshot(at(3), 2);
    waiting.await.unwrap();
    two.end().await;
}
