//! Backups: the journals of tenants and of their guard, as bytes.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use journal::Journal;
use tenon_proto::{kind, tcs::v1::BackupResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// How long whoever takes a backup may leave a piece of it lying. The store keeps all that it has begun to read.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pieces on their way.
const AHEAD: usize = 4;

/// The backup as a stream of messages: first one that says how many records and changes follow, then its bytes.
pub(crate) async fn send(
    tenants: &dyn Journal,
    guard: &dyn Journal,
) -> Result<stream::BoxStream<'static, Result<BackupResponse, Status>>, Status> {
    let backup = journal::backup::stream(&[(kind::TENANT_GUARD, guard), (kind::TENANT, tenants)]).await;
    let journal::backup::Backup { parts, mut bytes } = backup.map_err(|error| unreadable(&error))?;
    let (pieces, sent) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        loop {
            let piece = match bytes.try_next().await {
                Ok(Some(chunk)) => Ok(BackupResponse { chunk, records: 0 }),
                Ok(None) => break,
                Err(error) => Err(unreadable(&error)),
            };
            // Dropped, the stream ends in the middle, which a backup does not.
            if !matches!(tokio::time::timeout(PATIENCE, pieces.send(piece)).await, Ok(Ok(()))) {
                break;
            }
        }
    });
    let first = BackupResponse { chunk: Default::default(), records: parts };
    Ok(stream::iter([Ok(first)]).chain(ReceiverStream::new(sent)).boxed())
}

fn unreadable(error: &journal::ReadError) -> Status {
    tracing::error!(%error, source = %error.0, "a backup broke off");
    Status::unavailable(format!("{error}: {}; nothing was backed up", error.0))
}
