//! The streams of one kind, and what the servers are asked of them.
//!
//! | stream | subject | what |
//! | --- | --- | --- |
//! | `TENON_MESH_KIND` | `tenon.MESH.KIND.log` | commits |
//! | | `tenon.MESH.KIND.part` | writes of commits that are larger than a message |
//! | `TENON_MESH_KIND_CHECKPOINTS` | `tenon.MESH.KIND.checkpoint` | manifests |
//! | | `tenon.MESH.KIND.chunk` | records |
//!
//! The servers publish each commit that is stored once more, to `tenon.MESH.KIND.committed`, so that replicas hear of it
//! at once.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap, Subscriber,
    jetstream::{
        Context, ErrorCode,
        context::{CreateStreamErrorKind, GetStreamErrorKind, PublishErrorKind},
        message::PublishMessage,
        stream::{Config, Info, RawMessageErrorKind, Republish, StorageType, Stream},
    },
};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;

use super::{
    names::{Mesh, Names},
    wire::{self, Commit, Manifest, Parts},
};
use crate::Cause;

/// For how long one question to the servers waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of one message at most, below the limit of the servers (1 MiB unless set otherwise) with room for headers.
const MESSAGE_BYTES: usize = 512 << 10;
/// Messages that are asked for, or sent, at once.
const AT_ONCE: usize = 32;
/// How often a part is sent before its commit is given up.
const TRIES: usize = 3;
/// Replicas of each stream.
const REPLICAS: usize = 3;

/// The streams of one kind.
#[derive(Clone, Debug)]
pub(super) struct Log {
    context: Context,
    log: Stream<()>,
    checkpoints: Stream<()>,
    names: Names,
}

