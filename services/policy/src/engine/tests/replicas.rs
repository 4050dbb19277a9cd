//! Several policy services on one store.

use std::time::Duration;

use futures_util::future::join_all;

use super::*;

async fn two() -> (Engine, Engine, Journals, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let journals = journals(&Embedded::open(&dir.path().join("store.redb")).unwrap());
    (open(&journals).await, open(&journals).await, journals, dir)
}

async fn apply(engine: &Engine, rule: &str, expected: Option<Position>) -> Result<Applied, ApplyError> {
    engine.apply(files(&[("media", &[rule]), ("wiki", &[rule])]), Vec::new(), ann(), String::new(), expected).await
}

/// Looks as the watcher does until what two looks found is the same.
async fn look(engine: &Engine) {
    engine.settle().await;
    engine.settle().await;
}

#[tokio::test]
async fn what_one_applies_is_what_the_other_says_and_goes_on_from() {
    let (a, b, _, _dir) = two().await;
    let first = apply(&a, "read", None).await.unwrap();
    b.refresh().await.unwrap();
    assert_eq!((b.in_force().mesh, b.in_force().origin), (a.in_force().mesh, a.in_force().origin));
    assert_eq!(b.history(10).await.unwrap(), a.history(10).await.unwrap());
    let second = apply(&b, "write", Some(first.position)).await.unwrap();
    assert!(second.position > first.position);
    assert_eq!(rules(&a).await, ["media/write", "wiki/write"]);
    assert!(matches!(apply(&a, "erase", Some(first.position)).await, Err(ApplyError::Conflict { .. })));
}

