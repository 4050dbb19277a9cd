//! What stands in the way of reading a log: for now, or until somebody sees to it.

use tokio::{sync::watch, task::JoinHandle};

use crate::{Cause, OpenError, embedded::ApplyError, nats::log::LogError};

/// Why nothing is read any more, until somebody sees to it. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::nats) enum Alarm {
    #[error("stream {0} is gone: what is held of it is served, nothing is written; restore a backup into the cluster")]
    Gone(String),
    #[error(
        "stream {stream} ends at {end}, and {held} of it is held: it was cut short or lost data; what is held is served, \
         nothing is written; restore a backup into the cluster"
    )]
    Shorter { stream: String, end: u64, held: u64 },
    #[error(
        "stream {0} is not the one that is held: it was made anew; what is held is served, nothing is written; restore a \
         backup into the cluster, or delete this process's local store to take what the cluster has"
    )]
    Another(String),
    #[error("stream {stream} has lost what came after {held}, and there is no checkpoint of it; restore a backup")]
    Hole { stream: String, held: u64 },
    #[error(
        "stream {stream} is the log of the mesh {found:?}, and this is {own}: nothing of it is read or written; delete it, \
         and restore a backup of {own} into the cluster"
    )]
    AnotherMesh { stream: String, found: String, own: String },
    #[error("stream {stream} is damaged: {why}; restore a backup into the cluster")]
    Damaged { stream: String, why: String },
    #[error(
        "nothing of stream {stream} is read or written any more: {why}; what is held is served; restart this process, and \
         report this error"
    )]
    Ended { stream: String, why: String },
}

/// Raises an alarm where a task that reads a log ends with a panic: nobody would hear of it otherwise.
pub(in crate::nats) async fn mind(task: JoinHandle<()>, stream: String, alarm: watch::Sender<Option<Alarm>>) {
    let Err(error) = task.await else { return };
    if error.is_panic() {
        let alarmed = Alarm::Ended { stream, why: error.to_string() };
        tracing::error!(alarm = %alarmed, "the journal stands still");
        alarm.send_replace(Some(alarmed));
    }
}

/// Why the log could not be read on.
#[derive(Debug, thiserror::Error)]
pub(in crate::nats) enum Failure {
    #[error(transparent)]
    Log(LogError),
    #[error("the local store cannot be written")]
    Local(#[from] redb::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Alarm(#[from] Alarm),
    #[error("the checkpoint cannot be read")]
    Checkpoint(#[source] Cause),
    #[error("the local store was opened again after an error, and has lost what came last: the log is read again")]
    Elsewhere,
}

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Elsewhere => Self::Elsewhere,
            ApplyError::Store(error) => Self::Local(error),
        }
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        match error {
            LogError::AnotherMesh { stream, found, own } => Alarm::AnotherMesh { stream, found, own }.into(),
            other @ (LogError::Unavailable(_)
            | LogError::Silent(_)
            | LogError::Missing(_)
            | LogError::CheckpointMissing(_)
            | LogError::NoStream
            | LogError::Refused(_)
            | LogError::Damaged { .. }) => Self::Log(other),
        }
    }
}
