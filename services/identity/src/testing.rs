//! A journal whose disk does not confirm what it has taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use journal::{AppendError, Journal, Position, ReadError, Record, Snapshot, Tail, Write};

/// Answers as `inner` does, unless told otherwise.
pub(crate) struct Unsure {
    inner: Arc<dyn Journal>,
    /// Whether writes are answered with [`AppendError::Unconfirmed`].
    pub unconfirmed: AtomicBool,
    /// Whether those are not made.
    pub lost: AtomicBool,
    /// Whether nothing can be read.
    pub unreadable: AtomicBool,
}

impl Unsure {
    pub(crate) fn new(inner: Arc<dyn Journal>) -> Arc<Self> {
        let [unconfirmed, lost, unreadable] = [const { AtomicBool::new(false) }; 3];
        Arc::new(Self { inner, unconfirmed, lost, unreadable })
    }

    fn readable(&self) -> Result<(), ReadError> {
        if self.unreadable.load(Ordering::SeqCst) { Err(ReadError(disk())) } else { Ok(()) }
    }
}

fn disk() -> journal::Cause {
    std::io::Error::other("the disk").into()
}

#[tonic::async_trait]
impl Journal for Unsure {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        if writes.is_empty() {
            self.readable().map_err(|error| AppendError::Failed(error.into()))?;
            return self.inner.append(writes).await;
        }
        if !self.lost.load(Ordering::SeqCst) {
            let written = self.inner.append(writes).await?;
            if !self.unconfirmed.load(Ordering::SeqCst) {
                return Ok(written);
            }
        }
        Err(AppendError::Unconfirmed(disk()))
    }

    async fn append_at(&self, _: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.append(writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.readable()?;
        self.inner.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.readable()?;
        self.inner.snapshot().await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        self.inner.head().await
    }

    async fn count(&self) -> Result<u64, ReadError> {
        self.inner.count().await
    }

    async fn history(&self) -> Result<journal::History, ReadError> {
        self.inner.history().await
    }

    fn tail(&self, from: Position) -> Tail {
        self.inner.tail(from)
    }
}
