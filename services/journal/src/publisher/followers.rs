//! Who follows, and how far each has come, for operators.

mod refusals;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_identity::Peer;
use slab::Slab;
use tenon_proto::replication::v1::{FollowerStatus, Mode};

use crate::Position;
use refusals::{Refusal, Refusals};

/// Characters of the name that a follower gives itself which are kept: names are a service's and a random number.
const LONGEST_INSTANCE: usize = 256;

/// The followers that are connected now, and what some have refused lately.
#[derive(Debug, Default)]
pub(super) struct Followers {
    connected: Mutex<Slab<Arc<Connected>>>,
    /// A follower that refuses begins another stream, or goes; why it did outlives its stream.
    refusals: Mutex<Refusals>,
    /// All refusals since the start.
    nacks: AtomicU64,
}

/// One of them. What it acknowledges it writes here: nobody else waits for that.
#[derive(Debug)]
struct Connected {
    peer: Peer,
    instance: Box<str>,
    mode: Mode,
    since_unix_seconds: u64,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    acknowledged: Option<Position>,
    /// The last refusal, while one is outstanding.
    nack: Option<Box<str>>,
}

impl Followers {
    pub(super) fn register(self: &Arc<Self>, peer: Peer, instance: String, mode: Mode) -> Registration {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let connected = Arc::new(Connected {
            peer,
            instance: instance.chars().take(LONGEST_INSTANCE).collect::<String>().into(),
            mode,
            since_unix_seconds: since.as_secs(),
            said: Mutex::default(),
        });
        let id = self.connected().insert(Arc::clone(&connected));
        Registration { followers: Arc::clone(self), connected, id }
    }

    /// In the order of their instance names. Who refused something lately is listed also when it is not connected.
    pub(super) fn list(&self) -> Vec<FollowerStatus> {
        let mut list: Vec<_> = self.all().iter().map(|connected| connected.status()).collect();
        let mut refusals = self.refusals();
        let refusing = refusals.lately();
        let mut connected = HashSet::new();
        for follower in &mut list {
            let name = (follower.spiffe_id.clone(), follower.instance.clone());
            if let Some((refusal, _)) = refusing.get(&name) {
                if follower.nack.is_empty() {
                    follower.nack.clone_from(&refusal.nack);
                }
                connected.insert(name);
            }
        }
        let gone = refusing.iter().filter(|(name, _)| !connected.contains(name));
        list.extend(gone.map(|(name, (refusal, _))| not_connected(name, refusal)));
        drop(refusals);
        list.sort_by(|a, b| (&a.instance, &a.spiffe_id).cmp(&(&b.instance, &b.spiffe_id)));
        list
    }

    /// Who is connected, and those of them whose last word was a refusal.
    pub(super) fn counts(&self) -> (u64, u64) {
        let all = self.all();
        (all.len() as u64, all.iter().filter(|connected| connected.said().nack.is_some()).count() as u64)
    }

    pub(super) fn nacks(&self) -> u64 {
        self.nacks.load(Relaxed)
    }

    /// By SPIFFE ID and instance name; of several of one name the furthest.
    pub(super) fn acknowledged(&self) -> HashMap<(String, String), Position> {
        let mut furthest = HashMap::new();
        for connected in self.all() {
            let Some(position) = connected.said().acknowledged else { continue };
            let entry = furthest.entry(connected.name()).or_insert(position);
            *entry = position.max(*entry);
        }
        furthest
    }

    fn all(&self) -> Vec<Arc<Connected>> {
        self.connected().iter().map(|(_, connected)| Arc::clone(connected)).collect()
    }

    fn connected(&self) -> MutexGuard<'_, Slab<Arc<Connected>>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is listed of one that is not connected.
fn not_connected((spiffe_id, instance): &(String, String), refusal: &Refusal) -> FollowerStatus {
    FollowerStatus {
        instance: instance.clone(),
        spiffe_id: spiffe_id.clone(),
        acknowledged: refusal.acknowledged.map(Into::into),
        nack: refusal.nack.clone(),
        connected_unix_seconds: 0,
        mode: refusal.mode.into(),
    }
}

impl Connected {
    /// SPIFFE ID and instance name.
    fn name(&self) -> (String, String) {
        (self.peer.id.to_string(), self.instance.as_ref().to_owned())
    }

    fn status(&self) -> FollowerStatus {
        let said = self.said();
        FollowerStatus {
            instance: self.instance.as_ref().to_owned(),
            spiffe_id: self.peer.id.to_string(),
            acknowledged: said.acknowledged.map(Into::into),
            nack: said.nack.as_deref().unwrap_or_default().to_owned(),
            connected_unix_seconds: self.since_unix_seconds,
            mode: self.mode.into(),
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connected follower; dropping it takes it off the list.
#[derive(Debug)]
pub(super) struct Registration {
    followers: Arc<Followers>,
    connected: Arc<Connected>,
    id: usize,
}

impl Registration {
    pub(super) fn peer(&self) -> &Peer {
        &self.connected.peer
    }

    /// It holds what it resumes at. That takes nothing back of what it refused after that.
    pub(super) fn resumed(&self, position: Position) {
        self.connected.said().acknowledged = Some(position);
        self.followers.refusals().resumed(&self.connected.name(), position);
    }

    pub(super) fn acknowledged(&self, position: Position) {
        *self.connected.said() = Said { acknowledged: Some(position), nack: None };
        self.followers.refusals().over(&self.connected.name());
    }

    pub(super) fn refused(&self, position: Position, error: &str) {
        self.followers.nacks.fetch_add(1, Relaxed);
        let nack = format!("{position}: {error}");
        let mut said = self.connected.said();
        said.nack = Some(nack.as_str().into());
        let refusal = Refusal { position, nack, acknowledged: said.acknowledged, mode: self.connected.mode };
        drop(said);
        self.followers.refusals().add(self.connected.name(), refusal);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.followers.connected().try_remove(self.id);
    }
}
