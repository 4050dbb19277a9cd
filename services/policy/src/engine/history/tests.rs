//! What is kept, and for how long.

use tenon_proto::policy::v1::PolicyRevision;

use super::*;
use crate::engine::stored::Staged;

fn state(past: &[(u64, u8, u64)]) -> State {
    let past: Vec<_> = past
        .iter()
        .map(|&(number, files, bytes)| Past {
            number,
            revision: Some(PolicyRevision { epoch: 1, revision: number * 10 }),
            files: vec![files],
            bytes,
            kept: true,
        })
        .collect();
    let files = past.last().map(|past| past.files.clone()).unwrap_or_default();
    State { number: past.len() as u64, files, past, ..State::default() }
}

fn kept(state: &State) -> Vec<u64> {
    state.past.iter().filter(|past| past.kept).map(|past| past.number).collect()
}

fn deleted(writes: &[Write]) -> Vec<&str> {
    assert!(writes.iter().all(|write| write.value.is_none()));
    writes.iter().map(|write| write.key.as_str()).collect()
}

#[test]
fn the_oldest_entries_and_files_go_first() {
    let old = state(&[(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 1)]);
    let mut new = old.clone();
    let writes = prune_to(&old, &mut new, 3, 2, 100);
    assert_eq!((new.past.len(), kept(&new)), (3, vec![3, 4]));
    let mut gone = deleted(&writes);
    gone.sort_unstable();
    assert_eq!(gone, ["files/01", "files/02", "history/00000000000000000001"]);
}

#[test]
fn files_that_a_later_change_brought_back_stay_and_count_once() {
    let old = state(&[(1, 1, 60), (2, 2, 30), (3, 1, 60)]);
    let mut new = old.clone();
    assert_eq!(prune_to(&old, &mut new, 10, 10, 95), []);
    assert_eq!(kept(&new), [1, 2, 3]);
    let writes = prune_to(&old, &mut new, 10, 10, 80);
    assert_eq!((deleted(&writes), kept(&new)), (vec!["files/02"], vec![3]), "and with it all that are older");
}

#[test]
fn files_in_force_and_staged_ones_stay_however_large_they_are() {
    let old = state(&[(1, 1, 1), (2, 2, 500)]);
    let mut new = old.clone();
    new.staged = Some(Staged { files: vec![3], ..Staged::default() });
    let writes = prune_to(&old, &mut new, 10, 10, 100);
    assert_eq!((deleted(&writes), kept(&new)), (vec!["files/01"], vec![2]));
    assert!(holds(&new, &[3]) && holds(&new, &[2]) && !holds(&new, &[1]));
}

#[test]
fn a_revision_is_found_by_its_epoch_or_the_latest_without_one() {
    let mut state = state(&[(1, 1, 1), (2, 2, 1)]);
    state.past[1].revision = Some(PolicyRevision { epoch: 2, revision: 10 });
    let number = |epoch, revision| at(&state, Position::new(epoch, revision)).map(|past| past.number);
    assert_eq!((number(1, 10), number(2, 10), number(0, 10)), (Some(1), Some(2), Some(2)));
    assert_eq!((number(3, 10), number(0, 11)), (None, None));
}
