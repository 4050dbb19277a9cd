//! `tenon tcs`: flags and help text of what an operator does with the store of tenants.

use std::path::PathBuf;

use clap::Args;

use super::{MeshArgs, OutputArgs};

/// Back up all tenants and their past, while the TCS goes on serving.
///
/// The backup is encrypted with AES-256-GCM, can be restored to any revision or time that the TCS keeps (30 days unless
/// it was told otherwise), and is complete when the command succeeds: the file is there under its name or not at all.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tcs backup --out tenants.backup --key-file backup.key\n  tenon tcs backup --out \"/backups/tenants-$(date +%F).backup\" --key-file backup.key --data /var/lib/tenon\n\nKeep the key where the backups are not; `tenon tcs backup-key` makes one."
)]
pub struct Backup {
    /// File to write; must not exist yet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Key to encrypt with: 32 bytes, as they are or in hexadecimal.
    #[arg(long, value_name = "FILE", env = "TENON_BACKUP_KEY")]
    pub key_file: PathBuf,
    #[command(flatten)]
    pub mesh: MeshArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Make a key for backups. Without it nobody reads them, you neither: keep a copy somewhere safe.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tenon tcs backup-key --out backup.key")]
pub struct BackupKey {
    /// File to write, which its owner alone can read; must not exist yet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Make a store from a backup, as it was at any moment that the backup reaches back to.
///
/// Works on the store alone: stop the TCS first, and start it on the store afterwards. Tenants keep their revisions; the
/// store begins a new epoch, so that everybody who follows compares what he has and fetches what differs, and nothing else.
/// Nothing is changed before the whole backup was read and found good.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tcs restore tenants.backup --key-file backup.key --store embedded:tcs/tcs.redb\n  tenon tcs restore tenants.backup --key-file backup.key --store embedded:tcs/tcs.redb --replace \\\n      --to 2026-11-20T09:30:00Z\n  tenon tcs restore tenants.backup --key-file backup.key --store embedded:tcs/tcs.redb --replace --to 1204\n  tenon tcs restore tenants.backup --key-file backup.key --store nats://127.0.0.1:4222 --trust-domain demo.example\n\nThe store of a mesh that `tenon up --data DIR` runs is embedded:DIR/tcs/tcs.redb, and with\n`tenon up --store embedded:D` it is embedded:D/tcs.redb."
)]
pub struct Restore {
    /// The backup.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The key that it was made with.
    #[arg(long, value_name = "FILE", env = "TENON_BACKUP_KEY")]
    pub key_file: PathBuf,
    /// The store to make: `embedded:FILE`, or `nats://HOST:PORT[,HOST:PORT]`.
    #[arg(long, value_name = "STORE")]
    pub store: journal::Store,
    /// Of a NATS cluster: the mesh whose tenants are made or replaced. It may be another one than that of the backup; no other
    /// mesh of the cluster is touched.
    #[arg(long, value_name = "NAME", env = "TENON_TRUST_DOMAIN")]
    pub trust_domain: Option<mesh_config::names::TrustDomain>,
    /// The last revision that is to be in the store, or a time such as 2026-11-20T09:30:00Z: what was written later is
    /// undone. Without it, all that the backup has.
    #[arg(long, value_name = "REVISION|TIME")]
    pub to: Option<When>,
    /// Replace what is in the store now.
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Find out whether a backup can be restored, without touching any store.
///
/// Restores it into a scratch store, as it was made and as far back as it reaches, and compares the first with the backup,
/// record by record. With --data it also compares it with what the serving TCS had at that position. Exits 1 when there is
/// a difference, when the file is damaged, and with --data also when the TCS cannot be compared with: it does not answer, is
/// of another epoch, or keeps nothing of that time any more.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenon tcs verify-backup tenants.backup --key-file backup.key\n  tenon tcs verify-backup tenants.backup --key-file backup.key --data .tenon --scratch /var/tmp"
)]
pub struct VerifyBackup {
    /// The backup.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The key that it was made with.
    #[arg(long, value_name = "FILE", env = "TENON_BACKUP_KEY")]
    pub key_file: PathBuf,
    /// Data folder of a running mesh, made by `tenon up`: compare with its TCS as well.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Folder for the scratch stores, which take about three times as much room as the backup [default: that of the
    /// system for temporary files].
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A moment, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct When(pub journal::backup::Moment);

impl std::str::FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use journal::{Position, backup::Moment};

        if let Ok(revision) = text.parse() {
            return Ok(Self(Moment::Revision(revision)));
        }
        if let Some((Ok(epoch), Ok(revision))) = text.split_once('.').map(|(epoch, it)| (epoch.parse(), it.parse())) {
            return Ok(Self(Moment::Position(Position::new(epoch, revision))));
        }
        let time: jiff::Timestamp = text.parse().map_err(|_| {
            "neither a revision (1204, or 1763800000000.1204 with its epoch) nor a time (2026-11-20T09:30:00Z)"
                .to_owned()
        })?;
        match u64::try_from(time.as_millisecond()) {
            Ok(millisecond) => Ok(Self(Moment::Time(millisecond))),
            Err(_) => Err("nothing was written before 1970".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use journal::{Position, backup::Moment};

    use super::*;

    #[test]
    fn a_moment_is_a_revision_with_or_without_its_epoch_or_a_time() {
        for (text, moment) in [
            ("1204", Moment::Revision(1204)),
            ("1763800000000.1204", Moment::Position(Position::new(1_763_800_000_000, 1204))),
            ("1970-01-01T00:01:00Z", Moment::Time(60_000)),
            ("1970-01-01T01:01:00.5+01:00", Moment::Time(60_500)),
        ] {
            assert_eq!(text.parse(), Ok(When(moment)), "{text}");
        }
        for text in ["", "-1", "yesterday", "2026-11-20", "2026-11-20T09:30:00", "1969-12-31T00:00:00Z"] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }
}
