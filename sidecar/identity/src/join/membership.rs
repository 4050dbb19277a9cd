//! Staying in the mesh: what a process that has joined does for as long as it runs.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_asap::SigningKey;
use mesh_config::names::ServiceName;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Config, JoinError, Joined, confirm, rekey, remember, renew};
use crate::{Identity, clock};

/// A process's place in the mesh while it keeps it. Renews its SVID, writes what changes to the state folder, tells the
/// identity service that it lives, and replaces its ASAP key. No failure of these ends anything: what is held stays in
/// use, and is asked for again.
#[derive(Debug)]
pub struct Membership {
    pub(super) identity: Arc<Identity>,
    pub(super) service: ServiceName,
    pub(super) instance: Arc<str>,
    pub(super) identity_address: SocketAddr,
    pub(super) state_dir: PathBuf,
    pub(super) timing: Timing,
    /// The key that signs now. Announces each new one.
    pub(super) key: watch::Sender<Arc<SigningKey>>,
    /// Somebody wants a Confirm without waiting for its time.
    pub(super) confirm: Notify,
    /// The identity service was heard again: what failed may work now.
    pub(super) heard: Notify,
    account: Mutex<Account>,
}

/// How often things are done. Fixed, except in tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// A rotation in the mesh is followed after a random time up to this, so that not everybody comes at once.
    pub soon: Duration,
    /// Between two confirmations, and up to a tenth less.
    pub confirm: Duration,
    /// Pauses after failed attempts: doubled each time, between these.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Between two questions whether everybody has a new ASAP key.
    pub poll: Duration,
    /// An ASAP key signs for this long, and up to a tenth longer.
    pub key_life: Duration,
    /// After this a new ASAP key signs although not everybody has acknowledged it.
    pub longest_wait: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            soon: Duration::from_secs(5),
            confirm: Duration::from_secs(60),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            poll: Duration::from_secs(1),
            key_life: Duration::from_secs(24 * 3600),
            longest_wait: Duration::from_secs(3600),
        }
    }
}

/// What the tasks have to tell.
#[derive(Debug, Default)]
struct Account {
    /// When the key that signs now was made, Unix seconds.
    key_created: u64,
    renewal: Deeds,
    confirmation: Deeds,
    rekeying: Deeds,
    /// Why the state folder is behind, while it is.
    saving: Option<String>,
}

/// How often one thing worked, and how it went the last time.
#[derive(Debug, Default)]
struct Deeds {
    done: u64,
    failed: u64,
    last_done: Option<Instant>,
    error: Option<String>,
}

/// How a process stands in the mesh, for metrics and admin pages.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// When the SVID ends, Unix seconds.
    pub svid_not_after: u64,
    /// Seconds until then; negative afterwards.
    pub svid_seconds_left: i64,
    /// SVIDs that were got since the start.
    pub renewals: Attempts,
    /// Confirmations since the start.
    pub confirmations: Attempts,
    /// ASAP keys that came into use since the start.
    pub rekeyings: Attempts,
    /// When the ASAP key that signs now was made, Unix seconds; 0 when nobody knows.
    pub asap_key_created: u64,
    /// What could not be written to the state folder, while that lasts.
    pub state_error: Option<String>,
}

/// How often something was done, and how it went.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    /// Times that it worked.
    pub done: u64,
    /// Times that it did not.
    pub failed: u64,
    /// Since it last worked; absent when it never has since the start.
    pub age: Option<Duration>,
    /// Why it failed the last time; absent when it worked.
    pub error: Option<String>,
}

/// One of the things that a membership does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Deed {
    Renewal,
    Confirmation,
    Rekeying,
}

