//! `tenon tcs restore`.

use std::path::Path;

use journal::{
    Store,
    backup::{Moment, Replaced, Restored},
};
use tenon_proto::kind;

use super::{backup::at, key::Key, open, place::Place, restore_failure, seal_failure};
use crate::{
    cli::{Restore, When},
    failure::{Answer, Failure},
    output::Output,
};

/// Makes a store from a backup.
///
/// # Errors
/// No key, a damaged backup, a moment that it does not have, a store that is in use or not to be replaced; then nothing
/// has changed.
pub async fn run(args: Restore) -> Result<Answer, Failure> {
    let key = Key::read(&args.key_file)?;
    let to = args.to.map_or(Moment::Newest, |When(to)| to);
    let restored = match &args.store {
        Store::Embedded(path) => embedded(&args.file, &key, path, to, args.replace)?,
        Store::Nats(servers) => {
            let trust_domain = args.trust_domain.as_ref().ok_or_else(whose)?;
            super::nats::restore(&args.file, &key, servers, trust_domain, to, args.replace).await?
        }
    };
    report(&args, &restored)?;
    Ok(Answer::Yes)
}

fn whose() -> Failure {
    Failure::usage("--trust-domain is not given, and a NATS cluster may hold the tenants of several meshes")
        .next("name the mesh whose tenants these are to be: --trust-domain, as its TCS were started with it")
}

fn embedded(file: &Path, key: &Key, path: &Path, to: Moment, replace: bool) -> Result<Restored, Failure> {
    // Held until the new one is in its place.
    let place = Place::hold(path, replace)?;
    into(file, key, path, to, place.replaced()?)
}

/// Makes a store of the tenants at `path` that comes after `replaced`.
pub(super) fn into(file: &Path, key: &Key, path: &Path, to: Moment, replaced: Replaced) -> Result<Restored, Failure> {
    let refused = |error: journal::backup::RestoreError| restore_failure(file, &error);
    let restore = journal::backup::Restore::begin(path, kind::TENANT, to, replaced);
    let mut restore = restore.map_err(|error| refused(error.into()))?.keeping_together(::tcs::part_of);
    for piece in open(file, key)? {
        restore.push(&piece.map_err(|error| seal_failure(file, &error))?).map_err(refused)?;
    }
    let restored = restore.finish().map_err(refused)?;
    restored
        .into_iter()
        .find(|restored| restored.kind == kind::TENANT)
        .ok_or_else(|| refused(journal::backup::RestoreError::Missing(kind::TENANT.to_owned())))
}

fn report(args: &Restore, restored: &Restored) -> Result<(), Failure> {
    let mut out = Output::stdout(args.output.output);
    let Restored { backup, revision, at_unix_ms, undone, records, position, .. } = restored;
    let time = at_unix_ms.map(at);
    if out.is_json() {
        out.json(&serde_json::json!({
            "store": args.store.to_string(),
            "backup": { "epoch": backup.epoch, "revision": backup.revision },
            "restoredRevision": revision, "restoredTime": time, "undone": undone, "records": records,
            "epoch": position.epoch, "revision": position.revision,
        }))?;
    } else {
        let of = time.map(|time| format!(", of {time}")).unwrap_or_default();
        out.line(&format!("{} restored to revision {revision}{of}: {records} records", args.store))?;
        if *undone > 0 {
            out.line(&format!("{undone} later changes of the backup are undone"))?;
        }
        out.line(&format!("it goes on at revision {position}: start the TCS with it"))?;
    }
    out.flush()
}
