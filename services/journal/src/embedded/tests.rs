use std::{
    fs::{File, OpenOptions, Permissions},
    ops::Bound,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use proptest::prelude::*;
use redb::{BackendError, StorageBackend, backends::FileBackend};
use tempfile::TempDir;

use super::{store::Confirmed, *};
use crate::Expected;

fn store() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("below").join("store.redb");
    (dir, path)
}

fn put(key: &str, value: &str) -> Write {
    Write::put(key, value.to_owned())
}

#[tokio::test]
async fn a_batch_takes_a_revision_for_each_write_and_is_there_after_reopening() {
    let (_dir, path) = store();
    let journal = Embedded::open(&path).unwrap().kind("tenant").unwrap();
    let epoch = journal.head().await.unwrap().epoch;
    assert_eq!(
        journal.append(vec![put("a", "1"), put("b", "1"), put("a", "2")]).await.unwrap(),
        Position::new(epoch, 3)
    );
    assert_eq!(journal.append(vec![Write::delete("b")]).await.unwrap(), Position::new(epoch, 4));
    assert_eq!(journal.append(vec![]).await.unwrap(), Position::new(epoch, 4));
    drop(journal);

    let journal = Embedded::open(&path).unwrap().kind("tenant").unwrap();
    let a = Record { key: "a".to_owned(), revision: 3, value: Bytes::from_static(b"2") };
    assert_eq!(
        journal.snapshot().await.unwrap(),
        Snapshot { position: Position::new(epoch, 4), records: vec![a.clone()] }
    );
    assert_eq!((journal.get("a").await.unwrap(), journal.get("b").await.unwrap()), (Some(a), None));
    assert_eq!(journal.count().await.unwrap(), 1);
}

#[tokio::test]
async fn kinds_of_one_store_have_a_sequence_each() {
    let (_dir, path) = store();
    let store = Embedded::open(&path).unwrap();
    let (one, other) = (store.kind("route").unwrap(), store.kind("key").unwrap());
    one.append(vec![put("a", "1"), put("b", "1")]).await.unwrap();
    assert_eq!(other.append(vec![put("a", "2")]).await.unwrap().revision, 1);
    assert_eq!(one.get("a").await.unwrap().unwrap().value, "1");
}

#[tokio::test]
async fn a_condition_that_is_not_met_refuses_the_whole_batch() {
    let (_dir, path) = store();
    let journal = Embedded::open(&path).unwrap().kind("tenant").unwrap();
    journal.append(vec![put("a", "1")]).await.unwrap();
    let before = journal.snapshot().await.unwrap();
    for expected in [Expected::Absent, Expected::Revision(2)] {
        let result = journal.append(vec![put("other", "x"), put("a", "1").expecting(expected)]).await;
        assert!(matches!(result, Err(AppendError::Conflict { actual: Some(1), .. })), "{expected:?}: {result:?}");
        assert_eq!(journal.snapshot().await.unwrap(), before);
    }
    journal.append(vec![put("a", "2").expecting(Expected::Revision(1))]).await.unwrap();
}

#[tokio::test]
async fn conditions_see_the_earlier_writes_of_their_batch() {
    let (_dir, path) = store();
    let journal = Embedded::open(&path).unwrap().kind("tenant").unwrap();
    let twice = vec![put("a", "1").expecting(Expected::Absent), put("a", "2").expecting(Expected::Absent)];
    assert!(matches!(journal.append(twice).await, Err(AppendError::Conflict { actual: Some(1), .. })));
    assert_eq!(journal.head().await.unwrap().revision, 0);
    journal
        .append(vec![put("a", "1").expecting(Expected::Absent), put("a", "2").expecting(Expected::Revision(1))])
        .await
        .unwrap();
    let error = journal.append(vec![Write::delete("b").expecting(Expected::Revision(1))]).await.unwrap_err();
    assert_eq!(error.to_string(), "b is at no record, not at Revision(1): read it again and decide anew");
}

