//! The files of a CA, which appear together or not at all.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::CaError;
use super::state::State;

/// Name of the first root's files: `root.pem` and `root.key`.
pub(super) const FIRST_ROOT: &str = "root";
/// What is written down of the hierarchy.
const STATE: &str = "ca.json";
/// Held while something changes.
const LOCK: &str = "lock";

/// The folder of a CA.
///
/// `ca.json` names the files that count. They are written before it, so a process killed at any point leaves either the
/// hierarchy as it was or the one that was to be; files that it does not name are swept up at the next change.
pub(super) struct Files {
    dir: PathBuf,
}

/// A certificate and its key, `NAME.pem` and `NAME.key`.
///
/// They are written so that a process killed at any point leaves either none or both: first the certificate under
/// another name, then the key under its own, then the certificate is renamed. A key beside a certificate that still has
/// its first name is a whole pair, and reading finishes it.
pub(super) struct Pair {
    dir: PathBuf,
    pub certificate: PathBuf,
    /// The certificate before the key is there.
    certificate_new: PathBuf,
    pub key: PathBuf,
    key_new: PathBuf,
}

/// Released when dropped.
pub(super) struct Lock(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] fs::File);

impl Files {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    pub(super) fn pair(&self, name: &str) -> Pair {
        let file = |ending| self.dir.join(format!("{name}.{ending}"));
        Pair {
            dir: self.dir.clone(),
            certificate: file("pem"),
            certificate_new: file("pem.new"),
            key: file("key"),
            key_new: file("key.new"),
        }
    }

    pub(super) fn state_path(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// Whether any file is there that must not be written over.
    pub(super) fn any(&self) -> bool {
        let first = self.pair(FIRST_ROOT);
        first.certificate.exists() || first.key.exists() || self.state_path().exists()
    }

    pub(super) fn must_be_absent(&self) -> Result<(), CaError> {
        if self.any() { Err(CaError::Exists(self.dir.clone())) } else { Ok(()) }
    }

    pub(super) fn create_dir(&self) -> Result<(), CaError> {
        let mut folder = fs::DirBuilder::new();
        folder.recursive(true).mode(0o700).create(&self.dir).map_err(|source| failed("create", &self.dir, source))
    }

    /// Waits until no other process changes the CA.
    pub(super) fn lock(&self) -> Result<Lock, CaError> {
        let path = self.dir.join(LOCK);
        let open = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let locked = open.and_then(|file| file.lock().map(|()| Lock(file)));
        locked.map_err(|source| failed("write", &path, source))
    }

    /// None for a CA that was made before there were issuing CAs, and for none at all.
    pub(super) fn state(&self) -> Result<Option<State>, CaError> {
        let path = self.state_path();
        let Some(text) = read(&path)? else { return Ok(None) };
        let state = serde_json::from_str(&text).ok().filter(State::is_whole);
        let what = "damaged: put it back from a backup of the whole folder";
        state.map(Some).ok_or(CaError::Content { path, what })
    }

    /// On disk when it returns; the files that it names must be there already.
    pub(super) fn write_state(&self, state: &State) -> Result<(), CaError> {
        let (path, new) = (self.state_path(), self.dir.join("ca.json.new"));
        let text = serde_json::to_string_pretty(state).expect("text and numbers alone, which JSON can hold");
        write(&new, &format!("{text}\n"))?;
        rename(&self.dir, &new, &path)
    }

    /// Removes the files of roots and issuing CAs that `state` does not name. What cannot be removed is left.
    pub(super) fn sweep(&self, state: &State) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let (stem, ending) = name.split_once('.').unwrap_or_default();
            let ours = ["root", "root-", "issuing-"].iter().any(|start| {
                let number = stem.strip_prefix(start);
                number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
            });
            if ours && ["pem", "pem.new", "key", "key.new"].contains(&ending) && !state.names(stem) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl Pair {
    /// Both as text.
    pub(super) fn read(&self) -> Result<(String, Zeroizing<String>), CaError> {
        if !self.certificate.exists() && self.key.exists() && self.certificate_new.exists() {
            rename(&self.dir, &self.certificate_new, &self.certificate)?;
        }
        let (certificate, key) = (&self.certificate, &self.key);
        match (read(certificate)?, read(key)?) {
            (Some(certificate), Some(key)) => Ok((certificate, Zeroizing::new(key))),
            (None, None) => Err(CaError::Missing(self.dir.clone())),
            (Some(_), None) => Err(CaError::Half { there: certificate.clone(), missing: key.clone() }),
            (None, Some(_)) => Err(CaError::Half { there: key.clone(), missing: certificate.clone() }),
        }
    }

    /// Both on disk when it returns; when it fails, neither is left.
    pub(super) fn write(&self, certificate: &str, key: &str) -> Result<(), CaError> {
        let written = self.try_write(certificate, key);
        if written.is_err() {
            self.remove();
        }
        written
    }

    fn try_write(&self, certificate: &str, key: &str) -> Result<(), CaError> {
        write(&self.certificate_new, certificate)?;
        write(&self.key_new, key)?;
        rename(&self.dir, &self.key_new, &self.key)?;
        rename(&self.dir, &self.certificate_new, &self.certificate)
    }

    /// What cannot be removed is swept up later.
    pub(super) fn remove(&self) {
        for path in [&self.certificate_new, &self.certificate, &self.key_new, &self.key] {
            let _ = fs::remove_file(path);
        }
    }
}

fn rename(dir: &Path, from: &Path, to: &Path) -> Result<(), CaError> {
    let renamed = fs::rename(from, to).and_then(|()| fs::File::open(dir)?.sync_all());
    renamed.map_err(|source| failed("write", to, source))
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
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
    write().map_err(|source| failed("write", path, source))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> CaError {
    CaError::File { action, path: path.into(), source }
}
