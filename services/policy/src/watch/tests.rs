//! Two policy services on one store, each with a folder of its own.

use std::fs;

use journal::Embedded;
use tempfile::TempDir;

use super::*;
use crate::engine::Journals;

const MESH: &str = "\
apiVersion: tenon.dev/v1
kind: Mesh
metadata: {name: NAME}
spec: {trustDomain: test.example, regions: [us-east]}
";

struct Two {
    engines: [Arc<Engine>; 2],
    watchers: [Watcher; 2],
    folders: [TempDir; 2],
    _store: TempDir,
}

impl Two {
    async fn new() -> Self {
        let store = tempfile::tempdir().unwrap();
        let embedded = Embedded::open(&store.path().join("store.redb")).unwrap();
        let journals = Journals {
            allowlists: embedded.kind("allowlist").unwrap(),
            routes: embedded.kind("route").unwrap(),
            endpoints: embedded.kind("endpoint").unwrap(),
            quarantines: embedded.kind("quarantine").unwrap(),
            attestors: embedded.kind("attestation").unwrap(),
            sources: embedded.kind("source").unwrap(),
        };
        let open = async || {
            let domain = "test.example".parse().unwrap();
            Arc::new(Engine::open(domain, Vec::new(), journals.clone()).await.unwrap())
        };
        let engines = [open().await, open().await];
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let watcher = |index: usize| Watcher::new(Arc::clone(&engines[index]), Some(folders[index].path().to_owned()));
        Self { watchers: [watcher(0), watcher(1)], engines, folders, _store: store }
    }

    fn write(&self, folder: usize, mesh: &str) {
        let new = self.folders[folder].path().join(".new");
        fs::write(&new, MESH.replace("NAME", mesh)).unwrap();
        fs::rename(new, self.folders[folder].path().join("mesh.yaml")).unwrap();
    }

    /// As many looks as it takes to see a change for sure, and what others have done since.
    async fn look(&mut self, watcher: usize) {
        for _ in 0..=READ_ANYWAY {
            self.engines[watcher].settle().await;
            self.watchers[watcher].look().await;
            self.watchers[watcher].compare();
        }
    }

    /// The name of the mesh in force, and how many changes there were.
    async fn in_force(&self) -> (String, usize) {
        for engine in &self.engines {
            engine.refresh().await.unwrap();
        }
        let names = self.engines.each_ref().map(|engine| engine.in_force().mesh);
        assert_eq!(names[0], names[1]);
        (names[0].clone(), self.engines[0].history(100).await.unwrap().len())
    }
}

#[tokio::test]
async fn the_same_content_in_two_folders_is_one_change() {
    let mut two = Two::new().await;
    for (name, changes) in [("first", 1), ("second", 2), ("first", 3)] {
        two.write(0, name);
        two.look(0).await;
        two.write(1, name);
        two.look(1).await;
        two.look(0).await;
        assert_eq!(two.in_force().await, (name.to_owned(), changes));
    }
    assert!(two.watchers.iter().all(|watcher| watcher.other.is_none()));
}

#[tokio::test]
async fn of_different_folders_the_last_change_wins_and_stays() {
    let mut two = Two::new().await;
    two.write(0, "mine");
    two.look(0).await;
    two.write(1, "other");
    two.look(1).await;
    assert_eq!(two.in_force().await, ("other".to_owned(), 2));
    for watcher in [0, 1, 0, 1] {
        two.look(watcher).await;
    }
    assert_eq!(two.in_force().await, ("other".to_owned(), 2), "they do not take turns");
    assert!(two.watchers[0].other.is_some() && two.watchers[1].other.is_none(), "the first one says it");
    two.write(0, "other");
    two.look(0).await;
    assert_eq!((two.in_force().await, two.watchers[0].other), (("other".to_owned(), 2), None));
}
