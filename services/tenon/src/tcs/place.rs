//! Where an embedded store is put: held until it is there, so that nobody serves what is about to be replaced.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use journal::{Embedded, OpenError, backup::Replaced};
use tenon_proto::kind;

use crate::failure::{Failure, chain};

/// The path of a store, with what is there held: a store, a file that is none, or an empty store in place of nothing.
/// Dropped before another file has taken its place, it leaves what was there before.
///
/// Whoever is killed while holding it leaves what is held. That is what was there, or the empty store, which is no worse
/// than nothing: where nothing is, a TCS makes an empty store itself, and a restore without `--replace` takes either.
pub(super) struct Place {
    path: PathBuf,
    /// What is held, to tell it from what takes its place. Locked itself where it is no store.
    file: File,
    /// Where the empty store is that was made for this: behind any links.
    made: Option<PathBuf>,
    /// Locked as long as this lives. Absent where the file is no store: no TCS serves that, whatever becomes of this.
    store: Option<Embedded>,
}

/// Device and number.
type Inode = (u64, u64);

impl Place {
    /// Holds what is at `path`. A store in which something was written, or a file that is no store, only with `replace`.
    pub(super) fn hold(path: &Path, replace: bool) -> Result<Self, Failure> {
        if fs::metadata(path).is_ok_and(|file| file.is_dir()) {
            return Err(Failure::new(format!("{} is a folder", path.display()))
                .next("name the file of a store: --store embedded:FILE"));
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
                Failure::new(format!("cannot make {}: {error}", folder.display()))
                    .next("name another file with --store")
            })?;
        }
        let place = Self::open(path, replace)?;
        place.refuse_written(replace)?;
        Ok(place)
    }

    fn open(path: &Path, replace: bool) -> Result<Self, Failure> {
        let nothing = inode(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        // Makes what a link leads to, as the store does.
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(|error| {
            Failure::new(format!("cannot open or make {}: {error}", path.display()))
                .next("make the file and its folder writable and free some space; nothing has changed")
        })?;
        let made = || if nothing { fs::canonicalize(path).ok() } else { None };
        let mut place = Self { path: path.to_owned(), file, made: None, store: None };
        match Embedded::open(path) {
            Ok(store) => place.store = Some(store),
            // What it was nobody can tell. It stays until the new one takes its place: an empty store would be served.
            Err(OpenError::Foreign(_)) if replace => {
                place.file.try_lock().map_err(|_| unusable(&OpenError::Held(path.to_owned())))?;
            }
            Err(error) => {
                if !matches!(error, OpenError::Held(_)) {
                    place.made = made();
                }
                return Err(unusable(&error));
            }
        }
        if !place.is_at(path) {
            return Err(changed(path));
        }
        // What somebody else made and wrote to just now is not this one's to remove.
        if place.written()?.values().all(|head| *head == 0) {
            place.made = made();
        }
        Ok(place)
    }

    fn refuse_written(&self, replace: bool) -> Result<(), Failure> {
        let written = self.written()?;
        if replace || written.values().all(|head| *head == 0) {
            return Ok(());
        }
        let head = written.get(kind::TENANT).copied().unwrap_or_default();
        let (path, epoch) = (self.path.display(), self.store.as_ref().map_or(0, Embedded::epoch));
        Err(Failure::new(format!("{path} holds a store at revision {epoch}.{head}"))
            .next("repeat it with --replace if that is to go, or name another file with --store; nothing has changed"))
    }

    /// The last revision of each kind, as far as that can be told.
    fn written(&self) -> Result<HashMap<String, u64>, Failure> {
        Ok(self.replaced()?.heads)
    }

    /// What a store here comes after.
    pub(super) fn replaced(&self) -> Result<Replaced, Failure> {
        let Some(store) = &self.store else { return Ok(Replaced::default()) };
        Replaced::of(store).map_err(|error| unusable(&error))
    }

    fn is_at(&self, path: &Path) -> bool {
        let held = self.file.metadata().map(|file| (file.dev(), file.ino()));
        held.is_ok_and(|held| inode(path).is_ok_and(|there| there == held))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The lock is let go of behind this.
        if let Some(made) = &self.made
            && self.is_at(made)
        {
            let _ = fs::remove_file(made);
        }
    }
}

fn inode(path: &Path) -> io::Result<Inode> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn changed(path: &Path) -> Failure {
    Failure::new(format!("{} was replaced by somebody else just now", path.display()))
        .next("see who else restores into it, then repeat it")
}

fn unusable(error: &OpenError) -> Failure {
    Failure::new(chain(error)).next(match error {
        OpenError::Held(_) => "stop the TCS, or the mesh that it belongs to; nothing has changed",
        OpenError::Foreign(_) | OpenError::Failed { .. } | OpenError::Unreachable { .. } => "nothing has changed",
    })
}
