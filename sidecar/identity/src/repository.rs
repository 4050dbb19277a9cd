//! Key repositories outside of the mesh: public keys of a caller that is not in it (A15, A16).
//!
//! One [`Repositories`] for each outside client. Looking a key up never waits; only [`Repositories::ensure`] does, and
//! only the caller whose key is not known yet. All fetching runs on one runtime, whichever thread asks: a repository
//! that hangs stops nobody else, and a key that is in use is fetched again before its time is over, unasked.
//!
//! Repositories are asked with HTTPS and TLS 1.3 alone. Nothing of what one of them answers is ever executed, stored on
//! disk or sent on.

mod base;
mod cache;
mod fetch;
mod freshness;
#[doc(hidden)]
pub mod testing;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mesh_asap::{Kid, Lookup, PublicKey};
use rustls_pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use self::base::Base;
pub use self::base::BaseError;
use self::cache::{Cache, Need};
use self::fetch::Client;
pub use self::fetch::Miss;
use crate::clock;

/// What one repository may take for one key, connecting and redirects included.
pub const FETCH_DEADLINE: Duration = Duration::from_secs(2);

/// Where the keys of one outside client are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URLs, `https`, asked in this order; a `/` is added to one that does not end in it (A15).
    pub bases: Vec<String>,
    /// The authorities that the repositories' certificates chain to; `None`: those that the system trusts.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// What one repository may take for one key.
    pub fetch_deadline: Duration,
}

impl Settings {
    /// Whether they can be used.
    ///
    /// # Errors
    /// As [`Repositories::new`].
    pub fn check(&self) -> Result<(), SettingsError> {
        client(self.clone()).map(drop)
    }

    /// These repositories, the system's authorities, [`FETCH_DEADLINE`].
    pub fn new(bases: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { bases: bases.into_iter().map(Into::into).collect(), roots: None, fetch_deadline: FETCH_DEADLINE }
    }

    /// Trusts these authorities instead of the system's.
    #[must_use]
    pub fn with_roots(self, roots: Vec<CertificateDer<'static>>) -> Self {
        Self { roots: Some(roots), ..self }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not one base URL.
    #[error("no key repository is named")]
    NoBase,
    /// A base URL that cannot be one.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// None of the authorities' certificates can be used; the text says why.
    #[error("no authority to trust the key repositories by: {0}")]
    Roots(String),
}

/// The key repositories of one outside client with what is known of their keys. Clones share everything; the last one
/// dropped ends the refreshing.
#[derive(Clone)]
pub struct Repositories(Arc<Shared>);

struct Shared {
    client: Client,
    state: Mutex<State>,
    /// Where fetching runs, whoever asks.
    runtime: Handle,
    /// Wakes the task that refreshes: there is something new to refresh.
    wake: Arc<Notify>,
    generation: AtomicU64,
    /// Follows `generation`, for whoever waits.
    changes: watch::Sender<u64>,
    /// Unix seconds; another one in tests.
    clock: Clock,
}

/// Tells the time in Unix seconds.
#[doc(hidden)]
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

struct State {
    cache: Cache,
    /// The fetches under way; each ends when its sender is dropped (A16: one for each key, however many wait).
    flights: HashMap<Kid, watch::Receiver<()>>,
}

impl Repositories {
    /// Fetches nothing yet. All fetching will run on `runtime`, which must have time and IO and outlive the callers.
    ///
    /// # Errors
    /// No base URL, one that is not `https`, or no authority that can be used.
    pub fn new(settings: Settings, runtime: &Handle) -> Result<Self, SettingsError> {
        Self::with_clock(settings, runtime, Box::new(clock::unix_seconds))
    }

    /// For tests that move the time.
    #[doc(hidden)]
    pub fn with_clock(settings: Settings, runtime: &Handle, clock: Clock) -> Result<Self, SettingsError> {
        let client = client(settings)?;
        let shared = Arc::new(Shared {
            client,
            state: Mutex::new(State { cache: Cache::default(), flights: HashMap::new() }),
            runtime: runtime.clone(),
            wake: Arc::default(),
            generation: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            clock,
        });
        runtime.spawn(keep_fresh(Arc::downgrade(&shared), Arc::clone(&shared.wake)));
        Ok(Self(shared))
    }

    /// What is known now of the key, Unix seconds; never waits. A key past its time but within its stale time is found,
    /// and a fetch started. `Unavailable` also stands for "not asked yet": see [`Self::ensure`].
    pub fn cached(&self, kid: &str, now: u64) -> Lookup {
        let mut state = self.0.state();
        let (lookup, refresh) = state.cache.look(kid, now);
        if refresh && let Ok(kid) = kid.parse() {
            self.0.start(&mut state, kid);
        }
        lookup
    }