#[tokio::test]
async fn of_those_who_expect_the_same_exactly_one_wins() {
    let (a, b, _, _dir) = two().await;
    let mut at = apply(&a, "first", None).await.unwrap().position;
    for round in 0..10 {
        let names: Vec<_> = (0..4).map(|number| format!("rule-{round}-{number}")).collect();
        let all = names.iter().zip([&a, &b, &a, &b]).map(|(rule, engine)| apply(engine, rule, Some(at)));
        let outcomes = join_all(all).await;
        let won: Vec<_> = outcomes.iter().zip(&names).filter(|(outcome, _)| outcome.is_ok()).collect();
        let [(Ok(applied), rule)] = &won[..] else { panic!("one wins: {outcomes:?}") };
        assert_eq!(rules(&a).await, [format!("media/{rule}"), format!("wiki/{rule}")]);
        for outcome in &outcomes {
            match outcome {
                Ok(_) => {}
                Err(ApplyError::Conflict { in_force, since }) => {
                    assert_eq!((*in_force, since.len()), (applied.position, 1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        at = applied.position;
    }
}

#[tokio::test]
async fn of_those_who_expect_nothing_all_are_made_one_after_the_other() {
    let (a, b, _, _dir) = two().await;
    let names: Vec<_> = (0..6).map(|number| format!("rule-{number}")).collect();
    let all = names.iter().zip([&a, &b].into_iter().cycle()).map(|(rule, engine)| apply(engine, rule, None));
    let mut positions: Vec<_> = join_all(all).await.into_iter().map(|it| it.unwrap().position).collect();
    positions.sort();
    let mut entries = a.history(10).await.unwrap();
    entries.reverse();
    let told: Vec<_> = entries.iter().map(|entry| entry.revision.unwrap()).collect();
    assert_eq!(told, positions.into_iter().map(to_revision).collect::<Vec<_>>(), "each at a revision of its own");
    let rules = rules(&b).await;
    assert_eq!((rules.len(), rules[0].replace("media", "wiki")), (2, rules[1].clone()), "of one policy");
}

/// Ends where another process would be killed: when a journal has made so many writes.
struct Dying {
    inner: Arc<dyn Journal>,
    left: Arc<std::sync::atomic::AtomicI64>,
}

#[tonic::async_trait]
impl Journal for Dying {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            std::future::pending::<()>().await;
        }
        self.inner.append(writes).await
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        if !writes.is_empty() && self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            std::future::pending::<()>().await;
        }
        self.inner.append_at(head, writes).await
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

fn dying(journals: &Journals, left: i64) -> Journals {
    let left = Arc::new(std::sync::atomic::AtomicI64::new(left));
    let dying = |inner: &Arc<dyn Journal>| -> Arc<dyn Journal> {
        Arc::new(Dying { inner: Arc::clone(inner), left: Arc::clone(&left) })
    };
    Journals {
        allowlists: dying(&journals.allowlists),
        routes: dying(&journals.routes),
        endpoints: dying(&journals.endpoints),
        quarantines: dying(&journals.quarantines),
        attestors: dying(&journals.attestors),
        sources: dying(&journals.sources),
    }
}

/// Files whose change touches quarantines, routes and allowlists.
fn turned(media: bool) -> Vec<SourceFile> {
    let (service, other) = if media { ("media", "wiki") } else { ("wiki", "media") };
    let mut files = files(&[(service, &["read"]), ("third", &["read"])]);
    let quarantine =
        "---\napiVersion: tenon.dev/v1\nkind: Quarantine\nmetadata: {name: q}\nspec: {services: [third]}\n";
    if media {
        files[0].text += quarantine;
    }
    assert!(!files[0].text.contains(other));
    files
}

#[tokio::test]
async fn a_change_whose_maker_dies_at_any_write_is_completed_by_another_or_was_never_made() {
    let (mut made, mut never) = (0, 0);
    for left in 0..8 {
        let (a, b, journals, _dir) = two().await;
        a.apply(turned(true), Vec::new(), ann(), String::new(), None).await.unwrap();
        look(&b).await;
        let doomed = open(&dying(&journals, left)).await;
        let work = doomed.apply(turned(false), Vec::new(), ann(), String::new(), None);
        let finished = tokio::time::timeout(Duration::from_millis(300), work).await.is_ok();
        look(&b).await;
        let committed = b.history(10).await.unwrap().len() == 2;
        let expected = if committed { ["third/read", "wiki/read"] } else { ["media/read", "third/read"] };
        let mut rules = rules(&b).await;
        rules.sort();
        assert_eq!(rules, expected, "{left} writes");
        let (_, quarantines) = records_of::<proto::Quarantine>(&*journals.quarantines).await.unwrap();
        assert_eq!(quarantines.len(), usize::from(!committed), "{left} writes");
        let entries = b.history(10).await.unwrap();
        assert_eq!(entries[0].revision, Some(to_revision(head(&b).await)), "{left} writes");
        assert!(committed || !finished);
        made += u32::from(committed);
        never += u32::from(!committed);
    }
    assert!(made >= 5 && never == 1, "{made} {never}");
}

#[tokio::test]
async fn records_that_somebody_else_wrote_are_put_right() {
    let (a, b, journals, _dir) = two().await;
    apply(&a, "read", None).await.unwrap();
    look(&b).await;
    journals.routes.append(vec![Write::delete("wiki")]).await.unwrap();
    b.settle().await;
    assert_eq!(journals.routes.count().await.unwrap(), 1, "one look is not enough: its writer may not be through");
    b.settle().await;
    assert_eq!(journals.routes.count().await.unwrap(), 2);
}

/// Named after two versions during an upgrade, each of which puts right what the other one has written.
#[tokio::test]
async fn records_that_another_version_found_complete_are_left_alone_until_this_one_starts() {
    let (a, b, journals, _dir) = two().await;
    apply(&a, "read", None).await.unwrap();
    look(&b).await;
    journals.routes.append(vec![Write::put("wiki", vec![])]).await.unwrap();
    let loaded = stored::load(&*journals.sources).await.unwrap();
    let mut state = loaded.state.clone();
    state.complete(journals.heads().await.unwrap());
    journals.sources.append(vec![loaded.put(&state)]).await.unwrap();
    for engine in [&a, &b, &a, &b] {
        look(engine).await;
    }
    let route = async || journals.routes.get("wiki").await.unwrap().unwrap().value;
    assert_eq!(route().await, "");
    open(&journals).await;
    assert_ne!(route().await, "");
}

#[tokio::test]
async fn the_same_folder_at_two_is_taken_once() {
    let (a, b, _, _dir) = two().await;
    let take = async |engine: &Engine| {
        let origin = Origin::Folder { dir: "/policies".to_owned(), digest: [1; 32] };
        engine.apply(files(&[("media", &["read"])]), Vec::new(), origin, String::new(), None).await.unwrap()
    };
    take(&a).await;
    apply(&a, "applied", None).await.unwrap();
    assert_eq!(take(&b).await.changes, 0, "it would undo what an operator has applied since");
    assert_eq!((a.history(10).await.unwrap().len(), rules(&b).await.len()), (2, 2));
}

/// Lets another policy service apply something just before it is read.
struct Overtaken {
    inner: Arc<dyn Journal>,
    by: Mutex<Option<Arc<Engine>>>,
}

#[tonic::async_trait]
impl Journal for Overtaken {
    async fn append(&self, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.inner.append(writes).await
    }

    async fn append_at(&self, head: Position, writes: Vec<Write>) -> Result<Position, AppendError> {
        self.inner.append_at(head, writes).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, ReadError> {
        self.inner.get(key).await
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let by = lock(&self.by).take();
        if let Some(other) = by {
            apply(&other, "later", None).await.unwrap();
        }
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

/// Named after a policy service that was held up between reading the files and reading the records, and put the records of the
/// old files over the new ones.
#[tokio::test]
async fn who_reads_the_files_before_and_the_records_after_a_change_does_not_undo_it() {
    let (a, b, journals, _dir) = two().await;
    let first = apply(&a, "first", None).await.unwrap().position;
    let gate = Arc::new(Overtaken { inner: Arc::clone(&journals.allowlists), by: Mutex::default() });
    let slow = open(&Journals { allowlists: Arc::clone(&gate) as Arc<dyn Journal>, ..journals.clone() }).await;
    *lock(&gate.by) = Some(Arc::new(b));
    slow.unsettled.store(true, Ordering::Relaxed);
    slow.settle().await;
    assert_eq!(rules(&slow).await, ["media/later", "wiki/later"]);
    // Two services and the reserved record, written once.
    assert_eq!(head(&slow).await.revision, first.revision + 3);
    assert_eq!(slow.history(10).await.unwrap(), a.history(10).await.unwrap());
}
