use std::fs;

use tenon_proto::replication::v1::Delta;

use super::*;
use crate::{Raw, state};

fn delta(revision: u64) -> Response {
    Response::Delta(Delta { epoch: 1, previous_revision: revision - 1, revision, changes: Vec::new() })
}

#[test]
fn account_is_kept_once_a_file_has_what_was_before() {
    let mut unsaved = Unsaved::default();
    unsaved.push(|| delta(1));
    assert_eq!(unsaved.take(), None, "everything has to be written");
    unsaved.begin();
    (2..=5).for_each(|revision| unsaved.push(|| delta(revision)));
    unsaved.saved(Position::new(1, 3));
    let taken = unsaved.take().unwrap();
    assert_eq!(taken, [delta(4), delta(5)]);
    unsaved.push(|| delta(6));
    unsaved.put_back(taken);
    assert_eq!(unsaved.take().unwrap(), [delta(4), delta(5), delta(6)], "in their order");
    unsaved.everything();
    unsaved.put_back(vec![delta(6)]);
    assert_eq!(unsaved.take(), None);
}

#[test]
fn what_waits_for_a_full_disk_is_bounded() {
    let mut unsaved = Unsaved::default();
    unsaved.begin();
    for revision in 2..1_000_000 {
        unsaved.push(|| delta(revision));
        assert!(unsaved.bytes <= LARGEST_BACKLOG_BYTES);
    }
    assert_eq!(unsaved.take(), None, "the whole map is written when there is room");
}

#[test]
fn a_file_that_somebody_took_away_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = state::path(dir.path(), "tenant");
    let shared = Shared::<Raw>::new();
    let saved = state::Saved::<Raw> {
        position: Position::new(1, 1),
        view: "".into(),
        rules: Default::default(),
        held: Vec::new(),
        refused: Vec::new(),
        digest: Default::default(),
    };
    let recording = Recording::write(&path, "tenant", &saved).unwrap();
    shared.unsaved().begin();
    shared.unsaved().push(|| delta(2));
    fs::remove_file(&path).unwrap();
    let (recording, outcome) = write(&shared, "tenant", path, Some(recording));
    assert!(recording.is_none() && outcome.is_ok(), "nothing is appended to a file that nobody will find");
}
