//! What is remembered of changes, and going back to them.

use tenon_proto::policy::v1::history_entry::Action;

use super::*;
use crate::engine::stored::STATE;

struct One {
    engine: Engine,
    journals: Journals,
    _dir: tempfile::TempDir,
}

impl One {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journals = journals(&Embedded::open(&dir.path().join("store.redb")).unwrap());
        Self { engine: open(&journals).await, journals, _dir: dir }
    }

    async fn apply(&self, services: &[(&str, &[&str])], note: &str) -> Applied {
        self.engine.apply(files(services), Vec::new(), ann(), note.to_owned(), None).await.unwrap()
    }

    async fn entries(&self) -> Vec<HistoryEntry> {
        self.engine.history(100).await.unwrap()
    }
}

#[tokio::test]
async fn each_change_has_an_entry_and_a_revision_of_its_own() {
    let one = One::new().await;
    let first = one.apply(&[("media", &["read"])], "").await;
    let second = one.apply(&[("media", &["read", "write"])], "for the importer").await;
    let entries = one.entries().await;
    let told: Vec<_> =
        entries.iter().map(|it| (it.revision.unwrap(), it.changes.join(","), it.note.as_str())).collect();
    assert_eq!(
        told,
        [
            (to_revision(second.position), "service media: rules write added".to_owned(), "for the importer"),
            (to_revision(first.position), "service media added, rules read".to_owned(), ""),
        ]
    );
    assert!(entries.iter().all(|it| it.kept && it.by == "operator ann" && it.action() == Action::Applied));
    assert!(entries[0].at_unix_seconds >= entries[1].at_unix_seconds && entries[1].at_unix_seconds > 0);
    assert_eq!(entries[0].digest[..], digest_of(&files(&[("media", &["read", "write"])]))[..]);
    assert_eq!((second.position, second.changes), (head(&one.engine).await, 1));
}

#[tokio::test]
async fn applying_twice_changes_nothing_and_a_change_of_quarantines_alone_moves_the_revision() {
    let one = One::new().await;
    let first = one.apply(&[("media", &["read"])], "").await;
    let twice = one.apply(&[("media", &["read"])], "").await;
    assert_eq!((twice.position, twice.changes, one.entries().await.len()), (first.position, 0, 1));

    let mut cut_off = files(&[("media", &["read"])]);
    cut_off[0].text +=
        "---\napiVersion: tenon.dev/v1\nkind: Quarantine\nmetadata: {name: q}\nspec: {services: [media]}\n";
    let third = one.engine.apply(cut_off, Vec::new(), ann(), String::new(), None).await.unwrap();
    assert!(third.position > first.position && third.changes == 1, "{third:?}");
    assert_eq!(one.entries().await[0].changes, ["media quarantined"]);
    let kinds: Vec<_> = third.positions.iter().map(|it| (it.kind.as_str(), it.revision)).collect();
    let revision = third.position.revision;
    assert_eq!(kinds, [("allowlist", revision), ("route", 1), ("endpoint", 0), ("quarantine", 1), ("attestation", 0)]);

    let mut commented = files(&[("media", &["read"])]);
    commented[0].text += "# why\n";
    let fourth = one.engine.apply(commented, Vec::new(), ann(), String::new(), None).await.unwrap();
    assert_eq!((fourth.changes, one.entries().await[0].changes[0].as_str()), (1, "quarantine of media lifted"));
    let fifth = one.apply(&[("media", &["read"])], "").await;
    assert_eq!(one.entries().await[0].changes, ["the files alone: what they say is the same"]);
    assert!(fifth.changes == 0 && fifth.position > fourth.position);
}

