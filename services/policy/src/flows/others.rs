//! What other policy services write to the same journal: rollouts here want to know of it as well.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use journal::{Entry, Journal, Position, TailError};
use mesh_identity::clock;
use prost::Message as _;

use super::{
    intake::Intake,
    passed,
    stored::{self, HourKey, Mark, MarkKey},
};
use crate::engine::chain;

/// Between two tries to read.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes what others write after `from`, as long as it is polled: which calls passed, and what was refused.
pub(super) async fn follow(journal: Arc<dyn Journal>, writer: Arc<str>, intake: Arc<Intake>, mut from: Position) {
    loop {
        let mut tail = journal.tail(from);
        let error = loop {
            match tail.next().await {
                Some(Ok(entries)) => {
                    for entry in entries {
                        from.revision = entry.revision;
                        take(&entry, &writer, &intake);
                    }
                }
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        match error {
            // Too far behind. What was refused meanwhile nobody is told of; what passed is read.
            Some(TailError::Compacted) => match start_over(&*journal, &intake).await {
                Ok(head) => from = head,
                Err(error) => tracing::warn!(error = chain(&error), "flows of other policy services cannot be read"),
            },
            Some(error) => tracing::warn!(error = chain(&error), "flows of other policy services cannot be read"),
            None => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn start_over(journal: &dyn Journal, intake: &Intake) -> Result<Position, journal::ReadError> {
    let head = journal.head().await?;
    let passed = passed(journal).await?;
    intake.passed().merge(passed);
    Ok(head)
}

fn take(entry: &Entry, writer: &str, intake: &Intake) {
    let Some(value) = &entry.value else { return };
    if let Some(from) = MarkKey::parse(&entry.key) {
        let Ok(mark) = Mark::decode(value.clone()) else { return };
        if mark.writer != writer && !mark.refused.is_empty() {
            intake.announce(&from, mark.refused.into());
        }
    } else if HourKey::parse(&entry.key).is_some_and(|key| *key.writer != *writer) {
        let (counts, _) = stored::decode(value);
        let now = clock::unix_seconds();
        let mut passed = intake.passed();
        counts.iter().for_each(|(flow, _)| passed.note(flow, now));
    }
}
