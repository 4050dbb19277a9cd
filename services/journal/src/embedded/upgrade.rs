//! Stores that an earlier version made: opened as they are, once and for all.

use std::convert::Infallible;

use redb::{ReadableDatabase as _, ReadableTable as _, TableHandle as _, WriteTransaction};

use super::{
    store::Store,
    tables::{Changes, META, Names},
};

/// The log of the first version, without times and without what was there before: `KIND/log`.
const FIRST: &str = "/log";

/// Gives up the log of an earlier version, which cannot undo anything: the records stay as they are, the past begins now.
/// Whoever followed is told to compare, as after any long absence. All at once, or nothing of it.
///
/// Also right for a store that an earlier version went on with in between: its later changes are missing in our log.
pub(super) fn upgrade(store: &Store) -> Result<(), redb::Error> {
    let kinds = store.read(|database| {
        let transaction = database.begin_read()?;
        let tables = transaction.list_tables()?;
        Ok(tables.filter_map(|table| table.name().strip_suffix(FIRST).map(str::to_owned)).collect::<Vec<_>>())
    })?;
    if kinds.is_empty() {
        return Ok(());
    }
    tracing::info!(path = %store.path().display(), ?kinds, "the store is of an earlier version: its past begins now");
    store.write(|transaction| {
        kinds.iter().try_for_each(|kind| begin_now(transaction, kind)).map(Ok::<(), Infallible>)
    })?;
    Ok(())
}

fn begin_now(transaction: &WriteTransaction, kind: &str) -> Result<(), redb::Error> {
    let names = Names::of(kind);
    let log = format!("{kind}{FIRST}");
    let old = transaction.list_tables()?.find(|table| table.name() == log);
    if let Some(old) = old {
        transaction.delete_table(old)?;
    }
    transaction.delete_table(Changes::new(&names.changes))?;
    let mut meta = transaction.open_table(META)?;
    let head = meta.get(names.head.as_str())?.map_or(0, |head| head.value());
    meta.insert(names.floor.as_str(), head)?;
    meta.insert(names.bytes.as_str(), 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::{StreamExt as _, TryStreamExt as _};
    use redb::TableDefinition;

    use super::*;
    use crate::{Embedded, Part, Position, TailError, Write, embedded::tables::Records};

    /// A store as the first version left it, with the records a, b and a log of three changes.
    fn first_version(path: &Path) {
        let log: TableDefinition<'_, u64, (&str, Option<&[u8]>)> = TableDefinition::new("tenant/log");
        let database = redb::Database::create(path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut meta = transaction.open_table(META).unwrap();
            meta.insert("epoch", 1234).unwrap();
            meta.insert("tenant/head", 3).unwrap();
            let mut records = transaction.open_table(Records::new("tenant/records")).unwrap();
            records.insert("a", (2, b"two".as_slice())).unwrap();
            records.insert("b", (3, b"three".as_slice())).unwrap();
            let mut log = transaction.open_table(log).unwrap();
            log.insert(1, ("a", Some(b"one".as_slice()))).unwrap();
            log.insert(2, ("a", Some(b"two".as_slice()))).unwrap();
            log.insert(3, ("b", Some(b"three".as_slice()))).unwrap();
        }
        transaction.commit().unwrap();
    }

    #[tokio::test]
    async fn a_store_of_the_first_version_keeps_its_records_and_begins_its_past() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        first_version(&path);
        let store = Embedded::open(&path).unwrap();
        let journal = store.kind("tenant").unwrap();
        let snapshot = journal.snapshot().await.unwrap();
        assert_eq!(snapshot.position, Position::new(1234, 3));
        let held: Vec<_> = snapshot.records.iter().map(|it| (it.key.as_str(), it.revision, &it.value[..])).collect();
        assert_eq!(held, [("a", 2, b"two".as_slice()), ("b", 3, b"three".as_slice())]);

        let at_one = journal.tail(Position::new(1234, 1)).next().await.unwrap();
        assert!(matches!(at_one, Err(TailError::Compacted)), "whoever is behind compares");
        let mut tail = journal.tail(Position::new(1234, 3));
        assert_eq!(journal.append(vec![Write::put("a", "four")]).await.unwrap(), Position::new(1234, 4));
        assert_eq!(tail.next().await.unwrap().unwrap()[0].revision, 4, "who was at the head goes on");

        let history = journal.history().await.unwrap();
        assert_eq!((history.floor, history.changes), (3, 1));
        let parts = history.parts.try_concat().await.unwrap();
        let Some(Part::Change(change)) = parts.last() else { panic!("{parts:?}") };
        assert_eq!(change.previous.as_ref().map(|it| (it.revision, &it.value[..])), Some((2, b"two".as_slice())));
    }

    #[tokio::test]
    async fn a_store_that_the_first_version_went_on_with_has_no_gap_in_its_past() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        Embedded::open(&path).unwrap().kind("tenant").unwrap().append(vec![Write::put("a", "one")]).await.unwrap();
        first_version(&path);
        let history = Embedded::open(&path).unwrap().kind("tenant").unwrap().history().await.unwrap();
        assert_eq!((history.position.revision, history.floor, history.changes), (3, 3, 0));
    }
}
