//! The keys that sign transaction tokens: made, published, put to use, replaced each day, and forgotten.
//!
//! A key is on the disk before it is published, and published before it signs: it waits, *prepared*, until every live
//! instance has acknowledged it. The next key is always prepared, so there are two at any time. A key that was replaced
//! stays published until its last token has ended, and longer than that. Never reads the clock.

mod file;

use std::path::PathBuf;
use std::sync::Arc;

use journal::Position;
use mesh_asap::{Kid, SigningKey, txn};

pub(crate) use self::file::KID_PREFIX as TRANSACTION_KID;
pub use self::file::KeyFileError;
use self::file::{KeyFile, Stage};
use crate::ca::{CaError, Passphrase};
use crate::keys::{KeyStoreError, Keys};

/// How long a key signs, in seconds.
const SIGNING: u64 = 86_400;
/// A key that was published this long ago is held by everyone whose certificate has not ended meanwhile.
const HELD_BY_ALL: u64 = 3_600;
/// How long a key is published after it signed last: twice the life of a token.
const KEPT: u64 = 2 * txn::LIFETIME_SECONDS;

/// Why the keys could not be brought forward. What was there stays in use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error("a transaction key cannot be published")]
    Publish(#[from] KeyStoreError),
    #[error("a transaction key cannot be encrypted")]
    Encrypt(#[from] CaError),
}

/// What the ring must know of the rest of the service.
pub(crate) trait Surroundings {
    /// Whether every live instance has acknowledged this position of the kind "key".
    fn everyone_has(&self, position: Position, now: u64) -> bool;
    /// Whether an operator has revoked the key.
    fn is_revoked(&self, kid: &Kid) -> bool;
    /// Keys created before this, Unix seconds, are to be replaced.
    fn replace_older_than(&self) -> u64;
}

/// All keys of this process that sign, will sign, or signed a moment ago.
pub(crate) struct KeyRing {
    dir: PathBuf,
    passphrase: Option<Passphrase>,
    keys: Keys,
    /// In the order in which they were made.
    held: Vec<Held>,
    /// Published keys whose private half is gone: found at the start, removed when their tokens have ended.
    orphans_until: Option<u64>,
}

struct Held {
    file: KeyFile,
    key: Arc<SigningKey>,
    /// Of its record; absent until it is published.
    published: Option<Position>,
    /// Since when another one signs, as far as this process knows.
    replaced: Option<u64>,
}

impl Held {
    fn is_active(&self) -> bool {
        matches!(self.file.stage, Stage::Signing { .. })
    }
}

impl KeyRing {
    /// Reads the keys in `dir`, which is made when it is not there.
    ///
    /// # Errors
    /// A file cannot be read, or not without the right passphrase.
    pub(crate) fn open(
        dir: PathBuf,
        passphrase: Option<Passphrase>,
        keys: Keys,
        now: u64,
    ) -> Result<Self, KeyFileError> {
        let mut held = Vec::new();
        for file in file::read_all(&dir)? {
            let key = Arc::new(file.open(passphrase.as_ref())?);
            held.push(Held { file, key, published: None, replaced: None });
        }
        // The oldest is put to use first, so those that sign are in the order in which they began to.
        held.sort_by_key(|held| (held.file.created, held.file.stage));
        Ok(Self { dir, passphrase, keys, held, orphans_until: Some(now + KEPT) })
    }

    /// Does what is due at `now`, Unix seconds, as far as it can be done.
    ///
    /// # Errors
    /// A key could not be written or published. It is tried again at the next call; [`Self::signing`] goes on.
    pub(crate) async fn settle(&mut self, around: &impl Surroundings, now: u64) -> Result<(), RingError> {
        loop {
            self.forget(around, now).await?;
            if !self.held.iter().any(|held| held.file.stage == Stage::Prepared) {
                self.prepare(now)?;
            }
            self.publish().await?;
            if !(self.is_due(around, now) && self.promote(around, now)?) {
                return Ok(());
            }
            // And now the key after this one.
        }
    }

    /// The newest key that has ever been put to use, and that nobody has revoked. None: there is none yet that everybody
    /// has.
    pub(crate) fn signing(&self, around: &impl Surroundings) -> Option<Arc<SigningKey>> {
        let trusted = |held: &&Held| !around.is_revoked(held.key.kid());
        self.active().filter(trusted).last().map(|held| Arc::clone(&held.key))
    }

    fn active(&self) -> impl DoubleEndedIterator<Item = &Held> {
        self.held.iter().filter(|held| held.is_active())
    }

    /// Whether another key must sign.
    pub(crate) fn is_due(&self, around: &impl Surroundings, now: u64) -> bool {
        match self.active().last().map(|held| (held.file.created, held.file.stage)) {
            Some((created, Stage::Signing { since })) => {
                now >= since.saturating_add(SIGNING) || created < around.replace_older_than()
            }
            Some((_, Stage::Prepared)) | None => true,
        }
    }

    /// Puts the oldest prepared key to use that everybody has and that need not be replaced itself.
    fn promote(&mut self, around: &impl Surroundings, now: u64) -> Result<bool, RingError> {
        for index in 0..self.held.len() {
            let held = &self.held[index];
            let Some(position) = held.published.filter(|_| held.file.stage == Stage::Prepared) else { continue };
            let old = now >= held.file.created.saturating_add(HELD_BY_ALL);
            if held.file.created < around.replace_older_than() || !(old || around.everyone_has(position, now)) {
                continue;
            }
            let signing = held.file.clone().signing_since(now);
            signing.write(&self.dir)?;
            for replaced in self.held.iter_mut().filter(|held| held.is_active()) {
                replaced.replaced.get_or_insert(now);
            }
            let promoted = &mut self.held[index];
            promoted.file = signing;
            tracing::info!(kid = promoted.key.kid().as_str(), "another key signs transaction tokens");
            return Ok(true);
        }
        Ok(false)
    }

    /// Every key that is not published yet.
    async fn publish(&mut self) -> Result<(), RingError> {
        for held in self.held.iter_mut().filter(|held| held.published.is_none()) {
            let (kid, spki) = (held.key.kid(), held.key.public_spki());
            let position = self.keys.publish_transaction_key(kid, txn::ISSUER, &spki, held.file.created).await?;
            held.published = Some(position);
        }
        Ok(())
    }

    fn prepare(&mut self, now: u64) -> Result<(), RingError> {
        let key = file::generate();
        let file = KeyFile::seal(&key, self.passphrase.as_ref(), now)?;
        file.write(&self.dir)?;
        self.held.push(Held { file, key: Arc::new(key), published: None, replaced: None });
        Ok(())
    }

    /// Removes keys that are revoked, those that were replaced long enough ago, and prepared ones that are too old to be
    /// put to use.
    async fn forget(&mut self, around: &impl Surroundings, now: u64) -> Result<(), RingError> {
        let newest = self.active().last().map(|held| held.key.kid().clone());
        for held in &mut self.held {
            // After a restart: when it was replaced is not known.
            if held.is_active() && Some(held.key.kid()) != newest.as_ref() {
                held.replaced.get_or_insert(now);
            }
        }
        let goes = |held: &Held| {
            let unfit = held.file.stage == Stage::Prepared && held.file.created < around.replace_older_than();
            around.is_revoked(held.key.kid()) || unfit || held.replaced.is_some_and(|since| now >= since + KEPT)
        };
        while let Some(index) = self.held.iter().position(goes) {
            let kid = self.held[index].key.kid().clone();
            // First the record: a file without one is published again, a record without a file is an orphan.
            self.keys.delete(|key| key.kid == kid.as_str()).await?;
            self.held[index].file.remove(&self.dir)?;
            self.held.remove(index);
            tracing::info!(kid = kid.as_str(), "a key of transaction tokens is gone");
        }
        if self.orphans_until.is_some_and(|until| now >= until) {
            let own: Vec<_> = self.held.iter().map(|held| held.key.kid().to_string()).collect();
            self.keys.delete(|key| file::is_transaction_key(key) && !own.contains(&key.kid)).await?;
            self.orphans_until = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
