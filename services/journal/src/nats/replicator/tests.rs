use futures_util::stream;
use tempfile::TempDir;

use super::*;
use crate::nats::{log, names::Mesh, wire::Change};

mod lost;

const AT: Cursor = Cursor { log: 7, epoch: 3, sequence: 49, id: 149, head: 10 };

/// One that holds the log up to [`AT`], and that no server answers.
async fn replicator() -> (Replicator, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tenant.redb");
    let held = Replicated::create(&path, "tenant", Options::default(), AT).unwrap();
    let unreachable = async_nats::ConnectOptions::new().retry_on_initial_connect().connect("127.0.0.1:1");
    let client = unreachable.await.unwrap();
    let mesh = Mesh::of(&"demo.example".try_into().unwrap());
    let parts = Parts {
        kind: "tenant",
        log: Log::new(&log::context(client.clone()), &mesh, "tenant").unwrap(),
        client,
        path,
        options: Options::default(),
        checkpoint_bytes: 1 << 20,
        held: Some((held, AT)),
        local: watch::channel(None).0,
        alarm: watch::channel(None).0,
        requests: mpsc::channel(1).1,
    };
    (Replicator::new(parts), dir)
}

/// A commit that follows on the message at `after`, with one write.
fn commit(id: u64, after: u64, first_revision: u64) -> Commit {
    let writes = vec![Change { key: format!("k{id}"), value: Some("v".into()) }];
    Commit { log: AT.log, epoch: AT.epoch, after, id, first_revision, writes, ..Commit::default() }
}

async fn follow<const N: usize>(
    replicator: &mut Replicator,
    read: [Result<(u64, Commit), LogError>; N],
) -> Result<(), Failure> {
    replicator.follow(stream::iter(read)).await
}

#[tokio::test]
async fn a_commit_that_counted_has_landed_whatever_was_read_with_it() {
    for (name, read, landed) in [
        ("alone", vec![commit(1, 49, 11)], Some(50)),
        ("before that of another", vec![commit(1, 49, 11), commit(2, 50, 12)], Some(50)),
        ("twice, since it was sent again", vec![commit(1, 49, 11), commit(1, 49, 11), commit(2, 51, 12)], Some(50)),
        ("after that of another", vec![commit(2, 49, 11), commit(1, 49, 11)], None),
        ("not at all", vec![commit(2, 49, 11)], None),
    ] {
        let (mut replicator, _dir) = replicator().await;
        replicator.awaited = Some(1);
        let read = (50..).zip(read).map(Ok);
        replicator.follow(stream::iter(read)).await.unwrap();
        assert_eq!(replicator.landed, landed, "{name}");
    }
}

#[tokio::test]
async fn what_was_out_of_sight_for_a_moment_is_read_again() {
    let (mut replicator, _dir) = replicator().await;
    let failed = follow(&mut replicator, [Err(LogError::Missing(50)), Ok((51, commit(2, 50, 12)))]).await;
    assert!(matches!(failed, Err(Failure::Log(LogError::Missing(50)))), "{failed:?}");
    assert_eq!((replicator.seen, replicator.cursor), (49, AT));

    // Where it was passed over all the same, the next commit shows it.
    replicator.seen = 50;
    let failed = follow(&mut replicator, [Ok((51, commit(2, 50, 12)))]).await;
    assert!(matches!(failed, Err(Failure::Alarm(Alarm::Hole { held: 49, .. }))), "{failed:?}");
    assert_eq!(replicator.seen, 49, "the hole is looked at again");
    follow(&mut replicator, [Ok((50, commit(1, 49, 11))), Ok((51, commit(2, 50, 12)))]).await.unwrap();
    assert_eq!((replicator.seen, replicator.cursor.head), (51, 12));
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_believed_to_be_after_a_while() {
    let (mut replicator, _dir) = replicator().await;
    assert!(!replicator.long_missing());
    tokio::time::advance(MISSING / 2).await;
    assert!(!replicator.long_missing());
    tokio::time::advance(MISSING / 2).await;
    assert!(replicator.long_missing());
}

#[tokio::test]
async fn a_commit_that_follows_on_another_message_is_neither_made_nor_passed_over_before_the_log_has_been_asked() {
    let (mut replicator, _dir) = replicator().await;
    replicator.verified = Some("once".to_owned());
    let read = [Ok((50, Commit { after_id: Some(149), ..commit(1, 49, 11) }))];
    follow(&mut replicator, read).await.unwrap();
    let held = replicator.cursor;
    assert_eq!((held.sequence, held.head), (50, 11));
    let stray = Commit { after_id: Some(2), ..commit(3, 50, 12) };
    let failed = follow(&mut replicator, [Ok((51, stray))]).await;
    assert!(matches!(failed, Err(Failure::Log(_))), "nobody answers: {failed:?}");
    assert_eq!((replicator.cursor, replicator.seen), (held, 50));
    assert!(!replicator.sure(), "nothing is written before the log has been asked");
}

#[tokio::test]
async fn an_alarm_says_that_the_task_which_reads_the_log_has_ended() {
    let (alarm, alarmed) = watch::channel(None);
    mind(tokio::spawn(async {}), "TENON_A".to_owned(), alarm.clone()).await;
    assert_eq!(*alarmed.borrow(), None, "nobody needs it any more");
    mind(tokio::spawn(async { panic!("cannot go on") }), "TENON_A".to_owned(), alarm).await;
    let raised = alarmed.borrow().as_ref().map(ToString::to_string).unwrap_or_default();
    assert!(raised.contains("TENON_A") && raised.contains("cannot go on"), "{raised}");
}
