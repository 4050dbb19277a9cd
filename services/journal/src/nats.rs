//! A journal in replicated streams of a NATS cluster, which any number of processes write (ADR 10).
//!
//! The truth is a log of commits, one stream a kind. Each process reads it into a store of its own, which is
//! what it answers from; a write is sent to the log and made when it is read back from there. `cursor` decides which commits
//! count, `replicator` reads, `write` writes, `checkpoint` lets the log be trimmed, `log` asks the servers.

mod checkpoint;
mod cursor;
mod log;
mod names;
mod replace;
mod replicator;
mod wire;
mod write;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Client, ConnectOptions};
use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

pub(crate) use cursor::Cursor;
use log::Log;
use mesh_config::names::TrustDomain;
use names::Mesh;
pub use replace::ReplaceError;
use replicator::{Alarm, Parts, Replicator, mind};
use write::{DEADLINE, Request, Stage};

use crate::{
    AppendError, Cause, History, Journal, OpenError, Options, Position, ReadError, Record, Servers, Snapshot, Tail,
    TailError, Write,
    embedded::{Replicated, blocking},
};

/// For how long the first answer of a cluster is waited for.
const FIRST_ANSWER: Duration = Duration::from_secs(60);
/// A server that does not answer for about twice as long is left for another one.
const PING: Duration = Duration::from_secs(1);
/// Between two tries to connect.
const RECONNECT: Duration = Duration::from_millis(250);
/// Bytes of the log below which no checkpoint is worth its room.
const CHECKPOINT_BYTES: u64 = 16 << 20;
/// Writes that may wait.
const WAITING: usize = 4096;

/// The journals of one mesh in a NATS cluster, which other meshes may use as well. Cheap to clone; the tasks behind it end with the last clone and the last journal.
#[derive(Clone, Debug)]
pub struct Nats {
    client: Client,
    servers: Servers,
    /// Whose journals: in the names of streams and folders.
    mesh: Arc<Mesh>,
    folder: Arc<PathBuf>,
    options: Options,
    checkpoint_bytes: u64,
    kinds: Arc<Mutex<HashMap<&'static str, Arc<NatsJournal>>>>,
}

impl Nats {
    /// Begins to connect. What is held of the mesh in the folder `local` is served until that succeeds. No other mesh than
    /// that of `trust_domain` is ever read or written.
    ///
    /// # Errors
    /// [`OpenError`] when the folder cannot be used, or no address is one.
    pub async fn connect(
        servers: &Servers,
        trust_domain: &TrustDomain,
        local: &Path,
        options: Options,
    ) -> Result<Self, OpenError> {
        let mesh = Arc::new(Mesh::of(trust_domain));
        let local = local.join(mesh.safe());
        let failed = |source| OpenError::Failed { path: local.clone(), source: redb::Error::Io(source) };
        std::fs::create_dir_all(&local).map_err(failed)?;
        let addresses: Result<Vec<async_nats::ServerAddr>, _> =
            servers.iter().map(|server| format!("nats://{server}").parse()).collect();
        let client = ConnectOptions::new()
            .name("tenon")
            .ping_interval(PING)
            .connection_timeout(Duration::from_secs(2))
            .reconnect_delay_callback(|tried| if tried > 1 { RECONNECT } else { Duration::ZERO })
            .retry_on_initial_connect()
            .connect(addresses.map_err(failed)?)
            .await
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let (servers, folder) = (servers.clone(), Arc::new(local));
        let checkpoint_bytes = CHECKPOINT_BYTES;
        Ok(Self { client, servers, mesh, folder, options, checkpoint_bytes, kinds: Arc::default() })
    }

    /// Checkpoints are stored once the log has grown by so many bytes, and by more than twice the records; 16 MiB unless
    /// this is said, before any journal is opened.
    #[must_use]
    pub fn with_checkpoints_every(self, bytes: u64) -> Self {
        Self { checkpoint_bytes: bytes, ..self }
    }

