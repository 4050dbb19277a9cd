//! The two files of a CA, which appear together or not at all.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::CaError;

/// `root.pem` and `root.key` of one folder.
///
/// They are written so that a process killed at any point leaves either no CA or a whole one: first the certificate
/// under another name, then the key under its own, then the certificate is renamed. A key beside a certificate that
/// still has its first name is such a CA, and reading finishes it.
pub(super) struct Files {
    dir: PathBuf,
    root: PathBuf,
    /// The certificate before the key is there.
    root_new: PathBuf,
    key: PathBuf,
    key_new: PathBuf,
}

impl Files {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            root: dir.join("root.pem"),
            root_new: dir.join("root.pem.new"),
            key: dir.join("root.key"),
            key_new: dir.join("root.key.new"),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn key(&self) -> &Path {
        &self.key
    }

    /// Whether any file is there that must not be written over.
    pub(super) fn any(&self) -> bool {
        self.root.exists() || self.key.exists()
    }

    pub(super) fn must_be_absent(&self) -> Result<(), CaError> {
        if self.any() { Err(CaError::Exists(self.dir.clone())) } else { Ok(()) }
    }

    /// Both as text.
    pub(super) fn read(&self) -> Result<(String, Zeroizing<String>), CaError> {
        if !self.root.exists() && self.key.exists() && self.root_new.exists() {
            self.rename(&self.root_new, &self.root)?;
        }
        match (read(&self.root)?, read(&self.key)?) {
            (Some(root), Some(key)) => Ok((root, Zeroizing::new(key))),
            (None, None) => Err(CaError::Missing(self.dir.clone())),
            (Some(_), None) => Err(CaError::Half { there: self.root.clone(), missing: self.key.clone() }),
            (None, Some(_)) => Err(CaError::Half { there: self.key.clone(), missing: self.root.clone() }),
        }
    }

    /// Both on disk when it returns.
    pub(super) fn write(&self, root: &str, key: &str) -> Result<(), CaError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(|source| CaError::File {
            action: "create",
            path: self.dir.clone(),
            source,
        })?;
        write(&self.root_new, root)?;
        write(&self.key_new, key)?;
        self.rename(&self.key_new, &self.key)?;
        self.rename(&self.root_new, &self.root)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), CaError> {
        let failed = |source| CaError::File { action: "write", path: to.into(), source };
        fs::rename(from, to).map_err(failed)?;
        fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File { action: "read", path: path.into(), source }),
    }
}

/// Writes anew, for its owner alone, through to the disk.
fn write(path: &Path, text: &str) -> Result<(), CaError> {
    let write = || -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| CaError::File { action: "write", path: path.into(), source })
}