#[tokio::test]
async fn a_tail_gives_what_was_written_and_then_what_is_being_written() {
    let (_dir, path) = store();
    let journal = Embedded::open(&path).unwrap().kind("tenant").unwrap();
    let first = journal.append(vec![put("a", "1"), Write::delete("a")]).await.unwrap();
    let mut tail = journal.tail(Position::new(first.epoch, 1));
    let entry = |revision, key: &str, value: Option<&str>, at_unix_ms| {
        let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
        Entry { key: key.to_owned(), revision, value, at_unix_ms }
    };
    let entries = tail.next().await.unwrap().unwrap();
    assert_eq!(entries, [entry(2, "a", None, entries[0].at_unix_ms)]);
    let before = now_unix_ms();
    let (written, next) = tokio::join!(journal.append(vec![put("b", "1")]), tail.next());
    written.unwrap();
    let entries = next.unwrap().unwrap();
    let at = entries[0].at_unix_ms;
    assert_eq!(entries, [entry(3, "b", Some("1"), at)]);
    assert!((before..=now_unix_ms()).contains(&at), "it knows when it was written");
}

#[tokio::test]
async fn a_tail_of_what_is_no_longer_kept_says_so() {
    let (_dir, path) = store();
    let store = Embedded::open_with(&path, Options { retained_changes: 3, ..Options::DEFAULT }).unwrap();
    let journal = store.kind("tenant").unwrap();
    let mut head = Position::ZERO;
    for number in 0..10 {
        head = journal.append(vec![put(&format!("k{number}"), "v")]).await.unwrap();
    }
    let at = |revision| Position::new(head.epoch, revision);
    for (from, kept) in
        [(at(0), false), (at(6), false), (at(7), true), (at(11), false), (Position::new(head.epoch - 1, 9), false)]
    {
        let next = journal.tail(from).next().await.unwrap();
        match next {
            Ok(entries) => assert!(kept && entries.len() == 3 && entries[0].revision == 8, "{from}"),
            Err(error) => assert!(!kept && matches!(error, TailError::Compacted), "{from}"),
        }
    }
    assert_eq!(journal.count().await.unwrap(), 10, "only the past is forgotten");
}

#[test]
fn a_store_in_use_is_refused_with_what_to_do() {
    let (_dir, path) = store();
    let _first = Embedded::open(&path).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Held(_)));
    assert!(
        error.to_string().ends_with("is in use by another process: stop that one, or name another file"),
        "{error}"
    );
}

#[test]
fn a_new_store_can_be_read_by_its_owner_alone_whatever_the_folder() {
    let (dir, _) = store();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("store.redb");
    drop(Embedded::open(&path).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Embedded::open(&path).is_ok(), "it can be opened again");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let (dir, _) = store();
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "these are notes, and longer than a header of any kind. ".repeat(100)).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Foreign(_)), "{error:?}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("these are notes"));
}

#[test]
fn a_folder_that_cannot_be_made_is_a_clear_error() {
    let (dir, _) = store();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let error = Embedded::open(&dir.path().join("file").join("store.redb")).unwrap_err();
    assert!(matches!(error, OpenError::Failed { .. }), "{error:?}");
}

#[test]
fn a_new_store_has_a_later_epoch() {
    let (_dir, path) = store();
    let before = Embedded::open(&path).unwrap().epoch();
    assert_eq!(Embedded::open(&path).unwrap().epoch(), before);
    std::fs::remove_file(&path).unwrap();
    assert!(Embedded::open(&path).unwrap().epoch() >= before);
}

#[tokio::test]
async fn a_renewed_epoch_is_another_history_of_the_same_records() {
    let (_dir, path) = store();
    let first = Embedded::open(&path).unwrap();
    let before = first.kind("a").unwrap().append(vec![Write::put("k", "v")]).await.unwrap();
    let renewed = first.renew_epoch().unwrap();
    assert!(renewed.epoch() > before.epoch);
    let journal = renewed.kind("a").unwrap();
    assert_eq!(journal.head().await.unwrap(), Position::new(renewed.epoch(), before.revision));
    assert_eq!(journal.count().await.unwrap(), 1);
    assert!(matches!(journal.tail(before).next().await, Some(Err(TailError::Compacted))));
    let epoch = renewed.epoch();
    drop((renewed, journal));
    assert_eq!(Embedded::open(&path).unwrap().epoch(), epoch);
}

