use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{restore::LOST, *};
use crate::{Change, Embedded, Entry, Journal, Part, Parts, Position, Record, Write};

type State = BTreeMap<String, (u64, Bytes)>;

/// A store, and every state that it was in.
struct World {
    dir: TempDir,
    store: Embedded,
    journal: Arc<dyn Journal>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let journal = store.kind("tenant").unwrap();
        Self { dir, store, journal }
    }

    /// With the tenants a, b and c, of which b is gone again.
    async fn with_tenants() -> Self {
        let world = Self::new();
        for write in [Write::put("a", "1"), Write::put("b", "2"), Write::delete("b"), Write::put("c", "long value 4")] {
            world.journal.append(vec![write]).await.unwrap();
        }
        world.journal.append(vec![Write::put("c", "long other 5")]).await.unwrap();
        world
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("restored")
    }

    async fn backup(&self) -> Vec<u8> {
        let guard = self.store.kind("tenant_guard").unwrap();
        bytes(stream(&[("tenant_guard", &*guard), ("tenant", &*self.journal)]).await.unwrap()).await
    }
}

async fn bytes(mut backup: Backup) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = backup.bytes.try_next().await.unwrap() {
        assert!((1..=256 << 10).contains(&piece.len()));
        all.extend_from_slice(&piece);
    }
    all
}

/// Of a store that is still there.
fn restore(backup: &[u8], path: &Path, to: Moment) -> Result<Restored, RestoreError> {
    let mut reader = Reader::default();
    reader.push(backup);
    let mut replaced = Replaced { whole: true, ..Replaced::default() };
    while let Ok(Some(item)) = reader.item() {
        if let Item::Section(section) = item {
            replaced.epoch = section.position.epoch;
        }
    }
    restore_over(backup, path, to, replaced)
}

fn restore_over(backup: &[u8], path: &Path, to: Moment, replaced: Replaced) -> Result<Restored, RestoreError> {
    let mut restore = Restore::begin(path, "tenant", to, replaced)?;
    let mut parts = 0;
    for piece in backup.chunks(1000) {
        parts += restore.push(piece)?;
    }
    let restored = restore.finish()?.into_iter().find(|restored| restored.kind == "tenant").unwrap();
    assert!(parts >= restored.records);
    Ok(restored)
}

async fn state(journal: &dyn Journal) -> State {
    let records = journal.snapshot().await.unwrap().records;
    records.into_iter().map(|it| (it.key, (it.revision, it.value))).collect()
}

async fn state_of(path: &Path) -> State {
    state(&*Embedded::open(path).unwrap().kind("tenant").unwrap()).await
}

/// The state after each revision.
fn states(entries: &[Entry]) -> Vec<State> {
    let mut states = vec![State::new()];
    for Entry { key, revision, value, .. } in entries {
        assert_eq!(*revision, states.len() as u64);
        let mut next = states[states.len() - 1].clone();
        match value {
            Some(value) => next.insert(key.clone(), (*revision, value.clone())),
            None => next.remove(key),
        };
        states.push(next);
    }
    states
}

fn batches() -> impl Strategy<Value = Vec<Vec<(u8, Option<String>)>>> {
    prop::collection::vec(prop::collection::vec((0..6u8, prop::option::weighted(0.7, "[ab]{0,9}")), 1..4), 1..10)
}

