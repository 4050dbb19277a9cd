//! How many connections there are to each instance, over all workers.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, Weak, atomic::Ordering::Relaxed},
};

use super::{Alive, Pool, lock};

/// The pools of one sidecar.
#[derive(Default)]
pub struct Pools(Mutex<Vec<Weak<Alive>>>);

impl Pools {
    /// The connections of `pool` count from now on, for as long as it lives.
    pub fn enter(&self, pool: &Pool) {
        let mut pools = lock(&self.0);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(&pool.alive));
    }

    /// Connections that are open, by the inbound listener that they lead to.
    pub fn open(&self) -> HashMap<SocketAddr, u32> {
        let mut open = HashMap::new();
        for pool in lock(&self.0).iter().filter_map(Weak::upgrade) {
            let alive = lock(&pool.0);
            let states = alive.iter().filter_map(|(state, _, address)| Some((state.upgrade()?, *address)));
            for (_, address) in states.filter(|(state, _)| !state.ended.load(Relaxed)) {
                *open.entry(address).or_default() += 1;
            }
        }
        open
    }
}
