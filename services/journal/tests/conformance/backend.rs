//! Where the journals of the suite are kept.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use journal::{AppendError, Journal, Journals, Options, Position, Store, Write};
use mesh_config::names::TrustDomain;
use tempfile::TempDir;

use crate::nats::Cluster;

/// The mesh of all tests but those of several.
pub const MESH: &str = "demo.example";

pub fn mesh(name: &str) -> TrustDomain {
    TrustDomain::try_from(name).unwrap()
}

/// Journals of one kind in one place, as several processes open it.
pub trait Backend: Send + Sync {
    /// Opens it as one of several replicas, each with what it held before. Who wants to open the same one again drops
    /// everything of it first.
    fn open(&self, replica: usize) -> BoxFuture<'_, Opened>;
}

/// A replica; it ends when dropped.
pub struct Opened {
    pub journal: Arc<dyn Journal>,
    _journals: Arc<Journals>,
}

/// A file, which all replicas of the suite share: it has one writer.
pub struct InFile {
    kind: &'static str,
    path: PathBuf,
    open: tokio::sync::Mutex<Weak<Journals>>,
    _dir: TempDir,
}

impl InFile {
    pub fn new(kind: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { kind, path: dir.path().join("store.redb"), open: tokio::sync::Mutex::default(), _dir: dir }
    }
}

impl Backend for InFile {
    fn open(&self, _replica: usize) -> BoxFuture<'_, Opened> {
        Box::pin(async move {
            let mut open = self.open.lock().await;
            let journals = match open.upgrade() {
                Some(journals) => journals,
                None => {
                    let store = Store::Embedded(self.path.clone());
                    Arc::new(
                        journal::open(&store, &mesh(MESH), Path::new("/nonexistent"), Options::default())
                            .await
                            .unwrap(),
                    )
                }
            };
            *open = Arc::downgrade(&journals);
            Opened { journal: journals.kind(self.kind).await.unwrap(), _journals: journals }
        })
    }
}

/// Streams of a cluster; each replica holds what it has read in a folder of its own.
pub struct InCluster {
    store: Store,
    trust_domain: TrustDomain,
    kind: &'static str,
    pub options: Options,
    dir: TempDir,
}

impl InCluster {
    pub fn new(store: &str, kind: &'static str) -> Self {
        Self::of(store, MESH, kind)
    }

    /// Of another mesh.
    pub fn of(store: &str, trust_domain: &str, kind: &'static str) -> Self {
        let (store, trust_domain) = (store.parse().unwrap(), mesh(trust_domain));
        Self { store, trust_domain, kind, options: Options::default(), dir: tempfile::tempdir().unwrap() }
    }

    pub fn local(&self, replica: usize) -> PathBuf {
        self.dir.path().join(replica.to_string())
    }
}

impl Backend for InCluster {
    fn open(&self, replica: usize) -> BoxFuture<'_, Opened> {
        Box::pin(async move {
            let until = Instant::now() + Duration::from_secs(10);
            loop {
                // The task of the one before may still have the file open.
                let journals = journal::open(&self.store, &self.trust_domain, &self.local(replica), self.options).await;
                let journals = Arc::new(journals.unwrap());
                match journals.kind(self.kind).await {
                    Ok(journal) => return Opened { journal, _journals: journals },
                    Err(journal::OpenError::Held(_)) if Instant::now() < until => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        })
    }
}

pub async fn cluster() -> Cluster {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    Cluster::start(target).await.unwrap()
}

/// One server by itself.
pub async fn single() -> Cluster {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    Cluster::of(1, target).await.unwrap()
}

/// Fails rather than hangs, and says what hung.
pub async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("{what}: not done within {limit:?}"))
}

/// Waits until a replica has come to a position.
pub async fn reach(journal: &dyn Journal, position: Position) {
    let until = Instant::now() + Duration::from_secs(30);
    while journal.head().await.unwrap() < position {
        assert!(Instant::now() < until, "{position} is not reached");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Makes writes as somebody does who is told that a store is out of reach for a moment: again, until it is known that they
/// were made, once. Returns whether they were, or what condition was not met.
///
/// A mark that nothing else writes goes with them, which tells afterwards whether they were made.
pub async fn insist(journal: &dyn Journal, writes: Vec<Write>) -> Result<(), AppendError> {
    static MARKS: AtomicU64 = AtomicU64::new(1);
    let mark = format!("mark/{}", MARKS.fetch_add(1, Ordering::Relaxed));
    let mut all = writes;
    all.push(Write::put(mark.clone(), "made").expecting(journal::Expected::Absent));
    loop {
        let error = match journal.append(all.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error {
            // Answered by one that has read the log to its end: either the mark is there, or nothing was made.
            AppendError::Conflict { .. } if journal.get(&mark).await.unwrap().is_some() => return Ok(()),
            AppendError::Conflict { .. } | AppendError::Moved { .. } => return Err(error),
            AppendError::Full(_) | AppendError::Failed(_) | AppendError::Unconfirmed(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