impl Membership {
    /// Does all of it until `shutdown`; the tasks end when the last state is on disk.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(joined: &Joined, config: Config, shutdown: &CancellationToken) -> (Arc<Self>, Vec<JoinHandle<()>>) {
        Self::start_timed(joined, config, Timing::default(), shutdown)
    }

    pub(super) fn start_timed(
        joined: &Joined,
        config: Config,
        timing: Timing,
        shutdown: &CancellationToken,
    ) -> (Arc<Self>, Vec<JoinHandle<()>>) {
        let member = Self::new(joined, &config, timing);
        let mut tasks = member.start_confirming(shutdown);
        tasks.push(tokio::spawn(remember::run(Arc::clone(&member), shutdown.clone())));
        tasks.push(tokio::spawn(renew::run(Arc::clone(&member), config, shutdown.clone())));
        (member, tasks)
    }

    /// Does all but renew, for a process whose SVID and bundle come from elsewhere ([`super::with_identity`]); of `config`
    /// only the addresses and the state folder count.
    pub fn start_with_identity(
        joined: &Joined,
        config: &Config,
        shutdown: &CancellationToken,
    ) -> (Arc<Self>, Vec<JoinHandle<()>>) {
        let member = Self::new(joined, config, Timing::default());
        let tasks = member.start_confirming(shutdown);
        (member, tasks)
    }

    fn new(joined: &Joined, config: &Config, timing: Timing) -> Arc<Self> {
        Arc::new(Self {
            identity: Arc::clone(&joined.identity),
            service: config.service.clone(),
            instance: Arc::clone(&joined.instance),
            identity_address: config.identity_address,
            state_dir: config.state_dir.clone(),
            timing,
            key: watch::Sender::new(Arc::clone(&joined.asap_key)),
            confirm: Notify::new(),
            heard: Notify::new(),
            account: Mutex::new(Account { key_created: joined.asap_key_created, ..Account::default() }),
        })
    }

    fn start_confirming(self: &Arc<Self>, shutdown: &CancellationToken) -> Vec<JoinHandle<()>> {
        vec![
            tokio::spawn(confirm::run(Arc::clone(self), shutdown.clone())),
            tokio::spawn(rekey::run(Arc::clone(self), shutdown.clone())),
        ]
    }

    /// The name of this process among those of its service.
    pub fn instance(&self) -> &Arc<str> {
        &self.instance
    }

    /// The key that signs now; moves when another one takes over. Whoever mints takes it at once.
    pub fn asap_key(&self) -> watch::Receiver<Arc<SigningKey>> {
        self.key.subscribe()
    }

    /// The identity service was heard again, or has lost what it knew: it is told at once that this process lives, and
    /// what failed before is tried again.
    pub fn identity_service_heard(&self) {
        self.confirm.notify_one();
        self.heard.notify_waiters();
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        let not_after = self.identity.svid().not_after();
        let account = self.account();
        Standing {
            svid_not_after: not_after,
            svid_seconds_left: not_after.cast_signed() - clock::unix_seconds().cast_signed(),
            renewals: account.renewal.attempts(),
            confirmations: account.confirmation.attempts(),
            rekeyings: account.rekeying.attempts(),
            asap_key_created: account.key_created,
            state_error: account.saving.clone(),
        }
    }

    pub(super) fn done(&self, deed: Deed) {
        let mut account = self.account();
        let deeds = account.of(deed);
        deeds.done += 1;
        deeds.last_done = Some(Instant::now());
        deeds.error = None;
    }

    /// Returns whether this is news: the same failure again is not worth a line in the log.
    pub(super) fn failed(&self, deed: Deed, error: &JoinError) -> bool {
        let mut account = self.account();
        let deeds = account.of(deed);
        deeds.failed += 1;
        let error = error.to_string();
        let news = deeds.error.as_ref() != Some(&error);
        deeds.error = Some(error);
        news
    }

    /// The state folder was written, or why it was not.
    pub(super) fn saved(&self, error: Option<&JoinError>) {
        self.account().saving = error.map(ToString::to_string);
    }

    pub(super) fn key_created(&self) -> u64 {
        self.account().key_created
    }

    /// From the return of this on whoever mints is told to use `key`.
    pub(super) fn use_key(&self, key: Arc<SigningKey>, created: u64) {
        self.account().key_created = created;
        self.key.send_replace(key);
    }

    /// Does something with the state folder where a slow disk holds up nothing else of the process.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, JoinError> + Send + 'static,
    ) -> Result<T, JoinError> {
        let dir = self.state_dir.clone();
        let done = tokio::task::spawn_blocking(move || work(&dir)).await;
        done.map_err(|died| JoinError::State { path: self.state_dir.clone(), source: io::Error::other(died) })?
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn of(&mut self, deed: Deed) -> &mut Deeds {
        match deed {
            Deed::Renewal => &mut self.renewal,
            Deed::Confirmation => &mut self.confirmation,
            Deed::Rekeying => &mut self.rekeying,
        }
    }
}

impl Deeds {
    fn attempts(&self) -> Attempts {
        Attempts {
            done: self.done,
            failed: self.failed,
            age: self.last_done.map(|done| done.elapsed()),
            error: self.error.clone(),
        }
    }
}

impl Timing {
    /// The pause after a failed attempt, when the one before it was `last`.
    pub(super) fn pause(&self, last: Option<Duration>) -> Duration {
        last.map_or(self.first_pause, |last| (last * 2).min(self.longest_pause))
    }

    /// A random time up to `soon`.
    pub(super) fn soon(&self) -> Duration {
        self.soon.mul_f64(rand::random())
    }
}

#[cfg(test)]
mod tests;
