//! Who follows, and how far each has come, for operators.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_identity::Peer;
use slab::Slab;
use tenon_proto::replication::v1::{FollowerStatus, Mode};

use crate::Position;

/// The followers that are connected now.
#[derive(Debug, Default)]
pub(super) struct Followers {
    connected: Mutex<Slab<Arc<Connected>>>,
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
            instance: instance.into(),
            mode,
            since_unix_seconds: since.as_secs(),
            said: Mutex::default(),
        });
        let id = self.connected().insert(Arc::clone(&connected));
        Registration { followers: Arc::clone(self), connected, id }
    }

    /// In the order of their instance names.
    pub(super) fn list(&self) -> Vec<FollowerStatus> {
        let mut list: Vec<_> = self.all().iter().map(|connected| connected.status()).collect();
        list.sort_by(|a, b| (&a.instance, &a.spiffe_id).cmp(&(&b.instance, &b.spiffe_id)));
        list
    }

    /// By SPIFFE ID and instance name; of several of one name the furthest.
    pub(super) fn acknowledged(&self) -> HashMap<(String, String), Position> {
        let mut furthest = HashMap::new();
        for connected in self.all() {
            let Some(position) = connected.said().acknowledged else { continue };
            let name = (connected.peer.id.to_string(), connected.instance.as_ref().to_owned());
            let entry = furthest.entry(name).or_insert(position);
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
}

impl Connected {
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

    pub(super) fn acknowledged(&self, position: Position) {
        *self.connected.said() = Said { acknowledged: Some(position), nack: None };
    }

    pub(super) fn refused(&self, error: String) {
        self.connected.said().nack = Some(error.into());
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.followers.connected().try_remove(self.id);
    }
}
