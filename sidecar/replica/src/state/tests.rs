use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;
use tenon_proto::replication::v1::{Change, Delta};

use super::*;
use crate::{Raw, digest};

type Records = Vec<(String, u64, Vec<u8>)>;

fn saved(records: &Records) -> Saved<Raw> {
    let mut digest = Digest::new();
    let held = records.iter().map(|(key, revision, value)| {
        digest.add(key, *revision, value);
        Raw::new(key, *revision, Bytes::copy_from_slice(value)).unwrap()
    });
    let held = held.collect();
    digest.add("refused", 9, b"!");
    let refused = vec![(Arc::from("refused"), 9, Bytes::from_static(b"!"))];
    let rules = GuardRules { canaries: vec!["acme".to_owned()], ..GuardRules::default() };
    Saved { position: Position::new(3, 9), view: "v".into(), rules, held, refused, digest }
}

fn delta(revision: u64) -> Response {
    let change =
        Change { key: format!("k{revision}"), revision, value: Some(Bytes::from_static(b"value")), several: false };
    Response::Delta(Delta { epoch: 3, previous_revision: revision - 1, revision, changes: vec![change] })
}

/// A file with deltas up to `last`, each appended by itself.
fn file(dir: &tempfile::TempDir, records: &Records, last: u64) -> (PathBuf, Recording) {
    let path = path(dir.path(), "tenant");
    let mut recording = Recording::write(&path, "tenant", &saved(records)).unwrap();
    (10..=last).for_each(|revision| recording.append(&[delta(revision)]).unwrap());
    (path, recording)
}

/// All that is read, and whether more could be appended.
fn read(path: &Path) -> Result<(Vec<Response>, bool), LoadError> {
    let mut reader = Reader::open(path, "tenant")?.ok_or(LoadError::Damaged)?;
    assert_eq!((reader.position, reader.view.as_str()), (Position::new(3, 9), "v"));
    let mut all = Vec::new();
    loop {
        for chunk in reader.chunks()? {
            all.push(Response::SnapshotChunk(reader.chunk(&chunk)?));
        }
        let Some(response) = reader.next()? else { break };
        all.push(response);
    }
    match reader.snapshot_end {
        Some(_) => Ok((all, reader.appending().is_some())),
        None => Err(LoadError::Damaged), // As whoever restores it says.
    }
}

fn records() -> impl Strategy<Value = Records> {
    let value = prop::collection::vec(any::<u8>(), 0..40);
    let records = prop::collection::btree_map("[a-q]{0,9}", (any::<u64>(), value), 0..12);
    records.prop_map(|records| records.into_iter().map(|(key, (revision, value))| (key, revision, value)).collect())
}

