//! The guard's rules as followers are told them.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use tenon_proto::replication::v1::GuardRules;

use super::message;

/// The present rules, encoded, with a number that grows with each change. There are none before number 1.
#[derive(Debug, Default)]
pub(super) struct Rules {
    version: AtomicU64,
    present: Mutex<(GuardRules, Bytes)>,
}

impl Rules {
    /// Whether they differ from those before.
    pub(super) fn set(&self, rules: GuardRules) -> bool {
        let mut present = self.present();
        let version = self.version.load(Ordering::Acquire);
        if version > 0 && present.0 == rules {
            return false;
        }
        *present = (rules.clone(), message::guard_rules(rules));
        self.version.store(version + 1, Ordering::Release);
        true
    }

    /// The message for who was told number `told`, if it does not know the latest.
    pub(super) fn newer_than(&self, told: u64) -> Option<(u64, Bytes)> {
        if self.version.load(Ordering::Acquire) == told {
            return None;
        }
        let present = self.present();
        Some((self.version.load(Ordering::Acquire), present.1.clone()))
    }

    pub(super) fn get(&self) -> Option<GuardRules> {
        (self.version.load(Ordering::Acquire) > 0).then(|| self.present().0.clone())
    }

    fn present(&self) -> MutexGuard<'_, (GuardRules, Bytes)> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
