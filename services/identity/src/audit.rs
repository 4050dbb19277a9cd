//! The audit log: one line of JSON for each thing that this service gave, refused or changed, in a file that is only
//! ever appended to.
//!
//! Who grants something records it first and grants nothing when it cannot be recorded ([`Audit::record`]: a full disk
//! stops issuing). Who takes something away or refuses does not depend on it ([`Audit::note`]: a log without room
//! stops no revocation; a store without room does). A line is with the operating system when `record` returns; it outlives this process, and the last lines
//! may not outlive the machine's power. Never a token, never a private key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use mesh_identity::clock;
use serde::Serialize;

use crate::limits::{Limits, Rate, Settings};

/// The file, within the data folder of the identity service.
pub(crate) const FILE: &str = "audit.jsonl";

/// Refusals that are recorded. Others are counted: whoever has no certificate may ask as often as it likes, and must not
/// fill the disk with that.
const REFUSALS: Rate = Rate { burst: 1_000, per_second: 5 };

/// The open log. One line at a time; a line is small and goes to the page cache, so no task waits for a disk.
pub(crate) struct Audit {
    path: PathBuf,
    log: Mutex<Log>,
    refusals: Limits,
    /// Refusals that were not recorded since the last that was.
    uncounted: AtomicU64,
}

struct Log {
    file: File,
    /// The last line is only half there: the next one begins on a line of its own.
    torn: bool,
}

/// What happened. Names are in the words of the command line; times are Unix seconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(crate) enum Event<'a> {
    /// A certificate was signed.
    Issue {
        /// "attest", "renew", or "own" for what the identity service makes for itself.
        method: &'a str,
        /// Whose it is.
        service: &'a str,
        serial: &'a str,
        not_after: u64,
        /// The ASAP key that came with the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        kid: Option<&'a str>,
        /// What proved it: "join-token", "svid", or the name of an Attestor.
        #[serde(skip_serializing_if = "Option::is_none")]
        attested_by: Option<&'a str>,
    },
    /// Somebody did not get what was asked for.
    Refuse {
        /// The RPC: "Attest", "Renew", …
        rpc: &'a str,
        /// The SPIFFE id of the caller; absent for one without a certificate.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<&'a str>,
        /// For whom, as far as it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        service: Option<&'a str>,
        reason: &'a str,
    },
    /// An ASAP key went because nobody confirmed it any more.
    Prune { kid: &'a str, issuer: &'a str },
    /// An operator made a join token.
    JoinToken { by: &'a str, service: &'a str, expires: u64 },
    /// An operator ended the trust in something.
    Revoke {
        by: &'a str,
        /// "service/NAME", "operator/NAME", "kid/KID" or "serial/HEX".
        what: &'a str,
        reason: &'a str,
        revision: u64,
    },
    /// An operator took a revocation back.
    Lift { by: &'a str, what: &'a str },
    /// An operator, or the service by itself, did a step of a rotation, or tried to.
    Rotate { by: &'a str, step: &'a str, done: bool, message: &'a str },
    /// An operator got an SVID of a service.
    Svid {
        by: &'a str,
        service: &'a str,
        serial: &'a str,
        not_after: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        kid: Option<&'a str>,
    },
    /// An admin made somebody an operator.
    Operator { by: &'a str, operator: &'a str, role: &'a str, serial: &'a str, not_after: u64 },
    /// A transaction token was signed.
    TxnToken {
        /// The SPIFFE id of the operator or service.
        by: &'a str,
        tenant: &'a str,
        subject: &'a str,
        scope: &'a str,
        /// The claim `txn`.
        txn: &'a str,
        expires: u64,
    },
}

/// The audit log cannot be written, so nothing may be granted.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {} cannot be written, and nothing is granted that is not in it", path.display())]
pub struct AuditError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl AuditError {
    /// Somebody must make room.
    pub(crate) fn disk_is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// One line.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    /// RFC 3339, UTC, milliseconds.
    time: String,
    /// So many refusals before this one were too many to be recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    more_refused: Option<u64>,
    #[serde(flatten)]
    event: Event<'a>,
}

impl Audit {
    /// Opens the log at `path`, or makes one with mode 0600.
    ///
    /// # Errors
    /// It can be neither opened nor made.
    pub(crate) fn open(path: &Path) -> Result<Self, AuditError> {
        let log = Log::open(path).map_err(|source| AuditError { path: path.into(), source })?;
        let refusals = Limits::new(Settings { service: REFUSALS, all: REFUSALS });
        Ok(Self { path: path.into(), log: Mutex::new(log), refusals, uncounted: AtomicU64::new(0) })
    }

    /// Appends a line, whole or not at all. For everything that grants: do not grant when this fails.
    ///
    /// A file that was moved away (by `logrotate`, say) is made anew.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be made.
    pub(crate) fn record(&self, event: Event<'_>) -> Result<(), AuditError> {
        self.append(event, None).map_err(|source| {
            let path = self.path.clone();
            tracing::error!(path = %path.display(), error = %source, "the audit log cannot be written");
            AuditError { path, source }
        })
    }

