//! Backups: the journals of tenants and of their guard, as bytes.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use journal::{Entry, Journal};
use prost::Message as _;
use tenon_proto::{
    kind,
    tcs::v1::{AppliedEvent, BackupResponse},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::events;

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

/// The revision that was answered for a change: that of the tenant for the memory of the event which changed it, which is
/// the change behind. Who restores to what was answered has both.
#[must_use]
pub fn part_of(entry: &Entry) -> u64 {
    let memory = entry.value.as_ref().filter(|_| events::is_event(&entry.key));
    let known = memory.and_then(|value| AppliedEvent::decode(value.clone()).ok());
    known.map(|event| event.revision).filter(|answered| answered + 1 == entry.revision).unwrap_or(entry.revision)
}

fn unreadable(error: &journal::ReadError) -> Status {
    tracing::error!(%error, source = %error.0, "a backup broke off");
    Status::unavailable(format!("{error}: {}; nothing was backed up", error.0))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use journal::{
        Embedded,
        backup::{Moment, Replaced, Restore},
    };
    use pbjson_types::Timestamp;
    use tenon_proto::tcs::v1::{CreateTenant, DestroyTenant, LifecycleEvent, lifecycle_event::Change};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{guard::Guards, store::Store};

    async fn open(path: &Path) -> (Arc<dyn Journal>, Arc<dyn Journal>, Store) {
        let store = Embedded::open(path).unwrap();
        let (tenants, guard) = (store.kind(kind::TENANT).unwrap(), store.kind(kind::TENANT_GUARD).unwrap());
        let guards = Guards::open(Arc::clone(&guard), CancellationToken::new()).await.unwrap();
        let store = Store::open(Arc::clone(&tenants), guards, CancellationToken::new()).await.unwrap();
        (tenants, guard, store)
    }

    fn event(id: &str, change: Change) -> LifecycleEvent {
        let (event_id, tenant_id) = (id.to_owned(), "acme".to_owned());
        LifecycleEvent { event_id, tenant_id, expected_revision: 0, change: Some(change) }
    }

    #[tokio::test]
    async fn an_event_that_is_in_what_was_restored_is_not_applied_again() {
        let dir = tempfile::tempdir().unwrap();
        let (tenants, guard, store) = open(&dir.path().join("store")).await;
        let now = Timestamp { seconds: 1_000, nanos: 0 };
        let create = Change::CreateTenant(CreateTenant { region: "us-east".to_owned(), ..CreateTenant::default() });
        let events = [event("e1", create), event("e2", Change::DestroyTenant(DestroyTenant {}))];
        let mut answered = Vec::new();
        for event in &events {
            answered.push(store.apply(event.clone(), now).await.unwrap().revision);
        }
        assert_eq!(answered, [1, 3]);
        let kinds = [(kind::TENANT_GUARD, &*guard), (kind::TENANT, &*tenants)];
        let backup = journal::backup::stream(&kinds).await.unwrap().bytes;
        let backup: Vec<_> = backup.try_collect().await.unwrap();

        // To what was answered, and to what was before.
        for (to, applied) in [(0, 0), (answered[0], 1), (answered[1] - 1, 1), (answered[1], 2)] {
            let path = dir.path().join(format!("to {to}"));
            let restore = Restore::begin(&path, kind::TENANT, Moment::Revision(to), Replaced::default()).unwrap();
            let mut restore = restore.keeping_together(part_of);
            for piece in &backup {
                restore.push(piece).unwrap();
            }
            restore.finish().unwrap();
            let (_, _, store) = open(&path).await;
            for (number, event) in events.iter().enumerate() {
                let answer = store.apply(event.clone(), now).await.unwrap();
                assert_eq!(answer.repeated_event, number < applied, "{} after a restore to {to}", event.event_id);
            }
        }
    }
}
