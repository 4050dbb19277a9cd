mod cluster;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::TryStreamExt as _;
use journal::{Embedded, Journal, OpenError, Write};
use tempfile::TempDir;
use tenon_proto::kind;

use super::{key::Key, place::Place as Hold, sealed::Sealer};
use crate::{
    cli::{Format, OutputArgs, Restore, VerifyBackup},
    failure::{Answer, Failure},
};

/// A folder with a key, and a backup of the tenants acme, of two revisions, and beta.
struct Place {
    dir: TempDir,
    times: Vec<u64>,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), [7; 32]).unwrap();
        let store = Embedded::open(&dir.path().join("source")).unwrap();
        let journal = store.kind(kind::TENANT).unwrap();
        for write in [Write::put("acme", "1"), Write::put("beta", "2"), Write::put("acme", "3")] {
            journal.append(vec![write]).await.unwrap();
        }
        let guard = store.kind(kind::TENANT_GUARD).unwrap();
        guard.append(vec![Write::put("guard", "canaries")]).await.unwrap();
        let mut place = Self { dir, times: Vec::new() };
        let entries = journal.tail(journal::Position::new(store.epoch(), 0)).try_next().await.unwrap().unwrap();
        place.times = entries.into_iter().map(|entry| entry.at_unix_ms).collect();
        place.back_up(&*journal, &*guard).await;
        place
    }

    async fn back_up(&self, journal: &dyn Journal, guard: &dyn Journal) {
        let backup = journal::backup::stream(&[(kind::TENANT_GUARD, guard), (kind::TENANT, journal)]).await.unwrap();
        let pieces: Vec<_> = backup.bytes.try_collect().await.unwrap();
        let mut sealer = Sealer::begin(Vec::new(), &Key::new([7; 32])).unwrap();
        pieces.iter().for_each(|piece| sealer.write(piece).unwrap());
        fs::write(self.path("backup"), sealer.finish().unwrap()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn restore(&self, to: Option<&str>, replace: bool) -> Result<Answer, Failure> {
        super::restore(Restore {
            file: self.path("backup"),
            key_file: self.path("key"),
            store: journal::Store::Embedded(self.path("below/store")),
            to: to.map(|to| to.parse().unwrap()),
            replace,
            trust_domain: None,
            output: OutputArgs { output: Format::Json },
        })
        .await
    }

    async fn refused(&self, to: Option<&str>, replace: bool, says: &[&str]) {
        let failure = self.restore(to, replace).await.unwrap_err().to_string();
        assert!(says.iter().all(|word| failure.contains(word)), "{failure}");
        assert!(self.below().iter().all(|name| name == "store"), "nothing half is left");
    }

    async fn verify(&self, data: Option<&str>) -> Result<Answer, Failure> {
        super::verify(VerifyBackup {
            file: self.path("backup"),
            key_file: self.path("key"),
            data: data.map(|name| self.path(name)),
            scratch: Some(self.dir.path().to_owned()),
            output: OutputArgs { output: Format::Table },
        })
        .await
    }

    /// What lies in the folder of the restored store.
    fn below(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("below")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Keys, revisions and values of the restored store.
    async fn restored(&self) -> Vec<(String, u64, String)> {
        let records = open(&self.path("below/store")).snapshot().await.unwrap().records;
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        records.into_iter().map(|record| (record.key, record.revision, text(&record.value))).collect()
    }
}

fn open(path: &Path) -> Arc<dyn Journal> {
    Embedded::open(path).unwrap().kind(kind::TENANT).unwrap()
}

fn record(key: &str, revision: u64, value: &str) -> (String, u64, String) {
    (key.to_owned(), revision, value.to_owned())
}

#[tokio::test]
async fn a_backup_is_restored_as_it_was_or_to_a_revision_or_a_time() {
    let place = Place::new().await;
    place.restore(None, false).await.unwrap();
    assert_eq!(place.restored().await, [record("acme", 3, "3"), record("beta", 2, "2")]);
    let guard = Embedded::open(&place.path("below/store")).unwrap().kind(kind::TENANT_GUARD).unwrap();
    assert_eq!(guard.count().await.unwrap(), 1, "the guard comes with the tenants");
    drop(guard);

    let first = open(&place.path("below/store")).head().await.unwrap();
    place.restore(Some("1"), true).await.unwrap();
    assert_eq!(place.restored().await, [record("acme", 1, "1")]);
    let second = open(&place.path("below/store")).head().await.unwrap();
    assert!(second.epoch > first.epoch && second.revision >= first.revision, "{first} {second}");
    assert!(first.revision > 1 << 32, "behind all that a store may have come to which is lost");

    let at = jiff::Timestamp::from_millisecond(place.times[2].try_into().unwrap()).unwrap().to_string();
    place.restore(Some(&at), true).await.unwrap();
    assert_eq!(place.restored().await.len(), 2);
}

#[tokio::test]
async fn a_store_that_is_in_use_or_not_to_be_replaced_stays_as_it_is() {
    let place = Place::new().await;
    place.restore(None, false).await.unwrap();
    place.refused(None, false, &["--replace", "nothing has changed"]).await;
    let held = open(&place.path("below/store"));
    place.refused(None, true, &["in use by another process", "stop the TCS"]).await;
    drop(held);
    place.refused(Some("9"), true, &["from revision 0 to 3", "--to"]).await;
    place.refused(Some("7.1"), true, &["of epoch"]).await;
    place.refused(Some("1999-01-01T00:00:00Z"), true, &["does not reach back", "give --to a time from 2"]).await;
    place.refused(Some("2999-01-01T00:00:00Z"), true, &["made before that", "take a later backup"]).await;
    assert_eq!(place.restored().await.len(), 2);
}

#[tokio::test]
async fn a_file_that_is_no_store_is_replaced_only_when_that_is_said() {
    let place = Place::new().await;
    fs::create_dir(place.path("below")).unwrap();
    fs::write(place.path("below/store"), "x".repeat(10_000)).unwrap();
    place.refused(None, false, &["is not a store of this version"]).await;
    place.refused(Some("9"), true, &["from revision 0 to 3"]).await;
    assert_eq!(fs::read(place.path("below/store")).unwrap(), [b'x'; 10_000], "what fails leaves it");
    let held = Hold::hold(&place.path("below/store"), true).unwrap();
    Embedded::open(&place.path("below/store")).unwrap_err();
    drop(held);
    assert_eq!(fs::read(place.path("below/store")).unwrap(), [b'x'; 10_000]);
    place.restore(None, true).await.unwrap();
    assert_eq!(place.restored().await.len(), 2);
    assert_eq!(place.below(), ["store"]);
}

/// Else the supervisor's TCS serves an empty map, in a later epoch.
#[tokio::test]
async fn a_restore_that_is_killed_or_loses_a_race_leaves_the_damaged_store_and_no_empty_one() {
    let place = Place::new().await;
    let (path, kept) = (place.path("below/store"), place.path("kept"));
    fs::create_dir(place.path("below")).unwrap();
    fs::write(&path, "x".repeat(10_000)).unwrap();
    let race = Hold::hold(&path, true).unwrap();
    fs::rename(&path, &kept).unwrap();
    fs::write(&path, "somebody else's").unwrap();
    drop(race);
    assert_eq!(fs::read(&kept).unwrap(), [b'x'; 10_000]);
    assert_eq!(fs::read(&path).unwrap(), b"somebody else's");

    fs::rename(&kept, &path).unwrap();
    let killed = Hold::hold(&path, true).unwrap();
    assert!(matches!(Embedded::open(&path), Err(OpenError::Held(_))));
    std::mem::forget(killed);
    assert_eq!(place.below(), ["store"]);
    assert_eq!(fs::read(&path).unwrap(), [b'x'; 10_000]);
    // The lock is leaked as well, which a kill does not do.
    fs::copy(&path, &kept).unwrap();
    assert!(matches!(Embedded::open(&kept), Err(OpenError::Foreign(_))), "no TCS serves it");
}

#[tokio::test]
async fn a_store_is_restored_where_a_link_leads_to_nothing() {
    let place = Place::new().await;
    let (path, target) = (place.path("below/store"), place.path("target"));
    fs::create_dir(place.path("below")).unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    place.refused(Some("9"), false, &["from revision 0 to 3"]).await;
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink() && !target.exists(), "what fails leaves it");
    place.restore(None, false).await.unwrap();
    assert_eq!(place.restored().await.len(), 2);
    assert!(!target.exists(), "the empty store that was held goes");
}

#[tokio::test]
async fn nobody_makes_a_store_where_one_is_being_restored() {
    let place = Place::new().await;
    let path = place.path("below/store");
    let held = Hold::hold(&path, false).unwrap();
    // What a supervisor does that starts the TCS again.
    assert!(matches!(Embedded::open(&path), Err(OpenError::Held(_))));
    let refused = place.restore(None, true).await.unwrap_err().to_string();
    assert!(refused.contains("in use by another process"), "{refused}");
    drop(held);
    assert!(!path.exists(), "nothing is left where nothing was");

    // One in which nothing was written is nobody's loss; a restore that fails leaves it.
    let epoch = Embedded::open(&path).unwrap().epoch();
    place.refused(Some("9"), false, &["from revision 0 to 3"]).await;
    assert_eq!(Embedded::open(&path).unwrap().epoch(), epoch);
    place.restore(None, false).await.unwrap();
    assert_eq!(place.restored().await.len(), 2);
}

#[tokio::test]
async fn a_damaged_backup_and_a_wrong_key_restore_nothing_and_say_what_to_do() {
    let place = Place::new().await;
    let whole = fs::read(place.path("backup")).unwrap();
    fs::write(place.path("backup"), &whole[..whole.len() - 1]).unwrap();
    place.refused(None, false, &["damaged, or cut off", "take another backup"]).await;
    let mut flipped = whole.clone();
    flipped[100] ^= 1;
    fs::write(place.path("backup"), &flipped).unwrap();
    place.refused(None, false, &["damaged", "take another backup"]).await;
    place.verify(None).await.unwrap_err();
    fs::write(place.path("backup"), "tenants").unwrap();
    place.refused(None, false, &["this is not a backup", "tenon tcs backup"]).await;
    fs::remove_file(place.path("backup")).unwrap();
    place.refused(None, false, &["cannot read"]).await;
    fs::write(place.path("backup"), &whole).unwrap();
    fs::write(place.path("key"), [8; 32]).unwrap();
    place.refused(None, false, &["was made with the key", "--key-file"]).await;
    assert!(!place.path("below/store").exists());
}

#[tokio::test]
async fn a_good_backup_is_verified_without_leaving_anything() {
    let place = Place::new().await;
    assert_eq!(place.verify(None).await.unwrap(), Answer::Yes);
    let failure = place.verify(Some("nowhere")).await.unwrap_err().to_string();
    assert!(failure.starts_with("not compared with the serving TCS: no running mesh found in "), "{failure}");
    assert!(failure.contains("start one with `tenon up -f DIR`"), "{failure}");
    let mut left: Vec<_> = fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["backup", "key", "source"]);
}