/// What asking the servers came to.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// Nobody can answer: no connection, or no quorum. Nothing was done.
    #[error("the NATS cluster cannot answer: a majority of its nodes must be up, and reachable from here")]
    Unavailable(#[source] Cause),
    /// No answer in time. What was asked for may have been done.
    #[error("the NATS cluster did not answer in time: a majority of its nodes must be up, and reachable from here")]
    Silent(#[source] Cause),
    /// The message is not, or no longer, there.
    #[error("message {0} of the log is missing")]
    Missing(u64),
    /// The same of the stream of the checkpoints.
    #[error("message {0} of the checkpoints is missing")]
    CheckpointMissing(u64),
    #[error("there is no such stream")]
    NoStream,
    #[error("the NATS cluster refuses: {0}")]
    Refused(String),
    /// Nothing of it was used.
    #[error("stream {stream} is of the mesh {found:?}, and this is {own}")]
    AnotherMesh { stream: String, found: String, own: String },
    #[error("message {sequence} of the log is not one of ours")]
    Damaged {
        sequence: u64,
        #[source]
        source: Cause,
    },
}

/// What became of a commit that was sent.
pub(super) enum Sent {
    /// It is in the log, at this sequence. Whether it counts tells who reads the log.
    At(u64),
    /// The log has come further than it says.
    Late,
}

impl Log {
    pub(super) fn new(context: &Context, mesh: &Mesh, kind: &str) -> Result<Self, LogError> {
        let names = Names::of(mesh, kind);
        let handle = |name: &str| {
            let handle = futures_util::FutureExt::now_or_never(context.get_stream_no_info(name));
            handle.and_then(Result::ok).ok_or_else(|| LogError::Refused(format!("{name} cannot name a stream")))
        };
        Ok(Self {
            log: handle(&names.stream)?,
            checkpoints: handle(&names.checkpoint_stream)?,
            context: context.clone(),
            names,
        })
    }

    pub(super) fn stream(&self) -> &str {
        &self.names.stream
    }

    /// The trust domain of the mesh that this is the log of, as its beginning and checkpoints say it.
    pub(super) fn mesh(&self) -> String {
        self.names.mesh.trust_domain().to_owned()
    }

    /// Refuses what says that it is of another mesh.
    pub(super) fn ours(&self, mesh: &str) -> Result<(), LogError> {
        if mesh == self.names.mesh.trust_domain() {
            return Ok(());
        }
        Err(LogError::AnotherMesh { stream: self.names.stream.clone(), found: mesh.to_owned(), own: self.mesh() })
    }

    /// Hears of each commit that is stored, most of the time.
    pub(super) async fn subscribe(&self, client: &Client) -> Result<Subscriber, LogError> {
        client.subscribe(self.names.committed.clone()).await.map_err(|error| LogError::Unavailable(error.into()))
    }

    pub(super) async fn info(&self) -> Result<Info, LogError> {
        let stream = self.context.get_stream(&self.names.stream).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                LogError::NoStream
            }
            GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::InvalidStreamName
            | GetStreamErrorKind::JetStream(_) => LogError::Unavailable(error.into()),
        })?;
        Ok(stream.cached_info().clone())
    }

    /// Makes both streams where they are missing.
    pub(super) async fn create(&self) -> Result<(), LogError> {
        let Names { stream, checkpoint_stream, commits, parts, committed, manifests, chunks, .. } = &self.names;
        let config = |name: &String, subjects: [&String; 2]| Config {
            name: name.clone(),
            subjects: subjects.map(String::clone).to_vec(),
            storage: StorageType::File,
            num_replicas: REPLICAS,
            allow_direct: true,
            ..Config::default()
        };
        // The log last: who finds it finds everything.
        self.create_one(config(checkpoint_stream, [manifests, chunks])).await?;
        let republish = Republish { source: commits.clone(), destination: committed.clone(), headers_only: false };
        self.create_one(Config { republish: Some(republish), ..config(stream, [commits, parts]) }).await
    }

    async fn create_one(&self, config: Config) -> Result<(), LogError> {
        let name = config.name.clone();
        let error = match self.context.create_stream(config.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let code = match error.kind() {
            CreateStreamErrorKind::JetStream(error) => error.error_code(),
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::Response => {
                return Err(LogError::Silent(error.into()));
            }
            CreateStreamErrorKind::EmptyStreamName
            | CreateStreamErrorKind::InvalidStreamName
            | CreateStreamErrorKind::DomainAndExternalSet
            | CreateStreamErrorKind::JetStreamUnavailable
            | CreateStreamErrorKind::NotFound
            | CreateStreamErrorKind::ResponseParse => return Err(LogError::Unavailable(error.into())),
        };
        match code {
            ErrorCode::STREAM_NAME_EXIST => Ok(()), // Somebody else was here, with settings of their own.
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED if config.num_replicas > 1 => {
                tracing::warn!(stream = name, "the NATS server is alone: the journal is on one disk only");
                Box::pin(self.create_one(Config { num_replicas: 1, ..config })).await
            }
            ErrorCode::CLUSTER_NO_PEERS | ErrorCode::INSUFFICIENT_RESOURCES => Err(LogError::Refused(format!(
                "stream {name} needs {REPLICAS} nodes with JetStream and room on their disks ({error})"
            ))),
            _ => Err(LogError::Refused(format!("stream {name} cannot be made ({error})"))),
        }
    }

    /// Whether `commit` fits into one message.
    pub(super) fn fits(bytes: usize) -> bool {
        bytes <= MESSAGE_BYTES
    }

    /// Sends a commit once.
    pub(super) async fn commit(&self, after: u64, encoded: Bytes) -> Result<Sent, LogError> {
        let mut message = PublishMessage::build().payload(encoded);
        // Of the first message nothing is expected: a server up to 2.9 checks that in a place that has had its errors.
        if after > 0 {
            message = message.expected_last_subject_sequence(after);
        }
        self.publish(&self.names.commits, message).await
    }

    async fn publish(&self, subject: &str, message: PublishMessage) -> Result<Sent, LogError> {
        let sent = match self.context.send_publish(subject.to_owned(), message).await {
            Ok(sent) => sent.await,
            Err(error) => Err(error),
        };
        sent.map(|ack| Sent::At(ack.sequence)).or_else(|error| match error.kind() {
            PublishErrorKind::WrongLastSequence => Ok(Sent::Late),
            // No stream has a leader for that subject.
            PublishErrorKind::StreamNotFound => Err(LogError::Unavailable(error.into())),
            PublishErrorKind::MaxPayloadExceeded => {
                Err(LogError::Refused(format!("max_payload of the servers must be at least 1MB ({error})")))
            }
            PublishErrorKind::WrongLastMessageId
            | PublishErrorKind::TimedOut
            | PublishErrorKind::BrokenPipe
            | PublishErrorKind::MaxAckPending
            | PublishErrorKind::Other => Err(LogError::Silent(error.into())),
        })
    }

    /// Stores what is too large for one message.
    pub(super) async fn stage(&self, whole: &Bytes) -> Result<Parts, LogError> {
        let sequences = self.store(&self.names.parts, wire::cut(whole, MESSAGE_BYTES)).await?;
        Ok(Parts { sequences, digest: wire::digest(whole) })
    }

    async fn store(&self, subject: &str, messages: Vec<Bytes>) -> Result<Vec<u64>, LogError> {
        let sent = messages.into_iter().map(|message| async move {
            let mut tried = 1;
            loop {
                match self.publish(subject, PublishMessage::build().payload(message.clone())).await {
                    Ok(Sent::At(sequence)) => return Ok(sequence),
                    Ok(Sent::Late) => return Err(LogError::Refused("a part has no predecessor".to_owned())),
                    // One that is stored twice takes room and does no harm.
                    Err(_) if tried < TRIES => tried += 1,
                    Err(error) => return Err(error),
                }
            }
        });
        stream::iter(sent).buffered(AT_ONCE).try_collect().await
    }

    pub(super) async fn parts(&self, parts: &Parts) -> Result<Bytes, LogError> {
        gather(&self.log, parts).await
    }

    /// The commits in a range of sequences, in order, each with its own. What is missing is an error: it may have been one,
    /// and whether what follows counts would be judged wrongly. A leader that is behind misses what others have.
    pub(super) fn read(
        &self,
        from: u64,
        to: u64,
    ) -> impl futures_util::Stream<Item = Result<(u64, Commit), LogError>> + Send + Unpin + '_ {
        let messages = stream::iter((from..=to).map(move |sequence| async move {
            commit_in(&self.names.commits, sequence, fetch(&self.log, sequence).await)
        }));
        Box::pin(messages.buffered(AT_ONCE).try_filter_map(async |commit| Ok(commit)))
    }

    /// One commit, as the leader has it.
    pub(super) async fn commit_at(&self, sequence: u64) -> Result<Commit, LogError> {
        let (_, payload) = fetch_from_leader(&self.log, sequence).await?;
        decode(sequence, &payload).map(|(_, commit)| commit)
    }

    /// The first commit in a range of sequences that is there. What is missing says nothing here.
    pub(super) async fn first_in(&self, from: u64, to: u64) -> Result<Option<Commit>, LogError> {
        let mut commits = self.read(from, to);
        loop {
            match commits.try_next().await {
                Ok(found) => return Ok(found.map(|(_, commit)| commit)),
                Err(LogError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether no other commit lies between two.
    pub(super) async fn nothing_between(&self, after: u64, before: u64) -> Result<bool, LogError> {
        Ok(self.first_in(after + 1, before - 1).await?.is_none())
    }

    /// The revision of the last write of a commit that was read by itself.
    pub(super) async fn last_revision(&self, commit: &Commit) -> Result<u64, LogError> {
        let Some(parts) = &commit.parts else { return Ok(commit.last_revision()) };
        let damaged = |source| LogError::Damaged { sequence: commit.after, source };
        let writes = wire::Changes::decode(self.parts(parts).await?).map_err(|error| damaged(error.into()))?.writes;
        Ok(Commit { writes, ..commit.clone() }.last_revision())
    }

    /// Sequence of the last message of the log, as the leader has it; 0 when there is none.
    pub(super) async fn last(&self) -> Result<u64, LogError> {
        match self.log.get_last_raw_message_by_subject(&self.names.commits).await {
            Ok(message) => Ok(message.sequence),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(0),
            Err(error) => Err(LogError::Unavailable(error.into())),
        }
    }

    /// Lets go of all messages of the log before `sequence`.
    pub(super) async fn trim(&self, sequence: u64) -> Result<(), LogError> {
        purge(&self.log, sequence).await
    }

    pub(super) async fn stage_chunk(&self, chunk: &Bytes) -> Result<Parts, LogError> {
        let sequences = self.store(&self.names.chunks, wire::cut(chunk, MESSAGE_BYTES)).await?;
        Ok(Parts { sequences, digest: wire::digest(chunk) })
    }

    /// Makes a manifest the last one, unless another came after `after`.
    pub(super) async fn store_manifest(&self, after: u64, manifest: &Manifest) -> Result<Sent, LogError> {
        let message = PublishMessage::build().payload(manifest.encode_to_vec().into());
        let message = if after > 0 { message.expected_last_subject_sequence(after) } else { message };
        self.publish(&self.names.manifests, message).await
    }

    /// The last manifest and its sequence; an empty one at 0 when there is none.
    pub(super) async fn manifest(&self) -> Result<(u64, Manifest), LogError> {
        match self.checkpoints.get_last_raw_message_by_subject(&self.names.manifests).await {
            Ok(message) => Ok((message.sequence, decode_manifest(message.sequence, &message.payload)?)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok((0, Manifest::default())),
            Err(error) => Err(LogError::Unavailable(error.into())),
        }
    }

    pub(super) async fn manifest_at(&self, sequence: u64) -> Result<Manifest, LogError> {
        let (_, payload) = fetch(&self.checkpoints, sequence).await.map_err(of_checkpoints)?;
        decode_manifest(sequence, &payload)
    }

    pub(super) fn chunks(
        &self,
        chunks: Vec<Parts>,
    ) -> impl futures_util::Stream<Item = Result<Bytes, LogError>> + Send + Unpin + '_ {
        let chunks = chunks
            .into_iter()
            .map(move |parts| async move { gather(&self.checkpoints, &parts).await.map_err(of_checkpoints) });
        Box::pin(stream::iter(chunks).buffered(AT_ONCE / 4))
    }

    /// Lets go of all chunks and manifests before `sequence`.
    pub(super) async fn trim_checkpoints(&self, sequence: u64) -> Result<(), LogError> {
        purge(&self.checkpoints, sequence).await
    }
}

/// One message with its subject: of any replica, and if that one does not have it, of the leader.
async fn fetch(stream: &Stream<()>, sequence: u64) -> Result<(async_nats::Subject, Bytes), LogError> {
    if let Ok(Ok(message)) = tokio::time::timeout(PATIENCE / 4, stream.direct_get(sequence)).await {
        return Ok((message.subject, message.payload));
    }
    fetch_from_leader(stream, sequence).await
}

async fn fetch_from_leader(stream: &Stream<()>, sequence: u64) -> Result<(async_nats::Subject, Bytes), LogError> {
    match stream.get_raw_message(sequence).await {
        Ok(message) => Ok((message.subject, message.payload)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Err(LogError::Missing(sequence)),
        Err(error) => Err(LogError::Unavailable(error.into())),
    }
}

fn of_checkpoints(error: LogError) -> LogError {
    if let LogError::Missing(sequence) = error { LogError::CheckpointMissing(sequence) } else { error }
}

/// What was cut.
async fn gather(stream: &Stream<()>, parts: &Parts) -> Result<Bytes, LogError> {
    let fetched = parts.sequences.clone().into_iter().map(|sequence| fetch(stream, sequence));
    let mut fetched = futures_util::stream::iter(fetched).buffered(AT_ONCE);
    let mut whole = Vec::new();
    while let Some((_, part)) = fetched.try_next().await? {
        whole.extend_from_slice(&part);
    }
    if wire::digest(&whole) != parts.digest {
        let sequence = parts.sequences.last().copied().unwrap_or_default();
        return Err(LogError::Damaged { sequence, source: "its parts do not add up".into() });
    }
    Ok(whole.into())
}

async fn purge(stream: &Stream<()>, sequence: u64) -> Result<(), LogError> {
    if sequence <= 1 {
        return Ok(()); // Nothing is before the first one; but a server takes 1 for everything.
    }
    stream.purge().sequence(sequence).await.map(drop).map_err(|error| LogError::Unavailable(error.into()))
}

/// The commit in what was fetched, if it is one.
fn commit_in(
    commits: &str,
    sequence: u64,
    fetched: Result<(async_nats::Subject, Bytes), LogError>,
) -> Result<Option<(u64, Commit)>, LogError> {
    let (subject, payload) = fetched?;
    if *subject == *commits { decode(sequence, &payload).map(Some) } else { Ok(None) }
}

fn decode(sequence: u64, payload: &Bytes) -> Result<(u64, Commit), LogError> {
    let commit = Commit::decode(payload.clone());
    commit.map(|commit| (sequence, commit)).map_err(|error| LogError::Damaged { sequence, source: error.into() })
}

fn decode_manifest(sequence: u64, payload: &Bytes) -> Result<Manifest, LogError> {
    Manifest::decode(payload.clone()).map_err(|error| LogError::Damaged { sequence, source: error.into() })
}

/// A commit that the servers published once more: its sequence, that of the one before, itself.
pub(super) fn heard(message: &async_nats::Message) -> Option<(u64, u64, Commit)> {
    let number = |name| -> Option<u64> {
        let headers: &HeaderMap = message.headers.as_ref()?;
        headers.get(name)?.as_str().parse().ok()
    };
    let (sequence, before) =
        (number(async_nats::header::NATS_SEQUENCE)?, number(async_nats::header::NATS_LAST_SEQUENCE)?);
    Some((sequence, before, Commit::decode(message.payload.clone()).ok()?))
}

/// The way to the JetStream of a cluster, with the patience of this journal.
pub(super) fn context(client: Client) -> Context {
    async_nats::jetstream::context::ContextBuilder::new().timeout(PATIENCE).ack_timeout(PATIENCE).build(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_passed_over_and_what_is_missing_is_not() {
        let commit = Commit { id: 5, ..Commit::default() };
        let fetched = |subject: &'static str| Ok((subject.into(), commit.encode()));
        assert_eq!(commit_in("log", 50, fetched("log")).unwrap(), Some((50, commit.clone())));
        assert_eq!(commit_in("log", 50, fetched("part")).unwrap(), None);
        let missing = commit_in("log", 50, Err(LogError::Missing(50)));
        assert!(matches!(missing, Err(LogError::Missing(50))), "{missing:?}");
    }
}
