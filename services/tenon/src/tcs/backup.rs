//! `tenon tcs backup`.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, ErrorKind},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use journal::{
    Part, Position,
    backup::{Item, Reader, Section},
};
use tenon_proto::{
    kind,
    tcs::v1::{BackupRequest, BackupResponse, operations_client::OperationsClient},
};
use tonic::{Status, Streaming};

use super::{bar, key::Key, sealed::Sealer};
use crate::{
    cli::Backup,
    failure::{Answer, Failure, chain},
    operator::Mesh,
    output::{Output, rfc3339},
};

/// Takes a backup.
///
/// # Errors
/// No key, no mesh, the TCS refused or broke off, or the file cannot be written; then there is none.
pub async fn run(args: Backup) -> Result<Answer, Failure> {
    let key = Key::read(&args.key_file)?;
    let mut file = Partial::create(&args.out)?;
    let mesh = Mesh::find(&args.mesh.data)?;
    let mut sealer =
        Sealer::begin(BufWriter::with_capacity(1 << 20, file.take()), &key).map_err(|error| file.failure(&error))?;
    let (mut pieces, bar) = begin(&mesh).await.map_err(|status| mesh.tcs_failure("nothing was backed up", &status))?;
    let mut summary = Summary::default();
    loop {
        let piece = pieces.message().await.map_err(|status| mesh.tcs_failure("the backup broke off", &status))?;
        let Some(BackupResponse { chunk, .. }) = piece else { break };
        bar.inc(summary.take(&chunk).map_err(|error| broken(&error))?);
        sealer.write(&chunk).map_err(|error| file.failure(&error))?;
    }
    let found = summary.finish().map_err(|error| broken(&error))?;
    let written = sealer.finish().and_then(|out| out.into_inner().map_err(io::IntoInnerError::into_error));
    file.place(written.map_err(|error| file.failure(&error))?)?;
    bar.finish_and_clear();
    report(&args, &found)?;
    Ok(Answer::Yes)
}

/// Asks the serving TCS for a backup.
pub(super) async fn begin(mesh: &Mesh) -> Result<(Streaming<BackupResponse>, ProgressBar), Status> {
    let mut client = OperationsClient::new(mesh.tcs());
    let mut pieces = client.backup(BackupRequest {}).await?.into_inner();
    // The first one says how many records there are, and nothing else.
    let first = pieces.message().await?.ok_or_else(|| Status::internal("the TCS sent no backup"))?;
    if !first.chunk.is_empty() {
        return Err(Status::internal("the TCS sent a backup that this program does not know: use the same version"));
    }
    Ok((pieces, bar(first.records, "records and changes")))
}

fn broken(error: &dyn std::error::Error) -> Failure {
    Failure::new(format!("what the TCS sent is no whole backup: {}", chain(error)))
        .next("nothing was written: try again; the log of the TCS says whether its store is damaged")
}

/// What is in a backup of tenants.
#[derive(Default)]
pub(super) struct Summary {
    reader: Reader,
    found: Found,
    within: bool,
}

#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) made_unix_ms: u64,
    pub(super) position: Position,
    pub(super) floor: u64,
    pub(super) tenants: u64,
    pub(super) changes: u64,
    pub(super) oldest_unix_ms: Option<u64>,
    pub(super) bytes: u64,
}

impl Summary {
    /// Returns how many records and changes came.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<u64, journal::backup::FormatError> {
        self.reader.push(piece);
        self.found.bytes += piece.len() as u64;
        let mut parts = 0;
        while let Some(item) = self.reader.item()? {
            match item {
                Item::Begin { at_unix_ms } => self.found.made_unix_ms = at_unix_ms,
                Item::Section(Section { kind, position, floor, changes, .. }) => {
                    self.within = kind == kind::TENANT;
                    if self.within {
                        (self.found.position, self.found.floor, self.found.changes) = (position, floor, changes);
                    }
                }
                Item::Part(part) => {
                    parts += 1;
                    self.part(&part);
                }
                Item::End => {}
            }
        }
        Ok(parts)
    }

    fn part(&mut self, part: &Part) {
        match part {
            Part::Record(record) if self.within => self.found.tenants += u64::from(is_tenant(&record.key)),
            Part::Change(change) if self.within => self.found.oldest_unix_ms = Some(change.entry.at_unix_ms),
            Part::Record(_) | Part::Change(_) => {}
        }
    }

    pub(super) fn finish(self) -> Result<Found, journal::backup::FormatError> {
        self.reader.finish()?;
        Ok(self.found)
    }
}

