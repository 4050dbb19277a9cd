//! What every journal promises, with stores that are out of reach for a moment.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all};
use journal::{AppendError, Expected, Journal, Position, Write};

use crate::{
    backend::{Backend, insist, reach},
    model,
};

fn put(key: impl Into<String>, value: impl ToString) -> Write {
    Write::put(key, value.to_string())
}

/// Appends until the store is within reach. Only for writes that may be made twice.
async fn append(journal: &dyn Journal, writes: Vec<Write>) -> Result<Position, AppendError> {
    loop {
        match journal.append(writes.clone()).await {
            Err(AppendError::Failed(_) | AppendError::Unconfirmed(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}

async fn records(journal: &dyn Journal) -> BTreeMap<String, (u64, Bytes)> {
    let snapshot = journal.snapshot().await.unwrap();
    snapshot.records.into_iter().map(|record| (record.key, (record.revision, record.value))).collect()
}

/// Those that are not marks of [`insist`].
async fn values(journal: &dyn Journal) -> BTreeMap<String, String> {
    let records = records(journal).await;
    let values = records.into_iter().filter(|(key, _)| !key.starts_with("mark/"));
    values.map(|(key, (_, value))| (key, String::from_utf8(value.to_vec()).unwrap())).collect()
}

pub async fn a_batch_is_made_whole_or_not_at_all(backend: &dyn Backend) {
    let replica = backend.open(0).await;
    let journal = &*replica.journal;
    insist(journal, vec![put("a", 1), put("b", 1)]).await.unwrap();
    let before = values(journal).await;
    for refused in [
        vec![put("c", 1), put("a", 2).expecting(Expected::Absent)],
        vec![put("a", 2), Write::delete("b"), put("d", 1).expecting(Expected::Revision(77))],
        vec![put("b", 9).expecting(Expected::Revision(9_999)), put("e", 1)],
    ] {
        let result = append(journal, refused).await;
        assert!(matches!(result, Err(AppendError::Conflict { .. })), "{result:?}");
        assert_eq!(values(journal).await, before);
    }
    insist(journal, vec![Write::delete("a"), put("b", 2), put("c", 1)]).await.unwrap();
    let after = values(journal).await;
    assert_eq!(after, [("b", "2"), ("c", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    let Err(AppendError::Conflict { key, actual, .. }) =
        append(journal, vec![put("c", 2).expecting(Expected::Absent)]).await
    else {
        panic!("c is there")
    };
    assert_eq!((key.as_str(), actual), ("c", Some(records(journal).await["c"].0)));
}

pub async fn conditions_see_the_earlier_writes_of_their_batch(backend: &dyn Backend) {
    let replica = backend.open(0).await;
    let journal = &*replica.journal;
    let twice = vec![put("a", 1).expecting(Expected::Absent), put("a", 2).expecting(Expected::Absent)];
    assert!(matches!(append(journal, twice).await, Err(AppendError::Conflict { actual: Some(_), .. })));
    assert_eq!(journal.count().await.unwrap(), 0);
    let gone =
        vec![put("a", 1).expecting(Expected::Absent), Write::delete("a"), put("a", 3).expecting(Expected::Absent)];
    insist(journal, gone).await.unwrap();
    let (revision, value) = records(journal).await["a"].clone();
    assert_eq!(value, "3");
    insist(journal, vec![put("a", 4).expecting(Expected::Revision(revision))]).await.unwrap();
    assert_eq!(records(journal).await["a"].1, "4");
}

pub async fn a_write_at_a_head_that_has_moved_is_refused(backend: &dyn Backend) {
    let (first, second) = (backend.open(0).await, backend.open(1).await);
    insist(&*first.journal, vec![put("a", 1)]).await.unwrap();
    let head = first.journal.head().await.unwrap();
    loop {
        match second.journal.append_at(head, vec![put("a", 2)]).await {
            Ok(position) => {
                assert_eq!(position, Position::new(head.epoch, head.revision + 1), "the one after");
                break;
            }
            // By itself, since the store was out of reach and answered late.
            Err(AppendError::Moved { .. }) if second.journal.get("a").await.unwrap().unwrap().value == "2" => break,
            Err(AppendError::Moved { actual }) => panic!("nobody wrote, but the head is {actual}, not {head}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    loop {
        match first.journal.append_at(head, vec![put("a", 3)]).await {
            Err(AppendError::Moved { actual }) => {
                assert!(actual > head);
                break;
            }
            Ok(_) => panic!("the head had moved"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    assert_eq!(values(&*first.journal).await["a"], "2");
}

pub async fn a_tail_gives_every_change_once_and_in_order_while_two_replicas_write(backend: &dyn Backend) {
    const EACH: usize = 60;
    let replicas = [backend.open(0).await, backend.open(1).await];
    let start = replicas[0].journal.head().await.unwrap();
    let writers = replicas.iter().enumerate().map(|(writer, replica)| async move {
        for number in 0..EACH {
            let writes = vec![put(format!("k{}", number % 7), format!("{writer}.{number}")), Write::delete("gone")];
            insist(&*replica.journal, writes).await.unwrap();
        }
    });
    let done = AtomicBool::new(false);
    let tails = replicas.iter().map(|replica| async {
        let mut tail = replica.journal.tail(start);
        let mut revision = start.revision;
        let (mut held, mut marks) = (BTreeMap::new(), 0);
        while marks < 2 * EACH {
            for entry in tail.next().await.unwrap().unwrap() {
                assert_eq!(entry.revision, revision + 1, "no gap, nothing twice");
                assert!(entry.at_unix_ms > 1_600_000_000_000, "it says when");
                revision = entry.revision;
                marks += usize::from(entry.key.starts_with("mark/"));
                match entry.value {
                    Some(value) => held.insert(entry.key, (revision, value)),
                    None => held.remove(&entry.key),
                };
            }
        }
        assert_eq!(held, records(&*replica.journal).await, "the changes add up to the records");
        held
    });
    let (held, _) = tokio::join!(join_all(tails), async {
        join_all(writers).await;
        done.store(true, Ordering::Release);
    });
    assert_eq!(held[0], held[1], "replicas hold the same");
}

pub async fn a_snapshot_is_of_one_moment_while_batches_are_written(backend: &dyn Backend) {
    let replicas = [backend.open(0).await, backend.open(1).await];
    let done = AtomicBool::new(false);
    let writer = async {
        for number in 0..80 {
            let batch = (0..6).map(|key| put(format!("k{key}"), number)).collect();
            insist(&*replicas[0].journal, batch).await.unwrap();
        }
        done.store(true, Ordering::Release);
    };
    let readers = replicas.iter().map(|replica| async {
        let mut last = Position::ZERO;
        while !done.load(Ordering::Acquire) {
            let snapshot = replica.journal.snapshot().await.unwrap();
            assert!(snapshot.position >= last, "it never goes back");
            last = snapshot.position;
            let newest = snapshot.records.iter().map(|record| record.revision).max();
            assert!(newest.is_none_or(|newest| newest <= last.revision));
            let of_batch: Vec<_> = snapshot.records.iter().filter(|record| record.key.starts_with('k')).collect();
            assert!(of_batch.is_empty() || of_batch.len() == 6, "half a batch: {of_batch:?}");
            assert!(of_batch.windows(2).all(|pair| pair[0].value == pair[1].value), "half a batch: {of_batch:?}");
            tokio::task::yield_now().await;
        }
    });
    tokio::join!(writer, join_all(readers));
}

pub async fn a_replica_that_was_away_catches_up_from_where_it_was(backend: &dyn Backend) {
    let writing = backend.open(0).await;
    let away = backend.open(1).await;
    insist(&*writing.journal, vec![put("a", 1)]).await.unwrap();
    let left_at = writing.journal.head().await.unwrap();
    reach(&*away.journal, left_at).await;
    drop(away);
    for number in 0..50 {
        insist(&*writing.journal, vec![put(format!("k{number}"), number), put("a", number)]).await.unwrap();
    }
    let head = writing.journal.head().await.unwrap();
    let back = backend.open(1).await;
    let mut tail = back.journal.tail(left_at);
    let mut revision = left_at.revision;
    while revision < head.revision {
        for entry in tail.next().await.unwrap().unwrap() {
            assert_eq!(entry.revision, revision + 1);
            revision = entry.revision;
        }
    }
    assert_eq!(back.journal.snapshot().await.unwrap(), writing.journal.snapshot().await.unwrap());
    insist(&*back.journal, vec![put("a", "back")]).await.unwrap();
    reach(&*writing.journal, back.journal.head().await.unwrap()).await;
    assert_eq!(values(&*writing.journal).await["a"], "back");
    drop((tail, writing, back));
    assert_eq!(values(&*backend.open(0).await.journal).await["a"], "back", "and after all were down");
}

pub async fn counters_that_two_replicas_increment_by_comparing_lose_nothing(backend: &dyn Backend) {
    const WRITERS: usize = 4;
    const EACH: u64 = 25;
    let replicas = [backend.open(0).await, backend.open(1).await];
    let writers = (0..WRITERS).map(|writer| {
        let journal = Arc::clone(&replicas[writer % 2].journal);
        tokio::spawn(async move {
            for number in 0..EACH {
                let key = format!("counter{}", number % 2);
                loop {
                    let record = journal.get(&key).await.unwrap();
                    let (value, expected) = record.map_or((0, Expected::Absent), |record| {
                        let value: u64 = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
                        (value, Expected::Revision(record.revision))
                    });
                    match insist(&*journal, vec![put(&key, value + 1).expecting(expected)]).await {
                        Ok(()) => break,
                        Err(AppendError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        })
    });
    join_all(writers).await.into_iter().for_each(|writer| writer.unwrap());
    let head = replicas[0].journal.head().await.unwrap().max(replicas[1].journal.head().await.unwrap());
    for replica in &replicas {
        reach(&*replica.journal, head).await;
        let counters = values(&*replica.journal).await;
        let sum: u64 = counters.values().map(|value| value.parse::<u64>().unwrap()).sum();
        assert_eq!(sum, WRITERS as u64 * EACH, "{counters:?}");
    }
}

pub async fn random_operations_do_what_a_map_does(backend: &dyn Backend) {
    let replica = backend.open(0).await;
    for operations in model::cases(8, 25) {
        model::check(&*replica.journal, operations).await;
    }
}

pub async fn a_batch_of_many_megabytes_is_made_whole(backend: &dyn Backend) {
    let (writing, reading) = (backend.open(0).await, backend.open(1).await);
    let large = |key: u32| Write::put(format!("large{key}"), vec![u8::try_from(key).unwrap(); 700_000]);
    let huge = Write::put("huge", vec![7; 2_500_000]);
    let mut batch: Vec<_> = (0..5).map(large).collect();
    batch.push(huge);
    insist(&*writing.journal, batch).await.unwrap();
    insist(&*writing.journal, vec![put("after", 1)]).await.unwrap();
    reach(&*reading.journal, writing.journal.head().await.unwrap()).await;
    let held = records(&*reading.journal).await;
    assert_eq!(held["huge"].1, vec![7; 2_500_000]);
    assert!((0..5).all(|key| held[&format!("large{key}")].1 == vec![u8::try_from(key).unwrap(); 700_000]));
    assert_eq!(held, records(&*writing.journal).await);
}
