//! A store that is made from a history: of a backup. Made beside its place, and put there when it is whole.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io, mem,
    path::{Path, PathBuf},
};

use redb::{Database, ReadableTable as _, WriteTransaction};

use super::{
    EPOCH, META, is_full,
    store::create,
    tables::{Changes, Names, Records, raw, size},
};
use crate::{Cause, Change, Record};

/// Bytes of records and changes that are written at once.
const BATCH_BYTES: usize = 8 << 20;

/// Why a store could not be made. Nothing of it is left, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The change at this revision does not fit what it is said to have changed.
    #[error("the change of revision {0} does not fit the state that it made")]
    Contradiction(u64),
    #[error("no room left on the disk of {}: free some, then try again; nothing has changed", path.display())]
    Full {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    #[error("{} cannot be written: check the folder and its owner; nothing has changed", path.display())]
    Failed {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    /// It is in its place, over what was there.
    #[error("{} is made, but its folder cannot be written to the disk: if the machine fails now, it may be gone", path.display())]
    Unsynced {
        path: PathBuf,
        #[source]
        source: Cause,
    },
}

/// A store in the making. Dropped before [`Loading::finish`] it leaves nothing.
///
/// All calls block.
pub(crate) struct Loading {
    /// Where it is to be.
    path: PathBuf,
    /// Where it is made; gone when this is dropped.
    partial: Partial,
    database: Database,
    /// Of the present kind; a name that nobody asks for before there is one.
    names: Names,
    steps: Vec<Step>,
    bytes: usize,
    /// What the log of the present kind takes.
    log_bytes: u64,
}

enum Step {
    Record(Record),
    Undo(Change),
    Keep(Change),
}

/// Behind the name of the store in that of the file in which it is made; then comes what no other such file has.
const PARTIAL: &str = ".partial";

/// A file that is removed when this is dropped.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Loading {
    /// Begins a store that will be at `path`. What processes that were killed left of one goes; what others make at the
    /// same time stays theirs.
    pub(crate) fn create(path: &Path) -> Result<Self, LoadError> {
        let io_failed = |error| failed(path, redb::Error::Io(error));
        remove_left(path).map_err(io_failed)?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!("{PARTIAL}-{:016x}", rand::random::<u64>()));
        let partial = Partial(partial.into());
        let database = create(&partial.0).map_err(|error| failed(path, error.into()))?;
        Ok(Self::on(path, partial, database))
    }

    fn on(path: &Path, partial: Partial, database: Database) -> Self {
        let names = Names::of("");
        Self { path: path.to_owned(), partial, database, names, steps: Vec::new(), bytes: 0, log_bytes: 0 }
    }

    /// What comes next is of `kind`, until [`Loading::end`].
    pub(crate) fn begin(&mut self, kind: &str) {
        self.names = Names::of(kind);
        self.log_bytes = 0;
    }

    /// A record of the head. All of them come before the first change.
    pub(crate) fn record(&mut self, record: Record) -> Result<(), LoadError> {
        let bytes = record.value.len();
        self.step(Step::Record(record), bytes)
    }

    /// The newest change that is still made is not to be.
    pub(crate) fn undo(&mut self, change: Change) -> Result<(), LoadError> {
        let bytes = change.previous.as_ref().map_or(0, |previous| previous.value.len());
        self.step(Step::Undo(change), bytes)
    }

    /// A change goes into the log.
    pub(crate) fn keep(&mut self, change: Change) -> Result<(), LoadError> {
        let bytes = change.entry.value.as_ref().map_or(0, bytes::Bytes::len);
        self.step(Step::Keep(change), bytes)
    }

    /// The kind is whole: it goes on after revision `head`, and states from `floor` on can be told.
    pub(crate) fn end(&mut self, head: u64, floor: u64) -> Result<(), LoadError> {
        self.flush()?;
        let Self { names, log_bytes, .. } = &*self;
        let counters = [(&names.head, head), (&names.base, head), (&names.floor, floor), (&names.bytes, *log_bytes)];
        self.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            for (name, value) in counters {
                meta.insert(name.as_str(), value)?;
            }
            Ok(Ok(()))
        })
    }

    /// Makes it a store of this epoch and puts it in its place, over whatever is there.
    pub(crate) fn finish(self, epoch: u64) -> Result<(), LoadError> {
        self.write(|transaction| {
            transaction.open_table(META)?.insert(EPOCH, epoch)?;
            Ok(Ok(()))
        })?;
        let Self { path, partial, database, .. } = self;
        drop(database);
        place(&partial.0, &path, |folder| File::open(folder)?.sync_all())
    }

    fn step(&mut self, step: Step, bytes: usize) -> Result<(), LoadError> {
        self.steps.push(step);
        self.bytes += bytes + 64;
        if self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), LoadError> {
        let steps = mem::take(&mut self.steps);
        self.bytes = 0;
        let mut log_bytes = 0;
        self.write(|transaction| write(transaction, &self.names, &steps, &mut log_bytes))?;
        self.log_bytes += log_bytes;
        Ok(())
    }

    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<Result<(), LoadError>, redb::Error>,
    ) -> Result<(), LoadError> {
        let written = || {
            let transaction = self.database.begin_write()?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        };
        written().unwrap_or_else(|error| Err(failed(&self.path, error)))
    }
}