#[tokio::test]
async fn going_back_is_a_change_of_its_own() {
    let one = One::new().await;
    let first = one.apply(&[("media", &["read"])], "").await;
    one.apply(&[("wiki", &["edit"])], "").await;
    let author = Author::operator("spiffe://test.example/operator/bob", "it broke".to_owned(), None);
    let back = one.engine.rollback(first.position, &author).await.unwrap();
    assert_eq!(rules(&one.engine).await, ["media/read"]);
    let entries = one.entries().await;
    assert_eq!((entries.len(), entries[0].action(), entries[0].by.as_str()), (3, Action::RolledBack, "operator bob"));
    assert_eq!((entries[0].note.as_str(), entries[0].revision), ("it broke", Some(to_revision(back.position))));
    assert_eq!(
        entries[0].changes,
        [&format!("back to revision {}", first.position), "service media added, rules read", "service wiki removed"]
    );
    assert_eq!(one.engine.in_force().origin, "applied by spiffe://test.example/operator/bob");

    let again = one.engine.rollback(Position::new(0, first.position.revision), &author).await.unwrap();
    assert_eq!((again.position, again.changes), (back.position, 0), "it is in force already");
    let unknown = Position::new(first.position.epoch, 999);
    assert!(matches!(one.engine.rollback(unknown, &author).await, Err(ApplyError::Unknown(at)) if at == unknown));
}

#[tokio::test]
async fn who_expects_another_revision_is_told_what_was_done_since() {
    let one = One::new().await;
    let first = one.apply(&[("media", &["read"])], "").await;
    let second = one.apply(&[("media", &["write"])], "").await;
    let expecting = async |expected| {
        one.engine.apply(files(&[("wiki", &["edit"])]), Vec::new(), ann(), String::new(), Some(expected)).await
    };
    let Err(ApplyError::Conflict { in_force, since }) = expecting(first.position).await else { panic!("a conflict") };
    assert_eq!((in_force, since.len(), rules(&one.engine).await), (second.position, 1, vec!["media/write".to_owned()]));
    assert_eq!(since[0].revision, Some(to_revision(second.position)));
    let Err(ApplyError::Conflict { since, .. }) = expecting(Position::new(0, 0)).await else { panic!("a conflict") };
    assert_eq!(since.len(), 2);
    expecting(second.position).await.unwrap();
    assert_eq!(rules(&one.engine).await, ["wiki/edit"]);
    let author = Author { expected: Some(first.position), ..Author::default() };
    assert!(matches!(one.engine.rollback(first.position, &author).await, Err(ApplyError::Conflict { .. })));
}

#[tokio::test]
async fn the_files_of_old_changes_go_and_their_entries_stay() {
    let one = One::new().await;
    let mut positions = Vec::new();
    for number in 0..102 {
        let rule = format!("rule-{number}");
        positions.push(one.apply(&[("media", &[&rule])], "").await.position);
    }
    let entries = one.engine.history(1000).await.unwrap();
    assert_eq!(entries.len(), 102);
    assert_eq!(entries.iter().filter(|entry| entry.kept).count(), 100);
    let author = Author::default();
    assert!(matches!(one.engine.rollback(positions[1], &author).await, Err(ApplyError::NotKept(_))));
    one.engine.rollback(positions[2], &author).await.unwrap();
    assert_eq!(rules(&one.engine).await, ["media/rule-2"]);
    let kept = one.journals.sources.snapshot().await.unwrap().records;
    assert_eq!(kept.iter().filter(|record| record.key.starts_with("files/")).count(), 100);
}

#[tokio::test]
async fn a_store_of_before_there_was_a_history_is_taken_over() {
    let one = One::new().await;
    one.apply(&[("media", &["read"])], "").await;
    // As the version before wrote it.
    let sources = &*one.journals.sources;
    let state = stored::load(sources).await.unwrap().state;
    let (_, value) = stored::files(sources, &state.files).await.unwrap().unwrap();
    let old = vec![
        Write::put("files", value),
        Write::put("origin", "folder /policies"),
        Write::put("folder", vec![7; 32]),
        Write::delete(STATE),
        Write::delete(stored::files_key(&state.files)),
    ];
    sources.append(old).await.unwrap();
    let engine = open(&one.journals).await;
    let InForce { mesh, origin, folder, .. } = engine.in_force();
    assert_eq!((mesh.as_str(), origin.as_str(), folder), ("test", "folder /policies", Some([7; 32])));
    assert_eq!(rules(&engine).await, ["media/read"]);
    assert!(sources.get("files").await.unwrap().is_none());
    let same = engine.apply(files(&[("media", &["read"])]), Vec::new(), ann(), String::new(), None).await.unwrap();
    assert_eq!(same.changes, 0);
}
