//! `tenon tcs`: backups of the store of tenants, and stores from them.

mod backup;
mod key;
mod nats;
mod place;
mod restore;
mod sealed;
mod verify;

pub use backup::run as backup;
pub use key::make as backup_key;
pub use restore::run as restore;
pub use verify::run as verify;

use std::{
    fs::File,
    io::{self, BufReader},
    path::Path,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use journal::{
    LoadError,
    backup::{FormatError, RestoreError},
};

use crate::{failure::Failure, output::rfc3339};
use key::Key;
use sealed::{Opener, SealError};

/// Drawn on standard error, and only when that is a terminal. `of` says what is counted.
fn bar(total: u64, of: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let template = format!("{{bar:40}} {{human_pos}} of {{human_len}} {of}, {{eta}} left");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// A backup that is read from its beginning to its end.
struct Opened {
    pieces: Opener<BufReader<File>>,
    bar: ProgressBar,
}

/// Opens a backup with the key that it was made with.
fn open(file: &Path, key: &Key) -> Result<Opened, Failure> {
    let unreadable = |error: &io::Error| {
        Failure::new(format!("cannot read {}: {error}", file.display()))
            .next("name a file that `tenon tcs backup` wrote")
    };
    let opened = File::open(file).map_err(|error| unreadable(&error))?;
    let length = opened.metadata().map_err(|error| unreadable(&error))?.len();
    let pieces = Opener::begin(BufReader::with_capacity(1 << 20, opened), key);
    let pieces = pieces.map_err(|error| seal_failure(file, &error))?;
    Ok(Opened { pieces, bar: bar(length, "bytes") })
}

impl Iterator for Opened {
    type Item = Result<Vec<u8>, SealError>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.pieces.next();
        match &piece {
            Some(Ok(piece)) => self.bar.inc(piece.len() as u64),
            Some(Err(_)) | None => self.bar.finish_and_clear(),
        }
        piece
    }
}

/// What is wrong with a backup before it is decrypted, or while it is.
fn seal_failure(file: &Path, error: &SealError) -> Failure {
    let file = file.display();
    let failure = Failure::new(format!("{file}: {error}"));
    failure.next(match error {
        SealError::Foreign => "name a file that `tenon tcs backup` wrote",
        SealError::Version(_) => "use the version of tenon that made it, or a later one",
        SealError::OtherKey { .. } => "name the key that it was made with: --key-file",
        SealError::Truncated | SealError::Damaged { .. } => "nothing of it was used: take another backup",
        SealError::Read(_) => "nothing of it was used: copy the file from a disk that can be read",
    })
}

/// Why nothing was restored.
fn restore_failure(file: &Path, error: &RestoreError) -> Failure {
    let file = file.display();
    let failure = Failure::new(format!("{file}: {}", crate::failure::chain(error)));
    let at = |unix_ms: u64| rfc3339(unix_ms / 1000);
    match error {
        RestoreError::Format(FormatError::Foreign) => failure.next("name a file that `tenon tcs backup` wrote"),
        RestoreError::Format(FormatError::Version(_)) => {
            failure.next("use the version of tenon that made it, or a later one")
        }
        RestoreError::Format(FormatError::Truncated | FormatError::Damaged(_))
        | RestoreError::Load(LoadError::Contradiction(_)) => {
            failure.next("nothing of it was used: take another backup")
        }
        RestoreError::Load(LoadError::Full { .. } | LoadError::Failed { .. }) => failure,
        RestoreError::Load(LoadError::Unsynced { .. }) => failure.next("check the disk, then repeat it with --replace"),
        RestoreError::Missing(_) => failure.next("it is a backup of another service: name one of the TCS"),
        RestoreError::Revision { oldest, newest, .. } => {
            failure.next(format!("give --to a revision from {oldest} to {newest}, or take a backup of another time"))
        }
        RestoreError::Epoch { of, .. } => failure.next(format!("give --to a revision of epoch {of}, or a time")),
        RestoreError::TooEarly { oldest_unix_ms: Some(oldest) } => {
            failure.next(format!("give --to a time from {} on, or take an older backup", at(*oldest)))
        }
        RestoreError::TooEarly { oldest_unix_ms: None } => failure.next("it has no past at all: leave --to away"),
        RestoreError::TooLate { made_unix_ms } => failure
            .next(format!("it was begun at {}: give --to an earlier time, or take a later backup", at(*made_unix_ms))),
    }
}

#[cfg(test)]
mod tests;
