//! Who follows, and how far each has come, for operators.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_identity::Peer;
use tenon_proto::replication::v1::FollowerStatus;

use crate::Position;

/// The followers that are connected now.
#[derive(Debug, Default)]
pub(super) struct Followers {
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    next: u64,
    connected: HashMap<u64, FollowerStatus>,
}

impl Followers {
    pub(super) fn register(self: &Arc<Self>, peer: &Peer, instance: String) -> Registration {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let status = FollowerStatus {
            instance,
            spiffe_id: peer.id.to_string(),
            acknowledged: None,
            nack: String::new(),
            connected_unix_seconds: since.as_secs(),
            mode: 0,
        };
        let mut all = self.all();
        let id = all.next;
        all.next += 1;
        all.connected.insert(id, status);
        drop(all);
        Registration { followers: Arc::clone(self), id }
    }

    /// In the order of their instance names.
    pub(super) fn list(&self) -> Vec<FollowerStatus> {
        let mut list: Vec<_> = self.all().connected.values().cloned().collect();
        list.sort_by(|a, b| (&a.instance, &a.spiffe_id).cmp(&(&b.instance, &b.spiffe_id)));
        list
    }

    /// By SPIFFE ID and instance name; of several of one name the furthest.
    pub(super) fn acknowledged(&self) -> HashMap<(String, String), Position> {
        let mut furthest = HashMap::new();
        for status in self.all().connected.values() {
            let Some(position) = status.acknowledged.map(Position::from) else { continue };
            let entry = furthest.entry((status.spiffe_id.clone(), status.instance.clone())).or_insert(position);
            *entry = position.max(*entry);
        }
        furthest
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connected follower; dropping it takes it off the list.
#[derive(Debug)]
pub(super) struct Registration {
    followers: Arc<Followers>,
    id: u64,
}

impl Registration {
    pub(super) fn acknowledged(&self, position: Position) {
        self.update(|status| {
            status.acknowledged = Some(position.into());
            status.nack.clear();
        });
    }

    pub(super) fn refused(&self, error: String) {
        self.update(|status| status.nack = error);
    }

    fn update(&self, update: impl FnOnce(&mut FollowerStatus)) {
        if let Some(status) = self.followers.all().connected.get_mut(&self.id) {
            update(status);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.followers.all().connected.remove(&self.id);
    }
}
