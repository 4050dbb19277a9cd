//! `Tenants.Watch`: the changes of a journal as operators see them.

use futures_util::{Stream, StreamExt as _, stream};
use journal::{Entry, Position, Tail, TailError};
use pbjson_types::Timestamp;
use prost::Message as _;
use tenon_proto::tcs::v1::{TenantContext, WatchResponse};
use tonic::Status;

use crate::events;

/// First where it begins, then each change of a tenant in `tail`; of one tenant, if `only` is not empty.
pub(crate) fn changes(
    tail: Tail,
    after: Position,
    only: String,
) -> impl Stream<Item = Result<WatchResponse, Status>> + Send {
    let Position { epoch, revision } = after;
    let begin = WatchResponse { epoch, revision, ..WatchResponse::default() };
    let changes = tail.flat_map(move |entries| {
        let told: Vec<Result<WatchResponse, Status>> = match entries {
            Ok(entries) => {
                let entries = entries.into_iter().filter(|entry| is_told(&entry.key, &only));
                entries.map(|entry| Ok(response(epoch, entry))).collect()
            }
            Err(TailError::Compacted) => vec![Err(no_longer_kept())],
            Err(error @ TailError::Read(_)) => vec![Err(Status::unavailable(error.to_string()))],
        };
        stream::iter(told)
    });
    stream::once(std::future::ready(Ok(begin))).chain(changes)
}

/// A watch cannot begin there, or cannot go on.
pub(crate) fn no_longer_kept() -> Status {
    Status::out_of_range(
        "the changes after that position are no longer kept, or are of another epoch: list the tenants, and watch from now on",
    )
}

fn is_told(key: &str, only: &str) -> bool {
    !events::is_event(key) && (only.is_empty() || only == key)
}

fn response(epoch: u64, entry: Entry) -> WatchResponse {
    let Entry { key, revision, value, at_unix_ms } = entry;
    let tenant = value.map(|value| match TenantContext::decode(value) {
        Ok(tenant) => TenantContext { revision, ..tenant },
        Err(error) => {
            tracing::error!(tenant = key, revision, %error, "a stored tenant does not decode");
            TenantContext { tenant_id: key.clone(), revision, ..TenantContext::default() }
        }
    });
    WatchResponse { epoch, revision, at: moment(at_unix_ms), tenant_id: key, tenant }
}

fn moment(unix_ms: u64) -> Option<Timestamp> {
    let nanos = i32::try_from(unix_ms % 1000).ok()? * 1_000_000;
    let seconds = i64::try_from(unix_ms / 1000).ok()?;
    (unix_ms > 0).then_some(Timestamp { seconds, nanos })
}
