use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use proptest::prelude::*;

use crate::{Change, Embedded, History, Options, Part, Record, Write};

async fn read(history: History) -> (Vec<Record>, Vec<Change>) {
    let (mut records, mut changes) = (Vec::new(), Vec::new());
    for part in history.parts.try_concat().await.unwrap() {
        match part {
            Part::Record(record) if changes.is_empty() => records.push(record),
            Part::Record(late) => panic!("{late:?} comes after changes"),
            Part::Change(change) => changes.push(change),
        }
    }
    (records, changes)
}

fn map(records: &[Record]) -> BTreeMap<String, (u64, Bytes)> {
    records.iter().map(|it| (it.key.clone(), (it.revision, it.value.clone()))).collect()
}

fn undo(state: &mut BTreeMap<String, (u64, Bytes)>, change: Change) {
    let there = match change.previous {
        Some(before) => state.insert(before.key, (before.revision, before.value)),
        None => state.remove(&change.entry.key),
    };
    let new = change.entry.value.map(|value| (change.entry.revision, value));
    assert_eq!(there, new, "a change is undone where it was made");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn undoing_gives_every_state_that_is_kept(
        batches in prop::collection::vec(prop::collection::vec((0..5u8, prop::option::of("[ab]{0,9}")), 1..5), 1..12),
        retained_changes in 0..40u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let options = Options { retained_changes, ..Options::DEFAULT };
            let journal = Embedded::open_with(&dir.path().join("s"), options).unwrap().kind("tenant").unwrap();
            let mut states = vec![BTreeMap::new()];
            for batch in batches {
                for (key, value) in &batch {
                    let mut next = states.last().unwrap().clone();
                    let revision = states.len() as u64;
                    match value {
                        Some(value) => next.insert(format!("k{key}"), (revision, Bytes::from(value.clone()))),
                        None => next.remove(&format!("k{key}")),
                    };
                    states.push(next);
                }
                let writes = batch.into_iter().map(|(key, value)| Write {
                    value: value.map(Bytes::from),
                    ..Write::delete(format!("k{key}"))
                });
                journal.append(writes.collect()).await.unwrap();
            }
            let history = journal.history().await.unwrap();
            let (head, floor) = (history.position.revision, history.floor);
            assert_eq!((head, head - floor), (states.len() as u64 - 1, head.min(retained_changes)));
            assert_eq!((history.records, history.changes), (states.last().unwrap().len() as u64, head - floor));
            let (records, changes) = read(history).await;
            let mut state = map(&records);
            assert_eq!(Some(&state), states.last());
            for (change, revision) in std::iter::zip(changes, (floor + 1..=head).rev()) {
                assert_eq!(change.entry.revision, revision);
                undo(&mut state, change);
                assert_eq!(state, states[revision as usize - 1]);
            }
        });
    }
}

#[tokio::test]
async fn a_history_is_of_one_moment_however_much_is_written_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Embedded::open(&dir.path().join("store")).unwrap().kind("tenant").unwrap();
    let value = "v".repeat(1000);
    let all = |revision: u64| (0..5000).map(move |key| Write::put(format!("k{key:04}"), format!("{revision}")));
    journal.append((0..5000).map(|key| Write::put(format!("k{key:04}"), value.clone())).collect()).await.unwrap();
    let mut history = journal.history().await.unwrap();
    let first = history.parts.try_next().await.unwrap().unwrap();
    assert!(first.len() < 5000, "it is read a few at a time");
    journal.append(all(1).collect()).await.unwrap();
    journal.append(vec![Write::delete("k4999"), Write::put("k5000", "new")]).await.unwrap();
    let rest = history.parts.try_concat().await.unwrap();
    let parts: Vec<_> = first.into_iter().chain(rest).collect();
    assert_eq!(parts.len(), 10_000);
    assert!(parts.iter().all(|part| match part {
        Part::Record(record) => record.value == value,
        Part::Change(change) => change.entry.revision <= 5000 && change.previous.is_none(),
    }));
}

#[tokio::test]
async fn an_empty_journal_has_an_empty_history() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Embedded::open(&dir.path().join("store")).unwrap().kind("tenant").unwrap();
    let history = journal.history().await.unwrap();
    assert_eq!((history.records, history.changes, history.floor), (0, 0, 0));
    assert_eq!(read(history).await, (Vec::new(), Vec::new()));
}