    /// As [`Self::record`], for what must happen whether or not it can be recorded: revocations, refusals. A failure is
    /// in the process's log.
    pub(crate) fn note(&self, event: Event<'_>) {
        // `record` has said why.
        let _ = self.record(event);
    }

    /// Whether a certificate with this serial stands in the log. Reads the file: for people who wait, not for tasks.
    pub(crate) fn names_serial(&self, serial: &str) -> io::Result<bool> {
        self.contains(&[format!("\"serial\":\"{serial}\"")])
    }

    /// Whether this operator did or got anything, as far as the log says. As [`Self::names_serial`].
    pub(crate) fn names_operator(&self, name: &str) -> io::Result<bool> {
        self.contains(&[format!("/operator/{name}\""), format!("\"service\":\"operator/{name}\"")])
    }

    fn contains(&self, any: &[String]) -> io::Result<bool> {
        use io::BufRead as _;
        for line in io::BufReader::new(File::open(&self.path)?).lines() {
            let line = line?;
            if any.iter().any(|text| line.contains(text)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Records a refusal, unless there were too many lately; then it is counted in the line of the next one.
    pub(crate) fn refused(&self, rpc: &str, by: Option<&str>, reason: &str) {
        if self.refusals.take(rpc, clock::unix_seconds()).is_err() {
            self.uncounted.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let more = Some(self.uncounted.swap(0, Ordering::Relaxed)).filter(|more| *more > 0);
        if let Err(error) = self.append(Event::Refuse { rpc, by, service: None, reason }, more) {
            tracing::error!(path = %self.path.display(), %error, "the audit log cannot be written");
        }
    }

    fn append(&self, event: Event<'_>, more_refused: Option<u64>) -> io::Result<()> {
        let time = jiff::Timestamp::from_duration(clock::since_epoch().try_into().unwrap_or_default());
        let time = format!("{:.3}", time.unwrap_or_default());
        let mut line = serde_json::to_vec(&Line { time, more_refused, event })?;
        line.push(b'\n');
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if !log.is_still_at(&self.path) {
            *log = Log::open(&self.path)?;
        }
        log.append(line)
    }
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
        let torn = !ends_with_a_whole_line(&file)?;
        Ok(Self { file, torn })
    }

    fn is_still_at(&self, path: &Path) -> bool {
        let same = |there: fs::Metadata, ours: fs::Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        fs::metadata(path).and_then(|there| Ok(same(there, self.file.metadata()?))).unwrap_or(false)
    }

    fn append(&mut self, line: Vec<u8>) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let line = if self.torn { [b"\n".as_slice(), &line].concat() } else { line };
        match self.file.write_all(&line) {
            Ok(()) => self.torn = false,
            Err(error) => {
                // What was written of it goes again, if that can be done.
                if self.file.set_len(before).is_err() {
                    self.torn = true;
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

fn ends_with_a_whole_line(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if let Some(at) = length.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok(last == [b'\n'])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const JOIN_TOKEN: Event<'static> = Event::JoinToken { by: "ann", service: "media", expires: 7 };

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn each_event_is_one_line_of_json_with_its_time_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let audit = Audit::open(&path).unwrap();
        audit.record(JOIN_TOKEN).unwrap();
        audit.refused("Attest", None, "a\nb \"c\"");
        drop(audit);
        Audit::open(&path).unwrap().record(JOIN_TOKEN).unwrap();
        let lines = lines(&path);
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[0]["event"], &lines[0]["service"]), (&"join-token".into(), &"media".into()));
        assert_eq!((&lines[1]["reason"], lines[1].get("by")), (&"a\nb \"c\"".into(), None));
        let time = lines[0]["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew_and_a_torn_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let audit = Audit::open(&path).unwrap();
        audit.record(JOIN_TOKEN).unwrap();
        fs::rename(&path, dir.path().join("audit.jsonl.1")).unwrap();
        audit.record(JOIN_TOKEN).unwrap();
        assert_eq!(lines(&path).len(), 1);
        assert_eq!(lines(&dir.path().join("audit.jsonl.1")).len(), 1);

        fs::write(&path, "{\"time\":\"2027").unwrap();
        Audit::open(&path).unwrap().record(JOIN_TOKEN).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let last = text.lines().last().unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(last).unwrap()["event"], "join-token");
    }

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let audit = Audit::open(&path).unwrap();
        for _ in 0..20_000 {
            audit.refused("Attest", None, "the join token is not known");
        }
        let recorded = lines(&path).len();
        assert!((1_000..2_000).contains(&recorded), "{recorded}");
        let counted: u64 = lines(&path).iter().filter_map(|line| line["moreRefused"].as_u64()).sum();
        assert_eq!(counted + audit.uncounted.load(Ordering::Relaxed), 20_000 - u64::try_from(recorded).unwrap());
        // What is granted is recorded all the same.
        audit.record(JOIN_TOKEN).unwrap();
    }

    #[test]
    fn a_full_disk_is_an_error() {
        // Every write to it ends with ENOSPC.
        let audit = Audit::open(Path::new("/dev/full")).unwrap();
        let error = audit.record(JOIN_TOKEN).unwrap_err();
        assert!(error.to_string().contains("nothing is granted"), "{error}");
        audit.note(JOIN_TOKEN);
    }
}