fn write(
    transaction: &WriteTransaction,
    names: &Names,
    steps: &[Step],
    log_bytes: &mut u64,
) -> Result<Result<(), LoadError>, redb::Error> {
    let mut records = transaction.open_table(Records::new(&names.records))?;
    let mut changes = transaction.open_table(Changes::new(&names.changes))?;
    for step in steps {
        match step {
            Step::Record(record) => drop(records.insert(record.key.as_str(), (record.revision, &record.value[..]))?),
            Step::Undo(change) => {
                let (key, made) = (change.entry.key.as_str(), &change.entry);
                let expected = made.value.as_ref().map(|value| (made.revision, &value[..]));
                let fits = records.get(key)?.as_ref().map(|there| there.value()) == expected;
                if !fits {
                    return Ok(Err(LoadError::Contradiction(made.revision)));
                }
                match &change.previous {
                    Some(previous) => drop(records.insert(key, (previous.revision, &previous.value[..]))?),
                    None => drop(records.remove(key)?),
                }
            }
            Step::Keep(Change { entry, previous }) => {
                let previous = previous.as_ref().map(|previous| (previous.revision, &previous.value[..]));
                let row = raw(entry.at_unix_ms, &entry.key, entry.value.as_deref(), previous);
                *log_bytes += size(&row);
                changes.insert(entry.revision, row)?;
            }
        }
    }
    Ok(Ok(()))
}

/// Removes what nobody makes any more of a store at `path`: what is being made is locked.
fn remove_left(path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name() else { return Ok(()) };
    for entry in fs::read_dir(folder(path))? {
        let entry = entry?;
        if is_partial(&entry.file_name(), name) && File::open(entry.path()).is_ok_and(|left| left.try_lock().is_ok()) {
            // Somebody else may have been faster.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn is_partial(name: &OsStr, of: &OsStr) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(of.as_encoded_bytes());
    match rest.and_then(|rest| rest.strip_prefix(PARTIAL.as_bytes())) {
        Some([]) => true, // Of an earlier version.
        Some([b'-', random @ ..]) => random.len() == 16 && random.iter().all(u8::is_ascii_hexdigit),
        Some(_) | None => false,
    }
}

/// Puts a file that is whole in its place, durably.
fn place(from: &Path, to: &Path, sync: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), LoadError> {
    let placed = File::open(from).and_then(|file| file.sync_all()).and_then(|()| fs::rename(from, to));
    placed.map_err(|error| failed(to, redb::Error::Io(error)))?;
    sync(folder(to)).map_err(|error| LoadError::Unsynced { path: to.to_owned(), source: error.into() })
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn failed(path: &Path, error: redb::Error) -> LoadError {
    let path = path.to_owned();
    if is_full(&error) {
        LoadError::Full { path, source: error.into() }
    } else {
        LoadError::Failed { path, source: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use redb::backends::FileBackend;

    use super::*;
    use crate::{Embedded, embedded::tests::Disk};

    fn record(number: u32) -> Record {
        Record { key: format!("k{number:06}"), revision: u64::from(number) + 1, value: vec![b'x'; 1000].into() }
    }

    #[test]
    fn a_disk_that_is_full_is_told_and_nothing_is_left_of_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let (path, partial) = (dir.path().join("store"), dir.path().join("store.partial"));
        let file = File::options().read(true).write(true).create_new(true).open(&partial).unwrap();
        let (disk, full) = Disk::new(FileBackend::new(file).unwrap());
        let database = Database::builder().create_with_backend(disk).unwrap();
        let mut loading = Loading::on(&path, Partial(partial), database);
        loading.begin("tenant");
        loading.record(record(0)).unwrap();
        full.store(true, Ordering::SeqCst);
        let error = (1..100_000).find_map(|number| loading.record(record(number)).err()).unwrap();
        assert!(matches!(error, LoadError::Full { .. }), "{error:?}");
        assert!(error.to_string().contains("free some"), "{error}");
        drop(loading);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_process_left_that_was_killed_goes_and_what_was_there_stays_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let epoch = Embedded::open(&path).unwrap().epoch();
        for left in ["store.partial", "store.partial-0123456789abcdef", "store.partial-own", "other.partial"] {
            fs::write(dir.path().join(left), "left").unwrap();
        }
        let mut loading = Loading::create(&path).unwrap();
        loading.begin("tenant");
        loading.record(record(0)).unwrap();
        loading.end(1, 1).unwrap();
        assert_eq!(Embedded::open(&path).unwrap().epoch(), epoch);
        loading.finish(epoch + 1).unwrap();
        let store = Embedded::open(&path).unwrap();
        assert_eq!((store.epoch(), store.heads().unwrap()["tenant"]), (epoch + 1, 1));
        assert_eq!(names(dir.path()), ["other.partial", "store", "store.partial-own"]);
    }

    #[test]
    fn two_that_are_made_at_once_do_not_touch_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let mut one = Loading::create(&path).unwrap();
        let other = Loading::create(&path).unwrap();
        one.begin("tenant");
        one.record(record(0)).unwrap();
        one.end(1, 1).unwrap();
        one.finish(7).unwrap();
        drop(other);
        let store = Embedded::open(&path).unwrap();
        assert_eq!((store.epoch(), store.heads().unwrap()["tenant"]), (7, 1));
        assert_eq!(names(dir.path()), ["store"]);
    }

    #[test]
    fn a_folder_that_cannot_be_synced_is_not_told_as_if_nothing_had_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "new").unwrap();
        let error = place(&from, &to, |_| Err(io::Error::other("the disk is gone"))).unwrap_err();
        assert!(matches!(error, LoadError::Unsynced { .. }), "{error:?}");
        assert!(!error.to_string().contains("nothing has changed"), "{error}");
        assert_eq!(fs::read(&to).unwrap(), b"new");
        fs::remove_file(&to).unwrap();
        let error = place(&from, &to, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("nothing has changed"), "{error}");
    }
}
