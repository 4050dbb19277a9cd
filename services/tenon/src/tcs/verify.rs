//! `tenon tcs verify-backup`.

use std::path::Path;

use journal::{
    Cause, Embedded, Journal, Position,
    backup::{Differences, Moment, Replaced, RestoreError, compare, parts, records},
};
use tenon_proto::{kind, tcs::v1::BackupResponse};

use super::{
    backup::{self, Found, Summary, at},
    key::Key,
    open, restore, restore_failure, seal_failure,
};
use crate::{
    cli::VerifyBackup,
    failure::{Answer, Failure, chain},
    operator::Mesh,
    output::Output,
};

/// Restores a backup into scratch stores and compares.
///
/// # Errors
/// No key, a damaged backup, no room; or, once all else is printed, a TCS to compare with that cannot be compared.
pub async fn run(args: VerifyBackup) -> Result<Answer, Failure> {
    let key = Key::read(&args.key_file)?;
    let scratch = match &args.scratch {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let scratch = scratch.map_err(|error| {
        Failure::new(format!("cannot make a scratch folder: {error}"))
            .next("name one with room and write access: --scratch DIR")
    })?;
    let newest = scratch.path().join("newest");
    let found = summary(&args.file, &key)?;
    restore::into(&args.file, &key, &newest, Moment::Newest, Replaced::default())?;
    let store = journal(&newest)?;
    let same = itself(&args.file, &key, &*store).await?;
    // Every change is undone, which finds each that does not fit.
    restore::into(&args.file, &key, &scratch.path().join("oldest"), Moment::Oldest, Replaced::default())?;
    let serving = match &args.data {
        Some(data) => Some(serving(data, &scratch.path().join("serving"), found.position, &*store).await?),
        None => None,
    };
    report(&args, &found, &same, serving)
}

fn summary(file: &Path, key: &Key) -> Result<Found, Failure> {
    let refused = |error: journal::backup::FormatError| restore_failure(file, &error.into());
    let mut summary = Summary::default();
    for piece in open(file, key)? {
        summary.take(&piece.map_err(|error| seal_failure(file, &error))?).map_err(refused)?;
    }
    summary.finish().map_err(refused)
}

fn journal(path: &Path) -> Result<std::sync::Arc<dyn Journal>, Failure> {
    let opened = Embedded::open(path).and_then(|store| store.kind(kind::TENANT));
    opened.map_err(|error| Failure::new(chain(&error)).next("name a folder with room: --scratch DIR"))
}

fn unreadable(error: &journal::ReadError) -> Failure {
    Failure::new(chain(error))
        .next("repeat it; if it stays so, the disk of the scratch folder is damaged: --scratch DIR")
}

/// Compares the backup with the store that was made from it.
async fn itself(file: &Path, key: &Key, store: &dyn Journal) -> Result<Differences, Failure> {
    let pieces = open(file, key)?.map(|piece| piece.map_err(Cause::from));
    let history = store.history().await.map_err(|error| unreadable(&error))?;
    compare(parts(kind::TENANT, pieces), history.parts).await.map_err(|error| unreadable(&error))
}

/// What came of the comparison with the serving TCS.
enum Serving {
    Compared(Differences),
    /// Why they cannot be compared, which is no fault of the backup.
    NotCompared(Failure),
}

/// Compares the backup with what the serving TCS had at that position.
async fn serving(data: &Path, scratch: &Path, position: Position, store: &dyn Journal) -> Result<Serving, Failure> {
    let mesh = match Mesh::find(data) {
        Ok(mesh) => mesh,
        Err(failure) => return Ok(Serving::NotCompared(failure)),
    };
    let unanswered = |status| Ok(Serving::NotCompared(mesh.tcs_failure("the TCS sends no backup", &status)));
    let (mut pieces, bar) = match backup::begin(&mesh).await {
        Ok(begun) => begun,
        Err(status) => return unanswered(status),
    };
    let restore =
        journal::backup::Restore::begin(scratch, kind::TENANT, Moment::Position(position), Replaced::default());
    let failed = |error: RestoreError| Failure::new(chain(&error)).next("name a folder with room: --scratch DIR");
    let mut restore = restore.map_err(|error| failed(error.into()))?;
    loop {
        let BackupResponse { chunk, .. } = match pieces.message().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(status) => return unanswered(status),
        };
        match restore.push(&chunk) {
            Ok(parts) => bar.inc(parts),
            Err(error @ (RestoreError::Epoch { .. } | RestoreError::Revision { .. })) => {
                let failure = Failure::new(format!("what the TCS keeps does not reach back to it: {error}"));
                return Ok(Serving::NotCompared(
                    failure.next("take another backup and verify that, or leave --data away"),
                ));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    restore.finish().map_err(failed)?;
    bar.finish_and_clear();
    let serving = journal(scratch)?;
    let one = store.history().await.map_err(|error| unreadable(&error))?.parts;
    let other = serving.history().await.map_err(|error| unreadable(&error))?.parts;
    compare(records(one), records(other)).await.map(Serving::Compared).map_err(|error| unreadable(&error))
}

fn report(args: &VerifyBackup, found: &Found, same: &Differences, serving: Option<Serving>) -> Result<Answer, Failure> {
    let mut out = Output::stdout(args.output.output);
    let differs = |serving: &Serving| matches!(serving, Serving::Compared(found) if found.count > 0);
    let good = same.count == 0 && !serving.as_ref().is_some_and(differs);
    let Found { position, tenants, changes, floor, .. } = *found;
    if out.is_json() {
        let differences = |found: &Differences| serde_json::json!({ "compared": found.compared, "differences": found.count, "first": found.first });
        let serving = serving.as_ref().map(|serving| match serving {
            Serving::Compared(found) => differences(found),
            Serving::NotCompared(why) => serde_json::json!({ "notCompared": why.what() }),
        });
        out.json(&serde_json::json!({
            "file": args.file, "good": good, "time": at(found.made_unix_ms), "epoch": position.epoch,
            "revision": position.revision, "tenants": tenants, "changes": changes, "oldestRevision": floor,
            "oldestTime": found.oldest_unix_ms.map(at), "restored": differences(same), "serving": serving,
        }))?;
    } else {
        out.line(&format!("{tenants} tenants at revision {position}, made at {}", at(found.made_unix_ms)))?;
        tell(&mut out, "the store restored from it", same)?;
        out.line(&format!("all {changes} changes back to revision {floor} can be undone"))?;
        match &serving {
            Some(Serving::Compared(found)) => tell(&mut out, "the serving TCS at that revision", found)?,
            Some(Serving::NotCompared(_)) | None => {}
        }
    }
    out.flush()?;
    match serving {
        Some(Serving::NotCompared(why)) => Err(why.of("not compared with the serving TCS")),
        Some(Serving::Compared(_)) | None => Ok(good.into()),
    }
}

fn tell(out: &mut Output, what: &str, found: &Differences) -> Result<(), Failure> {
    if found.count == 0 {
        return out.line(&format!("{what} is the same: {} records and changes compared", found.compared));
    }
    out.line(&format!("{what} differs in {} of {} records and changes:", found.count, found.compared))?;
    found.first.iter().try_for_each(|one| out.line(&format!("  {one}")))
}