    /// Waits until [`Self::cached`] can answer for `kid`, or has no better answer to hope for: after at most the
    /// deadline of a fetch for each repository. Returns at once for a key that is known, known to be missing, or that
    /// this client may not ask for yet (a flood of unknown keys costs a bounded number of fetches, A16).
    ///
    /// May be awaited on any runtime.
    pub async fn ensure(&self, kid: &Kid) {
        let flight = self.0.flight(kid);
        if let Some(mut flight) = flight {
            // Nothing is ever sent: the error says that the fetch has ended.
            let _ = flight.changed().await;
        }
    }

    /// Moves when a key has gone or become another one: verifications remembered under the keys of this client count no
    /// longer (A16). Cheap enough to look at for each call. The number itself means nothing.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// As [`Self::generation`], for whoever waits.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// For tests that have moved the time: what is due now is done now.
    #[doc(hidden)]
    pub fn poke(&self) {
        self.0.wake.notify_one();
    }
}

/// Asks the repositories once and remembers nothing: for commands, which tell a person what each of them said.
///
/// # Errors
/// The settings cannot be used; or else none has the key, and why not, in the order of [`Settings::bases`].
pub async fn ask_once(settings: Settings, kid: &Kid) -> Result<Result<PublicKey, Vec<Miss>>, SettingsError> {
    Ok(client(settings)?.ask_once(kid).await)
}

fn client(settings: Settings) -> Result<Client, SettingsError> {
    if settings.bases.is_empty() {
        return Err(SettingsError::NoBase);
    }
    let bases = settings.bases.iter().map(|text| text.parse()).collect::<Result<Vec<Base>, _>>()?;
    Client::new(bases, settings.roots, settings.fetch_deadline)
}

impl std::fmt::Debug for Repositories {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Repositories").field("client", &self.0.client).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fetch to wait for, if there is one to hope for.
    fn flight(self: &Arc<Self>, kid: &Kid) -> Option<watch::Receiver<()>> {
        let mut state = self.state();
        let under_way = state.is_flying(kid);
        match state.cache.need(kid.as_str(), (self.clock)(), under_way) {
            Need::Nothing => None,
            Need::Fetch => Some(self.start(&mut state, kid.clone())),
        }
    }

    /// Starts a fetch, or joins the one under way.
    fn start(self: &Arc<Self>, state: &mut State, kid: Kid) -> watch::Receiver<()> {
        if let Some(flight) = state.flights.get(&kid).filter(|flight| flight.has_changed().is_ok()) {
            return flight.clone();
        }
        let (landing, flight) = watch::channel(());
        state.flights.insert(kid.clone(), flight.clone());
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            let answer = shared.client.ask(&kid).await;
            let changed = {
                let mut state = shared.state();
                state.flights.remove(&kid);
                state.cache.store(kid.as_str(), answer, (shared.clock)())
            };
            if changed {
                shared.moved();
            }
            shared.wake.notify_one();
            drop(landing);
        });
        flight
    }

    /// Starts what is due, drops what is over; until when nothing will be due.
    fn tend(self: &Arc<Self>) -> Duration {
        let now = (self.clock)();
        let mut state = self.state();
        let due = state.cache.tend(now);
        for kid in due.refresh {
            self.start(&mut state, kid);
        }
        drop(state);
        if due.dropped {
            self.moved();
        }
        due.next.map_or(IDLE, |next| Duration::from_secs(next.saturating_sub(now)).clamp(SHORTEST, IDLE))
    }

    fn moved(&self) {
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.changes.send_replace(generation);
    }
}

impl State {
    fn is_flying(&self, kid: &Kid) -> bool {
        self.flights.get(kid).is_some_and(|flight| flight.has_changed().is_ok())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // So that the task which refreshes sees that it is not needed any more.
        self.wake.notify_one();
    }
}

/// Fetches keys in use again before their time is over, and drops those whose time is: a remembered verification asks
/// for no key, so nobody else would.
async fn keep_fresh(shared: Weak<Shared>, wake: Arc<Notify>) {
    while let Some(pause) = shared.upgrade().map(|shared| shared.tend()) {
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How often the refreshing looks round when nothing is due.
const IDLE: Duration = Duration::from_secs(30);
/// Times are whole seconds: looking more often shows nothing new.
const SHORTEST: Duration = Duration::from_millis(250);
