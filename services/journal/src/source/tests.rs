use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{AppendError, Everything, History, Journal, Position, Publisher, ReadError, Record, Snapshot, Tail, Write};

/// A journal that an operator must see to.
struct Refused;

#[tonic::async_trait]
impl Journal for Refused {
    async fn append(&self, _: Vec<Write>) -> Result<Position, AppendError> {
        Err(AppendError::Failed("refused".into()))
    }

    async fn append_at(&self, _: Position, _: Vec<Write>) -> Result<Position, AppendError> {
        Err(AppendError::Failed("refused".into()))
    }

    async fn get(&self, _: &str) -> Result<Option<Record>, ReadError> {
        Ok(None)
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        Ok(Snapshot { position: Position::new(1, 0), records: Vec::new() })
    }

    async fn head(&self) -> Result<Position, ReadError> {
        Ok(Position::new(1, 0))
    }

    async fn count(&self) -> Result<u64, ReadError> {
        Ok(0)
    }

    async fn history(&self) -> Result<History, ReadError> {
        Err(ReadError("refused".into()))
    }

    fn tail(&self, _: Position) -> Tail {
        Box::pin(futures_util::stream::pending())
    }

    fn alarm(&self) -> Option<String> {
        Some("the stream is gone".to_owned())
    }
}

#[tokio::test]
async fn what_a_journal_wants_an_operator_to_see_is_in_the_status_of_its_kind() {
    let journal: Arc<dyn Journal> = Arc::new(Refused);
    let shutdown = CancellationToken::new();
    let publisher = Publisher::start("tenant", journal, Arc::new(Everything), shutdown.clone());
    assert_eq!(publisher.status().alarms, ["the stream is gone"]);
    shutdown.cancel();
}
