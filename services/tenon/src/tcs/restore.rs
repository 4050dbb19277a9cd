//! `tenon tcs restore`.

use std::{fs, os::unix::fs::DirBuilderExt as _, path::Path};

use journal::{
    Embedded, OpenError, Store,
    backup::{Moment, Replaced, Restored},
};
use tenon_proto::kind;

use super::{backup::at, key::Key, open, restore_failure, seal_failure};
use crate::{
    cli::{Restore, When},
    failure::{Answer, Failure, chain},
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
    let (replaced, _held) = match present(path, replace)? {
        Some(store) => (Replaced::of(&store).map_err(|error| unusable(&error))?, Some(store)),
        None => (Replaced::default(), None),
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
            Failure::new(format!("cannot make {}: {error}", folder.display())).next("name another file with --store")
        })?;
    }
    into(file, key, path, to, replaced)
}

/// The store that is there already, if any.
fn present(path: &Path, replace: bool) -> Result<Option<Embedded>, Failure> {
    if fs::metadata(path).is_ok_and(|file| file.is_dir()) {
        return Err(Failure::new(format!("{} is a folder", path.display()))
            .next("name the file of a store: --store embedded:FILE"));
    }
    if fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    let store = match Embedded::open(path) {
        Ok(store) => store,
        // What it was nobody can tell: it is in the way, and that is all.
        Err(OpenError::Foreign(_)) if replace => return Ok(None),
        Err(error @ OpenError::Held(_)) => {
            return Err(
                Failure::new(chain(&error)).next("stop the TCS, or the mesh that it belongs to; nothing has changed")
            );
        }
        Err(error) => return Err(unusable(&error)),
    };
    let written = store.heads().map_err(|error| unusable(&error))?;
    if written.values().any(|head| *head > 0) && !replace {
        let head = written.get(kind::TENANT).copied().unwrap_or_default();
        return Err(Failure::new(format!("{} holds a store at revision {}.{head}", path.display(), store.epoch()))
            .next(
                "repeat it with --replace if that is to go, or name another file with --store; nothing has changed",
            ));
    }
    Ok(Some(store))
}

fn unusable(error: &OpenError) -> Failure {
    Failure::new(chain(error)).next("nothing has changed")
}

/// Makes a store of the tenants at `path` that comes after `replaced`.
pub(super) fn into(file: &Path, key: &Key, path: &Path, to: Moment, replaced: Replaced) -> Result<Restored, Failure> {
    let refused = |error: journal::backup::RestoreError| restore_failure(file, &error);
    let restore = journal::backup::Restore::begin(path, kind::TENANT, to, replaced);
    let mut restore = restore.map_err(|error| refused(error.into()))?;
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
