//! Keeping the tokens and their key current.

use std::{sync::Arc, time::Duration};

use mesh_identity::{clock, join::Membership};
use replica::{Decoded, Replica};
use tokio_util::sync::CancellationToken;

use super::KeyRecord;
use crate::live::Live;

const TICK: Duration = Duration::from_secs(1);

/// While the key that signs is not in the key set, the identity service is told of it this often, in ticks.
const MISSING: u64 = 10;

/// Renews tokens before a call needs them, and takes over each new key, until `end`. Tells `membership` when the identity
/// service comes back, or has lost the key that signs.
pub async fn keep_minting(live: Arc<Live>, membership: Arc<Membership>, end: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    let mut keys = membership.asap_key();
    let mut source = Source::default();
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = tick.tick() => {
                live.minting.renew_due(clock::unix_seconds());
                if source.look(live.keys(), live.minting.key().kid().as_str()) {
                    membership.identity_service_heard();
                }
            }
            _ = keys.changed() => {
                let key = Arc::clone(&keys.borrow_and_update());
                live.minting.set_key(key, clock::unix_seconds());
            }
        }
    }
}

/// What the key set says about the identity service.
#[derive(Default)]
struct Source {
    connected: bool,
    epoch: Option<u64>,
    /// Ticks for which the own key has been missing.
    missing: u64,
}

impl Source {
    /// Whether the identity service should hear of this process now.
    fn look(&mut self, keys: &Replica<Decoded<KeyRecord>>, own: &str) -> bool {
        let status = keys.status();
        let epoch = status.position.map(|position| position.epoch);
        self.saw(status.connected, epoch, keys.get(own).is_some())
    }

    fn saw(&mut self, connected: bool, epoch: Option<u64>, own_key: bool) -> bool {
        let back = !std::mem::replace(&mut self.connected, connected) && connected;
        let another_history = std::mem::replace(&mut self.epoch, epoch).is_some_and(|before| Some(before) != epoch);
        self.missing = if connected && !own_key { self.missing + 1 } else { 0 };
        back || another_history || self.missing % MISSING == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_service_hears_of_this_process_when_it_is_back_has_forgotten_it_or_begins_anew() {
        let mut source = Source::default();
        assert!(!source.saw(false, None, false), "it is not there");
        assert!(source.saw(true, Some(1), true), "it is there");
        assert!(!source.saw(true, Some(1), true), "all is well");
        assert!(source.saw(true, Some(2), true), "another history");
        assert!(source.saw(true, Some(2), false), "the key is gone");
        assert!((1..MISSING).all(|_| !source.saw(true, Some(2), false)), "not each second");
        assert!(source.saw(true, Some(2), false), "but again");
        assert!(!source.saw(false, Some(2), false), "nobody to tell");
        assert!(source.saw(true, Some(2), true), "back");
    }
}