/// Whether a key of the TCS's journal is a tenant's, and not what it remembers beside them.
pub(super) fn is_tenant(key: &str) -> bool {
    !key.contains('/')
}

fn report(args: &Backup, found: &Found) -> Result<(), Failure> {
    let mut out = Output::stdout(args.output.output);
    let Found { position, floor, tenants, changes, .. } = *found;
    let (made, oldest) = (at(found.made_unix_ms), found.oldest_unix_ms.map(at));
    if out.is_json() {
        let bytes = fs::metadata(&args.out).map_or(0, |file| file.len());
        out.json(&serde_json::json!({
            "file": args.out, "bytes": bytes, "time": made, "epoch": position.epoch, "revision": position.revision,
            "tenants": tenants, "changes": changes, "oldestRevision": floor, "oldestTime": oldest,
        }))?;
    } else {
        out.line(&format!("{tenants} tenants at revision {position} backed up into {}", args.out.display()))?;
        match oldest {
            Some(oldest) => {
                out.line(&format!("it can be restored to any revision from {floor} on, and any time from {oldest} on"))?
            }
            None => out.line("it has no past")?,
        }
    }
    out.flush()
}

/// RFC 3339, to the second.
pub(super) fn at(unix_ms: u64) -> String {
    rfc3339(unix_ms / 1000)
}

/// A file that is in its place when it is whole, and nowhere before.
struct Partial {
    out: PathBuf,
    partial: PathBuf,
    file: Option<File>,
}

impl Partial {
    /// Overwrites what a command that was killed left; refuses to overwrite a backup.
    fn create(out: &Path) -> Result<Self, Failure> {
        if fs::symlink_metadata(out).is_ok() {
            return Err(exists(out));
        }
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial).and_then(|file| {
                file.set_permissions(Permissions::from_mode(0o600))?;
                Ok(file)
            });
        match file {
            Ok(file) => Ok(Self { out: out.to_owned(), partial, file: Some(file) }),
            Err(error) => Err(unwritable(&partial, &error)),
        }
    }

    fn take(&mut self) -> File {
        self.file.take().expect("it is taken once, after it was made")
    }

    fn failure(&self, error: &io::Error) -> Failure {
        unwritable(&self.partial, error)
    }

    /// Puts the file in its place, durably; never over another.
    fn place(&self, file: File) -> Result<(), Failure> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};

        let placed = file.sync_all().and_then(|()| {
            match renameat_with(CWD, &self.partial, CWD, &self.out, RenameFlags::NOREPLACE) {
                // A file system that cannot do it at once.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS)
                    if fs::symlink_metadata(&self.out).is_err() =>
                {
                    fs::rename(&self.partial, &self.out)
                }
                placed => Ok(placed?),
            }
        });
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match placed.and_then(|()| File::open(folder)?.sync_all()) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists(&self.out)),
            Err(error) => Err(self.failure(&error)),
            Ok(()) => Ok(()),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Not there any more when it was put in its place.
        let _ = fs::remove_file(&self.partial);
    }
}

fn exists(out: &Path) -> Failure {
    Failure::new(format!("{} exists", out.display()))
        .next("name another file with --out: no backup is ever overwritten")
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot write {}: {error}; nothing was written", path.display()))
        .next("make the folder writable and free some space, or name another file with --out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_in_its_place_when_it_is_whole_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("backup");
        fs::write(dir.path().join("backup.partial"), "left by a command that was killed").unwrap();
        let mut file = Partial::create(&out).unwrap();
        let content = file.take();
        assert!(!out.exists());
        file.place(content).unwrap();
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        drop(file);
        assert_eq!(fs::read(&out).unwrap(), b"");

        let refused = Partial::create(&out).err().unwrap().to_string();
        assert!(refused.contains("no backup is ever overwritten"), "{refused}");
        fs::remove_file(&out).unwrap();
        let mut late = Partial::create(&out).unwrap();
        let content = late.take();
        fs::write(&out, "somebody else's").unwrap();
        let refused = late.place(content).unwrap_err().to_string();
        assert!(refused.contains("no backup is ever overwritten"), "{refused}");
        drop(late);
        assert_eq!(fs::read(&out).unwrap(), b"somebody else's");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half is left");
    }

    #[test]
    fn a_disk_that_is_full_is_told_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = io::Error::from(ErrorKind::StorageFull);
        let failure = Partial::create(&dir.path().join("backup")).unwrap().failure(&error).to_string();
        assert!(failure.contains("nothing was written") && failure.contains("free some space"), "{failure}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
