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
