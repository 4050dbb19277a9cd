//! When to acknowledge: soon, and not with every change.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use crate::Position;

/// Acknowledgements of one stream are at least this far apart.
pub(super) const SPACING: Duration = Duration::from_millis(200);

/// The acknowledgements of one stream. The last counts: those between are left out.
pub(super) struct Acks {
    announced: watch::Receiver<Option<Position>>,
    owed: bool,
    sent: Option<Instant>,
}

impl Acks {
    pub(super) fn new(mut announced: watch::Receiver<Option<Position>>) -> Self {
        announced.borrow_and_update();
        Self { announced, owed: false, sent: None }
    }

    /// There is something to acknowledge.
    pub(super) fn owe(&mut self) {
        self.announced.borrow_and_update();
        self.owed = true;
    }

    /// Something was sent, or it turned out that there is nothing to say.
    pub(super) fn sent(&mut self) {
        self.owed = false;
        self.sent = Some(Instant::now());
    }

    /// Ends when it is time to acknowledge what was applied, from this stream or from another.
    pub(super) async fn due(&mut self) {
        if !self.owed {
            // The sender lives as long as the follower.
            let _ = self.announced.changed().await;
            self.owed = true;
        }
        if let Some(sent) = self.sent {
            tokio::time::sleep_until(sent + SPACING).await;
        }
    }
}
