//! The next ASAP key. It signs only when everybody can verify it: made, written down, published, acknowledged, used.
//!
//! A run that ends in between leaves the key on disk, and the next run goes on with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::JoinError;
use super::confirm::Line;
use super::membership::{Deed, Membership};
use super::state::{self, AsapKey};
use crate::clock;

/// The longest pause between two questions whether everybody has the key: one dead follower must not make the whole mesh
/// ask each second.
const LONGEST_POLL: Duration = Duration::from_secs(30);

/// Replaces the key when it is a day old, when the mesh asks for it, and when it was revoked, until `shutdown`.
pub(super) async fn run(member: Arc<Membership>, shutdown: CancellationToken) {
    let replacing = async {
        let mut next = state::load_next(&member.state_dir, &member.service);
        loop {
            let key = match next.take() {
                Some(left_over) => Arc::new(left_over),
                None => {
                    due(&member).await;
                    made(&member).await
                }
            };
            if published(&member, &key).await {
                used(&member, &key).await;
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = replacing => {}
    }
}

/// Until the key that signs must be replaced.
async fn due(member: &Membership) {
    let mut changes = member.identity.changes();
    let created = member.key_created();
    let age = Duration::from_secs(clock::unix_seconds().saturating_sub(created));
    let life = member.timing.key_life.mul_f64(1.0 + rand::random::<f64>() / 10.0);
    let at_latest = Instant::now() + life.saturating_sub(age).max(member.timing.soon());
    let mut soon = None;
    loop {
        if is_revoked(member) {
            tracing::warn!(kid = %member.key.borrow().kid(), "the ASAP key was revoked: a new one is made");
            return;
        }
        if member.identity.bundle().rotation().rekey_created_before > created {
            soon.get_or_insert_with(|| Instant::now() + member.timing.soon());
        }
        tokio::select! {
            () = tokio::time::sleep_until(soon.map_or(at_latest, |soon| soon.min(at_latest))) => return,
            _ = changes.changed() => {}
        }
    }
}

/// A new key that is on disk. Until it can be written the old one goes on signing, unless it was revoked: then a key in
/// memory is better than none.
async fn made(member: &Membership) -> Arc<AsapKey> {
    let mut pause = None;
    loop {
        match written(member).await {
            Ok(key) => return key,
            Err(error) => report(member, &error),
        }
        wait(member, &mut pause).await;
    }
}

async fn written(member: &Membership) -> Result<Arc<AsapKey>, JoinError> {
    let key = Arc::new(fresh(member)?);
    let kept = Arc::clone(&key);
    match member.on_disk(move |dir| state::store_next(dir, &kept)).await {
        Err(error) if is_revoked(member) => {
            tracing::error!(%error, "the new ASAP key is not on disk: a restart makes another one");
        }
        outcome => outcome?,
    }
    Ok(key)
}

/// No older than the mesh asks for, also when the clock here is behind the identity service's.
fn fresh(member: &Membership) -> Result<AsapKey, JoinError> {
    AsapKey::generate(
        &member.service,
        clock::unix_seconds().max(member.identity.bundle().rotation().rekey_created_before),
    )
}

/// Until every live instance has acknowledged the key; false when the key itself is of no use any more.
///
/// Who has not after an hour, and still has an SVID, does not follow the keys at all: it does not hold up the others. That
/// hour counts only while the identity service answers. Nobody waits for a key that replaces a revoked one, since the old
/// one works nowhere.
async fn published(member: &Arc<Membership>, next: &AsapKey) -> bool {
    let mut line = Line::new(Arc::clone(member));
    let mut since = None;
    let (mut poll, mut pause) = (member.timing.poll, None);
    loop {
        if is_outdated(member, next) {
            tracing::info!(kid = %next.key.kid(), "the next ASAP key is outdated before its first use: another one is made");
            return false;
        }
        match line.confirm(&next.key).await {
            Ok(answer) => {
                pause = None;
                let since = *since.get_or_insert_with(Instant::now);
                if answer.behind == 0 || is_revoked(member) {
                    return true;
                }
                if since.elapsed() > member.timing.longest_wait {
                    tracing::warn!(behind = answer.behind, "the new ASAP key signs, though not everybody has it");
                    return true;
                }
                tokio::time::sleep(poll).await;
                poll = (poll * 2).min(LONGEST_POLL);
            }
            Err(error) => {
                report(member, &error);
                wait(member, &mut pause).await;
            }
        }
    }
}

/// On disk first: a restart in between goes on with a key that everybody has.
async fn used(member: &Membership, next: &Arc<AsapKey>) {
    let mut pause = None;
    loop {
        let key = Arc::clone(next);
        match member.on_disk(move |dir| state::promote_next(dir).or_else(|_| state::store_key(dir, &key))).await {
            Ok(()) => break,
            Err(error) if is_revoked(member) => {
                tracing::error!(%error, "the new ASAP key signs and is not on disk: a restart makes another one");
                break;
            }
            Err(error) => report(member, &error),
        }
        wait(member, &mut pause).await;
    }
    tracing::info!(kid = %next.key.kid(), "a new ASAP key signs");
    member.use_key(Arc::clone(&next.key), next.created);
    member.done(Deed::Rekeying);
}

fn is_revoked(member: &Membership) -> bool {
    member.identity.revoked().kids.contains(member.key.borrow().kid().as_str())
}

fn is_outdated(member: &Membership, next: &AsapKey) -> bool {
    next.created < member.identity.bundle().rotation().rekey_created_before
        || member.identity.revoked().kids.contains(next.key.kid().as_str())
}

fn report(member: &Membership, error: &JoinError) {
    if member.failed(Deed::Rekeying, error) {
        tracing::warn!(%error, "the ASAP key could not be replaced: the present one goes on signing");
    }
}

/// Pauses after a failure; a revocation ends the pause, and so does the identity service when it is heard again.
async fn wait(member: &Membership, pause: &mut Option<Duration>) {
    let mut changes = member.identity.changes();
    let time = *pause.insert(member.timing.pause(*pause));
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = member.heard.notified() => {}
        _ = changes.changed() => {}
    }
}
