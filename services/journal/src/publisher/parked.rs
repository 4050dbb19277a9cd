//! A snapshot between two of its messages.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::frozen::Transfer;
use crate::Position;

/// A snapshot on its way to a follower. It keeps a turn, and the records as they were, so it is given up when the follower
/// reads nothing of it for too long; nobody asks the follower's stream then, which could see to that.
pub(super) struct Parked {
    position: Position,
    slot: Arc<Mutex<Slot>>,
    watchman: JoinHandle<()>,
}

struct Slot {
    /// Absent while its next message is being made, and after it was given up.
    transfer: Option<Box<Transfer>>,
    /// When the last message was taken.
    since: Instant,
}

impl Parked {
    /// Must be called within a tokio runtime.
    pub(super) fn new(transfer: Transfer, patience: Duration) -> Self {
        let position = transfer.position();
        let slot = Slot { transfer: Some(Box::new(transfer)), since: Instant::now() };
        let slot = Arc::new(Mutex::new(slot));
        let watchman = tokio::spawn(give_up(Arc::clone(&slot), patience));
        Self { position, slot, watchman }
    }

    pub(super) const fn position(&self) -> Position {
        self.position
    }

    /// The next message and whether it is the last; none when it was given up. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<(Bytes, bool)> {
        let transfer = lock(&self.slot).transfer.take()?;
        let mut out = Out { slot: &self.slot, transfer: Some(transfer) };
        Some(out.transfer.as_mut()?.next().await)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.watchman.abort();
    }
}

/// Puts it back when it is dropped.
struct Out<'p> {
    slot: &'p Mutex<Slot>,
    transfer: Option<Box<Transfer>>,
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        *lock(self.slot) = Slot { transfer: self.transfer.take(), since: Instant::now() };
    }
}

async fn give_up(slot: Arc<Mutex<Slot>>, patience: Duration) {
    let mut wait = patience;
    loop {
        sleep(wait).await;
        let mut slot = lock(&slot);
        wait = patience.saturating_sub(slot.since.elapsed());
        if slot.transfer.is_none() {
            wait = patience;
        } else if wait.is_zero() {
            slot.transfer = None;
            return;
        }
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
