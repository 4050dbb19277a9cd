//! Where an embedded store is put: held until it is there, so that nobody serves what is about to be replaced.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use journal::{Embedded, OpenError, backup::Replaced};
use tenon_proto::kind;

use crate::failure::{Failure, chain};

/// The path of a store, with a store that is held open: the one that is there, or an empty one in its stead. Dropped
/// before another file has taken its place, it leaves what was there before.
pub(super) struct Place {
    path: PathBuf,
    /// What is held, to tell it from what takes its place.
    file: Inode,
    /// The empty store was made for this.
    made: bool,
    /// Where the file is that is no store; it goes when another has taken its place.
    aside: Option<PathBuf>,
    /// Locked as long as this lives.
    store: Embedded,
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
        let place = match Self::open(path, None)? {
            Ok(place) => place,
            // What it was nobody can tell: it is in the way, and that is all.
            Err(OpenError::Foreign(_)) if replace => {
                let aside = move_aside(path)?;
                match Self::open(path, Some(&aside)) {
                    Ok(Ok(place)) => place,
                    refused => {
                        put_back(&aside, path)?;
                        refused?.map_err(|error| unusable(&error))?
                    }
                }
            }
            Err(error) => return Err(unusable(&error)),
        };
        place.refuse_written(replace)?;
        Ok(place)
    }

    fn open(path: &Path, aside: Option<&Path>) -> Result<Result<Self, OpenError>, Failure> {
        let made = match File::options().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => {
                return Err(Failure::new(format!("cannot make {}: {error}", path.display()))
                    .next("make the folder writable and free some space; nothing has changed"));
            }
        };
        let before = inode(path);
        let store = match Embedded::open(path) {
            Ok(store) => store,
            Err(error) => {
                if made && !matches!(error, OpenError::Held(_)) {
                    let _ = fs::remove_file(path);
                }
                return Ok(Err(error));
            }
        };
        match (before, inode(path)) {
            (Ok(file), Ok(now)) if file == now => {
                Ok(Ok(Self { path: path.to_owned(), file, made, aside: aside.map(Path::to_owned), store }))
            }
            _ => Err(changed(path)),
        }
    }

    fn refuse_written(&self, replace: bool) -> Result<(), Failure> {
        let written = self.store.heads().map_err(|error| unusable(&error))?;
        if replace || written.values().all(|head| *head == 0) {
            return Ok(());
        }
        let head = written.get(kind::TENANT).copied().unwrap_or_default();
        let (path, epoch) = (self.path.display(), self.store.epoch());
        Err(Failure::new(format!("{path} holds a store at revision {epoch}.{head}"))
            .next("repeat it with --replace if that is to go, or name another file with --store; nothing has changed"))
    }

    /// What a store here comes after.
    pub(super) fn replaced(&self) -> Result<Replaced, Failure> {
        Replaced::of(&self.store).map_err(|error| unusable(&error))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The lock is let go of behind this. What cannot be put back stays under its other name.
        let untouched = inode(&self.path).is_ok_and(|file| file == self.file);
        let _ = match (&self.aside, untouched) {
            (Some(aside), true) => fs::rename(aside, &self.path),
            (Some(aside), false) => fs::remove_file(aside),
            (None, true) if self.made => fs::remove_file(&self.path),
            (None, _) => Ok(()),
        };
    }
}

/// Moves a file that is no store out of the way. Only who has locked it does.
fn move_aside(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |error: io::Error| {
        Failure::new(format!("cannot move {} aside: {error}", path.display()))
            .next("make the folder writable, or move it away by hand; nothing has changed")
    };
    let file = File::open(path).map_err(failed)?;
    file.try_lock().map_err(|_| unusable(&OpenError::Held(path.to_owned())))?;
    let locked = file.metadata().map_err(failed)?;
    if inode(path).map_err(failed)? != (locked.dev(), locked.ino()) {
        return Err(changed(path));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push(".replaced-");
    let aside = tempfile::Builder::new().prefix(&prefix).tempfile_in(folder).map_err(failed)?.into_temp_path();
    fs::rename(path, &aside).map_err(failed)?;
    aside.keep().map_err(|error| failed(error.error))
}

/// Never over what somebody else has put there meanwhile.
fn put_back(aside: &Path, path: &Path) -> Result<(), Failure> {
    fs::hard_link(aside, path).and_then(|()| fs::remove_file(aside)).map_err(|error| {
        Failure::new(format!("{} was moved to {} and cannot be put back: {error}", path.display(), aside.display()))
            .next("see who else makes a store there, and move it back by hand")
    })
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