/// Damaged so, a file is refused, or is what it was before the last deltas; and then it is not appended to.
fn check_damage(
    original: &[u8],
    damaged: &[u8],
    path: &Path,
    whole: &[Response],
    snapshot: usize,
) -> Result<(), TestCaseError> {
    fs::write(path, damaged).unwrap();
    match read(path) {
        Err(LoadError::Damaged | LoadError::Foreign) => {}
        Err(LoadError::Read(error)) => return Err(TestCaseError::fail(error.to_string())),
        Ok((read, appending)) => {
            prop_assert!(read.len() >= snapshot && whole.starts_with(&read));
            let lost = read.len() < whole.len();
            prop_assert!(lost || damaged == original, "damage was not noticed");
            // A file that ends between two frames is one that was not appended to yet.
            prop_assert!(!appending || original.starts_with(damaged));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_written_and_appended_is_read(records in records(), last in 9..14u64) {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = file(&dir, &records, last);
        let (mut all, appending) = read(&path).unwrap();
        prop_assert!(appending);
        let deltas: Vec<_> = (10..=last).map(delta).collect();
        prop_assert_eq!(all.split_off(all.len() - deltas.len()), deltas);
        prop_assert_eq!(all.remove(0), Response::GuardRules(saved(&records).rules));
        let Some(Response::SnapshotEnd(end)) = all.pop() else { panic!("no end") };
        let read = all.into_iter().flat_map(|chunk| {
            let Response::SnapshotChunk(chunk) = chunk else { panic!("{chunk:?}") };
            chunk.records
        });
        let read: Records = read.map(|it| (it.key, it.revision, it.value.to_vec())).collect();
        let of = digest(read.iter().map(|(key, revision, value)| (key.as_str(), *revision, value.as_slice())));
        prop_assert_eq!((end.records, &end.digest[..]), (read.len() as u64, &of[..]));
        prop_assert_eq!(&read[..read.len() - 1], &records[..]);
        prop_assert_eq!(&read[read.len() - 1], &("refused".to_owned(), 9, b"!".to_vec()));
    }

    #[test]
    fn any_flipped_byte_and_any_lost_end_is_noticed(
        records in records(), at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<bool>()
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = file(&dir, &records, 13);
        let original = fs::read(&path).unwrap();
        let (whole, _) = read(&path).unwrap();
        let mut damaged = original.clone();
        let at = at.index(damaged.len());
        if cut { damaged.truncate(at) } else { damaged[at] ^= flip }
        check_damage(&original, &damaged, &path, &whole, whole.len() - 4)?;
    }

    #[test]
    fn nonsense_does_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        if magic {
            bytes.splice(0..0, *MAGIC);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "tenant");
        fs::write(&path, bytes).unwrap();
        prop_assert!(read(&path).is_err());
    }
}

#[test]
fn every_single_flipped_byte_of_a_file_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = file(&dir, &vec![("acme".to_owned(), 1, b"active".to_vec())], 11);
    let original = fs::read(&path).unwrap();
    let (whole, _) = read(&path).unwrap();
    for at in 0..original.len() {
        let mut damaged = original.clone();
        damaged[at] ^= 0xff;
        check_damage(&original, &damaged, &path, &whole, whole.len() - 2).unwrap();
    }
}

#[test]
fn the_state_of_another_kind_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = file(&dir, &Vec::new(), 9);
    assert!(matches!(Reader::open(&path, "key"), Err(LoadError::Foreign)));
}

#[test]
fn a_file_is_private_whole_and_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(&dir.path().join("below"), "tenant");
    assert!(Reader::open(&path, "tenant").unwrap().is_none());
    for _ in 0..2 {
        Recording::write(&path, "tenant", &saved(&Vec::new())).unwrap();
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    assert!(read(&path).is_ok());
}

#[test]
fn what_a_crash_left_beside_the_file_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(path(dir.path(), "tenant").with_extension("state.new"), b"half").unwrap();
    assert!(read(&file(&dir, &Vec::new(), 9).0).is_ok());
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_an_append_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut recording) = file(&dir, &Vec::new(), 10);
    assert!(recording.is_at(&path));
    let good = std::mem::replace(&mut recording.file, File::options().write(true).open("/dev/full").unwrap());
    assert!(recording.append(&[delta(11)]).is_err());
    assert!(!recording.is_at(&path), "that is another file");
    recording.file = good;
    // As after a write that got half way.
    recording.file.write_all(b"half a frame").unwrap();
    recording.append(&[delta(11), delta(12)]).unwrap();
    let (read, appending) = read(&path).unwrap();
    assert_eq!((&read[read.len() - 3..], appending), (&[delta(10), delta(11), delta(12)][..], true));
}

#[test]
fn a_file_becomes_long_by_its_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut recording) = file(&dir, &Vec::new(), 9);
    let many: Vec<_> = (10..5_010).map(delta).collect();
    let mut appended = 0;
    while !recording.is_long() {
        recording.append(&many).unwrap();
        appended += many.len();
    }
    assert!((20_000..60_000).contains(&appended), "{appended}");
}
