//! What a store that fails leaves behind.

mod history;
mod replicas;
mod signed;
mod staging;

use journal::{Embedded, Record, Snapshot, Tail, Write};
use mesh_config::SourceFile;

use super::*;

const MESH: &str = "\
apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: test}
spec: {trustDomain: test.example, regions: [us-east]}
---
apiVersion: tenon.dev/v1
kind: Service
metadata: {name: media}
spec: {}
";

/// A journal that writes nothing, or does not confirm what it writes, while it is told so.
struct Failing {
    inner: Arc<dyn Journal>,
    fails: AtomicBool,
    unconfirmed: AtomicBool,
}

#[tonic::async_trait]
impl Journal for Failing {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(AppendError::Full("the disk".into()));
        }
        let written = self.inner.append(writes).await?;
        if self.unconfirmed.load(Ordering::Relaxed) {
            return Err(AppendError::Unconfirmed(std::io::Error::other("the disk").into()));
        }
        Ok(written)
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        if writes.is_empty() {
            return self.inner.append_at(head, writes).await;
        }
        self.append(writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.inner.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
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

/// Files with these services, each with the rules of these names.
fn files(services: &[(&str, &[&str])]) -> Vec<SourceFile> {
    let mut text = MESH.split("---").next().unwrap().to_owned();
    for (service, rules) in services {
        text += &format!("---\napiVersion: tenon.dev/v1\nkind: Service\nmetadata: {{name: {service}}}\nspec: {{}}\n");
        text += &format!("---\napiVersion: tenon.dev/v1\nkind: Allowlist\nmetadata: {{name: {service}}}\nspec:\n");
        text += &format!("  service: {service}\n  rules:\n");
        for rule in *rules {
            text += &format!("    - {{name: {rule}, callers: ['*'], paths: [/a.B/{}]}}\n", rule.replace('-', "_"));
        }
    }
    vec![SourceFile { path: "mesh.yaml".to_owned(), text }]
}

fn ann() -> Origin {
    Origin::Operator("spiffe://test.example/operator/ann".to_owned())
}

/// All journals of one store.
fn journals(store: &Embedded) -> Journals {
    Journals {
        allowlists: store.kind("allowlist").unwrap(),
        routes: store.kind("route").unwrap(),
        endpoints: store.kind("endpoint").unwrap(),
        quarantines: store.kind("quarantine").unwrap(),
        attestors: store.kind("attestation").unwrap(),
        sources: store.kind("source").unwrap(),
    }
}

async fn open(journals: &Journals) -> Engine {
    Engine::open("test.example".parse().unwrap(), Vec::new(), journals.clone()).await.unwrap()
}

/// Services and their rules, as sidecars have them.
async fn rules(engine: &Engine) -> Vec<String> {
    let (_, services) = records_of::<proto::ServicePolicy>(&*engine.journals().allowlists).await.unwrap();
    services.iter().flat_map(|one| one.rules.iter().map(|rule| format!("{}/{}", one.service, rule.name))).collect()
}

async fn head(engine: &Engine) -> Position {
    engine.journals().allowlists.head().await.unwrap()
}

struct World {
    engine: Engine,
    sources: Arc<Failing>,
    routes: Arc<Failing>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let failing = |kind| {
            let (fails, unconfirmed) = (AtomicBool::new(false), AtomicBool::new(false));
            Arc::new(Failing { inner: store.kind(kind).unwrap(), fails, unconfirmed })
        };
        let (sources, routes) = (failing("source"), failing("route"));
        let journals = Journals {
            routes: Arc::clone(&routes) as Arc<dyn Journal>,
            sources: Arc::clone(&sources) as Arc<dyn Journal>,
            ..journals(&store)
        };
        let engine = open(&journals).await;
        Self { engine, sources, routes, _dir: dir }
    }

    async fn apply(&self) -> Result<Applied, ApplyError> {
        let files = vec![SourceFile { path: "mesh.yaml".to_owned(), text: MESH.to_owned() }];
        self.engine.apply(files, Vec::new(), ann(), String::new(), None).await
    }

    async fn counts(&self) -> [u64; 3] {
        let Journals { allowlists, routes, sources, .. } = self.engine.journals();
        [sources.count().await.unwrap(), allowlists.count().await.unwrap(), routes.count().await.unwrap()]
    }
}

#[tokio::test]
async fn when_the_files_cannot_be_kept_nothing_changes() {
    let world = World::new().await;
    world.sources.fails.store(true, Ordering::Relaxed);
    let failed = world.apply().await.unwrap_err();
    assert!(matches!(failed, ApplyError::Store(_)) && failed.to_string().contains("nothing has changed"), "{failed}");
    assert!(chain(&failed).contains("no room left on the disk"), "{}", chain(&failed));
    assert_eq!(world.counts().await, [0, 0, 0]);
    assert_eq!(world.engine.in_force().origin, "");
}

/// Named after a policy that was said to have failed, and came into force at a restart days later.
#[tokio::test]
async fn files_that_the_disk_did_not_confirm_come_into_force_with_the_next_look() {
    let world = World::new().await;
    world.apply().await.unwrap();
    world.sources.unconfirmed.store(true, Ordering::Relaxed);
    let files = vec![SourceFile { path: "mesh.yaml".to_owned(), text: MESH.replace("name: media", "name: wiki") }];
    let origin = Origin::Folder { dir: "/policies".to_owned(), digest: [7; 32] };
    let unsure = world.engine.apply(files, Vec::new(), origin, String::new(), None).await.unwrap_err();
    assert!(matches!(unsure, ApplyError::Unconfirmed(_)) && !unsure.to_string().contains("nothing"), "{unsure}");

    world.engine.settle().await;
    let InForce { origin, folder, .. } = world.engine.in_force();
    assert_eq!((origin.as_str(), folder), ("folder /policies", Some([7; 32])));
    let (_, services) = records_of::<proto::ServicePolicy>(&*world.engine.journals().allowlists).await.unwrap();
    assert_eq!(services.iter().map(|record| record.service.as_str()).collect::<Vec<_>>(), ["wiki"]);
}

#[tokio::test]
async fn when_a_record_cannot_be_written_it_is_written_later() {
    let world = World::new().await;
    world.routes.fails.store(true, Ordering::Relaxed);
    assert!(matches!(world.apply().await, Err(ApplyError::Unsettled(_))));
    assert_eq!(world.counts().await, [3, 2, 0], "state, files and history; the allowlist and the reserved record");
    world.engine.settle().await;
    assert_eq!(world.counts().await, [3, 2, 0], "the store still fails");
    world.routes.fails.store(false, Ordering::Relaxed);
    world.engine.settle().await;
    assert_eq!(world.counts().await, [3, 2, 1]);
    let [entry] = &world.engine.history(10).await.unwrap()[..] else { panic!("one entry") };
    assert_eq!(entry.revision, Some(to_revision(world.engine.journals().allowlists.head().await.unwrap())));
}
