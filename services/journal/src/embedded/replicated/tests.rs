use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::{
    Journal as _,
    embedded::tests::{Faults, store_on_a_disk},
};

fn at(sequence: u64) -> Cursor {
    Cursor { log: 7, epoch: 3, sequence, id: 100 + sequence, head: sequence }
}

fn change(revision: u64) -> Entry {
    let value = Some(revision.to_string().into_bytes().into());
    Entry { key: "k".to_owned(), revision, value, at_unix_ms: now_unix_ms() }
}

/// And what is wrong with its disk.
pub(crate) fn begin_on_a_disk(dir: &Path, cursor: Cursor) -> (Replicated, Arc<Faults>) {
    let path = dir.join("on_a_disk.redb");
    let (store, _, faults) = store_on_a_disk(&path);
    (Replicated::begin(store, &path, "tenant", Options::DEFAULT, cursor).unwrap(), faults)
}

/// At 3, of which 3 is not durable.
fn at_three(dir: &Path) -> (Replicated, Arc<Faults>) {
    let (replicated, faults) = begin_on_a_disk(dir, at(1));
    replicated.apply(&[change(2)], at(1), at(2), true).unwrap();
    replicated.apply(&[change(3)], at(2), at(3), false).unwrap();
    (replicated, faults)
}

/// As a reader finds that the disk cannot be read, for a moment.
async fn cannot_be_read(replicated: &Replicated, faults: &Faults) {
    faults.unreadable.store(true, SeqCst);
    replicated.journal().get("k").await.unwrap_err();
    faults.unreadable.store(false, SeqCst);
}

#[tokio::test]
async fn nothing_is_applied_over_what_was_lost_when_the_store_was_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let (replicated, faults) = at_three(dir.path());
    cannot_be_read(&replicated, &faults).await;
    let applied = replicated.apply(&[change(4)], at(3), at(4), false);
    assert!(matches!(applied, Err(ApplyError::Elsewhere)), "{applied:?}");
    assert_eq!(replicated.cursor().unwrap(), at(2), "what was not durable is lost");

    replicated.apply(&[change(3), change(4)], at(2), at(4), false).unwrap();
    assert_eq!(replicated.cursor().unwrap(), at(4));
    assert_eq!(replicated.journal().get("k").await.unwrap().unwrap().value, "4");
}

#[tokio::test]
async fn conditions_are_not_decided_from_a_store_that_has_lost_what_came_last() {
    let dir = tempfile::tempdir().unwrap();
    let (replicated, faults) = at_three(dir.path());
    assert_eq!(replicated.revisions(at(3), ["k"]).unwrap()["k"], 3);
    cannot_be_read(&replicated, &faults).await;
    let found = replicated.revisions(at(3), ["k"]);
    assert!(matches!(found, Err(ApplyError::Elsewhere)), "{found:?}");
    assert_eq!(replicated.revisions(at(2), ["k"]).unwrap()["k"], 2);
}

#[tokio::test]
async fn a_checkpoint_of_which_records_were_lost_while_it_was_loaded_is_not_taken() {
    let record = |key: &str| Record { key: key.to_owned(), revision: 1, value: "v".into() };
    for lost in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (replicated, faults) = at_three(dir.path());
        replicated.load(&[record("a"), record("b")]).unwrap();
        if lost {
            cannot_be_read(&replicated, &faults).await;
        }
        replicated.load(&[record("c")]).unwrap();
        let at = replicated.cursor().unwrap();
        assert_eq!(replicated.loaded(4, at).is_ok(), !lost);
    }
}