    /// The journal of `kind`; all callers get the same one. Where nothing of it is held yet, this waits for the first
    /// answer of the cluster.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn kind(&self, kind: &'static str) -> Result<Arc<dyn Journal>, OpenError> {
        let journal = match self.known(kind) {
            Some(journal) => journal,
            None => self.begin(kind).await?,
        };
        let mut local = journal.local.clone();
        let mut alarm = journal.alarm.clone();
        let unreachable = |why: &str| OpenError::Unreachable { store: self.servers.to_string(), why: why.to_owned() };
        tokio::select! {
            // What is held is served, whatever is wrong with the log.
            biased;
            held = local.wait_for(Option::is_some) => {
                held.map_err(|_| unreachable("it was closed meanwhile"))?;
            }
            alarm = alarm.wait_for(Option::is_some) => {
                let why = alarm.ok().and_then(|alarm| alarm.as_ref().map(ToString::to_string));
                return Err(unreachable(&why.unwrap_or_default()));
            }
            () = tokio::time::sleep(FIRST_ANSWER) => {
                return Err(unreachable("a majority of its nodes, with JetStream enabled, must be up and reachable"));
            }
        }
        Ok(journal)
    }

    fn known(&self, kind: &str) -> Option<Arc<NatsJournal>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(kind).cloned()
    }

    async fn begin(&self, kind: &'static str) -> Result<Arc<NatsJournal>, OpenError> {
        let path = self.folder.join(format!("{kind}.redb"));
        let log = Log::new(&log::context(self.client.clone()), &self.mesh, kind)
            .map_err(|error| OpenError::Unreachable { store: self.servers.to_string(), why: error.to_string() })?;
        let (file, options) = (path.clone(), self.options);
        let held = blocking(move || Replicated::open(&file, kind, options)).await?;
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(journal) = kinds.get(kind) {
            return Ok(Arc::clone(journal));
        }
        let (local, watched) = watch::channel(None);
        let (alarm, alarmed) = watch::channel(None);
        let (requests, waiting) = mpsc::channel(WAITING);
        let client = self.client.clone();
        let checkpoint_bytes = self.checkpoint_bytes;
        let (stream, alarms) = (log.stream().to_owned(), alarm.clone());
        let parts = Parts { kind, client, log, path, options, checkpoint_bytes, held, local, alarm, requests: waiting };
        tokio::spawn(mind(tokio::spawn(Replicator::new(parts).run()), stream, alarms));
        let journal = Arc::new(NatsJournal { local: watched, alarm: alarmed, requests });
        kinds.insert(kind, Arc::clone(&journal));
        Ok(journal)
    }
}

/// The journal of one kind: what is held locally, and the way to the task that writes.
#[derive(Debug)]
struct NatsJournal {
    local: watch::Receiver<Option<Arc<Replicated>>>,
    alarm: watch::Receiver<Option<Alarm>>,
    requests: mpsc::Sender<Request>,
}

impl NatsJournal {
    fn held(&self) -> Result<Arc<Replicated>, ReadError> {
        self.local.borrow().clone().ok_or_else(|| ReadError("nothing has been read from the cluster yet".into()))
    }

    async fn write(&self, at: Option<Position>, writes: Vec<Write>) -> Result<Position, AppendError> {
        // What was decided at a head goes through the log even when nothing has to be written, as a commit without changes:
        // who is cut off does not know whether that head still is one.
        if writes.is_empty() && at.is_none() {
            return Ok(self.held().map_err(|ReadError(cause)| AppendError::Failed(cause))?.position());
        }
        let (reply, answer) = oneshot::channel();
        let stage = Arc::new(Stage::default());
        let deadline = Instant::now() + DEADLINE;
        let request = Request { at, writes, deadline, stage: Arc::clone(&stage), reply };
        let asked = async {
            let busy = || {
                let why = self.alarm().unwrap_or_else(|| "this process is about to end".to_owned());
                AppendError::Failed(why.into())
            };
            self.requests.send(request).await.map_err(|_| busy())?;
            let dropped = || {
                if stage.sent() {
                    return AppendError::Unconfirmed("the task that writes to the log has ended meanwhile".into());
                }
                AppendError::Failed("what is held locally cannot be read".into())
            };
            answer.await.unwrap_or_else(|_| Err(dropped()))
        };
        // A little later than the task's own deadline, which knows more.
        let answered = tokio::time::timeout_at(deadline + DEADLINE / 30, asked).await;
        answered.unwrap_or_else(|_| {
            let late = Cause::from("the NATS cluster did not answer in time");
            Err(if stage.withdraw() { AppendError::Failed(late) } else { AppendError::Unconfirmed(late) })
        })
    }
}

#[tonic::async_trait]
impl Journal for NatsJournal {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.write(None, writes).await
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.write(Some(head), writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.held()?.journal().get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.held()?.journal().snapshot().await
    }

    async fn records_after(&self, after: &str, most: usize) -> Result<Vec<Record>, ReadError> {
        self.held()?.journal().records_after(after, most).await
    }

    async fn head(&self) -> Result<Position, ReadError> {
        Ok(self.held()?.position())
    }

    async fn count(&self) -> Result<u64, ReadError> {
        self.held()?.journal().count().await
    }

    async fn history(&self) -> Result<History, ReadError> {
        self.held()?.journal().history().await
    }

    fn tail(&self, from: Position) -> Tail {
        let mut local = self.local.clone();
        let held = local.borrow_and_update().clone();
        let Some(held) = held else {
            return Box::pin(stream::iter([Err(TailError::Compacted)]));
        };
        let entries = held.journal().tail(from);
        // Where another store takes its place, another history begins.
        let state = (entries, local);
        Box::pin(stream::try_unfold(state, |(mut entries, mut local)| async move {
            let next = tokio::select! {
                changed = local.changed() => match changed {
                    Ok(()) => return Err(TailError::Compacted),
                    Err(_) => entries.next().await,
                },
                next = entries.next() => next,
            };
            next.transpose().map(|next| next.map(|next| (next, (entries, local))))
        }))
    }

    fn alarm(&self) -> Option<String> {
        self.alarm.borrow().as_ref().map(ToString::to_string)
    }
}