/// A disk that can be full, or broken.
#[derive(Debug)]
pub(super) struct Disk {
    file: FileBackend,
    full: Arc<AtomicBool>,
    faults: Arc<Faults>,
}

/// What is wrong with a disk.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// So many times more, it does not confirm what it has taken.
    unconfirmed: AtomicU32,
    /// As if it were full.
    as_full: AtomicBool,
    pub(crate) unreadable: AtomicBool,
}

impl Disk {
    /// And what says that it is full.
    pub(super) fn new(file: FileBackend) -> (Self, Arc<AtomicBool>) {
        let full = Arc::default();
        (Self { file, full: Arc::clone(&full), faults: Arc::default() }, full)
    }

    fn room(&self) -> io::Result<()> {
        if self.full.load(SeqCst) { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.faults.unreadable.load(SeqCst) {
            return Err(ErrorKind::Other.into());
        }
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        let Faults { unconfirmed, as_full, .. } = &*self.faults;
        if unconfirmed.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(if as_full.load(SeqCst) { ErrorKind::StorageFull } else { ErrorKind::Other }.into());
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

fn on_a_disk(path: &Path) -> (Embedded, Arc<AtomicBool>) {
    let (store, full, _) = store_on_a_disk(path);
    (Embedded::on(store, Options::default(), path).unwrap(), full)
}

/// And what says that its disk is full, or what else is wrong with it. Nothing is cached, so that reads need it.
pub(super) fn store_on_a_disk(path: &Path) -> (Store, Arc<AtomicBool>, Arc<Faults>) {
    let (full, faults) = (Arc::new(AtomicBool::new(false)), Arc::<Faults>::default());
    let (of, broken, file) = (Arc::clone(&full), Arc::clone(&faults), path.to_owned());
    let open = move || {
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(redb::StorageError::Io)?;
        let disk = Disk { file: FileBackend::new(file)?, full: Arc::clone(&of), faults: Arc::clone(&broken) };
        redb::Database::builder().set_cache_size(0).create_with_backend(Confirmed(disk))
    };
    (Store::open_by(path, Box::new(open)).unwrap(), full, faults)
}

#[tokio::test]
async fn a_write_that_the_disk_does_not_confirm_is_not_said_to_have_changed_nothing_and_others_go_on_after_it() {
    for (times, as_full) in [(1, false), (u32::MAX, false), (u32::MAX, true)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let (store, _, faults) = store_on_a_disk(&path);
        let journal = Embedded::on(store, Options::default(), &path).unwrap().kind("tenant").unwrap();
        let first = journal.append(vec![put("a", "1")]).await.unwrap();
        let mut tail = journal.tail(first);

        faults.as_full.store(as_full, SeqCst);
        faults.unconfirmed.store(times, SeqCst);
        let error = journal.append_at(first, vec![put("a", "2")]).await.unwrap_err();
        assert!(matches!(error, AppendError::Unconfirmed(_)), "{error:?}");
        faults.unconfirmed.store(0, SeqCst);

        let made = Position::new(first.epoch, first.revision + 1);
        let error = journal.append_at(first, vec![put("a", "3")]).await.unwrap_err();
        assert!(matches!(error, AppendError::Moved { actual } if actual == made), "{error:?}");
        let heard = tokio::time::timeout(Duration::from_secs(5), tail.next()).await;
        assert_eq!(heard.expect("who follows hears of it").unwrap().unwrap()[0].revision, made.revision);
        assert_eq!(journal.head().await.unwrap(), made);
        journal.append_at(made, vec![put("a", "3")]).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_a_write_changes_nothing_and_is_forgotten_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (store, full) = on_a_disk(&dir.path().join("store.redb"));
    let journal = store.kind("tenant").unwrap();
    let first = journal.append(vec![put("a", "1")]).await.unwrap();
    let before = journal.snapshot().await.unwrap();
    let mut tail = journal.tail(first);

    full.store(true, SeqCst);
    let error = journal.append(vec![put("a", "2"), put("b", "1")]).await.unwrap_err();
    assert!(matches!(error, AppendError::Full(_)), "{error:?}");
    let again = journal.append(vec![put("a", "2")]).await.unwrap_err();
    assert!(matches!(again, AppendError::Full(_)), "{again:?}");

    full.store(false, SeqCst);
    assert_eq!(journal.snapshot().await.unwrap(), before);
    let next = journal.append(vec![put("a", "3")]).await.unwrap();
    assert_eq!(next, Position::new(first.epoch, first.revision + 1));
    assert_eq!(tail.next().await.unwrap().unwrap()[0].value.as_deref(), Some(b"3".as_slice()));
}

#[tokio::test]
async fn a_history_that_is_being_read_ends_with_an_error_when_the_store_is_opened_again_after_one() {
    let dir = tempfile::tempdir().unwrap();
    let (store, full) = on_a_disk(&dir.path().join("store.redb"));
    let journal = store.kind("tenant").unwrap();
    journal.append((0..3000).map(|key| put(&format!("k{key}"), "1")).collect()).await.unwrap();
    let mut history = journal.history().await.unwrap();
    history.parts.next().await.unwrap().unwrap();
    full.store(true, SeqCst);
    journal.append(vec![put("a", "2")]).await.unwrap_err();
    full.store(false, SeqCst);
    journal.append(vec![put("a", "2")]).await.unwrap();
    assert!(history.parts.next().await.unwrap().is_err(), "the pages that it reads may be others by now");
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(u8, Option<u8>, Option<u64>)>),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..6u8, prop::option::of(any::<u8>()), prop::option::weighted(0.2, 0..9u64));
    let step = prop_oneof![6 => prop::collection::vec(write, 0..4).prop_map(Step::Append), 1 => Just(Step::Reopen)];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn it_equals_a_map_with_revisions_and_its_log_replays_to_it(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (_dir, path) = store();
            let mut journal = Embedded::open(&path).unwrap().kind("tenant").unwrap();
            let epoch = journal.head().await.unwrap().epoch;
            let (mut model, mut revision) = (std::collections::BTreeMap::new(), 0);
            for step in steps {
                let Step::Append(writes) = step else {
                    drop(journal);
                    journal = Embedded::open(&path).unwrap().kind("tenant").unwrap();
                    continue;
                };
                let (mut next, mut last, mut good) = (model.clone(), revision, true);
                for (key, value, expected) in &writes {
                    let actual = next.get(key).map(|(revision, _)| *revision);
                    good &= expected.is_none_or(|expected| actual == Some(expected));
                    last += 1;
                    match value {
                        Some(value) => drop(next.insert(*key, (last, *value))),
                        None => drop(next.remove(key)),
                    }
                }
                let writes = writes.iter().map(|(key, value, expected)| Write {
                    key: key.to_string(),
                    value: value.map(|value| vec![value].into()),
                    expected: expected.map_or(Expected::Any, Expected::Revision),
                });
                let result = journal.append(writes.collect()).await;
                assert_eq!(result.is_ok(), good);
                if good {
                    (model, revision) = (next, last);
                }
            }
            let wanted: Vec<_> = model
                .iter()
                .map(|(key, (revision, value))| Record { key: key.to_string(), revision: *revision, value: vec![*value].into() })
                .collect();
            let position = Position::new(epoch, revision);
            assert_eq!(journal.snapshot().await.unwrap(), Snapshot { position, records: wanted.clone() });
            let (mut tail, mut replayed, mut at) = (journal.tail(Position::new(epoch, 0)), std::collections::BTreeMap::new(), 0);
            while at < revision {
                for Entry { key, revision, value, .. } in tail.next().await.unwrap().unwrap() {
                    assert_eq!(revision, at + 1);
                    at = revision;
                    replayed.remove(&key);
                    if let Some(value) = value {
                        replayed.insert(key.clone(), Record { key, revision, value });
                    }
                }
            }
            assert_eq!(replayed.into_values().collect::<Vec<_>>(), wanted);
        });
    }
}