fn writes(batch: Vec<(u8, Option<String>)>) -> Vec<Write> {
    let write = |(key, value): (u8, Option<String>)| Write {
        value: value.map(Bytes::from),
        ..Write::delete(format!("k{key}"))
    };
    batch.into_iter().map(write).collect()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn entries(journal: &dyn Journal, after: Position, count: usize) -> Vec<Entry> {
    let mut tail = journal.tail(after);
    let mut entries = Vec::new();
    while entries.len() < count {
        entries.extend(tail.next().await.unwrap().unwrap());
    }
    entries
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn a_backup_is_restored_to_every_revision_and_what_is_restored_can_be_backed_up_and_restored_again(
        batches in batches()
    ) {
        block_on(async {
            let world = World::new();
            let start = world.journal.head().await.unwrap();
            let mut count = 0;
            for batch in batches {
                count += batch.len();
                world.journal.append(writes(batch)).await.unwrap();
            }
            let states = states(&entries(&*world.journal, start, count).await);
            let backup = world.backup().await;
            for (revision, expected) in states.iter().enumerate() {
                let path = world.path();
                let restored = restore(&backup, &path, Moment::Revision(revision as u64)).unwrap();
                assert_eq!((restored.revision, restored.undone), (revision as u64, (count - revision) as u64));
                assert_eq!(restored.records, expected.len() as u64);
                assert!(restored.position.epoch > world.store.epoch() && restored.position.revision == count as u64);
                let store = Embedded::open(&path).unwrap();
                let journal = store.kind("tenant").unwrap();
                assert_eq!(journal.head().await.unwrap(), restored.position);
                assert_eq!(&state(&*journal).await, expected);

                let new = journal.append(vec![Write::put("new", "1")]).await.unwrap();
                assert_eq!(new.revision, count as u64 + 1, "no revision is used twice");
                let again = bytes(stream(&[("tenant", &*journal)]).await.unwrap()).await;
                drop((store, journal));
                let earlier = revision / 2;
                restore(&again, &path, Moment::Revision(earlier as u64)).unwrap();
                assert_eq!(state_of(&path).await, states[earlier]);
            }
        });
    }

    #[test]
    fn a_backup_with_one_other_byte_or_without_its_end_restores_nothing(at in any::<prop::sample::Index>(), other in 1..=255u8) {
        block_on(async {
            let world = World::with_tenants().await;
            let mut backup = world.backup().await;
            let at = at.index(backup.len());
            let cut = restore(&backup[..at], &world.path(), Moment::Newest).unwrap_err();
            assert!(matches!(cut, RestoreError::Format(FormatError::Truncated | FormatError::Foreign)), "{at}: {cut:?}");
            backup[at] ^= other;
            restore(&backup, &world.path(), Moment::Newest).unwrap_err();
            restore(&backup, &world.path(), Moment::Oldest).unwrap_err();
            assert_eq!(std::fs::read_dir(world.dir.path()).unwrap().count(), 1, "nothing is left");
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn a_backup_taken_under_writes_is_restored_to_any_revision_and_time_in_the_middle(
        before in 1..3000usize, wanted in prop::collection::vec(any::<prop::sample::Index>(), 3)
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let start = world.journal.head().await.unwrap();
            let value = |number: usize| format!("{}{number}", "value ".repeat(20));
            let put = move |number: usize| match number % 7 {
                6 => Write::delete(format!("k{}", number % 501)),
                _ => Write::put(format!("k{}", number * 7 % 1009), value(number)),
            };
            world.journal.append((0..before).map(put).collect()).await.unwrap();
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let writing = tokio::spawn({
                let (journal, mut stopped) = (Arc::clone(&world.journal), stopped);
                async move {
                    let mut number = before;
                    while stopped.try_recv().is_err() {
                        journal.append((number..number + 10).map(put).collect()).await.unwrap();
                        number += 10;
                    }
                    number
                }
            });
            // It is begun in the middle of the writes, and read while they go on.
            entries(&*world.journal, Position::new(start.epoch, before as u64), 50).await;
            let backup = bytes(stream(&[("tenant", &*world.journal)]).await.unwrap()).await;
            stop.send(()).unwrap();
            let count = writing.await.unwrap();
            let entries = entries(&*world.journal, start, count).await;
            let states = states(&entries);

            let path = world.path();
            let newest = restore(&backup, &path, Moment::Newest).unwrap();
            assert!((before as u64 + 50..=count as u64).contains(&newest.revision));
            assert_eq!(state_of(&path).await, states[newest.revision as usize]);
            for wanted in wanted {
                let wanted = wanted.index(newest.revision as usize) + 1;
                restore(&backup, &path, Moment::Revision(wanted as u64)).unwrap();
                assert_eq!(state_of(&path).await, states[wanted]);
                let at = entries[wanted - 1].at_unix_ms;
                let restored = restore(&backup, &path, Moment::Time(at)).unwrap();
                let last = entries[..newest.revision as usize].iter().rfind(|entry| entry.at_unix_ms <= at).unwrap();
                assert_eq!((restored.revision, restored.at_unix_ms), (last.revision, Some(last.at_unix_ms)));
                assert_eq!(state_of(&path).await, states[last.revision as usize]);
            }
        });
    }
}

#[tokio::test]
async fn a_restored_store_comes_after_the_one_that_it_replaces() {
    let world = World::with_tenants().await;
    let backup = world.backup().await;
    let path = world.path();
    let later = Embedded::open(&path).unwrap();
    later.kind("tenant").unwrap().append((0..9).map(|_| Write::put("a", "x")).collect()).await.unwrap();
    let mut replaced = Replaced::of(&later).unwrap();
    drop(later);
    replaced.epoch += 1_000_000_000;
    let restored = restore_over(&backup, &path, Moment::Newest, replaced.clone()).unwrap();
    assert_eq!(restored.position.epoch, replaced.epoch + 1);
    assert!(restored.position.revision > 9, "its head, and more: it is of another epoch than the backup");
    assert_eq!(state_of(&path).await, state(&*world.journal).await, "records keep their revisions");
}

#[tokio::test]
async fn a_store_that_replaces_a_lost_one_uses_none_of_its_revisions() {
    let world = World::with_tenants().await;
    let backup = world.backup().await;
    let lost = Replaced::default();
    // Another store, which was made where the lost one was.
    let another = Replaced { epoch: world.store.epoch() + 1, heads: [("tenant".to_owned(), 7)].into(), whole: true };
    // The same, but its end may be missing.
    let cut = Replaced { epoch: world.store.epoch(), whole: false, ..another.clone() };
    for replaced in [lost, another, cut] {
        let first = restore_over(&backup, &world.path(), Moment::Newest, replaced.clone()).unwrap();
        assert!(first.position.revision >= 5 + LOST, "{replaced:?}: {}", first.position);
        assert_eq!(state_of(&world.path()).await, state(&*world.journal).await, "records keep their revisions");
        let journal = Embedded::open(&world.path()).unwrap().kind("tenant").unwrap();
        let last = journal.append(vec![Write::put("new", "1")]).await.unwrap();
        assert_eq!(last, Position::new(first.position.epoch, first.position.revision + 1));
        drop(journal);
        // It is lost as well.
        let second = restore_over(&backup, &world.path(), Moment::Newest, replaced).unwrap();
        assert!(second.position.revision > last.revision, "{last} {}", second.position);
    }
}

#[tokio::test]
async fn what_was_written_together_is_not_split_by_a_moment_within() {
    let world = World::new();
    for (tenant, memory) in [("a", "event/1"), ("b", "event/2")] {
        world.journal.append(vec![Write::put(tenant, "x"), Write::put(memory, "x")]).await.unwrap();
    }
    let backup = world.backup().await;
    let part_of = |entry: &Entry| entry.revision - u64::from(entry.key.starts_with("event/"));
    for (to, expected) in [(0, 0), (1, 2), (2, 2), (3, 4), (4, 4)] {
        let restore = Restore::begin(&world.path(), "tenant", Moment::Revision(to), Replaced::default()).unwrap();
        let mut restore = restore.keeping_together(part_of);
        restore.push(&backup).unwrap();
        let restored = restore.finish().unwrap().into_iter().find(|restored| restored.kind == "tenant").unwrap();
        assert_eq!((restored.revision, restored.undone, restored.records), (expected, 4 - expected, expected));
        assert_eq!(state_of(&world.path()).await.len() as u64, expected, "to {to}");
    }
}

#[tokio::test]
async fn moments_that_a_backup_does_not_have_are_refused_with_those_that_it_has() {
    let world = World::with_tenants().await;
    let backup = world.backup().await;
    let refused = |to| restore(&backup, &world.path(), to).unwrap_err();
    assert!(matches!(refused(Moment::Revision(6)), RestoreError::Revision { asked: 6, oldest: 0, newest: 5 }));
    assert!(matches!(refused(Moment::Time(1)), RestoreError::TooEarly { oldest_unix_ms: Some(at) } if at > 1));
    assert!(matches!(refused(Moment::Time(u64::MAX)), RestoreError::TooLate { made_unix_ms } if made_unix_ms > 1));
    let epoch = world.store.epoch();
    let of_another = refused(Moment::Position(Position::new(epoch + 1, 2)));
    assert!(matches!(of_another, RestoreError::Epoch { asked, of } if (asked, of) == (epoch + 1, epoch)));
    let of_this = restore(&backup, &world.path(), Moment::Position(Position::new(epoch, 2))).unwrap();
    assert_eq!((of_this.backup.epoch, of_this.revision), (epoch, 2));
    let oldest = restore(&backup, &world.path(), Moment::Oldest).unwrap();
    assert_eq!((oldest.revision, oldest.undone, oldest.records), (0, 5, 0));
}

#[tokio::test]
async fn what_is_not_a_backup_of_this_version_and_kind_is_refused() {
    let world = World::with_tenants().await;
    for text in ["", "tenants, not a backup"] {
        let error = restore(text.as_bytes(), &world.path(), Moment::Newest).unwrap_err();
        assert!(matches!(error, RestoreError::Format(FormatError::Foreign)), "{text}: {error}");
    }
    let mut backup = world.backup().await;
    // Behind the magic: length, field and length of Begin, field of the version, and the version.
    assert_eq!(backup[16], 1);
    backup[16] = 2;
    let error = restore(&backup, &world.path(), Moment::Newest).unwrap_err();
    assert!(matches!(error, RestoreError::Format(FormatError::Version(2))), "{error}");
    let other = bytes(stream(&[("route", &*world.journal)]).await.unwrap()).await;
    let error = restore(&other, &world.path(), Moment::Newest).unwrap_err();
    assert!(matches!(&error, RestoreError::Missing(kind) if kind == "tenant"), "{error}");
}

async fn of_backup(backup: &[u8]) -> Parts {
    let pieces: Vec<_> = backup.chunks(100).map(|piece| Ok(piece.to_vec())).collect();
    parts("tenant", pieces.into_iter())
}

#[tokio::test]
async fn a_backup_equals_the_store_that_was_made_from_it_and_no_other() {
    let world = World::with_tenants().await;
    let backup = world.backup().await;
    restore(&backup, &world.path(), Moment::Newest).unwrap();
    let journal = Embedded::open(&world.path()).unwrap().kind("tenant").unwrap();
    let history = async || journal.history().await.unwrap().parts;
    let same = compare(of_backup(&backup).await, history().await).await.unwrap();
    assert_eq!((same.count, same.compared), (0, 2 + 5));

    journal.append(vec![Write::put("b", "new"), Write::delete("a")]).await.unwrap();
    let found = compare(of_backup(&backup).await, history().await).await.unwrap();
    let expected =
        ["the record of a", "the record of b", "the change of revision 7, of a", "the change of revision 6, of b"];
    assert_eq!((found.count, found.compared, &found.first[..]), (4, 10, &expected.map(str::to_owned)[..]));
    let found = compare(records(of_backup(&backup).await), records(history().await)).await.unwrap();
    assert_eq!((found.count, found.compared), (2, 3));

    let cut = of_backup(&backup[..backup.len() - 1]).await;
    let error = compare(cut, history().await).await.unwrap_err();
    assert!(error.0.to_string().contains("ends too early"), "{}", error.0);
}

#[tokio::test]
async fn a_change_that_does_not_fit_the_state_that_it_made_is_not_undone() {
    let dir = tempfile::tempdir().unwrap();
    let mut loading = crate::embedded::Loading::create(&dir.path().join("store")).unwrap();
    loading.begin("tenant");
    loading.record(Record { key: "a".into(), revision: 3, value: "x".into() }).unwrap();
    let entry = Entry { key: "a".into(), revision: 2, value: Some("x".into()), at_unix_ms: 0 };
    loading.undo(Change { entry, previous: None }).unwrap();
    let error = loading.end(3, 0).unwrap_err();
    assert!(matches!(error, crate::LoadError::Contradiction(2)), "{error}");
}

#[tokio::test]
async fn a_backup_of_many_records_is_read_in_pieces_whose_number_is_told_before() {
    let world = World::new();
    let value = "v".repeat(2000);
    world.journal.append((0..2000).map(|key| Write::put(format!("k{key:04}"), value.clone())).collect()).await.unwrap();
    let mut backup = stream(&[("tenant", &*world.journal)]).await.unwrap();
    assert_eq!(backup.parts, 4000);
    let mut reader = Reader::default();
    let mut items = Vec::new();
    while let Some(piece) = backup.bytes.try_next().await.unwrap() {
        reader.push(&piece);
        while let Some(item) = reader.item().unwrap() {
            items.push(item);
        }
    }
    reader.finish().unwrap();
    assert_eq!(items.iter().filter(|item| matches!(item, Item::Part(Part::Record(_)))).count(), 2000);
    assert_eq!((items.len(), items.last()), (4003, Some(&Item::End)));
}
